"""Files and databases as one stream of validated chunks of bounded size, in the order of the source.

A source is a path (`.csv`; `.jsonl`, `.ndjson`, `.json` with one object a line; `.parquet`, `.pq`; text also `.gz`) or a
SQLAlchemy URL with a table or query: `postgresql+psycopg://user@host/bank::transactions`. Time order and unique keys: see `ordered`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from core.data.cells import Column, Kind, clock, kind_of
from core.data.readers import Raw, read_csv, read_json_lines, read_parquet
from core.data.schema import Schema
from core.errors import ConfigError, DataError

CHUNK_ROWS = 65_536

_FORMATS = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_DATABASE = re.compile(
    r"(?P<uri>[a-z][\w+.-]*://(?:\[[^\]]*\]|[^\[])*?)(?:::(?P<statement>.*))?", re.DOTALL | re.IGNORECASE
)


@dataclass(frozen=True)
class Source:
    """One place that rows come from."""

    uri: str
    """A path, or a SQLAlchemy URL."""
    table: str | None = None
    """Table of the database: `name` or `schema.name`. It has no order of its own: where rows of equal time must keep
    theirs, write a query."""
    query: str | None = None
    """Or a SELECT; its ORDER BY decides between rows of equal time."""
    delimiter: str = ","
    """Between the fields of a CSV file."""
    decimal: Literal[".", ","] = "."
    """Mark of numbers written as text."""

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise ConfigError(f"delimiter {self.delimiter!r}; allowed is one character")
        if self.is_database and (self.table is None) == (self.query is None):
            raise ConfigError(
                f"{self.name}: name what to read: a table (URL::transactions) or a query (URL::SELECT ...)"
            )
        if not self.is_database and (self.table or self.query):
            raise ConfigError(f"{self.name}: table and query belong to a database URL, as in sqlite:///bank.db")

    @classmethod
    def of(cls, value: str | Path | Source) -> Source:
        """A source from its short form: a path, `URL::table` or `URL::SELECT ...`."""
        if isinstance(value, Source):
            return value
        if not (match := _DATABASE.fullmatch(str(value))):
            return cls(str(value))
        statement = (match["statement"] or "").strip()
        if re.match(r"(select|with)\b", statement, re.IGNORECASE):
            return cls(match["uri"], query=statement)
        return cls(match["uri"], table=statement or None)

    @property
    def is_database(self) -> bool:
        return "://" in self.uri

    @property
    def name(self) -> str:
        """What messages and records call it: no user, no password."""
        if not self.is_database:
            return self.uri
        from core.data.sql import database_name  # SQLAlchemy is loaded where a database is read

        return database_name(self.uri) + (f"::{self.table or 'query'}" if self.table or self.query else "")


def read(
    source: str | Path | Source, schema: Schema, *, rows: int = CHUNK_ROWS, now: int | None = None
) -> Iterator[pa.Table]:
    """Canonical chunks of at most `rows` rows, by logical column name (see `cells` for the types).

    Args:
        now: microseconds since 1970 UTC that future times are held against; the clock's where None.

    Raises:
        DataError: the first fault, by source, row (the first data row is 1), line of a text file, and column.
    """
    source = Source.of(source)
    name, done, now = source.name, 0, clock() if now is None else now
    schema = replace(schema, columns=tuple(replace(column, decimal=source.decimal) for column in schema.columns))
    for raw in _raw(source, schema, rows):
        table, fault = schema.convert(raw.table, now=now)
        if fault is not None:
            line = f" (line {raw.line(fault.row)})" if raw.line else ""
            raise DataError(f"{name}: row {done + fault.row + 1}{line}: {fault.text}")
        done += len(table)
        for start in range(0, len(table), rows):
            yield table.slice(start, rows)
    if not done:
        raise DataError(f"{name}: has columns but no rows; allowed is at least one row")


def infer(
    source: str | Path | Source, *, time: str | None = None, key: str | None = None, ignore: Sequence[str] = ()
) -> Schema:
    """The schema of a table nobody described, from its first chunk: numbers, yes or no, and everything else as text.

    Args:
        time: column that holds the time.
        key: column whose values are unique.
        ignore: columns to leave out.
    """
    source = Source.of(source)
    raw = next(_raw(source, Schema((), ignore=tuple(ignore)), CHUNK_ROWS), None)
    if raw is None:
        raise DataError(f"{source.name}: has columns but no rows; allowed is at least one row")
    kinds: dict[str, Kind] = {name: kind_of(raw.table.column(name), source.decimal) for name in raw.table.column_names}
    kinds |= {name: kind for name, kind in ((time, "time"), (key, "string")) if name is not None}  # type: ignore[misc]
    columns = tuple(Column(name, kind, gaps=kind == "string" and name != key) for name, kind in kinds.items())
    return Schema(columns, time=time, key=key, ignore=tuple(ignore))


def read_table(
    sources: Sequence[str | Path | Source], *, time: str | None = None, ignore: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Sources with the same columns as one table in memory: float64, int8 for yes or no, int64 time, or str.

    Raises:
        DataError: the first fault of any row; the kinds are those of the first source's first chunk.
    """
    if not sources:
        raise ConfigError("no source given; name at least one file or database table")
    schema = infer(sources[0], time=time, ignore=ignore)
    table = pa.concat_tables(chunk for source in sources for chunk in read(source, schema))
    return {
        column.name: np.array(table.column(column.name).to_pylist(), dtype=object)
        if column.kind == "string"
        else table.column(column.name).to_numpy()
        for column in schema.columns
    }


def _raw(source: Source, schema: Schema, rows: int) -> Iterator[Raw]:
    """The reader that fits the source."""
    if source.is_database:
        from core.data.sql import read_sql

        statement = source.table or source.query or ""
        return read_sql(source.uri, statement, schema, is_table=source.table is not None, rows=rows)
    path = Path(source.uri)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = _FORMATS.get("".join(suffixes[-2:-1] if packed else suffixes[-1:]))
    if kind is None or (packed and kind == "parquet"):
        raise DataError(
            f"{path}: unknown kind of file; allowed are {', '.join(_FORMATS)}, .csv.gz, .jsonl.gz, or a database URL"
        )
    if not path.is_file():
        raise DataError(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; name one file or a list of files"
        )
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if kind == "csv":
        return read_csv(path, schema, delimiter=source.delimiter)
    return read_json_lines(path, schema) if kind == "jsonl" else read_parquet(path, schema, rows=rows)
