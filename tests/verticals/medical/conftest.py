"""One debug model in production for all tests of the service, a service that runs with it, and scans as clients send them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from pipelines.train import train
from tests.bento import Server, start, stop, wait_until_ready
from tests.verticals.medical.scan_jobs import Brightness
from tests.verticals.medical.uploads import Client, large, small, zipped
from verticals.medical.ct.predictor import CtPredictor
from verticals.medical.jobs import ScanJobs
from verticals.medical.nifti import write_nifti
from verticals.medical.settings import Settings

NAME = "medical.ct"
SEGMENT_SECONDS = 3.0


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry; who changes it takes a copy."""
    folder = tmp_path_factory.mktemp("medical") / "home"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # surface-distance imports names that scipy has moved
        patch.setenv("BENTOML_HOME", str(folder))
        settings = ["fit.epochs=2", "sampler.num_batches=10"]
        train(NAME, recipe="debug", settings=settings, runs=str(folder.parent / "runs"), alias="production")
    return folder


@pytest.fixture(scope="session")
def server(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home") / "copy"
    shutil.copytree(trained_home, home)
    settings = {"VERTICALS_SEGMENT_SECONDS": str(SEGMENT_SECONDS), "VERTICALS_UPLOAD_GB": "0.02"}
    running = start("verticals.medical:svc", tmp_path_factory.mktemp("server"), home, environment=settings)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop(running)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield Client(http)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small scan as NIfTI and as DICOM, and a large one."""
    folder = tmp_path_factory.mktemp("files")
    write_nifti(small(), folder / "small.nii.gz")
    zipped(small(), folder / "small.zip", patient_name="Someone^Else")
    write_nifti(large(), folder / "large.nii.gz")
    write_nifti(large(80), folder / "medium.nii.gz")
    return folder


@pytest.fixture
def model() -> Brightness:
    return Brightness()


@pytest.fixture
def opened(tmp_path: Path, model: Brightness) -> Iterator[Callable[..., ScanJobs]]:
    """Opens the jobs in one folder, again and again; what is open is stopped at the end."""
    made: list[ScanJobs] = []

    def make(**changes: Any) -> ScanJobs:
        given: dict[str, Any] = {
            "folder": tmp_path / "work",
            "threads": 1,
            "upload_bytes": 10**9,
            "most_waiting": 5,
            "queue_bytes": 10**9,
            "segment_seconds": 1.0,
            "keep_seconds": 100.0,
            "node": None,
            **changes,
        }
        made.append(ScanJobs(Settings(**given), lambda: cast(CtPredictor, model)))
        return made[-1]

    yield make
    for one in made:
        one.stop()
