"""As-of features of a whole table: entity-sorted prefix sums that every window of an entity shares.

Legend: N event, n event that features are wanted of (all but the context).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from verticals.finance.fraud.events import DAY, Events, Floats, Ints, clock, novelty


class EntityTable:
    """A table's events sorted by entity, then time, with prefix sums: what every window of that entity shares.

    Legend: N event, n event that features are wanted of (all but the context).
    """

    def __init__(self, events: Events, code: Ints, pair: Ints, memory: int, first: int) -> None:
        self.order = order = np.argsort(code, kind="stable")
        count = len(order)
        self.events, self.pair, self.memory = events, pair, memory
        self.time = events.time[order]
        sorted_code = code[order]
        self.begins = np.r_[True, sorted_code[1:] != sorted_code[:-1]] if count else np.zeros(0, bool)
        """[N] whether an event is the first of its entity."""
        self.starts = np.flatnonzero(self.begins)
        self.group = np.repeat(np.arange(len(self.starts)), np.diff(np.r_[self.starts, count]))
        self.rows = np.flatnonzero(order >= first) if first else np.arange(count)
        """[n] places of the events wanted."""
        self.back = np.empty(len(self.rows), np.int64)
        """[n] where each event wanted, in the table's order, stands among `rows`."""
        self.back[order[self.rows] - first] = np.arange(len(self.rows))
        self.now = self.time[self.rows]
        """[n] times of the events wanted."""
        self._marks: dict[str, Floats] = {}
        self._current: dict[str, Floats] = {}
        self._prefixes: dict[tuple[str, int], NDArray[np.complex128]] = {}
        self._reached: dict[tuple[str, int], NDArray[np.complex128]] = {}
        self._extremes: dict[tuple[str, int], Floats] = {}

    def mark(self, name: str) -> Floats:
        """[N] in the order of this table; made when first asked for."""
        if name not in self._marks:
            self._marks[name] = self._mark(name)
        return self._marks[name]

    def _mark(self, name: str) -> Floats:
        if name == "amount":
            return self.events.amount[self.order]
        if name == "gap":
            gap = np.full(len(self.time), self.memory, np.int64)
            gap[1:] = np.where(self.begins[1:], self.memory, np.minimum(np.diff(self.time), self.memory))
            return gap / DAY
        if name == "new":
            return novelty(self.events.time, self.pair, self.memory)[self.order]
        if name in ("night", "weekend"):
            _, self._marks["night"], self._marks["weekend"] = clock(self.time)
            return self._marks[name]
        if name == "loot":
            return self.mark("fraud") * self.mark("amount")
        fraud: Floats = (self.events.fraud[self.order] == 1).astype(np.float64)
        return fraud

    def current(self, mark: str) -> Floats:
        """[n] the mark of the events wanted."""
        if mark not in self._current:
            self._current[mark] = self.mark(mark)[self.rows]
        return self._current[mark]

    def window(self, width: int, delay: int) -> TableWindow:
        """A window's bounds for every event wanted, [n]."""
        low = self._after(self.now - (width + delay))
        return TableWindow(self, low, self._after(self.now - delay) if delay else self.rows, width + delay)

    @cached_property
    def _keys(self) -> list[tuple[int, Ints, slice, Ints]]:
        """Parts of the table whose groups and times fit one 63-bit key: first place, keys, their part of `rows`, its base."""
        if not len(self.rows):
            return []
        origin, newest = int(self.time.min()) - 1, int(self.time.max())
        span = newest - origin + 1
        many = max(1, (2**62) // span)
        edges = np.r_[self.starts, len(self.time)]
        parts = []
        for begin in range(0, len(self.starts), many):
            places = slice(int(edges[begin]), int(edges[min(begin + many, len(self.starts))]))
            base = (self.group[places] - begin) * span - origin
            chosen = slice(*np.searchsorted(self.rows, [places.start, places.stop]).tolist())
            parts.append((places.start, base + self.time[places], chosen, base[self.rows[chosen] - places.start]))
        return parts

    def _after(self, bound: Ints) -> Ints:
        """[n] the first place in each wanted event's own group whose time is after `bound`."""
        found = np.empty(len(bound), np.int64)
        for start, keys, chosen, base in self._keys:
            clipped = np.maximum(bound[chosen], self.time.min() - 1)
            found[chosen] = np.searchsorted(keys, base + clipped, side="right") + start
        return found

    def prefix(self, mark: str, power: int) -> NDArray[np.complex128]:
        """[N + 1] running sum of mark ** power and, as the imaginary part, its rounding error (Knuth's two-sum).

        One array for both, so that a window's bound is looked up once.
        """
        if (mark, power) not in self._prefixes:
            values = self.mark(mark) ** power
            total = np.r_[0.0, np.cumsum(values)]
            step = np.diff(total)
            error = (total[:-1] - (total[1:] - step)) + (values - step)
            both = np.empty(len(total), np.complex128)
            both.real, both.imag = total, np.r_[0.0, np.cumsum(error)]
            self._prefixes[mark, power] = both
        return self._prefixes[mark, power]

    def reached(self, mark: str, power: int) -> NDArray[np.complex128]:
        """[n] the prefix up to each event wanted: the upper end of every window without a delay."""
        if (mark, power) not in self._reached:
            self._reached[mark, power] = self.prefix(mark, power)[self.rows]
        return self._reached[mark, power]

    def extreme(self, mark: str, sign: int) -> Floats:
        """[K, N] sparse table of running maxima of sign * mark: level k covers 2 ** k events."""
        if (mark, sign) not in self._extremes:
            longest = int(np.diff(np.r_[self.starts, len(self.time)]).max(initial=1))
            levels = np.empty((longest.bit_length(), len(self.time)))
            levels[0] = sign * self.mark(mark)
            for k in range(1, len(levels)):
                half = 2 ** (k - 1)
                levels[k] = levels[k - 1]
                np.maximum(levels[k - 1, :-half], levels[k - 1, half:], out=levels[k, :-half])
            self._extremes[mark, sign] = levels
        return self._extremes[mark, sign]

    @cached_property
    def last_fraud(self) -> Ints:
        """[N + 1] place of the newest fraud before each place, -1 where there is none."""
        places: Ints = np.where(self.mark("fraud") > 0, np.arange(len(self.time)), -1)
        return np.concatenate([[-1], np.maximum.accumulate(places)])

    @cached_property
    def next_fraud(self) -> Ints:
        """[N + 1] place of the oldest fraud from each place on, N where there is none."""
        count = len(self.time)
        places: Ints = np.where(self.mark("fraud") > 0, np.arange(count), count)
        return np.concatenate([np.minimum.accumulate(places[::-1])[::-1], [count]])

    @cached_property
    def last_genuine(self) -> Ints:
        places: Ints = np.where(self.mark("fraud") > 0, -1, np.arange(len(self.time)))
        return np.concatenate([[-1], np.maximum.accumulate(places)])


class TableWindow:
    """One window for every event wanted of a table: `Windows` with shapes [n]."""

    profile: TableWindow
    """Set by whoever asks for it. Never itself: a cycle would keep its arrays until Python collects them."""

    def __init__(self, table: EntityTable, low: Ints, high: Ints, reach: int) -> None:
        self.table, self.low, self.high, self.reach = table, low, high, reach
        self.count = (high - low).astype(np.float64)
        self._sums: dict[tuple[str, int], Floats] = {}
        self._extremes: dict[tuple[str, int], Floats] = {}

    def current(self, mark: str) -> Floats:
        return self.table.current(mark)

    def sum(self, mark: str, power: int = 1) -> Floats:
        if (mark, power) not in self._sums:
            prefix = self.table.prefix(mark, power)
            upper = self.table.reached(mark, power) if self.high is self.table.rows else prefix[self.high]
            inside = upper - prefix[self.low]
            self._sums[mark, power] = inside.real + inside.imag
        return self._sums[mark, power]

    def square(self, mark: str) -> Floats:
        return self.sum(mark, 2)

    def minimum(self, mark: str) -> Floats:
        return -self._extreme(mark, -1)

    def maximum(self, mark: str) -> Floats:
        return self._extreme(mark, 1)

    @cached_property
    def _cover(self) -> tuple[Ints, Ints]:
        """[n] places in the flat sparse table of the two overlapping runs that cover the window (any, for an empty one)."""
        level = np.maximum(np.frexp(self.count)[1].astype(np.int64) - 1, 0)
        first = level * len(self.table.time)
        return first + np.minimum(self.low, len(self.table.time) - 1), first + np.maximum(self.high - (1 << level), 0)

    def _extreme(self, mark: str, sign: int) -> Floats:
        if (mark, sign) not in self._extremes:
            table = self.table.extreme(mark, sign).reshape(-1)
            left, right = self._cover
            self._extremes[mark, sign] = np.where(self.high > self.low, np.maximum(table[left], table[right]), -np.inf)
        return self._extremes[mark, sign]

    def _age(self, place: Ints, empty: float) -> Floats:
        inside = (place >= self.low) & (place < self.high)
        age = (self.table.now - self.table.time[np.where(inside, place, 0)]) / DAY
        return np.where(inside, age, empty)

    def newest(self) -> Floats:
        return self._age(self.table.last_fraud[self.high], self.reach / DAY)

    def oldest(self) -> Floats:
        return self._age(self.table.next_fraud[self.low], 0.0)

    @cached_property
    def _run(self) -> Ints:
        """[n] place of the first event after the newest known genuine one, `high` where that is the newest of all."""
        return np.maximum(self.low, self.table.last_genuine[self.high] + 1)

    def streak(self) -> Floats:
        return (self.high - self._run).astype(np.float64)

    def began(self) -> Floats:
        return self._age(self._run, 0.0)

    def genuine(self) -> Floats:
        return self._age(self.table.last_genuine[self.high], self.reach / DAY)
