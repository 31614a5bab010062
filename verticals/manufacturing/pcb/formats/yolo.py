"""YOLO: `data.yaml` with names and lists, a text file for each picture: class, middle and size as shares of the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from core.errors import DataError
from verticals.manufacturing.boxes import NONE, Boxes
from verticals.manufacturing.pcb.boards import Board, Listed, drawn, only_names, size_of, template_of
from verticals.manufacturing.pictures import SUFFIXES

SIDES = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
FILE = "data.yaml"


def found(root: Path) -> bool:
    return (root / FILE).is_file()


def read(root: Path) -> Listed:
    """Raises DataError at the first fault. A picture without a text file shows no defect, as in training by its tools."""
    try:
        record = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{FILE} cannot be read: {error}") from None
    if not isinstance(record, Mapping) or "names" not in record:
        raise DataError(f"{FILE} has no `names`; needed are the names of the classes, as a list or by number")
    names = record["names"]
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{FILE}: `names` has the numbers {sorted(names)}; needed are 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    classes = tuple(map(str, names))
    if "nc" in record and record["nc"] != len(classes):
        raise DataError(f"{FILE}: nc is {record['nc']}, `names` has {len(classes)}; correct one of them")
    base = root / str(record.get("path") or ".")
    if not base.resolve().is_relative_to(root.resolve()) or not base.is_dir():
        base = root  # where the data set lay when it was made
    sides = {}
    for key, side in SIDES.items():
        if record.get(key):
            given = record[key] if isinstance(record[key], list) else [record[key]]
            pictures = [picture for part in given for picture in _pictures(base, str(part))]
            sides[side] = tuple(_board(picture, base, classes) for picture in pictures)
    if not sides:
        raise DataError(
            f"{FILE} lists no pictures; needed is `train`, and best `val` and `test`: a folder or a list file each"
        )
    return Listed("yolo", classes, sides)


def _pictures(base: Path, part: str) -> Iterator[Path]:
    place = base / part
    if not place.exists() and part.startswith("../"):
        place = base / part.removeprefix("../")  # what one labelling service writes
    if not place.resolve().is_relative_to(base.resolve()) or not place.exists():
        raise DataError(f"{FILE} names {part!r}, which is not in {base}; correct the path")
    if place.is_dir():
        yield from sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
        return
    for line in place.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield only_names(base, line.strip().removeprefix("./"), where=place.name)


def _board(picture: Path, base: Path, classes: tuple[str, ...]) -> Board:
    name = picture.relative_to(base).with_suffix("")
    parts = list(name.parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        parts[place] = "labels"
    labels = base.joinpath(*parts).with_name(f"{parts[-1]}.txt")
    boxes = _boxes(labels, size_of(picture), len(classes)) if labels.is_file() else NONE
    return Board(name.as_posix(), picture, boxes, group=picture.stem, template=template_of(picture, base))


def _boxes(labels: Path, size: tuple[int, int], num_classes: int) -> Boxes:
    width, height = size

    def rows() -> Iterator[tuple[str, tuple[float, ...], int]]:
        for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            if not words:
                continue
            try:
                kind, values = int(words[0]), [float(word) for word in words[1:]]
            except ValueError:
                raise DataError(
                    f"{labels.name}, line {number}: {line!r}; needed are a class and four numbers"
                ) from None
            if len(values) > 4 and len(values) % 2 == 0:  # an outline: the box around it
                xs, ys = values[::2], values[1::2]
                box = (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)
            elif len(values) == 4:
                x, y, w, h = values
                box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            else:
                raise DataError(
                    f"{labels.name}, line {number}: {len(words)} values; needed are a class and four numbers"
                )
            yield f"line {number}", box, kind

    return drawn(rows(), size=size, where=labels.name, num_classes=num_classes)


def write(root: Path, listed: Listed, copy: Any) -> None:
    """Into an empty folder.

    Args:
        copy: (path of a picture, path to put it) -> its own path, with its suffix.
    """
    record: dict[str, Any] = {"path": ".", "names": dict(enumerate(listed.classes))}
    keys = {"train": "train", "validation": "val", "test": "test", "all": "train"}
    for side, boards in listed.sides.items():
        record[keys[side]] = f"images/{keys[side]}"
        for board in boards:
            stem = board.name.replace("/", "_")
            picture = copy(board.picture, root / "images" / keys[side] / stem)
            if board.template is not None:
                copy(board.template, root / "templates" / keys[side] / stem)
            width, height = size_of(picture)
            lines = []
            for (x1, y1, x2, y2), kind in zip(board.boxes.corners.tolist(), board.boxes.classes, strict=True):
                middle = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
                lines.append(
                    f"{kind} {middle[0]:.8f} {middle[1]:.8f} {(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}\n"
                )
            labels = root / "labels" / keys[side] / f"{stem}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("".join(lines), encoding="utf-8")
    (root / FILE).write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
