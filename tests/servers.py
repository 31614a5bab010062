"""Real servers as pytest fixtures: child processes on 127.0.0.1 and a free port, data in a temporary folder.

A server that is not installed skips its tests, saying so; where `CI` is set it fails them. `conftest.py` loads this module.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright


def missing(reason: str) -> None:
    """Skips the test, or fails it where everything must be installed."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (CI is set: every server must be there)")
    pytest.skip(reason)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A real browser."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        missing("Chromium is not installed: no chromium in PATH")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database, with a password in it."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not binaries:
        missing("PostgreSQL is not installed: no /usr/lib/postgresql/*/bin/initdb")
    owner: list[str] = []
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            missing("PostgreSQL refuses to run as root, and there is no user postgres")
        owner = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        if shutil.which("setpriv") is None:
            missing("PostgreSQL refuses to run as root, and setpriv is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        folder.chmod(0o711)
        data, password = folder / "data", folder / "password"
        data.mkdir(mode=0o700)
        password.write_text("s3cret-word\n")
        if owner:
            shutil.chown(data, user.pw_uid, user.pw_gid)
            shutil.chown(password, user.pw_uid, user.pw_gid)
        settings = ["--auth=scram-sha-256", "--username=bank", f"--pwfile={password}", "--encoding=UTF8", "--locale=C"]
        initdb = [*owner, str(binaries[-1]), f"--pgdata={data}", "--no-sync", *settings]
        subprocess.run(initdb, check=True, capture_output=True, cwd=data)
        port = free_port()
        options = ["-h", "127.0.0.1", "-p", str(port), "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with (folder / "log").open("wb") as log:
            server = [*owner, str(binaries[-1].with_name("postgres")), "-D", str(data), *options]
            process = subprocess.Popen(server, stdout=log, stderr=log, cwd=data)
        _wait(process, port, folder / "log")
        yield f"postgresql+psycopg://bank:s3cret-word@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
        shutil.rmtree(folder)


@contextmanager
def running_redis(folder: Path, port: int | None = None) -> Iterator[str]:
    """Starts `redis-server` with its data in a folder, gives its URL, and ends it."""
    if shutil.which("redis-server") is None:
        missing("redis-server is not installed: apt-get install -y --no-install-recommends redis-server")
    port = port or free_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
    command = ["redis-server", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    with (folder / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _wait(server, port, folder / "redis.log", ask=b"PING\r\n", answer=b"+PONG")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(10)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis server for the session."""
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


def _wait(
    process: subprocess.Popen[bytes],
    port: int,
    log: Path,
    seconds: float = 30.0,
    *,
    ask: bytes = b"",
    answer: bytes = b"",
) -> None:
    """Until the server accepts connections and answers; raises with its log where it ends or takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            if not ask:
                return
            client.sendall(ask)
            if client.recv(64).startswith(answer):
                return
        time.sleep(0.02)
    raise RuntimeError(f"the server does not answer on port {port}:\n{log.read_text(errors='replace')[-2000:]}")


@dataclass(frozen=True)
class Orthanc:
    """A running archive."""

    url: str
    """Of its own REST API; DICOMweb is below `/dicom-web`."""
    dicom_port: int
    ae_title: str = "ORTHANC"


@pytest.fixture(scope="session")
def orthanc() -> Iterator[Orthanc]:
    """An Orthanc server with DICOMweb and no data; C-STORE is taken from modalities that a test adds by its REST API."""
    plugins = sorted(Path("/usr/lib/orthanc").glob("libOrthancDicomWeb.so.*"))
    if not Path("/usr/sbin/Orthanc").is_file() or not plugins:
        missing("Orthanc is not installed: apt-get install -y --no-install-recommends orthanc orthanc-dicomweb")
    folder = Path(tempfile.mkdtemp(prefix="orthanc-"))
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "Test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "TemporaryDirectory": str(folder),
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": dicom,
        "DicomAet": Orthanc.ae_title,
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowFind": False,
        "DicomAlwaysAllowGet": False,
        "DicomAlwaysAllowStore": False,
        "Plugins": [str(plugins[-1])],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Host": f"127.0.0.1:{http}"},
    }
    process: subprocess.Popen[bytes] | None = None
    try:
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("wb") as log:
            command = ["/usr/sbin/Orthanc", str(folder / "orthanc.json")]
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        _wait(process, http, folder / "log", ask=b"GET /system HTTP/1.0\r\n\r\n", answer=b"HTTP/1.1 200")
        _wait(process, dicom, folder / "log")
        yield Orthanc(f"http://127.0.0.1:{http}", dicom)
    finally:
        if process is not None:
            process.kill()  # ending in order takes it 4 s, and its data is thrown away
            process.wait(timeout=30)
        shutil.rmtree(folder)


class Mosquitto:
    """An MQTT broker on one port, that is ended and started again, its messages kept."""

    def __init__(self, folder: Path) -> None:
        self._binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if self._binary is None:
            missing("Mosquitto is not installed")
        self.port = free_port()
        self._config, self._log = folder / "mosquitto.conf", folder / "mosquitto.log"
        self._rights = folder / "rights"
        user = f"user {pwd.getpwuid(os.geteuid()).pw_name}\n"
        kept = f"persistence true\npersistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\n"
        self._settings = f"listener {self.port} 127.0.0.1\nallow_anonymous true\n{user}{kept}max_queued_messages 0\n"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, rights: str = "") -> None:
        """`rights` are lines of an access control list. Without any there is no list: with one, version 2.0.11 drops what comes
        for a session that it restored, until that client is back."""
        assert self._binary is not None
        self._rights.write_text(rights)
        self._config.write_text(self._settings + (f"acl_file {self._rights}\n" if rights else ""))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._binary, "-c", str(self._config)], stdout=log, stderr=log)
        _wait(self._process, self.port, self._log)

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
            self._process = None


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    """Started, with nobody connected."""
    folder = Path(tempfile.mkdtemp(prefix="mosquitto-"))
    broker = Mosquitto(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.end()
        shutil.rmtree(folder)
