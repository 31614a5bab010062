from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bentoml.exceptions import BentoMLException

from core import registry
from core.aliases import alias_file, store
from core.errors import ArtifactError
from core.registry import Version
from core.serving.loader import Loader, require
from tests.core.serving import echo

Release = Callable[[float | None], str]


class Recorder:
    """A Loader of the echo application that writes down what it loads and warms."""

    def __init__(self) -> None:
        self.loaded, self.warmed = list[str](), list[tuple[float, float | None]]()
        self.broken_warm = False
        self.loader: Loader[float] = Loader(echo.NAME, load=self._load, warm=self._warm, poll_seconds=0.02)

    def _load(self, version: Version) -> float:
        self.loaded.append(version.version)
        return echo.load(version)

    def _warm(self, new: float, old: float | None) -> None:
        if self.broken_warm:
            raise ZeroDivisionError("4111111111111111")
        self.warmed.append((new, old))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.loader.stop()


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_production_is_loaded_and_warmed_at_the_start(recorder: Recorder, release: Release) -> None:
    version = release(2.0)
    with pytest.raises(ArtifactError, match="loaded yet"):
        _ = recorder.loader.live
    recorder.loader.start()
    assert (recorder.loader.live.version.version, recorder.loader.live.model) == (version, 2.0)
    assert recorder.warmed == [(2.0, None)]
    assert gc.get_threshold() == (50_000, 20, 100)
    assert gc.get_freeze_count() > 10_000


def test_the_garbage_collector_is_given_back(release: Release) -> None:
    release(2.0)
    before = gc.get_threshold()
    recorder = Recorder()
    recorder.loader.start()
    recorder.loader.stop()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_another_version_takes_over_with_the_old_one_at_hand(recorder: Recorder, release: Release) -> None:
    release(2.0)
    recorder.loader.start()
    kept = recorder.loader.live
    second = release(3.0)
    _until(lambda: recorder.loader.live.model == 3.0)
    assert recorder.loader.live.version.version == second
    assert recorder.warmed == [(2.0, None), (3.0, 2.0)]
    assert kept.model == 2.0  # what a request in flight holds


def test_a_threshold_is_taken_up_without_loading_anything(recorder: Recorder, release: Release) -> None:
    release(2.0)
    recorder.loader.start()
    registry.set_threshold(echo.NAME, "production", 0.25)
    _until(lambda: recorder.loader.live.threshold == 0.25)
    registry.set_threshold(echo.NAME, "production", None)
    _until(lambda: recorder.loader.live.threshold is None)
    assert len(recorder.loaded) == 1


def test_a_version_comes_with_its_own_threshold(recorder: Recorder, release: Release) -> None:
    first = release(2.0)
    registry.set_threshold(echo.NAME, first, 0.1)
    recorder.loader.start()
    assert recorder.loader.live.threshold == 0.1
    release(3.0)
    _until(lambda: recorder.loader.live.model == 3.0)
    assert recorder.loader.live.threshold is None


@pytest.mark.parametrize("fault", ["load", "warm", "file", "aliases"])
def test_a_broken_change_leaves_what_answers_and_is_said_once(
    fault: str, recorder: Recorder, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    first = release(2.0)
    recorder.loader.start()
    said = {
        "load": "cannot be loaded: KeyError",
        "warm": "ZeroDivisionError (text withheld)",
        "file": "model.safetensors is not what was registered",
        "aliases": "is damaged",
    }[fault]
    with caplog.at_level(logging.ERROR, "core.serving.loader"):
        if fault == "load":
            release(None)
        elif fault == "warm":
            recorder.broken_warm = True
            release(5.0)
        elif fault == "file":
            second = release(2.0)
            _until(lambda: recorder.loader.live.version.version == second)
            path = store() / echo.NAME / first / "model.safetensors"
            path.write_bytes(path.read_bytes()[::-1])
            aliases = alias_file()
            aliases.write_text(aliases.read_text().replace(second, first) + "\n")
        else:
            alias_file().write_text("{")
        before = recorder.loader.live
        _until(lambda: said in caplog.text)
        time.sleep(0.1)
    assert recorder.loader.live is before
    assert len([record for record in caplog.records if said in record.getMessage()]) == 1
    recorder.broken_warm = False
    if fault == "aliases":
        alias_file().unlink()
    third = release(7.0)
    _until(lambda: recorder.loader.live.version.version == third)


def test_versions_change_under_readers_without_a_gap(recorder: Recorder, release: Release) -> None:
    scales = {release(float(n)): float(n) for n in range(1, 6)}
    recorder.loader.start()
    seen, torn, done = set[str](), list[object](), threading.Event()

    def read() -> None:
        while not done.is_set():
            live = recorder.loader.live
            seen.add(live.version.version)
            if scales[live.version.version] != live.model:
                torn.append(live)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in scales:
        registry.set_alias(echo.NAME, "production", version)
        _until(lambda version=version: recorder.loader.live.version.version == version)  # type: ignore[misc]
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []
    assert seen == set(scales)


def test_a_service_without_a_model_is_refused_with_the_command(home: Path) -> None:
    with pytest.raises(BentoMLException, match=r"no model of test\.echo in .*verticals train test\.echo"):
        require(echo.NAME)
    loader = Recorder().loader
    with pytest.raises(ArtifactError, match=r"verticals train test\.echo"):
        loader.start()


def test_a_service_whose_models_are_there_may_start(release: Release) -> None:
    release(1.0)
    require(echo.NAME)
