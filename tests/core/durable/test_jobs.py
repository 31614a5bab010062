from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.durable.jobs import Jobs, UnknownJob
from core.durable.journal import KeyConflict
from core.errors import ArtifactError, CapacityError, Conflict, Unavailable


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "jobs"


@pytest.fixture
def jobs(folder: Path, clock: Clock) -> Iterator[Jobs]:
    with Jobs(folder, clock=clock) as jobs:
        yield jobs


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_job_goes_its_way(jobs: Jobs, clock: Clock) -> None:
    with jobs.upload() as files:
        (files / "one.bin").write_bytes(b"1")
        given = jobs.submit({"b": 1, "a": [2]}, cost_bytes=5, cost_seconds=7.0, files=files)
    assert (given.state, given.position, given.progress, given.attempts) == ("queued", 1, 0.0, 0)
    assert (given.request, given.cost_bytes, given.cost_seconds) == ({"a": [2], "b": 1}, 5, 7.0)
    assert (given.submitted_at, given.started_at, given.ended_at) == (1000.0, None, None)
    with pytest.raises(Conflict, match="queued and has no result; ask again later") as caught:
        jobs.result(given.id)
    assert caught.value.details == {"state": "queued"}
    clock.now = 1010.0
    running = jobs.claim()
    assert running is not None
    assert (running.id, running.state, running.started_at, running.position) == (given.id, "running", 1010.0, None)
    own = jobs.folder(given.id)
    assert (own / "input" / "one.bin").read_bytes() == b"1"
    assert jobs.progress(given.id, 0.5) is False
    assert jobs.status(given.id).progress == 0.5
    (own / "output" / "mask").write_bytes(b"2")
    clock.now = 1020.0
    jobs.finish(given.id, {"ml": 1.5})
    done = jobs.status(given.id)
    assert (done.state, done.progress, done.ended_at, done.attempts) == ("done", 1.0, 1020.0, 1)
    assert jobs.result(given.id) == {"ml": 1.5}
    assert [path.name for path in own.rglob("*")] == ["output", "mask"]
    assert jobs.counts() == {"queued": 0, "running": 0, "done": 1, "failed": 0, "cancelled": 0}
    assert jobs.cancel(given.id).state == "done"


def test_they_wait_in_order_and_are_promised_a_time(jobs: Jobs) -> None:
    names = [jobs.submit({"n": n}, cost_seconds=10.0).id for n in range(3)]
    assert len(set(names)) == 3
    assert [(jobs.status(name).position, jobs.status(name).promised_seconds) for name in names] == [
        (1, 10.0),
        (2, 20.0),
        (3, 30.0),
    ]
    assert jobs.claim().id == names[0]  # type: ignore[union-attr]
    jobs.progress(names[0], 0.75)
    assert [jobs.status(name).position for name in names] == [None, 1, 2]
    assert jobs.submit({}, cost_seconds=1.0).promised_seconds == 2.5 + 20 + 1


def test_files_and_database_are_private_and_ids_are_no_paths(jobs: Jobs, folder: Path) -> None:
    job = jobs.submit({})
    assert [mode(path) for path in (folder, folder / "files", jobs.folder(job.id), jobs.folder(job.id) / "input")] == [
        0o700
    ] * 4
    for wrong in ("../../etc", "", job.id.upper() + "/", "x" * 32):
        with pytest.raises(UnknownJob, match="no job of this id"):
            jobs.folder(wrong)
    for ask in (jobs.status, jobs.result, jobs.cancel):
        with pytest.raises(UnknownJob):
            ask("0" * 32)


def test_a_key_returns_its_job(jobs: Jobs) -> None:
    first = jobs.submit({"a": 1, "b": 2}, key="k")
    with jobs.upload() as files:
        (files / "again").touch()
        assert jobs.submit({"b": 2, "a": 1}, key="k", files=files).id == first.id
    assert [path.name for path in files.parent.parent.iterdir()] == [first.id]
    with pytest.raises(KeyConflict, match="another content"):
        jobs.submit({"a": 2}, key="k")
    assert jobs.counts()["queued"] == 1


def test_notes_are_kept_and_a_key_does_not_stand_for_them(jobs: Jobs) -> None:
    first = jobs.submit({"a": 1}, key="k", notes={"promised": 2.5})
    assert jobs.submit({"a": 1}, key="k", notes={"promised": 7.0}).id == first.id
    assert jobs.status(first.id).request == {"a": 1, "promised": 2.5}


def test_what_is_too_much_is_refused(folder: Path) -> None:
    with Jobs(folder, most_waiting=2, most_bytes=100) as jobs:
        first = jobs.submit({}, cost_bytes=60, key="first")
        with pytest.raises(CapacityError, match="needs 101 bytes; at most 100 are allowed"):
            jobs.submit({}, cost_bytes=101)
        with pytest.raises(Unavailable, match="waiting jobs need 60 of 100 bytes, this one 41; send it again later"):
            jobs.submit({}, cost_bytes=41)
        with jobs.upload(), pytest.raises(Unavailable, match="2 jobs are waiting, which is the limit"), jobs.upload():
            pass
        jobs.submit({}, cost_bytes=40)
        with pytest.raises(Unavailable, match="2 jobs are waiting"):
            jobs.submit({})
        assert jobs.submit({}, cost_bytes=60, key="first").id == first.id  # known: it needs no room
        assert len(list((folder / "files").iterdir())) == 2
        jobs.claim()
        jobs.finish(first.id, {})
        jobs.submit({}, cost_bytes=60)


def test_an_upload_that_no_job_takes_is_removed(jobs: Jobs) -> None:
    def broken() -> None:
        with jobs.upload() as files:
            (files / "part").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert list((jobs.root / "files").iterdir()) == []


def test_cancel_ends_a_waiting_job_at_once_and_asks_a_running_one(jobs: Jobs) -> None:
    first, second = jobs.submit({}), jobs.submit({})
    assert jobs.cancel(second.id).state == "cancelled"
    assert not jobs.folder(second.id).exists()
    jobs.claim()
    assert jobs.progress(first.id, 0.1) is False
    assert jobs.cancel(first.id).state == "running"
    assert jobs.progress(first.id, 0.2) is True
    jobs.finish(first.id, {"late": True})
    assert jobs.status(first.id).state == "cancelled"
    assert not jobs.folder(first.id).exists()
    with pytest.raises(Conflict, match="cancelled and has no result; submit it anew"):
        jobs.result(first.id)
    assert jobs.claim() is None


def test_a_key_is_free_again_where_nothing_came_of_its_job(jobs: Jobs) -> None:
    first = jobs.submit({}, key="k")
    assert jobs.submit({}, key="k").id == first.id
    jobs.cancel(first.id)
    second = jobs.submit({}, key="k")
    jobs.claim()
    jobs.fail(second.id, code="unusable_data", message="slice 7 is missing; send it")
    third = jobs.submit({"other": True}, key="k")
    assert len({first.id, second.id, third.id}) == 3
    assert [jobs.status(id).state for id in (first.id, second.id, third.id)] == ["cancelled", "failed", "queued"]
    jobs.claim()
    jobs.finish(third.id, {})
    assert jobs.submit({"other": True}, key="k").id == third.id


def test_a_failure_is_told_and_its_files_go(jobs: Jobs) -> None:
    job = jobs.submit({})
    jobs.claim()
    jobs.fail(job.id, code="unusable_data", message="slice 7 is missing; send it")
    seen = jobs.status(job.id)
    assert (seen.state, seen.code, seen.message) == ("failed", "unusable_data", "slice 7 is missing; send it")
    assert not jobs.folder(job.id).exists()


def test_files_that_somebody_removed_hold_nothing_up(jobs: Jobs) -> None:
    first, second = jobs.submit({}), jobs.submit({})
    shutil.rmtree(jobs.folder(first.id))
    assert jobs.claim()
    shutil.rmtree(jobs.folder(first.id))
    jobs.finish(first.id, {})
    assert jobs.status(first.id).state == "done"
    shutil.rmtree(jobs.folder(second.id))
    jobs.cancel(second.id)
    assert jobs.forget(-1.0) == 2


def test_what_ended_long_ago_is_forgotten(jobs: Jobs, clock: Clock) -> None:
    old, waiting = jobs.submit({"secret": "Wodehouse"}, key="k"), jobs.submit({})
    jobs.claim()
    jobs.finish(old.id, {})
    clock.now += 100
    assert jobs.forget(100.0) == 0
    assert jobs.forget(99.0) == 1
    assert not jobs.folder(old.id).exists()
    with pytest.raises(UnknownJob):
        jobs.status(old.id)
    assert jobs.status(waiting.id).state == "queued"
    assert jobs.submit({}, key="k").id != old.id


def test_a_restart_keeps_the_order_and_gives_up_after_three_attempts(folder: Path) -> None:
    with Jobs(folder) as jobs:
        names = [jobs.submit({"n": n}).id for n in range(3)]
    for attempt in range(3):
        with Jobs(folder) as jobs:  # closed with the job running: as a crash leaves it
            job = jobs.claim()
            assert job is not None
            assert (job.id, job.attempts) == (names[0], attempt + 1)
            assert list((jobs.folder(job.id) / "output").iterdir()) == []
            (jobs.folder(job.id) / "output" / "part").touch()
    with Jobs(folder) as jobs:
        failed = jobs.status(names[0])
        assert (failed.state, failed.code) == ("failed", "crashed")
        assert "ended 3 times while it worked on this job" in str(failed.message)
        assert not jobs.folder(names[0]).exists()
        job = jobs.claim()
        assert job is not None
        assert job.id == names[1]
        jobs.release(job.id)  # a stop in good order is no attempt
        assert [(jobs.status(name).position, jobs.status(name).attempts) for name in names[1:]] == [(1, 0), (2, 0)]
        job = jobs.claim()
        assert job is not None
        jobs.cancel(job.id)
    with Jobs(folder) as jobs:
        assert jobs.status(names[1]).state == "cancelled"


def test_a_start_sweeps_what_no_job_needs(folder: Path) -> None:
    with Jobs(folder) as jobs:
        done, waiting = jobs.submit({}), jobs.submit({})
        jobs.claim()
        jobs.finish(done.id, {})
        (jobs.folder(done.id) / "input").mkdir()
        (jobs.folder(done.id) / "output" / "mask").touch()
        lost = folder / "files" / ("f" * 32) / "input"
        lost.mkdir(parents=True)
        (lost / "slice").touch()
    with Jobs(folder) as jobs:
        assert {path.name for path in (folder / "files").iterdir()} == {done.id, waiting.id}
        assert [path.name for path in jobs.folder(done.id).rglob("*")] == ["output", "mask"]
        assert (jobs.folder(waiting.id) / "input").is_dir()


CRASH = """
import sys, time
from core.durable.jobs import Jobs
from core.durable.worker import Worker
jobs = Jobs(sys.argv[1])
def run(job, progress):
    progress(0.5)
    (jobs.folder(job.id) / "output" / "half").touch()
    print(job.id, flush=True)
    time.sleep(60)
Worker(jobs, run).start()
with jobs.upload() as files:
    (files / "slice").write_bytes(b"slice")
    print(jobs.submit({"n": 1}, files=files).id, jobs.submit({"n": 2}).id, flush=True)
    (files.parent.parent / ("e" * 32)).mkdir()
    time.sleep(60)
"""


def test_kill_9_loses_no_job(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CRASH, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    words = " ".join(process.stdout.readline() for _ in range(2)).split()  # the worker may be first to speak
    with Jobs(folder, access="read") as reader:  # another process sees it run
        assert [reader.status(name).state for name in dict.fromkeys(words)].count("running") == 1
        with pytest.raises(ArtifactError, match="open for reading"):
            reader.claim()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    with Jobs(folder) as jobs:
        claimed = [jobs.claim(), jobs.claim(), jobs.claim()]
        assert [job and (job.request["n"], job.attempts) for job in claimed] == [(1, 2), (2, 1), None]
        first = claimed[0]
        assert first is not None
        assert (jobs.folder(first.id) / "input" / "slice").read_bytes() == b"slice"
        assert list((jobs.folder(first.id) / "output").iterdir()) == []
        assert len(list((folder / "files").iterdir())) == 2


def test_a_full_disk_refuses_and_keeps_the_queue(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/name.dcm")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match=r"cannot be written \(ENOSPC\); free space") as caught:
            jobs.submit({})
        assert "secret" not in str(caught.value)
    assert jobs.counts()["queued"] == 0
    assert list((jobs.root / "files").iterdir()) == []


def test_threads_share_the_queue(jobs: Jobs) -> None:
    def fill(start: int) -> None:
        for n in range(start, start + 5):
            jobs.submit({"n": n}, key=f"key {n}")

    threads = [threading.Thread(target=fill, args=(start,)) for start in (0, 0, 5, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = []
    while job := jobs.claim():
        jobs.finish(job.id, {})
        seen.append(job.request["n"])
    assert sorted(seen) == list(range(10))


def test_claim_waits_until_a_job_comes(jobs: Jobs) -> None:
    threading.Timer(0.05, jobs.submit, ({"n": 1},)).start()
    job = jobs.claim(wait_seconds=10.0)
    assert job is not None
    assert job.request == {"n": 1}
    start = time.monotonic()
    assert jobs.claim(wait_seconds=0.05) is None
    assert 0.04 < time.monotonic() - start < 5


STEPS = st.lists(st.sampled_from(["submit", "claim", "finish", "fail", "release", "cancel", "restart"]), max_size=25)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_it_equals_a_list(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("jobs")
    model: dict[str, str] = {}
    attempts: dict[str, int] = {}
    jobs = Jobs(folder)
    end: dict[str, Callable[[str], None]] = {
        "finish": lambda name: jobs.finish(name, {}),
        "fail": lambda name: jobs.fail(name, code="x", message="y"),
        "release": lambda name: jobs.release(name),
    }
    for step in steps:
        queued = [name for name, state in model.items() if state == "queued"]
        running = [name for name, state in model.items() if state == "running"]
        if step == "submit":
            model[jobs.submit({}).id] = "queued"
        elif step == "claim" and not running:  # one worker
            job = jobs.claim()
            assert (job.id if job else None) == (queued[0] if queued else None)
            if job:
                model[job.id] = "running"
                attempts[job.id] = attempts.get(job.id, 0) + 1
        elif step == "cancel" and queued:
            model[queued[-1]] = jobs.cancel(queued[-1]).state
        elif step in end and running:
            end[step](running[0])
            model[running[0]] = {"finish": "done", "fail": "failed", "release": "queued"}[step]
            attempts[running[0]] -= step == "release"
        elif step == "restart":
            jobs.close()
            jobs = Jobs(folder)
            model |= {name: "failed" if attempts[name] >= 3 else "queued" for name in running}
        assert {name: jobs.status(name).state for name in model} == model
        kept = {name for name, state in model.items() if state in ("queued", "running", "done")}
        assert {path.name for path in (folder / "files").iterdir()} == kept
    jobs.close()
