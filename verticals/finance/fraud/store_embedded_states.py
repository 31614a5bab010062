"""Network states by model version in the embedded store's file.

A version under way to its first or next place is a row without a name: `versions` and `states` never show it, and what a
crash leaves of it goes when the file is opened again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Cursor

from core.durable.journal import SWEEP, Journal
from verticals.finance.fraud.store import Event, States
from verticals.finance.fraud.store_checks import behind, beyond, check_catch_up, stateless

SCHEMA = """
CREATE TABLE versions (version INTEGER PRIMARY KEY, name TEXT UNIQUE, upto INTEGER NOT NULL) STRICT;
CREATE TABLE states (version INTEGER NOT NULL, customer INTEGER NOT NULL, state BLOB NOT NULL,
                     UNIQUE (version, customer)) STRICT;
"""
READ = """
SELECT v.upto, s.customer, s.state FROM versions v
LEFT JOIN states s ON s.version = v.version AND s.customer IN (SELECT value FROM json_each(?)) WHERE v.name = ?
"""
WRITE = """
INSERT INTO states VALUES (?, ?, ?) ON CONFLICT (version, customer) DO UPDATE SET state = excluded.state
"""
MERGE = """
INSERT INTO states SELECT ?, customer, state FROM states WHERE version = ?
ON CONFLICT (version, customer) DO UPDATE SET state = excluded.state
"""


class VersionStates:
    """The tables `versions` and `states` of an open file."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        for (number,) in journal.rows("SELECT version FROM versions WHERE name IS NULL"):
            self._sweep(number)

    def versions(self) -> dict[str, int]:
        return dict(self._journal.rows("SELECT name, upto FROM versions WHERE name IS NOT NULL"))

    def read(self, version: str, customers: Sequence[int]) -> States:
        rows = self._journal.rows(READ, (json.dumps([int(customer) for customer in customers]), version))
        return States(
            rows[0][0] if rows else 0, {customer: state for _, customer, state in rows if customer is not None}
        )

    def keep(
        self, cursor: Cursor, version: str, states: Mapping[int, bytes], fresh: Sequence[Event], *, before: int
    ) -> None:
        """Take the states after `fresh`, the events numbered from `before` + 1 on."""
        for event in fresh:
            if event.customer not in states:
                raise stateless(event.id)
        number, upto = _place(cursor, version)
        if upto != before:
            raise behind(version, upto, before)
        if number is None:
            number = _new(cursor, version)
        self._write(cursor, number, {event.customer: states[event.customer] for event in fresh})
        cursor.execute("UPDATE versions SET upto = ? WHERE version = ?", (before + len(fresh), number))

    def catch_up(self, version: str, slices: Iterable[Mapping[int, bytes]], *, after: int, upto: int) -> None:
        check_catch_up(after, upto)
        stage: int | None = None
        try:
            states: Mapping[int, bytes] = {}
            number: int | None
            for following in slices:
                if states:
                    with self._journal.transaction() as cursor:
                        self._check(cursor, version, after, upto)
                        number = _new(cursor, None) if stage is None else stage
                        self._write(cursor, number, states)
                    stage = number
                states = following
            with self._journal.transaction() as cursor:
                number = self._check(cursor, version, after, upto)
                if number is None:
                    number = _new(cursor, None) if stage is None else stage
                elif stage is not None:
                    cursor.execute(MERGE, (number, stage))
                self._write(cursor, number, states)
                cursor.execute("UPDATE versions SET name = ?, upto = ? WHERE version = ?", (version, upto, number))
            if number == stage:
                stage = None
        finally:
            if stage is not None:
                self._sweep(stage)

    def drop(self, version: str) -> None:
        with self._journal.transaction() as cursor:
            number, _ = _place(cursor, version)
            cursor.execute("UPDATE versions SET name = NULL, upto = 0 WHERE name = ?", (version,))
        if number is not None:
            self._sweep(number)

    def _check(self, cursor: Cursor, version: str, after: int, upto: int) -> int | None:
        number, held = _place(cursor, version)
        if held != after:
            raise behind(version, held, after)
        if upto > self._journal.last:
            raise beyond(upto, self._journal.last)
        return number

    def _write(self, cursor: Cursor, number: int, states: Mapping[int, bytes]) -> None:
        cursor.executemany(WRITE, ((number, int(customer), state) for customer, state in states.items()))

    def _sweep(self, number: int) -> None:
        """Remove a version that has no name, in steps between which others can write; one that has got a name stays."""
        some = "SELECT s.rowid FROM states s JOIN versions v USING (version) WHERE version = ? AND name IS NULL LIMIT ?"
        dropped = SWEEP
        while dropped:
            with self._journal.transaction() as cursor:
                cursor.execute(f"DELETE FROM states WHERE rowid IN ({some})", (number, SWEEP))
                dropped = cursor.rowcount
                if not dropped:
                    cursor.execute("DELETE FROM versions WHERE version = ? AND name IS NULL", (number,))


def _place(cursor: Cursor, version: str) -> tuple[int | None, int]:
    """(row of a version, its upto), None and 0 where it is unknown."""
    return cursor.execute("SELECT version, upto FROM versions WHERE name = ?", (version,)).fetchone() or (None, 0)


def _new(cursor: Cursor, name: str | None) -> int:
    (number,) = cursor.execute("INSERT INTO versions VALUES (NULL, ?, 0) RETURNING version", (name,)).fetchone()
    return int(number)
