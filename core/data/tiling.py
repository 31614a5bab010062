"""Overlapping tiles that cover an array of any number of axes: for training patches, sliding windows and large pictures.

The grid is MONAI's: steps of `size * (1 - overlap)`, rounded down, and a last tile moved inwards to end where the array
ends. An array smaller than a tile along an axis has one tile there, as long as the array: who needs full tiles pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError

Tile = tuple[slice, ...]


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin along one axis.

    Raises:
        ConfigError: a size below 1, or an overlap that is not from 0 up to but without 1.
    """
    if size < 1 or not 0 <= overlap < 1:
        raise ConfigError(f"tile size {size}, overlap {overlap}: allowed are sizes from 1 on and 0 <= overlap < 1")
    step = max(1, int(size * (1 - overlap)))
    last = max(0, length - size)
    return [*range(0, last, step), last]


def tiles(shape: Sequence[int], size: Sequence[int], overlap: float) -> list[Tile]:
    """All tiles, the last axis fastest.

    Raises:
        ConfigError: as `starts`, or as many sizes as axes are needed.
    """
    if len(shape) != len(size):
        raise ConfigError(f"tile size {tuple(size)} has {len(size)} axes, the array {len(shape)}")
    axes = [
        [slice(start, min(start + extent, length)) for start in starts(length, extent, overlap)]
        for length, extent in zip(shape, size, strict=True)
    ]
    return list(product(*axes))


def gaussian(size: Sequence[int], *, sigma: float = 0.125, least: float = 1e-3) -> NDArray[np.float32]:
    """Weights of a tile's places: they fall off from its middle, as a network's answers get worse towards borders.

    Args:
        sigma: standard deviation in tile lengths.
        least: smallest weight, so that corners that no other tile covers count.

    Source: Isensee et al. 2021, nnU-Net; the values are MONAI's (`compute_importance_map` and its clamp).
    """
    weights = np.ones((), np.float32)
    for length in size:
        place = np.arange(length, dtype=np.float32) - (length - 1) / 2
        weights = weights[..., None] * np.exp(-(place**2) / (2 * (sigma * length) ** 2)).astype(np.float32)
    return np.maximum(weights, max(float(weights.min()), least))
