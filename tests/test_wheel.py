"""The built wheel, unpacked and used from a foreign folder: nothing may depend on the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from pipelines.train import train
from tests.bento import ROOT, start, stop, wait_until_ready


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content as a folder to import from."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "requirements/"))]
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_service_runs_from_the_wheel_in_a_foreign_folder(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("BENTOML_HOME", str(home))
    train(
        "finance.fraud", recipe="debug", settings=["fit.max_steps=4"], runs=str(tmp_path / "runs"), alias="production"
    )
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    where = subprocess.run(
        [
            sys.executable,
            "-c",
            "import verticals, core, pipelines; print(verticals.__file__, core.__file__, pipelines.__file__)",
        ],
        cwd=foreign,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert where.count(str(site)) == 3
    running = start(
        "verticals.finance:svc", tmp_path / "server", home, environment={"PYTHONPATH": str(site)}, cwd=foreign
    )
    try:
        wait_until_ready(running)
        example = {"transaction_id": "1", "time": "2026-05-04T12:30:00Z", "customer": "c", "terminal": "t", "amount": 1}
        assert httpx.post(f"{running.url}/score", json=example, timeout=30).status_code == 200
    finally:
        stop(running)


def test_the_card_travels_with_the_wheel(site: Path) -> None:
    assert (site / "verticals" / "finance" / "fraud" / "README.md").is_file()
