"""A real `redis-server` for tests: on a free loopback port, with its data in a temporary folder, ended by its own id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_redis(folder: Path, port: int | None = None) -> Iterator[str]:
    """Starts the server, gives its URL, and ends it."""
    port = port or free_port()
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": folder,
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
    }
    command = ["redis-server", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    with (folder / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _wait(server, port, folder / "redis.log")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(10)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(200):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return
        except OSError:
            if server.poll() is not None:
                break
        time.sleep(0.02)
    raise RuntimeError(f"redis-server did not start: {log.read_text()[-500:]}")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server for the session. Skips where none is installed, and fails there in continuous integration."""
    if shutil.which("redis-server") is None:
        reason = "redis-server is not installed: apt-get install -y --no-install-recommends redis-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url
