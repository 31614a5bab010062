"""Card transactions as rows of a file or database: the handbook's columns or mapped ones, to `Events` in time order.

Cards and terminals go by an int64 code from here on: a 64-bit hash of the text that names them, so that the same card
has the same code in every file, request and store, and no store holds the card's own number.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from core.data.cells import Column
from core.data.ordered import Ordered
from core.data.schema import Remedies, Schema
from core.data.sources import CHUNK_ROWS, Source
from core.errors import ConfigError
from verticals.finance.fraud.config import DataConfig
from verticals.finance.fraud.events import Events, Ints

HANDBOOK = {
    "transaction_id": "TRANSACTION_ID",
    "time": "TX_DATETIME",
    "customer": "CUSTOMER_ID",
    "terminal": "TERMINAL_ID",
    "amount": "TX_AMOUNT",
    "fraud": "TX_FRAUD",
}
"""Logical column to its name in the Fraud Detection Handbook, which is the default."""

HANDBOOK_IGNORED = ("TX_TIME_SECONDS", "TX_TIME_DAYS", "TX_FRAUD_SCENARIO")
"""Columns of the handbook that are never read: the time again, and the answer."""

LARGEST_AMOUNT = 1e12
"""Currency units."""

EARLIEST = 31_536_000_000_000
"""1971-01-01 UTC: earlier times come from a wrong unit."""


class Records(NamedTuple):
    """Transactions with what `Events` leaves out, row by row."""

    ids: NDArray[Any]
    """[N] str."""
    events: Events
    extra: dict[str, NDArray[Any]]
    """Further columns by their name in the file: float64, or str with an empty text for no value."""


class _Settings(Remedies):
    """Faults of a file are mended by the settings of `DataConfig`."""

    def __init__(self, ignored: Sequence[str]) -> None:
        self._ignored = ignored

    def column(self, name: str, header: str) -> str:
        return f"map another name, as in {_setting(f'columns.{name}', _word(header))}"

    def ignore(self, headers: Sequence[str]) -> str:
        several = ",".join(_word(header) for header in dict.fromkeys([*self._ignored, *headers]))
        return f"leave it out by {_setting('ignore_columns', f'[{several}]')}"

    def delimiter(self, mark: str) -> str:
        return f"name its mark by {_setting('delimiter', json.dumps(mark))}"

    def decimal(self, mark: str) -> str:
        return f"if the file writes numbers so, {_setting('decimal', json.dumps(mark))}"


def _setting(name: str, value: str) -> str:
    """The option of the command, in a shell's quotes where it needs them."""
    plain = re.fullmatch(r"[\w.,\[\]-]+", value)
    return f"--set data.{name}={value}" if plain else f"--set {shlex.quote(f'data.{name}={value}')}"


def _word(text: str) -> str:
    """A text as a setting's value is read: a plain word where YAML takes it for text too."""
    plain = re.fullmatch(r"[^\W\d][\w-]*", text) and isinstance(yaml.safe_load(text), str)
    return text if plain else json.dumps(text, ensure_ascii=False)


def schema(
    columns: Mapping[str, str] | None = None,
    *,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    ignore: Sequence[str] = (),
    ignore_extra: bool = False,
) -> Schema:
    """What a table of transactions must hold.

    Args:
        columns: logical name to the file's name, where it is not the handbook's: `{"amount": "BETRAG"}`.
        numeric: further columns of numbers, every cell filled.
        categorical: further columns of text or integers; an empty cell is a category of its own.
        ignore: columns of the file that are left out, beside the handbook's own.
        ignore_extra: whether columns that nobody named are left out too.

    Raises:
        ConfigError: an unknown logical name, or a name used twice.
    """
    if unknown := sorted(set(columns or {}) - set(HANDBOOK)):
        raise ConfigError(f"column mapping names {', '.join(unknown)}; allowed are {', '.join(HANDBOOK)}")
    header = {**HANDBOOK, **(columns or {})}
    return Schema(
        (
            Column("transaction_id", "string", header["transaction_id"]),
            Column("time", "time", header["time"], minimum=EARLIEST),
            Column("customer", "string", header["customer"], private=True),
            Column("terminal", "string", header["terminal"]),
            Column("amount", "float", header["amount"], minimum=0.0, maximum=LARGEST_AMOUNT),
            Column("fraud", "label", header["fraud"], required=False, gaps=True),
            *(Column(name, "float") for name in numeric),
            *(Column(name, "string", gaps=True) for name in categorical),
        ),
        time="time",
        key="transaction_id",
        ignore=(*(name for name in HANDBOOK_IGNORED if name not in (*numeric, *categorical)), *ignore),
        ignore_extra=ignore_extra,
        remedies=_Settings(ignore),
    )


def ordered(data: DataConfig, sources: Sequence[str] | str) -> Ordered:
    """Sources, read as the configuration says, as one checked table in time order.

    Raises:
        DataError: the first fault of any row.
    """
    several = [sources] if isinstance(sources, str) else sources
    return Ordered(
        [replace(Source.of(source), delimiter=data.delimiter, decimal=data.decimal) for source in several],
        schema(data.columns, ignore=data.ignore_columns, numeric=data.numeric, categorical=data.categorical),
    )


def key_code(key: str) -> int:
    """The code of one card or terminal: blake2b of its UTF-8 text, 8 bytes, as a signed little-endian integer."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


def key_codes(keys: pa.Array | pa.ChunkedArray | NDArray[Any] | Sequence[str]) -> Ints:
    """[N] codes of many keys; each different one is hashed once. Integers count as their decimal text."""
    column = keys if isinstance(keys, pa.ChunkedArray) else pa.chunked_array([pa.array(keys)])
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    codes = np.fromiter((key_code(key) for key in encoded.dictionary.to_pylist()), np.int64, len(encoded.dictionary))
    return cast(Ints, codes[encoded.indices.to_numpy(zero_copy_only=False)])


def read_events(ordered: Ordered, *, rows: int = CHUNK_ROWS) -> Iterator[Records]:
    """The transactions of an `Ordered` table with this module's `schema`, in time order, a chunk at a time.

    Args:
        rows: the most in one chunk.
    """
    own = set(HANDBOOK)
    extra = [column for column in ordered.schema.columns if column.name not in own]
    for chunk in ordered.chunks(rows):
        events = Events(
            time=chunk.column("time").to_numpy(),
            customer=key_codes(chunk.column("customer")),
            terminal=key_codes(chunk.column("terminal")),
            amount=chunk.column("amount").to_numpy(),
            fraud=chunk.column("fraud").to_numpy(),
        )
        yield Records(
            _texts(chunk.column("transaction_id")), events, {c.name: _values(chunk.column(c.name)) for c in extra}
        )


def _texts(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.array(column.to_pylist(), dtype=object)


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    return _texts(column) if pa.types.is_string(column.type) else cast(NDArray[Any], column.to_numpy())
