"""Pascal VOC: an XML file for each picture; lists in `ImageSets/Main` where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from core.errors import DataError
from verticals.manufacturing.pcb.boards import Board, Listed, drawn, size_of, template_of
from verticals.manufacturing.pictures import SUFFIXES

FOLDERS = ("Annotations", "annotations")
PICTURES = ("JPEGImages", "images")
SIDES = {"train": "train", "val": "validation", "test": "test"}
MOST_BYTES = 2**24
"""Of an XML file."""


def found(root: Path) -> bool:
    return any(next((root / folder).glob("*.xml"), None) is not None for folder in FOLDERS)


def read(root: Path) -> Listed:
    """Raises DataError at the first fault. Corners in the files count pixels from 1, and the last one is inside."""
    folder = next(root / name for name in FOLDERS if next((root / name).glob("*.xml"), None) is not None)
    rows = {path.stem: _objects(path) for path in sorted(folder.glob("*.xml"))}
    classes = tuple(sorted({name for objects in rows.values() for _, _, name in objects}))
    if (root / "classes.txt").is_file():
        classes = tuple(
            line.strip() for line in (root / "classes.txt").read_text(encoding="utf-8").splitlines() if line.strip()
        )
    if not classes:
        raise DataError(
            f"{folder.name} draws nothing at all; needed are objects, or a file classes.txt with a name a line"
        )
    pictures = _pictures(root)
    given = {side: _listed(root, word) for word, side in SIDES.items()}
    lists = {side: names for side, names in given.items() if names is not None} or {"all": sorted(rows)}
    sides = {}
    for side, names in lists.items():
        for name in names:
            if name not in rows or name not in pictures:
                what = "annotation" if name not in rows else "picture"
                raise DataError(f"{name!r} of the side {side!r} has no {what}; add it, or remove it from the list")
        sides[side] = tuple(_board(name, pictures[name], root, rows[name], classes) for name in names)
    return Listed("voc", classes, sides)


def _pictures(root: Path) -> dict[str, Path]:
    folder = next((root / name for name in PICTURES if (root / name).is_dir()), root)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise DataError(
                    f"two pictures are called {path.stem}: {found[path.stem].name} and {path.name}; rename one"
                )
            found[path.stem] = path
    return found


def _listed(root: Path, word: str) -> list[str] | None:
    path = root / "ImageSets" / "Main" / f"{word}.txt"
    if not path.is_file():
        return None
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _objects(path: Path) -> list[tuple[str, tuple[float, ...], str]]:
    text = path.read_bytes()
    if not text.strip():
        raise DataError(f"{path.name} is empty; a picture without defects has an annotation without objects")
    if len(text) > MOST_BYTES or b"<!ENTITY" in text:
        raise DataError(f"{path.name} is no annotation: it is too large, or defines entities")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path.name} is not XML: {error}") from None
    found: list[tuple[str, tuple[float, ...], str]] = []
    for number, item in enumerate(tree.iter("object"), 1):
        name, box = (item.findtext("name") or "").strip(), item.find("bndbox")
        where = f"object {number}"
        if not name or box is None:
            raise DataError(f"{path.name}, {where}: it has no {'name' if not name else 'bndbox'}")
        sides = [box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = (float(side or "") for side in sides)
        except ValueError:
            raise DataError(f"{path.name}, {where}: corners are {sides}; needed are four numbers") from None
        found.append((where, (x1 - 1, y1 - 1, x2, y2), name))
    return found


def _board(name: str, picture: Path, root: Path, objects: list[Any], classes: tuple[str, ...]) -> Board:
    where = f"{name}.xml"

    def rows() -> Iterator[tuple[str, tuple[float, ...], int]]:
        for place, box, kind in objects:
            if kind not in classes:
                raise DataError(f"{where}, {place}: class {kind!r} is not in classes.txt ({', '.join(classes)})")
            yield place, box, classes.index(kind)

    boxes = drawn(rows(), size=size_of(picture), where=where, num_classes=len(classes))
    return Board(name, picture, boxes, group=name, template=template_of(picture, root))


def write(root: Path, listed: Listed, copy: Any) -> None:
    """Into an empty folder.

    Args:
        copy: (path of a picture, path to put it) -> its own path, with its suffix.
    """
    keys = {"train": "train", "validation": "val", "test": "test"}
    (root / "Annotations").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in listed.classes), encoding="utf-8")
    for side, boards in listed.sides.items():
        stems = [board.name.replace("/", "_") for board in boards]
        for board, stem in zip(boards, stems, strict=True):
            picture = copy(board.picture, root / "JPEGImages" / stem)
            if board.template is not None:
                copy(board.template, root / "templates" / stem)
            tree = ElementTree.Element("annotation")
            ElementTree.SubElement(tree, "filename").text = picture.name
            size = ElementTree.SubElement(tree, "size")
            for tag, value in zip(("width", "height"), size_of(picture), strict=True):
                ElementTree.SubElement(size, tag).text = str(value)
            for (x1, y1, x2, y2), kind in zip(board.boxes.corners.tolist(), board.boxes.classes, strict=True):
                item = ElementTree.SubElement(tree, "object")
                ElementTree.SubElement(item, "name").text = listed.classes[kind]
                box = ElementTree.SubElement(item, "bndbox")
                for tag, side_value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True):
                    ElementTree.SubElement(box, tag).text = f"{side_value:g}"
            ElementTree.ElementTree(tree).write(root / "Annotations" / f"{stem}.xml", encoding="utf-8")
        if side != "all":
            lists = root / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{keys[side]}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
