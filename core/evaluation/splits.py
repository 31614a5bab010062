"""Splits of events by time that refuse to leak: a leak is an error, never a warning.

Training ends a label delay before validation begins, and validation a label delay before the test: what is learned from
is known by then. Figures are made from `Held` rows only: they are found by a span of time in the whole table, so that a
thinned or hand-picked test set cannot be expressed.

Times are int64 microseconds since 1970 UTC, durations are days, spans are half open; days count from a span's start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import ConfigError, DataError, LeakError
from core.evaluation.scored import Bools, Ints, Scored

DAY = 86_400_000_000
"""Microseconds in a day."""

BEGINNING = -(2**62)
"""The start of a span that holds all earlier events."""


class Span(NamedTuple):
    """A stretch of time: from `start` up to, but not at, `end` (microseconds since 1970 UTC)."""

    start: int
    end: int

    def holds(self, time: Ints) -> Bools:
        """[N] which of the times lie in the span."""
        return (time >= self.start) & (time < self.end)

    def __str__(self) -> str:
        return f"{_utc(self.start)} to {_utc(self.end)}"


@dataclass(frozen=True)
class TimeSplit:
    """Spans of training, validation and test, a label delay apart.

    Raises:
        LeakError: spans out of order, overlapping, or nearer than the delay.
        ConfigError: an empty span.
    """

    train: Span
    test: Span
    validation: Span | None = None
    delay_days: float = 0.0

    def __post_init__(self) -> None:
        named = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        spans = [(name, span) for name, span in named if span is not None]
        for name, span in spans:
            if span.start >= span.end:
                raise ConfigError(f"the {name} span {span} is empty; give it days")
        for (name, earlier), (later_name, later) in pairwise(spans):
            if later.start - earlier.end < self.delay_days * DAY:
                raise LeakError(
                    f"{name} ends {_utc(earlier.end)} and {later_name} starts {_utc(later.start)}; labels are known "
                    f"{self.delay_days:g} days late, so {later_name} starts no earlier than "
                    f"{_utc(earlier.end + _microseconds(self.delay_days))}"
                )

    @classmethod
    def before(
        cls, test_start: int, *, train_days: float, test_days: float, delay_days: float, validation_days: float = 0.0
    ) -> TimeSplit:
        """The split whose test starts at `test_start`; `train_days=inf` trains on all earlier days."""
        test = Span(test_start, test_start + _microseconds(test_days))
        end = test_start - _microseconds(delay_days)
        validation = None
        if validation_days:
            validation = Span(end - _microseconds(validation_days), end)
            end = validation.start - _microseconds(delay_days)
        start = BEGINNING if math.isinf(train_days) else end - _microseconds(train_days)
        return cls(Span(start, end), test, validation, delay_days)

    def rows(self, time: Ints, span: Span) -> Ints:
        """Rows of the table in one of the split's spans, for training.

        Raises:
            DataError: the table has no row there.
        """
        rows = np.flatnonzero(span.holds(time))
        if not len(rows):
            held = f"from {_utc(int(time.min()))} to {_utc(int(time.max()))}" if len(time) else "without a row"
            raise DataError(f"no event from {span}; the table is {held}")
        return rows


def prequential(
    last_test_start: int,
    *,
    folds: int = 4,
    step_days: float = 7.0,
    train_days: float,
    test_days: float,
    delay_days: float,
    validation_days: float = 0.0,
) -> list[TimeSplit]:
    """The same split again and again, each `step_days` later, oldest first; the last test starts at `last_test_start`.

    Raises:
        ConfigError: no fold, or a step shorter than the test, which would count an event twice.
    """
    if folds < 1 or step_days < test_days:
        raise ConfigError(
            f"{folds} folds {step_days:g} days apart with tests of {test_days:g} days; "
            "give at least one fold, and a step no shorter than the test"
        )
    return [
        TimeSplit.before(
            last_test_start - _microseconds(step_days) * back,
            train_days=train_days,
            test_days=test_days,
            delay_days=delay_days,
            validation_days=validation_days,
        )
        for back in reversed(range(folds))
    ]


class Removal(NamedTuple):
    """The rolling removal of groups known as compromised (cards that the bank would have blocked)."""

    delay_days: float
    """A positive event is known this long after it; a day's list is drawn up at the day's start."""
    known_days: float = math.inf
    """How long before the span's start, less the delay, the list begins; the handbook's is its 7 training days."""

    def rows(self, span: Span, *, time: Ints, label: NDArray[Any], group: NDArray[Any]) -> Bools:
        """[N] rows of the span whose group has a positive event that is known at the start of the row's day."""
        begin = BEGINNING
        if not math.isinf(self.known_days):
            begin = span.start - _microseconds(self.delay_days) - _microseconds(self.known_days)
        inside = span.holds(time)
        source = np.flatnonzero((label == 1) & (time >= begin) & (time < span.end))
        removed = np.zeros(len(time), dtype=np.bool_)
        if len(source):
            source = source[np.lexsort((time[source], group[source]))]
            groups, first = np.unique(group[source], return_index=True)
            place = np.minimum(np.searchsorted(groups, group[inside]), len(groups) - 1)
            day_start = span.start + (time[inside] - span.start) // DAY * DAY
            known = time[source[first]][place] < day_start - _microseconds(self.delay_days)
            removed[inside] = (groups[place] == group[inside]) & known
        return removed


class Held:
    """Every event of a validation or test span, save what the removal rule takes: where figures come from."""

    def __init__(
        self, span: Span, *, time: Ints, label: NDArray[Any], group: NDArray[Any], removal: Removal | None = None
    ) -> None:
        """
        Args:
            time, label, group: [N] columns of the whole table, in its order; labels 1, 0, or -1 for not known.

        Raises:
            DataError: no row in the span, or one whose label is not known yet.
        """
        inside = span.holds(time)
        keep = inside if removal is None else inside & ~removal.rows(span, time=time, label=label, group=group)
        self.span = span
        self.rows: Ints = np.flatnonzero(keep)
        """[n] places in the table, in its order."""
        self.label: NDArray[Any] = label[self.rows]
        self.group: NDArray[Any] = group[self.rows]
        self.day: Ints = (time[self.rows] - span.start) // DAY
        """[n] days since the span's start."""
        self.removed = int(inside.sum()) - len(self.rows)
        """Events that the removal rule took."""
        if not len(self.rows):
            raise DataError(f"no event from {span} ({self.removed} removed as known); the table must cover it")
        unknown = int((self.label < 0).sum())
        if unknown:
            raise DataError(f"{unknown} of {len(self.rows)} events from {span} have no label yet; end the span earlier")

    def __len__(self) -> int:
        return len(self.rows)

    def scored(self, score: ArrayLike, *, rows: Ints | None = None) -> Scored:
        """The held rows with a model's scores, ready for figures.

        Args:
            score: [n] one score a held row.
            rows: [n] places in the table that the scores belong to, where the scorer says so: they are put in order.

        Raises:
            LeakError: the scores are not for every held row and no other.
        """
        values = np.asarray(score, dtype=np.float64)
        if rows is not None:
            self.check(rows)
            values = values[np.argsort(rows, kind="stable")] if len(values) == len(rows) else values
        if values.shape != self.rows.shape:
            raise LeakError(
                f"{len(values)} scores for the {len(self.rows)} events from {self.span}; validation and test are never "
                "thinned: score every one"
            )
        return Scored(values, self.label, group=self.group, day=self.day)

    def check(self, rows: Ints) -> None:
        """Refuses rows that are not exactly the held ones, in any order.

        Raises:
            LeakError: rows missing (thinned), foreign or repeated, with their counts by label.
        """
        missing = ~np.isin(self.rows, rows)
        foreign = int((~np.isin(rows, self.rows)).sum())
        repeated = len(rows) - len(np.unique(rows))
        if missing.any() or foreign or repeated:
            positive = int((self.label[missing] == 1).sum())
            raise LeakError(
                f"rows given for {self.span} miss {int(missing.sum()) - positive} genuine and {positive} positive of "
                f"{len(self.rows)} events, hold {foreign} from elsewhere and {repeated} twice; validation and test are "
                "never thinned nor re-drawn: evaluate every event of the span"
            )


def check_split(time: Ints, train_rows: Ints, test_rows: Ints, delay_days: float) -> None:
    """Refuses a split that is not ordered by time with the label delay between.

    Args:
        time: [N] microseconds since 1970 UTC, of the whole table.
        train_rows, test_rows: places in the table.

    Raises:
        DataError: one of the two is empty.
        LeakError: shared rows, training rows that are not older than the test (a random split), or too short a gap.
    """
    if not len(train_rows) or not len(test_rows):
        raise DataError(f"{len(train_rows)} training and {len(test_rows)} test rows; both need at least one")
    shared = int(np.isin(train_rows, test_rows).sum())
    if shared:
        raise LeakError(f"{shared} of {len(test_rows)} test rows are training rows too; split by time, not by draw")
    train_time, start = time[train_rows], int(time[test_rows].min())
    newest = int(train_time.max())
    late = int((train_time >= start).sum())
    if late:
        raise LeakError(
            f"{late} of {len(train_rows)} training rows are not older than the first test row ({_utc(start)}; the "
            f"newest training row is of {_utc(newest)}): a random split lets the future into the past; use TimeSplit"
        )
    if start - newest < _microseconds(delay_days):
        near = int((train_time > start - _microseconds(delay_days)).sum())
        raise LeakError(
            f"{near} of {len(train_rows)} training rows lie less than the label delay of {delay_days:g} days before "
            f"the first test row ({_utc(start)}; the newest training row is of {_utc(newest)}): their labels were not "
            "known yet"
        )


def check_fitted(fitted_until: int, test_start: int, *, what: str = "a transform") -> None:
    """Refuses a scaler, encoder or calibration that has seen test days.

    Args:
        fitted_until: time of the newest event that it was fitted on.
        test_start: start of the span that it is about to be judged on.
        what: its name, for the message.

    Raises:
        LeakError: the newest event fitted on is not older than the test.
    """
    if fitted_until >= test_start:
        raise LeakError(
            f"{what} was fitted on events up to {_utc(fitted_until)}, and the test starts {_utc(test_start)}; "
            "fit it on training days only"
        )


def _microseconds(days: float) -> int:
    return round(days * DAY)


def _utc(time: int) -> str:
    if time <= BEGINNING:
        return "the beginning"
    return str(np.datetime_as_string(np.datetime64(time, "us"), unit="s")).replace("T", " ")
