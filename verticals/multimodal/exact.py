"""Exact search: every row is compared.

Legend: Q query, N row, D number of an embedding, K best.
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
"""Rows that are compared at a time: their scores are what a search holds in memory."""


class Found(NamedTuple):
    """The best rows, the best first; equal ones in the order of their rows."""

    scores: NDArray[np.float32]
    """[Q, K]"""
    rows: NDArray[np.int64]
    """[Q, K]"""


def search(vectors: NDArray[np.float32], queries: NDArray[np.float32], num: int, is_there: NDArray[np.bool_]) -> Found:
    """
    Args:
        vectors: [N, D]
        queries: [Q, D]
        num: the most that are wanted.
        is_there: [N] rows that count.

    Returns:
        K is `num`, or as many rows as count where they are fewer.
    """
    wanted = min(num, int(np.count_nonzero(is_there)))
    if not wanted or not len(queries):
        return Found(np.empty((len(queries), wanted), np.float32), np.empty((len(queries), wanted), np.int64))
    scores, rows = faiss.knn(queries, vectors, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    if is_there[rows].all():
        return Found(scores, rows)
    return _among(vectors, queries, wanted, is_there)  # rare: deleted rows are blank, and like nothing


def _among(vectors: NDArray[np.float32], queries: NDArray[np.float32], num: int, is_there: NDArray[np.bool_]) -> Found:
    """The same, with only the rows that count looked at."""
    parts = [Found(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))]
    for first in range(0, len(vectors), BLOCK):
        rows = first + np.flatnonzero(is_there[first : first + BLOCK])
        parts = [merged([*parts, best(queries @ vectors[rows].T, rows, num)], num)]
    return parts[0]


def best(scores: NDArray[np.float32], rows: NDArray[np.int64], num: int) -> Found:
    """Of [Q, N] scores of [N] rows in order."""
    if scores.shape[1] > num:
        chosen = np.sort(np.argpartition(-scores, num - 1, axis=1)[:, :num], axis=1)
        scores, picked = np.take_along_axis(scores, chosen, 1), rows[chosen]
    else:
        picked = np.broadcast_to(rows, scores.shape)
    order = np.argsort(-scores, axis=1, kind="stable")
    return Found(np.take_along_axis(scores, order, 1), np.take_along_axis(picked, order, 1))


def merged(parts: list[Found], num: int) -> Found:
    """The best of several, whose rows are in order of the parts."""
    scores, rows = (np.concatenate([part[place] for part in parts], axis=1) for place in (0, 1))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :num]
    return Found(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))
