"""YOLO: `data.yaml` with names and lists, a text file for each picture: class, middle and size as shares of the picture.

Ours has a key `boards` too, from a picture's name without suffix to the board that it is of, where the name does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from core.data.text import entries_of, lines_of, text_of
from core.errors import DataError
from verticals.manufacturing.boxes import NONE, Boxes
from verticals.manufacturing.pcb.boards import (
    Board,
    Listed,
    drawn,
    group_of,
    in_any_case,
    only_names,
    pictures_below,
    size_of,
    template_of,
    with_stems,
)

SIDES = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
FILE = "data.yaml"


def found(root: Path) -> bool:
    return (root / FILE).is_file()


def read(root: Path) -> Listed:
    """A picture without a text file shows no defect, as in training by its tools; a side without any is refused.

    Raises:
        DataError: the first fault.
    """
    try:
        record = yaml.safe_load(text_of(root / FILE))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{FILE} cannot be read: {error}") from None
    if not isinstance(record, Mapping) or "names" not in record:
        raise DataError(f"{FILE} has no `names`; needed are the names of the classes, as a list or by number")
    classes = _classes(record)
    groups = record.get("boards") or {}
    if not isinstance(groups, Mapping):
        raise DataError(f"{FILE}: `boards` is {groups!r}; needed is the board of each picture's name without suffix")
    try:
        base = only_names(root, str(record.get("path") or "."), where=FILE, is_there=Path.is_dir)
    except DataError:
        base = root  # where the data set lay when it was made
    sides: dict[str, tuple[Board, ...]] = {}
    for key, side in SIDES.items():
        if record.get(key):
            given = record[key] if isinstance(record[key], list) else [record[key]]
            pictures = [picture for part in given for picture in _pictures(root, base, str(part))]
            sides[side] = sides.get(side, ()) + tuple(_boards(pictures, root, classes, groups, key))
    if not sides:
        raise DataError(
            f"{FILE} lists no pictures; needed is `train`, and best `val` and `test`: a folder or a list file each"
        )
    return Listed("yolo", classes, sides)


def _classes(record: Mapping[str, Any]) -> tuple[str, ...]:
    names = record["names"]
    if isinstance(names, Mapping):
        if set(names) != set(range(len(names))):
            raise DataError(f"{FILE}: `names` has the numbers {list(names)}; needed are 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{FILE}: `names` is {names!r}; needed are the names of the classes, as a list or by number")
    if "nc" in record and record["nc"] != len(names):
        raise DataError(f"{FILE}: nc is {record['nc']}, `names` has {len(names)}; correct one of them")
    return tuple(map(str, names))


def _pictures(root: Path, base: Path, part: str) -> Iterator[Path]:
    """Of a folder, or of a list."""
    folders = [base, base / "images"]  # from there, ../train/images is what one labelling service means
    place = only_names(root, part, where=FILE, folders=folders, is_there=Path.exists)
    if place.is_dir():
        yield from pictures_below(place)
        return
    for number, line in entries_of(place):
        yield only_names(root, line, where=f"{place.name}, line {number}", folders=[base, place.parent])


def _boards(
    pictures: Sequence[Path], root: Path, classes: tuple[str, ...], groups: Mapping[str, Any], key: str
) -> Iterator[Board]:
    labels = [_labels(picture, root) for picture in pictures]
    if labels and not any(path.is_file() for path in labels):
        raise DataError(
            f"{FILE}: no picture of `{key}` has a text file; looked for {labels[0].relative_to(root)} and "
            f"{len(labels) - 1} others: put them there, an empty one for a picture without defects"
        )
    for picture, path in zip(pictures, labels, strict=True):
        name = picture.relative_to(root).with_suffix("").as_posix()
        boxes = _boxes(path, size_of(picture), len(classes)) if path.is_file() else NONE
        group = group_of(picture, root, groups.get(picture.stem))
        yield Board(name, picture, boxes, group, template_of(picture, root))


def _labels(picture: Path, root: Path) -> Path:
    """Where its text file is, or should be: in a folder `labels` that stands for the last folder `images`, or beside it."""
    parts = picture.relative_to(root).parts[:-1]
    folder = picture.parent
    for place, part in enumerate(parts):
        if part.lower() == "images":
            folder = in_any_case(root.joinpath(*parts[:place]), "labels").joinpath(*parts[place + 1 :])
    capital = folder / f"{picture.stem}.TXT"
    return capital if capital.is_file() else folder / f"{picture.stem}.txt"


def _boxes(labels: Path, size: tuple[int, int], num_classes: int) -> Boxes:
    width, height = size

    def rows() -> Iterator[tuple[str, tuple[float, ...], int]]:
        for number, line in lines_of(labels):
            words = line.split()
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
    groups: dict[str, str] = {}
    for side, boards in with_stems(listed).items():
        record[keys[side]] = f"images/{keys[side]}"
        for board, stem in boards:
            picture = copy(board.picture, root / "images" / keys[side] / stem)
            if board.group != group_of(picture, root):
                groups[stem] = board.group
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
    if groups:
        record["boards"] = groups
    (root / FILE).write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
