"""Pasts of cards and terminals in the embedded store's file, and their revisions in memory.

Every query reads one of the two covering indexes of `events` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from core.durable.journal import Journal
from verticals.finance.fraud.store import Key, Past, Side

STRIPES = 1 << 16
"""Revisions kept in memory: cards that share one only cause a needless `Stale`."""
HISTORY: dict[Side, str] = {
    "customer": "SELECT customer, time, amount, terminal, fraud, seq FROM events INDEXED BY events_customer "
    "WHERE customer = ? AND time BETWEEN ? AND ? AND seq < ? ORDER BY time, seq",
    "terminal": "SELECT terminal, time, amount, customer, fraud, seq FROM events INDEXED BY events_terminal "
    "WHERE terminal = ? AND time BETWEEN ? AND ? AND seq < ? ORDER BY time, seq",
}
PASTS: dict[Side, str] = {
    "customer": "SELECT e.customer, e.time, e.amount, e.terminal, e.fraud, e.seq FROM json_each(?) j "
    "CROSS JOIN events e INDEXED BY events_customer ON e.customer = j.value AND e.time >= ?",
    "terminal": "SELECT e.terminal, e.time, e.amount, e.customer, e.fraud, e.seq FROM json_each(?) j "
    "CROSS JOIN events e INDEXED BY events_terminal ON e.terminal = j.value AND e.time >= ?",
}
ROW = np.dtype([("code", "<i8"), ("time", "<i8"), ("amount", "<f8"), ("other", "<i8"), ("fraud", "i1"), ("seq", "<i8")])
"""What both give."""
NEWEST = (
    "SELECT j.value, (SELECT time FROM events INDEXED BY events_customer WHERE customer = j.value ORDER BY time DESC LIMIT 1) "
    "FROM json_each(?) j"
)
FOREVER = 2**63 - 1


class StoredPasts:
    """What the table `events` of an open file holds of cards and terminals. Changes are one thread's at a time."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._revisions = [0] * STRIPES
        self.changes = 0
        """The newest revision."""

    def newest(self, customers: Sequence[int]) -> dict[int, int]:
        rows = self._journal.rows(NEWEST, (_json(customers),))
        return {customer: time for customer, time in rows if time is not None}

    def history(
        self, side: Side, code: int, since: int, *, until: int | None = None, before: int | None = None
    ) -> Past:
        revision = self.revision((side, code))  # before the rows: a commit in between makes this past stale
        bounds = (FOREVER if bound is None else int(bound) for bound in (until, before))
        return _past(np.array(self._journal.rows(HISTORY[side], (int(code), int(since), *bounds)), ROW), revision)

    def pasts(self, keys: Sequence[Key], since: int, *, known: Mapping[Key, int] | None = None) -> dict[Key, Past]:
        held = known or {}
        now = {key: self.revision(key) for key in keys}  # before the rows, as in history
        found: dict[Key, Past] = {}
        for side, query in PASTS.items():
            codes = [key[1] for key in keys if key[0] == side and held.get(key) != now[key]]
            if not codes:
                continue
            rows = np.array(self._journal.rows(query, (_json(codes), int(since))), ROW)
            rows = rows[np.lexsort((rows["seq"], rows["time"], rows["code"]))]
            lows, highs = (np.searchsorted(rows["code"], codes, side=end).tolist() for end in ("left", "right"))
            for code, low, high in zip(codes, lows, highs, strict=True):
                found[side, code] = _past(rows[low:high], now[side, code])
        return found

    def revision(self, key: Key) -> int:
        return self._revisions[_stripe(key)]

    def change(self, keys: Iterable[Key]) -> None:
        """Give these pasts the next revision."""
        self.changes += 1
        for key in keys:
            self._revisions[_stripe(key)] = self.changes

    def change_all(self) -> None:
        self.changes += 1
        self._revisions = [self.changes] * STRIPES


def _stripe(key: Key) -> int:
    side, code = key
    return hash((side, int(code))) % STRIPES


def _json(codes: Iterable[int]) -> str:
    return json.dumps([int(code) for code in codes])


def _past(rows: NDArray[np.void], revision: int) -> Past:
    time, amount, other, fraud, seq = (
        np.ascontiguousarray(rows[name]) for name in ("time", "amount", "other", "fraud", "seq")
    )
    return Past(time, amount, other, fraud, seq, revision)
