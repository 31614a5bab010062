"""One raw column to one canonical column: text, numbers and timestamps of any unit and zone become string, float64,
int64, label (int8: 1, 0, -1 not known) or time (int64 microseconds since 1970 UTC).

The first cell that is empty, does not parse or lies out of range is named by row and value. Values of private columns,
and runs of digits as long as a card number, never enter a message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import ConfigError, masked

Kind = Literal["string", "float", "int", "label", "time"]

CANONICAL = {"string": pa.string(), "float": pa.float64(), "int": pa.int64(), "label": pa.int8(), "time": pa.int64()}
"""Arrow type of each kind once read."""

UNKNOWN: dict[str, Any] = {"string": "", "float": float("nan"), "label": -1}
"""What stands for a cell that is allowed to be empty; the other kinds cannot be."""

DAY = 86_400_000_000
"""Microseconds in a day."""

_ZONE = r":\d{2}(\.\d+)?(Z|[+-]\d{2}(:?\d{2})?)$"
_LABELS = pa.array(["0", "1", "false", "true", "0.0", "1.0"])
_EXPECTED = {
    "string": "text or an integer",
    "float": "a number with a decimal {mark} and no thousands separator",
    "int": "an integer of at most 64 bits",
    "label": "0 or 1",
    "time": "ISO 8601, as 2018-04-01 00:00:31 (UTC) or 2018-04-01T00:00:31+02:00, or a column of timestamps",
}


class Fault(NamedTuple):
    """The first thing wrong with a chunk."""

    row: int
    """Counted from 0 within the chunk."""
    text: str


@dataclass(frozen=True)
class Column:
    """One logical column: where it stands in a file and what it may hold."""

    name: str
    kind: Kind
    header: str = ""
    """The column's name in the file; the logical name where this is empty."""
    required: bool = True
    """Whether the file must have the column; otherwise it reads as the kind's `UNKNOWN`."""
    gaps: bool = False
    """Whether single cells may be empty; they read as the kind's `UNKNOWN`."""
    private: bool = False
    """Its values never appear in a message."""
    minimum: float | None = None
    maximum: float | None = None
    decimal: Literal[".", ","] = "."
    """The decimal mark of numbers written as text."""

    def __post_init__(self) -> None:
        if not self.header:
            object.__setattr__(self, "header", self.name)
        if (self.gaps or not self.required) and self.kind not in UNKNOWN:
            raise ConfigError(
                f"column {self.name} of kind {self.kind} cannot be optional: only {', '.join(UNKNOWN)} can"
            )

    @property
    def expected(self) -> str:
        """What a cell may hold, in words."""
        return _EXPECTED[self.kind].format(mark="comma" if self.decimal == "," else "point")

    def shown(self, value: object) -> str:
        """A value as a message may show it: shortened, and hidden where it is private or could be a card number."""
        if self.private:
            return "a value not shown here (private column)"
        text = masked(str(value))
        return repr(text if len(text) <= 40 else f"{text[:37]}...")


def iso(time: int) -> str:
    """Microseconds since 1970 UTC as ISO 8601 text."""
    return f"{np.datetime64(int(time), 'us')}Z"


def clock() -> int:
    """Now, in microseconds since 1970 UTC."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def convert_column(column: Column, raw: pa.ChunkedArray, *, latest: int) -> tuple[pa.Array, Fault | None]:
    """[n] canonical values, or the fault of the earliest bad row.

    Args:
        raw: [n] cells as the reader found them.
        latest: microseconds since 1970 UTC; a later time is a fault.
    """
    fault: Fault | None = None
    values = _flat(raw)
    if _is_text(values.type) and column.kind != "string":
        values = pc.utf8_trim_whitespace(values)
    empty = _empty(values)
    if not column.gaps and empty.any():
        row = int(empty.argmax())
        fault = Fault(row, f"is empty or NaN; allowed is {column.expected}: fill it or leave the row out")
        values, empty = values[:row], empty[:row]
    rows = np.flatnonzero(~empty)
    present = values if len(rows) == len(values) else values.take(pa.array(rows))
    try:
        parsed = _parse(column, present)
    except _Refused as refusal:
        return values, Fault(0, str(refusal))
    except pa.ArrowException:
        place = _first_failure(column, present)
        fault = Fault(int(rows[place]), _unparsable(column, present[place].as_py()))
        parsed = _parse(column, present[:place])
    if (outside := _first_outside(column, parsed, latest)) is not None:
        fault = Fault(int(rows[outside.row]), outside.text)
    if fault is not None or len(rows) == len(values):
        return parsed, fault
    places = np.full(len(values), len(rows))
    places[rows] = np.arange(len(rows))
    return pa.concat_arrays([parsed, pa.array([UNKNOWN[column.kind]], parsed.type)]).take(pa.array(places)), None


def kind_of(raw: pa.ChunkedArray, decimal: Literal[".", ","] = ".") -> Kind:
    """What kind of column raw cells look like: float, label (yes or no), time, and string for the rest."""
    values = _flat(raw)
    types = pa.types
    if _is_text(values.type):
        filled = pc.utf8_trim_whitespace(values.filter(pa.array(~_empty(values))))
        try:
            _parse(Column("", "float", "?", decimal=decimal), filled)
        except pa.ArrowException:
            return "string"
        return "float" if len(filled) else "string"
    if types.is_boolean(values.type):
        return "label"
    if types.is_timestamp(values.type) or types.is_date(values.type):
        return "time"
    return "float"


class _Refused(Exception):
    """A column whose type cannot hold this kind, whatever its values."""


def _flat(raw: pa.ChunkedArray) -> pa.Array:
    array = raw.chunk(0) if raw.num_chunks == 1 else raw.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return (
        array.cast(pa.string())
        if pa.types.is_string_view(array.type) or pa.types.is_large_string(array.type)
        else array
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind))


def _empty(values: pa.Array) -> Any:
    """[n] bool: null, NaN or blank."""
    if _is_text(values.type):
        mask = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(values)), 0), True)
    else:
        mask = pc.is_null(values, nan_is_null=True)
    return mask.to_numpy(zero_copy_only=False)


def _parse(column: Column, values: pa.Array) -> pa.Array:
    """Cells without gaps to the canonical type. Raises ArrowException at a bad value, `_Refused` at a wrong type."""
    given, types = values.type, pa.types
    whole = types.is_integer(given) or (types.is_decimal(given) and given.scale == 0)
    if types.is_null(given):
        return pa.array([], CANONICAL[column.kind])
    if column.kind == "time":
        return _instants(column, values)
    if _is_text(given):
        if column.kind == "label":
            return _labels(pc.index_in(pc.utf8_lower(values), value_set=_LABELS))
        if column.kind == "float" and column.decimal == ",":
            values = pc.replace_substring(pc.replace_substring(values, ".", "?"), ",", ".")
        return pc.cast(values, CANONICAL[column.kind])
    number = whole or types.is_floating(given) or types.is_decimal(given)
    if column.kind == "label" and (number or types.is_boolean(given)):
        return _labels(pc.index_in(pc.cast(values, pa.float64()), value_set=pa.array([0.0, 1.0])))
    if column.kind == "string" and types.is_floating(given):
        raise _Refused(
            f"holds {given}; allowed is {column.expected} (integers with gaps become fractions in pandas: write them as text)"
        )
    if not (whole or (number and column.kind == "float")):
        raise _Refused(f"holds {given}; allowed is {column.expected}")
    return pc.cast(values, CANONICAL[column.kind])


def _labels(place: pa.Array) -> pa.Array:
    if place.null_count:
        raise pa.ArrowInvalid("not a label")
    return pc.cast(pc.bit_wise_and(place, 1), pa.int8())


def _instants(column: Column, values: pa.Array) -> pa.Array:
    """Text or timestamps to microseconds; without a zone they are UTC, digits below a microsecond are cut off."""
    given = values.type
    if _is_text(given):
        try:
            return pc.cast(values, pa.timestamp("us")).cast(pa.int64())
        except pa.ArrowInvalid:
            pass  # some have a zone or more digits, or one is wrong
        values = pc.replace_substring_regex(values, r"(\.\d{6})\d+", r"\1")
        zoned = pc.match_substring_regex(values, _ZONE)
        naive = pc.cast(pc.if_else(zoned, pa.scalar("1970-01-01"), values), pa.timestamp("us"))
        aware = pc.cast(pc.if_else(zoned, values, pa.scalar("1970-01-01T00:00Z")), pa.timestamp("us", "UTC"))
        return pc.if_else(zoned, aware.cast(pa.int64()), naive.cast(pa.int64()))
    if not (pa.types.is_timestamp(given) or pa.types.is_date(given)):
        raise _Refused(f"holds {given}, and a number does not say its unit; allowed is {column.expected}")
    unit = pa.timestamp("us", given.tz if pa.types.is_timestamp(given) else None)
    if pa.types.is_timestamp(given) and given.unit == "ns":
        nanoseconds = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return pa.array(nanoseconds // 1000)
    return pc.cast(values, unit).cast(pa.int64())


def _first_failure(column: Column, values: pa.Array) -> int:
    """The first cell that does not parse, by halving: each parse is element by element."""
    fine, failing = 0, len(values)
    while failing - fine > 1:
        middle = (fine + failing) // 2
        try:
            _parse(column, values[fine:middle])
            fine = middle
        except pa.ArrowException:
            failing = middle
    return fine


def _unparsable(column: Column, value: object) -> str:
    number = column.kind == "time" and re.fullmatch(r"[+-]?\d+(\.\d*)?", str(value))
    hint = " (a number does not say its unit or its start)" if number else ""
    return f"{column.shown(value)} is not {column.expected}{hint}"


def _first_outside(column: Column, parsed: pa.Array, latest: int) -> Fault | None:
    """The first parsed value beyond the column's limits."""
    if column.kind not in ("float", "int", "time") or not len(parsed):
        return None
    numbers = parsed.to_numpy(zero_copy_only=False)
    low, high = column.minimum, column.maximum if column.kind != "time" else latest
    bad = ~np.isfinite(numbers)
    bad |= numbers < low if low is not None else False
    bad |= numbers > high if high is not None else False
    if not bad.any():
        return None
    row = int(bad.argmax())
    value = numbers[row]
    if column.kind == "time":
        late = high is not None and value > high
        where = f"in the future; allowed is up to {iso(latest)}" if late else f"before {iso(int(low or 0))}"
        return Fault(row, f"{iso(value)} lies {where}: check the clock, the zone and the unit")
    if not np.isfinite(value):
        return Fault(row, f"{column.shown(value)} is not finite; allowed is {column.expected}")
    limits = " and ".join(
        f"at {word} {limit:g}" for word, limit in (("least", low), ("most", high)) if limit is not None
    )
    return Fault(row, f"{column.shown(value)} is out of range; allowed is {limits}")
