"""Annotations as tools leave them: COCO JSON, YOLO text, Pascal VOC, DeepPCB; each is a module with `found`, `read` and `write`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from core.errors import DataError
from verticals.manufacturing.pcb.boards import Listed
from verticals.manufacturing.pcb.formats import coco, deeppcb, voc, yolo

Value = TypeVar("Value", bound=Hashable)
FORMATS: dict[str, ModuleType] = {"yolo": yolo, "coco": coco, "voc": voc, "deeppcb": deeppcb}


def read_boards(root: Path) -> Listed:
    """The data set in a folder, whatever its format.

    Raises:
        DataError: there is none, or its first fault.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the one that the data set lies in")
    root = root.resolve()
    fitting = [name for name, format in FORMATS.items() if format.found(root)]
    if not fitting:
        raise DataError(
            f"{root} holds no data set: needed is data.yaml with labels (YOLO), a .json with images and annotations (COCO), "
            "a folder Annotations of .xml files (Pascal VOC), or trainval.txt and test.txt with a picture and its .txt a line (DeepPCB)"
        )
    if len(fitting) > 1:
        raise DataError(f"{root} holds annotations in {' and '.join(fitting)}; leave those of one format")
    listed: Listed = FORMATS[fitting[0]].read(root)
    if not listed.boards:
        raise DataError(f"{root} lists no picture; add some")
    if twice := _repeated(listed.classes):
        raise DataError(f"{root} lists the class {twice[0]!r} twice; rename one, or draw both as one")
    for side, boards in listed.sides.items():
        if pictures := _repeated(board.picture for board in boards):
            raise DataError(f"{pictures[0].relative_to(root)} is listed twice on the side {side!r}; remove one of them")
    return _with_own_names(listed)


def _repeated(values: Iterable[Value]) -> list[Value]:
    return [value for value, count in Counter(values).items() if count > 1]


def _with_own_names(listed: Listed) -> Listed:
    """Pictures that differ only in their suffix are called by it too."""
    shared = set(_repeated(board.name for board in listed.boards))
    sides = {
        side: tuple(
            replace(board, name=f"{board.name}{board.picture.suffix}") if board.name in shared else board
            for board in boards
        )
        for side, boards in listed.sides.items()
    }
    return replace(listed, sides=sides)
