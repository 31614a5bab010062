"""The service as a node of the DICOM network: a series comes in, its segmentation goes back, through a kill in between."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import SegmentationStorage  # type: ignore[attr-defined]

from core import registry
from core.inference.model import build
from tests.bento import kill, start, stop, wait_until_ready
from tests.servers import free_port
from tests.verticals.medical.uploads import Client, large, small, until
from verticals.medical.connect.receiver import Peer, send
from verticals.medical.ct import APPLICATION
from verticals.medical.dicom.write import write_series
from verticals.medical.nifti import read_labels, read_nifti, write_nifti

US, PACS = "VERTICALS", "PACS"


@contextmanager
def archive(port: int) -> Iterator[list[pydicom.Dataset]]:
    """A PACS that takes segmentations, and what came."""
    taken: list[pydicom.Dataset] = []

    def store(event: evt.Event) -> int:
        taken.append(event.dataset)
        return 0

    node = AE(PACS)
    node.add_supported_context(SegmentationStorage, ExplicitVRLittleEndian)
    server = node.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield taken
    finally:
        assert server is not None
        server.shutdown()


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_results_go_back_and_jobs_go_on_after_a_kill(trained_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained_home, home)
    ours, theirs = free_port(), free_port()
    environment = {
        "VERTICALS_DICOM_AE": US,
        "VERTICALS_DICOM_PORT": str(ours),
        "VERTICALS_DICOM_PEERS": f"{PACS}@127.0.0.1:{theirs}",
        "VERTICALS_DICOM_QUIET_SECONDS": "0.5",
    }
    write_series(small(), tmp_path / "series", patient_name="Someone^Else")
    write_nifti(large(72), tmp_path / "large.nii.gz")
    running = start("verticals.medical:svc", tmp_path / "first", home, environment=environment)
    try:
        wait_until_ready(running)
        send(sorted((tmp_path / "series").iterdir()), Peer(US, "127.0.0.1", ours), ae_title=PACS)
        until(lambda: "the result of job" in running.log.read_text())  # it is made, and the PACS is away
        assert "has to wait: PACS@127.0.0.1 does not answer" in running.log.read_text()
        with httpx.Client(base_url=running.url, timeout=60) as http:
            client = Client(http)
            job = client.submitted(tmp_path / "large.nii.gz", formats="nifti", key="large")
            client.until(job, "running", progress=0.01)
        kill(running)
    finally:
        stop(running)
    with archive(theirs) as taken:
        running = start("verticals.medical:svc", tmp_path / "second", home, environment=environment)
        try:
            wait_until_ready(running)
            until(lambda: len(taken) == 1)
            with httpx.Client(base_url=running.url, timeout=60) as http:
                client = Client(http)
                assert client.until(job, "done")["state"] == "done"
                mask = client.result(job, "nifti").content
                assert client.submitted(tmp_path / "large.nii.gz", formats="nifti", key="large") == job
        finally:
            stop(running)
    source = pydicom.dcmread(next((tmp_path / "series").iterdir()))
    assert (taken[0].Modality, taken[0].PatientName) == ("SEG", "Someone^Else")
    assert taken[0].FrameOfReferenceUID == source.FrameOfReferenceUID
    assert len(taken) == 1
    gc.collect()  # pynetdicom leaves the socket of a connection that was cut
    left = [path for path in (home / "verticals/medical/node").rglob("seg.dcm")]
    assert left == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(home))
        version = registry.resolve("medical.ct")
    _, predictor = build(APPLICATION, version.path, version.version)
    (expected,) = predictor([read_nifti(tmp_path / "large.nii.gz")])
    (tmp_path / "mask.nii.gz").write_bytes(mask)
    assert (read_labels(tmp_path / "mask.nii.gz").array == expected.mask.array).all()
