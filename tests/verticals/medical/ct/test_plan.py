from __future__ import annotations

import os
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import ConfigError, DataError
from verticals.medical.ct.dataset import Case, Dataset
from verticals.medical.ct.plan import Fingerprint, Plan, make_plan
from verticals.medical.ct.synthetic import LABELS
from verticals.medical.nifti import write_nifti
from verticals.medical.volume import Axes, Grid, Volume

NAMES = ("background", "A", "B")


def measured(
    *spacings: tuple[float, float, float],
    shape: tuple[int, int, int] = (128, 128, 128),
    labels: tuple[str, ...] = NAMES,
) -> Fingerprint:
    return Fingerprint(
        labels={name: number for number, name in enumerate(labels)},
        spacing_mm=spacings,
        shape=(shape,) * len(spacings),
        hu_low=-100,
        hu_high=300,
        hu_mean=50,
        hu_std=80,
        foreground_voxels={},
        foreground_ml={},
        num_present={},
    )


def case_of(folder: Path, name: str, hu: np.ndarray, labels: np.ndarray, affine: np.ndarray, axes: Axes) -> Case:
    paths = folder / f"{name}_0000.nii.gz", folder / f"{name}.nii.gz"
    for path, array in zip(paths, (hu.astype(np.int16), labels.astype(np.uint8)), strict=True):
        turned = Volume(array, Grid(hu.shape, affine)).turned(axes)
        write_nifti(Volume(np.ascontiguousarray(turned.array), turned.grid), path)
    return Case(name, *paths, NAMES)


def test_intensities_equal_numpys_over_the_foreground(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape, affine = (12, 14, 16), np.diag([1.0, 2.0, 3.0, 1.0])
    hu, labels = rng.normal(60, 90, shape).round(), rng.integers(0, 3, shape)
    found = Fingerprint.of([case_of(tmp_path, "one", hu, labels, affine, Axes((2, 0, 1), (True, False, True)))])
    inside = hu[labels > 0]
    assert found.hu_mean == pytest.approx(inside.mean())
    assert found.hu_std == pytest.approx(inside.std())
    assert found.hu_low == pytest.approx(np.percentile(inside, 0.5, method="inverted_cdf"))
    assert found.hu_high == pytest.approx(np.percentile(inside, 99.5, method="inverted_cdf"))
    assert found.foreground_voxels == {"A": (labels == 1).sum(), "B": (labels == 2).sum()}
    assert found.foreground_ml["B"] == pytest.approx((labels == 2).sum() * 6 / 1000)
    assert found.spacing_mm == (pytest.approx((1, 2, 3)),)  # R, A, S, however it is stored
    assert found.shape == (shape,)


def test_each_case_counts_the_same_whatever_its_size(tmp_path: Path) -> None:
    affine, straight = np.eye(4), Axes((0, 1, 2), (False, False, False))
    small, large = np.full((4, 4, 4), 100), np.full((20, 20, 20), 300)
    cases = []
    for hu in (small, large):
        labels = np.ones_like(hu)
        labels[0, 0, 0] = 2 if hu is large else 1
        cases.append(case_of(tmp_path, str(hu[0, 0, 0]), hu, labels, affine, straight))
    found = Fingerprint.of(cases)
    assert found.hu_mean == pytest.approx(200)
    assert found.hu_std == pytest.approx(100)
    assert found.num_present == {"A": 2, "B": 1}
    assert found.foreground_ml["B"] == pytest.approx(0.001), "of the cases that have it"


def test_an_organ_is_one_piece_where_the_masks_show_it_so(tmp_path: Path) -> None:
    hu, whole, parted = np.zeros((12, 12, 12)), np.zeros((12, 12, 12), int), np.zeros((12, 12, 12), int)
    whole[1:4, 1:4, 1:4] = 1
    whole[6, 6, 6] = 1  # a stray voxel, 1 of 28
    whole[8:11, 8:11, 8:11] = 2
    parted[:] = whole
    parted[8:11, 1:4, 1:4] = 2
    axes, affine = Axes((0, 1, 2), (False, False, False)), np.diag([2.0, 2.0, 2.0, 1.0])
    cases = [case_of(tmp_path, str(k), hu, labels, affine, axes) for k, labels in enumerate([whole] * 9 + [parted])]
    found = Fingerprint.of(cases)
    assert (found.num_present, found.num_whole) == ({"A": 10, "B": 10}, {"A": 10, "B": 9})
    assert make_plan(found, patch_voxels=16**3, patch_size=(8, 8, 8)).one_piece == ("A",)
    assert make_plan(Fingerprint.of(cases[:9]), patch_voxels=16**3, patch_size=(8, 8, 8)).one_piece == ("A", "B")


def test_organs_that_no_training_case_has_are_refused(tmp_path: Path) -> None:
    empty = np.zeros((4, 4, 4))
    case = case_of(tmp_path, "empty", empty, empty, np.eye(4), Axes((0, 1, 2), (False, False, False)))
    with pytest.raises(DataError, match=r"no training case has a voxel of A, B, so .*: |leave it out"):
        Fingerprint.of([case])
    case = case_of(tmp_path, "one", empty, empty + 2, np.eye(4), Axes((0, 1, 2), (False, False, False)))
    with pytest.raises(DataError, match="no training case has a voxel of A, so that nothing could be learned"):
        Fingerprint.of([case])
    with pytest.raises(DataError, match="no training case to measure"):
        Fingerprint.of([])


def test_spacing_is_the_median() -> None:
    assert make_plan(measured((1, 1, 2), (1, 1, 3), (2, 2, 4))).spacing_mm == (1, 1, 3)
    assert make_plan(measured((1, 1, 2)), spacing_mm=(2, 2, 2)).spacing_mm == (2, 2, 2)


def test_an_axis_of_low_resolution_takes_the_tenth_percentile() -> None:
    spacings = [(1.0, 1.0, float(z)) for z in range(2, 13)]
    plan = make_plan(measured(*spacings, shape=(512, 512, 60)))
    assert plan.spacing_mm == (1, 1, pytest.approx(np.percentile(np.arange(2, 13), 10)))
    assert "along S, of low resolution" in plan.text
    many_slices = make_plan(measured(*spacings, shape=(512, 512, 500)))  # thick slices, but as many as voxels across
    assert many_slices.spacing_mm == (1, 1, 7)


def test_thick_slices_are_pooled_later() -> None:
    plan = make_plan(measured((0.8, 0.8, 5.0), shape=(512, 512, 60)))
    assert plan.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert plan.patch_size[2] < plan.patch_size[0] / 4


def test_even_voxels_are_pooled_alike_to_maps_of_four() -> None:
    plan = make_plan(measured((4, 4, 4)), patch_voxels=64**3)
    assert plan.patch_size == (64, 64, 64)
    assert plan.strides == ((1, 1, 1), *[(2, 2, 2)] * 4)
    assert plan.widths == (32, 64, 128, 256, 320)
    assert plan.batch_size == 2


def test_voxels_get_coarser_until_a_patch_shows_enough() -> None:
    found = measured((0.8, 0.8, 2.5), shape=(512, 512, 160))
    fine = make_plan(found, patch_voxels=48**3)
    coarse = make_plan(found, patch_voxels=48**3, least_cover=0.03)
    extent = np.array([512, 512, 160]) * (0.8, 0.8, 2.5)
    covered = [np.prod(np.array(plan.patch_size) * plan.spacing_mm) / extent.prod() for plan in (fine, coarse)]
    assert fine.spacing_mm == (0.8, 0.8, 2.5)
    assert covered[0] < 0.01
    assert 0.03 <= covered[1] < 0.04
    assert max(coarse.spacing_mm) < 2.1 * min(coarse.spacing_mm), "the fine axes first"
    assert "coarser until a patch holds 3%" in coarse.why["spacing_mm"]
    assert prod(coarse.patch_size) <= 48**3
    assert make_plan(found, patch_voxels=48**3, least_cover=0.03, spacing_mm=(1, 1, 1)).spacing_mm == (1, 1, 1)


def test_a_batch_holds_no_more_than_a_twentieth_of_the_voxels() -> None:
    spacings = [(1.0, 1.0, 1.0)] * 60
    few = make_plan(measured(*spacings[:2]), patch_voxels=32**3, batch_voxels=100 * 32**3)
    many = make_plan(measured(*spacings), patch_voxels=32**3, batch_voxels=100 * 32**3)
    assert few.batch_size == round(0.05 * 2 * 64)
    assert many.batch_size == 100


@given(
    st.tuples(*[st.floats(0.3, 8)] * 3),
    st.tuples(*[st.integers(16, 600)] * 3),
    st.integers(32**3, 160**3),
)
@example((2.0, 2.0, 1.0), (32, 171, 16), 32**3)  # the finest axis is too short to be pooled by itself
def test_any_plan_keeps_to_its_budget_and_divides(
    spacing: tuple[float, float, float], shape: tuple[int, int, int], budget: int
) -> None:
    plan = make_plan(measured(spacing, shape=shape), patch_voxels=budget)
    assert prod(plan.patch_size) <= budget
    assert plan.batch_size >= 2
    size = np.array(plan.patch_size)
    current = np.array(plan.spacing_mm)
    for stride in plan.strides:
        assert not (size % stride).any()
        pooled = np.array(stride) == 2
        assert not pooled.any() or current[pooled].max() < 2 * current[pooled].min()
        size = size // stride
        current = current * stride
    assert (size[np.prod(plan.strides, axis=0) > 1] >= 4).all()
    assert (np.array(plan.patch_size) < np.array(shape) * 1.01 + np.prod(plan.strides, axis=0)).all()


@pytest.mark.parametrize(
    ("labels", "sided"),
    [
        (("LeftParotid", "RightParotid"), True),
        (("kidney_left",), True),
        (("Parotid_L",), True),
        (("KidneyR",), True),
        (("vertebrae_L1", "vertebrae_T12"), False),
        (("Cleft", "Bright", "Colorectal", "LAD"), False),
        (("Liver", "Spleen"), False),
    ],
)
def test_labels_with_a_side_forbid_mirroring_across_the_body(labels: tuple[str, ...], sided: bool) -> None:
    plan = make_plan(measured((2, 2, 2), labels=("background", *labels)))
    assert plan.mirror_axes == ((1, 2) if sided else (0, 1, 2))


def test_normalized_clips_and_scales() -> None:
    plan = make_plan(measured((2, 2, 2)))
    scaled = plan.normalized(np.array([-1024, -100, 50, 130, 3000], np.int16))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [-150 / 80, -150 / 80, 0, 1, 250 / 80], rtol=1e-6)
    seen = make_plan(measured((2, 2, 2)), windows_hu=((-30, 130),))
    assert seen.windows == ((-1, 1),)
    assert "-30 to 130" in seen.text


def test_a_plan_is_readable_and_reads_back(scans: Path) -> None:
    dataset = Dataset.open(scans)
    plan = make_plan(Fingerprint.of(dataset.cases("train")), patch_voxels=16**3)
    assert Plan.from_yaml(plan.to_yaml()) == plan
    lines = plan.text.splitlines()
    assert 6 <= len(lines) <= 12
    assert lines[0].startswith("spacing_mm")
    assert "median of 4 cases" in lines[0]
    assert "R-L" in plan.text
    assert plan.labels == LABELS
    assert plan.num_classes == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": (33, 32, 32)}, r"multiple of \[16, 16, 16\]"),
        ({"widths": (8, 16)}, "one stride and one width"),
        ({"hu_low": 400}, "hu_low below hu_high"),
        ({"spacing_mm": (0, 1, 1)}, "spacings have to be above 0"),
        ({"labels": {"background": 0, "A": 2}}, "numbered from 0 on"),
        ({"hu_std": 0}, "greater than 0"),
        ({"depth": 3}, "depth"),
        ({"one_piece": ("C",)}, "one_piece names C"),
        ({"windows_hu": ((240, -160),)}, "a lower and a higher Hounsfield unit"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    record = make_plan(measured((2, 2, 2))).model_dump() | {"patch_size": (32, 32, 32)}
    Plan.from_record(record)
    with pytest.raises(ConfigError, match=message):
        Plan.from_record(record | changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_voxels": 100}, "allowed are 4096 voxels"),
        ({"max_levels": 1}, "2 levels"),
        ({"patch_size": (4, 4, 4)}, "cannot be pooled; allowed are 8 voxels"),
    ],
)
def test_a_budget_without_a_network_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(measured((2, 2, 2)), **options)  # type: ignore[arg-type]


def test_the_plan_of_openkbp() -> None:
    root = os.environ.get("VERTICALS_DATA")
    if not root or not (Path(root) / "ct" / "Dataset001_OpenKBP").is_dir():
        pytest.skip("VERTICALS_DATA does not name the evaluation data")
    cases = Dataset.open(Path(root) / "ct" / "Dataset001_OpenKBP").cases("train")[::4]
    plan = make_plan(Fingerprint.of(cases))
    assert plan.spacing_mm == pytest.approx((3.9, 3.9, 2.5), abs=0.4)
    assert all(64 <= size <= 128 for size in plan.patch_size)
    assert plan.mirror_axes == (1, 2)
    assert plan.hu_low < 0 < 1000 < plan.hu_high
