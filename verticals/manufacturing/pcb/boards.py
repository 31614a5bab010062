"""Boards with what somebody drew on them, as every format of annotations is read to and written from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.pictures import SUFFIXES, header_of
from core.errors import DataError
from verticals.manufacturing.boxes import Boxes, boxes_of

SLACK = 2.0
"""Pixels by which a drawn box may leave its picture: that much of it is cut off in silence, more is an error."""
MOST_STEM_BYTES = 200
"""Of a file that is written; file systems end at 255 with all."""


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
    """Checked boxes of one picture. Those of the same corners and the same class count once.

    Args:
        rows: place in the file (for errors), x1 y1 x2 y2 in pixels, and the class.
        size: width and height of the picture.
        where: the file, for errors.

    Raises:
        DataError: a box that is not finite, has no area, lies outside the picture, or is of no known class.
    """
    width, height = size
    found: dict[tuple[tuple[float, ...], int], None] = {}
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
        found[cut, kind] = None
    return boxes_of([corners for corners, _ in found], [kind for _, kind in found])


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height, as the picture is shown. Raises DataError."""
    header = header_of(picture)
    return header.width, header.height


def only_names(
    root: Path,
    name: str,
    *,
    where: str,
    folders: Sequence[Path] = (),
    is_there: Callable[[Path], bool] = Path.is_file,
) -> Path:
    """What a file of the data set names: backslashes count as slashes, absolute paths may lead into the data set.

    Args:
        root: the data set's folder, resolved.
        where: the file, for errors.
        folders: those that the name may be relative to, the first one first; the root where left out.
        is_there: of a path, whether it is what is named; a file where left out.

    Raises:
        DataError: it leaves the root, or is not there.
    """
    places = [Path(os.path.normpath(folder / name.replace("\\", "/"))) for folder in folders or [root]]
    try:
        inside = [place for place in places if place.resolve().is_relative_to(root)]
        found = next((place for place in inside if is_there(place)), None)
    except (OSError, ValueError) as error:
        raise DataError(f"{where} names {name!r}, which is no path ({error}); correct it") from None
    if not inside:
        raise DataError(f"{where} names {name!r}, which lies outside {root.name}; move it into the data set")
    if found is None:
        raise DataError(f"{where} names {name!r}, which is not there; add the file, or remove the line")
    return found if found.is_relative_to(root) else found.resolve()


def in_any_case(folder: Path, name: str) -> Path:
    """What a folder holds under a name, in capitals or not; its path as given where there is nothing."""
    path = folder / name
    if path.exists():
        return path
    return next((other for other in sorted(folder.iterdir()) if other.name.lower() == name.lower()), path)


def pictures_below(folder: Path) -> list[Path]:
    """All of a folder and its folders, in order; what lies below a folder `templates` is golden boards, and left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and "templates" not in (part.lower() for part in path.relative_to(folder).parts[:-1])
    )


def picture_of(folder: Path, stem: str) -> Path | None:
    """The picture in a folder with exactly this stem, its suffix in small or capital letters; None where there is none."""
    paths = (folder / f"{stem}{suffix}" for small in SUFFIXES for suffix in (small, small.upper()))
    return next((path for path in paths if path.is_file()), None)


def template_of(picture: Path, root: Path) -> Path | None:
    """The golden board of a picture: of the same stem in a folder `templates` that stands for the folder `images`."""
    parts = picture.relative_to(root).parts
    for place, part in enumerate(parts[:-1]):
        if part.lower() in ("images", "jpegimages"):
            folder = in_any_case(root.joinpath(*parts[:place]), "templates").joinpath(*parts[place + 1 : -1])
            same = folder / picture.name
            return same if same.is_file() else picture_of(folder, picture.stem)
    return None


def group_of(picture: Path, root: Path, given: object = None) -> str:
    """The board that a picture is of: as given, or its stem, cut before `.rf.` (what one labelling service appends to copies).

    A stem without a letter is a mere number, which may begin anew in every folder: then the board is the picture's path.
    """
    if given not in (None, ""):
        return str(given)
    stem = picture.stem.partition(".rf.")[0] or picture.stem
    is_named = any(map(str.isalpha, stem))
    return stem if is_named else picture.relative_to(root).with_name(stem).as_posix()


def file_stems(names: Iterable[str]) -> list[str]:
    """A stem of a file for each name, unique even where capitals do not count: without slashes and white space, and cut."""
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = "".join(sign if sign.isprintable() and sign not in " /\\" else "_" for sign in name)
        plain = (plain if plain.strip(".") else f"_{plain}").encode()[:MOST_STEM_BYTES].decode("utf-8", "ignore")
        stem, number = plain, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{plain}_{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def with_stems(listed: Listed) -> dict[str, list[tuple[Board, str]]]:
    """The boards of each side, each with the stem of the files that it is written to."""
    stems = iter(file_stems(board.name for board in listed.boards))
    return {side: [(board, next(stems)) for board in boards] for side, boards in listed.sides.items()}
