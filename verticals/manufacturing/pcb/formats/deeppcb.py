"""DeepPCB: lists of a picture and its text file a line; `x1 y1 x2 y2 type`, the defect-free template beside each picture.

The lists name `20085000.jpg`; the files are `20085000_test` and `20085000_temp`. Their first folder is the board group: one
scan of many boards, cut into pictures.
Source: Tang et al. 2019, Online PCB Defect Detector On A New PCB Defect Dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.pictures import SUFFIXES
from core.data.text import entries_of, lines_of, rough_text
from core.errors import DataError
from verticals.manufacturing.boxes import Boxes
from verticals.manufacturing.pcb.boards import Board, Listed, drawn, file_stems, only_names, size_of, with_stems

CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
"""By type, from 1 on."""
SIDES = {"trainval": "train", "train": "train", "val": "validation", "test": "test"}


def found(root: Path) -> bool:
    return any(_names_pairs(path) for word in SIDES if (path := root / f"{word}.txt").is_file())


def _names_pairs(path: Path) -> bool:
    """Whether its first line names a picture and a text file."""
    words = next((line.split() for line in rough_text(path).splitlines() if line.strip()), [])
    return len(words) == 2 and words[1].lower().endswith(".txt")


def read(root: Path) -> Listed:
    """Raises DataError at the first fault."""
    sides = {}
    for word, side in SIDES.items():
        path = root / f"{word}.txt"
        if path.is_file() and side not in sides:
            sides[side] = tuple(_board(root, path, number, line) for number, line in entries_of(path))
    return Listed("deeppcb", CLASSES, sides)


def _board(root: Path, path: Path, number: int, line: str) -> Board:
    where, words = f"{path.name}, line {number}", line.replace("\\", "/").split()
    if len(words) != 2:
        raise DataError(f"{where}: {line!r}; needed are a picture and its text file")
    named = Path(words[0])
    pictures = []
    for kind in ("test", "temp"):
        names = [named.parent / f"{named.stem}_{kind}{suffix}" for suffix in (named.suffix, *SUFFIXES)]
        there = next((name for name in names if os.path.isfile(root / name)), names[0])
        pictures.append(only_names(root, there.as_posix(), where=where))
    labels = only_names(root, words[1], where=where)
    boxes = _boxes(labels, size_of(pictures[0]))
    place = pictures[0].relative_to(root)
    return Board(place.with_name(named.stem).as_posix(), pictures[0], boxes, group=place.parts[0], template=pictures[1])


def _boxes(labels: Path, size: tuple[int, int]) -> Boxes:
    def rows() -> Iterator[tuple[str, list[float], int]]:
        for number, line in lines_of(labels):
            words = line.replace(",", " ").split()
            try:
                box, kind = [float(word) for word in words[:4]], int(words[4])
            except (ValueError, IndexError):
                raise DataError(f"{labels.name}, line {number}: {line!r}; needed are x1 y1 x2 y2 type") from None
            yield f"line {number}", box, kind - 1

    return drawn(rows(), size=size, where=labels.name, num_classes=len(CLASSES))


def write(root: Path, listed: Listed, copy: Any) -> None:
    """Into an empty folder.

    Args:
        copy: (path of a picture, path to put it) -> its own path, with its suffix.

    Raises:
        DataError: other classes than the format has, or a board without a template.
    """
    if not set(listed.classes) <= set(CLASSES):
        raise DataError(
            f"DeepPCB has the classes {', '.join(CLASSES)}; these are {', '.join(listed.classes)}: write another format"
        )
    keys = {"train": "trainval", "validation": "val", "test": "test", "all": "trainval"}
    groups = sorted({board.group for board in listed.boards})
    folders = dict(zip(groups, file_stems(f"group{group.removeprefix('group')}" for group in groups), strict=True))
    for side, boards in with_stems(listed).items():
        lines = []
        for board, stem in boards:
            if board.template is None:
                raise DataError(
                    f"{board.name} has no golden template, which DeepPCB's layout needs: write another format"
                )
            folder = Path(folders[board.group])
            picture = copy(board.picture, root / folder / "boards" / f"{stem}_test")
            copy(board.template, root / folder / "boards" / f"{stem}_temp")
            labels = root / folder / "boards_not" / f"{stem}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            rows = zip(board.boxes.corners.tolist(), board.boxes.classes, strict=True)
            text = "".join(
                f"{' '.join(f'{value:g}' for value in box)} {CLASSES.index(listed.classes[kind]) + 1}\n"
                for box, kind in rows
            )
            labels.write_text(text, encoding="utf-8")
            name = folder / "boards" / f"{stem}{picture.suffix}"
            lines.append(f"{name.as_posix()} {labels.relative_to(root).as_posix()}\n")
        (root / f"{keys[side]}.txt").write_text("".join(lines), encoding="utf-8")
