"""Average precision beside pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from verticals.manufacturing.boxes import Boxes, boxes_of
from verticals.manufacturing.precision import COCO as OVERLAPS
from verticals.manufacturing.precision import average_precision, matched, mean_figures

CLASSES = 4


def some(seed: int) -> tuple[list[Boxes], list[Boxes]]:
    """Drawn boxes of twenty pictures, and found ones: near, doubled, missing, wrong."""
    random = np.random.default_rng(seed)
    found, drawn = [], []
    for _ in range(20):
        count = int(random.integers(0, 12))
        low = random.uniform(0, 300, (count, 2))
        corners = np.concatenate((low, low + random.uniform(8, 80, (count, 2))), axis=1)
        classes = random.integers(0, CLASSES - 1, count)  # nobody drew the last
        drawn.append(boxes_of(corners, classes))
        kept = random.random(count) < 0.8
        near = np.concatenate((corners[kept], corners[kept][::2], random.uniform(0, 300, (3, 4))))
        near += random.normal(0, 4, near.shape)
        near = np.concatenate((np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:]) + 1), axis=1)
        kinds = np.concatenate((classes[kept], classes[kept][::2], random.integers(0, CLASSES, 3)))
        found.append(boxes_of(near, kinds, random.permutation(len(kinds)) / 100 + 0.01))
    return found, drawn


def theirs(found: list[Boxes], drawn: list[Boxes], overlaps: list[float]) -> np.ndarray:  # type: ignore[type-arg]
    """[classes, T]"""
    images = [{"id": number + 1} for number in range(len(drawn))]
    categories = [{"id": number + 1, "name": str(number)} for number in range(CLASSES)]

    def rows(boxes: list[Boxes]) -> list[dict[str, object]]:
        return [
            {
                "id": 1000 * number + place + 1,
                "image_id": number + 1,
                "category_id": int(one.classes[place]) + 1,
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": float((x2 - x1) * (y2 - y1)),
                "iscrowd": 0,
                "score": float(one.scores[place]),
            }
            for number, one in enumerate(boxes)
            for place, (x1, y1, x2, y2) in enumerate(one.corners.astype(np.float64))
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "categories": categories, "annotations": rows(drawn)}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(rows(found)), "bbox")
        judge.params.iouThrs = np.array(overlaps)
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 2]  # T, recalls, classes
    mean = precision.mean(1).T
    return np.where(mean < 0, np.nan, mean)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_pycocotools(seed: int) -> None:
    found, drawn = some(seed)
    overlaps = [0.33, *OVERLAPS]
    ours = average_precision(matched(found, drawn, num_classes=CLASSES, overlaps=overlaps))[0]
    np.testing.assert_allclose(ours, theirs(found, drawn, overlaps), atol=1e-6)


def test_a_board_of_weight_nothing_is_left_out() -> None:
    found, drawn = some(7)
    weights = np.ones((2, 20))
    weights[0, :5], weights[1] = 0, 2
    without, doubled = average_precision(matched(found, drawn, num_classes=CLASSES), weights)
    fewer = average_precision(matched(found[5:], drawn[5:], num_classes=CLASSES))[0]
    np.testing.assert_allclose(without, fewer, atol=1e-9)
    whole = average_precision(matched(found, drawn, num_classes=CLASSES))[0]
    np.testing.assert_allclose(doubled, whole, atol=1e-9)


def test_perfect_is_one_and_nothing_is_zero() -> None:
    _, drawn = some(1)
    values = average_precision(matched(drawn, drawn, num_classes=CLASSES))
    assert mean_figures(values, (0.33, *OVERLAPS)) == {"map50": [1.0], "map33": [1.0], "map50_95": [1.0]}
    nothing = [boxes_of([], [])] * len(drawn)
    assert np.nanmax(average_precision(matched(nothing, drawn, num_classes=CLASSES))) == 0
