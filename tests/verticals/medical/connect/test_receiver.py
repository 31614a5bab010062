from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from core.errors import ConfigError, DataError, Unavailable
from tests.verticals.medical.connect.conftest import NUM_SLICES, Archive, Log, Study, says_nothing_of
from verticals.medical.connect import receiver as module
from verticals.medical.connect.receiver import Peer, Receiver, send
from verticals.medical.dicom.headers import ENCODINGS, decoding_plugin
from verticals.medical.dicom.series import read_series

US = "VERTICALS"
LEAK = "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
"""pynetdicom leaves the socket of a connection that failed to the garbage collector."""
PACS = Peer("ORTHANC", "127.0.0.1", 4242)


class Taken:
    """What `on_series` was called with: the files, copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[Path, Peer]] = []
        self.raises: list[Exception] = []
        self.names: list[str] = []

    def __call__(self, folder: Path, peer: Peer) -> None:
        self.names.append(folder.name)
        if self.raises:
            raise self.raises.pop()
        copy = self.folder / str(len(self.calls))
        shutil.copytree(folder, copy)
        self.calls.append((copy, peer))

    def wait(self, num_files: int) -> Path:
        """The newest series, when it has so many files: a slow machine may take a pause for its end before."""
        until(lambda: bool(self.calls) and len(list(self.calls[-1][0].iterdir())) == num_files)
        return self.calls[-1][0]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def taken(tmp_path: Path) -> Taken:
    return Taken(tmp_path / "taken")


@pytest.fixture
def receive(tmp_path: Path, taken: Taken, log: Log) -> Iterator[Callable[..., Receiver]]:
    """Starts a receiver; all use the same folder."""
    begun: list[Receiver] = []

    def start(**options: Any) -> Receiver:
        given = {"peers": [PACS], "quiet_seconds": 0.3, "on_series": taken, "least_free_bytes": 0, **options}
        receiver = Receiver(US, 0, folder=tmp_path / "arrivals", **given)
        receiver.start()
        begun.append(receiver)
        return receiver

    yield start
    for receiver in begun:
        receiver.stop()


def us(receiver: Receiver) -> Peer:
    return Peer(US, "127.0.0.1", receiver.port)


def test_an_archive_sends_a_series_and_gets_the_segmentation(
    receive: Callable[..., Receiver], archive: Archive, study: Study, taken: Taken, log: Log
) -> None:
    receiver = receive(quiet_seconds=1.0)
    logging.getLogger("pynetdicom").setLevel(logging.DEBUG)  # somebody turns it on again
    logging.getLogger("pynetdicom").propagate = True
    for path in study.paths:
        archive.add(path)
    archive.knows("us", US, receiver.port)
    assert archive.client.post("/modalities/us/echo", json={}).status_code == 200
    assert archive.sends(study, "us")
    folder = taken.wait(NUM_SLICES)
    assert [peer for _, peer in taken.calls] == [PACS]
    pacs = Peer("ORTHANC", "127.0.0.1", archive.orthanc.dicom_port)
    series = read_series(folder)
    np.testing.assert_array_equal(series.volume.array, study.volume.array)
    assert series.sources[0].PatientName == "Wodehouse^Pelham"
    assert archive.modalities_of(study) == {"CT": NUM_SLICES}
    send([study.seg], pacs, ae_title=US)
    assert archive.modalities_of(study) == {"CT": NUM_SLICES, "SEG": 1}
    with pytest.raises(DataError, match="refuses our call; see that it knows our AE title STRANGER"):
        send([study.seg], Peer("WRONG", "127.0.0.1", pacs.port), ae_title="STRANGER")
    time.sleep(1.2)
    assert len(taken.calls) == 1
    lines = [line for line in log.lines if not line.startswith(("Reading", "0000"))]  # pydicom's, of this test
    assert f"a series of {NUM_SLICES} instances from ORTHANC@127.0.0.1 is complete" in lines
    assert "Wodehouse" not in "\n".join(lines)
    assert says_nothing_of(study, "\n".join(line for line in lines if "seg.dcm" not in line and "HTTP" not in line))


def test_the_archive_is_told_what_is_refused(
    receive: Callable[..., Receiver], archive: Archive, study: Study, taken: Taken
) -> None:
    receiver = receive(most_instances=NUM_SLICES - 1)
    for path in (*study.paths, study.seg):
        archive.add(path)
    archive.knows("us", US, receiver.port)
    assert not archive.sends(study, "us")
    assert not archive.sends(study, "us", modality="SEG")
    archive.knows("misnamed", "OTHER", receiver.port)
    assert not archive.sends(study, "misnamed")
    time.sleep(0.5)
    assert taken.calls == []


def test_silence_of_each_series_on_its_own_and_a_late_instance(
    receive: Callable[..., Receiver], study: Study, taken: Taken
) -> None:
    receiver = receive()
    send(study.paths[:3], us(receiver), ae_title=PACS.ae_title)
    send(study.paths[3:5], us(receiver), ae_title=PACS.ae_title)  # another association, the same series
    taken.wait(5)
    send(study.paths[5:], us(receiver), ae_title=PACS.ae_title)
    np.testing.assert_array_equal(read_series(taken.wait(6)).volume.array, study.volume.array)
    assert len(set(taken.names)) == len(taken.names)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"])
def test_files_are_as_they_were_sent(receive: Callable[..., Receiver], study: Study, taken: Taken, syntax: str) -> None:
    for path in study.paths:
        dataset = pydicom.dcmread(path)
        if syntax == "1.2.840.10008.1.2":
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(path, implicit_vr=True)
        else:
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
    send(study.paths, us(receive()), ae_title=PACS.ae_title)
    folder = taken.wait(NUM_SLICES)
    for path in folder.iterdir():
        meta = pydicom.dcmread(path).file_meta
        assert (meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID) == (syntax, CTImageStorage)
        assert meta.MediaStorageSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    np.testing.assert_array_equal(read_series(folder).volume.array, study.volume.array)


def test_encodings_that_are_taken_are_decoded() -> None:
    for syntax in ENCODINGS:
        decoding_plugin(str(syntax))


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ((JPEGLosslessSV1, JPEG2000Lossless, JPEGBaseline8Bit), JPEGLosslessSV1),
        ((JPEG2000, JPEGLSNearLossless, JPEG2000Lossless), JPEG2000Lossless),
        ((JPEGBaseline8Bit, RLELossless, ImplicitVRLittleEndian), ImplicitVRLittleEndian),
    ],
)
def test_of_several_encodings_the_one_that_loses_nothing_is_taken(
    receive: Callable[..., Receiver], offered: tuple[str, ...], taken: str
) -> None:
    node = AE("ORTHANC")
    node.add_requested_context(CTImageStorage, list(offered))
    association = node.associate("127.0.0.1", receive().port, ae_title=US)
    try:
        assert association.accepted_contexts[0].transfer_syntax == [taken]
    finally:
        association.release()
        association.join(5)


def call(receiver: Receiver, *, caller: str = "ORTHANC", called: str = US, kind: str = Verification) -> str:
    """How a call ends: rejected, echoed, or without any accepted context."""
    node = AE(caller)
    node.add_requested_context(kind)
    association = node.associate("127.0.0.1", receiver.port, ae_title=called)
    if not association.is_established:
        return "rejected" if association.is_rejected else "nothing in common" if association.is_aborted else "away"
    try:
        return "echoed" if association.send_c_echo().Status == 0 else "failed"
    finally:
        association.release()
        association.join(5)


def test_who_may_call(receive: Callable[..., Receiver], study: Study, log: Log) -> None:
    receiver = receive(peers=[PACS, Peer("ELSEWHERE", "192.0.2.1"), Peer("NOWHERE", "no-such-host.invalid")])
    assert call(receiver) == "echoed"
    assert call(receiver, caller="STRANGER") == "rejected"
    assert call(receiver, called="OTHER") == "rejected"
    assert call(receiver, caller="ELSEWHERE") == "rejected"  # known, but not at this address
    assert call(receiver, caller="NOWHERE") == "rejected"
    assert call(receiver, kind=MRImageStorage) == "nothing in common"
    with pytest.raises(DataError, match="refuses our call"):
        send(study.paths, us(receiver), ae_title="STRANGER")
    assert "a call was refused: its AE title and address are not those of a peer" in log.lines


def stored(receiver: Receiver, dataset: pydicom.Dataset, *, context: str = CTImageStorage) -> int:
    """The status of a C-STORE request."""
    node = AE(PACS.ae_title)
    node.add_requested_context(context)
    association = node.associate("127.0.0.1", receiver.port, ae_title=US)
    try:
        return int(association.send_c_store(dataset).Status)
    finally:
        association.release()
        association.join(5)


def test_what_is_not_a_ct_instance_is_answered_with_a_failure(
    receive: Callable[..., Receiver], study: Study, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = receive()
    with pytest.raises(DataError, match="VERTICALS@127.0.0.1 takes no files of this kind"):
        send([study.seg], us(receiver), ae_title=PACS.ae_title)
    with pytest.raises(DataError, match="refused file 2 of 2: its kind or encoding is not taken"):
        send([study.paths[0], study.seg], us(receiver), ae_title=PACS.ae_title)
    dataset = pydicom.dcmread(study.paths[0])
    del dataset.SeriesInstanceUID
    assert stored(receiver, dataset) == 0xC000
    dataset = pydicom.dcmread(study.paths[0])
    with monkeypatch.context() as patch:  # the request names another instance than the data
        patch.setattr("verticals.medical.connect.receiver.identity", lambda _: ("1.2.3", "1.2.4"))
        assert stored(receiver, dataset) == 0xA900
    for size in (1, 7, 100):
        with monkeypatch.context() as patch:
            patch.setattr("pynetdicom.association.encode", lambda *_, size=size: b"\x10\x00\x10\x00Wodehouse" * size)
            assert stored(receiver, dataset) == 0xC000
    assert stored(receiver, dataset) == 0
    taken.wait(1)


def test_an_instance_that_is_longer_than_a_slice_is_broken_off(
    receive: Callable[..., Receiver], study: Study, taken: Taken, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be held in memory as a whole, several times."""
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 2 * 2**20)
    receiver = receive()
    dataset = pydicom.dcmread(study.paths[0])
    dataset.PixelData = bytes(20 * 2**20)
    node = AE(PACS.ae_title)
    node.add_requested_context(CTImageStorage)
    association = node.associate("127.0.0.1", receiver.port, ae_title=US)
    with suppress(RuntimeError):  # it ended before all was sent
        assert "Status" not in association.send_c_store(dataset)
    until(lambda: not association.is_established)
    assert "a call was broken off: an instance of over 2 MiB" in log.lines
    send(study.paths, us(receiver), ae_title=PACS.ae_title)
    taken.wait(NUM_SLICES)


def test_a_full_disk_is_told(receive: Callable[..., Receiver], study: Study, taken: Taken, log: Log) -> None:
    receiver = receive(least_free_bytes=2**60)
    with pytest.raises(Unavailable, match=r"refused file 1 of 6: out of resources \(0xA700\); send all of them again"):
        send(study.paths, us(receiver), ae_title=PACS.ae_title)
    time.sleep(0.5)
    assert taken.calls == []
    assert any("was refused: the disk has less than" in line for line in log.lines)


@pytest.mark.filterwarnings(LEAK)
def test_leftovers_are_taken_up_at_the_next_start(
    receive: Callable[..., Receiver], study: Study, taken: Taken, tmp_path: Path, log: Log
) -> None:
    first = receive(quiet_seconds=60.0)
    send(study.paths, us(first), ae_title=PACS.ae_title)
    first.stop()
    with pytest.raises(Unavailable, match="does not answer at port"):
        send(study.paths, us(first), ae_title=PACS.ae_title)
    assert taken.calls == []
    second = receive()
    np.testing.assert_array_equal(read_series(taken.wait(NUM_SLICES)).volume.array, study.volume.array)
    second.stop()
    receive(peers=[Peer("OTHER", "127.0.0.1")])  # what was taken is not handed on again
    time.sleep(0.5)
    assert len(taken.calls) == 1


def test_a_series_of_nobody_is_removed(
    receive: Callable[..., Receiver], study: Study, tmp_path: Path, log: Log
) -> None:
    first = receive(quiet_seconds=60.0)
    send(study.paths[:1], us(first), ae_title=PACS.ae_title)
    first.stop()
    receive(peers=[Peer("OTHER", "127.0.0.1")])
    until(lambda: "a series from ORTHANC@127.0.0.1, which is no peer any more, was removed" in log.lines)
    until(lambda: not list((tmp_path / "arrivals").iterdir()))


def test_what_on_series_raises(
    receive: Callable[..., Receiver], study: Study, taken: Taken, tmp_path: Path, log: Log
) -> None:
    receiver = receive(retry_seconds=0.2)
    taken.raises.append(Unavailable("100 jobs are waiting"))
    send(study.paths[:1], us(receiver), ae_title=PACS.ae_title)
    taken.wait(1)
    assert len(taken.names) == 2
    assert len(set(taken.names)) == 1  # its folder is a key for idempotency
    taken.raises.append(ValueError("Wodehouse"))
    other = tmp_path / "other.dcm"
    dataset = pydicom.dcmread(study.paths[0])
    dataset.SeriesInstanceUID = generate_uid()
    dataset.save_as(other)
    send([other], us(receiver), ae_title=PACS.ae_title)
    until(lambda: any("was removed: builtins.ValueError at " in line for line in log.lines))
    assert says_nothing_of(study, "\n".join(line for line in log.lines if "was removed" in line))
    until(lambda: len(list((tmp_path / "arrivals").glob("*.json"))) == 1)  # the first, kept for late instances


def test_a_stop_waits_for_on_series(receive: Callable[..., Receiver], study: Study) -> None:
    reached, ended = threading.Event(), threading.Event()

    def slow(folder: Path, peer: Peer) -> None:
        reached.set()
        time.sleep(0.3)
        ended.set()

    receiver = receive(on_series=slow)
    send(study.paths[:1], us(receiver), ae_title=PACS.ae_title)
    assert reached.wait(10)
    receiver.stop()
    assert ended.is_set()


def test_a_series_that_a_stop_interrupts_is_taken_up_at_the_next_start(
    receive: Callable[..., Receiver], study: Study, taken: Taken
) -> None:
    reached, go = threading.Event(), threading.Event()

    def closed(folder: Path, peer: Peer) -> None:
        reached.set()
        go.wait(10)
        raise ValueError("the database is closed")

    receiver = receive(on_series=closed)
    send(study.paths[:2], us(receiver), ae_title=PACS.ae_title)
    assert reached.wait(10)
    stop = threading.Thread(target=receiver.stop)
    stop.start()
    until(receiver._stopping.is_set)
    go.set()
    stop.join()
    receive()
    taken.wait(2)


def test_settings_that_are_not_allowed(tmp_path: Path, taken: Taken) -> None:
    options: dict[str, Any] = {"folder": tmp_path, "on_series": taken, "peers": [PACS]}
    for title in ("", "A" * 17, " A", "Ä", "A\\B", "A\n"):
        with pytest.raises(ConfigError, match="AE title"):
            Receiver(title, 0, **options)
    for peers in ([], [PACS, Peer("ORTHANC", "127.0.0.1", 5)]):
        with pytest.raises(ConfigError, match="name each node that may send once"):
            Receiver(US, 0, **(options | {"peers": peers}))
    with pytest.raises(ConfigError, match=r"quiet_seconds=0.*allowed is more than 0"):
        Receiver(US, 0, quiet_seconds=0, **options)
    with pytest.raises(ConfigError, match="a port from 1 to 65535; the port is 0"):
        Peer("A", "127.0.0.1", 0)


def test_a_port_that_is_taken(receive: Callable[..., Receiver], tmp_path: Path, taken: Taken) -> None:
    port = receive().port
    second = Receiver(US, port, peers=[PACS], folder=tmp_path / "second", on_series=taken)
    with pytest.raises(Unavailable, match=rf"port {port} of 127.0.0.1 cannot be listened on"):
        second.start()
    second.stop()
