"""Answers and scans read by other programs: highdicom, pydicom, nibabel and MONAI. None of our own readers is used here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import highdicom
import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray

from verticals.medical.volume import Grid, Volume

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Found(NamedTuple):
    """A structure as a file has it."""

    centroid_mm: NDArray[np.float64]
    """[3] RAS."""
    size: float
    """Voxels; of contours, pixels."""


def found_in(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Found]]:
    """File -> structure -> where it lies, of every file of an answer."""
    made = {"mask.nii.gz": _nifti(folder / "mask.nii.gz", names)}
    if (folder / "seg.dcm").exists():
        made["seg.dcm"] = _segmentation(folder / "seg.dcm")
        made["rtstruct.dcm"] = _contours(folder / "rtstruct.dcm", pixel_mm2=_pixel_mm2(folder / "seg.dcm"))
    return made


def _nifti(path: Path, names: Sequence[str]) -> dict[str, Found]:
    image: Any = nibabel.load(path)
    array = np.asarray(image.dataobj)
    made = {}
    for number, name in enumerate(names, 1):
        index = np.argwhere(array == number)
        if len(index):
            made[name] = Found(image.affine[:3, :3] @ index.mean(0) + image.affine[:3, 3], len(index))
    return made


def _segmentation(path: Path) -> dict[str, Found]:
    """By highdicom's volume; where the slices are sheared, which it has no volume for, frame by frame with pydicom."""
    segmentation: Any = highdicom.seg.segread(path)
    names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in segmentation.SegmentSequence}
    try:
        volume: Any = segmentation.get_volume(combine_segments=True, relabel=False)
    except (RuntimeError, ValueError):
        return _frames(path, names)
    made = {}
    for number, name in names.items():
        index = np.argwhere(volume.array == number)
        place = (_TO_RAS @ volume.affine @ np.append(index.mean(0), 1.0))[:3]
        made[name] = Found(place, len(index))
    return made


def _frames(path: Path, names: dict[int, str]) -> dict[str, Found]:
    file = pydicom.dcmread(path)
    pixels = file.pixel_array
    shared = file.SharedFunctionalGroupsSequence[0]
    sums = {number: np.zeros(4) for number in names}
    for item, frame in zip(file.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
        origin = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        places = origin + columns[:, None] * between_columns * across + rows[:, None] * between_rows * down
        number = int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        sums[number] += [*places.sum(0), len(rows)]
    return {names[number]: Found(_TO_RAS[:3, :3] @ (one[:3] / one[3]), one[3]) for number, one in sums.items()}


def _pixel_mm2(path: Path) -> float:
    shared = pydicom.dcmread(path, stop_before_pixels=True).SharedFunctionalGroupsSequence[0]
    a, b = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    return a * b


def _contours(path: Path, *, pixel_mm2: float) -> dict[str, Found]:
    """Areas and centroids of polygons in space; a hole's contour runs the other way round or is joined by a channel."""
    file = pydicom.dcmread(path)
    names = {int(item.ROINumber): str(item.ROIName) for item in file.StructureSetROISequence}
    made = {}
    for roi in file.ROIContourSequence:
        polygons = [np.array(item.ContourData, float).reshape(-1, 3) for item in roi.ContourSequence]
        areas, centres = zip(*map(area_and_centre, polygons), strict=True)
        total = sum(areas)
        place = np.average(np.array(centres), axis=0, weights=np.array(areas))
        made[names[int(roi.ReferencedROINumber)]] = Found(_TO_RAS[:3, :3] @ place, total / pixel_mm2)
    return made


def area_and_centre(points: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Of a plane polygon [points, 3]: mm2, and [3] mm; by triangles from its first corner."""
    one, two = points[1:-1] - points[0], points[2:] - points[0]
    crosses = np.cross(one, two) / 2
    normal = crosses.sum(0)
    area = float(np.linalg.norm(normal))
    signed = crosses @ (normal / area)
    centres = points[0] + (one + two) / 3
    return area, np.asarray((centres * signed[:, None]).sum(0) / area)


def highdicom_volume(folder: Path) -> Volume:
    """highdicom's volume of a series."""
    theirs: Any = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in _files(folder)])
    return _volume(theirs.array, _TO_RAS @ theirs.affine)


def monai_volume(path: Path) -> Volume:
    """MONAI's of a series or NIfTI file."""
    from monai.data.image_reader import NibabelReader, PydicomReader

    reader: Any = NibabelReader() if path.is_file() else PydicomReader()
    array, meta = reader.get_data(reader.read(str(path)))
    return _volume(array, meta["affine"])


def nibabel_volume(path: Path) -> Volume:
    """nibabel's of a NIfTI file."""
    image: Any = nibabel.load(path)
    return _volume(image.get_fdata(), image.affine)


def _volume(array: Any, affine: Any) -> Volume:
    """What a peer gave, as it gave it: our checks would refuse some of it."""
    grid = object.__new__(Grid)
    object.__setattr__(grid, "shape", tuple(np.shape(array)))
    object.__setattr__(grid, "affine", np.asarray(affine, float))
    return Volume(np.asarray(array), grid)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


PEERS: dict[str, dict[str, Callable[[Path], Volume]]] = {
    "dicom": {"highdicom": highdicom_volume, "MONAI (DICOM)": monai_volume},
    "nifti": {"nibabel": nibabel_volume, "MONAI (NIfTI)": monai_volume},
    "other": {},
}
"""Readers by the form of the scan."""
