"""Card transactions as columns: what features, stores and predictors hand to each other.

Legend: N event. Times are int64 microseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY = 86_400_000_000
"""Microseconds in a day."""

PAIR_FACTOR = np.int64(-7_046_029_254_386_353_131)
"""Odd and far from small numbers: card * factor + terminal, modulo 2 ** 64, tells pairs of 64-bit codes apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Events:
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

    @property
    def pair(self) -> Ints:
        """[N] code of card and terminal together."""
        return self.customer * PAIR_FACTOR + self.terminal

    @property
    def columns(self) -> tuple[Ints, Ints, Ints, Floats, NDArray[np.int8]]:
        """The columns, in the order above."""
        return self.time, self.customer, self.terminal, self.amount, self.fraud

    def __len__(self) -> int:
        return len(self.time)

    def rows(self, index: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Events:
        """The events at these places."""
        time, customer, terminal, amount, fraud = self.columns
        return Events(time[index], customer[index], terminal[index], amount[index], fraud[index])

    @classmethod
    def joined(cls, parts: Sequence[Events]) -> Events:
        """The parts one after the other."""
        time, customer, terminal, amount, fraud = zip(*(part.columns for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in (time, customer, terminal, amount, fraud)))


def clock(time: Ints) -> tuple[Floats, Floats, Floats]:
    """Hour of the day in [0, 24), night (before 6:00) and weekend as 0 or 1, each like `time`."""
    hour = (time % DAY) / (DAY / 24)
    weekday = (time // DAY + 3) % 7
    return hour, (hour < 6 + 1 / 3600 / 24).astype(np.float64), (weekday >= 5).astype(np.float64)


def novelty(time: Ints, pair: Ints, memory: int) -> Floats:
    """[N] 1 where the card was not at this terminal in the last `memory` microseconds."""
    order = np.argsort(pair, kind="stable")
    gap = np.full(len(time), memory, np.int64)
    same = pair[order][1:] == pair[order][:-1]
    gap[order[1:][same]] = np.diff(time[order])[same]
    return (gap >= memory).astype(np.float64)
