"""Series on their way in, on disk: each in a private folder of its own, until nothing more has come for a while.

A folder holds one round of one series from one sender: FOLDER/TOKEN/00001.dcm ..., and what is known of it in
FOLDER/TOKEN.json. After `quiet_seconds` without an instance the round is complete and handed on once. It is kept for a
while then: an instance that comes late, or again, starts a new round with all of the instances (hard links), so what is
handed on is never just the tail of a series. A round that lost an instance, or outgrew the limits, is not handed on.

An instance is on the disk (fsync of file and folder) before it is acknowledged. After a restart rounds that were not done
wait anew, one that was being handed on when the process ended is handed on again, in the same folder, and what was kept for late
instances is gone: it is kept by a process that listens, no longer.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydicom

from core.durable.files import flush, reason, remove
from core.errors import CapacityError, DataError, Unavailable
from verticals.medical.connect import is_uid
from verticals.medical.dicom.headers import FAULTS, quiet

SERIES, INSTANCE = 0x0020000E, 0x00080018
_PART = ".part"
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Round:
    """Instances of a series that came together."""

    folder: Path
    sender: str
    series: str = field(repr=False)
    number: int
    """Counts the rounds of the series."""
    files: dict[str, str] = field(default_factory=dict, repr=False)
    """Name in the folder by instance UID."""
    num_bytes: int = 0
    due: float = 0.0
    """When the next thing happens to it: handed on, or removed; seconds of the clock."""
    state: Literal["arriving", "handed", "kept"] = "arriving"
    is_too_large: bool = False


class Arrivals:
    """Any thread may call; one at a time writes."""

    def __init__(
        self,
        folder: Path | str,
        *,
        quiet_seconds: float,
        keep_seconds: float,
        most_instances: int,
        most_bytes: int,
        least_free_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            least_free_bytes: of the disk, left to others.
        """
        self.root = Path(folder)
        self._quiet_seconds, self._keep_seconds = quiet_seconds, keep_seconds
        self._most_instances, self._most_bytes, self._least_free = most_instances, most_bytes, least_free_bytes
        self._clock = clock
        self._mutex = threading.RLock()
        self._newest: dict[tuple[str, str], Round] = {}
        self._lost: dict[tuple[str, str], set[str]] = {}
        """Instances that were refused and did not come again."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        self._recover()

    def add(self, sender: str, series: str, instance: str, content: bytes) -> None:
        """Keep a file of a series; one that came before is replaced.

        Raises:
            CapacityError: the series outgrows its limits; none of it is kept.
            Unavailable: the disk is full.
        """
        with self._mutex:
            lost = self._lost.setdefault((sender, series), set())
            lost.add(instance)
            try:
                arriving = self._round(sender, series)
                arriving.due = self._clock() + self._quiet_seconds
                self._check(arriving, instance, len(content))
                self._write(arriving, instance, content)
                lost.discard(instance)
            except OSError as error:
                raise Unavailable(
                    f"an instance cannot be written ({reason(error)}); free space, send it again"
                ) from None

    def complete(self) -> list[Round]:
        """Rounds that have become complete, each given out once; what was kept for long enough is removed."""
        found = []
        with self._mutex:
            for key, one in list(self._newest.items()):
                if one.state == "handed" or one.due > self._clock():
                    continue
                lost = self._lost.pop(key, None)
                if one.state == "arriving" and not (lost or one.is_too_large):
                    one.state = "handed"
                    found.append(one)
                    continue
                if one.state == "arriving":
                    what = "outgrew the limits" if one.is_too_large else f"lacks {len(lost or ())} that were refused"
                    logger.warning("a series of %d instances from %s %s: not taken", len(one.files), one.sender, what)
                del self._newest[key]
                _drop(one)
        return found

    def keep(self, one: Round) -> None:
        """A round was taken: keep it for late instances, if no newer round has all of it."""
        with self._mutex:
            if not self._is_newest(one):
                return _drop(one)
            one.state, one.due = "kept", self._clock() + self._keep_seconds
            try:
                _note(one)
            except OSError as error:  # after a restart it would be handed on again
                logger.warning("that a series was taken could not be written down (%s)", reason(error))

    def postpone(self, one: Round, seconds: float) -> None:
        """A round cannot be taken now: it is complete again after a while."""
        with self._mutex:
            if not self._is_newest(one):
                return _drop(one)
            one.state, one.due = "arriving", self._clock() + seconds

    def drop(self, one: Round) -> None:
        """A round is of no use."""
        with self._mutex:
            if self._is_newest(one):
                del self._newest[one.sender, one.series]
            _drop(one)

    def forget(self) -> None:
        """Nobody listens any more: what was kept for late instances goes."""
        with self._mutex:
            for key, one in list(self._newest.items()):
                if one.state == "kept":
                    del self._newest[key]
                    _drop(one)

    def _is_newest(self, one: Round) -> bool:
        return self._newest.get((one.sender, one.series)) is one

    def _round(self, sender: str, series: str) -> Round:
        """The round that an instance belongs to."""
        old = self._newest.get((sender, series))
        if old is not None and old.state == "arriving":
            return old
        new = Round(self.root / secrets.token_hex(16), sender, series, old.number + 1 if old else 1)
        try:
            new.folder.mkdir(mode=0o700)
            for instance, name in old.files.items() if old else ():
                os.link(old.folder / name, new.folder / name)  # type: ignore[union-attr]
                new.files[instance] = name
            _note(new)
        except OSError:
            _drop(new)
            raise
        if old is not None:
            new.num_bytes = old.num_bytes
            if old.state == "kept":
                _drop(old)  # one that is being handed on is dropped after that
        self._newest[sender, series] = new
        return new

    def _check(self, arriving: Round, instance: str, num_bytes: int) -> None:
        num_instances = len(arriving.files) + (instance not in arriving.files)
        if num_instances > self._most_instances or arriving.num_bytes + num_bytes > self._most_bytes:
            arriving.is_too_large = True
            for name in arriving.files.values():
                (arriving.folder / name).unlink(missing_ok=True)
        if arriving.is_too_large:
            raise CapacityError(
                f"a series may have {self._most_instances} instances and {self._most_bytes} bytes; this one has more"
            )
        if shutil.disk_usage(self.root).free - num_bytes < self._least_free:
            raise Unavailable(f"the disk has less than {self._least_free} bytes free; free space, send it again")

    def _write(self, arriving: Round, instance: str, content: bytes) -> None:
        name = arriving.files.get(instance, f"{len(arriving.files) + 1:05}.dcm")
        path, part = arriving.folder / name, arriving.folder / (name + _PART)
        before = path.stat().st_size if instance in arriving.files else 0
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            flush(arriving.folder)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        arriving.files[instance] = name
        arriving.num_bytes += len(content) - before

    def _recover(self) -> None:
        """Take up what an earlier process left."""
        for path in self.root.iterdir():  # what came to no note, or lost its folder
            if path.suffix == ".json" and not path.with_suffix("").is_dir():
                path.unlink()
            elif path.is_dir() and not path.with_suffix(".json").is_file():
                remove(path)
            elif path.suffix == _PART:
                path.unlink()
        for path in self.root.glob("*.json"):
            one = _read(path)
            if one is None or one.state == "kept":
                path.unlink()
                remove(path.with_suffix(""))
                continue
            one.due = self._clock() + self._quiet_seconds
            other = self._newest.get((one.sender, one.series))
            if other is not None:  # the newer round has all of the older one's instances
                one, other = (one, other) if one.number > other.number else (other, one)
                _drop(other)
            self._newest[one.sender, one.series] = one


def identity(dataset: pydicom.Dataset) -> tuple[str, str]:
    """UIDs of series and instance, as stored: pydicom would warn of odd ones with their value.

    Raises:
        DataError: one is missing or none.
    """
    found = []
    for tag in (SERIES, INSTANCE):
        value = getattr(dataset.get_item(tag), "value", None)
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        found.append(text.rstrip("\0 "))
    if not all(map(is_uid, found)):
        raise DataError("the instance does not say its own UID and that of its series")
    return found[0], found[1]


def _read(note: Path) -> Round | None:
    """A round from its folder; None where nothing usable is in it."""
    folder = note.with_suffix("")
    try:
        given = json.loads(note.read_text())
        one = Round(folder, given["sender"], "", given["number"], state=given["state"])
        for path in sorted(folder.iterdir()):
            if path.suffix == _PART:
                path.unlink()
                continue
            with quiet():
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[SERIES, INSTANCE])
            one.series, instance = identity(header)
            one.files[instance] = path.name
            one.num_bytes += path.stat().st_size
    except (*FAULTS, DataError):
        logger.warning("a series left from before cannot be read; it was removed: send it again")
        return None
    return one if one.files else None


def _note(one: Round) -> None:
    """Write down what the files do not say."""
    path = one.folder.with_suffix(".json")
    part = path.with_suffix(_PART)
    state = "kept" if one.state == "kept" else "arriving"
    part.write_text(json.dumps({"sender": one.sender, "number": one.number, "state": state}))
    flush(part)
    part.replace(path)
    flush(path.parent)


def _drop(one: Round) -> None:
    one.folder.with_suffix(".json").unlink(missing_ok=True)
    remove(one.folder)
