"""Scans that must be refused: each takes one legal series or file and spoils one thing. The words are what the refusal has
to say.
"""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import RLELossless, generate_uid

from benchmarks.ct_readers import area_and_centre
from verticals.medical.dicom.write import write_series
from verticals.medical.nifti import write_nifti
from verticals.medical.volume import Grid, Volume

Edit = Callable[[pydicom.Dataset], object]


class Fault(NamedTuple):
    """One kind of illegal scan."""

    name: str
    words: tuple[str, ...]
    plant: Callable[[Volume, Path], Path]
    """(legal scan, empty folder) -> what is given to the reader."""
    form: str = "dicom"


def faults() -> Iterator[Fault]:
    """Every kind."""
    yield from _places()
    yield from _headers()
    yield from _files()
    yield from _nifti()


def _places() -> Iterator[Fault]:
    """Slices that are no one even stack."""
    yield _edited("a slice 1.5 % off", ("apart", "within 1 %"), _shifted(0.015 * 4.5), only=9)
    yield _edited("a slice half a step off", ("apart", "within 1 %"), _shifted(2.2), only=9)
    yield Fault("spacing that creeps", ("spacing of slices changes along the scan",), _creeping)
    yield _edited("a slice moved sideways", ("not on one line", "sideways"), _shifted(5.0, axis=0), only=9)
    for gone in ((12,), (5, 6), (4, 20)):
        yield Fault(f"{len(gone)} missing slice(s)", (f"{len(gone)} slice(s) missing",), _without(gone))
    yield Fault("a slice stored twice", ("duplicate slice",), _twice(other_uid=False))
    yield Fault("two images at one place", ("duplicate slices", "same place"), _twice(other_uid=True))
    yield Fault("two phases in one series", ("duplicate slices", "same place"), _phases)
    yield Fault("two series in one folder", ("2 series in one place",), _two_series)
    yield _edited("another orientation", ("different orientation",), _set(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]))
    yield _edited("another matrix size", ("different matrix size",), _cropped)
    yield _edited("another pixel spacing", ("different pixel spacing",), _set(PixelSpacing=[4.1, 4]))
    yield _edited("another frame of reference", ("2 frames of reference",), _set(FrameOfReferenceUID="1.2.3"))
    yield _edited("another patient", ("2 patient IDs",), _set(PatientID="other"))
    yield Fault("a single slice", ("a single slice",), _without(range(1, 99)))
    yield Fault(
        "too many slices",
        ("slices; allowed are up to 1,200",),
        _many,
    )


def _headers() -> Iterator[Fault]:
    """Headers that say what no CT slice says."""
    for name, words, values in (
        ("MR", ("modality 'MR'", "allowed is CT"), {"Modality": "MR"}),
        ("another object class", ("Secondary Capture", "CT Image Storage"), {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("enhanced CT", ("multi-frame",), {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}),
        ("several frames", ("multi-frame",), {"NumberOfFrames": 20}),
        ("MONOCHROME1", ("MONOCHROME1", "allowed is MONOCHROME2"), {"PhotometricInterpretation": "MONOCHROME1"}),
        ("colour", ("3 samples per pixel",), {"SamplesPerPixel": 3}),
        ("zero pixel spacing", ("PixelSpacing 0 x 0", "greater than 0"), {"PixelSpacing": [0, 0]}),
        ("negative pixel spacing", ("PixelSpacing", "greater than 0"), {"PixelSpacing": [-4, 4]}),
        ("edges that are not perpendicular", ("perpendicular",), {"ImageOrientationPatient": [1, 0, 0, 0.1, 0.995, 0]}),
        ("values that are no Hounsfield units", ("Z_EFF", "Hounsfield"), {"RescaleType": "Z_EFF"}),
        ("slope 0", ("RescaleSlope is 0",), {"RescaleSlope": "0"}),
        ("bits that contradict", ("high bit",), {"HighBit": 11}),
    ):  # fmt: skip
        yield _all(name, words, _set(**values))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "Modality"):
        yield _all(f"no {keyword}", ("lacks", keyword), _set(**{keyword: None}))


def _files() -> Iterator[Fault]:
    """Files that are damaged, or none at all."""
    yield Fault("a header cut short", ("file 10 of", "cut short"), _cut(0.05))
    yield Fault("a header cut short later", ("file 10 of", "lacks|cut short"), _cut(0.2))
    yield Fault("pixels cut short in the middle", ("file 10 of", "cut short"), _cut(0.6))
    yield Fault("an empty file", ("file 10 of", "is empty"), _cut(0))
    yield _edited("no pixels", ("no pixel data",), lambda dataset: dataset.__delitem__("PixelData"))
    yield Fault("compressed pixels cut short", ("file 10 of", "cut short"), _compressed)
    yield Fault("a text among the slices", ("is no DICOM file",), _with_text)
    yield Fault("an empty folder", ("no file there",), lambda scan, folder: _made(folder / "series"))
    yield Fault("no such file", ("no such file or folder",), lambda scan, folder: folder / "nowhere", "other")
    yield Fault(
        "a picture", ("the file is no scan",), lambda scan, folder: _written(folder / "a.png", b"\x89PNG" * 99), "other"
    )
    yield Fault("an archive of two series", ("2 series in one place",), _archive(two=True), "other")
    yield Fault("an archive that is cut short", ("archive",), _archive(cut=True), "other")
    yield Fault("an archive that leaves its folder", ("archive",), _archive(leaving=True), "other")
    yield Fault("more than the memory", ("GB of memory", "allowed are"), _huge((800, 800, 400), 0.5), "other")
    yield Fault("voxels of a metre", ("windows", "allowed are"), _huge((300, 300, 200), 1000), "other")


def _nifti() -> Iterator[Fault]:
    """NIfTI files."""
    for name, words, change in (
        ("four axes", ("one volume of 3 axes",), {"array": np.zeros((9, 9, 9, 3), np.int16)}),
        ("two axes", ("one volume of 3 axes",), {"array": np.zeros((9, 9), np.int16)}),
        ("an affine of NaN", ("no numbers",), {"nan": True}),
        ("zero spacing", ("spacing", "greater than 0"), {"affine": ((4, 0, 0, 0), (0, 0, 0, 0), (0, 0, 4.5, 0))}),
        ("axes in one plane", ("in one plane",), {"affine": ((4, 4, 0, 0), (0, 0.01, 0, 0), (0, 0, 4, 0))}),
        ("no place in the patient", ("where its voxels lie", "sform"), {"code": 0}),
        ("metres", ("metres", "allowed is mm"), {"unit": "meter"}),
        ("voxels of NaN", ("no numbers",), {"array": np.full((9, 9, 9), np.nan, np.float32)}),
        ("complex voxels", ("complex",), {"array": np.zeros((9, 9, 9), np.complex64)}),
        ("colours", ("voxels of type",), {"array": np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])}),
        ("cut short in the middle", ("damaged or cut short",), {"cut": True}),
        ("a header without voxels", ("cannot hold",), {"cut": True, "packed": False}),
    ):  # fmt: skip
        yield Fault(f"NIfTI: {name}", words, _spoiled(**change), "nifti")


def contour_centroid(file: pydicom.Dataset) -> NDArray[np.float64]:
    """[3] mm RAS of the first ROI, from its polygons alone."""
    polygons = [np.array(item.ContourData, float).reshape(-1, 3) for item in file.ROIContourSequence[0].ContourSequence]
    areas, centres = zip(*map(area_and_centre, polygons), strict=True)
    return np.average(np.array(centres), axis=0, weights=np.array(areas)) * (-1, -1, 1)


def _edited(name: str, words: tuple[str, ...], change: Edit, *, only: int = 9) -> Fault:
    """One slice of the series changed."""

    def plant(scan: Volume, folder: Path) -> Path:
        paths = _series(scan, folder)
        _changed(paths[only], change)
        return folder / "series"

    return Fault(name, words, plant)


def _all(name: str, words: tuple[str, ...], change: Edit) -> Fault:
    """Every slice changed."""

    def plant(scan: Volume, folder: Path) -> Path:
        for path in _series(scan, folder):
            _changed(path, change)
        return folder / "series"

    return Fault(name, words, plant)


def _series(scan: Volume, folder: Path, name: str = "series") -> list[Path]:
    write_series(scan, folder / name)
    return sorted((folder / name).iterdir())


def _changed(path: Path, change: Edit) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def _set(**values: Any) -> Edit:
    def change(dataset: pydicom.Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def _shifted(mm: float, axis: int = 2) -> Edit:
    def change(dataset: pydicom.Dataset) -> None:
        place = [float(value) for value in dataset.ImagePositionPatient]
        place[axis] += mm
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in place]

    return change


def _creeping(scan: Volume, folder: Path) -> Path:
    """Half of a long scan's steps are 0.8 % too long: each by itself is within bounds."""
    array = np.zeros((4, 4, 101), np.int16)
    write_series(Volume(array, Grid(array.shape, np.eye(4))), folder / "series")
    for number, path in enumerate(sorted((folder / "series").iterdir())):
        _changed(path, _shifted(0.008 * min(number, 50)))
    return folder / "series"


def _cropped(dataset: pydicom.Dataset) -> None:
    dataset.PixelData = dataset.PixelData[: 2 * dataset.Columns * (dataset.Rows - 4)]
    dataset.Rows -= 4


def _without(gone: Any) -> Callable[[Volume, Path], Path]:
    def plant(scan: Volume, folder: Path) -> Path:
        paths = _series(scan, folder)
        for number in gone:
            if number < len(paths):
                paths[number].unlink()
        return folder / "series"

    return plant


def _twice(*, other_uid: bool) -> Callable[[Volume, Path], Path]:
    def plant(scan: Volume, folder: Path) -> Path:
        paths = _series(scan, folder)
        copy = folder / "series" / "again.dcm"
        shutil.copy(paths[7], copy)
        if other_uid:
            _changed(copy, _set(SOPInstanceUID=str(generate_uid())))
        return folder / "series"

    return plant


def _phases(scan: Volume, folder: Path) -> Path:
    """A second phase at the same places, under the same series."""
    for path in _series(scan, folder):
        copy = path.with_name(f"second {path.name}")
        shutil.copy(path, copy)
        _changed(copy, _set(SOPInstanceUID=str(generate_uid())))
    return folder / "series"


def _two_series(scan: Volume, folder: Path) -> Path:
    _series(scan, folder)
    write_series(scan, folder / "series" / "other")
    return folder / "series"


def _many(scan: Volume, folder: Path) -> Path:
    """Slices of 4 x 4 pixels."""
    array = np.zeros((4, 4, 1201), np.int16)
    write_series(Volume(array, Grid(array.shape, np.eye(4))), folder / "series")
    return folder / "series"


def _cut(share: float) -> Callable[[Volume, Path], Path]:
    def plant(scan: Volume, folder: Path) -> Path:
        path = _series(scan, folder)[9]
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        return folder / "series"

    return plant


def _compressed(scan: Volume, folder: Path) -> Path:
    path = _series(scan, folder)[9]
    _changed(path, lambda dataset: dataset.compress(RLELossless, generate_instance_uid=False))
    path.write_bytes(path.read_bytes()[:-60])
    return folder / "series"


def _with_text(scan: Volume, folder: Path) -> Path:
    _series(scan, folder)
    _written(folder / "series" / "notes.txt", b"what was found")
    return folder / "series"


def _archive(*, two: bool = False, cut: bool = False, leaving: bool = False) -> Callable[[Volume, Path], Path]:
    def plant(scan: Volume, folder: Path) -> Path:
        paths = _series(scan, folder) + (_series(scan, folder, "other") if two else [])
        packed = folder / "scan.zip"
        with zipfile.ZipFile(packed, "w") as archive:
            for number, path in enumerate(paths):
                archive.write(path, f"../{number}.dcm" if leaving else f"{number}.dcm")
        if cut:
            packed.write_bytes(packed.read_bytes()[:-3000])
        return packed

    return plant


def _huge(shape: tuple[int, int, int], spacing_mm: float) -> Callable[[Volume, Path], Path]:
    """Voxels of 0, packed small."""

    def plant(scan: Volume, folder: Path) -> Path:
        path = folder / "scan.nii.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(_header(np.dtype(np.int16), shape, np.eye(4)[:3] * spacing_mm))
            plane = bytes(2 * shape[0] * shape[1])
            for _ in range(shape[2]):
                file.write(plane)
        return path

    return plant


def _header(
    dtype: Any, shape: Sequence[int], rows: Any, *, unit: str = "mm", code: int = 1, nan: bool = False
) -> bytes:
    """A NIfTI-1 header of one file, as anybody may write it: nothing is checked."""
    header: Any = nibabel.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units(unit)
    header["srow_x"], header["srow_y"], header["srow_z"] = rows
    if nan:
        header["srow_y"][1] = np.nan
    header["sform_code"], header["qform_code"] = code, 0
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + bytes(4)


def _spoiled(
    *,
    affine: Sequence[Sequence[float]] = ((4, 0, 0, 0), (0, 4, 0, 0), (0, 0, 4.5, 0)),
    array: NDArray[Any] | None = None,
    cut: bool = False,
    packed: bool = True,
    **header: Any,
) -> Callable[[Volume, Path], Path]:
    def plant(scan: Volume, folder: Path) -> Path:
        path = folder / ("scan.nii.gz" if packed else "scan.nii")
        if cut:
            write_nifti(scan, path)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            return path
        voxels = np.zeros((9, 9, 9), np.int16) if array is None else array
        with gzip.open(path, "wb") as file:
            file.write(_header(voxels.dtype, voxels.shape, affine, **header) + voxels.tobytes(order="F"))
        return path

    return plant


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
