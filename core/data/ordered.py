"""Sources as one stream in time order with unique keys, in bounded memory however large they are.

One pass reads and checks every row into a DuckDB table, which holds at most `memory_mb` and puts the rest into a
temporary folder that is removed at the end. Only then is the first row given: either everything is sound, or nothing
is. Keys are compared as text, not by a hash. Rows of equal time keep the order of the sources. Rows that are the same
in all columns as an earlier one are left out and counted in `repeats`; a key with other content is an error.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from core.data.cells import CANONICAL, clock
from core.data.fingerprint import Fingerprint
from core.data.schema import Schema
from core.data.sources import CHUNK_ROWS, Source, read
from core.errors import CapacityError, ConfigError, DataError

INSERT_BYTES = 1 << 25
"""Rows are handed to DuckDB in pieces of about this size: many small ones are three times slower."""

HISTOGRAM_CELLS = 4096
"""Into how many cells a span of time is counted, to cut it into ranges that can be sorted."""

SORT_SHARE = 0.25
"""Part of the memory that the rows of a range may take while they are sorted."""

_SQL_TYPES = {"string": "VARCHAR", "float": "DOUBLE", "int": "BIGINT", "label": "TINYINT", "time": "BIGINT"}


class Ordered:
    """A checked table on disk, read as often as wanted in time order; a context manager that leaves nothing behind."""

    def __init__(
        self,
        sources: Sequence[str | Path | Source] | str | Path | Source,
        schema: Schema,
        *,
        now: int | None = None,
        memory_mb: int = 256,
        folder: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            sources: parts of one table; a key may not repeat between them either.
            now: microseconds since 1970 UTC that future times are held against; the clock's where None.
            memory_mb: what DuckDB may hold before it writes to disk.
            folder: where the temporary folder is made; the system's place where None.
            progress: called with the number of rows read so far.

        Raises:
            DataError: at the first fault of any row, and at a key that comes back with other content.
            CapacityError: the disk is full.
        """
        several = [sources] if isinstance(sources, str | Path | Source) else list(sources)
        if not several:
            raise ConfigError("no source given; name at least one file or database table")
        if memory_mb < 64:
            raise ConfigError(f"memory_mb {memory_mb}; allowed is at least 64")
        self._memory = memory_mb << 20
        self.sources = [Source.of(source) for source in several]
        self.schema = schema
        self.rows = 0
        """Rows that `chunks` gives."""
        self.repeats = 0
        """Rows left out because an earlier row is the same in key and content."""
        self.sorted = True
        """Whether the sources were in time order already."""
        temporary = Path(tempfile.mkdtemp(prefix="rows-", dir=folder))
        self._remove = weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{memory_mb}MiB",
                "temp_directory": str(temporary),
                "threads": 1,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self._connection.execute("SET enable_progress_bar = false")  # it writes to stdout, where results go
        try:
            self._fill(clock() if now is None else now, progress)
            self._check_keys()
        except duckdb.OutOfMemoryException as error:
            self.close()
            raise CapacityError(
                f"{self._names}: no room for sorting in {temporary.parent} ({str(error).splitlines()[0][:120]}); "
                "free the disk, name another folder, or raise memory_mb"
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def _names(self) -> str:
        return ", ".join(source.name for source in self.sources)

    @property
    def _columns(self) -> str:
        return ", ".join(_quoted(column.name) for column in self.schema.columns)

    def _fill(self, now: int, progress: Callable[[int], None] | None) -> None:
        fields = ", ".join(f"{_quoted(column.name)} {_SQL_TYPES[column.kind]}" for column in self.schema.columns)
        self._connection.execute(f"CREATE TABLE rows (place BIGINT, {fields})")
        self._starts: list[int] = []
        newest = None
        waiting: list[pa.Table] = []
        size = 0
        for source in self.sources:
            self._starts.append(self.rows)
            for chunk in read(source, self.schema, now=now):
                if self.schema.time is not None:
                    times = chunk.column(self.schema.time).to_numpy()
                    late = newest is not None and times[0] < newest
                    self.sorted = self.sorted and not late and bool((times[1:] >= times[:-1]).all())
                    newest = times[-1]
                place = pa.array(np.arange(self.rows, self.rows + len(chunk)))
                waiting.append(chunk.add_column(0, "place", place))
                self.rows += len(chunk)
                size += chunk.nbytes
                if sum(part.nbytes for part in waiting) > INSERT_BYTES:
                    self._insert(waiting)
                    waiting = []
                if progress is not None:
                    progress(self.rows)
        self._insert(waiting)
        self._sortable = max(CHUNK_ROWS, int(SORT_SHARE * self._memory * self.rows / max(1, size)))

    def _insert(self, chunks: list[pa.Table]) -> None:
        if chunks:
            self._connection.register("chunks", pa.concat_tables(chunks))
            self._connection.execute("INSERT INTO rows SELECT * FROM chunks")
            self._connection.unregister("chunks")

    def _check_keys(self) -> None:
        """Leaves out exact repeats. Raises DataError at a key that comes back with other content."""
        self._kept = "true"
        if self.schema.key is None:
            return
        key = _quoted(self.schema.key)
        self._connection.execute(
            f"CREATE TABLE repeated AS SELECT {key}, min(place) AS first FROM rows GROUP BY {key} HAVING count(*) > 1"
        )
        same = " AND ".join(
            f"later.{_quoted(column.name)} IS NOT DISTINCT FROM earlier.{_quoted(column.name)}"
            for column in self.schema.columns
        )
        self._connection.execute(
            f"CREATE TABLE later AS SELECT later.place, repeated.first, {same} AS same FROM repeated "
            f"JOIN rows later ON later.{key} = repeated.{key} AND later.place > repeated.first "
            "JOIN rows earlier ON earlier.place = repeated.first"
        )
        wrong = self._connection.execute(
            "SELECT place, first FROM later WHERE NOT same ORDER BY place LIMIT 1"
        ).fetchone()
        if wrong is not None:
            header = self.schema.named[self.schema.key].header
            raise DataError(
                f"{self._where(wrong[0])}: column {header}: the same {self.schema.key} as {self._where(wrong[1])} with "
                "different content; allowed is one row for each (a row that is the same in all columns is left out)"
            )
        (self.repeats,) = self._connection.execute("SELECT count(*) FROM later").fetchone() or (0,)
        self.rows -= self.repeats
        if self.repeats:
            self._kept = "place NOT IN (SELECT place FROM later)"

    def _where(self, place: int) -> str:
        source = bisect_right(self._starts, place) - 1
        return f"{self.sources[source].name}: row {place - self._starts[source] + 1}"

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
        """The rows in time order (in the order of the sources where the schema has no time), in canonical columns.

        What is not in order is sorted one range of time after the other, each small enough for the memory allowed.
        """
        if self.schema.time is None or self.sorted:
            yield from self._select(rows, self._kept, "")
            return
        time = _quoted(self.schema.time)
        low, high = self._connection.execute(f"SELECT min({time}), max({time}) + 1 FROM rows").fetchall()[0]
        for start, stop in self._ranges(time, low, high):
            order = f"ORDER BY {time}, place" if stop - start > 1 else ""
            yield from self._select(rows, f"{self._kept} AND {time} >= {start} AND {time} < {stop}", order)

    def _select(self, rows: int, where: str, order: str) -> Iterator[pa.Table]:
        types = pa.schema([(column.name, CANONICAL[column.kind]) for column in self.schema.columns])
        cursor = self._connection.cursor()
        try:
            query = f"SELECT {self._columns} FROM rows WHERE {where} {order}"
            for batch in cursor.sql(query).to_arrow_reader(rows):
                yield pa.Table.from_batches([batch]).cast(types)
        finally:
            cursor.close()

    def _ranges(self, time: str, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Ranges [start, stop) of time in order; each is one instant, or has few enough rows to be sorted."""
        width = -(-(high - low) // HISTOGRAM_CELLS)
        cells = self._connection.execute(
            f"SELECT ({time} - {low}) // {width} AS cell, count(*) FROM rows "
            f"WHERE {time} >= {low} AND {time} < {high} GROUP BY cell ORDER BY cell"
        ).fetchall()
        start, held = low, 0
        for cell, count in cells:
            first = low + cell * width
            if held and held + count > self._sortable:
                yield start, first
                start, held = first, 0
            held += count
            if count > self._sortable:
                yield from self._ranges(time, first, min(first + width, high)) if width > 1 else [(first, first + 1)]
                start, held = first + width, 0
        if held:
            yield start, high

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data: sources, rows, span and a hash of the content in time order."""
        fingerprint = Fingerprint([source.name for source in self.sources], time=self.schema.time)
        for chunk in self.chunks():
            fingerprint.update(chunk)
        return {**fingerprint.record(), "repeats": self.repeats}

    def close(self) -> None:
        """Forgets the rows and removes the temporary folder."""
        self._connection.close()
        self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
