"""As-of features of a card transaction: one definition, computed in two ways.

A `Block` says "for this entity, this mark, this statistic, over these windows". `Features.table` evaluates the blocks
for every row of a table (entity-sorted prefix sums); `Features.event` evaluates the same blocks for one event from the
histories of its card and terminal. Both hand the same few primitives (count, sum, square, minimum, maximum, ages) to
the same formulas, `STATISTICS`, so a feature cannot mean two things.

Legend: N event, W window, F feature. Times are int64 microseconds since 1970 UTC, ages and gaps are days. A window of
w days with a delay of d days holds the events in (t - d - w, t - d]; without a delay it holds the event itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from core.config import Config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Entity = Literal["customer", "terminal", "pair"]

DAY = 86_400_000_000
"""Microseconds in a day."""

SPREAD_FLOOR = 1e-8
"""A variance under this share of the mean square is rounding, and counts as zero (same rule in both ways)."""

PRIOR_EVENTS, PRIOR_VARIATION = 3.0, 0.5
"""`deviation` mixes the variance seen with that of a card whose spread is half its mean, worth three events."""


class Events(NamedTuple):
    """Transactions in the order in which they happened; ties keep the order of arrival."""

    time: Ints
    """[N] microseconds since 1970 UTC, not falling."""
    customer: Ints
    """[N] code of the card."""
    terminal: Ints
    """[N] code of the terminal."""
    amount: Floats
    """[N] currency units, at least 0."""
    fraud: NDArray[np.int8]
    """[N] 1 fraud, 0 genuine, -1 not known (counts as genuine until a label says otherwise)."""

    def __len__(self) -> int:  # the number of events, not of columns
        return len(self.time)

    def rows(self, index: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Events:
        """The events at these places."""
        return Events(
            self.time[index], self.customer[index], self.terminal[index], self.amount[index], self.fraud[index]
        )

    @classmethod
    def joined(cls, parts: Sequence[Events]) -> Events:
        """The parts one after the other."""
        columns: Iterator[tuple[NDArray[Any], ...]] = zip(*parts, strict=True)
        time, customer, terminal, amount, fraud = (np.concatenate(column) for column in columns)
        return cls(time, customer, terminal, amount, fraud)


class FeatureConfig(Config):
    """Which windows the as-of features look at. Every window counts back from the event, itself included."""

    customer_windows: tuple[float, ...] = (1 / 24, 0.25, 1.0, 3.0, 7.0, 14.0, 30.0, 60.0)
    """Days; the card's own events."""
    terminal_windows: tuple[float, ...] = (0.25, 1.0, 7.0, 30.0)
    """Days; the terminal's events."""
    pair_windows: tuple[float, ...] = (7.0, 30.0)
    """Days; the card's events at this terminal."""
    risk_windows: tuple[float, ...] = (1.0, 3.0, 7.0, 14.0, 21.0, 28.0)
    """Days; events whose label is known, at the terminal and on the card."""
    label_delay: float = 7.0
    """Days after which a transaction's label is known and may be used."""
    memory: float = 30.0
    """Days after which a pair counts as new again, and the cap on gaps."""
    wide: bool = False
    """All statistics for every mark, for sets of thousands of features."""

    @classmethod
    def of_size(cls, size: Literal["small", "default", "wide"]) -> FeatureConfig:
        """`small` about 60 features, `default` about 140, `wide` more than 2,000 with no window over 14 days."""
        if size == "small":
            return cls(
                customer_windows=(1.0, 7.0, 30.0),
                terminal_windows=(1.0, 30.0),
                pair_windows=(30.0,),
                risk_windows=(1.0, 7.0, 30.0),
            )
        if size == "default":
            return cls()
        steps = tuple(float(round(value, 3)) for value in np.geomspace(0.25, 13.0, 28))
        return cls(
            customer_windows=steps,
            terminal_windows=steps,
            pair_windows=steps[8:],
            risk_windows=steps[6:],
            memory=6.0,
            wide=True,
        )


@dataclass(frozen=True)
class Block:
    """One statistic of one mark of one entity's events over several windows: `len(windows)` features."""

    entity: Entity
    mark: str
    statistic: str
    windows: tuple[int, ...]
    """Microseconds."""
    delay: int = 0
    """Microseconds."""

    @property
    def names(self) -> list[str]:
        return [f"{self.entity}_{self.mark}_{self.statistic}_{window / DAY:.4g}d" for window in self.windows]


class Windows(Protocol):
    """What a formula may ask of a set of windows. Shapes broadcast: [N] for a table's window, [W] for an event's."""

    count: Floats
    """Events before the current one (no delay), or all events (with a delay)."""

    def current(self, mark: str) -> Floats | float: ...
    def sum(self, mark: str) -> Floats: ...
    def square(self, mark: str) -> Floats: ...
    def minimum(self, mark: str) -> Floats: ...
    def maximum(self, mark: str) -> Floats: ...
    def newest(self) -> Floats: ...
    def oldest(self) -> Floats: ...
    def streak(self) -> Floats: ...
    def began(self) -> Floats: ...
    def genuine(self) -> Floats: ...
    @property
    def profile(self) -> Windows: ...


def _ratio(above: Floats, below: Floats, empty: float) -> Floats:
    """above / below, and `empty` where below is not positive."""
    fine = below > 0
    return np.where(fine, above / np.where(fine, below, 1.0), empty)


def _spread(count: Floats, total: Floats, square: Floats) -> Floats:
    """Population variance from sums, [..]; rounding counts as zero."""
    count = np.maximum(count, 1.0)
    mean, mean_square = total / count, square / count
    variance = mean_square - mean * mean
    return np.where(variance > SPREAD_FLOOR * mean_square, variance, 0.0)


def _deviation(w: Windows, mark: str) -> Floats:
    """How many standard deviations the event lies from the earlier ones (spread shrunk to a prior), within +-50."""
    count = w.count
    mean = w.sum(mark) / np.maximum(count, 1.0)
    prior = (PRIOR_VARIATION * mean) ** 2
    variance = (count * _spread(count, w.sum(mark), w.square(mark)) + PRIOR_EVENTS * prior) / (count + PRIOR_EVENTS)
    scale = np.sqrt(variance)
    return np.where(
        (count > 0) & (scale > 0), np.clip((w.current(mark) - mean) / np.where(scale > 0, scale, 1.0), -50, 50), 0.0
    )


STATISTICS: dict[str, Callable[[Windows, str], Floats]] = {
    # with the event itself
    "count": lambda w, mark: w.count + 1.0,
    "sum": lambda w, mark: w.sum(mark) + w.current(mark),
    "mean": lambda w, mark: (w.sum(mark) + w.current(mark)) / (w.count + 1.0),
    "std": lambda w, mark: np.sqrt(
        _spread(w.count + 1.0, w.sum(mark) + w.current(mark), w.square(mark) + np.square(w.current(mark)))
    ),
    "min": lambda w, mark: np.minimum(w.minimum(mark), w.current(mark)),
    "max": lambda w, mark: np.maximum(w.maximum(mark), w.current(mark)),
    # the event against the earlier ones
    "ratio": lambda w, mark: np.minimum(_ratio(w.current(mark) * w.count, w.sum(mark), 1.0), 1e3),
    "deviation": _deviation,
    # the window against the longest one of the entity
    "peak": lambda w, mark: np.minimum(
        _ratio(np.where(w.count > 0, w.maximum(mark), 0.0) * w.profile.count, w.profile.sum(mark), 0.0), 1e3
    ),
    "drift": lambda w, mark: np.minimum(_ratio(w.sum(mark) * w.profile.count, w.profile.sum(mark) * w.count, 1.0), 1e3),
    # labels known by now: these have a delay, so the event itself is never among them
    "known": lambda w, mark: w.count,
    "frauds": lambda w, mark: w.sum(mark),
    "risk": lambda w, mark: w.sum(mark) / np.maximum(w.count, 1.0),
    "newest": lambda w, mark: w.newest(),
    "oldest": lambda w, mark: w.oldest(),
    "streak": lambda w, mark: w.streak(),
    "began": lambda w, mark: w.began(),
    "genuine": lambda w, mark: w.genuine(),
    "loot": lambda w, mark: _ratio(w.sum("loot"), w.sum(mark), 0.0),
}
"""Formulas by name. `newest` and `oldest` are ages of known frauds in days (window + delay, and 0, where there is none);
`streak` counts the known frauds since the newest known genuine event, `began` is the age of the first of them (0 where there
is none), `genuine` that of the genuine event itself. `loot` is the mean amount of the known frauds."""

CURRENT = ("amount", "log_amount", "hour_sin", "hour_cos", "night", "weekend")
"""Features of the event alone."""

MARKS = {
    "customer": ("amount", "gap", "new", "night", "weekend"),
    "terminal": ("amount", "gap", "new", "night", "weekend"),
    "pair": ("amount", "gap"),
}


def clock(time: Ints) -> tuple[Floats, Floats, Floats]:
    """Hour of the day in [0, 24), night (before 6:00) and weekend as 0 or 1, each like `time`."""
    hour = (time % DAY) / (DAY / 24)
    weekday = (time // DAY + 3) % 7
    return hour, (hour < 6 + 1 / 3600 / 24).astype(np.float64), (weekday >= 5).astype(np.float64)


def current(time: Ints, amount: Floats) -> list[Floats]:
    """The `CURRENT` features, each like `time`."""
    hour, night, weekend = clock(time)
    angle = hour * (2 * np.pi / 24)
    return [amount, np.log1p(amount), np.sin(angle), np.cos(angle), night, weekend]


class Features:
    """The feature set that a `FeatureConfig` defines: names, order, and the two ways to compute it."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self.blocks = tuple(_blocks(config))
        self.names = (*CURRENT, *(name for block in self.blocks for name in block.names))
        self.memory = int(config.memory * DAY)
        self.horizon = max(max(block.windows) + block.delay for block in self.blocks) + self.memory
        """Microseconds of history that decide every feature: older events can be forgotten."""
        first = len(CURRENT)
        self._groups: dict[tuple[Entity, int, tuple[int, ...]], list[tuple[Block, int]]] = {}
        for block in self.blocks:
            self._groups.setdefault((block.entity, block.delay, block.windows), []).append((block, first))
            first += len(block.windows)

    def __len__(self) -> int:
        return len(self.names)

    def table(self, events: Events, *, dtype: type[np.floating] = np.float32, first: int = 0) -> NDArray[np.floating]:
        """Features of every event from `first` on; the events before it are context only.

        Returns:
            [F, N - first] of `dtype`: one feature a row, so that a column of a table is contiguous.
        """
        if len(events) and (np.diff(events.time) < 0).any():
            raise ValueError("events must be in time order: sort them by time first")
        out = np.empty((len(self), len(events) - first), dtype)
        for row, values in enumerate(current(events.time[first:], events.amount[first:])):
            out[row] = values
        codes = {
            "customer": events.customer,
            "terminal": events.terminal,
            "pair": events.customer * (int(events.terminal.max(initial=0)) + 1) + events.terminal,
        }
        new = _novelty(events.time, codes["pair"], self.memory)
        for entity, code in codes.items():
            groups = {key: blocks for key, blocks in self._groups.items() if key[0] == entity}
            if not groups:
                continue
            table = _EntityTable(events, code, new, self.memory)
            rows = np.flatnonzero(table.order >= first)
            target = table.order[rows] - first
            for (_, delay, windows), blocks in groups.items():
                profile = (
                    table.window(max(windows), delay)
                    if any(b.statistic in ("peak", "drift") for b, _ in blocks)
                    else None
                )
                for place, width in enumerate(windows):
                    window = table.window(width, delay, profile)
                    for block, start in blocks:
                        out[start + place, target] = STATISTICS[block.statistic](window, block.mark)[rows]
        return out

    def event(
        self, time: int, amount: float, terminal: int, customer_history: History, terminal_history: History
    ) -> Floats:
        """[F] features of one event from what is remembered of its card and terminal (neither holds it yet).

        Args:
            time: microseconds since 1970 UTC.
            amount: currency units.
            terminal: code of the terminal, as in `customer_history.other`.
        """
        out = np.empty(len(self))
        out[: len(CURRENT)] = [float(value) for value in current(np.int64(time), np.float64(amount))]  # type: ignore[arg-type]
        pair_history = customer_history.only(terminal, self.memory)
        histories = {"customer": customer_history, "terminal": terminal_history, "pair": pair_history}
        gap = pair_history.gap(time, self.memory)
        _, night, weekend = clock(np.int64(time))  # type: ignore[arg-type]
        marks = {
            "amount": amount,
            "night": float(night),
            "weekend": float(weekend),
            "new": float(gap >= self.memory / DAY),
        }
        views: dict[Entity, _EventView] = {}
        for (entity, delay, windows), blocks in self._groups.items():
            if entity not in views:
                history = histories[entity]
                views[entity] = _EventView(history, time, marks | {"gap": history.gap(time, self.memory)})
            window = _EventWindows(views[entity], windows, delay)
            for block, start in blocks:
                out[start : start + len(windows)] = STATISTICS[block.statistic](window, block.mark)
        return out


def _blocks(config: FeatureConfig) -> Iterator[Block]:
    """The definition: which statistics of which marks a configuration asks for."""

    def days(values: Sequence[float]) -> tuple[int, ...]:
        return tuple(round(value * DAY) for value in values)

    delay = int(config.label_delay * DAY)
    spans = {
        "customer": days(config.customer_windows),
        "terminal": days(config.terminal_windows),
        "pair": days(config.pair_windows),
    }
    lean: dict[Entity, dict[str, tuple[str, ...]]] = {
        "customer": {
            "amount": ("count", "mean", "std", "max", "ratio", "deviation", "peak"),
            "gap": ("mean",),
            "new": ("mean",),
            "night": ("mean",),
        },
        "terminal": {"amount": ("count", "mean", "ratio", "deviation"), "new": ("mean",)},
        "pair": {"amount": ("count", "mean")},
    }
    full = ("sum", "mean", "std", "min", "max", "ratio", "deviation")
    wide: dict[Entity, dict[str, tuple[str, ...]]] = {
        "customer": {
            "amount": ("count", *full, "peak"),
            "gap": ("mean", "std", "min", "max", "ratio", "deviation"),
            "new": ("sum", "mean"),
            "night": ("sum", "mean"),
            "weekend": ("sum", "mean"),
        },
        "terminal": {
            "amount": ("count", *full, "peak"),
            "gap": ("mean", "std", "min", "max", "ratio", "deviation"),
            "new": ("sum", "mean"),
            "night": ("sum", "mean"),
            "weekend": ("sum", "mean"),
        },
        "pair": {"amount": ("count", *full), "gap": ("mean", "std", "min", "max")},
    }
    for entity, marks in (wide if config.wide else lean).items():
        for mark, statistics in marks.items():
            for statistic in statistics:
                yield Block(entity, mark, statistic, spans[entity])
        if not config.wide:
            yield Block(entity, "gap", "min", spans[entity][:1])
            if entity == "customer":
                yield Block(entity, "amount", "drift", spans[entity][:-1])
    known = days(config.risk_windows)
    yield from (Block("terminal", "fraud", name, known, delay) for name in ("known", "frauds", "risk"))
    whole = known if config.wide else known[-1:]
    yield from (
        Block("terminal", "fraud", name, whole, delay)
        for name in ("newest", "oldest", "streak", "began", "genuine", "loot")
    )
    yield from (Block("customer", "fraud", name, whole, delay) for name in ("frauds", "risk", "newest"))


def _novelty(time: Ints, pair: Ints, memory: int) -> Floats:
    """[N] 1 where the card was not at this terminal in the last `memory` microseconds."""
    order = np.argsort(pair, kind="stable")
    gap = np.full(len(time), memory, np.int64)
    same = pair[order][1:] == pair[order][:-1]
    gap[order[1:][same]] = np.diff(time[order])[same]
    return (gap >= memory).astype(np.float64)


class _EntityTable:
    """A table's events sorted by entity, then time, with prefix sums: what every window of that entity shares."""

    def __init__(self, events: Events, code: Ints, new: Floats, memory: int) -> None:
        self.order = order = np.argsort(code, kind="stable")
        self.time = events.time[order]
        sorted_code = code[order]
        starts = (
            np.flatnonzero(np.r_[True, sorted_code[1:] != sorted_code[:-1]]) if len(order) else np.zeros(0, np.int64)
        )
        self.group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(order)]))
        self.starts = starts
        gap = np.full(len(order), memory, np.int64)
        gap[1:] = np.where(sorted_code[1:] == sorted_code[:-1], np.minimum(np.diff(self.time), memory), memory)
        _, night, weekend = clock(self.time)
        self.marks: dict[str, Floats] = {
            "amount": events.amount[order],
            "gap": gap / DAY,
            "new": new[order],
            "night": night,
            "weekend": weekend,
            "fraud": (events.fraud[order] == 1).astype(np.float64),
        }
        self.marks["loot"] = self.marks["fraud"] * self.marks["amount"]
        self.prefixes: dict[tuple[str, int], tuple[Floats, Floats]] = {}
        self.extremes: dict[tuple[str, int], list[Floats]] = {}

    def window(self, width: int, delay: int, profile: _TableWindow | None = None) -> _TableWindow:
        low = self._after(self.time - (width + delay))
        high = self._after(self.time - delay) if delay else np.arange(len(self.time))
        return _TableWindow(self, low, high, width + delay, profile)

    def _after(self, bound: Ints) -> Ints:
        """[N] the first place in each event's own group whose time is after `bound`."""
        if not len(bound):
            return np.zeros(0, np.int64)
        origin = int(min(bound.min(), self.time.min()))
        span = int(self.time.max()) - origin + 1
        many = max(1, (2**62) // span)  # groups that fit one 63-bit key
        found = np.empty(len(bound), np.int64)
        edges = np.r_[self.starts, len(bound)]
        for begin in range(0, len(self.starts), many):
            rows = slice(edges[begin], edges[min(begin + many, len(self.starts))])
            base = (self.group[rows] - begin) * span - origin
            found[rows] = np.searchsorted(base + self.time[rows], base + bound[rows], side="right") + edges[begin]
        return found

    def prefix(self, mark: str, power: int) -> tuple[Floats, Floats]:
        """Running sum of mark ** power and its running rounding error, [N + 1] each (Knuth's two-sum)."""
        if (mark, power) not in self.prefixes:
            values = self.marks[mark] ** power
            total = np.r_[0.0, np.cumsum(values)]
            step = np.diff(total)
            error = (total[:-1] - (total[1:] - step)) + (values - step)
            self.prefixes[mark, power] = total, np.r_[0.0, np.cumsum(error)]
        return self.prefixes[mark, power]

    def extreme(self, mark: str, sign: int) -> list[Floats]:
        """Sparse table of running maxima of sign * mark: level k covers 2 ** k events."""
        if (mark, sign) not in self.extremes:
            levels = [sign * self.marks[mark]]
            longest = int(np.diff(np.r_[self.starts, len(self.time)]).max(initial=1))
            while 2 ** len(levels) <= longest:
                last, half = levels[-1], 2 ** (len(levels) - 1)
                level = last.copy()
                level[:-half] = np.maximum(last[:-half], last[half:])
                levels.append(level)
            self.extremes[mark, sign] = levels
        return self.extremes[mark, sign]

    @cached_property
    def last_fraud(self) -> Ints:
        """[N + 1] place of the newest fraud before each place, -1 where there is none."""
        places: Ints = np.where(self.marks["fraud"] > 0, np.arange(len(self.time)), -1)
        return np.concatenate([[-1], np.maximum.accumulate(places)])

    @cached_property
    def next_fraud(self) -> Ints:
        """[N + 1] place of the oldest fraud from each place on, N where there is none."""
        count = len(self.time)
        places: Ints = np.where(self.marks["fraud"] > 0, np.arange(count), count)
        return np.concatenate([np.minimum.accumulate(places[::-1])[::-1], [count]])

    @cached_property
    def last_genuine(self) -> Ints:
        places: Ints = np.where(self.marks["fraud"] > 0, -1, np.arange(len(self.time)))
        return np.concatenate([[-1], np.maximum.accumulate(places)])


class _TableWindow:
    """One window for every event of a table: `Windows` with shapes [N]."""

    def __init__(self, table: _EntityTable, low: Ints, high: Ints, reach: int, profile: _TableWindow | None) -> None:
        self.table, self.low, self.high, self.reach = table, low, high, reach
        self.count = (high - low).astype(np.float64)
        self._profile = profile
        self._sums: dict[tuple[str, int], Floats] = {}

    @property
    def profile(self) -> Windows:
        return self._profile or self

    def current(self, mark: str) -> Floats:
        return self.table.marks[mark]

    def sum(self, mark: str, power: int = 1) -> Floats:
        if (mark, power) not in self._sums:
            total, error = self.table.prefix(mark, power)
            self._sums[mark, power] = (total[self.high] - total[self.low]) + (error[self.high] - error[self.low])
        return self._sums[mark, power]

    def square(self, mark: str) -> Floats:
        return self.sum(mark, 2)

    def minimum(self, mark: str) -> Floats:
        return -self._extreme(mark, -1)

    def maximum(self, mark: str) -> Floats:
        return self._extreme(mark, 1)

    @cached_property
    def _level(self) -> Ints:
        """[N] the largest k with 2 ** k events in the window, -1 for an empty one."""
        return np.frexp(self.count)[1].astype(np.int64) - 1

    def _extreme(self, mark: str, sign: int) -> Floats:
        out = np.full(len(self.low), -np.inf)
        for k, level in enumerate(self.table.extreme(mark, sign)):
            rows = np.flatnonzero(self._level == k)
            out[rows] = np.maximum(level[self.low[rows]], level[self.high[rows] - 2**k])
        return out

    def _age(self, place: Ints, empty: float) -> Floats:
        inside = (place >= self.low) & (place < self.high)
        age = (self.table.time - self.table.time[np.where(inside, place, 0)]) / DAY
        return np.where(inside, age, empty)

    def newest(self) -> Floats:
        return self._age(self.table.last_fraud[self.high], self.reach / DAY)

    def oldest(self) -> Floats:
        return self._age(self.table.next_fraud[self.low], 0.0)

    @cached_property
    def _run(self) -> Ints:
        """[N] place of the first event after the newest known genuine one, `high` where that is the newest of all."""
        return np.maximum(self.low, self.table.last_genuine[self.high] + 1)

    def streak(self) -> Floats:
        return (self.high - self._run).astype(np.float64)

    def began(self) -> Floats:
        return self._age(self._run, 0.0)

    def genuine(self) -> Floats:
        return self._age(self.table.last_genuine[self.high], self.reach / DAY)


class History:
    """What is remembered of one card or terminal: its events within the horizon, oldest first, with their marks.

    Columns are views of growing buffers: adding an event costs a copy now and then, never a rebuild.
    """

    COLUMNS = ("time", "amount", "gap", "new", "night", "weekend", "fraud")

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
        marks = (amount, gap / DAY, _novelty(self._time, self._other, memory), night, weekend, np.asarray(fraud) == 1)
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
        return self._marks[self.COLUMNS.index(name) - 1, : self.length]

    def gap(self, time: int, memory: int) -> float:
        """Days from the newest event to `time`, at most `memory`."""
        return (min(time - int(self._time[self.length - 1]), memory) if self.length else memory) / DAY

    def only(self, other: int, memory: int) -> History:
        """The part of this history that shares the other side: the pair's history."""
        rows = np.flatnonzero(self.other == other)
        return History(
            self.time[rows],
            self.mark("amount")[rows],
            self.other[rows],
            self.mark("fraud")[rows].astype(np.int8),
            memory,
        )

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


class _EventView:
    """One entity's history as seen from one event: scans shared by all its windows."""

    def __init__(self, history: History, time: int, marks: dict[str, float]) -> None:
        self.history, self.time, self.marks = history, time, marks
        self.scans: dict[tuple[str, str], Floats] = {}

    def scan(self, mark: str, kind: str) -> Floats:
        """[n + 1] statistic of the newest k events, for every k."""
        if (mark, kind) not in self.scans:
            values = self.history.mark(mark)[::-1]
            if kind == "sum":
                self.scans[mark, kind] = np.concatenate([[0.0], np.cumsum(values)])
            elif kind == "square":
                self.scans[mark, kind] = np.concatenate([[0.0], np.cumsum(values * values)])
            elif kind == "min":
                self.scans[mark, kind] = np.concatenate([[np.inf], np.minimum.accumulate(values)])
            else:
                self.scans[mark, kind] = np.concatenate([[-np.inf], np.maximum.accumulate(values)])
        return self.scans[mark, kind]


class _EventWindows:
    """All windows of one entity for one event: `Windows` with shapes [W]."""

    def __init__(self, view: _EventView, windows: tuple[int, ...], delay: int) -> None:
        times = view.history.time
        reach = np.array(windows) + delay
        self.view, self.reach = view, reach
        self.low = np.searchsorted(times, view.time - reach, side="right")
        self.high = int(np.searchsorted(times, view.time - delay, side="right")) if delay else len(times)
        self.count = (self.high - self.low).astype(np.float64)
        self._sums: dict[tuple[str, str], Floats] = {}

    @cached_property
    def profile(self) -> Windows:
        return cast(Windows, _Longest(self))

    def current(self, mark: str) -> float:
        return self.view.marks[mark]

    def _scan(self, mark: str, kind: str) -> Floats:
        if (mark, kind) not in self._sums:
            scan, length = self.view.scan(mark, kind), len(self.view.history.time)
            values = scan[length - self.low]
            self._sums[mark, kind] = values - scan[length - self.high] if self.high < length else values
        return self._sums[mark, kind]

    def sum(self, mark: str) -> Floats:
        return self._scan(mark, "sum")

    def square(self, mark: str) -> Floats:
        return self._scan(mark, "square")

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


class _Longest:
    """The longest of an event's windows, as the profile that shorter ones are held against."""

    def __init__(self, windows: _EventWindows) -> None:
        self.windows, self.place = windows, int(np.argmin(windows.low))
        self.count = windows.count[self.place]

    def sum(self, mark: str) -> float:
        return float(self.windows.sum(mark)[self.place])
