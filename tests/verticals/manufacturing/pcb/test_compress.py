"""`verticals compress` of a detector: pruned and taught by the run itself; and int8, which inspects boards as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.inference.model import network_of
from pipelines.compress import compress
from verticals.manufacturing.pcb import APPLICATION


def parameters(path: Path) -> int:
    return sum(each.numel() for each in network_of(APPLICATION, path).parameters())


def test_a_detector_is_pruned_and_taught(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, folder = trained[1]["run"], tmp_path / "small"
    result = compress(
        run, prune=0.3, bits=32, teacher=run, max_score_drop=0.5, settings=["fit.max_steps=20"], output=str(folder)
    )
    assert [row["model"] for row in result["rows"]] == ["run", "run-openvino", "small", "small-openvino"]
    (small,) = (folder / "runs").glob("*-small-*")
    assert parameters(small) < 0.8 * parameters(Path(run))
    notes = json.loads((small / "compressed.json").read_text())
    assert set(APPLICATION.whole) <= set(notes["refused"])  # what tells classes and sides
    assert len(notes["channels"]) >= 20
    assert all(left % 16 == 0 for _, left in notes["channels"].values())


def test_a_detector_is_made_int8(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    result = compress(trained[1]["run"], max_score_drop=0.2, output=str(tmp_path / "int8"))
    rows = {row["model"]: row for row in result["rows"]}
    assert rows["run-openvino-int8"]["times_smaller"] > 1.5
    assert rows["run-openvino-int8"]["value"] > 0.5
