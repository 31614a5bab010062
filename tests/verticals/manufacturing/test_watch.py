"""The watched folder: whatever a camera leaves there, each board is taken once and whole, and no file holds up the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import Unavailable
from verticals.manufacturing.connect import watch
from verticals.manufacturing.connect.watch import Arrival, FolderWatch

SETTLE = 0.3


class Taker:
    """Takes what comes, and remembers it."""

    def __init__(self, fail: Callable[[Arrival], None] = lambda arrival: None) -> None:
        self.taken: list[tuple[Arrival, bytes]] = []
        self._fail = fail

    def __call__(self, arrival: Arrival) -> None:
        self._fail(arrival)
        self.taken.append((arrival, arrival.path.read_bytes()))
        arrival.path.unlink()

    def until(self, count: int) -> list[str]:
        end = time.monotonic() + 10
        while len(self.taken) < count:
            assert time.monotonic() < end, self.taken
            time.sleep(0.01)
        return [arrival.name for arrival, _ in self.taken]


@contextmanager
def watching(folder: Path, taker: Taker) -> Iterator[None]:
    watched = FolderWatch(folder, taker, settle_seconds=SETTLE, look_seconds=0.02)
    watched.start()
    try:
        yield
    finally:
        watched.stop()


def test_boards_by_one_name_and_one_time_are_several(tmp_path: Path) -> None:
    """A camera without a clock, on a disk that gives a removed file's place to the next one."""
    taker = Taker()
    with watching(tmp_path, taker):
        for number in range(3):
            (tmp_path / ".next").write_bytes(bytes([number]) * 100)
            os.utime(tmp_path / ".next", (315532800, 315532800))
            (tmp_path / ".next").rename(tmp_path / "current.bmp")
            taker.until(number + 1)
    assert [content[0] for _, content in taker.taken] == [0, 1, 2]
    assert len({arrival.key for arrival, _ in taker.taken}) == 3


def test_a_file_that_is_written_on_while_others_are_taken_waits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"whole")
    live = tmp_path / "z_live.png"
    live.write_bytes(b"begun")
    os.utime(live, (time.time() + 60,) * 2)  # the newest: its turn is last

    def slow(arrival: Arrival) -> None:
        if arrival.name == "b.png":
            with live.open("ab") as file:
                file.write(b", and ended")

    taker = Taker(slow)
    with watching(tmp_path, taker):
        assert taker.until(3)[-1] == "z_live.png"
    assert taker.taken[-1][1] == b"begun, and ended"


def test_a_name_in_another_encoding_is_taken(tmp_path: Path) -> None:
    (tmp_path / "P-1").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "P-1") + b"/Gr\xfcn.png")).write_bytes(b"board")
    taker = Taker()
    with watching(tmp_path, taker):
        assert taker.until(1) == ["Gr\ufffdn.png"]
    assert taker.taken[0][0].part_id == "P-1"


def test_what_cannot_be_read_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("P-1/secret.png", "P-1/sound.png", "lost+found/x.png", "P-2/sound.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"board")
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def refuse(arrival: Arrival) -> None:
        if arrival.name == "secret.png":
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(watch.os, "scandir", guarded)
    monkeypatch.setattr(watch, "REFUSED_SECONDS", 0.5)
    taker = Taker(refuse)
    with watching(tmp_path, taker):
        assert taker.until(2) == ["sound.png", "sound.png"]
        monkeypatch.setattr(taker, "_fail", lambda arrival: None)
        assert taker.until(3)[-1] == "secret.png"
    assert caplog.text.count("lost+found cannot be read (Permission denied)") == 1
    assert "secret.png stays in its folder: Permission denied" in caplog.text


@pytest.mark.parametrize("fault", [Unavailable("the disk is full"), ZeroDivisionError("nobody foresaw it")])
def test_after_a_fault_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.05)
    faults = [fault, fault]

    def fail(arrival: Arrival) -> None:
        if faults:
            raise faults.pop()

    (tmp_path / "a.png").write_bytes(b"board")
    taker = Taker(fail)
    with watching(tmp_path, taker):
        assert taker.until(1) == ["a.png"]
