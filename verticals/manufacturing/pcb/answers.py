"""What `verticals predict` writes for a picture, or for each of a folder: findings as JSON, the annotated board, a gallery."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.contract import Estimate
from core.durable.files import written
from core.errors import DataError
from core.memory import resident_bytes
from core.training.log import progress
from verticals.manufacturing.drawing import annotated, as_png, gallery
from verticals.manufacturing.pcb.config import PcbConfig
from verticals.manufacturing.pcb.predictor import Inspection, PcbPredictor, Request
from verticals.manufacturing.pictures import SUFFIXES, header_of, picture_bytes, read_picture


def predict(predictor: PcbPredictor, config: PcbConfig, source: str, target: Path) -> dict[str, Any]:
    """Inspects a picture, or every one below a folder, into a new folder: `results.jsonl` with a line a board, and pictures.

    A picture that cannot be inspected has a line that says why, and the verdict `unknown`: the others are inspected.

    Raises:
        DataError: no picture, or the target exists; nothing is written.
        Unavailable: the disk is full.
    """
    if target.exists():
        raise DataError(f"{target} exists; name a new folder for the answer")
    paths = list(_pictures(Path(source)))
    totals = {"pass": 0, "fail": 0, "unknown": 0}
    with (
        written(),
        tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".answer-") as made,
        progress() as bar,
    ):
        folder = Path(made) / "answer"
        folder.mkdir()
        boards = bar.add_task("boards", total=len(paths), note="")
        with (folder / "results.jsonl").open("w", encoding="utf-8") as results:
            for path in paths:
                name = path.name if len(paths) == 1 else path.relative_to(source).as_posix()
                record = _answer(predictor, config, path, name, folder)
                totals[record["verdict"]] += 1
                results.write(json.dumps(record) + "\n")
                bar.update(boards, advance=1)
        os.rename(folder, target)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in totals.items() if count)
    return {"boards": len(paths), "verdicts": totals, "text": f"{target}: {len(paths)} boards: {counts}"}


def cost(predictor: PcbPredictor, config: PcbConfig, source: str) -> Estimate:
    """What `predict` will take, from headers alone."""
    most, seconds = 0, 0.0
    for path in _pictures(Path(source)):
        header = header_of(path)
        shape = header.height, header.width
        promised = predictor.estimate_of(shape)
        most = max(most, picture_bytes(header, config.data.num_channels) + promised.bytes)
        seconds += promised.seconds
    return Estimate(max(most, resident_bytes()), seconds)


def record_of(answer: Inspection, predictor: PcbPredictor, *, mm_per_pixel: float | None = None) -> dict[str, Any]:
    """JSON-able: verdict, and findings in pixels; in mm too where the scale is known, the product's or the configuration's."""
    scale = mm_per_pixel or predictor.config.predict.mm_per_pixel
    findings = []
    for corners, kind, score, counted in zip(
        answer.findings.corners.tolist(),
        answer.findings.classes.tolist(),
        answer.findings.scores.tolist(),
        answer.counted,
        strict=True,
    ):
        row = {
            "class": predictor.classes[kind],
            "score": round(score, 4),
            "counts": counted,
            "box": [round(side, 1) for side in corners],
        }
        findings.append(row | ({"box_mm": [round(side * scale, 4) for side in corners]} if scale else {}))
    return {
        "verdict": answer.verdict,
        "version": predictor.version,
        "findings": findings,
        "shift": None if answer.shift is None else list(answer.shift),
        "tiles": answer.num_tiles,
        "tiles_skipped": answer.num_skipped,
        "seconds": round(answer.seconds, 3),
    }


def _answer(predictor: PcbPredictor, config: PcbConfig, path: Path, name: str, folder: Path) -> dict[str, Any]:
    """A board's line; its pictures are written."""
    channels, white = config.data.num_channels, config.data.white
    try:
        picture = read_picture(path, num_channels=channels, white=white)
        golden_path = _golden(config, path)
        golden = read_picture(golden_path, num_channels=channels, white=white) if golden_path else None
        (answer,) = predictor([Request(picture, golden)])
    except DataError as error:
        return {"picture": name, "verdict": "unknown", "reason": str(error)}
    record = {"picture": name, **record_of(answer, predictor)}
    stem = Path(name).with_suffix("").as_posix().replace("/", "_")
    shown = annotated(picture, answer.findings, answer.counted, predictor.classes)
    (folder / f"{stem}.png").write_bytes(as_png(shown))
    if len(answer.findings.scores):
        sheet = gallery(picture, golden, answer.findings, answer.counted, predictor.classes)
        (folder / f"{stem}_gallery.png").write_bytes(as_png(sheet))
    return record


def _pictures(source: Path) -> Iterator[Path]:
    """The picture, or those of a folder, its golden boards left out. Raises DataError where there is none."""
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        raise DataError(f"{source} does not exist; give a picture or a folder of pictures")
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = [
        path
        for path in paths
        if "templates" not in path.relative_to(source).parts[:-1] and not path.stem.endswith("_temp")
    ]
    if not paths:
        raise DataError(f"{source} holds no picture; looked for {', '.join(SUFFIXES)}")
    yield from paths


def _golden(config: PcbConfig, path: Path) -> Path | None:
    """Of a picture: the one that is set, or its twin in `templates` beside its folder, or `NAME_temp`."""
    if config.predict.golden:
        return Path(config.predict.golden)
    stem = path.stem.removesuffix("_test")
    beside = [path.parent.parent / "templates", path.parent / "templates"]
    names = [(folder, f"{path.stem}.*") for folder in beside] + [(path.parent, f"{stem}_temp.*")]
    for folder, pattern in names:
        for found in sorted(folder.glob(pattern)) if folder.is_dir() else []:
            if found.suffix.lower() in SUFFIXES:
                return found
    return None
