"""Tables written chunk by chunk: Parquet, CSV or JSON lines by suffix, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from core.errors import DataError


class _Writer(Protocol):
    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class _JsonLines:
    """One JSON object a row."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write_table(self, table: pa.Table) -> None:
        self._file.writelines(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in table.to_pylist())

    def close(self) -> None:
        self._file.close()


FORMATS: dict[str, Callable[[Path, pa.Schema], Any]] = {
    ".parquet": lambda path, schema: pyarrow.parquet.ParquetWriter(path, schema),
    ".csv": lambda path, schema: pyarrow.csv.CSVWriter(path, schema),
    ".jsonl": lambda path, schema: _JsonLines(path),
}


class TableWriter:
    """Writes beside the target; the file takes its name when the block ends well, and is removed when not."""

    def __init__(self, target: Path) -> None:
        """
        Raises:
            DataError: another suffix than `FORMATS` has.
        """
        if target.suffix not in FORMATS:
            raise DataError(f"output {target} has suffix {target.suffix!r}; allowed are {', '.join(FORMATS)}")
        self.rows = 0
        self._target, self._part = target, target.with_name(f".{target.name}.part")
        self._writer: _Writer | None = None

    def write(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """The next rows; every call has the same columns."""
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        self._writer = self._writer or FORMATS[self._target.suffix](self._part, table.schema)
        self._writer.write_table(table)
        self.rows += len(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer:
                self._writer.close()
            if error is None:
                os.replace(self._part, self._target)
        finally:
            self._part.unlink(missing_ok=True)
