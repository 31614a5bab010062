from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from core.durable.jobs import Job, Jobs
from core.durable.worker import Cancelled, Worker
from core.errors import (
    ArtifactError,
    CapacityError,
    ConfigError,
    Conflict,
    DataError,
    Unavailable,
    VerticalsError,
)

Tell = Callable[[float], None]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with Jobs(tmp_path / "jobs") as jobs:
        yield jobs


def ended(jobs: Jobs, id: str, *states: str) -> Job:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        job = jobs.status(id)
        if job.state in (states or ("done", "failed", "cancelled")):
            return job
        time.sleep(0.005)
    raise AssertionError(f"the job is still {job.state}")


def test_one_job_at_a_time_in_order(jobs: Jobs) -> None:
    seen: list[int] = []
    inside = threading.Semaphore(1)

    def run(job: Job, tell: Tell) -> Mapping[str, Any]:
        assert inside.acquire(blocking=False)
        seen.append(job.request["n"])
        tell(0.5)
        inside.release()
        return {"twice": 2 * job.request["n"]}

    names = [jobs.submit({"n": n}).id for n in range(3)]
    with Worker(jobs, run):
        names.append(jobs.submit({"n": 3}).id)
        ended(jobs, names[-1])
    assert seen == [0, 1, 2, 3]
    assert [jobs.result(name)["twice"] for name in names] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("slice 7 is missing; send it"), "unusable_data"),
        (Conflict("sent before"), "conflict"),
        (CapacityError("600 slices; 500 are allowed"), "too_large"),
        (Unavailable("the disk is full"), "unavailable"),
        (ArtifactError("the model is damaged"), "model_unavailable"),
        (ConfigError("no such structure"), "configuration"),
        (VerticalsError("it went wrong"), "failed"),
    ],
)
def test_our_errors_are_shown(jobs: Jobs, error: VerticalsError, code: str) -> None:
    def run(job: Job, tell: Tell) -> Mapping[str, Any]:
        raise error

    job = jobs.submit({})
    with Worker(jobs, run):
        failed = ended(jobs, job.id)
    assert (failed.state, failed.code, failed.message) == ("failed", code, str(error))


@pytest.mark.parametrize("result", [{"x": float("nan")}, {"x": object()}, None])
def test_other_errors_are_withheld(jobs: Jobs, caplog: pytest.LogCaptureFixture, result: Any) -> None:
    def run(job: Job, tell: Tell) -> Mapping[str, Any]:
        if result is None:
            raise ValueError("patient Wodehouse")
        return result  # type: ignore[no-any-return]

    first, second = jobs.submit({}), jobs.submit({})
    caplog.set_level(logging.DEBUG)
    with Worker(jobs, run):
        ended(jobs, second.id)
    failed = jobs.status(first.id)
    assert (failed.state, failed.code) == ("failed", "internal")
    assert "the service's log has the place" in str(failed.message)
    assert "Wodehouse" not in caplog.text + str(failed.message)
    assert f"job {first.id[:8]}: builtins." in caplog.text
    assert "(text withheld)" in caplog.text
    assert all(record.exc_info is None for record in caplog.records)


def test_a_caller_may_take_the_errors(jobs: Jobs) -> None:
    told: list[tuple[str, Exception]] = []

    def run(job: Job, tell: Tell) -> Mapping[str, Any]:
        raise KeyError("x")

    job = jobs.submit({})
    with Worker(jobs, run, on_error=lambda job, error: told.append((job.id if job else "", error))):
        ended(jobs, job.id)
    assert [(name, type(error)) for name, error in told] == [(job.id, KeyError)]


def working(reached: threading.Event) -> Callable[[Job, Tell], Mapping[str, Any]]:
    """Work that stops only where the callback says so."""

    def run(job: Job, tell: Tell) -> Mapping[str, Any]:
        for _ in range(2000):
            reached.set()
            tell(0.3)
            time.sleep(0.005)
        raise AssertionError("never told to stop")

    return run


def test_a_running_job_is_cancelled(jobs: Jobs) -> None:
    job, reached = jobs.submit({}), threading.Event()
    with Worker(jobs, working(reached)):
        assert reached.wait(10)
        assert jobs.cancel(job.id).state == "running"
        assert ended(jobs, job.id).state == "cancelled"
    assert not jobs.folder(job.id).exists()


def test_a_stop_leaves_the_job_queued(jobs: Jobs) -> None:
    job, reached = jobs.submit({}), threading.Event()
    worker = Worker(jobs, working(reached))
    worker.start()
    assert reached.wait(10)
    assert worker.stop()
    seen = jobs.status(job.id)
    assert (seen.state, seen.position, seen.attempts, seen.progress) == ("queued", 1, 0, 0.0)


def test_work_that_does_not_stop_is_left_behind(jobs: Jobs) -> None:
    go = threading.Event()
    reached = threading.Event()

    def run(job: Job, tell: Tell) -> Mapping[str, Any]:
        reached.set()
        go.wait(10)
        return {}

    jobs.submit({})
    worker = Worker(jobs, run, stop_seconds=0.05)
    worker.start()
    assert reached.wait(10)
    assert not worker.stop()
    go.set()
    assert worker.stop()


def test_a_full_disk_at_the_end_is_waited_for(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.durable.worker.RETRY_SECONDS", 0.01)
    full, told = {"finish": True, "claim": True}, list[Exception]()

    def filling(name: str) -> Callable[..., Any]:
        real = getattr(jobs, name)

        def call(*given: Any, **named: Any) -> Any:
            if full[name]:
                raise Unavailable("the disk is full")
            return real(*given, **named)

        return call

    for name in full:
        monkeypatch.setattr(jobs, name, filling(name))
    job = jobs.submit({})
    with Worker(jobs, lambda job, tell: {"x": 1}, on_error=lambda job, error: told.append(error)):
        for name, state in (("claim", "queued"), ("finish", "running")):
            before = len(told)
            while len(told) < before + 2:
                time.sleep(0.005)
            assert jobs.status(job.id).state == state
            full[name] = False
        assert ended(jobs, job.id).state == "done"


def test_cancelled_passes_code_that_catches_exceptions() -> None:
    assert not issubclass(Cancelled, Exception)
