"""What identifies a patient, or what a client calls its files, is nowhere but in that patient's own finished result.

A real service, through success, refusal, failure, cancelling, a kill in the middle, and a restart; then every file, log line,
metric and error answer is searched.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.bento import Server, kill, start, stop, wait_until_ready
from tests.verticals.medical.phantoms import edited, setting
from tests.verticals.medical.uploads import Client, large, nifti, packed, small, until, zipped
from verticals.medical.dicom.write import write_series

FAMILY, GIVEN, ID, BORN = "Wodehouse", "Pelham", "PX-771942", "19371231"
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.771942.1", "1.2.826.0.1.3680043.8.498.771942.2"
SECRETS = (FAMILY, GIVEN, ID, BORN, STUDY, SERIES, "771942")
OWN = ("seg.dcm", "rtstruct.dcm")
"""Results that belong to the patient, and say so."""


def named(folder: Path) -> None:
    """Puts the rest of the patient into the headers."""
    edited(folder, setting(PatientID=ID, PatientBirthDate=BORN, AccessionNumber=f"{FAMILY}-1", StudyID=ID))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not packed, so that what is in them could be found on the disk."""
    folder = tmp_path_factory.mktemp("scans")
    options = {"patient_name": f"{FAMILY}^{GIVEN}", "study_uid": STUDY, "series_uid": SERIES}
    for name in ("good", "broken", "resonance"):
        write_series(small(), folder / name, **options)  # type: ignore[arg-type]
        named(folder / name)
    edited(folder / "resonance", setting(Modality="MR"))
    broken = sorted((folder / "broken").iterdir())[7]
    broken.write_bytes(broken.read_bytes()[:-500])
    for name in ("good", "broken", "resonance"):
        packed(folder / name, folder / f"{FAMILY}_{name}.zip", prefix=f"{FAMILY}_{GIVEN}/{ID}-")
    packed(folder / "good", folder / f"{FAMILY}_climbs.zip", prefix=f"../{FAMILY}/")
    zipped(large(64), folder / f"{FAMILY}_large.zip", prefix=f"{GIVEN}/", **options)
    description = f"{FAMILY} {GIVEN} {ID}"
    nifti(large(112).array, folder / f"{FAMILY}.nii", description=description)
    nifti(np.zeros((8, 8, 8, 2), np.int16), folder / f"{FAMILY}_4d.nii", description=description)
    return folder


class Watched:
    """A service, all of whose writing is below one folder, and the error answers that it gave."""

    def __init__(self, trained_home: Path, folder: Path) -> None:
        self.folder = folder
        self.answers: list[str] = []
        shutil.copytree(trained_home, folder / "home")
        self.server: Server | None = None
        self.clients: list[httpx.Client] = []

    def begin(self, **settings: str) -> Client:
        for name in ("tmp", "prometheus", "user"):
            (self.folder / name).mkdir(exist_ok=True)
        environment = {
            "TMPDIR": str(self.folder / "tmp"),
            "PROMETHEUS_MULTIPROC_DIR": str(self.folder / "prometheus"),
            "HOME": str(self.folder / "user"),
            **settings,
        }
        number = len(list(self.folder.glob("server-*")))
        target = "verticals.medical:svc"
        place = self.folder / f"server-{number}"
        self.server = start(target, place, self.folder / "home", environment=environment)
        wait_until_ready(self.server)
        hooks = {"response": [self._noted]}
        self.clients.append(httpx.Client(base_url=self.server.url, timeout=60, event_hooks=hooks))  # type: ignore[arg-type]
        return Client(self.clients[-1])

    def _noted(self, response: httpx.Response) -> None:
        if response.status_code >= 400 or response.request.url.path in ("/status", "/submit", "/cancel", "/metrics"):
            self.answers.append(response.read().decode() + str(dict(response.headers)))

    def paths(self) -> list[Path]:
        """All folders and files; what is removed meanwhile is left out."""
        return [Path(place) / name for place, folders, files in os.walk(self.folder) for name in (*folders, *files)]

    def found(self) -> dict[str, set[str]]:
        """Where which secret is, by the last part of the file's name."""
        found: dict[str, set[str]] = {}
        for path in self.paths():
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:  # removed meanwhile
                continue
            hits = {word for word in SECRETS if word in str(path.relative_to(self.folder)) or word.encode() in content}
            if hits:
                found.setdefault(path.name, set()).update(hits)
        for word in SECRETS:
            if any(word in answer for answer in self.answers):
                found.setdefault("an answer", set()).add(word)
        return found


@pytest.fixture(scope="module")
def watched(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = Watched(trained_home, tmp_path_factory.mktemp("watched"))
    yield made
    for client in made.clients:
        client.close()
    if made.server is not None:
        stop(made.server)


def test_nothing_of_a_patient_is_left_but_its_own_result(watched: Watched, scans: Path) -> None:
    client = watched.begin()
    done = client.submitted(scans / f"{FAMILY}_good.zip", key=f"{FAMILY}-key")
    assert client.until(done, "done")["files"]
    assert client.send("/segment", scans / f"{FAMILY}_good.zip").status_code == 200
    for name in ("resonance", "climbs"):
        for endpoint in ("/submit", "/segment"):
            assert client.send(endpoint, scans / f"{FAMILY}_{name}.zip").status_code == 422
    assert client.send("/submit", scans / f"{FAMILY}_4d.nii").status_code == 422
    assert client.send("/segment", scans / f"{FAMILY}_broken.zip").status_code == 422
    assert client.send("/submit", scans / f"{FAMILY}_good.zip", formats=FAMILY).status_code == 400
    failed = client.submitted(scans / f"{FAMILY}_broken.zip")
    client.until(failed, "failed")
    client.result(failed, "nifti")
    client.result(done, FAMILY)
    client.http.post("/status", json={"job": FAMILY, GIVEN: ID})
    client.http.post("/submit", content=f"--x\r\n{FAMILY}: {ID}", headers={"Content-Type": f"multipart/{GIVEN}"})
    client.http.get(f"/{FAMILY}?{ID}")
    cancelled = client.submitted(scans / f"{FAMILY}.nii", formats="nifti")
    client.until(cancelled, "running", progress=0.01)
    client.http.post("/cancel", json={"job": cancelled})
    client.until(cancelled, "cancelled")
    client.http.get("/metrics")
    until(lambda: set(watched.found()) <= set(OWN))
    assert set(watched.found()) == set(OWN)

    assert watched.server is not None
    half = (scans / f"{FAMILY}.nii").read_bytes()[:2_500_000]
    with socket.create_connection(("127.0.0.1", int(watched.server.url.rpartition(":")[2])), 5) as upload:
        head = f'--x\r\nContent-Disposition: form-data; name="scan"; filename="{FAMILY}.nii"\r\n\r\n'.encode()
        lines = "POST /submit HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        upload.sendall(f"{lines}Content-Length: {2 * len(half)}\r\n\r\n".encode() + head + half)
        until(lambda: any(path.stat().st_size > 10**6 for path in watched.paths() if path.name == "scan"))
        running = client.submitted(scans / f"{FAMILY}_large.zip", formats="seg", key=f"{FAMILY}-large")
        waiting = client.submitted(scans / f"{FAMILY}_good.zip", formats="seg")
        client.until(running, "running")
        kill(watched.server)
    assert "scan" in watched.found()  # of the half upload: this is what has to go

    client = watched.begin()
    for job in (running, waiting):
        client.until(job, "done")
    until(lambda: set(watched.found()) <= set(OWN))
    stop(watched.server)

    client = watched.begin(VERTICALS_JOBS_KEEP_HOURS="0.0003")
    until(lambda: client.http.post("/status", json={"job": waiting}).status_code == 404)
    until(lambda: not watched.found())
    until(lambda: not list((watched.folder / "home/verticals/medical/jobs/files").iterdir()))
    stop(watched.server)
    time.sleep(0.2)
    assert watched.found() == {}
