"""CSV, JSON lines and Parquet files as raw chunks: text or typed Arrow columns by their name in the file.

Text is read in blocks of whole lines. A CSV block without a quote goes through Arrow; any other, and any that Arrow
refuses, through the csv module, which tells the line at fault. What the values mean stands in `cells`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from uuid import UUID

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from core.data.cells import Column
from core.data.schema import Schema
from core.errors import DataError

BLOCK_BYTES = 1 << 21
"""Text is read in blocks of about this size."""

LINE_BYTES = 1 << 20
"""The longest line of a text file."""


class Raw(NamedTuple):
    """A chunk as the source has it."""

    table: pa.Table
    line: Callable[[int], int] | None = None
    """Row of the chunk (from 0) to line of the file (from 1), for text files."""


class _Text:
    """A text file read line by line or in blocks of whole lines, which knows where it is."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream = path, stream
        self.lines_before = self.lines_read = 0
        """Lines before the piece read last, and after it."""
        self._offset = self._next_offset = 0

    def line(self) -> bytes:
        """The next line with its end; empty at the end of the file."""
        return self._piece(self._limited(self.lines_read + 1))

    def block(self) -> bytes:
        """About `BLOCK_BYTES` of whole lines; empty at the end of the file."""
        block = self.stream.read(BLOCK_BYTES)
        if block and not block.endswith(b"\n"):
            block += self._limited(self.lines_read + block.count(b"\n") + 1)
        return self._piece(block)

    def decoded(self, piece: bytes) -> str:
        """The piece read last as text. Raises DataError with the byte and line that is not UTF-8."""
        try:
            return piece.decode()
        except UnicodeDecodeError as error:
            line = self.lines_before + piece.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{self.path}: line {line}: byte {self._offset + error.start} (0x{piece[error.start]:02x}) is not UTF-8; "
                "allowed is UTF-8 text: convert the file, for example by iconv"
            ) from None

    def _limited(self, line: int) -> bytes:
        rest = self.stream.readline(LINE_BYTES)
        if len(rest) == LINE_BYTES and not rest.endswith(b"\n"):
            raise DataError(f"{self.path}: line {line} is longer than {LINE_BYTES} bytes; allowed is one record a line")
        return rest

    def _piece(self, piece: bytes) -> bytes:
        self.lines_before = self.lines_read
        self.lines_read += piece.count(b"\n") + (bool(piece) and not piece.endswith(b"\n"))
        self._offset, self._next_offset = self._next_offset, self._next_offset + len(piece)
        return piece


@contextmanager
def _opened(path: Path) -> Iterator[_Text]:
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield _Text(path, cast(IO[bytes], stream))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is not a whole gzip file ({error}); write or copy it again") from None


def read_csv(path: Path, schema: Schema, *, delimiter: str = ",") -> Iterator[Raw]:
    """Chunks of text columns. Raises DataError at what is not UTF-8, a ragged row, a wrong header."""
    with _opened(path) as text:
        header: list[str] = []
        while not any(header):
            if not (line := text.line()):
                raise DataError(f"{path}: is empty; allowed is a header with column names, then one row a line")
            fields = next(csv.reader([text.decoded(line).removeprefix("\ufeff")], delimiter=delimiter), [])
            header = [name.strip() for name in fields]
        if len(header) == 1 and (mark := next((mark for mark in ";\t|," if mark in header[0]), None)):
            raise DataError(f"{path}: its header is not divided by {delimiter!r}; {schema.remedies.delimiter(mark)}")
        schema.check_headers(header, str(path))
        rows = 0
        while block := text.block():
            raw = _csv_plain(text, block, header, schema, delimiter) if b'"' not in block else None
            raw = raw or _csv_quoted(text, block, header, delimiter, rows)
            rows += len(raw.table)
            yield raw


def _csv_plain(text: _Text, block: bytes, header: list[str], schema: Schema, delimiter: str) -> Raw | None:
    """A block without quotes, where each line that is not blank is a row. None where Arrow finds a fault in it."""
    known = [column.header for column in schema.wanted(header)]
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(block),
            read_options=pyarrow.csv.ReadOptions(column_names=header, use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), include_columns=known
            ),
        )
    except pa.ArrowInvalid:
        return None
    before = text.lines_before

    def line(row: int) -> int:
        filled = (place for place, content in enumerate(block.split(b"\n"), before + 1) if content.strip(b"\r"))
        return next(place for count, place in enumerate(filled) if count == row)

    return Raw(table, line)


def _csv_quoted(text: _Text, block: bytes, header: list[str], delimiter: str, rows: int) -> Raw:
    """Any block, by the csv module; reads on where a quoted value crosses its end."""
    content, before, taken = text.decoded(block), text.lines_before, 0
    source = io.StringIO(content)
    lines: list[int] = []
    records: list[list[str]] = []

    def feed() -> Iterator[str]:
        nonlocal taken
        for line in source:
            taken += 1
            yield line
        while line := text.decoded(text.line()):
            taken += 1
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while source.tell() < len(content):
        start = before + taken + 1
        try:
            record = next(reader)
        except csv.Error as error:
            raise DataError(
                f"{text.path}: row {rows + len(records) + 1} (line {start}): {error}; "
                "a value with a quote in it stands in quotes, and the quote is doubled"
            ) from None
        if record and len(record) != len(header):
            raise DataError(
                f"{text.path}: row {rows + len(records) + 1} (line {start}): has {len(record)} fields, the header has "
                f"{len(header)}; put values that contain {delimiter!r} in quotes"
            )
        if record:
            records.append(record)
            lines.append(start)
    columns = zip(*records, strict=True) if records else [[] for _ in header]
    return Raw(pa.table([pa.array(column, pa.string()) for column in columns], names=header), lines.__getitem__)


def read_json_lines(path: Path, schema: Schema) -> Iterator[Raw]:
    """Chunks of text columns, one JSON object a line. Raises DataError at a line that is not one."""
    known = {column.header for column in schema.columns} | set(schema.ignore)
    rows = 0
    with _opened(path) as text:
        while block := text.block():
            objects: list[dict[str, Any]] = []
            lines: list[int] = []
            for place, line in enumerate(text.decoded(block).split("\n"), text.lines_before + 1):
                if not line.strip():
                    continue
                where = f"{path}: row {rows + len(objects) + 1} (line {place})"
                value = _json_object(line.removeprefix("\ufeff") if place == 1 else line, where)
                if rows + len(objects) == 0 or not (schema.ignore_extra or not schema.columns or value.keys() <= known):
                    schema.check_headers([*value], where)
                objects.append(value)
                lines.append(place)
            columns = schema.columns or schema.wanted(list(dict.fromkeys(key for value in objects for key in value)))
            table = text_table(objects, columns, f"{path}: row", rows + 1)
            rows += len(objects)
            yield Raw(table, lines.__getitem__)
    if not rows:
        raise DataError(f"{path}: is empty; allowed is one JSON object a line")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "number"
        raise DataError(f"{where}: is not JSON ({reason}); allowed is one object a line") from None
    except RecursionError:
        raise DataError(f"{where}: is nested too deeply; allowed is one flat object a line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: is a JSON {type(value).__name__}; allowed is one object a line")
    return value


def read_parquet(path: Path, schema: Schema, *, rows: int = 65_536) -> Iterator[Raw]:
    """Chunks of typed columns. Raises DataError at a file that is damaged or is not Parquet."""
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty; allowed is a Parquet file")
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            schema.check_headers(names, str(path))
            wanted = [column.header for column in schema.wanted(names)]
            for batch in file.iter_batches(rows, columns=wanted, use_threads=False):
                yield Raw(pa.Table.from_batches([batch]))
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise DataError(f"{path}: is not a whole Parquet file ({reason}); write or copy it again") from None


def text_table(records: Sequence[dict[str, Any]], columns: Sequence[Column], where: str, first: int) -> pa.Table:
    """Cells of Python types (JSON, SQL) as text columns, so that one set of rules reads them.

    Args:
        where: start of a message, before the number of a row.
        first: number of the first record.
    """
    arrays = {}
    for column in columns:
        if not column.required and not any(column.header in record for record in records):
            continue
        cells = [record.get(column.header) for record in records]
        for row, cell in enumerate(cells):
            if type(cell) is str or cell is None:
                continue
            cells[row] = text = _as_text(cell)
            if column.decimal == "," and column.kind == "float" and text is not None and not isinstance(cell, bool):
                cells[row] = text.replace(".", ",")  # typed numbers have no mark: it is how they are read next
            if (cells[row] is None and cell == cell) or (type(cell) is float and column.kind == "string"):
                raise DataError(
                    f"{where} {first + row}: column {column.header}: holds a {type(cell).__name__}; allowed is {column.expected}"
                )
        arrays[column.header] = pa.array(cells, pa.string())
    return pa.table(arrays)


def _as_text(cell: object) -> str | None:
    """A single value as text that reads back exactly; None for NaN and for what has no text (bytes, lists, objects)."""
    match cell:
        case bool():
            return "true" if cell else "false"
        case float():
            return repr(cell) if cell == cell else None
        case Decimal():
            return f"{cell:f}" if cell == cell else None
        case datetime():
            return cell.isoformat(sep=" ")
        case int() | date() | UUID():
            return str(cell)
    return None
