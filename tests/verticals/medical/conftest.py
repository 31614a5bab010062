"""One debug model in production for all tests of the service, a service that runs with it, and scans as clients send them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.train import train
from tests.bento import Server, start, stop, wait_until_ready
from tests.verticals.medical.uploads import Client, large, small, zipped
from verticals.medical.nifti import write_nifti

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
