"""The medical service as a hospital runs it: a real `bentoml serve`, scans over HTTP."""

from __future__ import annotations

import gzip
import io
import json
import re
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest

from core import registry
from core.inference.model import build
from tests.bento import Server, start, stop
from tests.verticals.medical.uploads import Client, folders, nifti, until
from verticals.medical.ct import APPLICATION
from verticals.medical.nifti import read_nifti

NAME = "medical.ct"


def test_the_line_of_the_readme(server: Server, client: Client, files: Path) -> None:
    """And its answer is what the model says in this process."""
    before = folders(server)
    answer = client.send("/segment", files / "small.nii.gz")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))  # type: ignore[no-untyped-call]
    version = registry_of(server)
    _, predictor = build(APPLICATION, version.path, version.version)
    scan = read_nifti(files / "small.nii.gz")
    (expected,) = predictor([scan])
    assert np.asarray(mask.dataobj).max() > 0
    assert (np.asarray(mask.dataobj) == expected.mask.array).all()
    assert np.allclose(mask.affine, scan.grid.affine, atol=1e-4)
    assert folders(server) == before


def registry_of(server: Server) -> registry.Version:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(server.home))
        return registry.resolve(NAME)


def test_a_dicom_series_comes_back_as_a_segmentation_of_its_patient(client: Client, files: Path) -> None:
    answer = client.send("/segment", files / "small.zip")
    assert answer.status_code == 200, answer.text
    found = pydicom.dcmread(io.BytesIO(answer.content))
    source = pydicom.dcmread(next((files / "small").iterdir()))
    assert (found.Modality, found.PatientName) == ("SEG", "Someone^Else")
    assert found.FrameOfReferenceUID == source.FrameOfReferenceUID


def test_a_job_from_its_submission_to_every_file(server: Server, client: Client, files: Path) -> None:
    before = folders(server)
    answer = client.send("/submit", files / "small.zip", key="first")
    assert answer.status_code == 202
    given = answer.json()
    assert given["state"] in ("queued", "running")
    assert given["promised_gb"] > 0
    assert given["promised_seconds"] > 0
    status = client.until(given["job"], "done")
    assert status["version"] == registry_of(server).version
    assert set(status["files"]) == {"mask.nii.gz", "seg.dcm", "rtstruct.dcm", "preview.png", "answer.json"}
    kinds = {"nifti": b"\x1f\x8b", "seg": bytes(128) + b"DICM", "rtstruct": bytes(128) + b"DICM", "preview": b"\x89PNG"}
    for format, start_of_file in kinds.items():
        assert client.result(given["job"], format).content.startswith(start_of_file)
    record = client.result(given["job"], "json")
    assert record.headers["content-type"] == "application/json"
    assert record.json()["version"] == status["version"]
    everything = client.result(given["job"], "zip")
    with zipfile.ZipFile(io.BytesIO(everything.content)) as archive:
        assert set(archive.namelist()) == set(status["files"])
        assert json.loads(archive.read("answer.json")) == record.json()
    assert folders(server) == {*before, given["job"]}
    again = client.send("/submit", files / "small.zip", key="first")
    assert again.json()["job"] == given["job"]
    other = client.send("/submit", files / "small.nii.gz", key="first")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
    assert folders(server) == {*before, given["job"]}


def test_only_what_was_asked_for_is_made(client: Client, files: Path) -> None:
    job = client.submitted(files / "small.nii.gz", formats="nifti, preview")
    assert client.until(job, "done")["files"] == ["mask.nii.gz", "preview.png", "answer.json"]
    refused = client.result(job, "seg")
    assert refused.status_code == 422
    assert "there are nifti, preview, json, zip" in refused.text


def test_a_job_waits_its_turn_can_be_cancelled_and_holds_up_what_is_answered_at_once(
    server: Server, client: Client, files: Path
) -> None:
    before = folders(server)
    first, second = client.submitted(files / "large.nii.gz"), client.submitted(files / "large.nii.gz")
    running = client.until(first, "running")
    assert client.status(second)["position"] == 1
    assert client.status(second)["promised_seconds"] > running["promised_seconds"]
    unfinished = client.result(first, "nifti").json()["error"]
    assert (unfinished["code"], unfinished["state"]) == ("conflict", "running")
    too_long = client.send("/segment", files / "large.nii.gz")
    assert too_long.status_code == 413
    assert "send it to /submit" in too_long.text
    waited = client.send("/segment", files / "small.nii.gz")  # as long as it may, then it is told so
    assert (waited.status_code, waited.json()["error"]["code"]) == (429, "overloaded")
    assert waited.headers["retry-after"] == "1"
    assert client.http.post("/cancel", json={"job": second}).json()["state"] == "cancelled"
    client.until(first, "running", progress=0.01)
    began = time.monotonic()
    client.http.post("/cancel", json={"job": first})
    assert client.until(first, "cancelled")["progress"] < 1
    assert time.monotonic() - began < 5
    assert client.result(first, "nifti").json()["error"]["state"] == "cancelled"
    until(lambda: folders(server) == before)


def test_a_job_ends_with_the_model_that_it_began_with(
    server: Server, client: Client, files: Path, trained_home: Path
) -> None:
    old = registry_of(server)
    first = client.submitted(files / "medium.nii.gz", formats="nifti")
    client.until(first, "running")
    (run,) = (trained_home.parent / "runs" / NAME).iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(server.home))
        new = registry.register(run, NAME)
        registry.set_alias(NAME, "production", new)
    assert client.until(first, "done")["version"] == old.version
    for _ in range(20):
        later = client.until(client.submitted(files / "small.nii.gz", formats="nifti"), "done")
        if later["version"] == new:
            break
        time.sleep(0.3)
    assert later["version"] == new


def test_many_clients_at_once_all_get_their_own_answer(server: Server, tmp_path: Path) -> None:
    def run(number: int) -> tuple[int, ...]:
        scan = nifti(np.full((10 + number, 9, 8), 40, np.int16), tmp_path / f"{number}.nii")
        with httpx.Client(base_url=server.url, timeout=60) as http:
            client = Client(http)
            job = client.submitted(scan, formats="nifti")
            client.until(job, "done")
            mask = gzip.decompress(client.result(job, "nifti").content)
            return tuple(nib.Nifti1Image.from_bytes(mask).shape)  # type: ignore[no-untyped-call]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(run, range(8))) == [(10 + number, 9, 8) for number in range(8)]


def test_an_unknown_job_is_404_whatever_is_asked(client: Client) -> None:
    for endpoint in ("/status", "/result", "/cancel"):
        for job in ("0" * 32, "../../etc", ""):
            answer = client.http.post(endpoint, json={"job": job})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_job")


def test_its_description_names_every_endpoint(client: Client) -> None:
    paths = client.http.get("/docs.json").json()["paths"]
    assert {"/submit", "/status", "/result", "/cancel", "/segment"} <= set(paths)
    assert "multipart/form-data" in paths["/submit"]["post"]["requestBody"]["content"]


def test_metrics_count_answers_and_jobs(client: Client) -> None:
    text = client.http.get("/metrics").text
    assert f'verticals_prediction_total{{application="{NAME}",decision="segmented"' in text
    assert f'verticals_jobs{{application="{NAME}",state="done"}}' in text


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"VERTICALS_MEMORY_GB": "much"}, "VERTICALS_MEMORY_GB is 'much'; allowed is a number above 0"),
        ({"VERTICALS_DICOM_AE": "US"}, "VERTICALS_DICOM_PEERS names no node that may send"),
        ({"VERTICALS_JOBS": "/proc/none"}, "jobs cannot be kept in /proc/none"),
    ],
)
def test_it_refuses_to_start_with_one_line(
    trained_home: Path, tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    running = start("verticals.medical:svc", tmp_path, trained_home, environment=settings)
    try:
        assert running.process.wait(60) == 1
    finally:
        stop(running)
    log = running.log.read_text()
    assert line in log
    assert len(log.strip().splitlines()) == 1


def test_it_does_not_start_where_it_could_hold_no_scan(trained_home: Path, tmp_path: Path) -> None:
    environment = {"VERTICALS_MEMORY_GB": "0.1", "VERTICALS_JOBS": str(tmp_path / "jobs")}
    running = start("verticals.medical:svc", tmp_path / "run", trained_home, environment=environment)
    try:
        running.process.wait(90)
    finally:
        stop(running)
    line = r"a scan of one window needs \d\.\d\d GB of memory here, .*; allowed are 0\.10 GB: raise VERTICALS_MEMORY_GB"
    assert re.search(line, running.log.read_text())


def test_a_second_service_on_the_same_jobs_says_so_and_ends(server: Server, tmp_path: Path) -> None:
    running = start("verticals.medical:svc", tmp_path, server.home)
    try:
        assert running.process.wait(60) == 1
    finally:
        stop(running)
    assert "is being written by process" in running.log.read_text()
