"""Scored rows: one test set with one model's scores, sorted once for any number of figures and weightings.

A row is alerted where its score is at least the threshold, so rows of one score stand together: whatever a threshold
can do is in the cumulative sums at the distinct scores, the `Curve`. A bootstrap asks for it again under other weights
without sorting.

Legend: N row, K distinct score (highest first), G group (a card), M group of a day.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Curve(NamedTuple):
    """What lies at or above each distinct score: enough for every figure of ranking and alerting."""

    threshold: Floats
    """[K] distinct scores, highest first."""
    true: Floats
    """[K] positives (their weight) with at least this score."""
    false: Floats
    """[K] negatives (their weight) with at least this score."""


class Day(NamedTuple):
    """The groups of one day, the highest score first."""

    group: Ints
    """[M] index into `Scored.groups`."""
    positive: Bools
    """[M] the group has a positive row on this day."""


class Scored:
    """The rows of one test set with one model's scores, sorted once for any number of figures and weightings."""

    def __init__(
        self, score: ArrayLike, label: ArrayLike, *, group: ArrayLike | None = None, day: ArrayLike | None = None
    ) -> None:
        """
        Args:
            score: [N] higher is more suspicious; a probability where a figure asks for one.
            label: [N] 1 positive, 0 negative.
            group: [N] whole numbers or strings, the cluster of a row (a card). Without it every row stands alone.
            day: [N] whole days; only the figures "a day" ask for them.

        Raises:
            DataError: no rows, columns of different lengths, a score that is not finite, a label other than 0 and 1.
        """
        values = np.asarray(score, dtype=np.float64)
        labels = np.asarray(label)
        columns = {"score": values, "label": labels}
        columns |= {name: np.asarray(column) for name, column in (("group", group), ("day", day)) if column is not None}
        shapes = {name: column.shape for name, column in columns.items()}
        if values.ndim != 1 or len(set(shapes.values())) != 1:
            raise DataError(f"score, label, group and day are columns of one length; given {shapes}")
        if not len(values):
            raise DataError("no rows to score; give a span of time that holds events")
        if not np.isfinite(values).all():
            raise DataError(f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite")
        known = (labels == 0) | (labels == 1)
        if not known.all():
            raise DataError(
                f"{int((~known).sum())} of {len(labels)} labels are neither 0 nor 1 (first: {labels[~known][0]!r}); "
                "figures need rows whose label is known"
            )
        order = np.argsort(-values, kind="stable")
        self.score: Floats = values[order]
        """[N] sorted, highest first; rows of one score keep their order. The other columns follow."""
        self.label: Bools = labels[order] == 1
        self.order: Ints = order
        """[N] the given row that stands at each place."""
        self.ends: Ints = np.append(np.flatnonzero(self.score[1:] != self.score[:-1]), len(order) - 1)
        """[K] place of the last row of each distinct score."""
        self.grouped = group is not None
        self.groups: NDArray[Any] = np.arange(len(order))
        """[G] the distinct groups, sorted."""
        self.group: Ints = order
        """[N] index into `groups`."""
        if group is not None:
            self.groups, codes = np.unique(columns["group"], return_inverse=True)
            self.group = codes.astype(np.int64)[order]
        self._day: Ints | None = None if day is None else columns["day"].astype(np.int64)[order]
        self.weight: Floats | None = None
        """[N] how often each row counts; None: once."""
        self.times: Floats | None = None
        """[G] how often each group counts; None: once."""
        self._shared: dict[str, Any] = {}
        """What does not depend on the weights: made once for all resampled twins."""

    def __len__(self) -> int:
        return len(self.score)

    @property
    def positives(self) -> int:
        """Positive rows, unweighted."""
        return int(self.label.sum())

    @property
    def prevalence(self) -> float:
        """Share of positive rows, unweighted."""
        return self.positives / len(self)

    @property
    def day(self) -> Ints:
        """[N] the day of each row, sorted as `score`.

        Raises:
            DataError: the rows were given without days.
        """
        if self._day is None:
            raise DataError("a figure a day needs the rows' days; give Scored(..., day=)")
        return self._day

    @property
    def num_days(self) -> int:
        """Days from the first to the last row's, both included."""
        if "num_days" not in self._shared:
            self._shared["num_days"] = int(self.day.max() - self.day.min()) + 1
        return int(self._shared["num_days"])

    def resampled(self, times: Floats) -> Scored:
        """The same rows with every row of group g counted `times[g]` times ([G], at least 0); nothing is sorted."""
        twin = copy.copy(self)
        twin.__dict__.pop("curve", None)
        twin.times = times
        twin.weight = times[self.group]
        return twin

    def same_rows(self, other: Scored) -> bool:
        """Whether the other holds the same labels, groups and days in the same order, whatever its scores."""
        return len(self) == len(other) and all(
            np.array_equal(one, two) for one, two in zip(self._given(), other._given(), strict=True)
        )

    def _given(self) -> list[NDArray[Any]]:
        """Label, group and day in the order in which they were given."""
        back = np.argsort(self.order)
        columns = [self.label, self.groups[self.group] if self.grouped else np.arange(0)]
        columns.append(np.arange(0) if self._day is None else self._day)
        return [column[back] if len(column) else column for column in columns]

    @cached_property
    def curve(self) -> Curve:
        """Positives and negatives at or above each distinct score, under the current weights."""
        weight = np.ones(len(self)) if self.weight is None else self.weight
        total, true = np.cumsum(weight), np.cumsum(weight * self.label)
        if len(self.ends) < len(self):
            total, true = total[self.ends], true[self.ends]
        return Curve(self._thresholds(), true, total - true)

    def _thresholds(self) -> Floats:
        if "thresholds" not in self._shared:
            self._shared["thresholds"] = self.score[self.ends]
        values: Floats = self._shared["thresholds"]
        return values

    def group_days(self) -> list[Day]:
        """The groups of every day in order of their highest score; made once for all weightings."""
        if "days" not in self._shared:
            days, day = np.unique(self.day, return_inverse=True)
            key = day * len(self.groups) + self.group
            pairs, first = np.unique(key, return_index=True)
            positive = np.isin(pairs, key[self.label])
            order = np.lexsort((first, pairs // len(self.groups)))
            pairs, positive = pairs[order], positive[order]
            cuts = np.searchsorted(pairs // len(self.groups), np.arange(1, len(days)))
            group = np.split(pairs % len(self.groups), cuts)
            self._shared["days"] = [Day(*day) for day in zip(group, np.split(positive, cuts), strict=True)]
        days_of: list[Day] = self._shared["days"]
        return days_of
