"""Annotations as tools leave them: COCO JSON, YOLO text, Pascal VOC, DeepPCB; each is a module with `found`, `read` and `write`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from core.errors import DataError
from verticals.manufacturing.pcb.boards import Listed
from verticals.manufacturing.pcb.formats import coco, deeppcb, voc, yolo

FORMATS: dict[str, ModuleType] = {"yolo": yolo, "coco": coco, "voc": voc, "deeppcb": deeppcb}


def read_boards(root: Path) -> Listed:
    """The data set in a folder, whatever its format.

    Raises:
        DataError: there is none, or its first fault.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the one that the data set lies in")
    fitting = [name for name, format in FORMATS.items() if format.found(root)]
    if not fitting:
        raise DataError(
            f"{root} holds no data set: needed is data.yaml with labels (YOLO), a .json with images and annotations (COCO), "
            "a folder Annotations of .xml files (Pascal VOC), or trainval.txt and test.txt with pairs of files (DeepPCB)"
        )
    if len(fitting) > 1:
        raise DataError(f"{root} holds annotations in {' and '.join(fitting)}; leave those of one format")
    listed: Listed = FORMATS[fitting[0]].read(root)
    if not listed.boards:
        raise DataError(f"{root} lists no picture")
    return listed
