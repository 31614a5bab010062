"""Overlap and suppression beside torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from verticals.manufacturing.boxes import NONE, Boxes, boxes_of, joined, overlap, suppressed


def some(seed: int, count: int = 60) -> Boxes:
    random = np.random.default_rng(seed)
    low = random.uniform(0, 200, (count, 2))
    corners = np.concatenate((low, low + random.uniform(5, 60, (count, 2))), axis=1)
    return boxes_of(corners, random.integers(0, 3, count), random.permutation(count) / count)


@given(st.integers(0, 1000))
def test_overlap_is_torchvisions(seed: int) -> None:
    one, other = some(seed), some(seed + 1)
    ours = overlap(one.corners[:, None], other.corners[None])
    theirs = box_iou(torch.tensor(one.corners), torch.tensor(other.corners)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.9]))
def test_suppression_is_torchvisions(seed: int, most: float) -> None:
    boxes = some(seed)
    ours = suppressed(boxes, most_overlap=most)
    theirs = batched_nms(
        torch.tensor(boxes.corners, dtype=torch.float64),
        torch.tensor(boxes.scores).double(),
        torch.tensor(boxes.classes),
        most,
    )
    assert ours.tolist() == theirs.tolist()


def test_classes_suppress_none_of_each_other() -> None:
    boxes = boxes_of([[0, 0, 10, 10]] * 4, [0, 0, 1, 0], [0.9, 0.8, 0.7, 0.6])
    assert suppressed(boxes, most_overlap=0.5).tolist() == [0, 2]


def test_boxes_without_area_overlap_nothing() -> None:
    assert overlap(np.array([1.0, 1, 1, 5]), np.array([0.0, 0, 9, 9])) == 0
    assert overlap(np.zeros(4), np.zeros(4)) == 0


def test_none_is_none() -> None:
    assert len(suppressed(NONE, most_overlap=0.5)) == 0
    assert len(joined([]).scores) == 0
    assert joined([NONE, some(0, 3)]).corners == pytest.approx(some(0, 3).corners)


def test_what_lies_outside_is_left_out() -> None:
    boxes = boxes_of([[-5, -5, 5, 5], [20, 20, 30, 30], [8, 8, 12, 12]], [0, 1, 2])
    within = boxes.within(10, 10)
    assert within.corners.tolist() == [[0, 0, 5, 5], [8, 8, 10, 10]]
    assert within.classes.tolist() == [0, 2]
    assert within.areas.tolist() == [25, 4]
