"""Figures of cases that are each scored by themselves (a scan, a picture): means with intervals, and paired comparisons.

A draw takes as many cases as there are, with replacement. A case in which a score does not exist (NaN: an organ that is
neither drawn nor predicted) counts in no mean of that score.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import DataError
from core.evaluation.bootstrap import Comparison, Figure, Figures, compared, counts, interval

Scores = Mapping[str, ArrayLike]
"""Name -> [N] one score a case, NaN where it does not exist."""


def case_figures(scores: Scores, *, draws: int = 2000, seed: int = 0) -> Figures:
    """Each score's mean over cases with its 95 % percentile interval; `positives` are the cases that have it.

    Raises:
        DataError: no case, or scores of different numbers of cases.
    """
    table = _table(scores)
    drawn = counts(table.shape[1], draws=draws, seed=seed)[1:]
    made = {}
    for name, row in zip(scores, table, strict=True):
        there = ~np.isnan(row)
        low, high = interval(_means(row, drawn))
        made[name] = Figure(float(row[there].mean()) if there.any() else np.nan, low, high, len(row), int(there.sum()))
    return Figures(made, counted=("cases", "scored"))


def case_comparisons(first: Scores, second: Scores, *, draws: int = 2000, seed: int = 0) -> dict[str, Comparison]:
    """First minus second on the same cases under the same draws; a case counts where both have the score.

    Raises:
        DataError: other scores or other numbers of cases.
    """
    if list(first) != list(second):
        raise DataError(f"scores {list(first)} against {list(second)}; compare the same ones")
    ours, theirs = _table(first), _table(second)
    if ours.shape != theirs.shape:
        raise DataError(f"{ours.shape[1]} cases against {theirs.shape[1]}; compare on the same cases")
    drawn = counts(ours.shape[1], draws=draws, seed=seed)[1:]
    made = {}
    for name, row in zip(first, ours - theirs, strict=True):
        there = row[~np.isnan(row)]
        made[name] = compared(float(there.mean()) if len(there) else np.nan, _means(row, drawn))
    return made


def _table(scores: Scores) -> NDArray[np.float64]:
    rows = [np.asarray(row, np.float64) for row in scores.values()]
    if not rows or len({row.shape for row in rows}) != 1 or rows[0].ndim != 1 or not len(rows[0]):
        raise DataError("figures of cases need one score a case, of the same cases in every row, and one case at least")
    return np.stack(rows)


def _means(row: NDArray[np.float64], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """[draws] weighted means over the cases that have the score, NaN where none was drawn."""
    there = ~np.isnan(row)
    weight = drawn[:, there].sum(1)
    total = drawn[:, there] @ row[there]
    means = np.full(len(drawn), np.nan)
    np.divide(total, weight, out=means, where=weight > 0)
    return means
