"""The service's work without a web server and without a network: limits, keys, ways back, ends."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from core.contract import Estimate
from core.durable.jobs import UnknownJob
from core.errors import ArtifactError, CapacityError, ConfigError, Conflict, DataError, Unavailable
from tests.verticals.medical.answers import LABELS, series_in
from tests.verticals.medical.uploads import nifti, until
from verticals.medical import jobs, node, settings
from verticals.medical.connect.receiver import Peer
from verticals.medical.ct.predictor import CtPredictor, Segmentation
from verticals.medical.dicom import geometry
from verticals.medical.jobs import ScanJobs
from verticals.medical.labels import structures
from verticals.medical.settings import NodeSettings, Settings, from_environment
from verticals.medical.volume import Grid, Volume

PACS = Peer("PACS", "127.0.0.1", 4242)


class Brightness:
    """A predictor whose organs are what is bright, at the pace that a test wants."""

    version = "1"
    structures = structures(LABELS)

    def __init__(self) -> None:
        self.steps = 1
        self.seen: list[threading.Thread] = []
        self.limit = 10**9
        self.held_bytes: int | None = None
        self.fails: Exception | None = None

    def admit(self, grid: Grid, *, loaded: bool = False, held_bytes: int | None = None) -> Estimate:
        self.held_bytes = held_bytes
        if (needed := 100 * grid.num_voxels) > self.limit:
            raise CapacityError(f"a volume needs {needed} bytes, allowed are {self.limit}")
        return Estimate(needed, 1.5)

    def __call__(self, given: Sequence[Volume], *, progress: Callable[[float], None]) -> list[Segmentation]:
        if self.fails:
            raise self.fails
        for step in range(self.steps):
            time.sleep(0.01)
            progress((step + 1) / self.steps)
        mask = Volume((given[0].array > 0).astype(np.uint8), given[0].grid)
        return [Segmentation(mask, self.steps, 0, 0.0)]


@pytest.fixture
def model() -> Brightness:
    return Brightness()


@pytest.fixture
def opened(tmp_path: Path, model: Brightness) -> Iterator[Callable[..., ScanJobs]]:
    """Opens the jobs in one folder, again and again; what is open is stopped at the end."""
    made: list[ScanJobs] = []

    def make(**changes: Any) -> ScanJobs:
        given: dict[str, Any] = {
            "folder": tmp_path / "work",
            "threads": 1,
            "upload_bytes": 10**9,
            "most_waiting": 5,
            "queue_bytes": 10**9,
            "segment_seconds": 1.0,
            "keep_seconds": 100.0,
            "node": None,
            **changes,
        }
        made.append(ScanJobs(Settings(**given), lambda: cast(CtPredictor, model)))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def submitted(work: ScanJobs, *, value: int = 40, key: str | None = None, **options: Any) -> str:
    with work.upload() as folder:
        nifti(np.full((20, 20, 20), value, np.int16), folder / "scan.nii").rename(folder / "scan")
        return work.submit(folder, content=str(value), key=key, **options)


def files(work: ScanJobs) -> list[str]:
    return [path.name for path in (work.jobs.root / "files").iterdir()]


def state(work: ScanJobs, id: str) -> str:
    return work.standing(id).state


def test_what_needs_more_memory_than_there_is_is_not_taken(opened: Callable[..., ScanJobs], model: Brightness) -> None:
    work = opened()
    model.limit = 799_999
    with pytest.raises(CapacityError, match="needs 800000 bytes, allowed are 799999"):
        submitted(work)
    assert files(work) == []
    model.limit = 800_000
    id = submitted(work)
    assert work.jobs.status(id).request["promised_gb"] == 0.001
    model.limit = 1  # of another version, or of a machine that others filled meanwhile
    work.start()
    until(lambda: state(work, id) == "failed")
    assert work.standing(id).code == "too_large"
    until(lambda: files(work) == [])


def test_a_scan_is_admitted_as_its_turn_will_find_the_process(
    opened: Callable[..., ScanJobs], model: Brightness, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = [1000]
    monkeypatch.setattr(jobs, "resident_bytes", lambda: holds[0])
    work = opened()
    submitted(work)
    assert model.held_bytes == 1000
    with work.turn:
        holds[0] = 9000  # with what is computed, and gone when the next one begins
        submitted(work)
        assert model.held_bytes == 1000
    holds[0] = 1200  # with another model
    submitted(work)
    assert model.held_bytes == 1200


def test_an_answer_is_packed_where_there_is_room_for_it(
    opened: Callable[..., ScanJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = opened()
    id = submitted(work)
    work.start()
    until(lambda: state(work, id) == "done")
    with work.answer(id, "zip") as file, zipfile.ZipFile(file) as packed:
        assert set(packed.namelist()) == {"mask.nii.gz", "preview.png", "answer.json"}
    monkeypatch.setattr(jobs, "LEAST_FREE_BYTES", 10**15)
    with pytest.raises(Unavailable, match="GB free"):
        work.answer(id, "zip")
    monkeypatch.setattr(jobs, "LEAST_FREE_BYTES", 0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "write", full)
        with pytest.raises(Unavailable, match="ENOSPC"):
            work.answer(id, "zip")
    for path in sorted((work.jobs.folder(id) / "output").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    for wanted in ("zip", "nifti"):
        with pytest.raises(UnknownJob):  # the keeper was faster
            work.answer(id, wanted)  # type: ignore[arg-type]


def test_more_slices_than_the_limit_are_refused(
    opened: Callable[..., ScanJobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, _ = series_in(tmp_path / "series")
    assert series.volume.grid.shape[2] > 20
    monkeypatch.setattr(geometry, "MAX_SLICES", 20)
    work = opened()
    with work.upload() as folder:
        (tmp_path / "series").rename(folder / "series")
        with pytest.raises(DataError, match=r"allowed.* 20"):
            work.submit(folder, content="1")
    assert files(work) == []


def test_a_queue_is_full_by_number_and_by_bytes(opened: Callable[..., ScanJobs]) -> None:
    work = opened(most_waiting=2, queue_bytes=40_000)  # of 16 kB each
    submitted(work)
    submitted(work)
    with pytest.raises(Unavailable, match="2 jobs are waiting"):
        submitted(work)
    work.stop()
    work = opened(most_waiting=9, queue_bytes=40_000)
    with pytest.raises(Unavailable, match="of 40000 bytes"):
        submitted(work)
    assert len(files(work)) == 2


def test_a_full_disk_is_said_before_anything_is_taken(
    opened: Callable[..., ScanJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = opened()
    monkeypatch.setattr(jobs, "LEAST_FREE_BYTES", 10**15)
    with pytest.raises(Unavailable, match="GB free"):
        submitted(work)


def test_a_key_names_one_scan_and_is_not_kept_as_it_is(opened: Callable[..., ScanJobs], tmp_path: Path) -> None:
    work = opened()
    first = submitted(work, key="Wodehouse-1")
    assert submitted(work, key="Wodehouse-1") == first
    with pytest.raises(Conflict):
        submitted(work, key="Wodehouse-1", value=41)
    with pytest.raises(Conflict):
        submitted(work, key="Wodehouse-1", formats=["nifti"])
    assert len(files(work)) == 1
    assert not any(b"Wodehouse" in path.read_bytes() for path in tmp_path.rglob("jobs.db*"))


def test_a_stop_queues_the_running_job_again(opened: Callable[..., ScanJobs], model: Brightness) -> None:
    model.steps = 10_000
    work = opened()
    id = submitted(work)
    work.start()
    until(lambda: state(work, id) == "running")
    work.stop()
    model.steps = 1
    again = opened()
    assert state(again, id) == "queued"
    assert again.jobs.status(id).attempts == 0
    again.start()
    until(lambda: state(again, id) == "done")
    with again.answer(id, "nifti") as file:
        assert file.read(2) == b"\x1f\x8b"
    until(lambda: [path.name for path in again.jobs.folder(id).iterdir()] == ["output"])


def test_a_job_waits_for_who_has_the_turn_and_can_be_cancelled_meanwhile(opened: Callable[..., ScanJobs]) -> None:
    work = opened()
    with work.turn:
        work.start()
        id, other = submitted(work), submitted(work)
        until(lambda: state(work, id) == "running")
        time.sleep(0.3)
        assert work.standing(id).job.progress == 0
        work.cancel(id)
        until(lambda: state(work, id) == "cancelled")
    until(lambda: state(work, other) == "done")


def test_what_is_kept_for_long_enough_is_forgotten(opened: Callable[..., ScanJobs]) -> None:
    work = opened(keep_seconds=0.4)
    work.start()
    id = submitted(work, key="k")
    until(lambda: work.jobs.counts()["done"] == 1)
    until(lambda: sum(work.jobs.counts().values()) == 0)
    with pytest.raises(UnknownJob):
        work.standing(id)
    until(lambda: files(work) == [])
    assert submitted(work, key="k") != id


def test_an_error_that_is_not_ours_is_withheld(opened: Callable[..., ScanJobs], model: Brightness) -> None:
    model.fails = ValueError("Wodehouse")
    work = opened()
    id = submitted(work)
    work.start()
    until(lambda: state(work, id) == "failed")
    assert work.standing(id).code == "internal"
    assert "Wodehouse" not in (work.standing(id).message or "")


def test_what_is_wrong_with_a_model_is_said_in_the_log_only(
    opened: Callable[..., ScanJobs], model: Brightness, caplog: pytest.LogCaptureFixture
) -> None:
    model.fails = ArtifactError("/home/clinic/models/x is damaged")
    work = opened()
    id = submitted(work)
    work.start()
    until(lambda: state(work, id) == "failed")
    assert work.standing(id).code == "model_unavailable"
    assert "clinic" not in (work.standing(id).message or "")
    assert "/home/clinic/models/x is damaged" in caplog.text


@pytest.fixture
def with_node(
    opened: Callable[..., ScanJobs], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., None]], ScanJobs]:
    """Jobs with a node whose peer takes results as a function says."""

    def make(sent: Callable[..., None], **changes: Any) -> ScanJobs:
        monkeypatch.setattr(node, "send", sent)
        monkeypatch.setattr(node, "RETRY_SECONDS", 0.05)
        monkeypatch.setattr(node, "_LOOK_SECONDS", 0.01)
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
    assert list((tmp_path / "work/node/outgoing").rglob("seg.dcm")) == []


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
    assert list((tmp_path / "work/node/outgoing").rglob("seg.dcm")) == []


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


def test_a_job_that_is_cancelled_while_its_answer_is_written_sends_nothing(
    with_node: Callable[..., ScanJobs], tmp_path: Path, writing: tuple[threading.Event, threading.Event]
) -> None:
    sent: list[Path] = []
    work = with_node(lambda paths, peer, ae_title: sent.extend(paths))
    id = received(work, tmp_path / "series")
    work.start()
    assert writing[0].wait(30)
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
    id = received(work, tmp_path / "series")
    work._worker._stop_seconds = 0.1
    work.start()
    assert writing[0].wait(30)
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
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.05)
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


GOOD = {"VERTICALS_DICOM_AE": "US", "VERTICALS_DICOM_PEERS": "PACS@10.0.0.5:104, OTHER@host"}


def test_settings_are_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    given = from_environment()
    assert given.folder == tmp_path / "verticals" / "medical"
    assert (given.upload_bytes, given.node) == (2 * 10**9, None)
    for name, value in {**GOOD, "VERTICALS_JOBS_KEEP_HOURS": "2"}.items():
        monkeypatch.setenv(name, value)
    given = from_environment()
    assert given.keep_seconds == 7200
    assert given.node is not None
    assert given.node.peers == (Peer("PACS", "10.0.0.5", 104), Peer("OTHER", "host", 104))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"VERTICALS_UPLOAD_GB": "0"}, "VERTICALS_UPLOAD_GB is '0'; allowed is a number above 0"),
        ({"VERTICALS_MEMORY_GB": "nan"}, "VERTICALS_MEMORY_GB is 'nan'"),
        ({"VERTICALS_THREADS": "1.5"}, "VERTICALS_THREADS is '1.5'; allowed is a whole number"),
        ({"VERTICALS_SEGMENT_SECONDS": "-1"}, "VERTICALS_SEGMENT_SECONDS is '-1'"),
        ({"VERTICALS_JOBS_KEEP_HOURS": "day"}, "VERTICALS_JOBS_KEEP_HOURS is 'day'"),
        ({"VERTICALS_QUEUE_JOBS": ""}, "VERTICALS_QUEUE_JOBS is ''"),
        ({"VERTICALS_DICOM_PORT": "99"}, "VERTICALS_DICOM_PORT is set, but not VERTICALS_DICOM_AE"),
        ({**GOOD, "VERTICALS_DICOM_AE": "seventeen letters"}, "AE title 'seventeen letters'"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": ""}, "names no node that may send"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS"}, "names 'PACS'; allowed is TITLE@HOST:PORT"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS@host:x"}, "allowed is TITLE@HOST:PORT"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS@host:99999"}, "a port from 1 to 65535"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS@host,PACS@host:1"}, "names a node twice"),
        ({**GOOD, "VERTICALS_DICOM_PORT": "70000"}, "VERTICALS_DICOM_PORT is 70000; allowed are 1 to 65535"),
        ({**GOOD, "VERTICALS_DICOM_QUIET_SECONDS": "inf"}, "VERTICALS_DICOM_QUIET_SECONDS is 'inf'"),
    ],
)
def test_a_setting_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], text: str) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        settings.from_environment()
    assert text in str(raised.value)
