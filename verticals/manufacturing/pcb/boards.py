"""Boards with what somebody drew on them, as every format of annotations is read to and written from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError
from verticals.manufacturing.boxes import Boxes, boxes_of
from verticals.manufacturing.pictures import header_of

SLACK = 2.0
"""Pixels by which a drawn box may leave its picture: that much of it is cut off in silence, more is an error."""


@dataclass(frozen=True)
class Board:
    """A picture, and its defects."""

    name: str
    """Unique in its data set."""
    picture: Path
    boxes: Boxes
    """Their classes are places in the data set's list."""
    group: str
    """The board, or the lot, that the picture is of: what no split tears apart."""
    template: Path | None = None
    """The golden board, in register with the picture."""


@dataclass(frozen=True)
class Listed:
    """What a format's files say."""

    format: str
    classes: tuple[str, ...]
    sides: Mapping[str, tuple[Board, ...]]
    """`train`, `validation`, `test` as the data set lists them; `all` where it lists nothing."""

    @property
    def boards(self) -> tuple[Board, ...]:
        return tuple(board for boards in self.sides.values() for board in boards)


def drawn(
    rows: Iterable[tuple[str, Sequence[float], int]], *, size: tuple[int, int], where: str, num_classes: int
) -> Boxes:
    """Checked boxes of one picture.

    Args:
        rows: place in the file (for errors), x1 y1 x2 y2 in pixels, and the class.
        size: width and height of the picture.
        where: the file, for errors.

    Raises:
        DataError: a box that is not finite, has no area, lies outside the picture, or is of no known class.
    """
    width, height = size
    corners, classes = [], []
    for place, box, kind in rows:
        x1, y1, x2, y2 = box
        text = f"{where}, {place}: box {' '.join(f'{side:g}' for side in box)}"
        if not all(map(math.isfinite, box)):
            raise DataError(f"{text} is not finite; correct or remove it")
        if x2 <= x1 or y2 <= y1:
            raise DataError(f"{text} has no area; allowed are x1 < x2 and y1 < y2: correct or remove it")
        if not 0 <= kind < num_classes:
            raise DataError(
                f"{text} is of class {kind}; there are classes 0 to {num_classes - 1}: correct it, or list the class"
            )
        if x1 < -SLACK or y1 < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
            raise DataError(f"{text} leaves the picture of {width} x {height} pixels; correct or remove it")
        cut = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            raise DataError(f"{text} lies outside the picture of {width} x {height} pixels; correct or remove it")
        corners.append(cut)
        classes.append(kind)
    return boxes_of(corners, classes)


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height, as the picture is shown. Raises DataError."""
    header = header_of(picture)
    return header.width, header.height


def only_names(folder: Path, name: str, *, where: str) -> Path:
    """A path below the folder. Raises DataError for one that leaves it, or is not there."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where} names {name!r}, which lies outside {folder.name}; move it into the data set")
    if not path.is_file():
        raise DataError(f"{where} names {name!r}, which is not there; add the file, or remove the line")
    return path


def template_of(picture: Path, root: Path) -> Path | None:
    """The golden board of a picture: of the same stem in a folder `templates` that stands for the folder `images`."""
    parts = picture.relative_to(root).parts
    for place, part in enumerate(parts[:-1]):
        if part.lower() in ("images", "jpegimages"):
            folder = root.joinpath(*parts[:place], "templates", *parts[place + 1 : -1])
            return next((path for path in sorted(folder.glob(f"{picture.stem}.*")) if path.is_file()), None)
    return None
