"""What a table must hold: its logical columns, where they stand in a file, their limits, and what else may be there.

`Schema.convert` turns a raw chunk (text, numbers, timestamps of any unit and zone) into canonical Arrow columns, one
type a kind, or names the fault of its earliest bad row. How a single column is converted stands in `cells`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from core.data.cells import CANONICAL, DAY, UNKNOWN, Column, Fault, convert_column
from core.errors import LONG_NUMBER, ConfigError, DataError


class Remedies:
    """What to do about a fault of a file, in the words of this package; an application names its settings instead."""

    def column(self, name: str, header: str) -> str:
        """`header` is the file's name of the logical column `name`."""
        return f"map another name, as in columns={{{name!r}: {header!r}}}"

    def ignore(self, headers: Sequence[str]) -> str:
        """The file may have these columns."""
        return f"pass ignore={tuple(headers)!r} to leave it out, or ignore_extra=True for any"

    def delimiter(self, mark: str) -> str:
        """`mark` stands between the fields."""
        return f"pass Source(..., delimiter={mark!r})"

    def decimal(self, mark: Literal[".", ","]) -> str:
        """Numbers are written with this decimal mark."""
        return f"pass Source(..., decimal={mark!r})"


@dataclass(frozen=True)
class Schema:
    """The columns of a table, which one is the time and which one the key, and which others may be there."""

    columns: tuple[Column, ...]
    """Without any, a reader gives every column as it finds it: that is how the kinds of an unknown table are inferred."""
    time: str | None = None
    """Logical column that orders the rows."""
    key: str | None = None
    """Logical column whose values are unique."""
    ignore: tuple[str, ...] = ()
    """Columns of the file that are known and not read."""
    ignore_extra: bool = False
    """Whether a column that nobody named is passed over instead of refused."""
    future_days: float = 1.0
    """How far ahead of the clock a time may lie before it counts as wrong."""
    remedies: Remedies = field(default=Remedies(), repr=False, compare=False)
    """What messages tell the user to do."""
    named: dict[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = {column.name: column for column in self.columns}
        headers = [column.header for column in self.columns]
        if len(named) < len(self.columns) or len(set(headers)) < len(headers):
            raise ConfigError(
                f"columns {headers} for {[column.name for column in self.columns]}: each may be named once"
            )
        for role, name in (("time", self.time), ("key", self.key)):
            if name is not None and name not in named:
                raise ConfigError(f"{role} column {name!r} is not in the schema; allowed are {list(named)}")
        object.__setattr__(self, "named", named)

    def mapped(self, headers: dict[str, str]) -> Schema:
        """The same schema for a file that names its columns otherwise: `{"amount": "BETRAG"}`."""
        if unknown := sorted(set(headers) - set(self.named)):
            raise ConfigError(f"column mapping names {unknown}; the logical columns are {list(self.named)}")
        columns = tuple(replace(column, header=headers.get(column.name, column.header)) for column in self.columns)
        return replace(self, columns=columns)

    def check_headers(self, found: Sequence[str], source: str) -> None:
        """Raises DataError where a required column is missing, one is there twice, or one is not known."""
        present, wanted = set(found), {column.header: column for column in self.columns}
        missing = [column for column in self.columns if column.required and column.header not in present]
        if missing:
            lacking = ", ".join(_named(column) for column in missing)
            if any(map(_looks_like_data, found)):
                raise DataError(
                    f"{source}: lacks column {lacking}; its first row looks like data: it must be a header with the columns' names"
                )
            spare = [header for header in found if header not in wanted and header not in self.ignore]
            close = difflib.get_close_matches(missing[0].header, spare, 1, 0.3) or spare[:1] or ["NAME_IN_FILE"]
            raise DataError(
                f"{source}: lacks column {lacking}; found {', '.join(found) or 'none'}; "
                f"{self.remedies.column(missing[0].name, close[0])}"
            )
        if twice := sorted({header for header in found if list(found).count(header) > 1}):
            raise DataError(f"{source}: column {', '.join(twice)} is there twice; every column needs a name of its own")
        extra = [header for header in found if header not in wanted and header not in self.ignore]
        if extra and self.columns and not self.ignore_extra:
            raise DataError(
                f"{source}: unexpected column {', '.join(extra)}; allowed are {', '.join(wanted)}; "
                f"{self.remedies.ignore(extra)}"
            )

    def wanted(self, found: Sequence[str]) -> tuple[Column, ...]:
        """The columns to read from a source that has these."""
        if not self.columns:
            return tuple(Column(header, "string", gaps=True) for header in found if header not in self.ignore)
        return tuple(column for column in self.columns if column.header in found)

    def convert(self, raw: pa.Table, *, now: int) -> tuple[pa.Table, Fault | None]:
        """Canonical columns of one chunk, and the fault of its earliest bad row.

        Args:
            raw: columns by their name in the file; others are passed over.
            now: microseconds since 1970 UTC; times more than `future_days` later are faults.
        """
        arrays, faults = [], []
        for column in self.columns:
            if column.header in raw.column_names:
                values, fault = convert_column(
                    column, raw.column(column.header), latest=now + int(self.future_days * DAY)
                )
            else:
                values, fault = pa.repeat(pa.scalar(UNKNOWN[column.kind], CANONICAL[column.kind]), len(raw)), None
            arrays.append(values)
            if fault is not None:
                cell = raw.column(column.header).slice(fault.row, 1).to_pylist()
                other = _other_mark(column, *cell)
                hint = f"; {self.remedies.decimal(other)}" if other else ""
                faults.append(Fault(fault.row, f"column {column.header}: {fault.text}{hint}"))
        if faults:
            return raw.slice(0, 0), min(faults)
        return pa.table(arrays, names=[column.name for column in self.columns]), None


def _named(column: Column) -> str:
    return column.header if column.header == column.name else f"{column.header} ({column.name})"


def _other_mark(column: Column, cell: object = None) -> Literal[".", ","] | None:
    """The decimal mark of a text that is a number with another one than the column's."""
    other: Literal[".", ","] = "," if column.decimal == "." else "."
    wrong = column.kind == "float" and isinstance(cell, str) and re.fullmatch(rf"\s*[+-]?\d+\{other}\d+\s*", cell)
    return other if wrong else None


def _looks_like_data(header: str) -> bool:
    """Whether a cell of the first row is a number or a date: then it must not be repeated in a message."""
    return not re.search(r"[^\W\d_]", header) or bool(
        re.match(r"\d{4}-\d\d-\d\d", header) or LONG_NUMBER.search(header)
    )
