"""Every board has its result, also one that ends the process, one that nobody foresaw, and one for which there is no room now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from core.durable.jobs import Jobs
from core.errors import Unavailable
from tests.verticals.manufacturing.line_process import predictor
from verticals.manufacturing import line as lines
from verticals.manufacturing.line import TRIES, Line
from verticals.manufacturing.pcb.predictor import PcbPredictor
from verticals.manufacturing.products import Products
from verticals.manufacturing.results import ABORTED, COMPLETED
from verticals.manufacturing.settings import from_environment


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, folder in (("VERTICALS_LINE_FOLDER", "in"), ("VERTICALS_LINE_STORE", "store")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("VERTICALS_LINE_SETTLE_SECONDS", "0.05")
    golden = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    Products(tmp_path / "store" / "products").teach("A1", cv2.imencode(".png", golden)[1].tobytes())
    (tmp_path / "in" / "A1").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "A1" / "first.png"), golden)
    return tmp_path / "store"


@contextmanager
def running(model: Callable[[], PcbPredictor]) -> Iterator[Line]:
    line = Line(from_environment(), model)
    line.start()
    try:
        yield line
    finally:
        line.stop()


def results(line: Line, count: int) -> list[dict[str, Any]]:
    end = time.monotonic() + 30
    while len(line.results.newest(10)) < count:
        assert time.monotonic() < end
        time.sleep(0.05)
    return [kept.record for kept in reversed(line.results.newest(10))]


def test_a_board_that_always_ends_the_process_is_unknown(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(from_environment(), predictor)
    assert line._watch is not None
    line._watch.start()  # the board is queued, and nobody works yet
    while not line.jobs.counts()["queued"]:
        time.sleep(0.02)
    line._watch.stop()
    line.jobs.close()
    line.results.close()
    for _ in range(TRIES):  # each ended without a word
        jobs = Jobs(store / "boards", most_attempts=TRIES + 1)
        assert jobs.claim() is not None
        jobs.close()

    def never() -> PcbPredictor:
        model = predictor()
        monkeypatch.setattr(model, "_inspect", lambda request: pytest.fail("it was looked at again"))
        return model

    with running(never) as line:
        (result,) = results(line, 1)
        (png,) = line.pictures.glob("*/board")
        assert png.stat().st_size > 1000
    assert result["ResultState"] == ABORTED
    assert result["ResultContent"]["verdict"] == "unknown"
    assert "ended 4 times while it worked on this board" in result["ResultContent"]["reason"]


def test_a_board_that_nobody_foresaw_is_unknown_and_the_line_goes_on(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = predictor()
    sound = model._inspect
    faults = iter([ZeroDivisionError("secret value")])

    def inspect(request: Any) -> Any:
        for fault in faults:
            raise fault
        return sound(request)

    monkeypatch.setattr(model, "_inspect", inspect)
    with running(lambda: model) as line:
        (first,) = results(line, 1)
        cv2.imwrite(str(store.parent / "in" / "A1" / "second.png"), line.products.golden(line.products.get("A1"), 1))
        second = results(line, 2)[1]
        assert line.jobs.counts()["failed"] == 0
    assert first["ResultContent"]["verdict"] == "unknown"
    assert "the log has the place" in first["ResultContent"]["reason"]
    assert "ZeroDivisionError" in caplog.text
    assert "secret value" not in caplog.text
    assert second["ResultState"] == COMPLETED


def test_a_board_waits_while_the_disk_is_full(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RETRY_SECONDS", 0.05)
    model, tries = predictor(), []
    line = Line(from_environment(), lambda: model)
    sound = line.results.add

    def add(result: Any) -> bytes:
        tries.append(result)
        if len(tries) < 4:
            raise Unavailable("no space left on the disk")
        return sound(result)

    monkeypatch.setattr(line.results, "add", add)
    line.start()
    try:
        (result,) = results(line, 1)
    finally:
        line.stop()
    assert len(tries) == 4
    assert result["ResultState"] == COMPLETED


def test_what_json_cannot_hold_is_unknown(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "record_of", lambda *_, **__: {"verdict": "pass", "findings": [{"box": [float("inf")]}]})
    with running(predictor) as line:
        (result,) = results(line, 1)
        assert line.jobs.counts()["failed"] == 0
    assert (result["ResultState"], result["ResultContent"]["verdict"]) == (ABORTED, "unknown")


def test_a_full_disk_ends_no_keeping(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "KEEPER_SECONDS", 0.02)
    line, tries = Line(from_environment(), predictor), []

    def forget(before: float) -> list[str]:
        tries.append(before)
        raise Unavailable("no space left on the disk")

    monkeypatch.setattr(line.results, "forget", forget)
    line.start()
    try:
        while len(tries) < 3:
            time.sleep(0.02)
    finally:
        line.stop()


def test_what_requests_left_when_the_process_died_is_removed(store: Path) -> None:
    (store / "spare" / "tmpx").mkdir(parents=True)
    (store / "spare" / "tmpx" / "picture").write_bytes(b"0" * 1000)
    with running(predictor) as line:
        assert not list(line.spare.iterdir())
