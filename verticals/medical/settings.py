"""The service's settings, from environment variables: read whole and checked before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.aliases import alias_file
from core.environment import cores, positive, whole
from core.errors import ConfigError
from core.memory import memory_limit

if TYPE_CHECKING:
    from verticals.medical.connect.receiver import Peer

AE = "VERTICALS_DICOM_AE"


@dataclass(frozen=True)
class NodeSettings:
    """Our node of the DICOM network."""

    ae_title: str
    host: str
    port: int
    peers: tuple[Peer, ...]
    """Who may send, and where results go back to."""
    quiet_seconds: float
    """Without a new instance, until a series counts as complete."""
    give_up_seconds: float
    """For how long a result is sent again where a peer does not take it."""


@dataclass(frozen=True)
class Settings:
    """All of them."""

    folder: Path
    """Of jobs, series on their way in, results on their way out."""
    threads: int
    """Of one call of the network; one scan at a time uses them all."""
    upload_bytes: int
    """Of one request."""
    most_waiting: int
    """Jobs and uploads."""
    queue_bytes: int
    """Of the uploads of all jobs that wait or run."""
    segment_seconds: float
    """What `/segment` may take, and how long it waits for its turn."""
    keep_seconds: float
    """For how long ended jobs and their results are kept."""
    node: NodeSettings | None


def from_environment() -> Settings:
    """
    Raises:
        ConfigError: a variable that is not what it may be.
    """
    memory_limit()
    folder = os.environ.get("VERTICALS_JOBS")
    return Settings(
        folder=Path(folder).expanduser() if folder else alias_file().parent / "medical",
        threads=whole("VERTICALS_THREADS", cores()),
        upload_bytes=_bytes("VERTICALS_UPLOAD_GB", 2),
        most_waiting=whole("VERTICALS_QUEUE_JOBS", 100),
        queue_bytes=_bytes("VERTICALS_QUEUE_GB", 50),
        segment_seconds=positive("VERTICALS_SEGMENT_SECONDS", 30),
        keep_seconds=3600 * positive("VERTICALS_JOBS_KEEP_HOURS", 24),
        node=_node(),
    )


def _node() -> NodeSettings | None:
    title = os.environ.get(AE)
    if title is None:
        if given := sorted(name for name in os.environ if name.startswith("VERTICALS_DICOM_")):
            raise ConfigError(f"{given[0]} is set, but not {AE}, the AE title that the node is to have; set it too")
        return None
    from verticals.medical.connect.receiver import check_ae_title

    check_ae_title(title)
    return NodeSettings(
        ae_title=title,
        host=os.environ.get("VERTICALS_DICOM_HOST", "127.0.0.1"),
        port=_port("VERTICALS_DICOM_PORT", 11112),
        peers=_peers(os.environ.get("VERTICALS_DICOM_PEERS", "")),
        quiet_seconds=positive("VERTICALS_DICOM_QUIET_SECONDS", 30),
        give_up_seconds=3600 * positive("VERTICALS_DICOM_RETRY_HOURS", 12),
    )


def _peers(text: str) -> tuple[Peer, ...]:
    from verticals.medical.connect.receiver import Peer

    peers = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        title, _, address = part.partition("@")
        host, _, port = address.partition(":")
        if not (title and host and (port or "104").isdecimal()):
            raise ConfigError(f"VERTICALS_DICOM_PEERS names {part!r}; allowed is TITLE@HOST:PORT, several with commas")
        peers.append(Peer(title, host, int(port or 104)))
    if not peers:
        raise ConfigError(
            "VERTICALS_DICOM_PEERS names no node that may send; set it to TITLE@HOST:PORT, several with commas"
        )
    if len({peer.name for peer in peers}) < len(peers):
        raise ConfigError("VERTICALS_DICOM_PEERS names a node twice; name each once")
    return tuple(peers)


def _port(name: str, default: int) -> int:
    if (port := whole(name, default)) > 65535:
        raise ConfigError(f"{name} is {port}; allowed are 1 to 65535")
    return port


def _bytes(name: str, default: float) -> int:
    return int(positive(name, default) * 1e9)
