"""Pictures and sounds with what people say of them, as every format is read to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import DataError

SOUNDS = (".wav",)
"""Endings of files that hold sounds."""


class Stored(NamedTuple):
    """Where a picture's or a sound's bytes lie: a file, or a part of a tar."""

    path: Path
    offset: int = 0
    size: int = -1
    """Bytes; -1 is the whole file."""

    def read(self) -> bytes:
        """Raises DataError where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.path.name} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Pair:
    """A picture or a sound, and its captions: one at least to learn from."""

    id: str
    """Unique in its data set."""
    file: Stored
    captions: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """By its name; else it is a picture."""
        return self.file.size < 0 and self.file.path.suffix.lower() in SOUNDS


@dataclass(frozen=True)
class Listed:
    """What a format's files say."""

    format: str
    sides: Mapping[str, tuple[Pair, ...]]
    """`train`, `validation`, `test` as the data set lists them; `all` where it lists nothing."""
