"""COCO: a JSON file with images, annotations and categories, one for each side or one for all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import DataError
from verticals.manufacturing.pcb.boards import Board, Listed, drawn, only_names, size_of, template_of

SIDES = {"train": "train", "val": "validation", "test": "test"}
"""Words in a file's or its folder's name, and the side."""


def found(root: Path) -> bool:
    return bool(_files(root))


def _files(root: Path) -> list[Path]:
    """Of the folder itself, `annotations` in it, or one folder for each side."""
    paths = [
        path for pattern in ("*.json", "annotations/*.json", "*/_annotations.coco.json") for path in root.glob(pattern)
    ]
    return sorted(path for path in paths if _is_coco(path))


def _is_coco(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2**16)
    return b'"images"' in start or b'"categories"' in start or b'"annotations"' in start


def read(root: Path) -> Listed:
    """Raises DataError at the first fault."""
    files = _files(root)
    records = {path: _record(path) for path in files}
    categories: dict[Any, str] = {}
    for path, record in records.items():
        for category in record["categories"]:
            known = categories.setdefault(category.get("id"), str(category.get("name")))
            if known != str(category.get("name")):
                raise DataError(
                    f"{path.name}: category {category.get('id')} is {category.get('name')!r}, and {known!r} in another file"
                )
    used = {row.get("category_id") for record in records.values() for row in record["annotations"]}
    parents = {str(category.get("supercategory")) for record in records.values() for category in record["categories"]}
    numbers = sorted(number for number, name in categories.items() if number in used or name not in parents)
    places = {number: place for place, number in enumerate(numbers)}
    sides: dict[str, tuple[Board, ...]] = {}
    for path, record in records.items():
        side = _side(path, root) if len(files) > 1 else "all"
        if side in sides:
            raise DataError(f"{path.name} is the second file of the side {side!r}; name files by train, val and test")
        sides[side] = tuple(_boards(path, record, root, places))
    return Listed("coco", tuple(categories[number] for number in numbers), sides)


def _record(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path.name} is not JSON: {error}") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(record, dict) or any(not isinstance(record.get(name), list) for name in lists):
        raise DataError(f"{path.name} lacks one of the lists {', '.join(lists)}; export the data set as COCO again")
    return record


def _side(path: Path, root: Path) -> str:
    words = path.stem.lower() if path.name != "_annotations.coco.json" else path.parent.name.lower()
    fitting = [side for word, side in SIDES.items() if word in words]
    if len(fitting) != 1:
        raise DataError(f"{path.relative_to(root)} tells no side; name files by train, val and test")
    return fitting[0]


def _boards(path: Path, record: Mapping[str, Any], root: Path, places: Mapping[Any, int]) -> Iterator[Board]:
    by_image: dict[Any, list[Any]] = {}
    for row in record["annotations"]:
        by_image.setdefault(row.get("image_id"), []).append(row)
    known = {image.get("id") for image in record["images"]}
    if strange := by_image.keys() - known:
        raise DataError(f"{path.name} has annotations of image {next(iter(strange))!r}, which it does not list")
    for image in record["images"]:
        name = str(image.get("file_name"))
        base = next((base for base in (path.parent, root / "images", root) if (base / name).is_file()), root)
        picture = only_names(base, name, where=path.name)
        size = size_of(picture)
        said = (image.get("width", size[0]), image.get("height", size[1]))
        if said != size:
            raise DataError(
                f"{path.name} says that {name} has {said[0]} x {said[1]} pixels; it has {size[0]} x {size[1]}"
            )
        boxes = drawn(
            _rows(path, by_image.get(image.get("id"), []), places),
            size=size,
            where=f"{path.name}, {name}",
            num_classes=len(places),
        )
        relative = picture.relative_to(root).with_suffix("").as_posix()
        yield Board(
            relative, picture, boxes, group=str(image.get("board", picture.stem)), template=template_of(picture, root)
        )


def _rows(path: Path, rows: list[Any], places: Mapping[Any, int]) -> Iterator[tuple[str, tuple[float, ...], int]]:
    for row in rows:
        where = f"annotation {row.get('id')}"
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
            raise DataError(f"{path.name}, {where}: bbox is {box!r}; needed are x, y, width and height")
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
    for side, boards in listed.sides.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, board in enumerate(boards, 1):
            stem = board.name.replace("/", "_")
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
