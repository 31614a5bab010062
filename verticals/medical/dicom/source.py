"""What a DICOM answer takes over from the series that it belongs to: planes in the patient, patient and study, and
what makes it recognisable as ours. C columns, R rows, K slices; a mask is [C, R, K].

Positions here are DICOM's LPS, straight from each slice's header, not from the volume's affine.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM

from core.errors import DataError, VerticalsError
from verticals.medical.dicom import headers
from verticals.medical.labels import Structure
from verticals.medical.volume import Volume

NOTICE = "RESEARCH USE ONLY - not for diagnosis"
"""Goes into every answer: at most 64 characters, as DICOM's long strings."""
MANUFACTURER = "verticals"
CHARACTER_SET = "ISO_IR 192"
"""UTF-8."""
LPS = np.array([-1.0, -1.0, 1.0])
"""RAS times this is LPS, and the other way round."""

_NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)
_GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0028)


class GeometryError(VerticalsError):
    """An answer that would lie elsewhere in the patient than the mask: our fault, and nothing of it may be used."""


@dataclass(frozen=True, eq=False)
class Plane:
    """A slice in the patient."""

    origin: NDArray[np.float64]
    """[3] LPS mm of the first pixel's centre."""
    steps: NDArray[np.float64]
    """[2, 3] LPS mm from a pixel to the next column's, and to the next row's."""

    @property
    def normal(self) -> NDArray[np.float64]:
        """[3] unit vector."""
        across = np.cross(self.steps[0], self.steps[1])
        return np.asarray(across / np.linalg.norm(across), np.float64)

    def lps(self, pixels: NDArray[Any]) -> NDArray[np.float64]:
        """[..., 2] (column, row), not only whole ones -> [..., 3] mm."""
        return np.asarray(pixels, np.float64) @ self.steps + self.origin

    def pixels(self, lps: NDArray[np.float64]) -> NDArray[np.float64]:
        """[..., 3] mm -> [..., 2] (column, row)."""
        return np.asarray((lps - self.origin) @ np.linalg.pinv(self.steps), np.float64)


def planes(sources: Sequence[Dataset]) -> list[Plane]:
    """Each slice's plane.

    Raises:
        DataError: a header without what an answer has to take over.
    """
    made = []
    for number, source in enumerate(sources, 1):
        if missing := [keyword for keyword in _NEEDED if source.get(keyword) in (None, "")]:
            raise DataError(
                f"slice {number} of {len(sources)} lacks {', '.join(missing)}; without it no DICOM answer can refer to "
                "the series: ask for NIfTI alone, or export the series again with all of its header"
            )
        along = np.array([float(value) for value in source.ImageOrientationPatient]).reshape(2, 3)
        rows_mm, columns_mm = (float(value) for value in source.PixelSpacing)  # between rows, then between columns
        origin = np.array([float(value) for value in source.ImagePositionPatient])
        made.append(Plane(origin, along * np.array([[columns_mm], [rows_mm]])))
    return made


def aligned(mask: Volume, sources: Sequence[Dataset]) -> list[Plane]:
    """The planes of the series, where they are the mask's too.

    Raises:
        DataError: see `planes`.
        GeometryError: another number or size of slices, or a corner half a voxel or more from where the header has it.
    """
    found = planes(sources)
    sizes = {(int(source.Columns), int(source.Rows)) for source in sources}
    if not sources or mask.grid.shape[2] != len(sources) or sizes != {mask.grid.shape[:2]}:
        raise GeometryError(
            f"the mask is {list(mask.grid.shape)}, the series has {len(sources)} slices of {sorted(sizes)} pixels"
        )
    columns, rows = (length - 1 for length in mask.grid.shape[:2])
    corners = np.array([(0, 0), (columns, 0), (0, rows), (columns, rows)])
    for k, plane in enumerate(found):
        index = mask.grid.index(plane.lps(corners) * LPS)
        if (off := float(np.abs(index - np.column_stack([corners, np.full(4, k)])).max())) >= 0.5:
            raise GeometryError(
                f"slice {k + 1} of {len(sources)} lies {off:.3g} voxels from where the mask has it; allowed is less than half of one"
            )
    return found


def voxels_per_slice(mask: Volume, structures: Sequence[Structure]) -> NDArray[np.int64]:
    """[K, structures] voxels of each structure in each slice.

    Raises:
        DataError: a mask that is neither uint8 nor uint16, or holds a label that is no structure's.
    """
    if mask.array.dtype.name not in ("uint8", "uint16"):
        raise DataError(f"the mask is of type {mask.array.dtype.name}; allowed are uint8 and uint16")
    numbers = np.array([structure.number for structure in structures])
    length = max(int(numbers.max()), int(np.iinfo(mask.array.dtype).max)) + 1
    counts = np.empty((mask.array.shape[2], len(numbers)), np.int64)
    for k in range(mask.array.shape[2]):
        found = np.bincount(mask.array[:, :, k].ravel(order="K"), minlength=length)
        counts[k] = found[numbers]
        found[numbers], found[0] = 0, 0
        if found.any():
            raise DataError(
                f"the mask holds label {int(found.argmax())}, which no structure has: name it in the labels"
            )
    return counts


def header(source: Dataset) -> Dataset:
    """A copy of what an answer may need of a slice's header: no private elements, no sequences, no pixels; text in UTF-8,
    whatever character sets the slice has; of several values where DICOM has one the first; dates and a sex that are not
    DICOM's are left empty."""
    made = Dataset()
    for element in source:
        if element.tag.group in _GROUPS and element.VR != "SQ":
            made.add(copy(element))
            if element.VR == "PN":  # a name keeps its bytes, and the sets that they are in, until it is made anew
                made[element.tag].value = [str(name) for name in _values(element.value)]
    made.SpecificCharacterSet = CHARACTER_SET
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
        setattr(made, keyword, next(iter(_values(made.get(keyword))), ""))
    made.PatientSex = made.get("PatientSex") if made.get("PatientSex") in ("M", "F", "O") else ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        if not _is(kind, made.get(keyword)):
            setattr(made, keyword, "")
    return made


def _values(value: Any) -> list[Any]:
    """None, one or several of them as a list."""
    return [] if value is None else list(value) if isinstance(value, MultiValue | list) else [value]


def _is(kind: type[DA] | type[TM], value: Any) -> bool:
    try:
        return bool(value) and kind(value) is not None
    except ValueError:
        return False


def software(algorithm_version: str) -> tuple[str, str]:
    """Our version and the model's."""
    try:
        own = version("verticals")
    except PackageNotFoundError:
        own = "unknown"
    return f"verticals {own}", f"model {algorithm_version}"[:64]


@contextmanager
def quiet() -> Iterator[None]:
    """Around calls of pydicom and highdicom on a patient's data: their warnings quote the header."""
    with headers.quiet():
        warnings.filterwarnings("ignore", module=r"(highdicom|verticals\.medical)\.")  # they may point at the caller
        yield
