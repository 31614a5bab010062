"""What identifies a table: its sources without credentials, rows, span of time, and a hash of its content.

The hash depends on column names, types, values and their order, not on how the table was cut into chunks or in which
kind of file it stood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from core.data.cells import iso


class Fingerprint:
    """Takes the chunks of one table in order."""

    def __init__(self, sources: Sequence[str], *, time: str | None = None) -> None:
        """
        Args:
            sources: names as `Source.name` gives them.
            time: column of int64 microseconds since 1970 UTC whose span is recorded.
        """
        self.sources, self.time = list(sources), time
        self.rows = 0
        self.span: tuple[int, int] | None = None
        self._types: dict[str, pa.DataType] = {}
        self._hashes: dict[str, list[Any]] = {}

    def update(self, chunk: pa.Table) -> None:
        """Adds the next rows. Raises ValueError where the columns are not those of the rows before."""
        types = {field.name: field.type for field in chunk.schema}
        if self._types and types != self._types:
            raise ValueError(f"columns {types} follow {self._types}; all chunks must have the same")
        if not self._types:
            self._types = types
            self._hashes = {name: [hashlib.sha256(), hashlib.sha256()] for name in types}
        for name, hashes in self._hashes.items():
            for array in chunk.column(name).chunks:
                for hasher, part in zip(hashes, _parts(array), strict=False):
                    hasher.update(part)
        self.rows += len(chunk)
        if self.time is not None and len(chunk):
            times = chunk.column(self.time).to_numpy()
            low, high = int(times.min()), int(times.max())
            self.span = (low, high) if self.span is None else (min(self.span[0], low), max(self.span[1], high))

    def record(self) -> dict[str, Any]:
        """`sources`, `rows`, `columns`, `span` (first and last time, ISO 8601) and `sha256`."""
        whole = hashlib.sha256(f"{self.rows}".encode())
        for name, hashes in self._hashes.items():
            whole.update(f"\0{name}\0{self._types[name]}\0".encode())
            for hasher in hashes:
                whole.update(hasher.digest())
        return {
            "sources": self.sources,
            "rows": self.rows,
            "columns": list(self._hashes),
            "span": [iso(time) for time in self.span] if self.span else None,
            "sha256": whole.hexdigest(),
        }


def _parts(array: pa.Array) -> list[Any]:
    """The bytes that decide the content: values, or the lengths of texts and the texts themselves. No nulls."""
    if array.null_count:
        raise ValueError(f"{array.null_count} empty cells; a canonical column has none")
    if not pa.types.is_string(array.type):
        return [np.ascontiguousarray(array.to_numpy(zero_copy_only=False))]
    _, offsets, text = array.buffers()
    places = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    if not len(array):
        return [b"", b""]
    return [np.diff(places).astype("<i4"), memoryview(text)[int(places[0]) : int(places[-1])] if text else b""]
