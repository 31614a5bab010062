from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.errors import ConfigError, DataError
from verticals.medical.ct.cache import CaseCache, PreparedCase
from verticals.medical.ct.dataset import Dataset
from verticals.medical.ct.loader import Batch, VolumeDataLoader, cut
from verticals.medical.ct.plan import Fingerprint, Plan, make_plan

PLAN = Plan(
    spacing_mm=(2, 2, 2),
    patch_size=(8, 8, 8),
    strides=((1, 1, 1), (2, 2, 2)),
    widths=(4, 8),
    batch_size=2,
    hu_low=-200,
    hu_high=500,
    hu_mean=50,
    hu_std=80,
    labels={"background": 0, "A": 1, "B": 2},
)


def made(
    shape: tuple[int, int, int], *, seed: int = 0, organs: int = 2, known: tuple[bool, ...] = (True,) * 3
) -> PreparedCase:
    """A case whose voxels of HU say where they are, so that a patch can be found again."""
    rng = np.random.default_rng(seed)
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    labels = np.zeros(shape, np.uint8)
    for organ in range(1, organs + 1):
        labels[tuple(rng.integers(0, length) for length in shape)] = organ
    places = tuple(np.argwhere((labels == k) & (k > 0)).astype(np.int32) for k in range(3))
    return PreparedCase(f"case{seed}", image, labels, places, known)


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_has_the_shapes_and_types_that_it_promises() -> None:
    cases = [made((20, 22, 24), seed=1), made((9, 30, 12), seed=2, known=(True, False, True))]
    loader = VolumeDataLoader(cases, PLAN, batch_size=4, patch_size=(8, 10, 12), num_batches=3)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 3
    for batch in batches:
        assert batch.image.shape == (4, 1, 8, 10, 12)
        assert batch.image.dtype == torch.float32
        assert batch.target.shape == (4, 8, 10, 12)
        assert batch.target.dtype == torch.int64
        assert batch.known.shape == (4, 3)
    draw = loader.draw(0)
    for number, known in enumerate(torch.cat([batch.known for batch in batches])):
        assert tuple(known.tolist()) == cases[draw.case[number]].known


def test_patches_are_the_voxels_at_their_place_scaled_by_hand() -> None:
    cases = [made((20, 22, 24), seed=1), made((16, 30, 12), seed=2)]
    loader = VolumeDataLoader(cases, PLAN, batch_size=2, patch_size=(8, 8, 8), num_batches=6)
    draw = loader.draw(3)
    images = torch.cat([batch.image for batch in loader.epoch(3)])
    targets = torch.cat([batch.target for batch in loader.epoch(3)])
    for number, (place, (x, y, z)) in enumerate(zip(draw.case, draw.start, strict=True)):
        hu = cases[place].image[x : x + 8, y : y + 8, z : z + 8].astype(np.float64)
        np.testing.assert_allclose(images[number, 0], (np.minimum(np.maximum(hu, -200), 500) - 50) / 80, rtol=1e-6)
        np.testing.assert_array_equal(targets[number], cases[place].labels[x : x + 8, y : y + 8, z : z + 8])


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.integers(1, 16)] * 3),
    st.floats(0, 0.9),
    st.integers(0, 1000),
)
def test_every_voxel_is_a_candidate_in_each_round(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float, seed: int
) -> None:
    loader = VolumeDataLoader(
        [made((3, 3, 3)), made(shape)], PLAN, batch_size=2, patch_size=size, overlap_ratio=overlap
    )
    numbers, places = loader.tiles(np.random.default_rng(seed))
    seen = np.zeros(shape, int)
    for x, y, z in places[numbers == 1]:
        assert all(
            start == 0 or start + extent <= length or length < extent
            for start, extent, length in zip((x, y, z), size, shape, strict=True)
        )
        seen[max(x, 0) : x + size[0], max(y, 0) : y + size[1], max(z, 0) : z + size[2]] += 1
    assert seen.min() >= 1


def test_an_epoch_of_one_round_shows_every_voxel() -> None:
    case = made((33, 20, 27))
    loader = VolumeDataLoader([case], PLAN, batch_size=1, patch_size=(12, 12, 12), foreground=0, num_batches=60)
    count = len(loader.tiles(np.random.default_rng(0))[0])
    assert count <= 60
    seen = np.zeros(case.shape, bool)
    for x, y, z in loader.draw(0).start:
        seen[x : x + 12, y : y + 12, z : z + 12] = True
    assert seen.all()


def test_borders_of_tiles_move_from_epoch_to_epoch() -> None:
    loader = VolumeDataLoader([made((64, 64, 64))], PLAN, batch_size=1, patch_size=(16, 16, 16), foreground=0)
    first = {tuple(start) for start in loader.draw(0).start}
    second = {tuple(start) for start in loader.draw(1).start}
    assert len(first - second) > len(first) / 2


def test_neighbouring_tiles_overlap_by_the_ratio() -> None:
    loader = VolumeDataLoader([made((200, 8, 8))], PLAN, batch_size=1, patch_size=(20, 8, 8), overlap_ratio=0.3)
    _, places = loader.tiles(np.random.default_rng(5))
    steps = np.diff(np.unique(places[:, 0]))
    assert set(steps[1:-1]) == {14}
    assert steps.max() <= 14


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1), st.integers(1, 5), st.integers(0, 99))
def test_the_forced_share_holds_an_organ_and_is_spread_evenly(share: float, batch_size: int, epoch: int) -> None:
    cases = [made((20, 7, 30), seed=1), made((12, 12, 12), seed=2, organs=0), made((30, 18, 8), seed=3, organs=1)]
    loader = VolumeDataLoader(
        cases, PLAN, batch_size=batch_size, patch_size=(8, 8, 8), foreground=share, num_batches=20
    )
    draw = loader.draw(epoch)
    assert abs(draw.forced.sum() - share * len(draw.forced)) <= 1
    each = draw.forced.reshape(20, batch_size).sum(1)
    assert each.max() - each.min() <= 1
    for number in np.flatnonzero(draw.forced):
        assert cut(cases[draw.case[number]].labels, draw.start[number], (8, 8, 8), outside=0).any()


def test_forced_patches_take_cases_and_their_classes_in_turn() -> None:
    cases = [made((40, 40, 40), seed=seed) for seed in range(4)]
    loader = VolumeDataLoader(cases, PLAN, batch_size=4, patch_size=(8, 8, 8), foreground=1.0, num_batches=50)
    draw = loader.draw(0)
    assert set(Counter(draw.case.tolist()).values()) == {50}
    found: Counter[int] = Counter()
    for number, start in zip(draw.case, draw.start, strict=True):
        found.update(np.unique(cut(cases[number].labels, start, (8, 8, 8), outside=0)).tolist())
    assert found[1] > 60
    assert found[2] > 60


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_parts_make_up_the_global_batch(world_size: int, num_workers: int) -> None:
    def noisy(
        image: NDArray[np.float32], labels: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        return image + rng.standard_normal(image.shape, np.float32), labels

    cases = [made((20, 22, 24), seed=seed) for seed in range(3)]

    def loader(workers: int) -> VolumeDataLoader:
        return VolumeDataLoader(
            cases, PLAN, batch_size=6, patch_size=(8, 8, 8), num_batches=5, augment=noisy, seed=4, num_workers=workers
        )

    whole = list(loader(0).epoch(2))
    parts = [list(loader(num_workers).epoch(2, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        joined = Batch(*(torch.cat(tensors) for tensors in zip(*(part[step] for part in parts), strict=True)))
        assert equal(joined, batch)


def test_an_epoch_can_be_made_again_without_those_before() -> None:
    cases = [made((20, 22, 24), seed=seed) for seed in range(3)]
    one = VolumeDataLoader(cases, PLAN, batch_size=2, patch_size=(8, 8, 8), num_batches=4, seed=1)
    for epoch in range(3):
        before = list(one.epoch(epoch))
    fresh = VolumeDataLoader(cases, PLAN, batch_size=2, patch_size=(8, 8, 8), num_batches=4, seed=1)
    assert all(equal(a, b) for a, b in zip(before, fresh.epoch(2), strict=True))
    assert not all(equal(a, b) for a, b in zip(before, fresh.epoch(1), strict=True))
    other = VolumeDataLoader(cases, PLAN, batch_size=2, patch_size=(8, 8, 8), num_batches=4, seed=2)
    assert not all(equal(a, b) for a, b in zip(before, other.epoch(2), strict=True))


def test_a_patch_longer_than_its_case_is_filled_with_air_and_background() -> None:
    case = made((5, 9, 4), organs=2)
    loader = VolumeDataLoader([case], PLAN, batch_size=8, patch_size=(8, 8, 8), num_batches=4)
    draw = loader.draw(0)
    air = (-200 - 50) / 80
    for number, (image, target) in enumerate(
        pair for batch in loader.epoch(0) for pair in zip(batch.image[:, 0], batch.target, strict=True)
    ):
        x, y, z = (int(first) for first in draw.start[number])
        assert -3 <= x <= 0 <= y <= 1
        assert -4 <= z <= 0
        inside = torch.zeros(8, 8, 8, dtype=torch.bool)
        inside[-x : 5 - x, :, -z : 4 - z] = True
        assert (image[~inside] == air).all()
        assert (target[~inside] == 0).all()
        np.testing.assert_array_equal(target[inside].reshape(5, 8, 4), case.labels[:, y : y + 8])
    assert len({tuple(start) for start in draw.start}) > 5  # not always at the same place in the air


def test_cases_without_an_organ_give_tiles_only() -> None:
    loader = VolumeDataLoader([made((20, 20, 20), organs=0)], PLAN, batch_size=2, patch_size=(8, 8, 8), num_batches=3)
    assert not loader.draw(0).forced.any()


def test_threads_end_when_the_reader_stops_and_errors_come_through() -> None:
    def broken(*_: object) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        raise RuntimeError("on purpose")

    cases = [made((20, 22, 24))]
    loader = VolumeDataLoader(cases, PLAN, batch_size=2, patch_size=(8, 8, 8), num_workers=2)
    assert len(list(islice(loader.epoch(0), 3))) == 3
    failing = VolumeDataLoader(cases, PLAN, batch_size=2, patch_size=(8, 8, 8), num_workers=2, augment=broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        next(failing.epoch(0))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"overlap_ratio": 1.0}, "0 <= overlap_ratio < 1"),
        ({"foreground": 1.2}, "0 <= foreground <= 1"),
        ({"patch_size": (8, 0, 8)}, "sizes from 1 on"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"num_batches": 0}, "num_batches 0"),
        ({"num_workers": -1}, "num_workers -1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VolumeDataLoader([made((9, 9, 9))], PLAN, **({"batch_size": 2} | setting))  # type: ignore[arg-type]


def test_a_batch_that_ranks_cannot_share_and_no_cases_are_refused() -> None:
    loader = VolumeDataLoader([made((9, 9, 9))], PLAN, batch_size=3, patch_size=(8, 8, 8))
    with pytest.raises(ConfigError, match="batch_size 3 over 2 ranks.*multiple of 2"):
        next(loader.epoch(0, rank=0, world_size=2))
    with pytest.raises(ConfigError, match="rank 3; .*ranks count from 0"):
        next(loader.epoch(0, rank=3, world_size=3))
    with pytest.raises(DataError, match="no case to draw patches from"):
        VolumeDataLoader([], PLAN, batch_size=2)


def test_from_a_folder_to_batches(scans: Path) -> None:
    dataset = Dataset.open(scans)
    plan = make_plan(Fingerprint.of(dataset.cases("train")), patch_voxels=16**3)
    with CaseCache() as cache:
        loader = VolumeDataLoader(
            cache.prepared(dataset.cases("train"), plan),
            plan,
            batch_size=plan.batch_size,
            patch_size=plan.patch_size,
            num_batches=6,
            foreground=1.0,
        )
        batches = list(loader.epoch(0))
    assert all(batch.image.shape[2:] == plan.patch_size for batch in batches)
    assert all((batch.target.flatten(1) > 0).any(1).all() for batch in batches)
    inside = torch.cat([batch.image[:, 0][batch.target > 0] for batch in batches])
    assert abs(float(inside.mean())) < 1.5
    assert 0.2 < float(inside.std()) < 2
