"""Voxels keep their place in the patient, whichever way they are stored, turned or resampled."""

from __future__ import annotations

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import DataError
from verticals.medical.volume import Axes, Grid, Volume, resampled, resampled_labels, to_ras

ALL_AXES = [Axes(order, flips) for order in permutations((0, 1, 2)) for flips in product((False, True), repeat=3)]


def oblique(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], *, shear: float = 0.0
) -> NDArray[np.float64]:
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rx @ ry @ rz * spacing
    affine[:3, 2] += affine[:3, 1] / spacing[1] * spacing[2] * shear
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine


def ball(grid: Grid, centre: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    return np.linalg.norm(grid.world(index) - centre, axis=-1) < radius


@pytest.mark.parametrize("axes", ALL_AXES, ids=str)
def test_turning_moves_no_voxel(axes: Axes) -> None:
    grid = Grid((5, 6, 7), oblique((0.1, -0.2, 0.15), (1.0, 1.5, 2.0)))
    array = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    turned = Volume(array, grid).turned(axes)
    for value in (0, 17, 100, 209):
        before = grid.world(np.argwhere(array == value)[0])
        after = turned.grid.world(np.argwhere(turned.array == value)[0])
        assert after == pytest.approx(before, abs=1e-9)
    assert (axes.back(turned.array) == array).all()
    straight = to_ras(turned.grid)
    assert turned.turned(straight).grid.same_as(grid.turned(to_ras(grid)))


@pytest.mark.parametrize("axes", ALL_AXES[::5], ids=str)
def test_ras_is_nibabels(axes: Axes) -> None:
    grid = Grid((5, 6, 7), oblique((0.1, -0.2, 0.15), (1.0, 1.5, 2.0))).turned(axes)
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.zeros(grid.shape, np.int16), grid.affine))
    assert grid.turned(to_ras(grid)).affine == pytest.approx(theirs.affine)


@given(
    angles=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    shear=st.floats(-0.5, 0.5),
    spacing=st.tuples(*[st.floats(0.7, 2.5)] * 3),
)
@settings(max_examples=12, deadline=None)
def test_a_ball_comes_back_through_an_orthogonal_grid(
    angles: tuple[float, float, float], shear: float, spacing: tuple[float, float, float]
) -> None:
    grid = Grid((36, 34, 32), oblique(angles, spacing, shear=shear))
    centre = grid.world(np.array([17.0, 16.0, 15.0]))
    labels = Volume(np.where(ball(grid, centre, 9.0), 3, 0).astype(np.uint8), grid)
    between = resampled_labels(labels, grid.at((1.1, 1.3, 1.6)))
    assert between.grid.is_orthogonal
    back = resampled_labels(between, grid)
    half = float(np.linalg.norm(grid.spacing_mm)) / 2
    assert np.linalg.norm(between.centroid_mm(3) - labels.centroid_mm(3)) < half
    assert np.linalg.norm(back.centroid_mm(3) - labels.centroid_mm(3)) < half
    same = 2 * ((back.array == 3) & (labels.array == 3)).sum() / ((back.array == 3).sum() + (labels.array == 3).sum())
    assert same > 0.85


def test_the_orthogonal_grid_holds_all_edges_of_a_tilted_one() -> None:
    grid = Grid((20, 22, 24), oblique((0, 0, 0), (1.0, 1.0, 2.0), shear=0.4))
    made = grid.at((1.0, 1.0, 2.0))
    assert not grid.is_orthogonal
    ends = made.index(grid.world(np.array([[0, 0, 0], [19, 21, 23], [0, 21, 0], [19, 0, 23]])))
    assert (ends > -0.51).all()
    assert (ends < np.array(made.shape) - 0.49).all()


def test_interpolation_is_linear_in_patient_space() -> None:
    """Hounsfield units that are a plane in mm are the same plane on any grid."""
    grid = Grid((30, 28, 26), oblique((0.2, 0.1, -0.3), (1.0, 1.4, 2.1)))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    slope = np.array([4.0, -3.0, 5.0])
    volume = Volume(np.rint(grid.world(index) @ slope).astype(np.int16), grid)
    target = Grid((14, 13, 12), oblique((-0.1, 0.05, 0.2), (0.9, 1.1, 1.3)))
    moved = target.affine.copy()
    moved[:3, 3] += grid.world(np.array([15, 14, 13])) - target.world(np.array([7, 6, 6]))
    target = Grid(target.shape, moved)
    made = resampled(volume, target)
    there = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape), indexing="ij"), -1)
    assert made.array.dtype == np.int16
    assert np.abs(made.array - target.world(there) @ slope).max() < 2


def test_labels_are_those_of_each_masks_own_interpolation() -> None:
    """The oracle: every label's mask resampled by scipy, and the largest of them."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(4, 20, 18, 16)), (0, 2, 2, 2))
    labels = smooth.argmax(0).astype(np.uint8)
    grid = Grid((20, 18, 16), np.diag([2.0, 2.0, 3.0, 1.0]))
    target = Grid((30, 30, 28), np.diag([1.2, 1.1, 1.5, 1.0]))
    made = resampled_labels(Volume(labels, grid), target).array
    matrix = np.linalg.inv(grid.affine) @ target.affine
    masks = np.stack(
        [
            ndimage.affine_transform(
                (labels == k).astype(np.float32), matrix[:3, :3], matrix[:3, 3], target.shape, order=1, mode="nearest"
            )
            for k in range(4)
        ]
    )
    clear = np.sort(masks, axis=0)[-1] - np.sort(masks, axis=0)[-2] > 1e-4
    assert clear.mean() > 0.9
    assert (made == masks.argmax(0))[clear].all()


def test_a_centroid_is_the_mean_place() -> None:
    grid = Grid((12, 13, 14), oblique((0.2, 0.1, -0.3), (1.0, 1.4, 2.1)))
    array = np.zeros(grid.shape, np.uint8)
    array[2:5, 3:4, 6:9] = 2
    index = np.argwhere(array == 2)
    assert Volume(array, grid).centroid_mm(2) == pytest.approx(grid.world(index).mean(0))
    assert np.isnan(Volume(array, grid).centroid_mm(1)).all()


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.full((4, 4), np.nan), "no numbers"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "greater than 0"),
        (np.array([[1, 1, 0, 0], [0, 0.01, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "one plane"),
    ],
)
def test_an_impossible_affine_is_refused(affine: NDArray[np.float64], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Grid((4, 4, 4), affine)


def test_a_volume_has_its_grids_shape() -> None:
    with pytest.raises(DataError, match="the array is"):
        Volume(np.zeros((2, 3, 4), np.int16), Grid((2, 3, 5), np.eye(4)))
