"""COCO: a JSON file with images, annotations and categories, one for each side or one for all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.data.text import rough_text, text_of
from core.errors import DataError
from verticals.manufacturing.pcb.boards import (
    Board,
    Listed,
    drawn,
    group_of,
    in_any_case,
    only_names,
    size_of,
    template_of,
    with_stems,
)

SIDES = {"train": "train", "val": "validation", "test": "test"}
"""Words in a file's or its folder's name, and the side."""
LISTS = ("images", "annotations", "categories")
MOST_DIGITS = 300
"""Of a whole number that a float holds."""


def found(root: Path) -> bool:
    return bool(_files(root))


def _files(root: Path) -> list[Path]:
    """Of the folder itself, `annotations` in it, or one folder for each side."""
    paths = [
        path for pattern in ("*.json", "annotations/*.json", "*/_annotations.coco.json") for path in root.glob(pattern)
    ]
    return sorted(path for path in paths if path.is_file() and _is_coco(path))


def _is_coco(path: Path) -> bool:
    text = rough_text(path)
    return any(f'"{name}"' in text for name in LISTS)


def read(root: Path) -> Listed:
    """Raises DataError at the first fault."""
    files = _files(root)
    records = {path: _record(path) for path in files}
    classes = _classes(records)
    places = {number: place for place, number in enumerate(classes)}
    sides: dict[str, tuple[Board, ...]] = {}
    for path, record in records.items():
        side = _side(path, root) if len(files) > 1 else "all"
        if side in sides:
            raise DataError(f"{path.name} is the second file of the side {side!r}; name files by train, val and test")
        sides[side] = tuple(_boards(path, record, root, places))
    return Listed("coco", tuple(classes.values()), sides)


def _classes(records: Mapping[Path, Mapping[str, Any]]) -> dict[Any, str]:
    """Names by id, in the ids' order. An unused category that is the `supercategory` of another one is no class."""
    names: dict[Any, str] = {}
    parents: set[tuple[str, Any]] = set()
    for path, record in records.items():
        for category in record["categories"]:
            number, name = _id(path, category, "id"), category.get("name")
            if not isinstance(name, str | int | float) or name == "":
                raise DataError(f"{path.name}: the name of category {number!r} is {name!r}; give it one")
            known = names.setdefault(number, str(name))
            if known != str(name):
                raise DataError(f"{path.name}: category {number!r} is {str(name)!r}, and {known!r} at another place")
            parents.add((str(category.get("supercategory")), number))
    if len({isinstance(number, str) for number in names}) > 1:
        raise DataError(f"some ids of categories are numbers, and some are text: {list(names)}; use numbers for all")
    used = {_id(path, row, "category_id") for path, record in records.items() for row in record["annotations"]}
    return {
        number: names[number]
        for number in sorted(names)
        if number in used or not any(parent == names[number] and child != number for parent, child in parents)
    }


def _record(path: Path) -> Mapping[str, Any]:
    text = text_of(path)
    try:
        record = json.loads(text, parse_int=lambda digits: (int if len(digits) < MOST_DIGITS else float)(digits))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(record, dict) or any(not isinstance(record.get(name), list) for name in LISTS):
        raise DataError(f"{path.name} lacks one of the lists {', '.join(LISTS)}; export the data set as COCO again")
    for name in LISTS:
        for place, row in enumerate(record[name]):
            if not isinstance(row, dict):
                raise DataError(f"{path.name}: {name}[{place}] is {row!r:.60}; needed is an object with its fields")
    return record


def _id(path: Path, row: Mapping[str, Any], field: str) -> Any:
    number = row.get(field)
    if not isinstance(number, int | float | str):
        raise DataError(f"{path.name}: {field} of {row!r:.60} is {number!r}; needed is a number, or text")
    return number


def _side(path: Path, root: Path) -> str:
    words = path.stem.lower() if path.name != "_annotations.coco.json" else path.parent.name.lower()
    fitting = [side for word, side in SIDES.items() if word in words]
    if len(fitting) != 1:
        raise DataError(f"{path.relative_to(root)} tells no side; name files by train, val and test")
    return fitting[0]


def _boards(path: Path, record: Mapping[str, Any], root: Path, places: Mapping[Any, int]) -> Iterator[Board]:
    by_image: dict[Any, list[Any]] = {}
    for image in record["images"]:
        number = _id(path, image, "id")
        if number in by_image:
            raise DataError(f"{path.name}: two images have the id {number!r}; give each its own")
        by_image[number] = []
    for row in record["annotations"]:
        number = _id(path, row, "image_id")
        if number not in by_image:
            raise DataError(f"{path.name} has annotations of image {number!r}, which it does not list")
        by_image[number].append(row)
    pictures, side = in_any_case(root, "images"), path.stem.rpartition("_")[2]  # instances_train2017
    folders = [path.parent, pictures / side, root / side, pictures, root]
    for image in record["images"]:
        name = str(image.get("file_name"))
        picture = only_names(root, name, where=path.name, folders=folders)
        size = size_of(picture)
        said = (image.get("width", size[0]), image.get("height", size[1]))
        if said != size:
            raise DataError(
                f"{path.name} says that {name} has {said[0]} x {said[1]} pixels; it has {size[0]} x {size[1]}"
            )
        boxes = drawn(
            _rows(path, by_image[image["id"]], places),
            size=size,
            where=f"{path.name}, {name}",
            num_classes=len(places),
        )
        relative, group = picture.relative_to(root).with_suffix("").as_posix(), image.get("board")
        yield Board(relative, picture, boxes, group_of(picture, root, group), template_of(picture, root))


def _rows(path: Path, rows: list[Any], places: Mapping[Any, int]) -> Iterator[tuple[str, tuple[float, ...], int]]:
    for row in rows:
        where = f"annotation {row.get('id')}"
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
            raise DataError(f"{path.name}, {where}: bbox is {box!r}; needed are x, y, width and height")
        if row.get("iscrowd"):
            raise DataError(f"{path.name}, {where} is a crowd; draw each defect by itself, or remove it")
        if row.get("category_id") not in places:
            raise DataError(f"{path.name}, {where}: category {row.get('category_id')!r} is not listed under categories")
        x, y, width, height = box
        yield where, (x, y, x + width, y + height), places[row["category_id"]]


def write(root: Path, listed: Listed, copy: Any) -> None:
    """Into an empty folder: `annotations/instances_SIDE.json`, or one file where nothing is split.

    Args:
        copy: (path of a picture, path to put it) -> its own path, with its suffix.
    """
    keys = {"train": "train", "validation": "val", "test": "test", "all": "all"}
    categories = [{"id": number, "name": name} for number, name in enumerate(listed.classes, 1)]
    (root / "annotations").mkdir(parents=True)
    for side, boards in with_stems(listed).items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (board, stem) in enumerate(boards, 1):
            picture = copy(board.picture, root / "images" / stem)
            if board.template is not None:
                copy(board.template, root / "templates" / stem)
            width, height = size_of(picture)
            images.append(
                {"id": number, "file_name": picture.name, "width": width, "height": height, "board": board.group}
            )
            for (x1, y1, x2, y2), kind in zip(board.boxes.corners.tolist(), board.boxes.classes.tolist(), strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "bbox": box}
                annotations.append({**row, "area": box[2] * box[3], "iscrowd": 0})
        record = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{keys[side]}.json").write_text(json.dumps(record), encoding="utf-8")
