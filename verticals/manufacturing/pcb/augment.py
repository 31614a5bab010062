"""Changes of a training tile: mirrored and turned, brighter, noisier, its golden template a little off.

What is done is drawn from the tile's own generator. Boxes go with their tile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from core.config import Config
from core.data.pictures import Picture
from verticals.manufacturing.boxes import Boxes
from verticals.manufacturing.golden import shifted


class AugmentConfig(Config):
    """How often a tile is changed, and how far."""

    turn: bool = True
    """Whether tiles are mirrored and turned by right angles."""
    template_shift: int = Field(1, ge=0)
    """Pixels by which the template is moved, at most."""
    brightness: float = Field(0.3, ge=0, le=1)
    """Share of tiles whose brightness and contrast change."""
    brightness_change: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of both."""
    noise: float = Field(0.2, ge=0, le=1)
    """Share that gets Gaussian noise."""
    noise_std: float = Field(8.0, ge=0)
    """Its largest standard deviation, in grey values."""


def augmented(
    tile: Picture, boxes: Boxes, num_channels: int, config: AugmentConfig, random: np.random.Generator
) -> tuple[Picture, Boxes]:
    """
    Args:
        tile: [S, S, C] picture, and template after `num_channels`.
    """
    if config.turn:
        tile, boxes = turned(tile, boxes, int(random.integers(8)))
    parts = [tile[..., :num_channels], tile[..., num_channels:]]
    if parts[1].shape[2] and config.template_shift:
        right, down = random.integers(-config.template_shift, config.template_shift + 1, 2).tolist()
        parts[1] = shifted(parts[1], right, down)
    if random.random() < config.brightness:
        scale, offset = 1 + config.brightness_change * random.uniform(-1, 1, 2)
        parts = [_clipped(part.astype(np.float32) * scale + 128 * (offset - 1)) for part in parts]
    if random.random() < config.noise:
        std = config.noise_std * random.random()
        parts = [_clipped(part + std * random.standard_normal(part.shape, np.float32)) for part in parts]
    return np.concatenate(parts, axis=2), boxes


def turned(tile: Picture, boxes: Boxes, number: int) -> tuple[Picture, Boxes]:
    """One of the eight ways to lay a square tile down: by the diagonal mirrored (4), left to right (2), top to bottom (1)."""
    size = tile.shape[0]
    x1, y1, x2, y2 = boxes.corners.T
    if number & 4:
        tile = tile.transpose(1, 0, 2)
        x1, y1, x2, y2 = y1, x1, y2, x2
    if number & 2:
        tile = tile[:, ::-1]
        x1, x2 = size - x2, size - x1
    if number & 1:
        tile = tile[::-1]
        y1, y2 = size - y2, size - y1
    return np.ascontiguousarray(tile), boxes._replace(corners=np.stack((x1, y1, x2, y2), axis=1))


def _clipped(values: NDArray[np.floating]) -> Picture:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
