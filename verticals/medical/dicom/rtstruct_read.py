"""Masks from the contours of a DICOM RT Structure Set, its own or another system's, on the slices of their series.

A voxel belongs to an ROI where its centre lies inside an odd number of the ROI's contours in that slice: right for
keyholes, for nested contours and for CLOSEDPLANAR_XOR. C columns, R rows, K slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from core.errors import DataError
from verticals.medical.dicom import headers, source
from verticals.medical.dicom.source import GeometryError, Plane
from verticals.medical.labels import Structure
from verticals.medical.volume import Grid, Volume

TOLERANCE = 0.1
"""How far a contour may lie from a slice's plane, in slice distances."""
_SEQUENCES = ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence")
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def read_rtstruct(
    path: Path, grid: Grid, sources: Sequence[Dataset], *, names: Sequence[str] | None = None
) -> dict[str, Volume]:
    """Boolean mask of each ROI, by its name. ROIs may overlap, so each takes a byte a voxel: name the wanted ones where
    there are many. ROIs of points alone (an isocentre) are left out.

    Args:
        grid: the series', [C, R, K].
        sources: the headers of its slices, `sources[k]` for slice k.
        names: the ROIs to read; all where None.

    Raises:
        DataError: no structure set, one of another frame of reference, a name that is missing or there twice, a contour
            that is not closed or not on a slice.
    """
    found = _planes(sources)
    made: dict[str, Volume] = {}
    for roi in _rois(path, sources, names):
        mask = np.zeros(grid.shape, bool, order="F")
        for k, box, inside in _slices(roi, found, grid):
            mask[(*box, k)] = inside.T
        made[roi.name] = Volume(mask, grid)
    return made


def verify_rtstruct(path: Path, mask: Volume, sources: Sequence[Dataset], structures: Sequence[Structure]) -> None:
    """Holds a written structure set against its mask, voxel by voxel, one slice of one structure at a time.

    Raises:
        GeometryError: a structure that is missing or too many, or a slice whose contours hold other voxels.
    """
    numbers = {structure.name: structure.number for structure in structures}
    left = source.voxels_per_slice(mask, structures)
    columns = {structure.name: at for at, structure in enumerate(structures)}
    found = _planes(sources)
    for roi in _rois(path, sources, None):
        if roi.name not in numbers:
            raise GeometryError(f"{roi.place} is none of the mask's structures")
        for k, box, inside in _slices(roi, found, mask.grid):
            at = k, columns[roi.name]
            same = np.array_equal(inside.T, np.equal(mask.array[(*box, k)], numbers[roi.name]))
            if not same or inside.sum() != left[at]:  # as many: none lies outside of the box
                raise GeometryError(f"the contours of {roi.name} hold other voxels than the mask in slice {k + 1}")
            left[at] = 0
    if left.any():
        raise GeometryError(f"{int((left > 0).sum())} slices of structures have no contours")


@dataclass(frozen=True)
class _Roi:
    name: str
    place: str
    """What messages call it: a name may hold the patient's."""
    contours: Sequence[Dataset]


def _rois(path: Path, sources: Sequence[Dataset], names: Sequence[str] | None) -> Iterator[_Roi]:
    """The ROIs with an extent, those of the names."""
    try:
        with source.quiet():
            file = dcmread(path, force=False)
            items = list(file.get("StructureSetROISequence") or [])
            drawn = {int(item.ReferencedROINumber): item for item in file.get("ROIContourSequence") or []}
            called = [str(item.get("ROIName", "")).strip() for item in items]
            numbers = [int(item.ROINumber) for item in items]
    except headers.FAULTS:
        raise DataError("the structure set cannot be read as DICOM: damaged, or no such file; send it again") from None
    if file.get("Modality") != "RTSTRUCT":
        raise DataError("the file is no RT Structure Set (modality RTSTRUCT); give the one that belongs to the series")
    # the last of them stands behind the contours: pydicom reads a file that is cut short without a word
    if lacking := [keyword for keyword in _SEQUENCES if keyword not in file]:
        raise DataError(f"the structure set lacks {', '.join(lacking)}: it is empty or cut short; send it again")
    if missing := [name for name in names or () if name not in called]:
        raise DataError(
            f"the structure set has {len(called)} ROIs, none of the name {missing[0]!r}; check the spelling"
        )
    frame = str(sources[0].get("FrameOfReferenceUID", ""))
    for place, (name, number, item) in enumerate(zip(called, numbers, items, strict=True), 1):
        if names is not None and name not in names:
            continue
        label = f"ROI {place} of {len(items)}"
        contours = list((drawn[number].get("ContourSequence") if number in drawn else None) or [])
        kinds = {str(contour.get("ContourGeometricType", "")) for contour in contours}
        if not kinds - {"POINT"} and (kinds or names is None):
            continue
        if strange := sorted(kinds - set(_CLOSED)):
            raise DataError(
                f"{label} has contours of the type {headers.term(strange[0])}; allowed are {' and '.join(_CLOSED)}"
            )
        if called.count(name) > 1:
            raise DataError(f"{label} has a name that another one has too; rename one of them")
        if frame and str(item.get("ReferencedFrameOfReferenceUID") or frame) != frame:
            raise DataError(f"{label} has another frame of reference than the series; give the series it was drawn on")
        yield _Roi(name, label, contours)


def _slices(
    roi: _Roi, planes: Sequence[Plane], grid: Grid
) -> Iterator[tuple[int, tuple[slice, slice], NDArray[np.bool_]]]:
    """(k, box of columns and rows, [R, C] inside within the box) of each slice that an ROI has contours in."""
    normal = planes[0].normal
    heights = np.array([plane.origin @ normal for plane in planes])
    step = float(np.diff(np.sort(heights)).min()) if len(heights) > 1 else 1.0
    by_slice: dict[int, list[NDArray[np.float64]]] = {}
    for number, contour in enumerate(roi.contours, 1):
        place = f"contour {number} of {len(roi.contours)} of {roi.place}"
        points = _points(contour, place)
        at = points @ normal
        k = int(np.abs(heights - at.mean()).argmin())
        if (off := float(np.abs(at - heights[k]).max())) > TOLERANCE * step:
            raise DataError(
                f"{place} lies {off:.3g} mm off the nearest slice; allowed is {TOLERANCE * step:.3g} mm: the structure set "
                "belongs to another series, or slices are missing"
            )
        by_slice.setdefault(k, []).append(planes[k].pixels(points))
    for k, rings in sorted(by_slice.items()):
        every = np.concatenate(rings)
        low = np.clip(np.floor(every.min(0)), 0, np.array(grid.shape[:2]) - 1).astype(int)
        high = np.clip(np.ceil(every.max(0)) + 1, low + 1, grid.shape[:2]).astype(int)
        crossings = np.zeros((high[1] - low[1], high[0] - low[0] + 1), np.int32)
        for ring in rings:
            _cross(crossings, ring - low)
        box = slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
        yield k, box, np.cumsum(crossings[:, :-1], axis=1) % 2 == 1


def _cross(crossings: NDArray[np.int32], ring: NDArray[np.float64]) -> None:
    """Counts at [row, column] the edges that a row's line meets before that pixel and after the one before.

    Edges are taken from their upper end on, so that a channel's two edges meet a row at the very same place.
    """
    ends = np.stack([ring, np.roll(ring, -1, axis=0)], axis=1)
    order = np.argsort(ends[:, :, 1], axis=1, kind="stable")
    low, high = (ends[np.arange(len(ends)), order[:, side]] for side in (0, 1))
    # a row counts from its upper end on to, not including, the lower one: a shared corner is met once
    first = np.clip(np.ceil(low[:, 1]), 0, crossings.shape[0]).astype(int)
    last = np.clip(np.ceil(high[:, 1]), 0, crossings.shape[0]).astype(int)
    edge = np.repeat(np.arange(len(ends)), last - first)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
    share = (rows - low[edge, 1]) / (high[edge, 1] - low[edge, 1])
    columns = low[edge, 0] + share * (high[edge, 0] - low[edge, 0])
    np.add.at(crossings, (rows, np.clip(np.ceil(columns), 0, crossings.shape[1] - 1).astype(int)), 1)


def _points(contour: Dataset, place: str) -> NDArray[np.float64]:
    """[points, 3] LPS mm, from the element's bytes: pydicom would make each number an object.

    Raises:
        DataError: not a polygon's numbers.
    """
    stored: Any = contour.get_item("ContourData")
    try:
        value = getattr(stored, "value", None)
        texts = value.rstrip(b" \0").split(b"\\") if isinstance(value, bytes) else list(value or ())
        points = np.array([float(text) for text in texts]).reshape(-1, 3)
    except (ValueError, TypeError):
        raise DataError(f"{place} does not hold coordinates in threes; export the structure set again") from None
    if len(points) < 3 or not np.isfinite(points).all():
        raise DataError(f"{place} has {len(points)} points; a closed contour has at least 3, all of them finite")
    return points


def _planes(sources: Sequence[Dataset]) -> list[Plane]:
    if not sources:
        raise DataError("no slice given; contours need the series that they were drawn on")
    return source.planes(sources)
