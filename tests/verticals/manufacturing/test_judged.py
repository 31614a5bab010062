"""What operators judged is a data set that training takes: their words are the boxes, the golden board lies where the board lay."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from core.errors import DataError
from verticals.manufacturing.golden import shifted
from verticals.manufacturing.judged import write_judged
from verticals.manufacturing.pcb.config import debug
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.dataset import Dataset
from verticals.manufacturing.products import Products
from verticals.manufacturing.results import Results

CLASSES = ("open", "short")


class Kept:
    """A line's store with results of one product."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results, self.products = Results(folder / "results.db"), Products(folder / "products")
        self.golden = np.random.default_rng(0).integers(0, 256, (64, 96, 1), np.uint8)
        encoded = cv2.imencode(".png", self.golden)[1].tobytes()
        self.revision = self.products.teach("A1", encoded).revision

    def add(self, id: str, findings: list[dict[str, Any]], *, shift: tuple[int, int] = (0, 0)) -> None:
        folder = self.folder / "pictures" / id
        folder.mkdir(parents=True)
        board = shifted(self.golden, *shift)
        (folder / "board").write_bytes(cv2.imencode(".bmp", board)[1].tobytes())
        content = {"verdict": "fail", "findings": findings, "shift": list(shift)}
        record = {"ResultId": id, "PartId": "A1", "RecipeId": f"v1/{self.revision}", "CreationTime": 1.0}
        self.results.add({**record, "ResultContent": content})

    def write(self) -> tuple[int, Path]:
        target = self.folder / "judged.zip"
        count = write_judged(self.results, self.products, self.folder / "pictures", CLASSES, target)
        with zipfile.ZipFile(target) as archive:
            archive.extractall(self.folder / "out")
        assert not list(self.folder.glob(".judged-*"))
        return count, self.folder / "out" / "judged"


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def finding(box: list[float], *, counts: bool = True) -> dict[str, Any]:
    return {"class": "open", "score": 0.9, "counts": counts, "box": box}


def test_judged_boards_are_a_data_set(kept: Kept) -> None:
    kept.add(
        "a",
        [finding([1, 2, 11, 12]), finding([20, 20, 30, 30]), finding([40, 40, 50, 50], counts=False)],
        shift=(3, -2),
    )
    kept.add("b", [finding([5, 5, 15, 15])])
    kept.add("c", [finding([1, 1, 9, 9]), finding([20, 1, 29, 9])])
    kept.add("d", [finding([1, 1, 9, 9])])
    kept.results.judge("a", 0, "defect", kind="short", at=1.0)
    kept.results.judge("a", 1, "no defect", kind=None, at=1.0)
    kept.results.judge("b", 0, "defect", kind=None, at=1.0)
    kept.results.judge("c", 0, "no defect", kind=None, at=1.0)  # its other finding nobody judged: the board is left out
    count, folder = kept.write()
    assert count == 2
    dataset = Dataset.open(folder, split="published")
    boards = {board.name.removeprefix("images/"): board for side in dataset.sides.values() for board in side}
    assert dataset.classes == CLASSES
    assert set(boards) == {"a", "b"}
    assert boards["a"].boxes.corners.tolist() == [[1, 2, 11, 12]]
    assert boards["a"].boxes.classes.tolist() == [1]
    assert boards["b"].boxes.classes.tolist() == [0]
    data = PcbData(debug(), dataset)
    for board in boards.values():  # board and golden board in register
        pair = data.read(board)
        assert pair.shape == (64, 96, 2)
        assert np.array_equal(pair[..., 0], pair[..., 1])


def test_the_golden_board_is_that_of_its_time(kept: Kept) -> None:
    kept.add("a", [finding([1, 2, 11, 12])])
    kept.results.judge("a", 0, "no defect", kind=None, at=1.0)
    kept.products.teach("A1", cv2.imencode(".png", 255 - kept.golden)[1].tobytes())
    _, folder = kept.write()
    (template,) = (folder / "templates").iterdir()
    assert np.array_equal(cv2.imread(str(template), cv2.IMREAD_GRAYSCALE), kept.golden[..., 0])


@pytest.mark.parametrize(
    ("judged", "words"), [(False, "no finding was judged yet"), (True, "1 boards have judged findings")]
)
def test_nothing_to_write_is_said(kept: Kept, judged: bool, words: str) -> None:
    kept.add("a", [finding([1, 2, 11, 12]), finding([20, 2, 31, 12])])
    if judged:
        kept.results.judge("a", 0, "defect", kind=None, at=1.0)
    with pytest.raises(DataError, match=words):
        kept.write()
    assert not list(kept.folder.glob("*.zip"))
