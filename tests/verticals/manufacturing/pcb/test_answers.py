"""What `verticals predict` writes: a line for every picture, whatever it is, and no file over another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from core.errors import ConfigError
from tests.verticals.manufacturing.line_process import predictor
from verticals.manufacturing.pcb.answers import cost, predict
from verticals.manufacturing.pcb.application import task
from verticals.manufacturing.pcb.config import debug
from verticals.manufacturing.pcb.data import PcbData

GOLDEN = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)


def put(path: Path, picture: Any = GOLDEN) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def answered(source: Path, target: Path) -> dict[str, dict[str, Any]]:
    model = predictor()
    said = predict(model, model.config, str(source), target)
    rows = [json.loads(line) for line in (target / "results.jsonl").read_text().splitlines()]
    assert said["boards"] == len(rows)
    return {row["picture"]: row for row in rows}


def test_one_odd_picture_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, templates = tmp_path / "set" / "images", tmp_path / "set" / "templates"
    for name in ("a.png", "b/c.png", "dot.png", "long.png", "large.png", f"{'n' * 250}.png", "dark_temp.png"):
        put(images / name)
        put(templates / name)
    put(images / "dot.png", GOLDEN[:1, :1])
    put(images / "long.png", np.zeros((3, 20000), np.uint8))
    put(images / "large.png", np.zeros((9000, 9000), np.uint8))
    (images / "cut.png").write_bytes(b"no picture")
    model = predictor()
    assert cost(model, model.config, str(images)).bytes > 9000 * 9000
    monkeypatch.setenv("VERTICALS_MEMORY_GB", "0.01")
    with pytest.MonkeyPatch.context() as patch:  # only the large one needs more than there is
        patch.setattr("core.data.pictures.memory_limit", lambda: 1e12)
        patch.setattr("verticals.manufacturing.pcb.predictor.memory_limit", lambda: 4e9)
        patch.setattr("verticals.manufacturing.pcb.predictor.BYTES_PER_PIXEL", 100)
        rows = answered(images, tmp_path / "answer")
    told = {name: row.get("reason", row["verdict"]) for name, row in rows.items()}
    for name in ("a.png", "b/c.png", f"{'n' * 250}.png", "dark_temp.png"):
        assert told.pop(name) == "pass"
        assert (tmp_path / "answer" / rows[name]["annotated"]).is_file()
    assert "1 x 1 pixels; allowed are 16" in told.pop("dot.png")
    assert "20000 x 3 pixels; allowed are 16" in told.pop("long.png")
    assert "GB of memory" in told.pop("large.png")
    assert "is no picture" in told.pop("cut.png")
    assert not told


def test_no_file_is_written_over_another(tmp_path: Path) -> None:
    for name in ("same.png", "same.bmp", "a/b.png", "a_b.png", "A_B.png"):
        put(tmp_path / "set" / "images" / name)
        put((tmp_path / "set" / "templates" / name).with_suffix(".png"))
    rows = answered(tmp_path / "set" / "images", tmp_path / "answer")
    files = [row["annotated"] for row in rows.values()]
    assert len({file.lower() for file in files}) == len(rows) == 5
    assert all((tmp_path / "answer" / file).is_file() for file in files)


def test_each_board_has_its_own_golden_one(tmp_path: Path) -> None:
    other = np.random.default_rng(1).integers(0, 256, (64, 80), np.uint8)
    for stem, picture in (("P1", GOLDEN), ("P1.2", other), ("b[1]", GOLDEN)):
        put(tmp_path / "images" / "test" / f"{stem}.png", picture)
        put(tmp_path / "templates" / "test" / f"{stem}.png", picture)
    (tmp_path / "templates" / "test" / "P1.json").write_text("{}")
    rows = answered(tmp_path / "images", tmp_path / "answer")
    assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(
        ("test/P1.png", "test/P1.2.png", "test/b[1].png"), "pass"
    )
    shutil.rmtree(tmp_path / "templates" / "test")
    assert "there is none" in answered(tmp_path / "images", tmp_path / "none")["test/P1.png"]["reason"]


def test_deeppcbs_pairs_are_pairs(tmp_path: Path) -> None:
    for name in ("x_test.png", "x_temp.png", "alone_test.png"):
        put(tmp_path / "boards" / name)
    rows = answered(tmp_path / "boards", tmp_path / "answer")
    assert {name: row["verdict"] for name, row in rows.items()} == {"x_test.png": "pass", "alone_test.png": "unknown"}


def test_a_rule_of_no_class_is_refused() -> None:
    config = debug().override(["rules.classes={'shrt': {'threshold': 0.9}}"])
    with pytest.raises(ConfigError, match="'shrt'; the classes are open, short"):
        task(config, PcbData(config))
