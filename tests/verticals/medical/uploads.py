"""Scans as clients send them, whole and spoiled, and a client of the service."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np

from tests.bento import Server
from verticals.medical.ct.synthetic import SyntheticConfig, phantom
from verticals.medical.dicom.write import write_series
from verticals.medical.volume import Grid, Volume

SMALL = SyntheticConfig(shape=(32, 32, 32), spacing_mm=(6.0, 6.0))


def small() -> Volume:
    """Few windows of the debug model."""
    return phantom(SMALL, 3)[0]


def large(size: int = 112) -> Volume:
    """Soft tissue everywhere, so that every window counts: seconds of work, in a file of 3 MB."""
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    return Volume(np.full((size, size, size), 40, np.int16), Grid((size, size, size), affine))


def packed(folder: Path, target: Path, *, prefix: str = "series/", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for number, path in enumerate(sorted(folder.rglob("*.dcm"))):
            archive.write(path, f"{prefix}{number:04d}.dcm")
    return target


def zipped(volume: Volume, target: Path, *, prefix: str = "series/", **options: Any) -> Path:
    """The volume as a DICOM series in an archive."""
    folder = target.with_suffix("")
    write_series(volume, folder, **options)
    return packed(folder, target, prefix=prefix)


def nifti(array: np.ndarray, target: Path, *, affine: np.ndarray | None = None, description: str = "") -> Path:
    image = nib.Nifti1Image(array, np.diag([6.0, 6.0, 6.0, 1.0]) if affine is None else affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    image.header["descrip"] = description.encode()
    image.header["aux_file"] = description[:23].encode()
    image.to_filename(str(target))  # type: ignore[no-untyped-call]
    return target


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def folders(server: Server) -> set[str]:
    """Whatever scans and answers lie on the disk."""
    return {path.name for path in (server.home / "verticals" / "medical" / "jobs" / "files").iterdir()}


@dataclass
class Client:
    """Of a running service."""

    http: httpx.Client

    def send(self, endpoint: str, scan: Path, **fields: str) -> httpx.Response:
        with scan.open("rb") as file:
            return self.http.post(endpoint, files={"scan": (scan.name, file)}, data=fields)

    def submitted(self, scan: Path, **fields: str) -> str:
        answer = self.send("/submit", scan, **fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"])

    def status(self, job: str) -> dict[str, Any]:
        answer = self.http.post("/status", json={"job": job})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def until(self, job: str, *states: str, seconds: float = 60, progress: float = 0.0) -> dict[str, Any]:
        """The job's status once it is in one of the states, and so far done."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.status(job)
            if status["state"] in states and status["progress"] >= progress:
                return status
            time.sleep(0.05)
        raise AssertionError(status)

    def result(self, job: str, format: str) -> httpx.Response:
        return self.http.post("/result", json={"job": job, "format": format})
