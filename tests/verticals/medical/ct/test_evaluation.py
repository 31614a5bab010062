"""Figures against MONAI's metrics, what does not exist, and means over organs and scans."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import HausdorffDistanceMetric
from monai.metrics.meandice import compute_dice
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import DataError
from verticals.medical.ct.data import CtData
from verticals.medical.ct.dataset import Case
from verticals.medical.ct.evaluation import MOST_VOXELS, TOLERANCE_MM, Evaluation, _thinned, compared, evaluate
from verticals.medical.ct.predictor import Segmentation
from verticals.medical.labels import structures
from verticals.medical.volume import Grid, Volume

SPACING = (2.0, 1.5, 3.0)
ORGANS = {"background": 0, "Liver": 1, "Spleen": 2}
GRID = Grid((24, 26, 20), np.diag([*SPACING, 1.0]))


def ball(centre: tuple[float, float, float], radius: float, label: int = 1) -> Volume:
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1) * SPACING
    inside = np.linalg.norm(index - np.array(centre), axis=-1) < radius
    return Volume((label * inside).astype(np.uint8), GRID)


PAIRS = [
    (ball((24, 20, 30), 12), ball((24, 20, 30), 12)),
    (ball((24, 20, 30), 12), ball((26, 19, 33), 11)),
    (ball((14, 14, 20), 8), ball((30, 22, 36), 9)),
    (ball((0, 0, 0), 12), ball((2, 3, 4), 14)),
]


def one_hot(volume: Volume) -> torch.Tensor:
    return torch.from_numpy(np.stack([volume.array == 0, volume.array == 1]))[None].float()


@pytest.mark.parametrize(("mask", "drawn"), PAIRS)
def test_dice_is_monai_s(mask: Volume, drawn: Volume) -> None:
    theirs = compute_dice(one_hot(mask), one_hot(drawn), include_background=False)
    assert compared(mask, drawn, 1)["dice"] == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.filterwarnings("ignore:monai:FutureWarning")  # its own use of what it has deprecated
@pytest.mark.parametrize(("mask", "drawn"), PAIRS)
def test_hd95_is_near_monai_s(mask: Volume, drawn: Volume) -> None:
    """MONAI's surface is of voxels' centres, unweighted; ours of surface elements by area: they differ below a voxel."""
    metric = HausdorffDistanceMetric(include_background=False, percentile=95)
    metric(one_hot(mask), one_hot(drawn), spacing=SPACING)
    theirs = float(metric.aggregate())  # type: ignore[arg-type]
    assert compared(mask, drawn, 1)["hd95_mm"] == pytest.approx(theirs, abs=max(SPACING))


def surface(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n, 3] mm of voxels at the mask's border."""
    padded = np.pad(mask, 1)
    border = padded & ~ndimage.binary_erosion(padded)
    return (np.argwhere(border) - 1) * SPACING


@pytest.mark.parametrize(("mask", "drawn"), PAIRS)
def test_surface_dice_is_near_a_plain_count(mask: Volume, drawn: Volume) -> None:
    one, other = surface(mask.array == 1), surface(drawn.array == 1)
    apart = np.linalg.norm(one[:, None] - other[None], axis=-1)
    close = (apart.min(1) <= TOLERANCE_MM).sum() + (apart.min(0) <= TOLERANCE_MM).sum()
    expected = close / (len(one) + len(other))
    assert compared(mask, drawn, 1)["surface_dice"] == pytest.approx(expected, abs=0.12)


def test_equal_masks_are_perfect_and_a_shift_by_one_voxel_is_one_voxel() -> None:
    mask = PAIRS[0][0]
    assert compared(mask, mask, 1) == {"dice": 1.0, "surface_dice": 1.0, "hd95_mm": 0.0}
    moved = Volume(np.roll(mask.array, 1, axis=2), GRID)
    found = compared(moved, mask, 1)
    assert found["hd95_mm"] == pytest.approx(SPACING[2], abs=0.5)
    assert found["surface_dice"] == 1.0


def test_what_nobody_has_does_not_exist_and_what_one_has_is_worst() -> None:
    empty = Volume(np.zeros(GRID.shape, np.uint8), GRID)
    assert all(math.isnan(value) for value in compared(empty, empty, 1).values())
    diagonal = float(np.linalg.norm(np.array(SPACING) * GRID.shape))
    for pair in ((empty, PAIRS[0][0]), (PAIRS[0][0], empty)):
        assert compared(*pair, 1) == {"dice": 0.0, "surface_dice": 0.0, "hd95_mm": pytest.approx(diagonal)}


class Answers:
    """A predictor that answers with masks that were laid down."""

    structures = structures(ORGANS)
    plan = SimpleNamespace(labels=ORGANS)

    def __init__(self, masks: list[Volume]) -> None:
        self.masks = iter(masks)

    def __call__(self, scans: list[Volume]) -> list[Segmentation]:
        return [Segmentation(next(self.masks), 1, 0, 0.0) for _ in scans]


class Drawn:
    """A case with its mask in memory."""

    def __init__(self, name: str, mask: Volume, *, missing: tuple[str, ...] = ()) -> None:
        self.case = Case(name, None, None, ("background", "Liver", "Spleen"), missing)  # type: ignore[arg-type]
        self.name, self.missing, self.mask = name, missing, mask

    def read(self) -> tuple[Volume, Volume]:
        return Volume(np.zeros(GRID.shape, np.int16), GRID), self.mask


class Cases:
    def __init__(self, *cases: Drawn, labels: dict[str, int] = ORGANS) -> None:
        self.cases, self.dataset = cases, SimpleNamespace(labels=labels)

    def samples(self, split: str) -> tuple[Drawn, ...]:
        assert split == "test"
        return self.cases


def both(liver: Volume, spleen: Volume | None = None) -> Volume:
    array = liver.array.copy()
    if spleen is not None:
        array[spleen.array > 0] = 2
    return Volume(array, GRID)


def evaluated() -> tuple[Evaluation, list[Volume]]:
    liver, other = PAIRS[1]
    spleen = ball((38, 30, 45), 7)
    masks = [both(liver, spleen), both(other), both(liver)]
    cases = Cases(
        Drawn("whole", both(other, spleen)),
        Drawn("no spleen there", both(other)),
        Drawn("spleen not drawn", both(other), missing=("Spleen",)),
    )
    data: CtData = cases  # type: ignore[assignment]
    return evaluate(Answers(masks), data, "test"), masks  # type: ignore[arg-type]


def test_means_leave_out_what_does_not_exist() -> None:
    evaluation, _ = evaluated()
    scores = evaluation.scores
    liver = compared(*PAIRS[1], 1)["dice"]
    assert scores["dice Liver"] == pytest.approx([liver, 1.0, liver], abs=0.02)
    assert scores["dice Spleen"][0] == 1.0
    assert np.isnan(scores["dice Spleen"][1:]).all()  # neither has it; nobody drew it
    assert scores["dice"] == pytest.approx([(scores["dice Liver"][0] + 1) / 2, *scores["dice Liver"][1:]])
    figures = evaluation.record()["figures"]
    assert figures["dice"]["value"] == pytest.approx(np.mean(scores["dice"]))
    assert figures["dice Spleen"]["value"] == 1.0
    assert next(iter(scores)) == "dice"
    assert evaluation.record()["cases"]["dice Spleen"] == [1.0, None, None]


def test_organs_of_another_data_set_are_found_by_name() -> None:
    liver, spleen = PAIRS[1][0], ball((38, 30, 45), 7)
    mask = both(liver, spleen)
    numbers = np.array([0, 3, 1], np.uint8)
    drawn = Volume(numbers[mask.array], GRID)
    data: CtData = Cases(Drawn("a", drawn), labels={"background": 0, "Spleen": 1, "Aorta": 2, "Liver": 3})  # type: ignore[assignment]
    scores = evaluate(Answers([mask]), data, "test").scores  # type: ignore[arg-type]
    assert (scores["dice Liver"], scores["dice Spleen"]) == ([1.0], [1.0])
    data = Cases(Drawn("a", both(liver)), labels={"background": 0, "Liver": 1})  # type: ignore[assignment]
    scores = evaluate(Answers([mask]), data, "test").scores  # type: ignore[arg-type]
    assert scores["dice Liver"] == scores["dice"] == [1.0]
    assert np.isnan(scores["dice Spleen"]).all()  # nobody drew it there
    data = Cases(Drawn("a", both(liver)), labels={"background": 0, "Lung": 1})  # type: ignore[assignment]
    with pytest.raises(DataError, match="labels background, Lung, the model background, Liver, Spleen: not one organ"):
        evaluate(Answers([mask]), data, "test")  # type: ignore[arg-type]


def test_answers_hold_places_volumes_and_every_voxel() -> None:
    evaluation, masks = evaluated()
    answers = evaluation.answers
    assert answers["centroid_mm"].shape == (3, 6)
    np.testing.assert_allclose(answers["centroid_mm"][0, :3], masks[0].centroid_mm(1))
    assert np.isnan(answers["centroid_mm"][1, 3:]).all()
    assert answers["volume_ml"][0].tolist() == [
        pytest.approx((masks[0].array == k).sum() * GRID.voxel_ml) for k in (1, 2)
    ]
    np.testing.assert_array_equal(answers["mask"], np.concatenate([mask.array.ravel() for mask in masks]))
    assert [mask.shape for mask in evaluation.pictures["mask"]] == [GRID.shape] * 3


def test_large_masks_are_thinned_about_their_middle() -> None:
    mask = np.zeros((300, 260, 201), np.uint8)
    mask[10:150, 100:200, 40:120] = 3
    thin = _thinned(mask)
    assert thin.size <= MOST_VOXELS < mask.size
    mirrored = _thinned(mask[::-1])
    there = (mirrored > 0) | (thin[::-1] > 0)
    assert (mirrored == thin[::-1])[there].mean() > 0.95
    small = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(_thinned(small), small)
