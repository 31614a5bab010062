"""Volumes in patient space: where each voxel lies, other orientations of the same voxels, and resampling by slab.

Coordinates are millimetres in RAS+, as in NIfTI: x grows to the patient's right, y to the front, z to the head.
DICOM's LPS is turned where files are read and written, nowhere else.
I, J, K are the axes of an array; index (i, j, k) is a voxel's centre.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import DataError

AIR_HU = -1024
"""What lies outside of a scan."""
MAX_SHEAR = 1e-3
"""Cosine between two axes up to which they are taken as perpendicular (0.06 degrees)."""
SAME_SPACING = 0.01
"""Relative difference of spacings up to which a network takes the voxels as they are."""
SLAB_VOXELS = 2**19
"""Voxels that are resampled at a time."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: `affine @ (i, j, k, 1)` is a centre in mm, RAS+."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    """[4, 4]; its columns may be oblique, and sheared (a tilted gantry)."""

    def __post_init__(self) -> None:
        """Raises DataError for an affine with NaN, no extent along an axis, or axes that do not span space."""
        affine = np.asarray(self.affine, np.float64)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(length) for length in self.shape))
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise DataError("the volume's affine holds values that are no numbers; it has to be 4 x 4 and finite")
        if (self.spacing_mm < 1e-3).any():
            raise DataError(
                f"the voxel spacing is {_mm(self.spacing_mm)} mm; each has to be greater than 0: correct the header"
            )
        if abs(np.linalg.det(self.directions)) < 0.1:
            raise DataError("the volume's axes lie nearly in one plane; correct its affine")

    @cached_property
    def spacing_mm(self) -> NDArray[np.float64]:
        """[3] distance of neighbouring centres along each axis."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """[3, 3] unit vectors of the axes, as columns."""
        return self.affine[:3, :3] / self.spacing_mm

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def num_voxels(self) -> int:
        return int(np.prod(self.shape))

    @property
    def is_orthogonal(self) -> bool:
        cosines = self.directions.T @ self.directions - np.eye(3)
        return bool(np.abs(cosines).max() <= MAX_SHEAR)

    def world(self, index: NDArray[Any]) -> NDArray[np.float64]:
        """[..., 3] index -> [..., 3] mm."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: NDArray[Any]) -> NDArray[np.float64]:
        """[..., 3] mm -> [..., 3] index, not rounded."""
        return (np.asarray(world, np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def same_as(self, other: Grid, *, tolerance_mm: float = 1e-2) -> bool:
        """Whether both have the same voxels at the same places: no corner is farther off than the tolerance."""
        if self.shape != other.shape:
            return False
        corners = _corners(self.shape)
        return bool(np.abs(self.world(corners) - other.world(corners)).max() <= tolerance_mm)

    def turned(self, axes: Axes) -> Grid:
        """The grid of the turned array."""
        affine = self.affine.copy()
        for axis, flipped in zip(axes.order, axes.flips, strict=True):
            if flipped:
                affine[:3, 3] += affine[:3, axis] * (self.shape[axis] - 1)
                affine[:3, axis] *= -1
        affine[:, :3] = affine[:, list(axes.order)]
        return Grid((self.shape[axes.order[0]], self.shape[axes.order[1]], self.shape[axes.order[2]]), affine)

    def at(self, spacing_mm: NDArray[np.float64] | tuple[float, float, float]) -> Grid:
        """An orthogonal grid of that spacing around the same voxels: the smallest box that holds all of their edges.

        A sheared grid keeps the two axes that are perpendicular (the slices' own) and gets their normal as the third.
        """
        spacing = np.asarray(spacing_mm, np.float64)
        frame = self.directions if self.is_orthogonal else _squared(self.directions)
        edges = self.world(_corners(self.shape, margin=0.5)) @ frame  # coordinates along the frame's axes
        low, high = edges.min(0), edges.max(0)
        shape = np.maximum(1, np.round((high - low) / spacing)).astype(int)
        start = (low + high) / 2 - (shape - 1) / 2 * spacing
        affine = np.eye(4)
        affine[:3, :3] = frame * spacing
        affine[:3, 3] = frame @ start
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


@dataclass(frozen=True)
class Axes:
    """How an array is turned: `transpose(order)`, after the axes with `flips` (in the new order) are reversed."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view."""
        turned = array.transpose(self.order)
        return turned[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flips)]

    def back(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of a turned array in the first orientation."""
        straight = array[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flips)]
        return straight.transpose(np.argsort(self.order))


def network_grid(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """The grid that a network of this spacing sees: axes R, A, S; the scan's own voxels, turned, where they are orthogonal
    and their spacing differs by `SAME_SPACING` at most, else others around them."""
    turned = grid.turned(to_ras(grid))
    near = (np.abs(turned.spacing_mm / np.asarray(spacing_mm) - 1) <= SAME_SPACING).all()
    return turned if near and turned.is_orthogonal else turned.at(spacing_mm)


def to_ras(grid: Grid) -> Axes:
    """How an array on this grid is turned so that its axes point, as nearly as whole turns allow, to R, A and S."""
    best, order = -1.0, (0, 1, 2)
    for candidate in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        aligned = float(sum(abs(grid.directions[place, axis]) for place, axis in enumerate(candidate)))
        if aligned > best + 1e-9:
            best, order = aligned, candidate
    flips = tuple(bool(grid.directions[place, axis] < 0) for place, axis in enumerate(order))
    return Axes(order, (flips[0], flips[1], flips[2]))


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie."""

    array: NDArray[Any]
    """[I, J, K]: int16 Hounsfield units of a CT, uint8 or uint16 labels of a mask."""
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise DataError(f"the array is {list(self.array.shape)}, its grid {list(self.grid.shape)}")

    def turned(self, axes: Axes) -> Volume:
        """The same voxels in another orientation: a view."""
        return Volume(axes(self.array), self.grid.turned(axes))

    def centroid_mm(self, label: int) -> NDArray[np.float64]:
        """[3] mean centre of the voxels of a label, NaN where there are none."""
        count, total = 0, np.zeros(3)
        for k in range(self.array.shape[2]):
            found = np.argwhere(self.array[:, :, k] == label)
            count += len(found)
            total[:2] += found.sum(0)
            total[2] += k * len(found)
        return self.grid.world(total / count) if count else np.full(3, np.nan)


def resampled(volume: Volume, target: Grid) -> Volume:
    """A scan on another grid, interpolated linearly; int16. Outside of the scan the nearest voxel, or air where the
    target is turned or sheared against the source."""
    matrix, offset, straight = _mapping(volume.grid, target)
    out = np.empty(target.shape, np.int16)
    mode, outside = ("nearest", 0.0) if straight else ("constant", float(AIR_HU))
    for part in slabs(target.shape):
        slab = ndimage.affine_transform(
            volume.array,
            np.diag(matrix) if straight else matrix,
            offset + matrix[:, 2] * part.start,
            output_shape=(*target.shape[:2], part.stop - part.start),
            output=np.float32,
            order=1,
            mode=mode,
            cval=outside,
        )
        out[:, :, part] = np.rint(slab, out=slab)
    return Volume(out, target)


def resampled_labels(labels: Volume, target: Grid) -> Volume:
    """A mask on another grid: at each centre the label with the greatest weight among the eight voxels around it, which
    is what linear interpolation of every label's own mask and the largest of them give. Outside of the mask 0."""
    matrix, offset, _ = _mapping(labels.grid, target)
    out = np.empty(target.shape, labels.array.dtype)
    source = np.ascontiguousarray(labels.array)
    for part in slabs(target.shape):
        where = np.meshgrid(
            *(np.arange(n, dtype=np.float32) for n in target.shape[:2]),
            np.arange(part.start, part.stop, dtype=np.float32),
            indexing="ij",
            sparse=True,
        )
        lows: list[NDArray[np.intp]] = []
        highs: list[NDArray[np.intp]] = []
        shares: list[NDArray[np.float32]] = []
        inside: NDArray[np.bool_] = np.ones((1, 1, 1), bool)
        for axis, length in enumerate(source.shape):
            place: NDArray[np.float32] = np.full((1, 1, 1), offset[axis], np.float32)
            for k in range(3):
                if matrix[axis, k]:  # axes that play no part stay of length 1: numpy broadcasts them
                    place = np.add(place, where[k] * np.float32(matrix[axis, k]), dtype=np.float32)
            low = np.floor(place)
            shares.append(place - low)
            inside = inside & (place > -0.5 - 1e-4) & (place < length - 0.5 + 1e-4)
            lows.append(np.clip(low, 0, length - 1).astype(np.intp))
            highs.append(np.clip(low + 1, 0, length - 1).astype(np.intp))
        out[:, :, part] = np.where(inside, _voted(source, lows, highs, shares), 0)
    return Volume(out, target)


def _voted(
    source: NDArray[Any], lows: list[NDArray[np.intp]], highs: list[NDArray[np.intp]], shares: list[NDArray[np.float32]]
) -> NDArray[Any]:
    """The heaviest label of the eight voxels around each place; they disagree at surfaces only."""
    corners = [[(highs if corner >> axis & 1 else lows)[axis] for axis in range(3)] for corner in range(8)]
    first = source[tuple(corners[0])]
    unlike = np.zeros(first.shape, bool)
    for corner in corners[1:]:
        unlike |= source[tuple(corner)] != first
    found = np.nonzero(unlike)
    if not len(found[0]):
        return first
    shape = first.shape
    candidates, weights = [], []
    for number, corner in enumerate(corners):
        candidates.append(source[tuple(np.broadcast_to(axis, shape)[found] for axis in corner)])
        weight = np.ones(len(found[0]), np.float32)
        for axis, share in enumerate(shares):
            part = np.broadcast_to(share, shape)[found]
            weight *= part if number >> axis & 1 else 1 - part
        weights.append(weight)
    best, score = candidates[0].copy(), np.full(len(found[0]), -1.0, np.float32)
    for candidate in candidates:
        votes = np.zeros_like(score)
        for other, weight in zip(candidates, weights, strict=True):
            votes += np.where(other == candidate, weight, 0)
        better = votes > score + 1e-6
        best[better], score[better] = candidate[better], votes[better]
    first = first.copy()
    first[found] = best
    return first


def rotation(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] turns about x, y and z, in radians, one after the other."""
    matrix = np.eye(3)
    for axis, turn in enumerate(turns):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[one, one] = step[two, two] = np.cos(turn)
        step[one, two], step[two, one] = -np.sin(turn), np.sin(turn)
        matrix = step @ matrix
    return matrix


def slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    """Parts of the last axis, of about `SLAB_VOXELS`."""
    depth = max(1, SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], depth):
        yield slice(start, min(start + depth, shape[2]))


def _mapping(source: Grid, target: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """(matrix, offset) from the target's index to the source's, and whether the axes run alike."""
    whole = np.linalg.inv(source.affine) @ target.affine
    matrix, offset = whole[:3, :3].copy(), whole[:3, 3].copy()
    matrix[np.abs(matrix) < 1e-7] = 0
    straight = bool(np.count_nonzero(matrix - np.diag(np.diag(matrix))) == 0)
    return matrix, offset, straight


def _corners(shape: tuple[int, int, int], *, margin: float = 0.0) -> NDArray[np.float64]:
    """[8, 3] indices of the corner voxels' centres, or of their outer corners with margin 0.5."""
    ends = [(-margin, length - 1 + margin) for length in shape]
    return np.array([(i, j, k) for i in ends[0] for j in ends[1] for k in ends[2]])


def _squared(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Perpendicular unit vectors: the two axes that are most nearly perpendicular, and their normal in place of the third."""
    pairs = sorted(((0, 1, 2), (0, 2, 1), (1, 2, 0)), key=lambda p: abs(directions[:, p[0]] @ directions[:, p[1]]))
    one, two, third = pairs[0]
    made = directions.copy()
    made[:, two] -= made[:, one] * (made[:, one] @ made[:, two])
    made[:, two] /= np.linalg.norm(made[:, two])
    normal = np.cross(made[:, one], made[:, two])
    made[:, third] = normal * np.sign(normal @ directions[:, third])
    return made


def _mm(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:g}" for value in values)
