"""The event store in one file of one process: tables of its own beside the journal of `core.durable`.

The journal holds id, digest and first answer of every transaction; `events` holds what features need, with two covering
indexes so that a past is read from a few neighbouring pages; both commit in one transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Cursor
from typing import Literal, Self

import numpy as np

from core.durable.journal import LOOKUP, SWEEP, Entry, Journal, KeyConflict
from verticals.finance.fraud import store_embedded_states
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.store import (
    Chunk,
    Committed,
    Decision,
    Event,
    Key,
    LabelChange,
    Loaded,
    Past,
    Replay,
    Side,
    Stale,
    States,
    late,
    reused,
    unknown,
)
from verticals.finance.fraud.store_checks import check_commit, forget_before, fresh_events, moved, pending
from verticals.finance.fraud.store_embedded_pasts import StoredPasts

SCHEMA = f"""
CREATE TABLE events (seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, customer INTEGER NOT NULL, terminal INTEGER NOT NULL,
                     amount REAL NOT NULL, fraud INTEGER NOT NULL, extra BLOB) STRICT;
CREATE INDEX events_customer ON events (customer, time, seq, terminal, amount, fraud);
CREATE INDEX events_terminal ON events (terminal, time, seq, customer, amount, fraud);
CREATE TABLE labels (seq INTEGER PRIMARY KEY, event INTEGER NOT NULL, before INTEGER NOT NULL, fraud INTEGER NOT NULL,
                     known_at INTEGER NOT NULL) STRICT;
{store_embedded_states.SCHEMA}
CREATE TABLE decisions (seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, version TEXT NOT NULL, score REAL NOT NULL,
                        decision TEXT NOT NULL, reasons BLOB NOT NULL, digest BLOB NOT NULL) STRICT;
CREATE TABLE sources (source TEXT PRIMARY KEY, rows INTEGER NOT NULL) STRICT;
CREATE TABLE totals (one INTEGER PRIMARY KEY CHECK (one = 0), count INTEGER NOT NULL, oldest INTEGER, newest INTEGER,
                     floor INTEGER) STRICT;
INSERT INTO totals VALUES (0, 0, NULL, NULL, NULL);
"""

INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
NEWEST_SEQ = "SELECT seq FROM events INDEXED BY events_customer WHERE customer = ? ORDER BY time DESC, seq DESC LIMIT 1"


class EmbeddedStore:
    """`EventStore` in a file that survives restarts and crashes; one process has it open."""

    def __init__(
        self, path: Path | str, retention: int | None = None, *, synchronous: Literal["full", "normal"] = "full"
    ) -> None:
        """
        Args:
            retention: microseconds of event time that `forget()` keeps when it is not told a time.
            synchronous: as in `Journal`.

        Raises:
            ArtifactError: the file is damaged, no store, or open in another process.
        """
        self.retention = retention
        self._journal = Journal(path, schema=SCHEMA, layout="finance.fraud.store 2", synchronous=synchronous)
        self._states = store_embedded_states.VersionStates(self._journal)
        self._pasts = StoredPasts(self._journal)
        self._mutex = threading.RLock()

    def answers(self, ids: Sequence[str]) -> dict[str, tuple[bytes, bytes | None]]:
        return {id: (kept.digest, kept.answer) for id, kept in self._journal.answers(ids).items()}

    def newest(self, customers: Sequence[int]) -> dict[int, int]:
        return self._pasts.newest(customers)

    def history(
        self, side: Side, code: int, since: int, *, until: int | None = None, before: int | None = None
    ) -> Past:
        return self._pasts.history(side, code, since, until=until, before=before)

    def pasts(self, keys: Sequence[Key], since: int, *, known: Mapping[Key, int] | None = None) -> dict[Key, Past]:
        return self._pasts.pasts(keys, since, known=known)

    def commit(
        self,
        events: Sequence[Event],
        *,
        states: Mapping[int, bytes] | None = None,
        version: str | None = None,
        decisions: Sequence[Decision] = (),
        expected: Mapping[Key, int] | None = None,
        after: int | None = None,
    ) -> list[Committed]:
        check_commit(events, states, version, decisions, after)
        with self._change() as (cursor, changed):
            before, revision = self._journal.last, self._pasts.changes + 1
            known = self._journal.answers([event.id for event in events])
            fresh = fresh_events(events, {id: (kept.digest, kept.answer) for id, kept in known.items()})
            if fresh:
                if any(self._pasts.revision(key) != seen for key, seen in (expected or {}).items()):
                    raise Stale("a card's or terminal's past has changed since it was read")
                self._check_order(fresh)
                if after is not None and after < before:
                    self._check_unmoved(fresh, after)
                if version is not None:
                    self._states.keep(cursor, version, states or {}, fresh, before=before)
                self._insert(cursor, fresh)
                for event in fresh:
                    changed += [("customer", event.customer), ("terminal", event.terminal)]
                names = {event.id for event in fresh}
                logged = [line for event, line in zip(events, decisions, strict=False) if event.id in names]
                cursor.executemany("INSERT INTO decisions VALUES (NULL, ?, ?, ?, ?, ?, ?)", map(_plain, logged))
        numbers = iter(range(before + 1, before + 1 + len(fresh)))
        return [
            Committed(known[event.id].seq, known[event.id].answer, False)
            if event.id in known
            else Committed(next(numbers), event.answer, True, revision)
            for event in events
        ]

    def _check_unmoved(self, fresh: Sequence[Event], after: int) -> None:
        for event in fresh:
            if any(seq > after for (seq,) in self._journal.rows(NEWEST_SEQ, (int(event.customer),))):
                raise moved(event.id, after)

    def _check_order(self, fresh: Sequence[Event]) -> None:
        floor: int | None = self._journal.rows("SELECT floor FROM totals")[0][0]
        newest = self._pasts.newest(list({event.customer for event in fresh}))
        for event in fresh:
            edge = max((time for time in (newest.get(event.customer), floor) if time is not None), default=event.time)
            if event.time < edge:
                raise late(event.id, event.time, edge)
            newest[event.customer] = event.time

    def _insert(self, cursor: Cursor, fresh: Sequence[Event]) -> None:
        seqs = self._journal.append([Entry(e.id, e.digest, answer=e.answer, at=int(e.time)) for e in fresh])
        cursor.executemany(
            INSERT,
            [
                (seq, int(e.time), int(e.customer), int(e.terminal), float(e.amount), int(e.fraud), e.extra)
                for seq, e in zip(seqs, fresh, strict=True)
            ],
        )
        times = [int(event.time) for event in fresh]
        _add_totals(cursor, len(fresh), min(times), max(times))

    @contextmanager
    def _change(self) -> Iterator[tuple[Cursor, list[Key]]]:
        """A transaction, and the list of pasts that it changes.

        Revisions rise after the commit, so that who reads a new one reads the new rows too, and before the next writer.
        """
        changed: list[Key] = []
        with self._mutex:
            with self._journal.transaction() as cursor:
                yield cursor, changed
            self._pasts.change(changed)

    def label(self, id: str, fraud: int, at: int) -> bool:
        with self._change() as (cursor, changed):
            row = cursor.execute(
                "SELECT seq, customer, terminal, fraud FROM events WHERE seq = (SELECT seq FROM journal WHERE key = ?)",
                (id,),
            ).fetchone()
            if row is None:
                raise unknown(id)
            seq, customer, terminal, before = row
            if before == fraud:
                return False
            cursor.execute("UPDATE events SET fraud = ? WHERE seq = ?", (int(fraud), seq))
            cursor.execute("INSERT INTO labels VALUES (NULL, ?, ?, ?, ?)", (seq, before, int(fraud), int(at)))
            changed += [("customer", customer), ("terminal", terminal)]
        return True

    def labels_since(self, seq: int) -> list[LabelChange]:
        rows = self._journal.rows(
            "SELECT l.seq, j.key, e.time, e.customer, e.terminal, l.before, l.fraud, l.known_at FROM labels l "
            "JOIN events e ON e.seq = l.event JOIN journal j ON j.seq = l.event WHERE l.seq > ? ORDER BY l.seq",
            (seq,),
        )
        return [LabelChange(*row) for row in rows]

    def states(self, version: str, customers: Sequence[int]) -> States:
        return self._states.read(version, customers)

    def catch_up(self, version: str, slices: Iterable[Mapping[int, bytes]], *, after: int, upto: int) -> None:
        self._states.catch_up(version, slices, after=after, upto=upto)

    def versions(self) -> dict[str, int]:
        return self._states.versions()

    def drop_states(self, version: str) -> None:
        self._states.drop(version)

    def decisions(self, after: int = 0, *, size: int = 1000) -> Iterator[list[tuple[int, Decision]]]:
        query = "SELECT * FROM decisions WHERE seq > ? ORDER BY seq LIMIT ?"
        while rows := self._journal.rows(query, (after, size)):
            yield [(seq, Decision(*line)) for seq, *line in rows]
            after = rows[-1][0]

    def replay(self, after: int = 0, *, size: int = 100_000, ids: bool = False) -> Iterator[Replay]:
        query = (
            "SELECT e.seq, e.time, e.customer, e.terminal, e.amount, e.fraud, e.extra"
            + (", j.key FROM events e JOIN journal j ON j.seq = e.seq" if ids else " FROM events e")
            + " WHERE e.seq > ? ORDER BY e.seq LIMIT ?"
        )
        while rows := self._journal.rows(query, (after, size)):
            seq, time, customer, terminal, amount, fraud, extra, *names = zip(*rows, strict=True)
            events = Events(
                np.array(time, np.int64),
                np.array(customer, np.int64),
                np.array(terminal, np.int64),
                np.array(amount, np.float64),
                np.array(fraud, np.int8),
            )
            yield Replay(np.array(seq, np.int64), events, list(extra), list(names[0]) if ids else None)
            after = rows[-1][0]

    @property
    def last(self) -> int:
        return self._journal.last

    def count(self) -> int:
        return int(self._journal.rows("SELECT count FROM totals")[0][0])

    def span(self) -> tuple[int, int] | None:
        oldest, newest = self._journal.rows("SELECT oldest, newest FROM totals")[0]
        return None if oldest is None else (oldest, newest)

    def load(self, chunks: Iterable[Chunk], *, source: str, first: int = 0) -> Loaded:
        total = Loaded()
        for row, chunk, passed in pending(chunks, first, self.loaded(source)):
            done = Loaded(rows=passed, resumed=passed)
            if chunk.ids:
                with self._mutex:
                    with self._journal.transaction() as cursor:
                        done = self._load(cursor, chunk)._replace(rows=passed + len(chunk.ids), resumed=passed)
                        cursor.execute(
                            "INSERT INTO sources VALUES (?, ?) ON CONFLICT DO UPDATE SET rows = excluded.rows",
                            (source, row),
                        )
                    self._pasts.change_all()
            total = total.plus(done)
        return total

    def _load(self, cursor: Cursor, chunk: Chunk) -> Loaded:
        """Insert the rows that are not there yet."""
        floor: int | None = self._journal.rows("SELECT floor FROM totals")[0][0]
        kept = chunk if floor is None else chunk.rows(np.flatnonzero(chunk.events.time >= floor))
        expired, before = len(chunk.ids) - len(kept.ids), self._journal.last
        times = kept.events.time.tolist()
        try:
            seqs = self._journal.append(
                [Entry(id, digest, at=time) for id, digest, time in zip(kept.ids, kept.digests(), times, strict=True)]
            )
        except KeyConflict as error:
            raise reused(error.key) from error
        numbers, places = np.unique(np.array(seqs, np.int64), return_index=True)
        places = np.sort(places[numbers > before])
        relabelled, fresh = 0, kept
        if len(places) < len(seqs):
            fresh = kept.rows(places)
            known = np.setdiff1d(np.arange(len(seqs)), places)
            relabelled = self._count_other_labels(
                [seqs[place] for place in known.tolist()], kept.events.fraud[known].tolist()
            )
        if fresh.ids:
            self._check_load_order(fresh)
            columns = (column.tolist() for column in fresh.events.columns)
            rows = zip(
                range(before + 1, before + 1 + len(fresh.ids)),
                *columns,
                fresh.extras or [None] * len(fresh.ids),
                strict=True,
            )
            cursor.executemany(INSERT, rows)
            _add_totals(cursor, len(fresh.ids), int(fresh.events.time[0]), int(fresh.events.time[-1]))
        return Loaded(inserted=len(fresh.ids), known=len(seqs) - len(fresh.ids), relabelled=relabelled, expired=expired)

    def _check_load_order(self, fresh: Chunk) -> None:
        span = self.span()
        if span is None or fresh.events.time[0] >= span[1]:
            return
        customers, places = np.unique(fresh.events.customer, return_index=True)
        newest = self._pasts.newest(customers.tolist())
        for customer, place in zip(customers.tolist(), places.tolist(), strict=True):
            if fresh.events.time[place] < newest.get(customer, 0):
                raise late(fresh.ids[place], int(fresh.events.time[place]), newest[customer])

    def _count_other_labels(self, seqs: Sequence[int], labels: Sequence[int]) -> int:
        held: dict[int, int] = {}
        for start in range(0, len(seqs), LOOKUP):
            part = seqs[start : start + LOOKUP]
            held.update(
                self._journal.rows(f"SELECT seq, fraud FROM events WHERE seq IN ({','.join('?' * len(part))})", part)
            )
        return sum(held.get(seq, label) != label for seq, label in zip(seqs, labels, strict=True) if label >= 0)

    def loaded(self, source: str) -> int:
        rows = self._journal.rows("SELECT rows FROM sources WHERE source = ?", (source,))
        return int(rows[0][0]) if rows else 0

    def forget(self, before: int | None = None, *, keep_ids: int = 0) -> int:
        before = int(forget_before(before, self.retention, self.span()))
        with self._journal.transaction() as cursor:
            cursor.execute("UPDATE totals SET floor = max(coalesce(floor, ?1), ?1)", (before,))
        dropped, newest = 0, self.last
        for start in range(self._journal.rows("SELECT coalesce(min(seq), 1) FROM events")[0][0] - 1, newest, SWEEP):
            with self._journal.transaction() as cursor:
                chosen = (start, min(start + SWEEP, newest), before)
                inside = "SELECT seq FROM events WHERE seq > ? AND seq <= ? AND time < ?"
                cursor.execute(f"DELETE FROM labels WHERE event IN ({inside})", chosen)
                cursor.execute(f"DELETE FROM events WHERE seq IN ({inside})", chosen)
                dropped += cursor.rowcount
                cursor.execute("UPDATE totals SET count = count - ?", (cursor.rowcount,))
        with self._journal.transaction() as cursor:
            cursor.execute("UPDATE totals SET (oldest, newest) = (SELECT min(time), max(time) FROM events)")
        with self._mutex:
            self._pasts.change_all()
        self._journal.forget(before - keep_ids)
        return dropped

    def verify(self) -> None:
        """As `Journal.verify`."""
        self._journal.verify()

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _plain(line: Decision) -> tuple[int, str, float, str, bytes, bytes]:
    return int(line.time), line.version, float(line.score), line.decision, line.reasons, line.digest


def _add_totals(cursor: Cursor, count: int, oldest: int, newest: int) -> None:
    cursor.execute(
        "UPDATE totals SET count = count + ?1, oldest = min(coalesce(oldest, ?2), ?2), newest = max(coalesce(newest, ?3), ?3)",
        (count, oldest, newest),
    )
