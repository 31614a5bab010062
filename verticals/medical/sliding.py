"""Windows' answers blended into labels, holding no more of the volume than later windows can still change.

The borders of all windows cut the volume into cells. A cell is held, as logits, from the first window that covers it to the
last; then its largest class is its label and the logits are gone. Order and sizes are known before the first window, so the
most that is ever held is a figure (`Windows.most_held`), not a hope. K class; axes as the volume's.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from itertools import permutations, product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.tiling import Tile, gaussian, starts

Carry = Literal["float32", "float16"]


class Cell(NamedTuple):
    """A part of the volume that no window's border cuts."""

    key: tuple[int, ...]
    """Its number along each axis."""
    place: Tile
    size: int
    """Voxels."""


class Windows:
    """All windows of a volume, in the order that lets the least be held at a time."""

    def __init__(self, shape: Sequence[int], window: Sequence[int], overlap: float) -> None:
        """
        Args:
            shape: of the volume, nowhere smaller than the window.
        """
        self.shape, self.window = tuple(shape), tuple(window)
        places = [starts(length, size, overlap) for length, size in zip(shape, window, strict=True)]
        self._edges = [
            sorted({edge for start in axis for edge in (start, start + size)})
            for axis, size in zip(places, window, strict=True)
        ]
        along = [
            np.array([sum(start <= low < start + size for start in axis) for low in edges[:-1]])
            for axis, size, edges in zip(places, window, self._edges, strict=True)
        ]
        self.covering: NDArray[np.int64] = reduce(np.multiply, np.ix_(*along))
        """Windows that cover each cell."""
        self._sizes: NDArray[np.int64] = reduce(np.multiply, np.ix_(*(np.diff(edges) for edges in self._edges)))
        self.most_held, self.tiles = self._best(places)
        """Voxels of which logits are held at a time, and the windows in order."""

    def cells(self, tile: Tile) -> Iterator[Cell]:
        """The cells of a window."""
        ranges = []
        for edges, part in zip(self._edges, tile, strict=True):
            first, last = edges.index(part.start), edges.index(part.stop)
            ranges.append([(number, slice(edges[number], edges[number + 1])) for number in range(first, last)])
        for parts in product(*ranges):
            place = tuple(part for _, part in parts)
            size = math.prod(part.stop - part.start for part in place)
            yield Cell(tuple(number for number, _ in parts), place, size)

    def _tile(self, corner: Sequence[int]) -> Tile:
        return tuple(slice(start, start + size) for start, size in zip(corner, self.window, strict=True))

    def _best(self, places: list[list[int]]) -> tuple[int, list[Tile]]:
        """The order that holds least."""
        most, best = None, None
        for order in _orders(places):
            held = self._most_held(order, most)
            if held is not None:
                most, best = held, order
        assert most is not None
        assert best is not None
        return most, [self._tile(corner) for corner in best]

    def _most_held(self, order: list[tuple[int, ...]], limit: int | None) -> int | None:
        """Voxels held at a time in this order; None as soon as they are as many as the limit."""
        left = self.covering.copy()
        held = most = 0
        for corner in order:
            block = tuple(
                slice(edges.index(start), edges.index(start + size))
                for edges, start, size in zip(self._edges, corner, self.window, strict=True)
            )
            whole, sizes, ahead = (
                self.covering[block],
                self._sizes[block],
                left[block],
            )  # views: a window's cells are a block
            shared = whole > 1
            held += int(sizes[shared & (ahead == whole)].sum())
            most = max(most, held)
            if limit is not None and most >= limit:
                return None
            ahead -= 1
            held -= int(sizes[shared & (ahead == 0)].sum())
        return most


@lru_cache(maxsize=16)
def windows_of(shape: tuple[int, ...], window: tuple[int, ...], overlap: float) -> Windows:
    """The windows of volumes of a shape; finding their best order takes up to a second."""
    return Windows(shape, window, overlap)


class Blend:
    """Takes the logits of the windows, in their order, and gives `labels` once all were added.

    The weights are `core.data.tiling.gaussian`: where float32 is carried, labels are those of MONAI's
    `sliding_window_inference(mode="gaussian")` and argmax, up to the order in which floats are summed.
    """

    def __init__(self, windows: Windows, *, num_classes: int, carry: Carry = "float32") -> None:
        """
        Args:
            carry: what sums are held in; float16 takes half the memory and changes labels only where two classes tie.
        """
        self.labels: NDArray[Any] = np.zeros(windows.shape, label_dtype(num_classes))
        self._windows = windows
        self._dtype = torch.float32 if carry == "float32" else torch.float16
        self._weights = torch.from_numpy(gaussian(windows.window))
        self._left = windows.covering.copy()
        self._held: dict[tuple[int, ...], torch.Tensor] = {}
        self._tiles = iter(windows.tiles)

    def add(self, logits: NDArray[np.float32] | None) -> None:
        """The next window's logits, [K, ...]; None for one that was left out: it says nothing, and where no other window
        says anything there is background."""
        tile = next(self._tiles)
        given = None if logits is None else torch.from_numpy(logits)
        for cell in self._windows.cells(tile):
            self._left[cell.key] -= 1
            if given is not None:
                inner = tuple(
                    slice(part.start - whole.start, part.stop - whole.start)
                    for part, whole in zip(cell.place, tile, strict=True)
                )
                if self._windows.covering[cell.key] == 1:  # one positive weight for all classes changes no label
                    self._reduce(cell, given[:, *inner])
                else:
                    self._sum(cell, given[:, *inner], self._weights[inner])
            if self._left[cell.key] == 0 and cell.key in self._held:
                self._reduce(cell, self._held.pop(cell.key))

    def _sum(self, cell: Cell, logits: torch.Tensor, weights: torch.Tensor) -> None:
        held = self._held.get(cell.key)
        if held is None:
            held = self._held[cell.key] = _pages(logits, self._dtype)
        if self._dtype == torch.float32:
            held.addcmul_(logits, weights)
            return
        for sums, part, weight in zip(held.unbind(1), logits.unbind(1), weights, strict=True):
            sums.copy_(torch.addcmul(sums.float(), part, weight))

    def _reduce(self, cell: Cell, logits: torch.Tensor) -> None:
        labels = self.labels[cell.place]
        if logits.dtype == torch.float32:
            labels[:] = torch.max(logits, dim=0).indices.numpy()
            return
        for place, plane in enumerate(logits.unbind(1)):  # a plane at a time: no copy of a cell in float32 is ever made
            labels[place] = torch.max(plane.float(), dim=0).indices.numpy()


def label_dtype(num_classes: int) -> type[np.unsignedinteger[Any]]:
    """What labels of so many classes, background among them, are kept in."""
    return np.uint8 if num_classes <= 256 else np.uint16


def carry_bytes(windows: Windows, *, num_classes: int, carry: Carry) -> int:
    """The most that a Blend holds between windows."""
    return windows.most_held * num_classes * (4 if carry == "float32" else 2)


def _pages(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Zeros in memory of their own, given back to the system at once, where an allocator would keep some for later; of the same shape
    and order of axes."""
    pages = torch.frombuffer(mmap.mmap(-1, like.numel() * dtype.itemsize), dtype=dtype)
    if like.stride(0) == 1:  # classes lie together
        return pages.view(*like.shape[1:], like.shape[0]).movedim(-1, 0)
    return pages.view(like.shape)


def _orders(places: list[list[int]]) -> Iterator[list[tuple[int, ...]]]:
    """Ways to go through all windows: each nesting of the axes, with every axis' last two windows together or apart.

    The last window is moved inwards and may overlap the one before it nearly whole: taken together at each place of the
    inner axes, the two never leave that overlap lying over the whole volume.
    """
    axes = range(len(places))
    joined = [[*([start] for start in axis[:-2]), axis[-2:]] for axis in places]
    apart = [[[start] for start in axis] for axis in places]
    for groups_of in (joined, apart):
        for nest in sorted(permutations(axes), key=lambda nest: -len(places[nest[0]])):
            order: list[tuple[int, ...]] = []
            for groups in product(*(groups_of[axis] for axis in nest)):
                by_axis = dict(zip(nest, groups, strict=True))
                order += product(*(by_axis[axis] for axis in axes))
            yield order
