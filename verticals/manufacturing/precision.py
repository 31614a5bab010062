"""Average precision of found boxes beside drawn ones, as COCO counts it, with intervals over boards. N found, G drawn, W draw.

A found box is right where it overlaps a drawn one of its class that no better found one has taken; the drawn one that it overlaps
most is taken. Precision is read at 101 recalls. Source: Lin et al. 2014; pycocotools gives the same figures without intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verticals.manufacturing.boxes import Boxes, overlap

AUTHORS = 0.33
"""The overlap by which DeepPCB's authors count."""
COCO = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Matches:
    """What was found on a list of boards, and whether it is right, best scores first."""

    board: NDArray[np.int64]
    """[N] place in the list."""
    kind: NDArray[np.int64]
    """[N] class."""
    score: NDArray[np.float32]
    """[N]"""
    right: NDArray[np.bool_]
    """[N, T] by overlap."""
    drawn: NDArray[np.int64]
    """[boards, classes] how many were drawn."""
    overlaps: tuple[float, ...]
    """[T]"""

    @property
    def num_classes(self) -> int:
        return int(self.drawn.shape[1])


def matched(
    found: Sequence[Boxes], drawn: Sequence[Boxes], *, num_classes: int, overlaps: Sequence[float] = (AUTHORS, *COCO)
) -> Matches:
    """
    Args:
        found, drawn: of each board.
        overlaps: from which on a box is right.
    """
    board = np.repeat(np.arange(len(found)), [len(boxes.scores) for boxes in found])
    counts = (
        np.stack([np.bincount(boxes.classes, minlength=num_classes) for boxes in drawn])
        if drawn
        else np.zeros((0, num_classes))
    )
    right = [_right(ours, theirs, overlaps) for ours, theirs in zip(found, drawn, strict=True)]
    kind = np.concatenate([np.zeros(0, np.int64), *(boxes.classes for boxes in found)])
    score = np.concatenate([np.zeros(0, np.float32), *(boxes.scores for boxes in found)])
    flags = np.concatenate([np.zeros((0, len(overlaps)), bool), *right])
    order = np.argsort(-score, kind="stable")
    return Matches(board[order], kind[order], score[order], flags[order], counts.astype(np.int64), tuple(overlaps))


def _right(found: Boxes, drawn: Boxes, overlaps: Sequence[float]) -> NDArray[np.bool_]:
    """[N, T] of one board."""
    right = np.zeros((len(found.scores), len(overlaps)), bool)
    if not len(found.scores) or not len(drawn.scores):
        return right
    shared = overlap(found.corners[:, None].astype(np.float64), drawn.corners[None].astype(np.float64))
    shared[found.classes[:, None] != drawn.classes[None]] = -1
    for number, least in enumerate(overlaps):
        free = np.ones(len(drawn.scores), bool)
        for place in np.argsort(-found.scores, kind="stable"):
            row = np.where(free, shared[place], -1)
            best = int(row.argmax())
            if row[best] >= min(least, 1 - 1e-10):
                free[best] = False
                right[place, number] = True
    return right


def average_precision(matches: Matches, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
    """[W, classes, T] average precision, NaN for a class that nobody drew.

    Args:
        weights: [W, boards] how often each board counts; once where None.
    """
    if weights is None:
        weights = np.ones((1, len(matches.drawn)))
    result = np.full((len(weights), matches.num_classes, len(matches.overlaps)), np.nan)
    for kind in range(matches.num_classes):
        of_kind = matches.kind == kind
        counted = weights[:, matches.board[of_kind]]  # [W, n]
        total = weights @ matches.drawn[:, kind]
        right = matches.right[of_kind]
        found = np.cumsum(counted, axis=1)
        for number in range(len(matches.overlaps)):
            true = np.cumsum(counted * right[:, number], axis=1)
            result[:, kind, number] = [
                _area(t, f, n) if n else np.nan for t, f, n in zip(true, found, total, strict=True)
            ]
    return result


def _area(true: NDArray[np.float64], found: NDArray[np.float64], total: float) -> float:
    """Mean over the recalls of the best precision from there on."""
    if not len(true):
        return 0.0
    precision = true / np.maximum(found, 1e-12)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(true / total, RECALLS - 1e-12, side="left")
    return float(np.where(places < len(best), best[np.minimum(places, len(best) - 1)], 0.0).mean())


def mean_figures(values: NDArray[np.float64], overlaps: Sequence[float]) -> dict[str, NDArray[np.float64]]:
    """Of [W, classes, T]: `map33`, `map50` and `map50_95`, those of them whose overlaps are there, [W] each."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        by_overlap = np.where(there, values, 0).sum(axis=1) / there.sum(axis=1)
    figures = {}
    for name, wanted in (("map50", (0.5,)), ("map33", (AUTHORS,)), ("map50_95", COCO)):
        if set(wanted) <= set(overlaps):
            figures[name] = by_overlap[:, [overlaps.index(one) for one in wanted]].mean(1)
    return figures
