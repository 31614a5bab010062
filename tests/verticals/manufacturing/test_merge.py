"""The merge of a perfect detector's tiles equals the untiled answer; nested, long and neighbouring objects stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.tiling import tiles
from verticals.manufacturing.boxes import Boxes, boxes_of, overlap
from verticals.manufacturing.merge import merge

SIDE, TILE = 1000, 200


def seen(drawn: Boxes, grid: list[tuple[slice, ...]]) -> list[Boxes]:
    """Each box as each tile shows it, where it shows four pixels of it."""
    found = []
    for rows, columns in grid:
        area = np.array([columns.start, rows.start, columns.stop, rows.stop], np.float32)
        corners = np.concatenate(
            (np.maximum(drawn.corners[:, :2], area[:2]), np.minimum(drawn.corners[:, 2:], area[2:])), axis=1
        )
        there = ((corners[:, 2:] - corners[:, :2]) >= 4).all(1)
        found.append(Boxes(corners[there], drawn.classes[there], drawn.scores[there]))
    return found


def merged(drawn: Boxes, *, ratio: float = 0.25) -> Boxes:
    grid = tiles((SIDE, SIDE), (TILE, TILE), ratio)
    return merge(seen(drawn, grid), grid, (SIDE, SIDE))


def same(found: Boxes, drawn: Boxes) -> None:
    assert len(found.scores) == len(drawn.scores)
    key = lambda boxes: sorted(zip(boxes.classes.tolist(), *np.rint(boxes.corners).T.tolist(), strict=True))  # noqa: E731
    assert key(found) == key(drawn)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.25, 0.5]))
def test_a_perfect_detectors_tiles_give_the_untiled_answer(seed: int, ratio: float) -> None:
    random = np.random.default_rng(seed)
    corners: list[list[float]] = []
    for _ in range(200):
        width, height = random.integers(10, 400, 2) if random.random() < 0.3 else random.integers(10, 60, 2)
        x, y = random.integers(0, SIDE - width), random.integers(0, SIDE - height)
        box = [float(x), float(y), float(x + width), float(y + height)]
        wide = np.array([x - 12, y - 12, x + width + 12, y + height + 12], np.float64)
        if not corners or overlap(wide, np.array(corners, np.float64)).max() == 0:
            corners.append(box)
    drawn = boxes_of(corners, random.integers(0, 3, len(corners)), random.uniform(0.3, 1, len(corners)))
    same(merged(drawn, ratio=ratio), drawn)


def test_tiles_that_only_touch_join_halves() -> None:
    drawn = boxes_of([[150, 50, 260, 80], [390, 390, 410, 410]], [0, 1])
    same(merged(drawn, ratio=0.0), drawn)


def test_nested_objects_of_one_class_survive() -> None:
    drawn = boxes_of([[120, 120, 420, 400], [150, 150, 180, 180], [300, 310, 330, 350]], [0, 0, 0])
    same(merged(drawn), drawn)


def test_long_thin_objects_become_one() -> None:
    drawn = boxes_of([[20, 500, 980, 508], [20, 520, 980, 528], [333, 10, 341, 990]], [0, 0, 0])
    same(merged(drawn), drawn)


def test_neighbours_are_not_swallowed() -> None:
    drawn = boxes_of([[140, 100, 160, 120], [163, 100, 183, 120], [140, 123, 160, 143]], [0, 0, 0])
    same(merged(drawn), drawn)


def test_other_classes_at_one_place_stay() -> None:
    drawn = boxes_of([[140, 100, 180, 140], [140, 100, 180, 140]], [0, 1])
    same(merged(drawn), drawn)


def test_an_edge_of_the_board_cuts_nothing() -> None:
    drawn = boxes_of([[0, 0, 50, 50], [950, 960, 1000, 1000]], [0, 0])
    same(merged(drawn), drawn)


def test_a_long_object_whose_middle_was_missed_is_bridged() -> None:
    grid = tiles((TILE, SIDE), (TILE, TILE), 0.25)
    drawn = boxes_of([[20, 50, 980, 60]], [0])
    found = seen(drawn, grid)
    found[2] = boxes_of([], [])
    assert merge(found, grid, (TILE, SIDE)).corners.tolist() == [[20, 50, 980, 60]]


def test_the_best_score_counts_and_comes_first() -> None:
    grid = tiles((200, 350), (200, 200), 0.25)
    found = [
        boxes_of([[160, 20, 180, 40], [10, 10, 30, 30]], [0, 0], [0.4, 0.5]),
        boxes_of([[161, 20, 181, 41]], [0], [0.9]),
    ]
    result = merge(found, grid, (200, 350))
    assert result.scores.tolist() == pytest.approx([0.9, 0.5])
    assert result.corners[0].tolist() == pytest.approx([160.5, 20, 180.5, 40.5])


def test_nothing_found_is_nothing() -> None:
    grid = tiles((SIDE, SIDE), (TILE, TILE), 0.25)
    assert len(merge([boxes_of([], [])] * len(grid), grid, (SIDE, SIDE)).scores) == 0
