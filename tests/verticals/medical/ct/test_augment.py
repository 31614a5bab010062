from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import ConfigError
from verticals.medical.ct.augment import AugmentConfig, PatchAugment
from verticals.medical.ct.plan import Plan

OFF = {name: 0.0 for name in ("affine", "mirror", "noise", "smoothing", "brightness", "gamma", "low_resolution")}
SHAPE = (24, 20, 28)


def plan(spacing_mm: tuple[float, float, float] = (2, 2, 2), mirror_axes: tuple[int, ...] = (1, 2)) -> Plan:
    return Plan(
        spacing_mm=spacing_mm,
        patch_size=(8, 8, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        widths=(4, 8),
        batch_size=2,
        hu_low=-200,
        hu_high=500,
        hu_mean=50,
        hu_std=80,
        labels={"background": 0, "LeftA": 1, "RightB": 2},
        mirror_axes=mirror_axes,
    )


def patch(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return plan().normalized(rng.normal(0, 150, SHAPE)), (rng.random(SHAPE) > 0.7).astype(np.uint8) * 2


def augment(**shares: float) -> PatchAugment:
    return PatchAugment(AugmentConfig.from_record(OFF | shares), plan())


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_on_changes_nothing() -> None:
    image, labels = patch()
    changed, kept = augment()(image, labels, generator(0))
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(kept, labels)


def test_all_on_keeps_shape_type_values_of_labels_and_the_input() -> None:
    image, labels = patch()
    before = image.copy(), labels.copy()
    changed, kept = augment(**{name: 1.0 for name in OFF})(image, labels, generator(1))
    assert changed.shape == kept.shape == SHAPE
    assert changed.dtype == np.float32
    assert kept.dtype == np.uint8
    assert type(changed) is np.ndarray
    assert np.isfinite(changed).all()
    assert set(np.unique(kept)) <= {0, 2}
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_a_generator_decides_everything_on_any_thread() -> None:
    image, labels = patch()
    change = PatchAugment(AugmentConfig(), plan())
    alone = [change(image, labels, generator(seed)) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: change(image, labels, generator(seed)), range(16)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    assert len({changed.tobytes() for changed, _ in alone}) > 10


@pytest.mark.parametrize("seed", range(12))
def test_mirroring_keeps_left_and_right(seed: int) -> None:
    image, labels = patch()
    changed, kept = augment(mirror=0.5)(image, labels, generator(seed))
    allowed = [(1, a, b) for a in (1, -1) for b in (1, -1)]
    matches = [turn for turn in allowed if np.array_equal(changed, image[:: turn[0], :: turn[1], :: turn[2]])]
    assert len(matches) == 1
    x, y, z = matches[0]
    np.testing.assert_array_equal(kept, labels[::x, ::y, ::z])


def test_every_allowed_axis_is_mirrored_at_full_share() -> None:
    image, labels = patch()
    config = AugmentConfig.from_record(OFF | {"mirror": 1.0})
    changed, kept = PatchAugment(config, plan(mirror_axes=(0, 1, 2)))(image, labels, generator(0))
    np.testing.assert_array_equal(changed, image[::-1, ::-1, ::-1])
    np.testing.assert_array_equal(kept, labels[::-1, ::-1, ::-1])
    unchanged, _ = PatchAugment(config, plan(mirror_axes=()))(image, labels, generator(0))
    np.testing.assert_array_equal(unchanged, image)


@pytest.mark.parametrize("seed", range(5))
def test_turning_is_rigid_in_millimetres(seed: int) -> None:
    """A ball in mm stays that ball, with spacings that differ threefold; image and labels move alike."""
    spacing, shape = (1.0, 1.5, 3.0), (60, 40, 20)
    middle = (np.array(shape) - 1) / 2
    away = [(np.arange(length) - middle[axis]) * spacing[axis] for axis, length in enumerate(shape)]
    distance = np.sqrt(away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2)
    labels = (distance < 18).astype(np.uint8)
    image = np.where(labels > 0, 3.0, -3.125).astype(np.float32)
    settings = OFF | {"affine": 1.0, "scaling": 0.0, "rotation_degrees": 40.0}
    changed, kept = PatchAugment(AugmentConfig.from_record(settings), plan(spacing))(image, labels, generator(seed))
    assert (kept != labels).mean() < 0.03  # the ball's surface only
    assert int(kept.sum()) == pytest.approx(int(labels.sum()), rel=0.02)
    assert ((changed > 0) != (kept > 0)).mean() < 0.02


def test_scaling_changes_volume_by_the_cube() -> None:
    labels = (np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) < 13).astype(np.uint8)
    image = labels.astype(np.float32)
    settings = OFF | {"affine": 1.0, "scaling": 0.2, "rotation_degrees": 0.0}
    change = PatchAugment(AugmentConfig.from_record(settings), plan())
    sizes = [int(change(image, labels, generator(seed))[1].sum()) / int(labels.sum()) for seed in range(30)]
    assert 0.8**3 * 0.97 < min(sizes) < 0.65
    assert 1.4 < max(sizes) < 1.2**3 * 1.03


def test_air_and_background_come_in_from_outside() -> None:
    image, labels = np.full((30, 30, 30), 2.0, np.float32), np.ones((30, 30, 30), np.uint8)
    settings = OFF | {"affine": 1.0, "scaling": 0.0, "rotation_degrees": 45.0}
    changed, kept = PatchAugment(AugmentConfig.from_record(settings), plan())(image, labels, generator(2))
    air = (-200 - 50) / 80
    assert kept.min() == 0
    assert changed.min() == pytest.approx(air, abs=1e-5)
    assert changed[15, 15, 15] == pytest.approx(2.0, abs=1e-5)


def test_noise_smoothing_brightness_and_resolution_do_what_they_are_called() -> None:
    image, labels = patch()
    differences = [augment(noise=1.0)(image, labels, generator(seed))[0] - image for seed in range(20)]
    stds = [float(one.std()) for one in differences]
    assert min(stds) > 0
    assert max(stds) < 0.11
    assert abs(float(np.mean(differences))) < 0.005
    smooth = augment(smoothing=1.0)(image, labels, generator(3))[0]
    assert smooth.std() < image.std()
    assert smooth.mean() == pytest.approx(image.mean(), abs=0.02)
    bright = augment(brightness=1.0)(image, labels, generator(3))[0]
    ratio = (bright / image)[np.abs(image) > 0.1]
    assert ratio.std() < 1e-4
    assert 0.75 <= ratio.mean() <= 1.25
    bent = augment(gamma=1.0)(image, labels, generator(3))[0]
    assert (bent.mean(), bent.std()) == (pytest.approx(image.mean(), abs=1e-3), pytest.approx(image.std(), rel=1e-3))
    assert np.array_equal(np.argsort(bent[:, 0, 0]), np.argsort(image[:, 0, 0]))
    coarse = augment(low_resolution=1.0)(image, labels, generator(3))[0]
    assert coarse.std() < image.std()


def test_labels_are_touched_by_space_alone() -> None:
    image, labels = patch()
    grey = {"noise": 1.0, "smoothing": 1.0, "brightness": 1.0, "gamma": 1.0, "low_resolution": 1.0}
    np.testing.assert_array_equal(augment(**grey)(image, labels, generator(1))[1], labels)


@pytest.mark.parametrize("setting", [{"noise": 1.5}, {"least_resolution": 0.0}, {"scaling": 1.0}, {"blur": 0.1}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        AugmentConfig.from_record(setting)
