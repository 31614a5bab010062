"""A small CT series with a patient's name in it, its segmentation, and an archive that both go to and come from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydicom.uid import generate_uid

from tests.servers import Orthanc
from verticals.medical.dicom.seg import write_seg
from verticals.medical.dicom.series import read_series
from verticals.medical.dicom.write import write_series
from verticals.medical.labels import structures
from verticals.medical.volume import Grid, Volume

NAME = "Wodehouse^Pelham"
NUM_SLICES = 6


@dataclass(frozen=True)
class Study:
    study_uid: str
    series_uid: str
    paths: list[Path]
    seg: Path
    volume: Volume


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One CT series of 6 slices and a segmentation of it, of a study of its own."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    array = np.random.default_rng(0).integers(-1000, 1000, (12, 10, NUM_SLICES)).astype(np.int16)
    volume = Volume(array, Grid((12, 10, NUM_SLICES), affine))
    study_uid, series_uid = str(generate_uid()), str(generate_uid())
    folder = tmp_path / "series"
    write_series(volume, folder, patient_name=NAME, study_uid=study_uid, series_uid=series_uid)
    paths = sorted(folder.iterdir())
    series = read_series(folder)
    mask = np.zeros(series.volume.array.shape, np.uint8)
    mask[3:6, 3:6, 1:4] = 1
    seg = tmp_path / "seg.dcm"
    write_seg(
        Volume(mask, series.volume.grid),
        series.sources,
        structures({"background": 0, "brain": 1}),
        seg,
        algorithm="test",
        version="1",
    )
    return Study(study_uid, series_uid, paths, seg, series.volume)


class Log(logging.Handler):
    """Everything that any logger of ours or of a library says."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[Log]:
    """At DEBUG, from before the code under test begins."""
    handler, root = Log(), logging.getLogger()
    names = ("pynetdicom", "pydicom", "dicomweb_client", "urllib3", "verticals", "core")
    before = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in names}
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).propagate = True
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    for name, (own, propagate) in before.items():
        logging.getLogger(name).setLevel(own)
        logging.getLogger(name).propagate = propagate


def says_nothing_of(study: Study, text: str) -> bool:
    """Whether a text is free of the patient, of UIDs and of file names."""
    hidden = ("Wodehouse", study.study_uid, study.series_uid, *(path.name for path in study.paths), "seg.dcm")
    return not any(word in text for word in hidden)


@dataclass(frozen=True)
class Archive:
    """Orthanc's own REST API."""

    orthanc: Orthanc
    client: httpx.Client

    def modalities_of(self, study: Study) -> dict[str, int]:
        """Instances of the study's series, by modality."""
        query = {"Level": "Series", "Query": {"StudyInstanceUID": study.study_uid}, "Expand": True}
        found: list[dict[str, Any]] = self.client.post("/tools/find", json=query).raise_for_status().json()
        return {one["MainDicomTags"]["Modality"]: len(one["Instances"]) for one in found}

    def add(self, path: Path) -> None:
        self.client.post("/instances", content=path.read_bytes()).raise_for_status()

    def knows(self, name: str, ae_title: str, port: int) -> None:
        """A node that the archive takes from and sends to."""
        self.client.put(f"/modalities/{name}", json=[ae_title, "127.0.0.1", port]).raise_for_status()

    def sends(self, study: Study, name: str, *, modality: str = "CT") -> bool:
        """Sends a series by C-STORE; whether the node took it."""
        query = {"Level": "Series", "Query": {"StudyInstanceUID": study.study_uid, "Modality": modality}}
        (found,) = self.client.post("/tools/find", json=query).raise_for_status().json()
        answer = self.client.post(f"/modalities/{name}/store", json={"Resources": [found], "Synchronous": True})
        return answer.status_code == 200


@pytest.fixture
def archive(orthanc: Orthanc) -> Iterator[Archive]:
    with httpx.Client(base_url=orthanc.url, timeout=30, trust_env=False) as client:
        yield Archive(orthanc, client)
