"""What `verticals predict` writes for a picture, or for each of a folder: findings as JSON, the annotated board, a gallery."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.contract import Estimate
from core.data.pictures import SUFFIXES, header_of, picture_bytes, read_picture
from core.durable.files import written
from core.errors import CapacityError, DataError
from core.memory import resident_bytes
from core.training.log import progress
from verticals.manufacturing.drawing import annotated, as_png, gallery
from verticals.manufacturing.pcb.boards import file_stems, picture_of, pictures_below
from verticals.manufacturing.pcb.config import PcbConfig
from verticals.manufacturing.pcb.predictor import Inspection, PcbPredictor, Request

TEST, TEMP = "_test", "_temp"
"""Ends of the names of a board and its golden one, in DeepPCB's layout."""
ANNOTATED, GALLERY = "annotated", "gallery"
"""Folders of an answer."""


def predict(predictor: PcbPredictor, config: PcbConfig, source: str, target: Path) -> dict[str, Any]:
    """Inspects a picture, or every one below a folder, into a new folder: `results.jsonl` with a line a board, `annotated` with
    each board and its findings drawn, `gallery` with the findings of each that has any.

    A picture that cannot be inspected has a line that says why, and the verdict `unknown`: the others are inspected.

    Raises:
        DataError: no picture, or the target exists; nothing is written.
        Unavailable: the disk is full.
    """
    if target.exists():
        raise DataError(f"{target} exists; name a new folder for the answer")
    paths = list(_pictures(Path(source)))
    names = [path.name if len(paths) == 1 else path.relative_to(source).as_posix() for path in paths]
    files = [f"{stem}.png" for stem in file_stems(Path(name).with_suffix("").as_posix() for name in names)]
    totals = {"pass": 0, "fail": 0, "unknown": 0}
    with (
        written(),
        tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".answer-") as made,
        progress() as bar,
    ):
        folder = Path(made) / "answer"
        for part in (ANNOTATED, GALLERY):
            (folder / part).mkdir(parents=True)
        boards = bar.add_task("boards", total=len(paths), note="")
        with (folder / "results.jsonl").open("w", encoding="utf-8") as results:
            for path, name, file in zip(paths, names, files, strict=True):
                record = {"picture": name, **_answer(predictor, config, path, folder, file)}
                totals[record["verdict"]] += 1
                results.write(json.dumps(record) + "\n")
                bar.update(boards, advance=1)
        os.rename(folder, target)
    told = ", ".join(f"{total} {verdict}" for verdict, total in totals.items() if total)
    return {"boards": len(paths), "verdicts": totals, "text": f"{target}: {len(paths)} boards: {told}"}


def cost(predictor: PcbPredictor, config: PcbConfig, source: str) -> Estimate:
    """What `predict` will take, from headers alone; pictures that it cannot inspect take nothing."""
    most, seconds = 0, 0.0
    for path in _pictures(Path(source)):
        try:
            header = header_of(path)
        except DataError:
            continue
        promised = predictor.estimate_of((header.height, header.width))
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
            "box": [round(side, 1) + 0.0 for side in corners],  # never -0.0
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


def _answer(predictor: PcbPredictor, config: PcbConfig, path: Path, folder: Path, file: str) -> dict[str, Any]:
    """What a board's line says; its pictures are written."""
    channels, white = config.data.num_channels, config.data.white
    try:
        picture = read_picture(path, num_channels=channels, white=white)
        golden_path = _golden(config, path)
        golden = read_picture(golden_path, num_channels=channels, white=white) if golden_path else None
        (answer,) = predictor([Request(picture, golden)])
    except (DataError, CapacityError) as error:
        return {"verdict": "unknown", "reason": str(error)}
    shown = annotated(picture, answer.findings, answer.counted, predictor.classes)
    (folder / ANNOTATED / file).write_bytes(as_png(shown))
    record = {**record_of(answer, predictor), ANNOTATED: f"{ANNOTATED}/{file}", GALLERY: None}
    if len(answer.findings.scores):
        sheet = gallery(picture, golden, answer.findings, answer.counted, predictor.classes)
        (folder / GALLERY / file).write_bytes(as_png(sheet))
        record[GALLERY] = f"{GALLERY}/{file}"
    return record


def _pictures(source: Path) -> Iterator[Path]:
    """The picture, or those of a folder, its golden boards left out. Raises DataError where there is none."""
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        raise DataError(f"{source} does not exist; give a picture or a folder of pictures")
    paths = [path for path in pictures_below(source) if not _is_golden(path)]
    if not paths:
        raise DataError(f"{source} holds no picture; looked for {', '.join(SUFFIXES)}")
    yield from paths


def _is_golden(path: Path) -> bool:
    """Whether it is the `NAME_temp` of a `NAME_test`."""
    name = path.stem.removesuffix(TEMP)
    return name != path.stem and picture_of(path.parent, f"{name}{TEST}") is not None


def _golden(config: PcbConfig, path: Path) -> Path | None:
    """Of a picture: the one that is set; its twin in `templates`, beside its folder or beside `images`; or `NAME_temp`."""
    if config.predict.golden:
        return Path(config.predict.golden)
    whole = path.absolute()
    folders = [whole.parent.parent / "templates", whole.parent / "templates"]
    folders += [
        above.parent / "templates" / whole.parent.relative_to(above)
        for above in whole.parents
        if above.name == "images"
    ]
    twins = [picture_of(folder, path.stem) for folder in folders]
    if path.stem.endswith(TEST):
        twins.append(picture_of(path.parent, path.stem.removesuffix(TEST) + TEMP))
    return next((twin for twin in twins if twin is not None), None)
