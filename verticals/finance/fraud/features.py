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
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from core.config import Config
from verticals.finance.fraud.events import DAY, Events, Floats, Ints, clock
from verticals.finance.fraud.features_event import EventView, History
from verticals.finance.fraud.features_table import EntityTable, TableWindow

Entity = Literal["customer", "terminal", "pair"]

SPREAD_FLOOR = 1e-8
"""A variance under this share of the mean square is rounding, and counts as zero (same rule in both ways)."""

PRIOR_EVENTS, PRIOR_VARIATION = 3.0, 0.5
"""`deviation` mixes the variance seen with that of a card whose spread is half its mean, worth three events."""


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


class Profile(Protocol):
    """The longest window of an entity, which shorter ones are held against."""

    @property
    def count(self) -> Floats: ...
    def sum(self, mark: str) -> Floats: ...


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
    def profile(self) -> Profile: ...


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
        codes = {"customer": events.customer, "terminal": events.terminal, "pair": events.pair}
        for entity, code in codes.items():
            wanted: dict[tuple[int, int], list[tuple[Block, int]]] = {}
            for block, start in (pair for key, blocks in self._groups.items() if key[0] == entity for pair in blocks):
                for place, width in enumerate(block.windows):
                    wanted.setdefault((width, block.delay), []).append((block, start + place))
            if not wanted:
                continue
            table = EntityTable(events, code, codes["pair"], self.memory, first)
            profiles: dict[tuple[int, int], TableWindow] = {}
            for (width, delay), rows in wanted.items():
                window = table.window(width, delay)
                for block, row in rows:
                    if block.statistic in ("peak", "drift"):
                        longest = max(block.windows), delay
                        window.profile = profiles.get(longest) or profiles.setdefault(longest, table.window(*longest))
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
        views: dict[Entity, EventView] = {}
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
                views[entity] = EventView(history, time, marks, self._bounds[entity])
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
