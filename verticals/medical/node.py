"""The service's node of the DICOM network: series come in by C-STORE, segmentations go back to where they came from.

What is to go back is a job of its own, in a durable queue for each peer: it is tried again while the peer is away, outlives
a restart, and a peer that is away holds up no other. When it is sent, or given up, its copy is gone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.durable.files import remove, written
from core.durable.jobs import Job, Jobs, UnknownJob
from core.durable.worker import Cancelled, Worker, pause
from core.errors import ConfigError, Unavailable
from verticals.medical.connect.receiver import Peer, Receiver, send
from verticals.medical.formats import NAMES
from verticals.medical.settings import NodeSettings

RETRY_SECONDS = 30.0
"""Between two tries to send a result."""
logger = logging.getLogger(__name__)


class Outbox:
    """Results on their way to one peer, in the order in which they were made."""

    def __init__(self, folder: Path, peer: Peer, *, ae_title: str, give_up_seconds: float) -> None:
        self._peer, self._ae_title, self._give_up_seconds = peer, ae_title, give_up_seconds
        self.jobs = Jobs(folder, most_waiting=10_000, most_attempts=10**9)
        self._worker = Worker(self.jobs, self._send)

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        if self._worker.stop():
            self.jobs.close()

    def put(self, scan_job: str, segmentation: Path) -> str:
        """Takes a copy that is to be sent, once for each job; the id of the sending."""
        with self.jobs.upload() as folder:
            with written():
                linked(segmentation, folder / NAMES["seg"])
            return self.jobs.submit({"job": scan_job}, key=scan_job, files=folder).id

    def _send(self, job: Job, tell: Callable[[float], None]) -> Mapping[str, Any]:
        path = self.jobs.folder(job.id) / "input" / NAMES["seg"]
        while True:
            try:
                send([path], self._peer, ae_title=self._ae_title)
            except Unavailable as error:
                if time.time() - job.submitted_at > self._give_up_seconds:
                    raise Unavailable(
                        f"{error}; given up after {self._give_up_seconds / 3600:g} hours: fetch the result and store it"
                    ) from None
                logger.warning("the result of job %s has to wait: %s", job.request["job"][:8], str(error))
            else:
                logger.info("the result of job %s went to %s", job.request["job"][:8], self._peer.name)
                return {}
            pause(RETRY_SECONDS, tell)


class Node:
    """Listens from `start` to `stop`."""

    def __init__(self, settings: NodeSettings, folder: Path, *, on_series: Callable[[Path, Peer], None]) -> None:
        """
        Args:
            folder: private, for this node alone.
            on_series: as the Receiver's.
        """
        outgoing = folder / "outgoing"
        self._outboxes = {
            peer.name: Outbox(
                outgoing / _folder_of(peer), peer, ae_title=settings.ae_title, give_up_seconds=settings.give_up_seconds
            )
            for peer in settings.peers
        }
        for left in set(outgoing.iterdir()) - {outgoing / _folder_of(peer) for peer in settings.peers}:
            logger.warning("results for a node that is no peer any more were removed")
            remove(left)
        self._receiver = Receiver(
            settings.ae_title,
            settings.port,
            peers=settings.peers,
            folder=folder / "incoming",
            on_series=on_series,
            host=settings.host,
            quiet_seconds=settings.quiet_seconds,
        )

    def start(self) -> None:
        for outbox in self._outboxes.values():
            outbox.start()
        self._receiver.start()

    def stop_receiving(self) -> None:
        self._receiver.stop()

    def stop(self) -> None:
        for outbox in self._outboxes.values():
            outbox.stop()

    def put(self, peer: str, scan_job: str, segmentation: Path, tell: Callable[[float], None]) -> str | None:
        """Has a result sent, once there is room for it; None where the peer is none any more.

        Args:
            tell: the job's; where it ends the job, nothing is sent.
        """
        outbox = self._outboxes.get(peer)
        if outbox is None:
            logger.warning("the result of job %s goes nowhere: its sender is no peer any more", scan_job[:8])
            return None
        tell(1.0)
        while True:
            try:
                sending = outbox.put(scan_job, segmentation)
                break
            except Unavailable as error:
                logger.warning("the result of job %s has to wait: %s", scan_job[:8], str(error))
                pause(RETRY_SECONDS, tell, done=1.0)
        try:
            tell(1.0)
        except Cancelled:
            self.cancel(peer, sending)
            raise
        return sending

    def sending(self, peer: str, id: str) -> Job | None:
        """How a sending is doing; None where nothing is known of it any more."""
        try:
            return self._outboxes[peer].jobs.status(id) if peer in self._outboxes else None
        except UnknownJob:
            return None

    def cancel(self, peer: str, id: str) -> None:
        if peer in self._outboxes:
            with suppress(UnknownJob):  # sent and forgotten, or the peer moved
                self._outboxes[peer].jobs.cancel(id)

    def forget(self, older_than_seconds: float) -> None:
        for outbox in self._outboxes.values():
            outbox.jobs.forget(older_than_seconds)


def check_port(settings: NodeSettings) -> None:
    """
    Raises:
        ConfigError: the port cannot be listened on.
    """
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError as error:
        raise ConfigError(
            f"port {settings.port} of {settings.host} cannot be listened on ({error.strerror}); free it, or set "
            "VERTICALS_DICOM_HOST and VERTICALS_DICOM_PORT to another"
        ) from None


def linked(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def _folder_of(peer: Peer) -> str:
    return hashlib.sha256(f"{peer.name}:{peer.port}".encode()).hexdigest()[:16]
