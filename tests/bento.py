"""Real `bentoml serve` processes for tests: on a free loopback port, ended by their own id."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Server:
    """A running `bentoml serve`, the leader of its own process group."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path
    log: Path
    """Its stdout and stderr together."""


def start(
    target: str,
    folder: Path,
    home: Path,
    *,
    environment: dict[str, str] | None = None,
    cwd: Path = ROOT,
    python: str = sys.executable,
) -> Server:
    """Starts a service (`module:svc`) with the registry at `home`; does not wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [python, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)],
            cwd=cwd,
            env={**inherited, "BENTOML_HOME": str(home), **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(process, f"http://127.0.0.1:{port}", home, folder / "log")


def wait_until_ready(server: Server, seconds: float = 90) -> None:
    """Raises AssertionError with the log where the service ends or does not get ready."""
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


def kill(server: Server) -> None:
    """SIGKILL to the service and its workers, all at once; returns when they are gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(server.process.pid)
        family = [parent, *parent.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
    server.process.wait()
