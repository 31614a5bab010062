"""Rows of numbers in a file: appended, read by memory map. What counts of it, and how much, its owner keeps elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.durable.files import written
from core.errors import ArtifactError


class Rows:
    """A file of rows of one length. Written by one thread; views that were given stay what they are."""

    def __init__(self, path: Path, *, width: int, dtype: DTypeLike) -> None:
        self.path, self.width, self.dtype = path, width, np.dtype(dtype)
        with written():
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Puts rows [n, width] from a place on; when this returns they survive a power cut.

        Raises:
            Unavailable: the disk is full; what lies before `first` is as it was.
        """
        data = memoryview(np.ascontiguousarray(rows, self.dtype).tobytes())
        with written():
            place = first * self.row_bytes
            while data:
                done = os.pwrite(self._file, data, place)
                data, place = data[done:], place + done
            os.fsync(self._file)

    def view(self, count: int) -> NDArray[Any]:
        """[count, width] the first rows, read from disk as they are touched.

        Raises:
            ArtifactError: the file has fewer.
        """
        if os.fstat(self._file).st_size < count * self.row_bytes:
            raise ArtifactError(
                f"{self.path} was cut off: it should hold {count:,} rows; restore it from a copy, or index again"
            )
        if not count:
            return np.empty((0, self.width), self.dtype)
        mapped = np.memmap(self.path, self.dtype, "r", shape=(count, self.width))
        return np.asarray(mapped)  # no subclass: those are slow to index

    def close(self) -> None:
        os.close(self._file)
