"""Annotations in four formats: written and read they are the same boxes, and every fault is named."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import DataError, LeakError
from verticals.manufacturing.boxes import boxes_of
from verticals.manufacturing.pcb.boards import Board, Listed
from verticals.manufacturing.pcb.dataset import Dataset
from verticals.manufacturing.pcb.formats import FORMATS, read_boards
from verticals.manufacturing.pcb.formats.deeppcb import CLASSES


def board(folder: Path, name: str, seed: int, *, group: str | None = None) -> Board:
    """A picture of noise, its template, and whole-numbered boxes."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True, parents=True)
    paths = [folder / f"{name}.png", folder / f"{name}_twin.png"]
    for path in paths:
        cv2.imwrite(str(path), random.integers(0, 256, (120, 160), np.uint8))
    low = random.integers(0, 80, (seed % 4, 2))
    corners = np.concatenate((low, low + random.integers(5, 40, low.shape)), axis=1)
    boxes = boxes_of(corners, random.integers(0, len(CLASSES), len(corners)))
    return Board(name, paths[0], boxes, group=group or name, template=paths[1])


def listed(folder: Path) -> Listed:
    sides = {"train": range(6), "validation": range(6, 8), "test": range(8, 11)}
    boards = {
        side: tuple(board(folder, f"b{number:02d}", number) for number in numbers) for side, numbers in sides.items()
    }
    return Listed("made", CLASSES, boards)


def copy(source: Path, target: Path) -> Path:
    target = target.with_name(target.name + source.suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    return target


@pytest.fixture
def made(tmp_path: Path) -> Listed:
    return listed(tmp_path / "source")


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_back(format: str, made: Listed, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    FORMATS[format].write(root, made, copy)
    read = read_boards(root)
    assert (read.format, read.classes) == (format, made.classes)
    for side, boards in made.sides.items():
        assert len(read.sides[side]) == len(boards)
        for ours, theirs in zip(boards, read.sides[side], strict=True):
            assert ours.name in theirs.name
            np.testing.assert_allclose(theirs.boxes.corners, ours.boxes.corners, atol=1e-3)
            assert theirs.boxes.classes.tolist() == ours.boxes.classes.tolist()
            assert theirs.picture.read_bytes() == ours.picture.read_bytes()
            assert theirs.template is not None
            assert ours.template is not None
            assert theirs.template.read_bytes() == ours.template.read_bytes()


ODD = st.text("aAb1.é_ /\\-[]#:'\"", min_size=1, max_size=5)
"""Signs that stand for something in a path, a list, YAML, XML or a pattern."""


@settings(max_examples=15, deadline=None)
@given(st.lists(ODD, min_size=2, max_size=5, unique=True), st.lists(ODD, min_size=2, max_size=2, unique=True))
@example(["a/b", "a_b", "A_B", "board 1", "x.png", "x.jpg"], ["lot 7", "lot_7"])
@example(["a.rf.1", "a.rf.2", "..", ".", "1"], ["group1", "1"])
@pytest.mark.parametrize("format", FORMATS)
def test_odd_names_and_groups_are_written_and_read_back(format: str, names: list[str], groups: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        boards = [
            replace(board(Path(folder) / "source", f"b{number}", number), name=name, group=groups[number % 2])
            for number, name in enumerate(names)
        ]
        FORMATS[format].write(root, Listed("made", CLASSES, {"train": tuple(boards)}), copy)
        read = {board.picture.read_bytes(): board for board in read_boards(root).boards}
        assert len(read) == len(boards)
        pairs = {(ours.group, read[ours.picture.read_bytes()].group) for ours in boards}
        assert len({group for _, group in pairs}) == len(pairs) == 2
        assert format == "deeppcb" or all(ours == theirs for ours, theirs in pairs)
        for ours in boards:
            theirs = read[ours.picture.read_bytes()]
            assert theirs.boxes.classes.tolist() == ours.boxes.classes.tolist()
            assert ours.template is not None
            assert theirs.template is not None
            assert theirs.template.read_bytes() == ours.template.read_bytes()


def written(format: str, made: Listed, tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    FORMATS[format].write(root, made, copy)
    return root


FAULTS = {
    "outside": ((150, 100, 170, 130), "leaves the picture of 160 x 120 pixels"),
    "of no area": ((20, 20, 20, 40), "has no area"),
    "not finite": ((float("nan"), 20, 30, 40), "is not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_faulty_box_is_named(format: str, fault: str, made: Listed, tmp_path: Path) -> None:
    root = written(format, made, tmp_path)
    (x1, y1, x2, y2), words = FAULTS[fault]
    if format == "yolo":
        middle = (x1 + x2) / 320, (y1 + y2) / 240
        line = f"0 {middle[0]} {middle[1]} {(x2 - x1) / 160} {(y2 - y1) / 120}\n"
        path = root / "labels" / "train" / "b01.txt"
        path.write_text(line)
    elif format == "coco":
        path = root / "annotations" / "instances_train.json"
        record = json.loads(path.read_text())
        record["annotations"][0]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        path.write_text(json.dumps(record))
    elif format == "voc":
        path = root / "Annotations" / "b01.xml"
        path.write_text(
            "<annotation><object><name>open</name><bndbox>"
            f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
        )
    else:
        (root / "groupb01" / "boards_not" / "b01.txt").write_text(f"{x1} {y1} {x2} {y2} 1\n")
    with pytest.raises(DataError, match=words):
        read_boards(root)


def test_unknown_classes_are_named(made: Listed, tmp_path: Path) -> None:
    root = written("yolo", made, tmp_path)
    (root / "labels" / "train" / "b01.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"b01.txt, line 1: .* is of class 9; there are classes 0 to 5"):
        read_boards(root)


def test_an_empty_annotation_is_a_board_without_defects(made: Listed, tmp_path: Path) -> None:
    root = written("voc", made, tmp_path)
    (root / "Annotations" / "b01.xml").write_text("<annotation></annotation>")
    assert not len(next(board for board in read_boards(root).boards if board.name == "b01").boxes.classes)
    (root / "Annotations" / "b01.xml").write_text("")
    with pytest.raises(DataError, match=r"b01.xml is empty"):
        read_boards(root)


def test_paths_out_of_the_folder_are_refused(made: Listed, tmp_path: Path) -> None:
    root = written("coco", made, tmp_path)
    path = root / "annotations" / "instances_train.json"
    record = json.loads(path.read_text())
    record["images"][0]["file_name"] = "../../source/b00.png"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"lies outside|is not there"):
        read_boards(root)


def test_what_is_no_data_set_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data set"):
        read_boards(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        read_boards(tmp_path / "none")


def test_damaged_lists_are_named(made: Listed, tmp_path: Path) -> None:
    root = written("yolo", made, tmp_path)
    (root / "data.yaml").write_text("names: [a, b\n")
    with pytest.raises(DataError, match="data.yaml cannot be read"):
        read_boards(root)
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train"}))
    with pytest.raises(DataError, match="has no `names`"):
        read_boards(root)


def test_a_board_on_two_sides_is_refused_unless_it_is_published(tmp_path: Path) -> None:
    boards = [
        board(tmp_path / "source", f"b{number}", number, group="g" if number in (1, 9) else f"g{number}")
        for number in range(11)
    ]
    torn = Listed(
        "made", CLASSES, {"train": tuple(boards[:6]), "validation": tuple(boards[6:8]), "test": tuple(boards[8:])}
    )
    root = written("coco", torn, tmp_path)
    with pytest.raises(LeakError, match=r"board 'g' has pictures on several sides \(1 on train, 1 on test\)"):
        Dataset.open(root)
    assert Dataset.open(root, split="published").fingerprint["groups_shared"] == ["g"]


def test_one_picture_on_two_sides_is_refused(made: Listed, tmp_path: Path) -> None:
    root = written("coco", made, tmp_path)
    shutil.copy(root / "images" / "b01.png", root / "images" / "b09.png")
    with pytest.raises(LeakError, match="are one picture"):
        Dataset.open(root, split="published")


def test_what_is_not_listed_is_split_by_board(tmp_path: Path) -> None:
    boards = tuple(
        board(tmp_path / "source", f"b{number:02d}", number, group=f"g{number // 3}") for number in range(30)
    )
    root = written("coco", Listed("made", CLASSES, {"all": boards}), tmp_path)
    dataset = Dataset.open(root)
    groups = {side: {board.group for board in of_side} for side, of_side in dataset.sides.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    assert {side: len(of_side) for side, of_side in dataset.sides.items()} == {"train": 21, "validation": 3, "test": 6}
    assert Dataset.open(root).fingerprint == dataset.fingerprint
