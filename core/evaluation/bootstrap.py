"""Figures with 95 % intervals and paired comparisons, by a bootstrap clustered by group (a card).

One draw takes as many groups as there are, with replacement, and a row counts as often as its group was drawn. Test
sets of several folds share their groups: one draw gives a card the same count in every fold, and the figure is the
mean over folds. So an interval covers the choice of cards, not the choice of weeks, nor a model's training seed. Two
models are compared under the same draws on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from core.errors import DataError
from core.evaluation.metrics import Metric
from core.evaluation.scored import Floats, Ints, Scored


class Figure(NamedTuple):
    """One number with its interval and the counts it stands on."""

    value: float
    """The figure of the rows as given, mean over folds."""
    low: float
    high: float
    n: int
    """Rows of all folds."""
    positives: int
    """Positive rows of all folds."""

    @property
    def prevalence(self) -> float:
        """Share of positive rows."""
        return self.positives / self.n


class Comparison(NamedTuple):
    """First model minus second, on the same rows under the same draws."""

    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided: twice the share of draws on the far side of zero, at least 2 / (draws + 1)."""
    draws: int

    def record(self) -> dict[str, Any]:
        """JSON-able values; None where a value does not exist."""
        return {name: _plain(value) for name, value in self._asdict().items()}


class Figures(Mapping[str, Figure]):
    """Named figures with intervals: what an application's `evaluate` returns."""

    def __init__(
        self, figures: Mapping[str, Figure], *, counted: Sequence[str] = ("rows", "positives", "prevalence")
    ) -> None:
        """
        Args:
            counted: what tables call `n`, `positives` and `prevalence`; the last may be left out.
        """
        self._figures, self._counted = dict(figures), tuple(counted)

    def __getitem__(self, name: str) -> Figure:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def record(self) -> dict[str, Any]:
        """JSON-able: name -> value, low, high, n, positives, prevalence; None where a figure does not exist."""
        return {
            name: {key: _plain(value) for key, value in figure._asdict().items()} | {"prevalence": figure.prevalence}
            for name, figure in self.items()
        }

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column titles and one row of text a figure, for tables of any kind."""
        titles = ("figure", "value", "95 % interval", *self._counted)
        return titles, [
            (
                name,
                f"{figure.value:.4f}",
                f"{figure.low:.4f} to {figure.high:.4f}",
                *(f"{figure.n:,}", f"{figure.positives:,}", f"{figure.prevalence:.3%}")[: len(self._counted)],
            )
            for name, figure in self.items()
        ]

    def table(self) -> str:
        """Plain text: one aligned line a figure."""
        titles, rows = self.cells()
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(widths[place]) for place, cell in enumerate(row) if place)]
            )
            for row in (titles, *rows)
        )


def measure(
    folds: Scored | Sequence[Scored], metrics: Mapping[str, Metric], *, draws: int = 1000, seed: int = 0
) -> Figures:
    """Each metric's mean over the folds with its 95 % percentile interval.

    A draw in which a metric does not exist in some fold (no positive row drawn) is left out of that metric's interval.

    Args:
        folds: one test set or several; several must be grouped, so that a group is the same one in each.
        metrics: name -> figure of scored rows, as `metrics.detection()` gives them.

    Raises:
        DataError: no fold, several folds without groups, or rows unfit for a metric (no days, no probabilities).
    """
    tests = _folds(folds)
    points = [_point(tests, metric) for metric in metrics.values()]
    drawn = _draw([tests], metrics, draws, seed)[:, 0]
    n, positives = sum(map(len, tests)), sum(fold.positives for fold in tests)
    return Figures(
        {
            name: Figure(point, *interval(drawn[:, column]), n, positives)
            for column, (name, point) in enumerate(zip(metrics, points, strict=True))
        }
    )


def compare(
    first: Scored | Sequence[Scored],
    second: Scored | Sequence[Scored],
    metrics: Mapping[str, Metric],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Paired bootstrap of first minus second, for each metric's mean over the folds.

    Raises:
        DataError: the two do not score the same rows (labels, groups and days, in the same order).
    """
    ours, theirs = _folds(first), _folds(second)
    if len(ours) != len(theirs):
        raise DataError(f"{len(ours)} folds against {len(theirs)}; compare on the same folds")
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if not one.same_rows(other):
            raise DataError(
                f"fold {number}: the two models do not score the same rows ({len(one)} rows, {one.positives} positive, "
                f"against {len(other)}, {other.positives}); score one list of rows with both"
            )
    drawn = _draw([ours, theirs], metrics, draws, seed)
    result = {}
    for column, (name, metric) in enumerate(metrics.items()):
        point = _point(ours, metric) - _point(theirs, metric)
        result[name] = compared(point, drawn[:, 0, column] - drawn[:, 1, column])
    return result


def compared(difference: float, drawn: Floats) -> Comparison:
    """A difference, and what it was in each draw; draws in which it does not exist are left out."""
    kept = drawn[~np.isnan(drawn)]
    tail = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    p_value = min(1.0, 2.0 * (tail + 1) / (len(kept) + 1)) if len(kept) else float("nan")
    return Comparison(difference, *interval(drawn), p_value, len(drawn))


def counts(num_groups: int, *, draws: int = 1000, seed: int = 0) -> Floats:
    """[1 + draws, groups] ones, then how often each group was drawn."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=draws)
    return np.concatenate((np.ones((1, num_groups)), drawn))


def _folds(folds: Scored | Sequence[Scored]) -> list[Scored]:
    tests = [folds] if isinstance(folds, Scored) else list(folds)
    if not tests:
        raise DataError("no test set to measure; give one or more Scored")
    if len(tests) > 1 and not all(fold.grouped for fold in tests):
        raise DataError("several folds are drawn by their shared groups; give Scored(..., group=) in each")
    return tests


def _point(folds: Sequence[Scored], metric: Metric) -> float:
    return float(np.mean([metric(fold) for fold in folds]))


def _draw(models: Sequence[Sequence[Scored]], metrics: Mapping[str, Metric], draws: int, seed: int) -> Floats:
    """Mean over folds of each metric in each draw, [draws, models, metrics]; draws depend on seed and groups only."""
    groups = np.unique(np.concatenate([fold.groups for fold in models[0]]))
    places: list[Ints] = [np.searchsorted(groups, fold.groups) for fold in models[0]]
    generator = np.random.default_rng(seed)
    values = np.empty((draws, len(models), len(metrics), len(places)))
    for draw in range(draws):
        chosen = generator.integers(0, len(groups), len(groups))
        times = np.bincount(chosen, minlength=len(groups)).astype(np.float64)
        for column, place in enumerate(places):
            counted = times[place]
            for model, folds in enumerate(models):
                rows = folds[column].resampled(counted)
                values[draw, model, :, column] = [metric(rows) for metric in metrics.values()]
    mean: Floats = values.mean(axis=-1)
    return mean


def interval(drawn: Floats) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of the draws that exist; nan where none does."""
    kept = drawn[~np.isnan(drawn)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.percentile(kept, (2.5, 97.5))
    return float(low), float(high)


def _plain(value: float | int) -> float | int | None:
    return None if math.isnan(value) else value
