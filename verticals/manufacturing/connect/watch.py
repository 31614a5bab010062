"""A watched folder: a picture that is complete is a board that came.

Complete is what has not grown for a while: cameras write slowly, and networks slower. It is looked for, not listened for, so that
folders on other machines do as well. Names that begin with a dot, and `.tmp` and `.part`, are of files being written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from core.errors import VerticalsError
from verticals.manufacturing.pictures import SUFFIXES

LOOK_SECONDS = 0.1
RETRY_SECONDS = 2.0
"""After a file could not be taken: the disk is full, the queue too."""
logger = logging.getLogger(__name__)


class Arrival(NamedTuple):
    """A picture that is complete."""

    path: Path
    part_id: str | None
    """Name of the folder it lies in, below the watched one; else what its name has before `__`."""
    key: str
    """Of this file and no later one of its name: what it is called, where it lies on the disk, when it was written."""


class FolderWatch:
    """Hands over what comes, from `start` to `stop`; who takes a file removes it."""

    def __init__(
        self,
        folder: Path,
        on_board: Callable[[Arrival], None],
        *,
        settle_seconds: float = 0.5,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """
        Args:
            on_board: takes the picture and removes it from the folder, or raises an error of `core.errors`: then it is offered
                again later.
            settle_seconds: for how long a file may not have grown.
        """
        self._folder, self._on_board = folder, on_board
        self._settle, self._look = settle_seconds, look_seconds
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="folder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        missing = False
        while not self._stopping.wait(self._look):
            try:
                arrivals = self._complete()
                missing = False
            except OSError as error:
                if not missing:
                    logger.error("the watched folder cannot be read (%s); it is looked for again", error.strerror)
                missing = True
                continue
            for arrival in arrivals:
                if self._stopping.is_set():
                    return
                try:
                    self._on_board(arrival)
                except VerticalsError as error:
                    logger.warning("a board has to wait in its folder: %s", str(error))
                    self._stopping.wait(RETRY_SECONDS)
                    break

    def _complete(self) -> list[Arrival]:
        """What has not changed for long enough, the oldest first."""
        now, found, seen = time.monotonic(), [], {}
        for path in self._files():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            state = status.st_size, status.st_mtime_ns
            before = self._seen.get(path)
            since = before[1] if before is not None and before[0] == state else now
            seen[path] = (state, since)
            if now - since >= self._settle:
                text = f"{path.relative_to(self._folder)}|{status.st_ino}|{status.st_size}|{status.st_mtime_ns}"
                found.append(
                    (status.st_mtime_ns, Arrival(path, self._part_id(path), hashlib.sha256(text.encode()).hexdigest()))
                )
        self._seen = seen
        return [arrival for _, arrival in sorted(found, key=lambda pair: (pair[0], pair[1].path))]

    def _files(self) -> list[Path]:
        """Pictures in the folder and in those right below it."""
        files: list[Path] = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                files += [Path(inner.path) for inner in os.scandir(entry.path) if _is_picture(inner)]
            elif _is_picture(entry):
                files.append(Path(entry.path))
        return files

    def _part_id(self, path: Path) -> str | None:
        if path.parent != self._folder:
            return path.parent.name
        before, separator, _ = path.name.partition("__")
        return before if separator else None


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return (
        not entry.name.startswith(".")
        and Path(entry.name).suffix.lower() in SUFFIXES
        and entry.is_file(follow_symlinks=False)
    )
