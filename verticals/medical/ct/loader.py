"""Training patches of prepared cases: overlapping tiles whose borders move each epoch, and some patches around organs.

A share of the patches lies around a voxel of one of a case's classes; the others are tiles of all cases in random order, so
that every voxel is a candidate. Seed and epoch alone decide, never rank or world size. Where a patch is longer than its case
it is filled with air and background, which count in the loss like any air: windows at a scan's border look the same.
B patch, C class; axes X, Y, Z are R, A, S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.ahead import ahead
from core.data.tiling import starts
from core.errors import ConfigError, DataError
from verticals.medical.ct.cache import PreparedCase
from verticals.medical.ct.plan import Plan, Triple
from verticals.medical.volume import AIR_HU

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]
Augment = Callable[[Floats, Labels, np.random.Generator], tuple[Floats, Labels]]
"""([X, Y, Z] image, [X, Y, Z] labels, generator of this patch) -> both, changed."""

JITTER = 0.25
"""Largest distance from a patch's middle to the voxel it is drawn around, in patch lengths."""


class Batch(NamedTuple):
    """Patches of one step."""

    image: Tensor
    """[B, 1, X, Y, Z] float32, as `Plan.normalized` gives it."""
    target: Tensor
    """[B, X, Y, Z] int64 labels."""
    known: Tensor
    """[B, C] bool, false where nobody drew the class in the patch's case."""


class Draw(NamedTuple):
    """Where the patches of an epoch lie. N patch."""

    case: NDArray[np.int64]
    """[N] place in the list of cases."""
    start: NDArray[np.int64]
    """[N, 3] first voxel; below 0 where the patch is longer than the case."""
    forced: NDArray[np.bool_]
    """[N] whether it is drawn around an organ."""


class VolumeDataLoader:
    """Batches of patches, the same for the same seed and epoch on any number of ranks."""

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        plan: Plan,
        *,
        batch_size: int,
        patch_size: Triple = (128, 128, 64),
        overlap_ratio: float = 0.3,
        foreground: float = 1 / 3,
        num_batches: int = 250,
        augment: Augment | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """
        Args:
            cases: at the plan's spacing.
            plan: how Hounsfield units are scaled.
            batch_size: patches of a step over all ranks.
            patch_size: voxels.
            overlap_ratio: share of a tile that the next one covers too.
            foreground: share of patches that are drawn around an organ.
            num_batches: steps of an epoch.
            augment: changes a patch, after scaling.
            seed: of everything drawn.
            num_workers: threads that make patches ahead; 0 makes them when they are asked for.

        Raises:
            ConfigError: a setting out of range.
            DataError: no cases.
        """
        if not 0 <= overlap_ratio < 1 or not 0 <= foreground <= 1 or min(patch_size) < 1:
            raise ConfigError(
                f"patch_size {patch_size}, overlap_ratio {overlap_ratio}, foreground {foreground}; allowed are sizes from "
                "1 on, 0 <= overlap_ratio < 1 and 0 <= foreground <= 1"
            )
        if batch_size < 1 or num_batches < 1 or num_workers < 0:
            raise ConfigError(
                f"batch_size {batch_size}, num_batches {num_batches}, num_workers {num_workers}; allowed are 1, 1 and 0 "
                "or more"
            )
        if not cases:
            raise DataError("no case to draw patches from; name training cases in splits.json")
        self.cases, self.plan = tuple(cases), plan
        self.batch_size, self.patch_size = batch_size, patch_size
        self.overlap_ratio, self.foreground = overlap_ratio, foreground
        self.num_batches, self.augment, self.seed, self.num_workers = num_batches, augment, seed, num_workers
        self._present = [[k for k, places in enumerate(case.places) if k and len(places)] for case in self.cases]
        self._filled = [number for number, present in enumerate(self._present) if present]

    def __len__(self) -> int:
        return self.num_batches

    def tiles(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One round of candidates: [N] case and [N, 3] first voxel of overlapping tiles that cover every voxel of every
        case, on grids that begin at random."""
        numbers, places = [], []
        for number, case in enumerate(self.cases):
            lines = [
                _line(length, size, self.overlap_ratio, rng)
                for length, size in zip(case.shape, self.patch_size, strict=True)
            ]
            grid = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
            places.append(grid)
            numbers.append(np.full(len(grid), number))
        return np.concatenate(numbers), np.concatenate(places)

    def draw(self, epoch: int) -> Draw:
        """Where the patches of an epoch lie, in order of the global batches."""
        rng = np.random.default_rng([self.seed, epoch])
        count = self.num_batches * self.batch_size
        share = self.foreground if self._filled else 0.0
        steps = np.floor(np.arange(count + 1) * share + 1e-9)  # forced patches are spread evenly over the batches
        forced = np.diff(steps) > 0
        case, start = np.zeros(count, np.int64), np.zeros((count, 3), np.int64)
        free = np.flatnonzero(~forced)
        while len(free):
            numbers, places = self.tiles(rng)
            order = rng.permutation(len(numbers))[: len(free)]
            case[free[: len(order)]], start[free[: len(order)]] = numbers[order], places[order]
            free = free[len(order) :]
        left = np.flatnonzero(forced)
        while len(left):
            order = rng.permutation(self._filled)[: len(left)]
            for place, number in zip(left, order, strict=False):
                case[place], start[place] = number, self._around(int(number), rng)
            left = left[len(order) :]
        return Draw(case, start, forced)

    def epoch(self, epoch: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's part of each global batch: the ranks' parts one after the other are the batch.

        Raises:
            ConfigError: the batch cannot be shared out evenly.
        """
        if self.batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size {self.batch_size} over {world_size} ranks, rank {rank}; batch_size counts the patches of all "
                f"ranks and has to be a multiple of {world_size}, ranks count from 0"
            )
        draw, own = self.draw(epoch), self.batch_size // world_size
        batches = (
            range(step * self.batch_size + rank * own, step * self.batch_size + (rank + 1) * own)
            for step in range(self.num_batches)
        )
        yield from ahead((partial(self._made, draw, epoch, batch) for batch in batches), num_workers=self.num_workers)

    def _made(self, draw: Draw, epoch: int, batch: range) -> Batch:
        return self._batch(draw, [self._patch(draw, epoch, number) for number in batch], batch)

    def _batch(self, draw: Draw, patches: Sequence[tuple[Floats, Labels]], numbers: range) -> Batch:
        known = [self.cases[draw.case[number]].known for number in numbers]
        return Batch(
            image=torch.from_numpy(np.stack([image for image, _ in patches])[:, None]),
            target=torch.from_numpy(np.stack([labels for _, labels in patches]).astype(np.int64)),
            known=torch.tensor(known, dtype=torch.bool),
        )

    def _patch(self, draw: Draw, epoch: int, number: int) -> tuple[Floats, Labels]:
        """[X, Y, Z] scaled image and labels of one patch."""
        case = self.cases[draw.case[number]]
        image = self.plan.normalized(cut(case.image, draw.start[number], self.patch_size, outside=AIR_HU))
        labels = cut(case.labels, draw.start[number], self.patch_size, outside=0)
        if self.augment is not None:
            image, labels = self.augment(image, labels, np.random.default_rng([self.seed, epoch, number]))
        return image, labels

    def _around(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """[3] first voxel of a patch around a voxel of one of the case's classes."""
        case = self.cases[number]
        places = case.places[rng.choice(self._present[number])]
        size, shape = np.array(self.patch_size), np.array(case.shape)
        middle = places[rng.integers(len(places))] + np.round(rng.uniform(-JITTER, JITTER, 3) * size).astype(np.int64)
        return np.asarray(np.clip(middle - size // 2, np.minimum(0, shape - size), np.maximum(0, shape - size)))


def cut(array: NDArray[Any], start: Sequence[int] | NDArray[Any], size: Triple, *, outside: float) -> NDArray[Any]:
    """A patch of an array; only the patch is read, and what lies outside of the array is `outside`."""
    low = [max(0, int(first)) for first in start]
    high = [min(length, int(first) + extent) for first, extent, length in zip(start, size, array.shape, strict=True)]
    inside = array[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    if inside.shape == size:
        return np.array(inside)
    whole = np.full(size, outside, array.dtype)
    place = [int(a - first) for a, first in zip(low, start, strict=True)]
    whole[tuple(slice(a, a + length) for a, length in zip(place, inside.shape, strict=True))] = inside
    return whole


def _line(length: int, size: int, overlap: float, rng: np.random.Generator) -> list[int]:
    """Where tiles begin along an axis: a grid that begins before the array, each tile moved to lie within it.

    An array that is shorter than a tile has one, which lies around it anywhere.
    """
    if length <= size:
        return [int(rng.integers(length - size, 1))]
    shift = int(rng.integers(max(1, int(size * (1 - overlap)))))
    return [max(0, start - shift) for start in starts(length + shift, size, overlap)]
