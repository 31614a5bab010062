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
        steps = tuple(float(round(value, 3)) for value in np.geomspace(0.25, 13.0, 34))
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


PAIR_FACTOR = np.int64(-7_046_029_254_386_353_131)
"""Odd and far from small numbers: card * factor + terminal, modulo 2 ** 64, tells pairs of 64-bit codes apart."""

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

    def __init__(self, config: FeatureConfig, blocks: Sequence[Block] | None = None) -> None:
        """
        Args:
            blocks: a set of one's own instead of the configuration's; its `memory` counts all the same.
        """
        self.config = config
        self.blocks = tuple(_blocks(config) if blocks is None else blocks)
        self.names = (*CURRENT, *(name for block in self.blocks for name in block.names))
        self.memory = int(config.memory * DAY)
        self.horizon = max(max(block.windows) + block.delay for block in self.blocks) + self.memory
        """Microseconds of history that decide every feature: older events can be forgotten."""
        first = len(CURRENT)
        self._groups: dict[tuple[Entity, int, tuple[int, ...]], list[tuple[Block, int]]] = {}
        for block in self.blocks:
            self._groups.setdefault((block.entity, block.delay, block.windows), []).append((block, first))
            first += len(block.windows)
        self._bounds: dict[Entity, Ints] = {}
        """By entity: how far back each group's windows reach, and then its delay, one group after the other."""
        for entity in ("customer", "terminal", "pair"):
            reaches = [
                [*(width + delay for width in windows), delay] for own, delay, windows in self._groups if own == entity
            ]
            self._bounds[entity] = np.array([bound for reach in reaches for bound in reach], np.int64)

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
            "pair": events.customer * PAIR_FACTOR + events.terminal,
        }
        for entity, code in codes.items():
            wanted: dict[tuple[int, int], list[tuple[Block, int]]] = {}
            for block, start in (pair for key, blocks in self._groups.items() if key[0] == entity for pair in blocks):
                for place, width in enumerate(block.windows):
                    wanted.setdefault((width, block.delay), []).append((block, start + place))
            if not wanted:
                continue
            table = _EntityTable(events, code, codes["pair"], self.memory, first)
            for (width, delay), rows in wanted.items():
                window = table.window(width, delay)
                for block, row in rows:
                    if block.statistic in ("peak", "drift"):
                        window.profile = table.profile(max(block.windows), delay)
                    values = STATISTICS[block.statistic](window, block.mark)
                    np.take(values.astype(dtype), table.back, out=out[row], mode="clip")  # `clip` spares a copy
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
        night, weekend = out[len(CURRENT) - 2 : len(CURRENT)].tolist()
        pair_history = customer_history.only(terminal, self.memory)
        histories = {"customer": customer_history, "terminal": terminal_history, "pair": pair_history}
        new = float(pair_history.gap(time, self.memory) >= self.memory / DAY)
        views: dict[Entity, _EventView] = {}
        for (entity, delay, windows), blocks in self._groups.items():
            if entity not in views:
                history = histories[entity]
                marks = {
                    "amount": amount,
                    "gap": history.gap(time, self.memory),
                    "new": new,
                    "night": night,
                    "weekend": weekend,
                }
                views[entity] = _EventView(history, time, marks, self._bounds[entity])
            window = views[entity].take(len(windows), delay)
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
        self._profiles: dict[tuple[int, int], _TableWindow] = {}

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
            return _novelty(self.events.time, self.pair, self.memory)[self.order]
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

    def window(self, width: int, delay: int) -> _TableWindow:
        """A window's bounds for every event wanted, [n]."""
        low = self._after(self.now - (width + delay))
        return _TableWindow(self, low, self._after(self.now - delay) if delay else self.rows, width + delay)

    def profile(self, width: int, delay: int) -> _TableWindow:
        """A window that others are held against: made once."""
        if (width, delay) not in self._profiles:
            self._profiles[width, delay] = self.window(width, delay)
        return self._profiles[width, delay]

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


class _TableWindow:
    """One window for every event wanted of a table: `Windows` with shapes [n]."""

    def __init__(self, table: _EntityTable, low: Ints, high: Ints, reach: int) -> None:
        self.table, self.low, self.high, self.reach = table, low, high, reach
        self.count = (high - low).astype(np.float64)
        self.profile: Windows = self
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


class _EventView:
    """One entity's history as seen from one event: scans and bounds shared by all its windows."""

    def __init__(self, history: History, time: int, marks: dict[str, float], bounds: Ints) -> None:
        self.history, self.time, self.marks, self.bounds = history, time, marks, bounds
        self.places = np.searchsorted(history.time, time - bounds, side="right")
        """Of each bound: the first event after it."""
        self._taken = 0
        self._scans: dict[tuple[str, str], Floats] = {}
        self._totals: dict[int, Floats] = {}

    def take(self, num_windows: int, delay: int) -> _EventWindows:
        """The windows of the next group, in the order of `bounds`."""
        first, last = self._taken, self._taken + num_windows
        self._taken = last + 1
        high = int(self.places[last]) if delay else self.history.length
        return _EventWindows(self, self.places[first:last], high, self.bounds[first:last])

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


class _EventWindows:
    """All windows of one entity for one event: `Windows` with shapes [W]."""

    def __init__(self, view: _EventView, low: Ints, high: int, reach: Ints) -> None:
        self.view, self.low, self.high, self.reach = view, low, high, reach
        self.count = (high - low).astype(np.float64)
        self._sums: dict[tuple[str, str], Floats] = {}
        self._all: dict[int, Floats] = {}

    @cached_property
    def profile(self) -> Windows:
        return cast(Windows, _Longest(self))

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


class _Longest:
    """The longest of an event's windows, as the profile that shorter ones are held against."""

    def __init__(self, windows: _EventWindows) -> None:
        self.windows, self.place = windows, int(np.argmin(windows.low))
        self.count = windows.count[self.place]

    def sum(self, mark: str) -> float:
        return float(self.windows.sum(mark)[self.place])
