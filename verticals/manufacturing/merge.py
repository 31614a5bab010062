"""Boxes found in overlapping tiles of a board to boxes of the board: no doubles, no halves. N views, C objects.

A *view* is a box that one tile shows: the whole object, or the part of it that the tile's border left. Two views of different
tiles are of one object where they agree about what both tiles see: each is cut down to the area that the tiles share, and
what is left has to be nearly the same box. A box that only overlaps another one, because it lies inside it or beside it, does
not agree; two boxes of one tile are never one object. Sides that a border cut count only where no tile shows the true one.

What usual merges do instead (suppression of the smaller of two overlapping boxes, or their union) swallows nested objects and
neighbours, and leaves the halves of long ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.data.tiling import Tile
from verticals.manufacturing.boxes import Boxes, joined, overlap

Array = NDArray[np.float32]
_OUTWARD = np.array([-1, -1, 1, 1], np.float32)
"""By side: where its coordinate grows, the box shrinks or grows."""


def merge(
    found: Sequence[Boxes],
    tiles: Sequence[Tile],
    shape: tuple[int, int],
    *,
    tolerance: float = 4.0,
    least_agreement: float = 0.4,
) -> Boxes:
    """The objects of a board, best first.

    Args:
        found: of each tile, in pixels of the board, doubles within the tile suppressed.
        tiles: rows and columns of each, as `core.data.tiling.tiles` gives them.
        shape: height and width of the board.
        tolerance: pixels by which a detector may be wrong about a side.
        least_agreement: overlap of two views, in what both tiles see, from which on they are of one object.
    """
    views = joined(found)
    if not len(views.scores):
        return views
    areas = np.array([(cols.start, rows.start, cols.stop, rows.stop) for rows, cols in tiles], np.float32)
    tile = np.repeat(np.arange(len(found)), [len(boxes.scores) for boxes in found])
    edges = np.array([0, 0, shape[1], shape[0]], np.float32)
    inner = areas != edges  # sides of tiles that are not the board's
    cut = (_OUTWARD * (areas[tile] - views.corners) <= tolerance) & inner[tile]
    one, other, agreement = _agreeing(views, areas[tile], tile, tolerance, least_agreement)
    objects = _grouped(len(tile), tile, one, other, agreement)
    corners, is_open = _outlines(views.corners, cut, objects, tolerance)
    bridged = _bridged(corners, is_open, views.classes[_firsts(objects)], areas, tolerance)
    if bridged is not None:
        objects = bridged[objects]
        corners, is_open = _outlines(views.corners, cut, objects, tolerance)
    scores = np.zeros(len(corners), np.float32)
    np.maximum.at(scores, objects, views.scores)
    merged = Boxes(corners, views.classes[_firsts(objects)], scores)
    return merged.take(np.argsort(-scores, kind="stable"))


def _agreeing(
    views: Boxes, areas: Array, tile: NDArray[np.intp], tolerance: float, least: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Pairs of views of different tiles that may be one object, and how well they agree."""
    wide = views.corners + tolerance * _OUTWARD
    one, other = _meeting(wide)
    fits = (views.classes[one] == views.classes[other]) & (tile[one] != tile[other])
    one, other = one[fits], other[fits]
    low = np.maximum(areas[one, :2], areas[other, :2])
    high = np.minimum(areas[one, 2:], areas[other, 2:])
    shared = np.concatenate((low, high), axis=1) + tolerance * _OUTWARD  # tiles that only touch share a strip
    agreement = overlap(_cut_down(wide[one], shared), _cut_down(wide[other], shared))
    agrees = agreement >= least
    return one[agrees], other[agrees], agreement[agrees]


def _cut_down(corners: Array, area: Array) -> Array:
    """The part of each box within its area; of no extent where there is none."""
    low = np.maximum(corners[:, :2], area[:, :2])
    return np.concatenate((low, np.maximum(low, np.minimum(corners[:, 2:], area[:, 2:]))), axis=1)


def _meeting(corners: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs of boxes that overlap, found along x in order."""
    order = np.argsort(corners[:, 0], kind="stable")
    starts, ends = corners[order, 0], corners[order, 2]
    count = np.searchsorted(starts, ends, side="left") - np.arange(len(order)) - 1
    count = np.maximum(count, 0)
    first = np.repeat(np.arange(len(order)), count)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    one, other = order[first], order[second]
    meets = (corners[one, 1] < corners[other, 3]) & (corners[other, 1] < corners[one, 3])
    return one[meets], other[meets]


def _grouped(
    count: int, tile: NDArray[np.intp], one: NDArray[np.intp], other: NDArray[np.intp], agreement: Array
) -> NDArray[np.intp]:
    """Number of the object that each view is of: the best agreeing pairs first, and no two views of one tile together."""
    group = list(range(count))
    members = [[view] for view in group]
    seen_in = [1 << int(number) for number in tile]
    for pair in np.argsort(-agreement, kind="stable"):
        a, b = group[one[pair]], group[other[pair]]
        if a == b or seen_in[a] & seen_in[b]:
            continue
        if len(members[a]) < len(members[b]):
            a, b = b, a
        for view in members[b]:
            group[view] = a
        members[a] += members[b]
        seen_in[a] |= seen_in[b]
    return np.unique(np.array(group), return_inverse=True)[1].reshape(-1)


def _firsts(objects: NDArray[np.intp]) -> NDArray[np.intp]:
    """A view of each object."""
    return np.unique(objects, return_index=True)[1]


def _outlines(
    corners: Array, cut: NDArray[np.bool_], objects: NDArray[np.intp], tolerance: float
) -> tuple[Array, NDArray[np.bool_]]:
    """[C, 4] box of each object, and its sides that no tile shows.

    A side is the mean of the views that show it; the outermost view's where all were cut.
    """
    count = int(objects.max()) + 1
    outward = corners * _OUTWARD
    outermost = np.full((count, 4), -np.inf, np.float32)
    np.maximum.at(outermost, objects, outward)
    shows = ~cut & (outermost[objects] - outward <= 2 * tolerance)
    sums, shown = np.zeros((count, 4), np.float64), np.zeros((count, 4), np.int64)
    np.add.at(sums, objects, np.where(shows, outward, 0))
    np.add.at(shown, objects, shows)
    sides = np.where(shown > 0, sums / np.maximum(shown, 1), outermost)
    return (sides * _OUTWARD).astype(np.float32), shown == 0


def _bridged(
    corners: Array, is_open: NDArray[np.bool_], classes: NDArray[np.int64], areas: Array, tolerance: float
) -> NDArray[np.intp] | None:
    """New numbers of objects, where two are the ends of a long one whose middle a tile missed; None where there are none.

    Each ends at a tile's border on the side that faces the other, in line with it, and no farther away than a tile is long.
    """
    number = np.arange(len(corners))
    changed = False
    for axis in (0, 1):
        low, high, across = axis, axis + 2, 1 - axis
        befores, afters = np.flatnonzero(is_open[:, high]), np.flatnonzero(is_open[:, low])
        if not len(befores) or not len(afters):
            continue
        one, other = corners[befores][:, None], corners[afters][None]
        gap = other[..., low] - one[..., high]
        inside = np.minimum(one[..., across + 2], other[..., across + 2]) - np.maximum(
            one[..., across], other[..., across]
        )
        outside = np.maximum(one[..., across + 2], other[..., across + 2]) - np.minimum(
            one[..., across], other[..., across]
        )
        in_line = (inside + 2 * tolerance) / (outside + 2 * tolerance)
        reach = float((areas[:, high] - areas[:, low]).max())
        fits = (classes[befores][:, None] == classes[afters]) & (gap > -tolerance) & (gap < reach) & (in_line > 0.6)
        fits &= befores[:, None] != afters[None]
        for before, after in zip(*np.nonzero(fits), strict=True):
            choices = np.where(fits[before], gap[before], np.inf)
            backs = np.where(fits[:, after], gap[:, after], np.inf)
            if choices.argmin() == after and backs.argmin() == before:
                a, b = number[befores[before]], number[afters[after]]
                number[number == b] = a
                changed = True
    return np.unique(number, return_inverse=True)[1].reshape(-1) if changed else None
