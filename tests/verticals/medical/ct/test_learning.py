"""The debug recipe learns: better than any guess that does not look at the scan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.train import train
from verticals.medical.ct.config import debug
from verticals.medical.ct.data import CtData
from verticals.medical.ct.dataset import Case
from verticals.medical.volume import to_ras

COMMON = (48, 48, 48)


def fitted(case: Case, shape: tuple[int, ...] = COMMON) -> NDArray[np.uint8]:
    """A case's mask with axes R, A, S, stretched to a shape."""
    _, mask = case.read()
    straight = mask.turned(to_ras(mask.grid)).array
    scale = [new / old for new, old in zip(shape, straight.shape, strict=True)]
    return np.asarray(ndimage.zoom(straight, scale, order=0), np.uint8)


def atlas_dice(data: CtData, num_classes: int) -> float:
    """Of the label that most training cases have at the same place of the scan: what a guess by place alone reaches."""
    masks = np.stack([fitted(case) for case in data.samples("train")])
    votes = np.stack([(masks == label).sum(0) for label in range(num_classes)])
    guess = votes.argmax(0)
    scores = []
    for case in data.samples("test"):
        drawn = fitted(case)
        scores += [
            2 * int(((guess == k) & (drawn == k)).sum()) / int((guess == k).sum() + (drawn == k).sum())
            for k in range(1, num_classes)
        ]
    return float(np.mean(scores))


def test_the_debug_recipe_beats_a_guess_by_place(tmp_path: Path) -> None:
    data = CtData(debug())
    baseline = atlas_dice(data, len(data.plan.labels))
    assert 0.3 < baseline < 0.8  # places alone tell something: a baseline that means something
    made = train("medical.ct", recipe="debug", runs=str(tmp_path), alias="none")
    figures = json.loads((Path(made["run"]) / "report.json").read_text())["figures"]
    assert figures["dice"]["value"] > baseline + 0.15
    for organ in ("Spine", "Liver", "RightKidney", "LeftKidney"):
        assert figures[f"dice {organ}"]["value"] == pytest.approx(0.92, abs=0.1)
