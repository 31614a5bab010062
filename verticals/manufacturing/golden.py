"""A product's golden board beside a board that came: where it lies, and where the two differ by more than noise.

The board may be shifted, not turned: phase correlation finds the shift, coarsely on a smaller picture and exactly on parts of
the whole one. Edges that lie a pixel off are no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import fft

from core.config import Config
from core.data.pictures import LEAST_SIDE, Picture
from core.data.tiling import Tile
from core.errors import DataError

COARSE = 1024
"""Longest side of the smaller picture, in pixels."""
PART = 384
"""Side of the parts that the exact shift is found on."""
PARTS = 3
"""So many along each axis."""
LEAST_LIKENESS = 0.3
"""Correlation of board and golden board, from -1 to 1, below which they are not of one product."""
CELL = 8
"""Side of the squares in which differences are joined to places."""
AROUND = 16
"""Pixels around a place that a tile shows with it."""
BETTER = 0.1
"""By so much more they are alike where the board lies farther off than is searched; patterns that repeat are a little."""


class GateConfig(Config):
    """What counts as a difference from the golden board."""

    noise: int = Field(48, ge=0, le=255)
    """Grey values that a pixel may differ by."""
    slack: int = Field(1, ge=0, le=8)
    """Pixels that an edge may be off."""
    least_pixels: int = Field(8, ge=1, le=25)
    """Pixels that differ within a square of 5 x 5, from which on they are no noise: .999 of DeepPCB's validation defects do."""


class Aligned(NamedTuple):
    """The golden board where the board lies."""

    golden: Picture
    """[Y, X, C]; its edge is repeated where it had none."""
    right: int
    down: int
    """Pixels that the board lies to the right and down of its golden one."""


def align(board: Picture, golden: Picture, *, search: int) -> Aligned:
    """
    Args:
        search: pixels that the board may be shifted by.

    Raises:
        DataError: of different sizes, shifted by more, or not of one product.
    """
    if board.shape != golden.shape:
        sizes = [f"{one.shape[1]} x {one.shape[0]}" for one in (board, golden)]
        raise DataError(
            f"the board has {sizes[0]} pixels and its golden board {sizes[1]}: teach the product again, by one of this size"
        )
    ours, its = _grey(board), _grey(golden)
    right, down, beyond = _shift(ours, its, search)
    moved = shifted(golden, right, down)
    likeness = _likeness(ours, _grey(moved))
    if beyond != (right, down) and _likeness(ours, _grey(shifted(golden, *beyond))) > likeness + BETTER:
        raise DataError(
            f"the board lies {beyond[0]} pixels to the right and {beyond[1]} down of its golden board; searched is up to {search}: "
            "mount it as taught, raise the search range, or teach the product again"
        )
    if likeness < LEAST_LIKENESS:
        raise DataError(
            f"the board does not look like its golden board (correlation {likeness:.2f}, needed {LEAST_LIKENESS:g}): it is another "
            "product, turned, or shifted by more than is searched"
        )
    return Aligned(moved, right, down)


def shifted(picture: Picture, right: int, down: int) -> Picture:
    """The picture so many pixels to the right and down; its edge is repeated."""
    if not right and not down:
        return picture
    height, width = picture.shape[:2]
    right, down = max(1 - width, min(right, width - 1)), max(1 - height, min(down, height - 1))
    left = picture[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    edges = max(0, down), max(0, -down), max(0, right), max(0, -right)
    return np.asarray(cv2.copyMakeBorder(left, *edges, cv2.BORDER_REPLICATE), np.uint8).reshape(picture.shape)


def differences(board: Picture, golden: Picture, config: GateConfig) -> NDArray[np.bool_]:
    """[Y, X] where the board differs from its aligned golden one by more than noise."""
    size = 2 * config.slack + 1
    kernel = np.ones((size, size), np.uint8)
    over = cv2.subtract(board, cv2.dilate(golden, kernel).reshape(golden.shape))
    under = cv2.subtract(cv2.erode(golden, kernel).reshape(golden.shape), board)
    beyond: Picture = np.asarray(cv2.max(over, under), np.uint8).reshape(golden.shape)
    largest = beyond[..., 0] if beyond.shape[2] == 1 else beyond.max(axis=2)
    differs = (largest > config.noise).view(np.uint8)  # a byte a pixel: floats of a large board are slow to get
    counted = cv2.boxFilter(differs, -1, (5, 5), normalize=False)
    return np.asarray((counted >= config.least_pixels) & differs.view(bool))


def showing(differs: NDArray[np.bool_], tiles: Sequence[Tile]) -> list[Tile]:
    """As few of the tiles as show every place that differs whole, with what lies around it; in their order.

    A place that lies where tiles overlap is shown by one of them; one that no tile shows whole, by all that show some of it.

    Args:
        differs: [Y, X]
        tiles: all of the board, which may reach beyond its edges.
    """
    height, width = differs.shape
    count, _, stats, _ = cv2.connectedComponentsWithStats(_cells(differs), connectivity=8)
    if count == 1:
        return []
    boxes = stats[1:].astype(np.int64) * CELL
    left, top, across, down = (
        boxes[:, side] for side in (cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP, cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT)
    )
    places = np.stack([left, top, np.minimum(left + across, width), np.minimum(top + down, height)], 1)
    frames = np.array([(tile[1].start, tile[0].start, tile[1].stop, tile[0].stop) for tile in tiles])
    around = np.clip(places + np.array([-AROUND, -AROUND, AROUND, AROUND]), 0, [width, height, width, height])
    whole = _within(places, frames)
    shown = _within(around, frames)
    shown = np.where(shown.any(1, keepdims=True), shown, whole)
    chosen: NDArray[np.bool_] = np.asarray(_touching(places, frames)[~whole.any(1)].any(0))
    for place in np.flatnonzero(chosen).tolist():
        chosen[place] = differs[tiles[place]].any()
    lacking = shown[whole.any(1) & ~shown[:, chosen].any(1)]
    while len(lacking):
        best = int(lacking.sum(0).argmax())
        chosen[best] = True
        lacking = lacking[~lacking[:, best]]
    return [tiles[place] for place in np.flatnonzero(chosen).tolist()]


def _cells(differs: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """[Y / CELL, X / CELL] 1 where any pixel of the square differs."""
    lacking = [(0, -length % CELL) for length in differs.shape]
    padded = np.pad(differs, lacking) if any(more for _, more in lacking) else np.ascontiguousarray(differs)
    rows = padded.view(np.uint64)  # CELL pixels of a row, a byte each, are one number
    squares = np.bitwise_or.reduce(rows.reshape(-1, CELL, rows.shape[1]), axis=1)
    return np.asarray(squares != 0).view(np.uint8)


def _within(places: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[places, frames] whether the one lies in the other."""
    return np.asarray(
        (places[:, None, :2] >= frames[None, :, :2]).all(2) & (places[:, None, 2:] <= frames[None, :, 2:]).all(2)
    )


def _touching(places: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[places, frames] whether they have some of each other."""
    return np.asarray(
        (places[:, None, :2] < frames[None, :, 2:]).all(2) & (places[:, None, 2:] > frames[None, :, :2]).all(2)
    )


def _grey(picture: Picture) -> NDArray[np.uint8]:
    grey = picture[..., 0] if picture.shape[2] == 1 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.ascontiguousarray(grey, np.uint8)


def _shift(board: NDArray[np.uint8], golden: NDArray[np.uint8], search: int) -> tuple[int, int, tuple[int, int]]:
    """Whole pixels to the right and down within the search range, and where the best of all places lies."""
    height, width = board.shape
    factor = max(1, min(-(-max(height, width) // COARSE), min(height, width) // LEAST_SIDE))
    small = [
        cv2.resize(one, (width // factor, height // factor), interpolation=cv2.INTER_AREA).astype(np.float32)
        if factor > 1
        else one.astype(np.float32)
        for one in (board, golden)
    ]
    surface = _correlation(small[0], small[1])
    within, anywhere = (_peak(surface, most) for most in (-(-search // factor) + (factor > 1), max(height, width)))
    beyond = anywhere[0] * factor, anywhere[1] * factor
    right, down = within[0] * factor, within[1] * factor
    if factor > 1:
        more = _refined(board, golden, right, down, 2 * factor)
        right, down = right + more[0], down + more[1]
    right, down = (max(-search, min(search, place)) for place in (right, down))
    return right, down, beyond if max(map(abs, beyond)) > search + factor else (right, down)


def _refined(board: NDArray[np.uint8], golden: NDArray[np.uint8], right: int, down: int, most: int) -> tuple[int, int]:
    """Pixels more, the median of parts that have a pattern."""
    (rows, tall), (columns, wide) = _places(board.shape[0], down), _places(board.shape[1], right)
    found = []
    for y, x in product(rows, columns):
        part = board[y : y + tall, x : x + wide].astype(np.float32)
        its = golden[y - down : y - down + tall, x - right : x - right + wide].astype(np.float32)
        if part.std() > 1 and its.std() > 1:
            found.append(_peak(_correlation(part, its), most))
    more = np.median(np.array(found), axis=0) if found else np.zeros(2)
    return round(float(more[0])), round(float(more[1]))


def _places(length: int, shift: int) -> tuple[list[int], int]:
    """Where parts begin along an axis, and their side: on the board and, so much shifted, on its golden one."""
    first, last = max(0, shift), min(length, length + shift)
    side = min(PART, last - first)
    return np.linspace(first, last - side, PARTS).astype(int).tolist(), side


def _correlation(board: NDArray[np.float32], golden: NDArray[np.float32]) -> NDArray[np.float32]:
    """[Y, X], highest so many pixels down and to the right as the board lies; below and left from the far ends on.

    Phase correlation within a window that fades to the edges. Source: Kuglin and Hines 1975.
    """
    height, width = board.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    one, other = (fft.rfft2((picture - picture.mean()) * window) for picture in (board, golden))
    cross = one * np.conj(other)
    return np.asarray(fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=board.shape))


def _peak(surface: NDArray[np.float32], most: int) -> tuple[int, int]:
    """Whole pixels to the right and down; at most so many in each direction."""
    height, width = surface.shape
    rows, columns = (np.arange(-min(most, (n - 1) // 2), min(most, (n - 1) // 2) + 1) for n in (height, width))
    seen = surface[np.ix_(rows % height, columns % width)]
    row, column = np.unravel_index(int(seen.argmax()), seen.shape)
    return int(columns[column]), int(rows[row])


def _likeness(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Correlation of grey values; 1 where both are of one value, 0 where one of them is."""
    size = one.shape[1] // 4, one.shape[0] // 4
    small = [
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32).ravel() for picture in (one, other)
    ]
    small = [values - values.mean() for values in small]
    lengths = [float(np.linalg.norm(values)) for values in small]
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return float(small[0] @ small[1]) / (lengths[0] * lengths[1])
