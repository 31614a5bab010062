"""DeepPCB: lists of a picture and its text file a line; `x1 y1 x2 y2 type`, the defect-free template beside each picture.

The lists name `20085000.jpg`; the files are `20085000_test` and `20085000_temp`. Their first folder is the board group: one
scan of many boards, cut into pictures.
Source: Tang et al. 2019, Online PCB Defect Detector On A New PCB Defect Dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import DataError
from verticals.manufacturing.boxes import Boxes
from verticals.manufacturing.pcb.boards import Board, Listed, drawn, only_names, size_of
from verticals.manufacturing.pictures import SUFFIXES

CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
"""By type, from 1 on."""
SIDES = {"trainval": "train", "train": "train", "val": "validation", "test": "test"}


def found(root: Path) -> bool:
    lists = [root / f"{word}.txt" for word in ("trainval", "test")]
    return any(
        path.is_file() and len(path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].split()) == 2
        for path in lists
    )


def read(root: Path) -> Listed:
    """Raises DataError at the first fault."""
    sides = {}
    for word, side in SIDES.items():
        path = root / f"{word}.txt"
        if path.is_file() and side not in sides:
            sides[side] = tuple(_board(root, path, number, line) for number, line in _lines(path))
    return Listed("deeppcb", CLASSES, sides)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            yield number, line


def _board(root: Path, path: Path, number: int, line: str) -> Board:
    where, words = f"{path.name}, line {number}", line.split()
    if len(words) != 2:
        raise DataError(f"{where}: {line!r}; needed are a picture and its text file")
    named = Path(words[0])
    pictures = []
    for kind in ("test", "temp"):
        names = [named.with_name(f"{named.stem}_{kind}{suffix}") for suffix in (named.suffix, *SUFFIXES)]
        there = next((name for name in names if (root / name).is_file()), names[0])
        pictures.append(only_names(root, there.as_posix(), where=where))
    labels = only_names(root, words[1], where=where)
    boxes = _boxes(labels, size_of(pictures[0]))
    return Board(named.with_suffix("").as_posix(), pictures[0], boxes, group=named.parts[0], template=pictures[1])


def _boxes(labels: Path, size: tuple[int, int]) -> Boxes:
    def rows() -> Iterator[tuple[str, list[float], int]]:
        for number, line in _lines(labels):
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
    for side, boards in listed.sides.items():
        lines = []
        for board in boards:
            if board.template is None:
                raise DataError(
                    f"{board.name} has no golden template, which DeepPCB's layout needs: write another format"
                )
            stem = board.name.replace("/", "_")
            folder = Path(f"group{board.group.removeprefix('group').replace('/', '_')}")
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
            name = (folder / "boards" / stem).with_suffix(picture.suffix)
            lines.append(f"{name.as_posix()} {labels.relative_to(root).as_posix()}\n")
        (root / f"{keys[side]}.txt").write_text("".join(lines), encoding="utf-8")
