"""Where a board lies on its golden one, and where the two differ."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.tiling import tiles
from core.errors import DataError
from verticals.manufacturing.golden import GateConfig, align, differences, shifted, showing
from verticals.manufacturing.pcb.synthetic import SyntheticConfig, make_board

CONFIG = SyntheticConfig(shape=(700, 900), clean=1.0)


@pytest.mark.parametrize("shape", [(300, 260), (1500, 2300)])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, -2), (-17, 9), (30, 31)])
def test_the_shift_is_found(right: int, down: int, shape: tuple[int, int]) -> None:
    made = make_board(CONFIG.model_copy(update={"shape": shape}), 3)
    found = align(shifted(made.picture, right, down), made.golden, search=32)
    assert (found.right, found.down) == (right, down)
    assert (found.golden == shifted(made.golden, right, down)).all()


def test_a_board_shifted_by_more_is_refused() -> None:
    made = make_board(CONFIG, 0)
    with pytest.raises(DataError, match="lies 21 pixels to the right and 0 down .* searched is up to 8"):
        align(shifted(made.picture, 21, 0), made.golden, search=8)


def test_another_size_is_refused_with_both() -> None:
    made = make_board(CONFIG, 0)
    with pytest.raises(DataError, match="900 x 700 pixels and its golden board 898 x 700"):
        align(made.picture, np.ascontiguousarray(made.golden[:, :-2]), search=8)


def test_another_product_is_refused() -> None:
    with pytest.raises(DataError, match="does not look like its golden board|lies"):
        align(make_board(CONFIG, 0).picture, make_board(CONFIG, 1).golden, search=32)


@pytest.mark.parametrize("seed", range(4))
def test_every_defect_differs_and_a_clean_board_nowhere(seed: int) -> None:
    gate = GateConfig()
    made = make_board(CONFIG.model_copy(update={"clean": 0.0, "noise": 6.0}), seed, num_defects=10)
    differs = differences(made.picture, made.golden, gate)
    for x1, y1, x2, y2 in made.boxes.corners.astype(int):
        assert differs[y1:y2, x1:x2].any()
    clean = make_board(CONFIG.model_copy(update={"noise": 6.0}), seed)
    assert not differences(clean.picture, clean.golden, gate).any()
    moved = shifted(clean.picture, 1, -1)
    assert not differences(moved, clean.golden, gate).any()  # an edge that lies a pixel off is no difference


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, -2), (-5, 0), (0, 7), (39, 29), (40, 0), (-90, 60)])
def test_a_shift_repeats_the_edge(channels: int, right: int, down: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, channels), np.uint8)
    rows, columns = np.clip(np.arange(30) - down, 0, 29), np.clip(np.arange(40) - right, 0, 39)
    assert (shifted(picture, right, down) == picture[rows[:, None], columns]).all()


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_camera_that_sees_nothing_is_no_board(grey: int) -> None:
    golden = make_board(SyntheticConfig(shape=(256, 256)), 0).golden
    with pytest.raises(DataError, match="does not look like its golden board"):
        align(np.full_like(golden, grey), golden, search=32)


@pytest.mark.parametrize("shape", [(200, 4096), (4096, 64), (16, 3000)])
def test_long_and_narrow_boards_are_aligned(shape: tuple[int, int]) -> None:
    golden = np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8)
    golden = cv2.GaussianBlur(golden, (5, 5), 1.5).reshape(golden.shape)
    found = align(shifted(golden, 5, -3), golden, search=32)
    assert (found.right, found.down) == (5, -3)


@given(
    size=st.tuples(st.integers(60, 400), st.integers(60, 400)),
    side=st.sampled_from([64, 96]),
    boxes=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 150), st.integers(1, 40)), max_size=12),
)
def test_few_tiles_show_every_difference_whole(
    size: tuple[int, int], side: int, boxes: list[tuple[float, float, int, int]]
) -> None:
    height, width = size
    every = tiles((max(height, side), max(width, side)), (side, side), 0.4)
    differs = np.zeros(size, bool)
    for x, y, across, down in boxes:
        left, top = int(x * (width - 1)), int(y * (height - 1))
        differs[top : top + down, left : left + across] = True
    chosen = showing(differs, every)
    near = cv2.dilate(differs.astype(np.uint8), np.ones((17, 17), np.uint8))  # places are told to squares of 8
    assert len(chosen) <= sum(bool(near[tile].any()) for tile in every)
    assert [tile for tile in every if tile in chosen] == chosen
    seen = np.zeros(size, bool)
    for tile in chosen:
        seen[tile] = True
    assert seen[differs].all()
    count, names = cv2.connectedComponents(differs.astype(np.uint8), connectivity=8)
    for place in range(1, count):
        rows, columns = np.nonzero(names == place)
        if max(np.ptp(rows), np.ptp(columns)) < side / 4:  # smaller than what neighbours share
            assert any(
                tile[0].start <= rows.min()
                and rows.max() < tile[0].stop
                and tile[1].start <= columns.min()
                and columns.max() < tile[1].stop
                for tile in chosen
            )


def test_a_difference_where_tiles_overlap_is_looked_at_once_and_one_that_is_larger_everywhere() -> None:
    every = tiles((256, 256), (128, 128), 0.5)
    differs = np.zeros((256, 256), bool)
    assert showing(differs, every) == []
    differs[100:108, 100:108] = True  # in four of the nine
    assert len(showing(differs, every)) == 1
    differs[20:240, 60:70] = True
    assert showing(differs, every) == [tile for tile in every if tile[1].start < 72]
