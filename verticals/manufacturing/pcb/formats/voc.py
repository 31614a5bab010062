"""Pascal VOC: an XML file for each picture; lists in `ImageSets/Main` where there are any.

Objects that are marked `difficult` are defects like others. Ours have an element `board` too: the board that a picture is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from core.data.text import entries_of
from core.errors import DataError
from verticals.manufacturing.pcb.boards import (
    Board,
    Listed,
    drawn,
    group_of,
    in_any_case,
    pictures_below,
    size_of,
    template_of,
    with_stems,
)

FOLDER = "annotations"
PICTURES = ("JPEGImages", "images")
LISTS = {"train": ("train", "trainval"), "validation": ("val",), "test": ("test",)}
"""Of each side: the first that is there."""
MOST_BYTES = 2**24
"""Of an XML file."""


class Annotation(NamedTuple):
    """What an XML file says."""

    file: str
    objects: list[tuple[str, tuple[float, ...], str]]
    """Place in the file (for errors), corners in pixels from 0 on, class."""
    board: str | None


def found(root: Path) -> bool:
    return bool(_files(root))


def _files(root: Path) -> list[tuple[str, Path]]:
    """Those of a folder `Annotations`, in capitals or not, and below it, each with its place there, without suffix."""
    folders = [folder for folder in root.iterdir() if folder.name.lower() == FOLDER]
    files = [(folder, path) for folder in folders for path in folder.rglob("*") if path.suffix.lower() == ".xml"]
    return sorted((_place(path, folder), path) for folder, path in files)


def _place(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _by_stem(places: Iterable[str]) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    for place in places:
        stems.setdefault(place.rpartition("/")[2], []).append(place)
    return stems


def read(root: Path) -> Listed:
    """Raises DataError at the first fault. Corners in the files count pixels from 1, and the last one is inside."""
    annotations: dict[str, Annotation] = {}
    for place, path in _files(root):
        if place in annotations:
            raise DataError(f"two annotations are called {place}; rename one")
        annotations[place] = _annotation(path)
    classes = tuple(sorted({name for annotation in annotations.values() for _, _, name in annotation.objects}))
    if (root / "classes.txt").is_file():
        classes = tuple(name for _, name in entries_of(root / "classes.txt"))
    if not classes:
        raise DataError("no annotation draws anything; needed are objects, or a file classes.txt with a name a line")
    stems = _by_stem(annotations)
    folder = next((folder for name in PICTURES if (folder := in_any_case(root, name)).is_dir()), root)
    pictures: dict[str, list[tuple[str, Path]]] = {}
    for path in pictures_below(folder):
        pictures.setdefault(path.stem, []).append((_place(path, folder), path))
    sides = {}
    for side, places in (_lists(root, stems) or {"all": sorted(annotations)}).items():
        boards = []
        for place in places:
            stem = place.rpartition("/")[2]
            picture = _picture(place, pictures.get(stem, []), is_only=len(stems[stem]) == 1)
            boards.append(_board(place, picture, root, annotations[place], classes))
        sides[side] = tuple(boards)
    return Listed("voc", classes, sides)


def _lists(root: Path, stems: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Places of annotations by side. A line is a place or a stem, which a flag may follow."""
    sides = {}
    for side, words in LISTS.items():
        paths = [path for word in words if (path := root / "ImageSets" / "Main" / f"{word}.txt").is_file()]
        if paths:
            sides[side] = [
                _listed(line, stems, f"{paths[0].name}, line {number}") for number, line in entries_of(paths[0])
            ]
    return sides


def _listed(line: str, stems: Mapping[str, list[str]], where: str) -> str:
    for name in (line.replace("\\", "/"), line.replace("\\", "/").split()[0]):
        of_stem = stems.get(name.rpartition("/")[2], [])
        if name in of_stem:
            return name
        if name in stems:
            if len(of_stem) > 1:
                raise DataError(f"{where}: {name!r} is {' and '.join(of_stem)}; list it with its folder")
            return of_stem[0]
    raise DataError(f"{where}: {line!r} has no annotation; add it, or remove the line")


def _picture(place: str, of_stem: list[tuple[str, Path]], *, is_only: bool) -> Path:
    """The one at the annotation's place; where no other annotation has its stem, the one of that stem.

    Args:
        of_stem: all of that stem, with their places.
    """
    fitting = [path for other, path in of_stem if other == place]
    if not fitting and is_only:
        fitting = [path for _, path in of_stem]
    if not fitting:
        raise DataError(f"the annotation {place} has no picture; add it, or remove the annotation")
    if len(fitting) > 1:
        raise DataError(f"two pictures are called {place}: {fitting[0].name} and {fitting[1].name}; rename one")
    return fitting[0]


def _annotation(path: Path) -> Annotation:
    text = path.read_bytes()
    if not text.strip():
        raise DataError(f"{path.name} is empty; a picture without defects has an annotation without objects")
    if len(text) > MOST_BYTES:
        raise DataError(f"{path.name} is no annotation: it has {len(text):,} bytes; allowed are {MOST_BYTES:,}")
    try:
        _refuse_entities(text, path.name)
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, expat.ExpatError, LookupError, ValueError) as error:
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
    return Annotation(path.name, found, tree.findtext("board"))


def _refuse_entities(text: bytes, name: str) -> None:
    """Before they are expanded, in whatever encoding."""

    def refuse(*_: Any) -> None:
        raise DataError(f"{name} is no annotation: it defines entities; write what they stand for in their place")

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    parser.Parse(text, True)


def _board(place: str, picture: Path, root: Path, annotation: Annotation, classes: tuple[str, ...]) -> Board:
    def rows() -> Iterator[tuple[str, tuple[float, ...], int]]:
        for where, box, kind in annotation.objects:
            if kind not in classes:
                raise DataError(
                    f"{annotation.file}, {where}: class {kind!r} is not in classes.txt ({', '.join(classes)})"
                )
            yield where, box, classes.index(kind)

    boxes = drawn(rows(), size=size_of(picture), where=annotation.file, num_classes=len(classes))
    return Board(place, picture, boxes, group_of(picture, root, annotation.board), template_of(picture, root))


def write(root: Path, listed: Listed, copy: Any) -> None:
    """Into an empty folder.

    Args:
        copy: (path of a picture, path to put it) -> its own path, with its suffix.
    """
    keys = {"train": "train", "validation": "val", "test": "test"}
    (root / "Annotations").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in listed.classes), encoding="utf-8")
    for side, boards in with_stems(listed).items():
        for board, stem in boards:
            picture = copy(board.picture, root / "JPEGImages" / stem)
            if board.template is not None:
                copy(board.template, root / "templates" / stem)
            tree = ElementTree.Element("annotation")
            ElementTree.SubElement(tree, "filename").text = picture.name
            ElementTree.SubElement(tree, "board").text = board.group
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
            (lists / f"{keys[side]}.txt").write_text("".join(f"{stem}\n" for _, stem in boards), encoding="utf-8")
