"""As-of features of one event: the histories of its card and terminal, and what its windows see of them.

Legend: n event remembered, W window.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from verticals.finance.fraud.events import DAY, Floats, Ints, clock, novelty


class History:
    """What is remembered of one card or terminal: its events within the horizon, oldest first, with their marks.

    Columns are views of growing buffers: adding an event costs a copy now and then, never a rebuild.
    """

    PLACES = {"amount": 0, "gap": 1, "new": 2, "night": 3, "weekend": 4, "fraud": 5}

    def __init__(self, time: Ints, amount: Floats, other: Ints, fraud: NDArray[np.int8], memory: int) -> None:
        """
        Args:
            time: [n] microseconds, not falling.
            amount: [n] currency units.
            other: [n] code of the terminal (a card's history) or of the card (a terminal's).
            fraud: [n] 1 where the label says so.
            memory: microseconds, as in `Features.memory`.
        """
        self.length = len(time)
        gap = np.full(self.length, memory, np.int64)
        gap[1:] = np.minimum(np.diff(time), memory)
        _, night, weekend = clock(np.asarray(time, np.int64))
        self._other = np.array(other, np.int64)
        self._time = np.array(time, np.int64)
        marks = (amount, gap / DAY, novelty(self._time, self._other, memory), night, weekend, np.asarray(fraud) == 1)
        self._marks = np.array([np.asarray(column, np.float64) for column in marks]).reshape(len(marks), self.length)

    @classmethod
    def empty(cls, memory: int) -> History:
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int8), memory)

    @property
    def time(self) -> Ints:
        return self._time[: self.length]

    @property
    def other(self) -> Ints:
        return self._other[: self.length]

    def mark(self, name: str) -> Floats:
        if name == "loot":
            return self.mark("fraud") * self.mark("amount")
        return self._marks[self.PLACES[name], : self.length]

    @property
    def marks(self) -> Floats:
        """[mark, n] all of them, in the order of `PLACES`."""
        return self._marks[:, : self.length]

    def gap(self, time: int, memory: int) -> float:
        """Days from the newest event to `time`, at most `memory`."""
        return (min(time - int(self._time[self.length - 1]), memory) if self.length else memory) / DAY

    def only(self, other: int, memory: int) -> History:
        """The part of this history that shares the other side: the pair's history."""
        rows = np.flatnonzero(self.other == other)
        part = History.__new__(History)
        part.length = len(rows)
        part._time, part._other, part._marks = self._time[rows], self._other[rows], self._marks[:, rows]
        gap = part._marks[self.PLACES["gap"]]  # the other marks are the same for a part
        gap[:1] = memory / DAY
        gap[1:] = np.minimum(part._time[1:] - part._time[:-1], memory) / DAY
        return part

    def append(self, time: int, amount: float, other: int, fraud: int, memory: int) -> None:
        """Remember one event that is not older than the newest."""
        before = np.flatnonzero(self.other == other)
        new = not len(before) or time - int(self._time[before[-1]]) >= memory
        if self.length == len(self._time):
            room = max(16, self.length // 2)
            self._time = np.r_[self._time, np.zeros(room, np.int64)]
            self._other = np.r_[self._other, np.zeros(room, np.int64)]
            self._marks = np.concatenate([self._marks, np.zeros((len(self._marks), room))], axis=1)
        _, night, weekend = clock(np.int64(time))  # type: ignore[arg-type]
        marks = (amount, self.gap(time, memory), float(new), float(night), float(weekend), float(fraud == 1))
        self._time[self.length], self._other[self.length], self._marks[:, self.length] = time, other, marks
        self.length += 1


class EventView:
    """One entity's history as seen from one event: scans and bounds shared by all its windows."""

    def __init__(self, history: History, time: int, marks: dict[str, float], bounds: Ints) -> None:
        self.history, self.time, self.marks, self.bounds = history, time, marks, bounds
        self.places = np.searchsorted(history.time, time - bounds, side="right")
        """Of each bound: the first event after it."""
        self._taken = 0
        self._scans: dict[tuple[str, str], Floats] = {}
        self._totals: dict[int, Floats] = {}

    def take(self, num_windows: int, delay: int) -> EventWindows:
        """The windows of the next group, in the order of `bounds`."""
        first, last = self._taken, self._taken + num_windows
        self._taken = last + 1
        high = int(self.places[last]) if delay else self.history.length
        return EventWindows(self, self.places[first:last], high, self.bounds[first:last])

    def totals(self, power: int) -> Floats:
        """[mark, n + 1] sum of mark ** power (1 or 2) over the newest k events, for every k."""
        if power not in self._totals:
            values = self.history.marks[:, ::-1]
            self._totals[power] = totals = np.zeros((len(values), self.history.length + 1))
            np.cumsum(values if power == 1 else values * values, axis=1, out=totals[:, 1:])
        return self._totals[power]

    def scan(self, mark: str, kind: str) -> Floats:
        """[n + 1] statistic of the newest k events, for every k."""
        if (mark, kind) not in self._scans:
            values = self.history.mark(mark)[::-1]
            self._scans[mark, kind] = scan = np.empty(len(values) + 1)
            start, running = {"sum": (0.0, np.add), "min": (np.inf, np.minimum), "max": (-np.inf, np.maximum)}[kind]
            scan[0] = start
            running.accumulate(values, out=scan[1:])
        return self._scans[mark, kind]


class EventWindows:
    """All windows of one entity for one event: `Windows` with shapes [W]."""

    def __init__(self, view: EventView, low: Ints, high: int, reach: Ints) -> None:
        self.view, self.low, self.high, self.reach = view, low, high, reach
        self.count = (high - low).astype(np.float64)
        self._sums: dict[tuple[str, str], Floats] = {}
        self._all: dict[int, Floats] = {}

    @property
    def profile(self) -> Longest:
        return Longest(self)  # not kept: that would be a cycle, which stays until Python collects it

    def current(self, mark: str) -> float:
        return self.view.marks[mark]

    def _scan(self, mark: str, kind: str) -> Floats:
        if (mark, kind) not in self._sums:
            scan, length = self.view.scan(mark, kind), self.view.history.length
            values = scan[length - self.low]
            self._sums[mark, kind] = values - scan[length - self.high] if self.high < length else values
        return self._sums[mark, kind]

    def _total(self, mark: str, power: int) -> Floats:
        if power not in self._all:
            totals, length = self.view.totals(power), self.view.history.length
            values = totals[:, length - self.low]
            self._all[power] = values - totals[:, length - self.high, None] if self.high < length else values
        total: Floats = self._all[power][History.PLACES[mark]]
        return total

    def sum(self, mark: str) -> Floats:
        return self._scan(mark, "sum") if mark == "loot" else self._total(mark, 1)

    def square(self, mark: str) -> Floats:
        return self._total(mark, 2)

    def minimum(self, mark: str) -> Floats:
        return self._scan(mark, "min")

    def maximum(self, mark: str) -> Floats:
        return self._scan(mark, "max")

    def _age(self, place: Ints, inside: NDArray[np.bool_], empty: Floats | float) -> Floats:
        if not len(self.view.history.time):
            return np.broadcast_to(np.asarray(empty, np.float64), self.low.shape)
        return np.where(inside, (self.view.time - self.view.history.time[np.where(inside, place, 0)]) / DAY, empty)

    @cached_property
    def _frauds(self) -> Ints:
        return np.flatnonzero(self.view.history.mark("fraud")[: self.high])

    def newest(self) -> Floats:
        place = self._frauds[-1] if len(self._frauds) else -1
        return self._age(np.full(self.low.shape, place), place >= self.low, self.reach / DAY)

    def oldest(self) -> Floats:
        index = np.searchsorted(self._frauds, self.low)
        inside = index < len(self._frauds)
        place = self._frauds[np.where(inside, index, 0)] if len(self._frauds) else np.zeros(self.low.shape, np.int64)
        return self._age(place, inside, 0.0)

    @cached_property
    def _genuine(self) -> int:
        """Place of the newest known genuine event, -1 where there is none."""
        places = np.flatnonzero(self.view.history.mark("fraud")[: self.high] == 0)
        return int(places[-1]) if len(places) else -1

    def streak(self) -> Floats:
        return (self.high - np.maximum(self.low, self._genuine + 1)).astype(np.float64)

    def began(self) -> Floats:
        start = np.maximum(self.low, self._genuine + 1)
        return self._age(start, start < self.high, 0.0)

    def genuine(self) -> Floats:
        place = np.full(self.low.shape, self._genuine)
        return self._age(place, place >= self.low, self.reach / DAY)


class Longest:
    """The longest of an event's windows, as the profile that shorter ones are held against; shapes [1]."""

    def __init__(self, windows: EventWindows) -> None:
        place = int(np.argmin(windows.low))
        self.windows, self.place = windows, slice(place, place + 1)
        self.count = windows.count[self.place]

    def sum(self, mark: str) -> Floats:
        return self.windows.sum(mark)[self.place]
