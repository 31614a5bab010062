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

from core.data.pictures import SUFFIXES
from core.durable.worker import log_withheld
from core.errors import Unavailable, VerticalsError

LOOK_SECONDS = 0.1
RETRY_SECONDS = 2.0
"""After nothing could be taken: the disk is full, or the queue."""
REFUSED_SECONDS = 60.0
"""After one file could not be taken: it cannot be read or removed."""
logger = logging.getLogger(__name__)


class State(NamedTuple):
    """Of a file; whatever is written, renamed or put in its place changes it."""

    inode: int
    size: int
    written_ns: int
    changed_ns: int
    """No program sets it: a camera without a clock writes every file at the same time."""

    @classmethod
    def of(cls, path: Path) -> State:
        status = path.stat()
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Arrival(NamedTuple):
    """A picture that is complete."""

    path: Path
    name: str
    """Of the file; what is no text in it is replaced."""
    part_id: str | None
    """Name of the folder it lies in, below the watched one; else what its name has before `__`."""
    state: State
    key: str
    """Of this file and no later one of its name."""


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
            on_board: takes the picture and removes it from the folder. It raises Unavailable where nothing can be taken now;
                after an OSError or another error of `core.errors` only this file waits, and those behind it have their turn.
            settle_seconds: for how long a file may not have grown.
        """
        self._folder, self._on_board = folder, on_board
        self._settle, self._look = settle_seconds, look_seconds
        self._seen: dict[Path, tuple[State, float]] = {}
        self._refused: dict[Path, tuple[State, float]] = {}
        """Files that could not be taken for their own sake, and when they are tried again."""
        self._told: set[Path] = set()
        """Folders that cannot be read."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="folder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(self._look):
            try:
                self._hand_over()
            except Exception as error:  # the thread's edge: whatever it is, later boards have their turn
                log_withheld(None, error)
                self._stopping.wait(RETRY_SECONDS)

    def _hand_over(self) -> None:
        for arrival in self._complete():
            if self._stopping.is_set():
                return
            try:
                if State.of(arrival.path) == arrival.state:  # not written on while others were taken
                    self._on_board(arrival)
            except FileNotFoundError:  # somebody took it away
                continue
            except Unavailable as error:
                logger.warning("boards have to wait in their folder: %s", str(error))
                self._stopping.wait(RETRY_SECONDS)
                return
            except (OSError, VerticalsError) as error:
                self._refused[arrival.path] = arrival.state, time.monotonic() + REFUSED_SECONDS
                why = error.strerror if isinstance(error, OSError) else str(error)
                logger.error("%s stays in its folder: %s; it is tried again later", arrival.name, why)

    def _complete(self) -> list[Arrival]:
        """What has not changed for long enough, the oldest first."""
        now, found, seen = time.monotonic(), [], {}
        for path in self._files():
            try:
                state = State.of(path)
            except FileNotFoundError:
                continue
            before = self._seen.get(path)
            since = before[1] if before is not None and before[0] == state else now
            seen[path] = (state, since)
            refused = self._refused.get(path)
            if now - since >= self._settle and (refused is None or refused[0] != state or refused[1] <= now):
                found.append(self._arrival(path, state))
        self._seen = seen
        self._refused = {path: refused for path, refused in self._refused.items() if path in seen}
        return sorted(found, key=lambda arrival: (arrival.state.written_ns, arrival.path))

    def _arrival(self, path: Path, state: State) -> Arrival:
        place = os.fsencode(path.relative_to(self._folder))
        key = hashlib.sha256(place + b"|" + "|".join(map(str, state)).encode()).hexdigest()
        return Arrival(path, _text(path.name), self._part_id(path), state, key)

    def _files(self) -> list[Path]:
        """Pictures in the folder and in those right below it."""
        files: list[Path] = []
        for entry in self._entries(self._folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                files += [Path(inner.path) for inner in self._entries(Path(entry.path)) if _is_picture(inner)]
            elif _is_picture(entry):
                files.append(Path(entry.path))
        return files

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Nothing where the folder cannot be read; that is said once."""
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder not in self._told:
                where = _text(folder.name) if folder != self._folder else "the watched folder"
                logger.error("%s cannot be read (%s); it is looked for again", where, error.strerror)
            self._told.add(folder)
            return []
        self._told.discard(folder)
        return entries

    def _part_id(self, path: Path) -> str | None:
        if path.parent != self._folder:
            return _text(path.parent.name)
        before, separator, _ = _text(path.name).partition("__")
        return before if separator else None


def _text(name: str) -> str:
    """A file's name as text that can be written down: a camera's may be in another encoding."""
    return os.fsencode(name).decode("utf-8", "replace")


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return (
        not entry.name.startswith(".")
        and Path(entry.name).suffix.lower() in SUFFIXES
        and entry.is_file(follow_symlinks=False)
    )
