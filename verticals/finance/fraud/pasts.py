"""What is remembered of cards and terminals, kept decoded between calls: the store is asked only for what has changed.

A past is taken as it is while its revision is the store's own; `commit(expected=...)` refuses an answer computed from any
other. What a call adds is appended after its commit, so that a call that fails leaves nothing here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from verticals.finance.fraud.events import Events, Ints
from verticals.finance.fraud.features import Features
from verticals.finance.fraud.features_event import History
from verticals.finance.fraud.store import Committed, Event, EventStore, Key, Past, Side

MOST_ROWS = 3_000_000
"""Events kept, each once for its card and once for its terminal: about 100 MB, and up to 200 more as histories."""

EACH = 24
"""A past takes the memory of so many events beside its own: most cards have few."""

ROW = np.dtype([("time", "<i8"), ("amount", "<f8"), ("other", "<i8"), ("fraud", "i1"), ("seq", "<i8")])
MOST_APPENDED = 16
"""Events that a history takes one by one; for more it is made anew."""

MOST_ADDED = 64
"""Events beside the columns of a past, and an eighth of those more: apart, an event takes six times the memory."""


class Remembered:
    """The past of one card or terminal, and what was added to it since it was read."""

    def __init__(self, past: Past, since: int) -> None:
        self.revision, self.since = past.revision, since
        self.newest = int(past.time[-1]) if len(past.time) else None
        """Time of the newest event, None where there is none."""
        self._past = past
        self._history: History | None = None
        self._added: list[tuple[int, float, int, int, int]] = []
        """Rows of the past that its columns do not hold yet."""
        self._unseen: list[tuple[int, float, int, int, int]] = []
        """Rows that the history does not hold yet."""

    def __len__(self) -> int:
        return len(self._past.time) + len(self._added)

    @property
    def past(self) -> Past:
        """All of it, oldest first; ties in the order of arrival."""
        if self._added:
            added = np.array(self._added, ROW)
            old = self._past
            time = np.append(old.time, added["time"])
            order = np.argsort(time, kind="stable")
            self._past = Past(
                time[order],
                np.append(old.amount, added["amount"])[order],
                np.append(old.other, added["other"])[order],
                np.append(old.fraud, added["fraud"])[order],
                np.append(old.seq, added["seq"])[order],
                self.revision,
            )
            self._added = []
        return self._past

    def history(self, until: int, memory: int) -> History:
        """What features need of the events up to and including a time; it is valid until the next call."""
        if self.newest is not None and self.newest > until:  # others arrived out of turn
            return self._made(int(np.searchsorted(self.past.time, until, side="right")), memory)
        if self._history is None or len(self._unseen) > MOST_APPENDED:
            self._history, self._unseen = self._made(len(self), memory), []
        for time, amount, other, fraud, _ in self._unseen:
            self._history.append(time, amount, other, fraud, memory)
        self._unseen = []
        return self._history

    def _made(self, count: int, memory: int) -> History:
        time, amount, other, fraud, *_ = self.past
        return History(time[:count], amount[:count], other[:count], fraud[:count], memory)

    def add(self, time: int, amount: float, other: int, fraud: int, seq: int, *, revision: int) -> None:
        """Take an event that the store has committed."""
        row = (time, amount, other, fraud, seq)
        self._added.append(row)
        if len(self._added) > MOST_ADDED + len(self._past.time) // 8:
            _ = self.past
        if self.newest is not None and time < self.newest:
            self._history, self._unseen = None, []
        elif self._history is not None:
            self._unseen.append(row)
        self.newest = time if self.newest is None else max(time, self.newest)
        self.revision = revision


class Pasts:
    """The pasts of one store that were wanted last; one thread at a time."""

    def __init__(self, store: EventStore, features: Features) -> None:
        self._store, self._horizon = store, features.horizon
        self._kept: OrderedDict[Key, Remembered] = OrderedDict()
        self._rows = 0
        """Those kept, and `EACH` more for every past."""

    def read(self, keys: Iterable[Key], since: int) -> dict[Key, Remembered]:
        """The pasts as the store has them now, at least from a time on."""
        wanted = list(dict.fromkeys(keys))
        known = {
            key: kept.revision
            for key in wanted
            if (kept := self._kept.get(key)) is not None and since - self._horizon <= kept.since <= since
        }
        for key, past in self._store.pasts(wanted, since, known=known).items():
            before = self._kept.get(key)
            self._rows += len(past.time) - (-EACH if before is None else len(before))
            self._kept[key] = Remembered(past, since)
        for key in wanted:
            self._kept.move_to_end(key)
        found = {key: self._kept[key] for key in wanted}
        while self._rows > MOST_ROWS and len(self._kept) > len(found):
            self._rows -= EACH + len(self._kept.popitem(last=False)[1])
        return found

    def add(self, events: Sequence[Event], committed: Sequence[Committed]) -> None:
        """Take what a commit has added to pasts that were read for it."""
        for event, done in zip(events, committed, strict=True):
            if done.new:
                for key, other in zip(sides(event), (event.terminal, event.customer), strict=True):
                    if (kept := self._kept.get(key)) is not None:
                        kept.add(event.time, event.amount, other, event.fraud, done.seq, revision=done.revision)
                        self._rows += 1


def sides(event: Event) -> tuple[Key, Key]:
    """An event's card and terminal."""
    return ("customer", event.customer), ("terminal", event.terminal)


def joined(side: Side, pasts: Mapping[Key, Past]) -> tuple[Events, Ints]:
    """The events of one side's pasts in time order, each past's ties in the order of arrival; and their numbers."""
    own = [(key[1], past) for key, past in pasts.items() if key[0] == side and len(past.time)]
    if not own:
        return NONE, np.zeros(0, np.int64)
    code = np.repeat([code for code, _ in own], [len(past.time) for _, past in own])
    time, amount, other, fraud, seq = (
        np.concatenate(column) for column in zip(*(past[:5] for _, past in own), strict=True)
    )
    customer, terminal = (code, other) if side == "customer" else (other, code)
    order = np.argsort(time, kind="stable")
    return Events(time, customer, terminal, amount, fraud).rows(order), seq[order]


NONE = Events(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int8))
