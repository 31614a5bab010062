"""Results on their way back to the peer that the series came from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError, Unavailable
from tests.verticals.medical.answers import series_in
from tests.verticals.medical.scan_jobs import PACS, files, state
from tests.verticals.medical.uploads import until
from verticals.medical import jobs, node
from verticals.medical.connect.receiver import Peer
from verticals.medical.jobs import ScanJobs
from verticals.medical.settings import NodeSettings


@pytest.fixture
def with_node(
    opened: Callable[..., ScanJobs], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., None]], ScanJobs]:
    """Jobs with a node whose peer takes results as a function says."""

    def make(sent: Callable[..., None], **changes: Any) -> ScanJobs:
        monkeypatch.setattr(node, "send", sent)
        monkeypatch.setattr(node, "RETRY_SECONDS", 0.05)
        given = {"ae_title": "US", "host": "127.0.0.1", "port": 0, "peers": (PACS,), "quiet_seconds": 1.0, **changes}
        return opened(node=NodeSettings(**{"give_up_seconds": 100.0, **given}))

    return make


def received(work: ScanJobs, folder: Path) -> str:
    """The job of a series that came."""
    series_in(folder)
    work.receive(folder, PACS)
    work.receive(folder, PACS)  # as after a crash: it is one job
    (row,) = work.jobs._database.rows("SELECT id FROM job")
    return str(row[0])


def test_a_result_goes_back_to_where_the_series_came_from(with_node: Callable[..., ScanJobs], tmp_path: Path) -> None:
    sent: list[tuple[str, bytes]] = []

    def send(paths: Sequence[Path], peer: Peer, *, ae_title: str) -> None:
        if not sent:
            sent.append(("away", b""))
            raise Unavailable("PACS does not answer")
        sent.extend((f"{ae_title} to {peer.name}", path.read_bytes()) for path in paths)

    work = with_node(send)
    id = received(work, tmp_path / "series")
    work.start()
    until(lambda: len(sent) == 2)
    until(lambda: state(work, id) == "done")
    with work.answer(id, "seg") as file:
        assert sent[1] == ("US to PACS@127.0.0.1", file.read())
    until(lambda: not list((tmp_path / "work/node/outgoing").rglob("seg.dcm")))  # it goes after the state is written


def test_a_result_that_waits_to_be_sent_outlives_a_restart(
    with_node: Callable[..., ScanJobs], opened: Callable[..., ScanJobs], tmp_path: Path
) -> None:
    def away(paths: Sequence[Path], peer: Peer, *, ae_title: str) -> None:
        raise Unavailable("PACS does not answer")

    work = with_node(away)
    id = received(work, tmp_path / "series")
    work.start()
    until(lambda: "on its way" in (work.standing(id).message or ""))
    assert state(work, id) == "running"
    work.answer(id, "seg").close()
    work.stop()
    sent: list[Path] = []
    again = with_node(lambda paths, peer, ae_title: sent.extend(paths))
    again.start()
    until(lambda: state(again, id) == "done")
    assert len(sent) == 1
    again.stop()
    opened(node=None)
    assert not (tmp_path / "work/node").exists()


@pytest.mark.parametrize("error", [DataError("PACS refuses our call"), Unavailable("PACS does not answer")])
def test_a_result_that_cannot_be_sent_fails_by_name_and_can_be_fetched(
    with_node: Callable[..., ScanJobs], tmp_path: Path, error: Exception
) -> None:
    def send(paths: Sequence[Path], peer: Peer, *, ae_title: str) -> None:
        raise error

    work = with_node(send, give_up_seconds=0.2)
    id = received(work, tmp_path / "series")
    work.start()
    until(lambda: state(work, id) == "failed")
    standing = work.standing(id)
    assert standing.code == "undelivered"
    assert str(error) in (standing.message or "")
    work.answer(id, "seg").close()
    until(lambda: not list((tmp_path / "work/node/outgoing").rglob("seg.dcm")))  # it goes after the state is written


def test_a_sending_can_be_cancelled(with_node: Callable[..., ScanJobs], tmp_path: Path) -> None:
    def away(paths: Sequence[Path], peer: Peer, *, ae_title: str) -> None:
        raise Unavailable("PACS does not answer")

    work = with_node(away)
    id = received(work, tmp_path / "series")
    work.start()
    until(lambda: "on its way" in (work.standing(id).message or ""))
    work.cancel(id)
    until(lambda: work.standing(id).message == "the sending of the result was cancelled")
    assert state(work, id) == "done"


def test_a_series_that_is_no_scan_is_said_and_not_taken(
    with_node: Callable[..., ScanJobs], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = with_node(lambda paths, peer, ae_title: None)
    series_in(tmp_path / "series")
    sorted((tmp_path / "series").iterdir())[4].unlink()
    work.receive(tmp_path / "series", PACS)
    assert "from PACS@127.0.0.1 is refused" in caplog.text
    assert files(work) == []


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """That an answer has been written, and that its job may go on."""
    written, go = threading.Event(), threading.Event()
    write = jobs.write_answer

    def slow(*given: Any, **options: Any) -> Any:
        made = write(*given, **options)
        written.set()
        assert go.wait(30)
        return made

    monkeypatch.setattr(jobs, "write_answer", slow)
    return written, go


def received_and_answered(work: ScanJobs, folder: Path, written: threading.Event) -> str:
    """The job of a series whose answer has just been written."""
    id = received(work, folder / "series")
    work.start()
    assert written.wait(30)
    return id


def test_a_job_that_is_cancelled_while_its_answer_is_written_sends_nothing(
    with_node: Callable[..., ScanJobs], tmp_path: Path, writing: tuple[threading.Event, threading.Event]
) -> None:
    sent: list[Path] = []
    work = with_node(lambda paths, peer, ae_title: sent.extend(paths))
    id = received_and_answered(work, tmp_path, writing[0])
    work.cancel(id)
    writing[1].set()
    until(lambda: state(work, id) == "cancelled")
    time.sleep(0.2)
    assert sent == []
    until(lambda: files(work) == [])


def test_a_stop_while_an_answer_is_written_queues_its_job_again(
    with_node: Callable[..., ScanJobs], tmp_path: Path, writing: tuple[threading.Event, threading.Event]
) -> None:
    sent: list[Path] = []
    work = with_node(lambda paths, peer, ae_title: sent.extend(paths))
    work._worker._stop_seconds = 0.1
    id = received_and_answered(work, tmp_path, writing[0])
    work.stop()  # gives up waiting; the way back is closed
    writing[1].set()
    until(lambda: work.jobs.status(id).state == "queued")
    work._worker._thread.join()
    work.jobs.close()
    again = with_node(lambda paths, peer, ae_title: sent.extend(paths))
    again.start()
    until(lambda: state(again, id) == "done")
    assert len(sent) == 1


def test_a_result_waits_for_room_to_be_sent(
    with_node: Callable[..., ScanJobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Path] = []
    work = with_node(lambda paths, peer, ae_title: sent.extend(paths))
    put, tries = node.Outbox.put, []

    def full(outbox: node.Outbox, scan_job: str, segmentation: Path) -> str:
        tries.append(scan_job)
        if len(tries) < 3:
            raise Unavailable("the disk is full")
        return put(outbox, scan_job, segmentation)

    monkeypatch.setattr(node.Outbox, "put", full)
    id = received(work, tmp_path / "series")
    work.start()
    until(lambda: state(work, id) == "done")
    assert len(tries) == 3
    assert len(sent) == 1


def test_a_job_of_whose_sending_nothing_is_known_says_so_and_can_be_cancelled(
    with_node: Callable[..., ScanJobs], tmp_path: Path
) -> None:
    work = with_node(lambda paths, peer, ae_title: None)
    id = received(work, tmp_path / "series")
    work.start()
    until(lambda: state(work, id) == "done")
    assert work._node is not None
    assert work.standing(id).message is None
    work._node.forget(-1)
    assert work.cancel(id).state == "done"
    assert "not known whether the result went to PACS@127.0.0.1" in (work.standing(id).message or "")
