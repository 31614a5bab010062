"""Boxes in pixels: their overlap, and the suppression of doubles in one picture.

A box is `x1 y1 x2 y2`, x to the right and y down, from the first pixel's left and upper edge (0) to the last one's right and
lower edge: its width is `x2 - x1`. N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Boxes(NamedTuple):
    """What a detector finds, or what somebody drew."""

    corners: NDArray[np.float32]
    """[N, 4] x1, y1, x2, y2."""
    classes: NDArray[np.int64]
    """[N] places in the list of classes."""
    scores: NDArray[np.float32]
    """[N] 0 to 1; 1 for what was drawn."""

    def take(self, places: NDArray[np.bool_] | NDArray[np.intp]) -> Boxes:
        """Those at the places, in their order."""
        return Boxes(self.corners[places], self.classes[places], self.scores[places])

    def shifted(self, x: float, y: float) -> Boxes:
        """The same boxes so far to the right and down."""
        return self._replace(corners=self.corners + np.array([x, y, x, y], np.float32))

    def within(self, width: float, height: float) -> Boxes:
        """Cut off at the edges of a picture; what lies outside is left out."""
        corners = np.clip(self.corners, 0, np.array([width, height, width, height], np.float32))
        inside = np.all(corners[:, 2:] > corners[:, :2], axis=1)
        return self._replace(corners=corners).take(inside)

    @property
    def areas(self) -> NDArray[np.float32]:
        """[N] square pixels."""
        sizes = self.corners[:, 2:] - self.corners[:, :2]
        areas: NDArray[np.float32] = sizes[:, 0] * sizes[:, 1]
        return areas


def boxes_of(
    corners: Sequence[Sequence[float]] | NDArray[np.floating],
    classes: Sequence[int] | NDArray[np.integer],
    scores: Sequence[float] | NDArray[np.floating] | None = None,
) -> Boxes:
    """Boxes of lists; without scores, of what somebody drew."""
    count = len(classes)
    return Boxes(
        np.asarray(corners, np.float32).reshape(count, 4),
        np.asarray(classes, np.int64),
        np.ones(count, np.float32) if scores is None else np.asarray(scores, np.float32),
    )


NONE = boxes_of([], [])


def joined(parts: Sequence[Boxes]) -> Boxes:
    """All boxes of several lists, one after the other."""
    return Boxes(*(np.concatenate(fields) for fields in zip(NONE, *parts, strict=True)))


def overlap(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float32]:
    """Shared area by united area (intersection over union), 0 for boxes without area.

    Args:
        one, other: [..., 4] corners, broadcast against each other.
    """
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., 2:], other[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    united = np.prod(one[..., 2:] - one[..., :2], axis=-1) + np.prod(other[..., 2:] - other[..., :2], axis=-1) - shared
    ratio: NDArray[np.float32] = np.divide(shared, united, out=np.zeros(np.shape(shared), np.float32), where=united > 0)
    return ratio


def suppressed(boxes: Boxes, *, most_overlap: float) -> NDArray[np.intp]:
    """Places of the boxes that no better one of their class overlaps by more than so much, best first.

    Source: greedy non-maximum suppression, as torchvision's `batched_nms`.
    """
    order = np.argsort(-boxes.scores, kind="stable")
    if not len(order):
        return order
    extent = float(boxes.corners.max() - min(0.0, float(boxes.corners.min()))) + 1
    sheets = boxes.classes[:, None] * extent  # classes lie far apart, in float64
    corners = (boxes.corners.astype(np.float64) + sheets)[order]
    kept = []
    left = np.arange(len(order))
    while len(left):
        kept.append(left[0])
        left = left[1:]
        left = left[overlap(corners[kept[-1]], corners[left]) <= most_overlap]
    return order[np.array(kept, np.intp)]
