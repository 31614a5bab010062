"""Scans are told by what is in them, whatever they are called; what is none is refused."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from core.errors import DataError, VerticalsError
from tests.verticals.medical.answers import grid_of, scan_on
from verticals.medical import scan as scans
from verticals.medical.dicom.series import Series
from verticals.medical.dicom.write import write_series
from verticals.medical.nifti import write_nifti
from verticals.medical.scan import opened, volume_of
from verticals.medical.volume import Volume

SCAN = scan_on(grid_of("oblique"))
KINDS = ("folder", "zip", "zip of a folder", "nii.gz", "nii", "nii called zip", "zip called nii.gz")


def made(kind: str, folder: Path) -> Path:
    """The scan in one of its forms."""
    if "nii" in kind and not kind.startswith("zip"):
        write_nifti(SCAN, folder / ("scan.nii" if kind == "nii" else "scan.nii.gz"))
        return (folder / "scan.nii.gz").rename(folder / "scan.zip") if kind.endswith("zip") else next(folder.iterdir())
    write_series(SCAN, folder / "series", seed=2)
    if kind == "folder":
        return folder / "series"
    path = folder / ("scan.nii.gz" if kind.endswith("nii.gz") else "scan.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((folder / "series").iterdir()):
            archive.write(file, f"DICOM/PAT1/{file.name}" if "folder" in kind else file.name)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_scan_is_the_same_scan(kind: str, tmp_path: Path) -> None:
    with opened(made(kind, tmp_path)) as scan:
        read = scan.read()
        volume = volume_of(read)
        assert scan.grid.same_as(volume.grid, tolerance_mm=0)
        assert isinstance(read, Volume if "nii" in kind and not kind.startswith("zip") else Series)
        assert scan.is_dicom == isinstance(read, Series)
    for index in ((0, 0, 0), (5, 7, 9), (36, 30, 26)):
        there = volume.grid.index(SCAN.grid.world(np.array(index)))
        nearest = np.rint(there).astype(int)
        assert np.abs(there - nearest).max() < 1e-3
        assert volume.array[tuple(nearest)] == SCAN.array[index]


@pytest.mark.parametrize("kind", KINDS)
def test_headers_are_enough_for_a_promise(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(kind, tmp_path)
    for name in ("read_series", "read_nifti"):
        monkeypatch.setattr(scans, name, lambda *_: pytest.fail("voxels were read"))
    with opened(path) as scan:
        assert scan.grid.num_voxels == SCAN.grid.num_voxels


def unpacked() -> set[Path]:
    import tempfile

    return set(Path(tempfile.gettempdir()).glob("series-*"))


def test_what_an_archive_is_unpacked_to_is_gone_after_an_exception_too(tmp_path: Path) -> None:
    path, before = made("zip", tmp_path), unpacked()
    with opened(path) as scan:
        assert len(unpacked() - before) == 1
        assert scan.read()
    assert unpacked() == before
    with pytest.raises(ZeroDivisionError), opened(path):
        raise ZeroDivisionError
    assert unpacked() == before


@pytest.fixture(
    params=["nowhere", "picture", "text", "empty", "packed text", "empty folder", "empty archive", "one slice"]
)
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """What is no scan, and what has to be said of it."""
    path = tmp_path / "Klara.bin"
    content, words = {
        "nowhere": (None, "there is no such file or folder"),
        "picture": (b"\x89PNG" * 100, "the file is no scan; give a NIfTI file"),
        "text": (b"what was found", "the file is no scan"),
        "empty": (b"", "is empty"),
        "packed text": (gzip.compress(b"what was found" * 99), "no NIfTI file"),
        "empty folder": (None, "no file there"),
        "empty archive": (b"PK\x05\x06" + bytes(18), "no file|archive"),
        "one slice": (None, "a single slice"),
    }[request.param]
    if content is not None:
        path.write_bytes(content)
    elif request.param == "empty folder":
        path.mkdir()
    elif request.param == "one slice":
        write_series(SCAN, tmp_path / "series")
        path = sorted((tmp_path / "series").iterdir())[0]
    return path, words


def test_what_is_no_scan_is_refused_by_name_and_without_its_name(bad: tuple[Path, str]) -> None:
    path, words = bad
    with pytest.raises(VerticalsError, match=words) as caught, opened(path):
        pytest.fail("it was opened")
    assert "Klara" not in str(caught.value)
    assert isinstance(caught.value, DataError)
