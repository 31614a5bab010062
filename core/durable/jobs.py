"""A durable queue of long jobs, worked off one at a time in the order of submission, with a private folder for each.

A job is written down before it is acknowledged. After a crash the running job is queued again, in its old place; one
that ended the process several times fails instead. Files that come with a job are written in `upload()` and belong to it
from `submit` on: `files/ID/input` goes when the job ends, `files/ID/output` when it is forgotten. One process writes and
works (`worker.py`), others may read. A request is kept as given until `forget`: no patient attribute belongs in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from core.durable.database import Database
from core.durable.files import flush_tree, remove, written
from core.durable.journal import KeyConflict
from core.errors import CapacityError, Conflict, DataError, Unavailable

LAYOUT = "jobs 1"
"""Name and version of the tables below."""
TELL_SECONDS = 1.0
"""Progress is written down at most this often."""

State = Literal["queued", "running", "done", "failed", "cancelled"]

TABLES = """
CREATE TABLE job (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, key TEXT UNIQUE, digest BLOB NOT NULL,
                  request TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'queued', progress REAL NOT NULL DEFAULT 0,
                  attempts INTEGER NOT NULL DEFAULT 0, asked_to_stop INTEGER NOT NULL DEFAULT 0,
                  cost_bytes INTEGER NOT NULL, cost_seconds REAL NOT NULL, promised_seconds REAL NOT NULL,
                  submitted_at REAL NOT NULL, started_at REAL, ended_at REAL, code TEXT, message TEXT,
                  result TEXT) STRICT;
CREATE INDEX job_state ON job (state, seq);
"""
_SHOWN = (
    "id, request, state, progress, attempts, cost_bytes, cost_seconds, promised_seconds, submitted_at, started_at, "
    "ended_at, code, message"
)
_HINT = "its memory may not suffice: give a smaller input or more memory"
_ID = re.compile(r"[0-9a-f]{32}")


class UnknownJob(DataError):
    """No job has this id."""

    def __init__(self) -> None:
        super().__init__("there is no job of this id: it was never given, or the job's time of keeping is over")


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read."""

    id: str
    """Random: who knows it may see the job."""
    request: Mapping[str, Any]
    state: State
    progress: float
    """Done part of the work, 0 to 1."""
    attempts: int
    """Starts of the work that the process has not stopped in good order."""
    cost_bytes: int
    cost_seconds: float
    promised_seconds: float
    """From submission to the end, as foreseen at submission: what was ahead, and its own cost."""
    submitted_at: float
    """Times are seconds since 1970 UTC."""
    started_at: float | None
    """Of the newest attempt."""
    ended_at: float | None
    code: str | None
    """Kind of failure, in one word."""
    message: str | None
    """What failed and what to do about it."""
    position: int | None
    """Place in the queue, 1 is next; None where it does not wait."""


class Jobs:
    """The queue in a folder: its database and the jobs' files. Any thread may call."""

    def __init__(
        self,
        folder: Path | str,
        *,
        most_waiting: int = 100,
        most_bytes: int | None = None,
        most_attempts: int = 3,
        access: Literal["write", "read"] = "write",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            most_waiting: jobs and uploads that may wait.
            most_bytes: bound on the sum of `cost_bytes` of the jobs that wait or run.
            most_attempts: a job that ended the process so many times is failed, not tried again.
            access: `read` shows jobs that another process works on.

        Raises:
            ArtifactError: the database is damaged, no such database, or written by another process.
        """
        self.root = Path(folder)
        self._files = self.root / "files"
        self._most_waiting, self._most_bytes, self._most_attempts = most_waiting, most_bytes, most_attempts
        self._clock = clock
        self._uploads: set[str] = set()
        self._uploads_mutex = threading.Lock()
        self._arrived = threading.Event()
        self._told = -math.inf
        if access == "write":
            for path in (self.root, self._files):
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(0o700)
        self._database = Database(self.root / "jobs.db", schema=TABLES, layout=LAYOUT, access=access)
        if access == "write":
            try:
                self._recover()
            except BaseException:
                self._database.close()
                raise

    @contextmanager
    def upload(self) -> Iterator[Path]:
        """A private folder for a job's input, to be named in `submit`; removed at the end where no job took it.

        Raises:
            Unavailable: as many jobs and uploads wait as may.
        """
        name = secrets.token_hex(16)
        with self._uploads_mutex:
            self._check_room(len(self._uploads) + 1)
            self._uploads.add(name)
        try:
            with written():
                for part in ("", "input", "output"):
                    (self._files / name / part).mkdir(mode=0o700)
            yield self._files / name / "input"
        finally:
            with self._uploads_mutex:
                self._uploads.discard(name)
            if not self._database.rows("SELECT 1 FROM job WHERE id = ?", (name,)):
                remove(self._files / name)

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        key: str | None = None,
        cost_bytes: int = 0,
        cost_seconds: float = 0.0,
        files: Path | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Job:
        """Queue a job; when this returns it survives a power cut, its files too.

        Args:
            request: what JSON can hold; `notes` are kept with it, and no part of what a key stands for.
            key: idempotency key: the job that it was used for is returned. One that failed or was cancelled lets go of it.
            cost_bytes: memory or disk that it needs; `cost_seconds` the time that it is likely to take.
            files: the folder that `upload` gave.

        Raises:
            Unavailable: as many jobs wait as may, or the disk is full; nothing was queued.
            CapacityError: the job alone costs more than all jobs may.
            KeyConflict: the key was used with another request.
        """
        digest, text = hashlib.sha256(as_json(request).encode()).digest(), as_json({**request, **(notes or {})})
        if self._most_bytes is not None and cost_bytes > self._most_bytes:
            raise CapacityError(f"the job needs {cost_bytes} bytes; at most {self._most_bytes} are allowed: send less")
        if (known := self._known(key, digest)) is not None:
            return known
        if files is None:
            with self.upload() as own:
                return self.submit(
                    request, key=key, cost_bytes=cost_bytes, cost_seconds=cost_seconds, files=own, notes=notes
                )
        name = files.parent.name
        flush_tree(files.parent)
        with self._database.transaction() as cursor:
            if known := self._known(key, digest):  # another thread was quicker
                return known
            self._check_room(1)
            ahead, used = cursor.execute(
                "SELECT coalesce(sum(cost_seconds * (1 - progress)), 0), coalesce(sum(cost_bytes), 0) FROM job "
                "WHERE state IN ('queued', 'running')"
            ).fetchone()
            if self._most_bytes is not None and used + cost_bytes > self._most_bytes:
                raise Unavailable(
                    f"waiting jobs need {used} of {self._most_bytes} bytes, this one {cost_bytes}; send it again later"
                )
            cursor.execute(
                "INSERT INTO job (id, key, digest, request, cost_bytes, cost_seconds, promised_seconds, submitted_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (name, key, digest, text, cost_bytes, float(cost_seconds), ahead + cost_seconds, self._clock()),
            )
        self._arrived.set()
        return self.status(name)

    def status(self, id: str) -> Job:
        """
        Raises:
            UnknownJob: there is none, or none any more.
        """
        place = "(SELECT count(*) FROM job AS other WHERE other.state = 'queued' AND other.seq <= job.seq)"
        query = f"SELECT {_SHOWN}, CASE state WHEN 'queued' THEN {place} END FROM job WHERE id = ?"
        for _, request, *rest in self._database.rows(query, (id,)):
            return Job(id, json.loads(request), *rest)
        raise UnknownJob

    def result(self, id: str) -> Mapping[str, Any]:
        """What the work gave.

        Raises:
            UnknownJob: there is none, or none any more.
            Conflict: the job is not done; `details["state"]` says what it is.
        """
        rows = self._database.rows("SELECT state, result FROM job WHERE id = ?", (id,))
        if not rows:
            raise UnknownJob
        state, result = rows[0]
        if state != "done":
            hints = {"failed": "its status says why; submit it anew", "cancelled": "submit it anew"}
            hint = hints.get(state, "ask again later")
            raise Conflict(f"the job is {state} and has no result; {hint}", state=state)
        given: Mapping[str, Any] = json.loads(result)
        return given

    def folder(self, id: str) -> Path:
        """The job's private folder, with `input` and `output` in it."""
        if not _ID.fullmatch(id):
            raise UnknownJob
        return self._files / id

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        found = dict(self._database.rows("SELECT state, count(*) FROM job GROUP BY state"))
        return {state: found.get(state, 0) for state in get_args(State)}

    def cancel(self, id: str) -> Job:
        """End a waiting job now, ask a running one to stop; one that has ended stays as it is."""
        with self._database.transaction() as cursor:
            cursor.execute("UPDATE job SET asked_to_stop = 1 WHERE id = ? AND state = 'running'", (id,))
            ended = self._end(cursor, id, "cancelled", "queued")
        if ended:
            remove(self._files / id)
        return self.status(id)

    def claim(self, *, wait_seconds: float = 0.0) -> Job | None:
        """The job whose turn it is, running from now on; None where none comes in time. For one worker."""
        self._arrived.clear()
        job = self._claim()
        if job is None and wait_seconds > 0 and self._arrived.wait(wait_seconds):
            job = self._claim()
        return job

    def wake(self) -> None:
        """End a wait in `claim`."""
        self._arrived.set()

    def progress(self, id: str, fraction: float) -> bool:
        """Note how far the work is; returns whether it was asked to stop."""
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            with suppress(Unavailable), self._database.transaction() as cursor:  # the work is worth more than its bar
                cursor.execute(
                    "UPDATE job SET progress = ? WHERE id = ? AND state = 'running'", (min(max(fraction, 0), 1), id)
                )
        rows = self._database.rows("SELECT 1 FROM job WHERE id = ? AND state = 'running' AND NOT asked_to_stop", (id,))
        return not rows

    def finish(self, id: str, result: Mapping[str, Any]) -> None:
        """The work is done; a job that was asked to stop meanwhile is cancelled all the same.

        Raises:
            Unavailable: the disk is full; the job is still running.
        """
        text = as_json(result)
        if (output := self._files / id / "output").is_dir():
            flush_tree(output)
        with self._database.transaction() as cursor:
            stopped = self._stopped(cursor, id)
            if not stopped:
                self._end(cursor, id, "done", "running", result=text)
        remove(self._files / id if stopped else self._files / id / "input")

    def fail(self, id: str, *, code: str, message: str) -> None:
        """The work failed: the text is shown to whoever asks for the job."""
        with self._database.transaction() as cursor:
            self._end(cursor, id, "failed", "running", code=code, message=message)
        remove(self._files / id)

    def release(self, id: str) -> None:
        """The work stopped before its end: cancelled where that was asked for, else queued again in its old place."""
        with self._database.transaction() as cursor:
            stopped = self._stopped(cursor, id)
            if not stopped:
                cursor.execute(
                    "UPDATE job SET state = 'queued', attempts = attempts - 1, progress = 0 "
                    "WHERE id = ? AND state = 'running'",
                    (id,),
                )
        if stopped:
            remove(self._files / id)

    def forget(self, older_than_seconds: float) -> int:
        """Drop jobs that ended longer ago, with all of their files; returns how many. Their keys are free again."""
        with self._database.transaction() as cursor:
            gone = cursor.execute(
                "DELETE FROM job WHERE ended_at < ? RETURNING id", (self._clock() - older_than_seconds,)
            ).fetchall()
        for (name,) in gone:
            remove(self._files / name)
        return len(gone)

    def close(self) -> None:
        """Let go of the files; the worker must have ended."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _claim(self) -> Job | None:
        with self._database.transaction() as cursor:
            row = cursor.execute("SELECT id FROM job WHERE state = 'queued' ORDER BY seq LIMIT 1").fetchone()
            if row is None:
                return None
            output = self._files / row[0] / "output"
            with written():
                remove(output)  # of an attempt that came to no end
                output.mkdir(mode=0o700, parents=True, exist_ok=True)
            cursor.execute(
                "UPDATE job SET state = 'running', attempts = attempts + 1, progress = 0, started_at = ? WHERE id = ?",
                (self._clock(), row[0]),
            )
        self._told = -math.inf
        return self.status(row[0])

    def _end(self, cursor: sqlite3.Cursor, id: str, state: State, before: State, **given: str) -> bool:
        """To an ending state; whether the job was in the state `before`."""
        values: dict[str, Any] = {"state": state, "ended_at": self._clock(), **given}
        values |= {"progress": 1.0} if state == "done" else {"key": None}  # a key stands for a result
        changes = ", ".join(f"{name} = ?" for name in values)
        cursor.execute(f"UPDATE job SET {changes} WHERE id = ? AND state = ?", (*values.values(), id, before))
        return cursor.rowcount > 0

    def _stopped(self, cursor: sqlite3.Cursor, id: str) -> bool:
        """Cancel a running job that was asked to stop; whether it was."""
        asked = cursor.execute("SELECT asked_to_stop FROM job WHERE id = ? AND state = 'running'", (id,)).fetchone()
        return asked == (1,) and self._end(cursor, id, "cancelled", "running")

    def _known(self, key: str | None, digest: bytes) -> Job | None:
        rows = self._database.rows("SELECT id, digest FROM job WHERE key = ?", (key,)) if key is not None else []
        if rows and rows[0][1] != digest:
            raise KeyConflict(key or "")
        return self.status(rows[0][0]) if rows else None

    def _check_room(self, coming: int) -> None:
        waiting = self._database.rows("SELECT count(*) FROM job WHERE state = 'queued'")[0][0]
        if waiting + coming > self._most_waiting:
            raise Unavailable(f"{self._most_waiting} jobs are waiting, which is the limit; send this one again later")

    def _recover(self) -> None:
        """After a start: settle what was running, and remove files that no job needs."""
        text = f"the process ended {self._most_attempts} times while it worked on this job, the limit; {_HINT}"
        with self._database.transaction() as cursor:
            cursor.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten in the file
            cursor.execute("SELECT id, attempts FROM job WHERE state = 'running'")
            for name, attempts in cursor.fetchall():
                if self._stopped(cursor, name):
                    continue
                if attempts >= self._most_attempts:
                    self._end(cursor, name, "failed", "running", code="crashed", message=text)
                else:
                    cursor.execute("UPDATE job SET state = 'queued', progress = 0 WHERE id = ?", (name,))
        states = dict(self._database.rows("SELECT id, state FROM job"))
        for path in self._files.iterdir():
            state = states.get(path.name)
            if state == "done":
                remove(path / "input")
            elif state != "queued":
                remove(path)


def as_json(value: Mapping[str, Any]) -> str:
    """The one text of a value. Raises TypeError or ValueError where JSON cannot hold it."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
