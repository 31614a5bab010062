"""A registry of its own for every test, and the echo service as a real `bentoml serve`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import registry
from tests import bento
from tests.bento import Server, stop, wait_until_ready
from tests.core.serving import echo


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def release(home: Path, tmp_path: Path) -> Callable[[float | None], str]:
    """Registers a model of the given scale and makes it production."""

    def make(scale: float | None) -> str:
        version = registry.register(echo.write_run(tmp_path / f"run-{time.monotonic_ns()}", scale=scale), echo.NAME)
        registry.set_alias(echo.NAME, "production", version)
        return version

    return make


@pytest.fixture(autouse=True)
def _forget_collectors() -> Iterator[None]:
    """BentoML registers its metrics anew for every service of a process."""
    yield
    from prometheus_client import REGISTRY

    for collector, names in list(REGISTRY._collector_to_names.items()):
        if any(name.startswith("bentoml_service") for name in names):
            REGISTRY.unregister(collector)


def start(folder: Path, home: Path, *, environment: dict[str, str] | None = None) -> Server:
    """Starts the echo service; does not wait for it."""
    return bento.start("tests.core.serving.echo:svc", folder, home, environment=environment)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The echo service with one model of scale 2, shared by a module's tests."""
    folder = tmp_path_factory.mktemp("server")
    before = os.environ.get("BENTOML_HOME")
    os.environ["BENTOML_HOME"] = str(folder / "home")
    try:
        version = registry.register(echo.write_run(folder / "run", scale=2.0), echo.NAME)
        registry.set_alias(echo.NAME, "production", version)
    finally:
        os.environ.pop("BENTOML_HOME") if before is None else os.environ.update(BENTOML_HOME=before)
    running = start(folder, folder / "home")
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop(running)
