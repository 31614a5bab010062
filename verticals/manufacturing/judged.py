"""What operators judged, as training data: a COCO data set of their boards, with golden twins.

A board is taken where somebody judged each of its findings that count. What they called a defect is drawn, under the class that
they named; what they did not is background, as is what was found below its threshold. Defects that nobody found are not known here.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.data.pictures import suffix_of
from core.durable.files import written
from core.errors import DataError
from verticals.manufacturing.boxes import boxes_of
from verticals.manufacturing.drawing import as_png
from verticals.manufacturing.golden import shifted
from verticals.manufacturing.pcb.boards import Board, Listed
from verticals.manufacturing.pcb.formats import coco
from verticals.manufacturing.products import Products
from verticals.manufacturing.results import Kept, Results


def write_judged(results: Results, products: Products, pictures: Path, classes: Sequence[str], target: Path) -> int:
    """Packs the data set into a zip archive.

    Args:
        pictures: the folder of the results' pictures.
        classes: the model's; others that findings were called by follow them.
        target: the archive.

    Returns:
        How many boards are in it.

    Raises:
        DataError: nothing was judged, or no board whole.
        Unavailable: the disk is full.
    """
    kept = [results.get(id) for id in results.judged()]
    names = list(classes)
    with written(), tempfile.TemporaryDirectory(dir=target.parent, prefix=".judged-") as spare:
        templates, folder = Path(spare) / "templates", Path(spare) / "judged"
        templates.mkdir()
        boards = [board for one in kept if (board := _board(one, results, products, pictures, names, templates))]
        if not boards:
            raise DataError(
                f"{len(kept)} boards have judged findings, and none of them all: judge every finding that counts on a board"
                if kept
                else "no finding was judged yet: judge some at /ui"
            )
        coco.write(folder, Listed("coco", tuple(names), {"all": tuple(boards)}), _copy)
        with zipfile.ZipFile(target, "w") as archive:  # pictures are small already
            for path in sorted(folder.rglob("*.*")):
                archive.write(path, path.relative_to(spare))
    return len(boards)


def _board(
    kept: Kept, results: Results, products: Products, pictures: Path, names: list[str], spare: Path
) -> Board | None:
    """None where a finding that counts was not judged, or the picture is gone."""
    record, words = kept.record, results.judgements(kept.id)
    content, picture = record["ResultContent"], pictures / kept.id / "board"
    if not picture.is_file():
        return None
    corners, kinds = [], []
    for number, finding in enumerate(content["findings"]):
        if number not in words:
            if finding["counts"]:
                return None
            continue
        verdict, kind = words[number]
        if verdict == "defect":
            name = kind or finding["class"]
            if name not in names:
                names.append(name)
            corners.append(finding["box"])
            kinds.append(names.index(name))
    template = _template(record, products, spare / f"{kept.id}.png")
    with picture.open("rb") as file:
        group = hashlib.file_digest(file, "sha256").hexdigest()[:16]  # a picture that came twice is one board
    return Board(kept.id, picture, boxes_of(corners, kinds), group=group, template=template)


def _template(record: dict[str, Any], products: Products, path: Path) -> Path | None:
    """The golden board of that time, laid upon the board."""
    shift, revision = record["ResultContent"].get("shift"), record["RecipeId"].rpartition("/")[2]
    if shift is None or not revision:
        return None
    golden = products.golden(replace(products.get(record["PartId"]), revision=revision), 3)
    path.write_bytes(as_png(shifted(golden, *shift)))
    return path


def _copy(source: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    target = place.with_name(place.name + suffix_of(source))
    shutil.copyfile(source, target)
    return target
