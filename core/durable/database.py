"""One SQLite file with one writing process: its lock, its connections, its transactions, and errors that say what to do.

An application brings the SQL of its tables and a name for their layout. Any thread may call; one at a time writes.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

from core.errors import ArtifactError, Unavailable

APPLICATION_ID = 0x766A_726E
"""Marks a SQLite file as ours; any other database is refused."""
WRITER_CACHE_KIB = 131_072
"""Memory for the writer's pages, taken as used: an index page is changed many times before it is written."""
FOLD_SECONDS = 0.5
"""How often a thread of its own folds the write-ahead log into the file: done by a commit, that commit would wait."""
LOG_PAGES = 25_600
"""Pages of the log at which a commit folds it all the same."""


class Database:
    """A durable SQLite file, for use from many threads of one process; other processes may read."""

    def __init__(
        self,
        path: Path | str,
        *,
        schema: str,
        layout: str,
        synchronous: Literal["full", "normal"] = "full",
        access: Literal["write", "read"] = "write",
        busy_seconds: float = 5.0,
    ) -> None:
        """
        Args:
            schema: SQL that creates the tables in a new file; no transaction statements.
            layout: name and version of that schema, as `finance.fraud.store 1`; a file of another layout is refused.
            synchronous: `full` survives a power cut with every acknowledged entry; `normal` survives the end of the
                process and may lose the newest entries at a power cut, never the file.
            busy_seconds: how long to wait for a lock that another program (a backup) holds.

        Raises:
            ArtifactError: the file is damaged, no such database, of another layout, or written by another process.
        """
        self.path = Path(path)
        self.layout = layout
        self._access, self._synchronous, self._busy_seconds = access, synchronous, busy_seconds
        self._mutex = threading.RLock()
        self._writing_thread: int | None = None
        self._connections: list[sqlite3.Connection] = []
        self._idle: list[sqlite3.Connection] = []
        """Readers that no thread is using."""
        self._connections_mutex = threading.Lock()
        self._lock_file: int | None = None
        self._closed = False
        self._written, self._ending = threading.Event(), threading.Event()
        self._folder: threading.Thread | None = None
        if access == "write":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = _lock(self.path)
        elif not self.path.is_file():
            raise ArtifactError(f"{self.path} does not exist; open it for writing once to create it")
        try:
            with self._translated():
                _refuse_truncated(self.path)
                self._writer = self._connect()
                self._writer.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
                self._writer.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
                self._prepare(schema)
        except BaseException:
            self.close()
            raise
        if access == "write":
            self._folder = threading.Thread(target=self._fold, args=(self._connect(),), daemon=True)
            self._folder.start()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """All or nothing: what is written through the cursor commits durably when the block ends.

        One thread at a time is inside; a nested block joins the outer one. Reads by the same thread see its writes.

        Raises:
            Unavailable: the disk is full, or another program held the file for too long; nothing was written.
            ArtifactError: the file is damaged or cannot be written.
        """
        if self._access == "read":
            raise ArtifactError(f"{self.path} is open for reading; open it with access='write'")
        with self._mutex:
            if self._writing_thread is not None:  # the mutex is held, so this is our own outer block
                yield self._writer.cursor()
                return
            with self._translated():
                self._check_open()
                cursor = self._writer.cursor()
                cursor.execute("BEGIN IMMEDIATE")
                self._writing_thread = threading.get_ident()
                try:
                    yield cursor
                    cursor.execute("COMMIT")
                    self._written.set()
                finally:
                    self._writing_thread = None
                    if self._writer.in_transaction:
                        self._writer.rollback()

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query, from this thread's transaction where it is in one, else from the newest commit."""
        with self._translated():
            if self._writing_thread == threading.get_ident():
                return self._writer.execute(query, parameters).fetchall()
            self._check_open()
            try:
                reader = self._idle.pop()
            except IndexError:
                reader = self._connect()
                reader.execute("PRAGMA query_only=1")
            try:
                return reader.execute(query, parameters).fetchall()
            finally:
                self._idle.append(reader)

    def verify(self) -> None:
        """Read every page and index and check that they agree: minutes for a huge file.

        Raises:
            ArtifactError: the file is damaged.
        """
        findings = [row[0] for row in self.rows("PRAGMA integrity_check(3)")]
        if findings != ["ok"]:
            raise ArtifactError(_damaged(self.path, "; ".join(findings)))

    def close(self) -> None:
        """Release the file and its lock; calls in other threads must have ended."""
        self._ending.set()
        self._written.set()
        if self._folder is not None:
            self._folder.join()
        with self._mutex, self._connections_mutex:
            self._closed = True
            for connection in reversed(self._connections):  # the writer last: it folds the log into the file
                connection.close()
            self._idle.clear()
            self._connections.clear()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fold(self, connection: sqlite3.Connection) -> None:
        """Fold the log now and then while there are commits; the writer and readers go on meanwhile."""
        while not self._ending.wait(FOLD_SECONDS):
            self._written.wait()
            self._written.clear()
            with suppress(sqlite3.DatabaseError):  # damage, a full disk: the next commit meets it and tells its caller
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path} is closed")

    def _connect(self) -> sqlite3.Connection:
        mode = "rwc" if self._access == "write" else "ro"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=self._busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        with self._connections_mutex:
            self._connections.append(connection)
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        return connection

    def _prepare(self, schema: str) -> None:
        """Create the tables in a new file, or see that an old one is ours."""
        empty = not self._writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if empty and self._access == "write":
            self._writer.execute("PRAGMA journal_mode=WAL")
            mark, table = f"PRAGMA application_id={APPLICATION_ID}", "CREATE TABLE layout (name TEXT NOT NULL) STRICT"
            self._writer.executescript(f"BEGIN IMMEDIATE; {mark}; {table}; {schema};")
            self._writer.execute("INSERT INTO layout VALUES (?)", (self.layout,))
            self._writer.execute("COMMIT")
            return
        if self._writer.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise ArtifactError(f"{self.path} is a database of another program; name another file")
        (layout,) = self._writer.execute("SELECT name FROM layout").fetchone()
        if layout != self.layout:
            raise ArtifactError(
                f"{self.path} holds {layout!r}, not {self.layout!r}; name another file, or use the release that wrote it"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite says about the file into an error that says what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise ArtifactError(_damaged(self.path, str(error))) from error
            if code == sqlite3.SQLITE_FULL:
                raise Unavailable(
                    f"{self.path}: the disk is full, nothing was written; free space and send again"
                ) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Unavailable(
                    f"{self.path}: another program held the file for over {self._busy_seconds:g} s, nothing was written; send again"
                ) from error
            if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
                raise ArtifactError(f"{self.path}: {error}; check the path, its permissions and the disk") from error
            raise


def _damaged(path: Path, finding: str) -> str:
    return (
        f"{path} is damaged or no database ({finding}); restore a backup, or save what is readable with "
        f"`sqlite3 {path.name} .recover | sqlite3 saved.db` and put saved.db in its place"
    )


def _lock(path: Path) -> int:
    """Be the one process that writes `path`; returns the open lock file, which the end of the process releases."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror}; check the path, its permissions and the disk"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ArtifactError(
            f"{path} is being written by process {owner}; stop that process, name another file, or use a store that workers share"
        ) from error
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _refuse_truncated(path: Path) -> None:
    """See that the file is as long as its header says, where no write-ahead log waits to complete it.

    Raises:
        ArtifactError: the end of the file is missing.
    """
    log = path.with_name(path.name + "-wal")
    if not path.is_file() or not path.stat().st_size or (log.is_file() and log.stat().st_size):
        return
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise ArtifactError(_damaged(path, "it has no SQLite header"))
    (page,) = struct.unpack(">H", header[16:18])
    (pages,) = struct.unpack(">I", header[28:32])
    expected = pages * (65536 if page == 1 else page)
    if path.stat().st_size < expected:
        raise ArtifactError(_damaged(path, f"{path.stat().st_size} bytes of {expected}"))
