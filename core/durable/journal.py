"""One SQLite file in which requests are written down before they are answered, so that a crash loses and repeats none.

An entry has an idempotency key, a digest of the request, a payload and the answer given. Entries get rising sequence
numbers and are replayed in that order, in chunks: nothing here loads the file whole. An application adds tables of its
own (`schema`) and writes them in the same transaction, so an outbox or a job queue can never disagree with the journal.

One process writes, from any number of its threads; other processes may open the file with `access="read"`: `database.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from core.durable.database import Database
from core.errors import Conflict

LAYOUT = "journal 1"
"""Name and version of the tables below."""
LOOKUP = 500
"""Keys looked up by one statement."""
SWEEP = 20_000
"""Sequence numbers that one transaction of `forget` covers: other writers wait no longer than that takes."""

TABLES = """
CREATE TABLE journal (seq INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, at INTEGER NOT NULL, digest BLOB NOT NULL,
                      payload BLOB NOT NULL, answer BLOB) STRICT;
CREATE TABLE journal_state (one INTEGER PRIMARY KEY CHECK (one = 0), last INTEGER NOT NULL) STRICT;
INSERT INTO journal_state VALUES (0, 0);
"""


class KeyConflict(Conflict):
    """An idempotency key came back with another content."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"key {key!r} was used before with another content; use a new key, or send the same content again"
        )
        self.key = key


class Entry(NamedTuple):
    """A request to write down."""

    key: str
    """Idempotency key: one entry for each."""
    digest: bytes
    """Hash of the request; the same key with another digest is a `KeyConflict`."""
    payload: bytes = b""
    """What replay needs of the request."""
    answer: bytes | None = None
    """What the key is answered with, now and whenever it comes back."""
    at: int = 0
    """The caller's clock (any unit), by which `forget` drops old entries."""


class Record(NamedTuple):
    """An entry as replayed."""

    seq: int
    key: str
    digest: bytes
    payload: bytes
    answer: bytes | None
    at: int


class Kept(NamedTuple):
    """What the journal knows about a key."""

    seq: int
    digest: bytes
    answer: bytes | None


class Journal(Database):
    """An append-only, idempotent log, and the application's own tables beside it."""

    def __init__(
        self,
        path: Path | str,
        *,
        schema: str = "",
        layout: str = "",
        synchronous: Literal["full", "normal"] = "full",
        access: Literal["write", "read"] = "write",
        busy_seconds: float = 5.0,
    ) -> None:
        """As `Database`, with the journal's tables in front of `schema`."""
        super().__init__(
            path,
            schema=TABLES + schema,
            layout=f"{LAYOUT}, {layout}" if layout else LAYOUT,
            synchronous=synchronous,
            access=access,
            busy_seconds=busy_seconds,
        )

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Write down all entries, or none; returns the sequence number of each.

        A key already there with the same digest is not written again: its first number is returned. Inside
        `transaction()` the entries commit together with everything else written there.

        Raises:
            KeyConflict: a key is there with another digest.
        """
        with self.transaction() as cursor:
            last = self.last
            fresh = range(last + 1, last + 1 + len(entries))
            rows = ((seq, e.key, e.at, e.digest, e.payload, e.answer) for seq, e in zip(fresh, entries, strict=True))
            cursor.execute("SAVEPOINT append")
            try:  # nearly always every key is new: look for the others only when one is not
                cursor.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", rows)
                numbers = list(fresh)
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                    raise
                cursor.execute("ROLLBACK TO append")
                numbers = self._append_unknown(cursor, entries, last)
            cursor.execute("RELEASE append")
            cursor.execute("UPDATE journal_state SET last = ?", (max([last, *numbers]),))
        return numbers

    def _append_unknown(self, cursor: sqlite3.Cursor, entries: Sequence[Entry], last: int) -> list[int]:
        known = {key: (kept.seq, kept.digest) for key, kept in self.answers([e.key for e in entries]).items()}
        numbers: list[int] = []
        rows: list[tuple[int, str, int, bytes, bytes, bytes | None]] = []
        for entry in entries:
            seq, digest = known.setdefault(entry.key, (last + len(rows) + 1, entry.digest))
            if digest != entry.digest:
                raise KeyConflict(entry.key)
            if seq == last + len(rows) + 1:
                rows.append((seq, entry.key, entry.at, entry.digest, entry.payload, entry.answer))
            numbers.append(seq)
        cursor.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", rows)
        return numbers

    def answers(self, keys: Sequence[str]) -> dict[str, Kept]:
        """What is kept for those of the keys that are there."""
        found: dict[str, Kept] = {}
        for start in range(0, len(keys), LOOKUP):
            part = keys[start : start + LOOKUP]
            marks = ",".join("?" * len(part))
            for key, *kept in self.rows(
                f"SELECT key, seq, digest, answer FROM journal WHERE key IN ({marks})", tuple(part)
            ):
                found[key] = Kept(*kept)
        return found

    def replay(self, after: int = 0, *, size: int = 1000) -> Iterator[list[Record]]:
        """Entries whose number is greater than `after`, in order, `size` at a time, up to those appended meanwhile."""
        while chunk := self.rows(
            "SELECT seq, key, digest, payload, answer, at FROM journal WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, size),
        ):
            yield [Record(*row) for row in chunk]
            after = chunk[-1][0]

    @property
    def last(self) -> int:
        """The newest sequence number given out, 0 in a new journal; numbers are never used twice."""
        return int(self.rows("SELECT last FROM journal_state")[0][0])

    def forget(self, before: int) -> int:
        """Drop entries whose `at` is less than `before`, in short transactions; returns how many.

        A key that is forgotten may be used again.
        """
        dropped, newest = 0, self.last
        for start in range(self._first() - 1, newest, SWEEP):
            with self.transaction() as cursor:
                cursor.execute(
                    "DELETE FROM journal WHERE seq > ? AND seq <= ? AND at < ?",
                    (start, min(start + SWEEP, newest), before),
                )
                dropped += cursor.rowcount
        return dropped

    def _first(self) -> int:
        return int(self.rows("SELECT coalesce(min(seq), 1) FROM journal")[0][0])
