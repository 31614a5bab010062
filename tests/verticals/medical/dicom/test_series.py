"""Series as they come: every way to lie in a patient, every order of files, every encoding."""

from __future__ import annotations

import base64
import logging
import os
import tempfile
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from core.errors import DataError
from tests.verticals.medical.phantoms import (
    SHAPE,
    TURNS,
    at_same_places,
    edited,
    jpeg_lossless,
    noise,
    placed,
    recompressed,
    setting,
)
from verticals.medical.dicom import headers
from verticals.medical.dicom import series as series_module
from verticals.medical.dicom.series import inspect_series, read_series
from verticals.medical.dicom.write import write_series
from verticals.medical.volume import AIR_HU, Axes, Grid, Volume, to_ras


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_all_48_orientations_keep_every_voxel_at_its_place(turn: Axes, tmp_path: Path) -> None:
    volume = noise(placed()).turned(turn)
    write_series(volume, tmp_path, seed=3)
    read = read_series(tmp_path)
    assert read.volume.array.dtype == np.int16
    assert at_same_places(volume, read.volume)
    assert at_same_places(noise(placed()), read.volume.turned(to_ras(read.volume.grid)))


def test_markers_are_found_at_their_millimetres(tmp_path: Path) -> None:
    grid = placed((40, 32, 20), angles=(12, -7, 31), tilt=11)
    volume = Volume(np.full(grid.shape, AIR_HU, np.int16), grid)
    markers = {(3, 4, 5): 300, (35, 10, 2): 900, (20, 30, 18): 1500}
    for index, hu in markers.items():
        volume.array[index] = hu
    write_series(volume, tmp_path, seed=1)
    read = read_series(tmp_path).volume
    for index, hu in markers.items():
        [found] = np.argwhere(read.array == hu)
        np.testing.assert_allclose(read.grid.world(found), grid.world(np.array(index)), atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    tilt=st.floats(-30, 30),
    turn=st.sampled_from(TURNS),
    seed=st.integers(0, 99),
)
def test_any_affine_round_trips(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], tilt: float, turn: Axes, seed: int
) -> None:
    volume = noise(placed(angles=angles, spacing=spacing, tilt=tilt), seed).turned(turn)
    with tempfile.TemporaryDirectory() as name:
        write_series(volume, Path(name), seed=seed)
        assert at_same_places(volume, read_series(Path(name)).volume)


@pytest.mark.parametrize("angles", [(0, 0, 0), (180, 0, 0), (90, 0, 90), (20, -35, 70)])
def test_affine_and_voxels_equal_highdicoms(angles: tuple[float, float, float], tmp_path: Path) -> None:
    write_series(noise(placed(angles=angles)), tmp_path, seed=5)
    read = read_series(tmp_path).volume
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in tmp_path.iterdir()])
    to_ras_mm = np.diag([-1.0, -1.0, 1.0, 1.0]) @ theirs.affine
    swapped = Grid(theirs.array.shape[::-1], to_ras_mm[:, [2, 1, 0, 3]])  # their axes are slice, row, column
    assert at_same_places(read, Volume(np.rint(theirs.array.T).astype(np.int16), swapped))


def test_sources_are_the_headers_of_the_slices_in_order(tmp_path: Path) -> None:
    write_series(noise(placed(angles=(15, 0, 0), tilt=5)), tmp_path, seed=8)
    series = read_series(tmp_path)
    assert [int(source.InstanceNumber) for source in series.sources] != [1, 2, 3, 4]
    for k, source in enumerate(series.sources):
        assert "PixelData" not in source
        position = series.volume.grid.world(np.array([0, 0, k])) * (-1, -1, 1)
        np.testing.assert_allclose([float(v) for v in source.ImagePositionPatient], position, atol=1e-9)


def test_inspection_gives_the_grid_and_reads_no_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = read_series(folder)
    monkeypatch.setattr(series_module, "hounsfield", None)
    grid = inspect_series(folder)
    assert grid.same_as(series.volume.grid, tolerance_mm=0)
    assert grid.shape == (7, 5, 6)
    np.testing.assert_allclose(grid.spacing_mm, (0.8, 0.9, 2.5))


@pytest.mark.parametrize("tilt", [-22.5, 0.5, 30])
def test_a_tilted_gantry_shears_the_grid(tilt: float, tmp_path: Path) -> None:
    write_series(noise(placed(tilt=tilt)), tmp_path)
    grid = inspect_series(tmp_path)
    normal = np.cross(grid.directions[:, 0], grid.directions[:, 1])
    assert np.degrees(np.arccos(abs(grid.directions[:, 2] @ normal))) == pytest.approx(abs(tilt))
    assert not grid.is_orthogonal


def test_slices_whose_rescale_differs(tmp_path: Path) -> None:
    volume = noise(placed())
    write_series(volume, tmp_path, intercept=-1024)
    assert pydicom.dcmread(tmp_path / "000001.dcm").PixelRepresentation == 0

    def other(dataset: pydicom.Dataset, number: int) -> None:
        stored = np.frombuffer(dataset.PixelData, "<u2").astype(np.int64)
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", str(-1024 - number)
        dataset.PixelData = (2 * (stored + number)).astype("<u2").tobytes()

    edited(tmp_path, other)
    assert at_same_places(volume, read_series(tmp_path).volume)


def test_values_are_rounded_and_held_to_int16(tmp_path: Path) -> None:
    write_series(Volume(np.full(SHAPE, 100, np.int16), placed()), tmp_path)
    edited(tmp_path, setting(RescaleSlope="0.257"), only=0)
    edited(tmp_path, setting(RescaleSlope="1e6"), only=1)
    edited(tmp_path, setting(RescaleSlope="-1e6"), only=2)
    array = read_series(tmp_path).volume.array
    assert [array[0, 0, k] for k in range(4)] == [26, 32767, -32768, 100]


def test_padding_is_air(tmp_path: Path) -> None:
    array = np.full(SHAPE, 40, np.int16)
    array[0], array[1] = -2000, -1990
    write_series(Volume(array, placed()), tmp_path)
    edited(
        tmp_path, lambda dataset, _: dataset.add_new("PixelPaddingValue", "US", 63536)
    )  # -2000, as some scanners write it
    read = read_series(tmp_path).volume.array
    assert (read[0] == AIR_HU).all()
    assert (read[1] == -1990).all()
    edited(tmp_path, lambda dataset, _: dataset.add_new("PixelPaddingRangeLimit", "SS", -1990))
    read = read_series(tmp_path).volume.array
    assert (read[:2] == AIR_HU).all()
    assert (read[2:] == 40).all()


@pytest.mark.parametrize("signed", [False, True])
def test_unused_bits_are_no_value(signed: bool, tmp_path: Path) -> None:
    volume = Volume((np.random.default_rng(0).integers(0, 4096, SHAPE) - 2048).astype(np.int16), placed())
    write_series(volume, tmp_path, intercept=0 if signed else -2048)

    def overlaid(dataset: pydicom.Dataset, _: int) -> None:
        stored = np.frombuffer(dataset.PixelData, "<u2") & 0x0FFF
        dataset.PixelData = (stored | 0x5000).astype("<u2").tobytes()
        dataset.BitsStored, dataset.HighBit = 12, 11

    edited(tmp_path, overlaid)
    assert at_same_places(volume, read_series(tmp_path).volume)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, "JPEG lossless"])
def test_compressed_pixels_are_the_same(syntax: str, signed: bool, tmp_path: Path) -> None:
    volume = noise(placed((40, 33, 3)))
    write_series(volume, tmp_path, intercept=0 if signed else -1024)
    if syntax == "JPEG lossless":
        jpeg_lossless(tmp_path)
    else:
        edited(tmp_path, lambda dataset, _: recompressed(dataset, syntax))
    assert at_same_places(volume, read_series(tmp_path).volume)


HIGH_THROUGHPUT = (
    "/0//UQApQAAAAAAGAAAABQAAAAAAAAAAAAAABgAAAAUAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QA"
    "FwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAEIAAf+TwAAmpv4CB3QAAADAABLAABMANgIHdAAu8gOHdADAABMA9/4Ay3QAwAAqQMBA4IEP4Qt2AP/Z"
)
"""A frame of 5 x 6 pixels, 97 apart from -1024 on, as the OpenJPH library writes it."""


def test_a_frame_of_high_throughput_jpeg_2000(tmp_path: Path) -> None:
    write_series(noise(placed((6, 5, 3))), tmp_path, intercept=0)

    def replaced(dataset: pydicom.Dataset, _: int) -> None:
        dataset.PixelData = encapsulate([base64.b64decode(HIGH_THROUGHPUT)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = HTJ2KLossless

    edited(tmp_path, replaced)
    array = read_series(tmp_path).volume.array
    for k in range(3):
        np.testing.assert_array_equal(array[:, :, k].T, np.arange(30).reshape(5, 6) * 97 - 1024)


def test_files_that_hold_no_image_are_skipped(folder: Path) -> None:
    before = read_series(folder).volume
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "000001.dcm").write_bytes(b"x")
    sample = pydicom.dcmread(folder / "000001.dcm")
    sample.Modality, sample.SOPClassUID = "RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"
    sample.save_as(folder / "structures.dcm")
    sample.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    sample.save_as(folder / "index")
    assert at_same_places(before, read_series(folder).volume)


def test_no_value_reaches_warnings_or_logs(
    folder: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def spoiled(dataset: pydicom.Dataset, _: int) -> None:
        dataset.StudyID = "Klara's study, much too long"
        dataset.PatientAge = "Klara"
        dataset.ReferencedSOPInstanceUIDInFile = "1.2.Klara"
        dataset.add_new("SmallestImagePixelValue", "US", 12345)
        dataset.add_new(0x00091001, "UN", b"Klara")

    level, filters = logging.getLogger("pydicom").level, list(warnings.filters)
    edited(folder, spoiled)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert b"US\x02\x0090" in content
        path.write_bytes(content.replace(b"US\x02\x0090", b"US\x03\x00abc"))  # no whole number of 16-bit values
    recwarn.clear()
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    series = read_series(folder)
    for source in series.sources:
        str(source)
    assert not caplog.records
    assert not recwarn.list
    assert "SmallestImagePixelValue" not in series.sources[0]
    assert 0x00091001 not in series.sources[0]
    assert logging.getLogger("pydicom").level == level
    assert list(warnings.filters) == filters


def test_memory_is_that_of_the_volume(tmp_path: Path) -> None:
    grid = placed((256, 256, 60))
    write_series(Volume(np.zeros(grid.shape, np.int16), grid), tmp_path)
    read_series(sorted(tmp_path.iterdir())[:2])
    tracemalloc.start()
    volume = read_series(tmp_path).volume
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.8 * volume.array.nbytes  # headers of 60 slices, and one slice in float64


def test_writing_what_does_not_fit(tmp_path: Path) -> None:
    grid = placed()
    with pytest.raises(DataError, match="16 bits hold"):
        write_series(Volume(np.full(grid.shape, 3000, np.int16), grid), tmp_path, slope=0.01)
    with pytest.raises(DataError, match="slope not 0"):
        write_series(noise(grid), tmp_path, slope=0)
    sheared = grid.affine.copy()
    sheared[:3, 1] += sheared[:3, 0] * 0.3
    sheared[:3, 2] += sheared[:3, 0] * 0.3 + sheared[:3, 1] * 0.3
    with pytest.raises(DataError, match="no two axes"):
        write_series(noise(Grid(grid.shape, sheared)), tmp_path)


def test_uids_that_are_given(tmp_path: Path) -> None:
    write_series(noise(placed()), tmp_path / "a", study_uid="2.25.7", series_uid="2.25.8", seed=1)
    write_series(noise(placed()), tmp_path / "b", study_uid="2.25.7", series_uid="2.25.8", seed=1)
    for one in (tmp_path / "a").iterdir():
        assert one.read_bytes() == (tmp_path / "b" / one.name).read_bytes()
    header = pydicom.dcmread(tmp_path / "a" / "000001.dcm")
    assert (header.StudyInstanceUID, header.SeriesInstanceUID) == ("2.25.7", "2.25.8")


def test_a_scanners_series_equals_highdicoms() -> None:
    if not (root := os.environ.get("VERTICALS_DATA")):
        pytest.skip("VERTICALS_DATA names no folder of data sets")
    folder = Path(root) / "ct/ibsi_sts/dicom/STS_001/CT/image"
    series = read_series(folder)
    assert series.volume.grid.shape == (198, 202, 59)
    with headers.quiet():
        theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in sorted(folder.iterdir())])
    flipped: NDArray[Any] = theirs.array[::-1].T
    np.testing.assert_array_equal(series.volume.array, flipped)
    far = np.array([58, 0, 0, 1])
    np.testing.assert_allclose((theirs.affine @ far)[:3] * (-1, -1, 1), series.volume.grid.affine[:3, 3], atol=1e-6)


def test_threads_that_read_at_once_leave_warnings_and_logs_as_they_were(folder: Path) -> None:
    level, filters = logging.getLogger("pydicom").level, list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        shapes = list(pool.map(lambda _: read_series(folder).volume.grid.shape, range(8)))
    assert shapes == [(7, 5, 6)] * 8
    assert logging.getLogger("pydicom").level == level
    assert list(warnings.filters) == filters
