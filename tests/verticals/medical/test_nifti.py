"""NIfTI against nibabel, and every header and stream that is to be refused."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from core.errors import DataError, Unavailable
from verticals.medical import nifti
from verticals.medical.nifti import inspect_nifti, read_labels, read_nifti, write_nifti
from verticals.medical.volume import Axes, Grid, Volume, to_ras

SHAPE = (6, 5, 4)
AFFINE = np.array([[-0.9, 0, 0, 110], [0, 0.8, 0, -90], [0, 0, 2.5, -700], [0, 0, 0, 1.0]])
TURNS = [
    Axes(order, flips)  # type: ignore[arg-type]
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


def noise(shape: tuple[int, ...] = SHAPE, dtype: Any = np.int16) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def saved(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = AFFINE, **header: Any) -> Path:
    """By nibabel, with fields of the header changed."""
    image = nib.Nifti1Image(array, affine)
    image.to_filename(path)
    for key, value in header.items():
        changed = image.header.copy()
        changed[key] = value
        field, offset = changed.structarr.dtype.fields[key][:2]
        spoiled(path, offset, changed.binaryblock[offset : offset + field.itemsize])
    return path


def spoiled(path: Path, place: int, content: bytes) -> Path:
    packed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    data[place : place + len(content)] = content
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def refused(path: Path, *substance: str, voxels: bool = False) -> None:
    """Refused, from the header alone unless the fault lies in voxels."""
    if voxels:
        inspect_nifti(path)
    for call in (read_nifti, read_labels) if voxels else (read_nifti, read_labels, inspect_nifti):
        with pytest.raises(DataError) as caught:
            call(path)
        message = str(caught.value)
        for part in substance:
            assert part in message, message
        assert "klara" not in message


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, ">i2", np.uint16, np.int32, np.float32, np.float64])
def test_scans_equal_nibabels(dtype: Any, suffix: str, tmp_path: Path) -> None:
    array = noise() - (0 if np.dtype(dtype).kind == "u" else 100)
    image = nib.Nifti1Image(array.astype(dtype), AFFINE)
    image.set_data_dtype(dtype)
    image.to_filename(tmp_path / f"scan{suffix}")
    read = read_nifti(tmp_path / f"scan{suffix}")
    theirs = nib.load(tmp_path / f"scan{suffix}")
    assert read.array.dtype == np.int16
    np.testing.assert_array_equal(read.array, np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(read.grid.affine, theirs.affine)
    assert inspect_nifti(tmp_path / f"scan{suffix}").same_as(read.grid, tolerance_mm=0)


def test_scaled_values_equal_nibabels(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii", noise())
    spoiled(path, 112, np.array([0.37, -1024.6], "<f4").tobytes())
    np.testing.assert_array_equal(read_nifti(path).array, np.rint(nib.load(path).get_fdata()))


def test_floats_are_rounded_and_saturated(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[0, 0] = [-1023.6, 2.4, 1e9, -1e9]
    read = read_nifti(saved(tmp_path / "scan.nii.gz", array)).array
    assert read[0, 0].tolist() == [-1024, 2, 32767, -32768]


def test_nifti_2_an_extension_and_trailing_axes(tmp_path: Path) -> None:
    image = nib.Nifti2Image(noise((*SHAPE, 1, 1)), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"klara" * 100))
    image.to_filename(tmp_path / "scan.nii.gz")
    read = read_nifti(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read.array, noise())
    np.testing.assert_array_equal(read.grid.affine, AFFINE)


def test_without_an_sform_the_qform_counts(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), None)
    image.set_qform(AFFINE, code="scanner")
    image.to_filename(tmp_path / "scan.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "scan.nii").grid.affine, AFFINE, atol=1e-5)
    spoiled(tmp_path / "scan.nii", 76, np.float32(0).tobytes())  # qfac 0 stands for 1
    assert read_nifti(tmp_path / "scan.nii").grid.shape == SHAPE


@pytest.mark.parametrize(("top", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
@pytest.mark.parametrize("stored", [np.int32, np.float32])
def test_labels(top: int, dtype: Any, stored: Any, tmp_path: Path) -> None:
    array = np.zeros(SHAPE, stored)
    array[1, 2, 3] = top
    read = read_labels(saved(tmp_path / "mask.nii.gz", array))
    assert read.array.dtype == dtype
    np.testing.assert_array_equal(read.array, array)


@pytest.mark.parametrize(
    ("value", "substance"), [(-1, "below 0"), (65536, "above 65,535"), (0.5, "no whole"), (np.nan, "no numbers")]
)
def test_labels_that_are_none(value: float, substance: str, tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.float64)
    array[1, 2, 3] = value
    path = saved(tmp_path / "mask.nii", array)
    with pytest.raises(DataError, match=substance):
        read_labels(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    refused(saved(tmp_path / "scan.nii", array), "1 voxels", "no numbers", voxels=True)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 2), (6, 5, 4, 1, 3)])
def test_other_numbers_of_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    refused(saved(tmp_path / "scan.nii", noise(shape)), "3 axes", " x ".join(map(str, shape)))


def test_affines_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "klara.nii"
    refused(saved(path, noise(), sform_code=0, qform_code=0), "sform and qform codes are 0", "set its sform")
    refused(saved(path, noise(), srow_x=[np.nan, 0, 0, 0]), "affine")
    refused(saved(path, noise(), srow_x=[0, 0, 0, 0]), "voxel spacing", "greater than 0")
    refused(saved(path, noise(), srow_x=[0, 1, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[1, 0, 1, 0]), "one plane")
    refused(saved(path, noise(), sform_code=0, qform_code=1, quatern_b=3.0), "no rotation")
    refused(
        saved(path, noise(), sform_code=0, qform_code=1, pixdim=[1, 0, 2, 3, 0, 0, 0, 0]),
        "0 x 2 x 3 mm",
        "greater than 0",
    )
    refused(saved(path, noise(), sform_code=0, qform_code=1, pixdim=[1, 2, -2, 3, 0, 0, 0, 0]), "2 x -2 x 3 mm")
    assert inspect_nifti(saved(path, noise(), pixdim=[1, 0, 2, 3, 0, 0, 0, 0])).shape == SHAPE, "the sform says it"
    refused(saved(path, noise(), xyzt_units=3), "micrometres", "mm")
    assert inspect_nifti(saved(path, noise(), xyzt_units=0)).shape == SHAPE


@pytest.mark.parametrize("shape", [(6, 5, 1), (1, 5, 4), (1, 1, 1), (6, 1, 4, 1)])
def test_a_single_slice_is_no_volume(shape: tuple[int, ...], tmp_path: Path) -> None:
    refused(saved(tmp_path / "scan.nii", noise(shape)), " x ".join(map(str, shape[:3])), "a single slice", "at least 2")


@pytest.mark.parametrize(
    "changes", [{"scl_slope": np.inf}, {"scl_slope": -np.inf}, {"scl_slope": 1, "scl_inter": np.inf}]
)
def test_a_scale_that_is_no_number_is_refused(changes: dict[str, float], tmp_path: Path) -> None:
    refused(saved(tmp_path / "scan.nii", noise(), **changes), "inf", "have to be finite")


def test_types_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "klara.nii"
    refused(saved(path, noise().astype(np.complex64)), "complex64", "whole and real numbers")
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refused(saved(path, colours), "whole and real numbers")
    refused(spoiled(saved(path, noise()), 70, b"\x99\x77"), "damaged")


@pytest.mark.parametrize(
    ("content", "substance"),
    [
        (b"", "empty (0 bytes)"),
        (b"not a scan", "no NIfTI file"),
        (bytes(4000), "no NIfTI file"),
        (gzip.compress(bytes(4000)), "no NIfTI file"),
        (gzip.compress(b""), "no NIfTI file"),
        (b"\x1f\x8b" + b"x" * 30, "packed, but damaged"),
        (gzip.compress(bytes(4000))[:12], "packed, but damaged"),
    ],
)
def test_files_that_are_no_nifti(content: bytes, substance: str, tmp_path: Path) -> None:
    (tmp_path / "klara.nii.gz").write_bytes(content)
    refused(tmp_path / "klara.nii.gz", substance)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "klara.nii", "cannot be opened")
    refused(tmp_path, "cannot be opened")
    nib.Nifti1Pair(noise(), AFFINE).to_filename(tmp_path / "klara.hdr")
    refused(tmp_path / "klara.hdr", "second file")


def test_streams_that_are_cut_short_or_damaged(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 1000, (40, 40, 40)).astype(np.int16)
    plain, packed = saved(tmp_path / "klara.nii", random), saved(tmp_path / "klara.nii.gz", random)
    plain.write_bytes(plain.read_bytes()[:-1])
    refused(plain, "128,352 bytes", "128,351 bytes", "cut short")
    whole = packed.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-4], whole[:-6] + b"\x00\x00" + whole[-4:]):
        packed.write_bytes(content)
        refused(packed, "damaged or cut short", voxels=True)


def test_headers_that_promise_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("klara.nii", "klara.nii.gz"):
        path = spoiled(saved(tmp_path / name, noise()), 42, np.array([700, 700, 700], "<i2").tobytes())
        refused(path, "700 x 700 x 700", "cannot hold")
        spoiled(path, 42, np.array([30000, 30000, 30000], "<i2").tobytes())
        refused(path, "27,000,000,000,000 voxels", "536,870,912")
        spoiled(path, 42, np.array([-6, 5, 4], "<i2").tobytes())
        refused(path, "-6 x 5 x 4", "at least 1 voxel")
        spoiled(saved(path, noise()), 108, np.float32(1e12).tobytes())
        refused(path, "start where they cannot")
        spoiled(path, 108, np.float32(np.nan).tobytes())
        refused(path, "NIfTI header")
    monkeypatch.setattr(nifti, "MAX_VOXELS", 119)
    refused(saved(tmp_path / "klara.nii", noise()), "120 voxels", "up to 119")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 351), content=st.binary(min_size=1, max_size=4))
def test_no_header_makes_it_raise_anything_else(place: int, content: bytes, tmp_path: Path) -> None:
    path = spoiled(saved(tmp_path / "scan.nii", noise()), place, content)
    with contextlib.suppress(DataError):
        read_nifti(path)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("name", ["made.nii", "MADE.NII.GZ"])
def test_what_is_written_nibabel_reads(dtype: Any, name: str, tmp_path: Path) -> None:
    volume = Volume(np.asfortranarray(noise(dtype=dtype)), Grid(SHAPE, AFFINE))
    write_nifti(volume, tmp_path / name)
    (tmp_path / name).rename(tmp_path / name.lower())
    theirs = nib.load(tmp_path / name.lower())
    assert theirs.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), volume.array)
    np.testing.assert_allclose(theirs.affine, AFFINE, atol=1e-5)
    assert (int(theirs.header["sform_code"]), int(theirs.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(theirs.get_qform(), AFFINE, atol=1e-4)
    assert theirs.header.get_xyzt_units()[0] == "mm"
    assert not bytes(theirs.header["descrip"]).strip(b"\x00")


def test_a_packed_file_holds_no_name_and_no_time(tmp_path: Path) -> None:
    volume = Volume(noise(), Grid(SHAPE, AFFINE))
    write_nifti(volume, tmp_path / "klara.nii.gz")
    content = (tmp_path / "klara.nii.gz").read_bytes()
    assert content[3] == 0  # no field for a name
    assert content[4:8] == bytes(4)
    write_nifti(volume, tmp_path / "again.nii.gz")
    assert content == (tmp_path / "again.nii.gz").read_bytes()


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_all_48_orientations_round_trip(turn: Axes, tmp_path: Path) -> None:
    volume = Volume(noise(), Grid(SHAPE, AFFINE)).turned(turn)
    write_nifti(volume, tmp_path / "made.nii")
    read = read_nifti(tmp_path / "made.nii")
    np.testing.assert_array_equal(read.array, volume.array)
    assert read.grid.same_as(volume.grid, tolerance_mm=1e-4)
    straight = nib.as_closest_canonical(nib.load(tmp_path / "made.nii"))
    np.testing.assert_array_equal(np.asarray(straight.dataobj), read.turned(to_ras(read.grid)).array)
    np.testing.assert_allclose(straight.affine, read.turned(to_ras(read.grid)).grid.affine, atol=1e-4)


@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_an_oblique_or_sheared_grid_round_trips(shear: float, tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 2] += shear * affine[:3, 1]
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -40, 75), degrees=True).as_matrix() @ affine[:3, :3]
    volume = Volume(noise(), Grid(SHAPE, affine))
    write_nifti(volume, tmp_path / "made.nii.gz")
    assert read_nifti(tmp_path / "made.nii.gz").grid.same_as(volume.grid, tolerance_mm=1e-4)
    assert int(nib.load(tmp_path / "made.nii.gz").header["qform_code"]) == (0 if shear else 1)


def test_what_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(noise(), Grid(SHAPE, AFFINE))
    with pytest.raises(DataError, match=r"neither .nii nor .nii.gz"):
        write_nifti(volume, tmp_path / "klara.mha")
    with pytest.raises(DataError, match="int64; allowed are int16"):
        write_nifti(Volume(noise(dtype=np.int64), volume.grid), tmp_path / "klara.nii")
    with pytest.raises(DataError, match="32,767 along an axis"):
        write_nifti(Volume(np.zeros((40000, 1, 1), np.uint8), Grid((40000, 1, 1), AFFINE)), tmp_path / "klara.nii")
    with pytest.raises(Unavailable, match="cannot be written: No such file"):
        write_nifti(volume, tmp_path / "nowhere" / "klara.nii")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(noise(), Grid(SHAPE, AFFINE))
    write_nifti(volume, tmp_path / "made.nii.gz")
    before = (tmp_path / "made.nii.gz").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        write_nifti(Volume(volume.array + 1, volume.grid), tmp_path / "made.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["made.nii.gz"]
    assert (tmp_path / "made.nii.gz").read_bytes() == before


@pytest.mark.parametrize("name", ["made.nii", "made.nii.gz"])
def test_memory_is_that_of_the_volume(name: str, tmp_path: Path) -> None:
    shape = (256, 256, 512)
    volume = Volume(np.zeros(shape, np.int16, order="F"), Grid(shape, AFFINE))
    tracemalloc.start()
    write_nifti(volume, tmp_path / name)
    _, written = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    read = read_nifti(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written < 0.2 * volume.array.nbytes
    assert peak < 1.5 * read.array.nbytes


def test_published_scans_equal_nibabels() -> None:
    if not (root := os.environ.get("VERTICALS_DATA")):
        pytest.skip("VERTICALS_DATA names no folder of data sets")
    paths = sorted((Path(root) / "ct/ibsi_sts/nifti").rglob("*.nii.gz"))
    assert paths
    for path in paths[:4]:
        theirs = nib.load(path)
        read = read_labels(path) if "mask" in path.name else read_nifti(path)
        np.testing.assert_array_equal(read.array, np.rint(np.asarray(theirs.dataobj)))
        np.testing.assert_allclose(read.grid.affine, theirs.affine, atol=1e-5)
