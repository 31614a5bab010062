"""The service's settings, from environment variables: read whole and checked before anything starts."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from core.aliases import alias_file
from core.environment import cores, positive, whole
from core.errors import ConfigError
from core.memory import memory_limit

if TYPE_CHECKING:
    from verticals.manufacturing.connect.mqtt import Broker

OPCUA_PORT = 4840
"""Where the URL names none."""


@dataclass(frozen=True)
class Settings:
    """All of them."""

    folder: Path
    """Of products, results and their pictures, the queue, and what is to be sent."""
    watched: Path | None
    """Where a line puts its pictures; None where boards come by HTTP alone."""
    settle_seconds: float
    """For how long a file in it may not have grown."""
    line_id: str
    """By which brokers know this line."""
    broker: Broker | None
    opcua: str | None
    """URL that the OPC UA server listens on, `opc.tcp://127.0.0.1:4840`."""
    threads: int
    """Of one call of the network."""
    streams: int
    """Calls under way at the same time."""
    upload_bytes: int
    """Of one request."""
    keep_seconds: float
    """For how long results and their pictures are kept."""


def from_environment() -> Settings:
    """
    Raises:
        ConfigError: a variable that is not what it may be.
    """
    memory_limit()
    folder = os.environ.get("VERTICALS_LINE_STORE")
    watched = os.environ.get("VERTICALS_LINE_FOLDER")
    broker = os.environ.get("VERTICALS_MQTT_URL")
    settings = Settings(
        folder=Path(folder).expanduser() if folder else alias_file().parent / "manufacturing",
        watched=Path(watched).expanduser() if watched else None,
        settle_seconds=positive("VERTICALS_LINE_SETTLE_SECONDS", 0.5),
        line_id=os.environ.get("VERTICALS_LINE_ID", f"verticals-{socket.gethostname()}"),
        broker=_broker(broker) if broker else None,
        opcua=_endpoint(os.environ.get("VERTICALS_OPCUA_URL")),
        threads=whole("VERTICALS_THREADS", 1),
        streams=whole("VERTICALS_STREAMS", cores()),
        upload_bytes=int(1e9 * positive("VERTICALS_UPLOAD_GB", 0.5)),
        keep_seconds=24 * 3600 * positive("VERTICALS_RESULTS_KEEP_DAYS", 30),
    )
    if settings.watched is not None:
        if not settings.watched.is_dir():
            raise ConfigError(
                f"VERTICALS_LINE_FOLDER is {str(settings.watched)!r}, which is no folder; make it, or correct it"
            )
        if settings.folder.resolve().is_relative_to(settings.watched.resolve()):
            raise ConfigError("VERTICALS_LINE_STORE lies in VERTICALS_LINE_FOLDER; keep results elsewhere")
    return settings


def _broker(url: str) -> Broker:
    from verticals.manufacturing.connect.mqtt import Broker

    return Broker.of(url)


def check_port(settings: Settings) -> None:
    """Raises ConfigError where the OPC UA server's port cannot be listened on."""
    if settings.opcua is None:
        return
    url = urlsplit(settings.opcua)
    try:
        socket.create_server((url.hostname or "", url.port or OPCUA_PORT)).close()
    except OSError as error:
        raise ConfigError(
            f"VERTICALS_OPCUA_URL {settings.opcua} cannot be listened on ({error.strerror}); free the port, or name another"
        ) from None


def _endpoint(given: str | None) -> str | None:
    if given is None:
        return None
    try:
        url = urlsplit(given)
        fits = url.scheme == "opc.tcp" and url.hostname and url.port != 0
    except ValueError:  # a port beyond 65535
        fits = False
    if not fits:
        raise ConfigError(
            f"VERTICALS_OPCUA_URL is {given!r}; allowed is opc.tcp://HOST:PORT, as opc.tcp://127.0.0.1:4840"
        )
    return given
