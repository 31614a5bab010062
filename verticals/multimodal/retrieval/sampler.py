"""Batches of pictures for contrastive learning: every picture once an epoch, its look-alikes ever more often beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
BLOCK = 4096
"""Rows that are compared with all at a time."""


class PairSampler:
    """Draws epochs of batches. A share of each batch are near neighbours of the rest, that rises from none to `hard`.

    Easy negatives teach a network the large differences first; later only those that are alike have something to teach.
    """

    def __init__(self, neighbours: Places, *, batch_size: int, hard: float, seed: int = 0) -> None:
        """
        Args:
            neighbours: [pictures, k] the pictures most like each, the nearest first.
            batch_size: pictures.
            hard: share of neighbours in the last epoch, 0 to 1.
        """
        self._neighbours, self._size, self._hard, self._seed = neighbours, batch_size, hard, seed

    @property
    def num_batches(self) -> int:
        """Of an epoch; pictures that fill no whole batch are left to another epoch."""
        return len(self._neighbours) // self._size

    def share(self, epoch: int, epochs: int) -> float:
        """Of neighbours, in an epoch."""
        return self._hard * epoch / max(1, epochs - 1)

    def batches(self, epoch: int, epochs: int) -> Places:
        """[batches, batch_size] places of pictures, none twice."""
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._neighbours))
        num_hard = round(self.share(epoch, epochs) * self._size)
        if not num_hard:
            return order[: self.num_batches * self._size].reshape(-1, self._size)
        free, waiting = np.ones(len(order), bool), iter(order)
        made = np.empty((self.num_batches, self._size), np.int64)
        for batch in made:
            chosen: list[int] = []
            while len(chosen) < self._size - num_hard:
                chosen += self._take([next(waiting)], free)
            near = self._neighbours[chosen].T.ravel()  # the nearest of each, then the second nearest of each
            chosen += self._take(near, free, most=num_hard)
            while len(chosen) < self._size:
                chosen += self._take([next(waiting)], free)
            batch[:] = chosen
        return made

    @staticmethod
    def _take(places: Places | list[int], free: NDArray[np.bool_], *, most: int = 1) -> list[int]:
        """Those of the places that are free, and no longer are."""
        taken: list[int] = []
        for place in places:
            if len(taken) == most:
                break
            if free[place]:
                free[place] = False
                taken.append(int(place))
        return taken


def nearest(vectors: NDArray[np.float32], num: int) -> Places:
    """[rows, num] places of the rows most like each by cosine, the nearest first, itself left out."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    num = min(num, len(unit) - 1)
    found = np.empty((len(unit), num), np.int64)
    for first in range(0, len(unit), BLOCK):
        alike = unit[first : first + BLOCK] @ unit.T
        rows = np.arange(len(alike))
        alike[rows, first + rows] = -np.inf
        best = np.argpartition(-alike, num - 1, axis=1)[:, :num] if num else np.empty((len(alike), 0), np.int64)
        order = np.argsort(-np.take_along_axis(alike, best, 1), axis=1, kind="stable")
        found[first : first + BLOCK] = np.take_along_axis(best, order, 1)
    return found
