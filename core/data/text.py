"""Text files of data sets: UTF-8, with or without a mark of it at the start, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.errors import DataError


def text_of(path: Path) -> str:
    """Raises DataError where it cannot be read, or is in another encoding."""
    try:
        return _content(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not text in UTF-8; save it in that encoding") from None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers and text of the lines that are not empty. Raises DataError."""
    for number, line in enumerate(text_of(path).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def entries_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list. Raises DataError for one that stands there twice."""
    seen: dict[str, int] = {}
    for number, line in lines_of(path):
        first = seen.setdefault(line, number)
        if first != number:
            raise DataError(f"{path.name}, line {number}: {line!r} stands on line {first} already; remove one of them")
        yield number, line


def rough_text(path: Path) -> str:
    """What a file seems to say, whatever its encoding: enough to tell formats apart. Raises DataError."""
    return _content(path).replace(b"\0", b"").decode("utf-8", errors="ignore")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}") from None
