"""The result of a board's inspection, as machine vision systems report it, and the operators' verdicts on its findings.

Names are those of OPC 40100-1 (Machine Vision): ResultId, PartId, recipe, ResultState, content. A result is written once, and
is the same bytes however often it is sent. Results, pictures and verdicts lie in one folder each; the database is the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.durable.database import Database
from core.errors import DataError

LAYOUT = "results 1"
COMPLETED, ABORTED = 1, 3
"""ResultState of OPC 40100-1: of a board that was inspected, and of one that could not be."""
MOST_SHOWN = 100
"""The newest, to a client of OPC UA."""
Judgement = Literal["defect", "no defect"]

TABLES = """
CREATE TABLE result (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, part_id TEXT NOT NULL, verdict TEXT NOT NULL,
                     made_at REAL NOT NULL, payload BLOB NOT NULL) STRICT;
CREATE TABLE judgement (result_id TEXT NOT NULL, finding INTEGER NOT NULL, verdict TEXT NOT NULL, class TEXT, at REAL NOT NULL,
                        PRIMARY KEY (result_id, finding)) STRICT;
"""


class UnknownResult(DataError):
    """No result has this id."""

    def __init__(self) -> None:
        super().__init__("there is no result of this ResultId: it was never given, or its time of keeping is over")


class Kept(NamedTuple):
    """A result in the list."""

    seq: int
    id: str
    payload: bytes
    """JSON, as it was sent."""

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.payload)
        return record


def payload_of(result: Mapping[str, Any]) -> bytes:
    """The one text of a result."""
    return json.dumps(result, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


class Results(Database):
    """The list. One process writes, any thread of it."""

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError: damaged, or another process writes it."""
        super().__init__(path, schema=TABLES, layout=LAYOUT)

    def add(self, result: Mapping[str, Any]) -> bytes:
        """Keeps a result, once for each ResultId: what is there already is given back, whatever comes now.

        Raises:
            Unavailable: the disk is full.
        """
        with self.transaction() as cursor:
            known = cursor.execute("SELECT payload FROM result WHERE id = ?", (result["ResultId"],)).fetchone()
            if known:
                return bytes(known[0])
            payload = payload_of(result)
            cursor.execute(
                "INSERT INTO result (id, part_id, verdict, made_at, payload) VALUES (?, ?, ?, ?, ?)",
                (
                    result["ResultId"],
                    result["PartId"],
                    result["ResultContent"]["verdict"],
                    result["CreationTime"],
                    payload,
                ),
            )
        return payload

    def get(self, id: str) -> Kept:
        """Raises UnknownResult."""
        rows = self.rows("SELECT seq, id, payload FROM result WHERE id = ?", (id,))
        if not rows:
            raise UnknownResult
        return Kept(*rows[0])

    def newest(self, count: int, *, before: int | None = None) -> list[Kept]:
        """The newest first; `before` is a sequence number to go on from."""
        rows = self.rows(
            "SELECT seq, id, payload FROM result WHERE ? IS NULL OR seq < ? ORDER BY seq DESC LIMIT ?",
            (before, before, count),
        )
        return [Kept(*row) for row in rows]

    def judge(self, id: str, finding: int, verdict: Judgement, *, kind: str | None, at: float) -> None:
        """Keeps what an operator says of a finding, the newest word only.

        Args:
            finding: its number in the result, from 0.
            kind: class that it really is, where it is another.

        Raises:
            UnknownResult: there is none.
            DataError: the result has no such finding.
        """
        count = len(self.get(id).record["ResultContent"].get("findings", ()))
        if not 0 <= finding < count:
            raise DataError(
                f"the result has {count} findings; allowed are the numbers 0 to {count - 1}"
                if count
                else "the result has no findings"
            )
        with self.transaction() as cursor:
            cursor.execute("INSERT OR REPLACE INTO judgement VALUES (?, ?, ?, ?, ?)", (id, finding, verdict, kind, at))

    def judgements(self, id: str) -> dict[int, tuple[Judgement, str | None]]:
        """Of a result, by finding."""
        rows = self.rows("SELECT finding, verdict, class FROM judgement WHERE result_id = ?", (id,))
        return {finding: (verdict, kind) for finding, verdict, kind in rows}

    def judged(self) -> list[str]:
        """Ids of the results with a judgement, the oldest first."""
        rows = self.rows("SELECT id FROM result WHERE id IN (SELECT result_id FROM judgement) ORDER BY seq")
        return [id for (id,) in rows]

    def forget(self, before: float) -> list[str]:
        """Drops results made before then, their judgements with them; their ids."""
        with self.transaction() as cursor:
            ids = [row[0] for row in cursor.execute("SELECT id FROM result WHERE made_at < ?", (before,)).fetchall()]
            cursor.executemany("DELETE FROM judgement WHERE result_id = ?", [(id,) for id in ids])
            cursor.executemany("DELETE FROM result WHERE id = ?", [(id,) for id in ids])
        return ids
