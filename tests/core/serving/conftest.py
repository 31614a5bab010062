"""A registry of its own for every test, and real `bentoml serve` processes."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # before prometheus_client is imported, as `bentoml serve` does
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="prometheus-")
    atexit.register(shutil.rmtree, os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)

BENTOML_WARNS = (  # BentoML 1.4.39 uses what its dependencies have deprecated, at import and at every request
    "GitWildMatchPattern",
    "The `__get_pydantic_core_schema__` method of the `BaseModel` class is deprecated",
    "Accessing the 'model_fields' attribute on the instance is deprecated",
    "Using `httpx` with `starlette.testclient` is deprecated",
)

with warnings.catch_warnings():
    for text in BENTOML_WARNS:
        warnings.filterwarnings("ignore", text)
    import starlette.testclient  # noqa: F401

    from core import registry
    from tests.core.serving import echo

ROOT = Path(__file__).resolve().parents[3]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for text in BENTOML_WARNS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{text}"))


@dataclass
class Server:
    """A running `bentoml serve`."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path
    log: Path
    """Its stdout and stderr together."""


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
    """Starts the echo service on a free port of the loopback; does not wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bentoml",
                "serve",
                "tests.core.serving.echo:svc",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ],
            cwd=ROOT,
            env={**inherited, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Server(process, f"http://127.0.0.1:{port}", home, folder / "log")


def wait_until_ready(server: Server, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz", timeout=1).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(server.log.read_text())


def stop(server: Server) -> None:
    server.process.terminate()
    try:
        server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


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
