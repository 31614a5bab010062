"""Tiles cover everything, and are MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices

from core.data.tiling import gaussian, starts, tiles
from core.errors import ConfigError

AXES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.floats(0, 0.9)), min_size=1, max_size=3)


@given(axes=AXES)
@settings(max_examples=60, deadline=None)
def test_every_place_is_covered_and_no_tile_sticks_out(axes: list[tuple[int, int, float]]) -> None:
    shape, size = [axis[0] for axis in axes], [axis[1] for axis in axes]
    covered = np.zeros(shape, int)
    for tile in tiles(shape, size, axes[0][2]):
        assert all(part.stop <= length for part, length in zip(tile, shape, strict=True))
        assert all(part.stop - part.start == min(a, b) for part, a, b in zip(tile, shape, size, strict=True))
        covered[tile] += 1
    assert covered.min() >= 1


def test_they_stand_where_monai_puts_them() -> None:
    shape, size, overlap = (130, 97, 64), (32, 48, 64), 0.3
    interval = [max(1, int(length * (1 - overlap))) for length in size]
    theirs = dense_patch_slices(shape, size, interval, return_slice=True)
    assert tiles(shape, size, overlap) == [tuple(tile) for tile in theirs]


def test_no_tile_comes_twice() -> None:
    found = tiles((100, 64), (32, 64), 0.5)
    assert len(found) == len(set((tile[0].start, tile[1].start) for tile in found)) == 6


def test_weights_are_monais() -> None:
    theirs = compute_importance_map((24, 16, 10), mode="gaussian", sigma_scale=0.125, device=torch.device("cpu"))
    least = max(float(theirs.min()), 1e-3)
    assert gaussian((24, 16, 10)) == pytest.approx(theirs.clamp(min=least).numpy(), rel=1e-5)


@pytest.mark.parametrize(("length", "size", "overlap"), [(10, 0, 0.1), (10, 4, 1.0), (10, 4, -0.1)])
def test_what_cannot_be_tiled_is_refused(length: int, size: int, overlap: float) -> None:
    with pytest.raises(ConfigError, match="allowed are"):
        starts(length, size, overlap)


def test_a_tile_of_other_axes_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 axes, the array 3"):
        tiles((4, 4, 4), (2, 2), 0.0)
