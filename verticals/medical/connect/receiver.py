"""A node of the DICOM network: takes CT series that allowed peers push by C-STORE, answers C-ECHO, sends results back.

Refused at the door are calls to another AE title, and callers whose AE title and address are not both on the list; the
DICOM protocol proves neither, so the port belongs on a closed network. Only CT Image Storage is negotiated. A series ends
with silence (`arrivals.py`), the protocol has no better sign: one that a sender broke off for longer is handed on as it is,
and it is the reader's part to find the gap. pynetdicom's loggers are silenced, its lines hold UIDs.
"""

from __future__ import annotations

import logging
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast
from weakref import WeakKeyDictionary

import pydicom
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from core.errors import CapacityError, ConfigError, DataError, Unavailable
from verticals.medical.connect import reason, silence
from verticals.medical.connect.arrivals import Arrivals, Round, identity
from verticals.medical.dicom.headers import ENCODINGS, FAULTS, MAX_FILE_BYTES, quiet

SUCCESS, NOT_AUTHORIZED, OUT_OF_RESOURCES, MISMATCH, UNINTELLIGIBLE = 0x0000, 0x0124, 0xA700, 0xA900, 0xC000
MOST_ASSOCIATIONS = 10
NETWORK_SECONDS = 60.0
"""Longest silence of a peer within an association."""
STOP_SECONDS = 10.0
_NOT_ALLOWED = (0x01, 0x01, 0x03)
"""Rejected for good, by the service's user: calling AE title not recognized."""
_FOR_NOW = 0x02
"""The result of a rejection that is not for good: too many calls at a time, congestion."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """A node that may call us and that we may call."""

    ae_title: str
    host: str
    port: int = 104

    def __post_init__(self) -> None:
        check_ae_title(self.ae_title)
        if not self.host or not 1 <= self.port <= 65535:
            raise ConfigError(f"peer {self.ae_title}: give a host, and a port from 1 to 65535; the port is {self.port}")

    @property
    def name(self) -> str:
        return f"{self.ae_title}@{self.host}"

    def has_address(self, address: str) -> bool:
        """Whether the host is at an IP address now; not where its name does not resolve."""
        try:
            return any(found[4][0] == address for found in socket.getaddrinfo(self.host, None))
        except (OSError, UnicodeError):
            return False


class Receiver:
    """`with Receiver(...):` listens until the block ends."""

    def __init__(
        self,
        ae_title: str,
        port: int,
        *,
        peers: Sequence[Peer],
        folder: Path,
        on_series: Callable[[Path, Peer], None],
        host: str = "127.0.0.1",
        quiet_seconds: float = 30.0,
        keep_seconds: float = 300.0,
        retry_seconds: float = 30.0,
        most_instances: int = 5000,
        most_bytes: int = 8 * 2**30,
        least_free_bytes: int = 2**30,
    ) -> None:
        """
        Args:
            port: 0 takes a free one, see `port`.
            peers: who may call; nobody else.
            folder: where series lie meanwhile; private, for this receiver alone.
            on_series: called in one thread with the folder of a complete series' files, and its sender. It copies or
                links what it needs: the folder is removed later. The folder's name is the same whenever the same round
                is handed on again, after a crash: an idempotency key. `Unavailable` has it called again after
                `retry_seconds`; after any other error the series is removed, and may be sent again.
            host: address to listen on; `0.0.0.0` for all.
            quiet_seconds: without a new instance, until a series counts as complete.
            keep_seconds: for how long an instance that comes late starts a new round with all of the series.
            most_instances: of a series; one that has more, or more than `most_bytes`, is refused as a whole.
            least_free_bytes: below that the disk counts as full: 0xA700, out of resources.

        Raises:
            ConfigError: an AE title that is none, no peers, or times that are not positive.
        """
        check_ae_title(ae_title)
        if not peers or len({peer.name for peer in peers}) < len(peers):
            raise ConfigError("peers: name each node that may send once, with AE title and host; nobody else may")
        if min(quiet_seconds, keep_seconds, retry_seconds) <= 0:
            raise ConfigError(f"{quiet_seconds=}, {keep_seconds=}, {retry_seconds=}; allowed is more than 0")
        silence("pynetdicom", "pydicom")
        _config.LOG_HANDLER_LEVEL = "none"
        self._peers = {peer.name: peer for peer in peers}
        self._callers: WeakKeyDictionary[Association, Peer] = WeakKeyDictionary()
        self._coming: WeakKeyDictionary[Association, int] = WeakKeyDictionary()  # bytes of the message that comes
        self._on_series, self._retry_seconds = on_series, retry_seconds
        self._tick_seconds = min(1.0, quiet_seconds / 4)
        self._arrivals = Arrivals(
            folder,
            quiet_seconds=quiet_seconds,
            keep_seconds=keep_seconds,
            most_instances=most_instances,
            most_bytes=most_bytes,
            least_free_bytes=least_free_bytes,
        )
        self._address = (host, port)
        self._node = AE(ae_title)
        self._node.require_called_aet = True
        self._node.require_calling_aet = sorted({peer.ae_title for peer in peers})
        self._node.maximum_associations = MOST_ASSOCIATIONS
        self._node.network_timeout = self._node.dimse_timeout = NETWORK_SECONDS
        self._node.add_supported_context(CTImageStorage, list(ENCODINGS))
        self._node.add_supported_context(Verification)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="received series", daemon=True)
        self.port = port

    def start(self) -> None:
        """
        Raises:
            Unavailable: the port cannot be listened on.
        """
        try:
            server = self._node.start_server(
                self._address,
                block=False,
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_C_STORE, self._stored),
                    (evt.EVT_PDU_RECV, self._came),
                ],
            )
        except OSError as error:
            where = f"port {self._address[1]} of {self._address[0]}"
            raise Unavailable(f"{where} cannot be listened on ({error.strerror}); free it or name another") from None
        assert server is not None
        self.port = int(server.socket.getsockname()[1])  # type: ignore[union-attr]
        self._thread.start()

    def stop(self) -> None:
        """Refuse calls, abort associations (senders send again), let `on_series` end; series that were not handed on stay."""
        self._stopping.set()
        open_ones = self._node.active_associations
        self._node.shutdown()
        for association in open_ones:
            association.join(STOP_SECONDS)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._arrivals.forget()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _requested(self, event: evt.Event) -> None:
        """Reject a caller that is no peer; one that passed otherwise may still store nothing."""
        association = event.assoc
        title, address = (
            cast(A_ASSOCIATE, association.requestor.primitive).calling_ae_title,
            association.requestor.address,
        )
        for peer in self._peers.values():
            if peer.ae_title == title and peer.has_address(address):
                self._callers[association] = peer
                return
        logger.warning("a call was refused: its AE title and address are not those of a peer")
        association.acse.send_reject(*_NOT_ALLOWED)
        association.kill()  # returns when the rejection is out; the connection would be cut before

    def _came(self, event: evt.Event) -> None:
        """Break off with a peer whose message is longer than a slice may be: all of it would be held in memory."""
        association = event.assoc
        self._coming[association] = self._coming.get(association, 0) + event.pdu.pdu_length
        if self._coming[association] > MAX_FILE_BYTES + 2**20:
            self._coming[association] = 0
            logger.warning("a call was broken off: an instance of over %d MiB", MAX_FILE_BYTES // 2**20)
            association.abort()

    def _stored(self, event: evt.Event) -> int:
        """The status that a C-STORE request is answered with."""
        self._coming[event.assoc] = 0
        peer = self._callers.get(event.assoc)
        if peer is None:
            return NOT_AUTHORIZED
        try:
            with quiet():
                dataset = event.dataset
            series, instance = identity(dataset)
            request = cast(C_STORE, event.request)
            if request.AffectedSOPClassUID != CTImageStorage or request.AffectedSOPInstanceUID != instance:
                return MISMATCH
            self._arrivals.add(peer.name, series, instance, event.encoded_dataset())
        except (CapacityError, Unavailable) as error:
            logger.warning("an instance from %s was refused: %s", peer.name, str(error))
            return OUT_OF_RESOURCES
        except (*FAULTS, DataError):
            logger.warning("an instance from %s was refused: it is not readable", peer.name)
            return UNINTELLIGIBLE
        return SUCCESS

    def _loop(self) -> None:
        while not self._stopping.wait(self._tick_seconds):
            for one in self._arrivals.complete():
                if self._stopping.is_set():
                    return  # the next start takes it up
                self._hand_on(one)

    def _hand_on(self, one: Round) -> None:
        peer = self._peers.get(one.sender)
        if peer is None:
            logger.warning("a series from %s, which is no peer any more, was removed", one.sender)
            return self._arrivals.drop(one)
        logger.info("a series of %d instances from %s is complete", len(one.files), one.sender)
        try:
            self._on_series(one.folder, peer)
        except Unavailable as error:
            logger.warning("a series from %s has to wait: %s", one.sender, str(error))
            self._arrivals.postpone(one, self._retry_seconds)
        except Exception as error:  # the thread's edge: the next series has its turn
            if self._stopping.is_set():  # what it needs is being closed: the next start takes the series up
                return
            frame = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            place = f"{frame.filename}:{frame.lineno}"
            logger.error("a series from %s was removed: %s at %s (text withheld)", one.sender, kind, place)
            self._arrivals.drop(one)
        else:
            self._arrivals.keep(one)


def send(paths: Sequence[Path], peer: Peer, *, ae_title: str) -> None:
    """Push DICOM files to a peer by C-STORE, in one association, each in its own encoding.

    Args:
        ae_title: what we call ourselves; the peer has to know it.

    Raises:
        Unavailable: the peer does not answer, broke off, or is out of resources: send all of them again.
        DataError: it refuses us, or some of the files, told by their place among the given ones.
    """
    check_ae_title(ae_title)
    silence("pynetdicom", "pydicom")
    _config.LOG_HANDLER_LEVEL = "none"
    node = AE(ae_title)
    node.connection_timeout = node.acse_timeout = node.dimse_timeout = node.network_timeout = NETWORK_SECONDS
    for kind, encoding in sorted({_kind(path, f"file {n} of {len(paths)}") for n, path in enumerate(paths, 1)}):
        node.add_requested_context(kind, encoding)  # on its own: of several the peer takes the one that it likes
        if not UID(encoding).is_compressed:
            node.add_requested_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association = node.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if association.is_rejected:
        if cast(A_ASSOCIATE, association.acceptor.primitive).result == _FOR_NOW:
            raise Unavailable(f"{peer.name} takes no further call now; send all of them again later")
        raise DataError(f"{peer.name} refuses our call; see that it knows our AE title {ae_title} and has this one")
    if association.rejected_contexts and not association.accepted_contexts:
        raise DataError(f"{peer.name} takes no files of this kind, or not in their encoding; allow it there")
    if not association.is_established:
        raise Unavailable(f"{peer.name} does not answer at port {peer.port}; see that it runs and can be reached")
    try:
        refused = []
        for number, path in enumerate(paths, 1):
            name = f"file {number} of {len(paths)}"
            try:
                with quiet():
                    dataset = pydicom.dcmread(path)
                status = association.send_c_store(dataset).get("Status")
            except (*FAULTS, RuntimeError):  # no context was accepted, or the association ended
                if not association.is_established:
                    status = None
                else:
                    refused.append(f"{name}: its kind or encoding is not taken")
                    continue
            if status is None:
                raise Unavailable(f"{peer.name} broke off at {name}; send all of them again")
            if status >> 8 == OUT_OF_RESOURCES >> 8:
                raise Unavailable(f"{peer.name} refused {name}: {reason(status)}; send all of them again later")
            if status != SUCCESS and status >> 12 != 0xB:  # 0xBxxx: stored, with a warning
                refused.append(f"{name}: {reason(status)}")
        if refused:
            raise DataError(f"{peer.name} refused {'; '.join(refused[:5])}; look into its log for the cause")
    finally:
        if association.is_established:
            association.release()


def _kind(path: Path, name: str) -> tuple[str, str]:
    """SOP class and transfer syntax of a file."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except FAULTS:
        raise DataError(f"{name} is no DICOM file with its kind and encoding in the header; nothing was sent") from None


def check_ae_title(title: str) -> None:
    """
    Raises:
        ConfigError: no node can have this title.
    """
    if not 0 < len(title.strip()) <= 16 or title != title.strip() or not title.isascii() or not title.isprintable():
        raise ConfigError(f"AE title {title!r}; allowed are 1 to 16 ASCII characters without spaces at the ends")
    if "\\" in title:
        raise ConfigError(f"AE title {title!r}; a backslash is not allowed")
