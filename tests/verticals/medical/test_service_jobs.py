"""The service's work without a web server and without a network: limits, keys, ends."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.durable.jobs import UnknownJob
from core.errors import ArtifactError, CapacityError, Conflict, DataError, Unavailable
from tests.verticals.medical.answers import series_in
from tests.verticals.medical.scan_jobs import Brightness, files, state, submitted
from tests.verticals.medical.uploads import until
from verticals.medical import jobs
from verticals.medical.dicom import geometry
from verticals.medical.jobs import ScanJobs


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
