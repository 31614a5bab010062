"""Pieces of an organ in a mask: parts whose voxels touch by a face, an edge or a corner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PIECES_BYTES = 5
"""Of each voxel, while the pieces of an organ are told apart: whether it is there, and the number of its piece."""
_TOUCHING = np.ones((3, 3, 3), bool)


def largest_share(labels: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
    """[num_classes] share of each class' voxels that its largest piece holds; NaN where it has none, and for class 0."""
    shares = np.full(num_classes, np.nan)
    for number, box in enumerate(ndimage.find_objects(labels, max_label=num_classes - 1), 1):
        if box is not None:
            _, sizes = _pieces(labels[box], number)
            shares[number] = sizes.max() / sizes.sum()
    return shares


def keep_largest(labels: NDArray[Any], numbers: Sequence[int]) -> None:
    """Makes all but the largest piece of each of these classes background, in place; of pieces of one size the first stays."""
    boxes = ndimage.find_objects(labels, max_label=max(numbers, default=1))
    for number in numbers:
        if (box := boxes[number - 1]) is not None:
            _drop_smaller(labels[box], number)


def _drop_smaller(labels: NDArray[Any], number: int) -> None:
    pieces, sizes = _pieces(labels, number)
    if len(sizes) > 1:
        largest = int(sizes.argmax()) + 1
        for plane, own in zip(labels, pieces, strict=True):  # a plane at a time, here and below: no second copy of all
            plane[(own > 0) & (own != largest)] = 0


def _pieces(labels: NDArray[Any], number: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The number of each voxel's piece, 0 for none, and the voxels of each piece."""
    pieces, count = ndimage.label(labels == number, _TOUCHING)
    sizes = np.zeros(count + 1, np.int64)
    for plane in pieces:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return pieces, sizes[1:]
