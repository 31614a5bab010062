"""Data sets as people leave them: each layout that is read, and each fault that is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from core.errors import DataError
from verticals.manufacturing.pcb.boards import Board, picture_of
from verticals.manufacturing.pcb.config import DataConfig, PcbConfig
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.dataset import Dataset
from verticals.manufacturing.pcb.formats import read_boards

Change = Callable[[dict[str, Any]], object]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(str(path).encode())
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (80, 100), np.uint8))


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def coco(
    root: Path,
    change: Change = lambda record: None,
    *,
    names: tuple[str, ...] = ("b0.png", "b1.png", "b2.png"),
    folder: str = "images",
    file: str = "annotations/instances_all.json",
) -> Path:
    """Pictures of 100 x 80 pixels, and one defect on the first."""
    for name in names:
        picture(root / folder / name)
    record: dict[str, Any] = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 10, 20, 20]}],
        "categories": [{"id": 1, "name": "open"}, {"id": 2, "name": "short"}],
    }
    change(record)
    put(root / file, json.dumps(record))
    return root


NAMES = "names: [open, short]\n"
ROW = "0 0.5 0.5 0.2 0.2\n"


def yolo(
    root: Path,
    yaml: str | bytes = NAMES + "train: images\n",
    *,
    label: str | bytes = ROW,
    images: str = "images",
    labels: str = "labels/b0.txt",
) -> Path:
    """Two pictures, a text file for the first."""
    for name in ("b0.png", "b1.png"):
        picture(root / images / name)
    put(root / "data.yaml", yaml)
    put(root / labels, label)
    return root


def xml(inner: str = "") -> str:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax></bndbox>"
    return f"<annotation><object><name>open</name>{inner}{box}</object></annotation>"


def voc(
    root: Path, *, annotations: tuple[str, ...] = ("v0.xml", "v1.xml"), lists: dict[str, str | bytes] | None = None
) -> Path:
    for name in annotations:
        picture(root / "JPEGImages" / Path(name).with_suffix(".png"))
        put(root / "Annotations" / name, xml())
    for name, content in (lists or {}).items():
        put(root / "ImageSets" / "Main" / name, content)
    return root


PAIRS = "group1/b/0.png group1/n/0.txt\ngroup1/b/1.png group1/n/1.txt\n"


def deeppcb(
    root: Path, lists: str | bytes = PAIRS, *, file: str = "trainval.txt", label: str | bytes = "1 1 9 9 1"
) -> Path:
    for number in range(2):
        for kind in ("test", "temp"):
            picture(root / "group1" / "b" / f"{number}_{kind}.png")
        put(root / "group1" / "n" / f"{number}.txt", label)
    put(root / file, lists)
    return root


def boards(root: Path) -> dict[str, Board]:
    return {board.name: board for board in read_boards(root).boards}


def num_boxes(root: Path) -> int:
    return sum(len(board.boxes.classes) for board in read_boards(root).boards)


def first(record: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = record[name][0]
    return found


REFUSED_COCO: dict[str, tuple[Change, str]] = {
    "ids of two types": (lambda record: record["categories"][1].update(id="2"), "some are text"),
    "a list as category": (lambda record: first(record, "annotations").update(category_id=[1]), r"is \[1\]; needed"),
    "a list as image": (lambda record: first(record, "annotations").update(image_id=[0]), r"is \[0\]; needed"),
    "an image that is no object": (lambda record: record["images"].append(7), r"images\[3\] is 7; needed"),
    "an annotation that is none": (lambda record: record["annotations"].append("x"), r"annotations\[1\] is 'x'"),
    "a category without a name": (lambda record: first(record, "categories").pop("name"), "give it one"),
    "beyond a float": (lambda record: first(record, "annotations").update(bbox=[10**400, 1, 1, 1]), "is not finite"),
    "a crowd": (lambda record: first(record, "annotations").update(iscrowd=1), "draw each defect by itself"),
    "a class twice": (lambda record: record["categories"][1].update(name="open"), "the class 'open' twice"),
    "two images of one id": (lambda record: record["images"][1].update(id=0), "two images have the id 0"),
    "an image twice": (
        lambda record: record["images"].append({"id": 9, "file_name": "b0.png"}),
        "images/b0.png is listed twice on the side 'all'",
    ),
    "no path": (lambda record: first(record, "images").update(file_name="b\0.png"), "which is no path"),
    "outside": (lambda record: first(record, "images").update(file_name="../../../../x.png"), "lies outside"),
}


@pytest.mark.parametrize("case", REFUSED_COCO)
def test_a_fault_of_coco_is_named(case: str, tmp_path: Path) -> None:
    change, words = REFUSED_COCO[case]
    with pytest.raises(DataError, match=words):
        read_boards(coco(tmp_path, change))


REFUSED_YOLO: dict[str, tuple[dict[str, Any], str]] = {
    "names a number": ({"yaml": "names: 5\ntrain: images\n"}, "`names` is 5"),
    "no names": ({"yaml": "names: null\ntrain: images\n"}, "`names` is None"),
    "names a text": ({"yaml": "names: open\ntrain: images\n"}, "`names` is 'open'"),
    "mixed keys": ({"yaml": "names: {a: open, 1: short}\ntrain: images\n"}, r"the numbers \['a', 1\]"),
    "a class twice": ({"yaml": "names: [open, open]\ntrain: images\n"}, "the class 'open' twice"),
    "no date": ({"yaml": f"{NAMES}train: images\nmade: 2024-13-45\n"}, "cannot be read"),
    "a label in UTF-16": ({"label": ROW.encode("utf-16")}, "b0.txt is not text in UTF-8"),
    "a list in UTF-16": ({"yaml": (NAMES + "train: images\n").encode("utf-16")}, "data.yaml is not text in UTF-8"),
    "no label": ({"labels": "elsewhere/b0.txt"}, "no picture of `train` has a text file; looked for labels/b0.txt"),
    "a picture that is none": (
        {"yaml": NAMES + "train: labels/b0.txt\n", "label": ".\n"},
        "line 1 names '.', which is not",
    ),
    "boards no mapping": ({"yaml": NAMES + "train: images\nboards: [b0]\n"}, "`boards` is"),
}


@pytest.mark.parametrize("case", REFUSED_YOLO)
def test_a_fault_of_yolo_is_named(case: str, tmp_path: Path) -> None:
    given, words = REFUSED_YOLO[case]
    with pytest.raises(DataError, match=words):
        read_boards(yolo(tmp_path, **given))


@pytest.mark.parametrize("line", ["images/b0.png", "./images/b0.png"])
def test_a_picture_that_is_listed_twice_is_refused(line: str, tmp_path: Path) -> None:
    put(tmp_path / "train.txt", f"images/b0.png\n\n{line}\n")
    words = r"train.txt, line 3: .* stands on line 1 already|images/b0.png is listed twice"
    with pytest.raises(DataError, match=words):
        read_boards(yolo(tmp_path, NAMES + "train: train.txt\n"))


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_entities_are_refused_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    root = voc(tmp_path)
    text = f'<?xml version="1.0" encoding="{encoding}"?>{BOMB}{xml("&b;")}'
    put(root / "Annotations" / "v0.xml", text.encode(encoding))
    with pytest.raises(DataError, match="v0.xml is no annotation: it defines entities"):
        read_boards(root)


@pytest.mark.parametrize("encoding", ["nonsense", "gb2312"])
def test_xml_in_an_unknown_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    put(voc(tmp_path) / "Annotations" / "v0.xml", f'<?xml version="1.0" encoding="{encoding}"?><annotation/>')
    with pytest.raises(DataError, match="v0.xml is not XML"):
        read_boards(tmp_path)


UNREADABLE: dict[str, Callable[[Path], Path]] = {
    "coco": lambda root: coco(root, file="spare.txt"),
    "voc": lambda root: voc(root, lists={"train.txt": "v0\nv1\n".encode("utf-16")}),
    "deeppcb list": lambda root: deeppcb(root, PAIRS.encode("utf-16")),
    "deeppcb label": lambda root: deeppcb(root, label="1 1 9 9 1".encode("utf-16")),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_text_in_another_encoding_is_named(case: str, tmp_path: Path) -> None:
    root = UNREADABLE[case](tmp_path)
    if case == "coco":
        put(root / "all.json", (root / "spare.txt").read_text().encode("utf-16"))
    with pytest.raises(DataError, match="is not text in UTF-8"):
        read_boards(root)


@pytest.mark.parametrize("form", ["../images/{}", "images\\{}", "{root}/images/{}"])
def test_coco_names_pictures_from_anywhere_inside(form: str, tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        for image in record["images"]:
            image["file_name"] = form.format(image["file_name"], root=tmp_path)

    assert set(boards(coco(tmp_path, change))) == {"images/b0", "images/b1", "images/b2"}


@pytest.mark.parametrize("above", ["", "images/"])
def test_cocos_own_layout_is_read(above: str, tmp_path: Path) -> None:
    for side in ("train2017", "val2017"):
        coco(tmp_path, folder=f"{above}{side}", file=f"annotations/instances_{side}.json", names=(f"{side}.png",))
    sides = read_boards(tmp_path).sides
    assert {side: [board.name for board in of_side] for side, of_side in sides.items()} == {
        "train": [f"{above}train2017/train2017"],
        "validation": [f"{above}val2017/val2017"],
    }


def test_a_class_is_dropped_only_as_the_parent_of_another(tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["categories"] = [{"id": 1, "name": "open", "supercategory": "open"}]
        record["categories"] += [{"id": 2, "name": "short", "supercategory": "short"}]
        record["categories"] += [{"id": 3, "name": "all"}, {"id": 4, "name": "spur", "supercategory": "all"}]

    assert read_boards(coco(tmp_path, change)).classes == ("open", "short", "spur")


def test_coco_is_found_by_what_stands_late_in_the_file(tmp_path: Path) -> None:
    root = coco(tmp_path)
    path = root / "annotations" / "instances_all.json"
    path.write_text('{"info": "' + "x" * 70_000 + '",' + path.read_text()[1:])
    assert num_boxes(root) == 1


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (("train/0000.png", "test/0000.png"), ("images/train/0000", "images/test/0000")),
        (("a.rf.12.png", "a.rf.34.png"), ("a", "a")),
        (("x/7.rf.1.png", "x/7.rf.2.png"), ("images/x/7", "images/x/7")),
    ],
)
def test_a_number_is_no_board_and_copies_are_of_one(
    names: tuple[str, ...], groups: tuple[str, ...], tmp_path: Path
) -> None:
    assert tuple(board.group for board in read_boards(coco(tmp_path / "coco", names=names)).boards) == groups
    root = tmp_path / "yolo"
    for name in names:
        picture(root / "images" / name)
        put(root / "labels" / Path(name).with_suffix(".txt"), ROW)
    put(root / "data.yaml", NAMES + "train: images\n")
    assert {board.group for board in read_boards(root).boards} == set(groups)


@pytest.mark.parametrize("kind", [0, 1])
def test_identical_boxes_count_once(kind: int, tmp_path: Path) -> None:
    assert num_boxes(yolo(tmp_path, label=f"{ROW}{kind}{ROW[1:]}")) == 1 + kind


TEMPLATES = ("P1.png", "P1.2.png", "b[1].png", "c.png")


@pytest.mark.parametrize("folder", ["templates", "Templates"])
def test_a_template_has_exactly_the_pictures_stem(folder: str, tmp_path: Path) -> None:
    for name in TEMPLATES[:3]:
        picture(tmp_path / folder / name)
    put(tmp_path / folder / "c.json", "{}")
    found = {board.picture.name: board.template for board in read_boards(coco(tmp_path, names=TEMPLATES)).boards}
    assert {name: path and path.name for name, path in found.items()} == {
        **{name: name for name in TEMPLATES[:3]},
        "c.png": None,
    }


def test_a_picture_is_found_by_its_stem(tmp_path: Path) -> None:
    picture(tmp_path / "a.JPG")
    assert picture_of(tmp_path, "a") == tmp_path / "a.JPG"
    assert picture_of(tmp_path, "b") is None
    assert picture_of(tmp_path / "none", "a") is None


READ: dict[str, tuple[Callable[[Path], Path], int]] = {
    "coco with a mark": (lambda root: _marked(coco(root), "annotations/instances_all.json"), 1),
    "yolo with marks": (lambda root: _marked(yolo(root), "data.yaml", "labels/b0.txt"), 1),
    "deeppcb with marks": (lambda root: _marked(deeppcb(root), "trainval.txt", "group1/n/0.txt"), 2),
    "voc lists with a mark": (
        lambda root: _marked(voc(root, lists={"train.txt": "v0\n"}), "ImageSets/Main/train.txt"),
        1,
    ),
    "deeppcb with backslashes": (lambda root: deeppcb(root, PAIRS.replace("/", "\\")), 2),
    "deeppcb after an empty line": (lambda root: deeppcb(root, "\n" + PAIRS), 2),
    "deeppcb of train.txt": (lambda root: deeppcb(root, file="train.txt"), 2),
    "yolo in capitals": (
        lambda root: yolo(root, NAMES + "train: Images\n", images="Images", labels="Labels/b0.txt"),
        1,
    ),
    "yolo of .TXT": (lambda root: yolo(root, labels="labels/b0.TXT"), 1),
    "voc of .XML": (lambda root: voc(root, annotations=("v0.XML", "v1.xml")), 2),
    "voc in folders": (lambda root: voc(root, annotations=("v0.xml", "a/v1.xml", "b/v1.xml")), 3),
    "voc of trainval": (lambda root: voc(root, lists={"trainval.txt": "v0\n", "test.txt": "v1\n"}), 2),
}


def _marked(root: Path, *names: str) -> Path:
    for name in names:
        put(root / name, b"\xef\xbb\xbf" + (root / name).read_bytes())
    return root


@pytest.mark.parametrize("case", READ)
def test_nothing_is_lost(case: str, tmp_path: Path) -> None:
    make, count = READ[case]
    assert num_boxes(make(tmp_path)) == count


def test_a_yolo_list_may_have_backslashes(tmp_path: Path) -> None:
    put(tmp_path / "train.txt", "images\\b0.png\r\n.\\images\\b1.png\r\n")
    assert set(boards(yolo(tmp_path, NAMES + "train: train.txt\n"))) == {"images/b0", "images/b1"}


def test_voc_tells_annotations_of_one_stem_apart_by_their_folder(tmp_path: Path) -> None:
    root = voc(tmp_path, annotations=("a/v.xml", "b/v.xml"), lists={"train.txt": "a/v\n", "test.txt": "b\\v\n"})
    assert {name: board.picture.parent.name for name, board in boards(root).items()} == {"a/v": "a", "b/v": "b"}
    put(root / "ImageSets" / "Main" / "train.txt", "v\n")
    with pytest.raises(DataError, match=r"train.txt, line 1: 'v' is a/v and b/v; list it with its folder"):
        read_boards(root)
    put(root / "ImageSets" / "Main" / "train.txt", "a/v\na/v\n")
    with pytest.raises(DataError, match=r"train.txt, line 2: 'a/v' stands on line 1 already"):
        read_boards(root)


def test_difficult_objects_are_defects(tmp_path: Path) -> None:
    put(voc(tmp_path) / "Annotations" / "v0.xml", xml("<difficult>1</difficult>"))
    assert num_boxes(tmp_path) == 2


@pytest.mark.parametrize("folder", ["templates", "Templates"])
def test_golden_boards_are_no_boards(folder: str, tmp_path: Path) -> None:
    root = yolo(tmp_path, NAMES + "train: train\n", images="train/images", labels="train/labels/b0.txt")
    picture(root / "train" / folder / "b0.png")
    found = boards(root)
    assert set(found) == {"train/images/b0", "train/images/b1"}
    assert found["train/images/b0"].template == root / "train" / folder / "b0.png"


def test_pictures_that_differ_in_their_suffix_have_their_own_names(tmp_path: Path) -> None:
    assert set(boards(coco(tmp_path, names=("x.png", "x.bmp")))) == {"images/x.png", "images/x.bmp"}


@pytest.mark.parametrize("count", [1, 2])
def test_a_data_set_too_small_to_train_is_refused_before(count: int, tmp_path: Path) -> None:
    root = coco(tmp_path, names=tuple(f"b{number}.png" for number in range(count)))
    config = PcbConfig(data=DataConfig(sources=(str(root),), template=False))
    with pytest.raises(DataError, match=r"no boards on the side 'validation'; there are train \(1\)"):
        PcbData(config)
    judged = PcbData(config, Dataset.open(root, split="published"))
    assert len(judged.samples("all")) == count
