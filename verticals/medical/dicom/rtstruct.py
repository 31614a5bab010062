"""DICOM RT Structure Set: a mask as closed contours in the planes of its series.

A contour runs halfway between the centres of voxels inside and outside, and cuts corners: every centre inside the contour
is the structure's and no other, and the area of a part without holes is half a pixel less than that of its voxels.
Holes are joined to their outer contour by a channel without width ("keyhole", PS3.3 C.8.8.6.3): CLOSEDPLANAR_XOR came
in 2020, and readers that do not know it would fill the hole. C columns, R rows, K slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import contourpy
import numpy as np
from numpy.typing import NDArray
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian, generate_uid
from scipy import ndimage

from core.errors import CapacityError, DataError
from verticals.medical.dicom import source
from verticals.medical.dicom.source import NOTICE
from verticals.medical.labels import ABNORMALITY, ANATOMY, SIDES, Structure
from verticals.medical.volume import Volume

SERIES_NUMBER = 9002
CONTOUR_BYTES, POINT_BYTES = 5000, 100
"""Of memory, for each contour and each of its points, once written and once read back."""
STORAGE = UID("1.2.840.10008.5.1.4.1.1.481.3")
_STUDY = UID("1.2.840.10008.3.1.2.3.1")
_COPIED = (
    "SpecificCharacterSet",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "FrameOfReferenceUID",
)


def write_rtstruct(
    mask: Volume,
    sources: Sequence[Dataset],
    structures: Sequence[Structure],
    path: Path,
    *,
    algorithm: str,
    version: str,
    most_bytes: int | None = None,
) -> tuple[Structure, ...] | None:
    """The structures that the mask does not hold: they have no ROI. None where it holds nothing: no file is written.

    Args:
        mask: uint8 or uint16 [C, R, K] on the series' grid.
        sources: the headers of its slices, `sources[k]` for slice k.
        algorithm: name of the model.
        version: the model's.
        most_bytes: of memory that contours may take, with reading them back.

    Raises:
        DataError: a label that no structure has, or a header that DICOM does not allow.
        GeometryError: the mask is not on the series' grid.
        CapacityError: contours that would take more: a mask of specks has thousands of them in a slice.
    """
    structures = sorted(structures, key=lambda structure: structure.number)
    found = source.aligned(mask, sources)
    counts = source.voxels_per_slice(mask, structures)
    kept = [structure for at, structure in enumerate(structures) if counts[:, at].any()]
    if not kept:
        return None
    contours: dict[int, list[Dataset]] = {structure.number: [] for structure in kept}
    taken = 0
    for k, plane in enumerate(found):
        for number, polygon in _polygons(mask.array[:, :, k]):
            taken += CONTOUR_BYTES + POINT_BYTES * len(polygon)
            if most_bytes is not None and taken > most_bytes:
                raise CapacityError(
                    f"the mask has {sum(map(len, contours.values())):,} contours in its first {k + 1} of {len(found)} slices, "
                    f"more than the {most_bytes / 1e6:.0f} MB for them hold: specks, not organs; take the SEG or NIfTI"
                )
            contours[number].append(_contour(plane.lps(polygon), sources[k], len(contours[number]) + 1))
    try:
        with source.quiet():
            file = _described(sources, kept, contours, algorithm=algorithm, version=version)
            file.save_as(path, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        path.unlink(missing_ok=True)
        # no cause: its text may quote the patient's header
        raise DataError(
            f"the series' headers hold values that DICOM does not allow in a structure set ({type(error).__name__}); "
            "ask for NIfTI alone, or export the series again"
        ) from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return tuple(structure for structure in structures if structure not in kept)


def polygons(inside: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Closed contours of [C, R] true pixels, each [points, 2] (column, row), the first point not repeated; holes are in
    their outer contour."""
    padded = np.zeros((inside.shape[0] + 2, inside.shape[1] + 2), np.float64)
    padded[1:-1, 1:-1] = inside != 0
    generator = contourpy.contour_generator(z=padded.T, fill_type=contourpy.FillType.OuterOffset)
    outlines, offsets = cast("tuple[list[Any], list[Any]]", generator.filled(0.5, 2.0))
    made = []
    for points, ends in zip(outlines, offsets, strict=True):
        rings = [np.asarray(points[start : stop - 1]) - 1 for start, stop in pairwise(ends)]
        made.append(_straightened(_keyholed(rings[0], rings[1:])))
    return made


def _polygons(labels: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(label, contour) of a slice [C, R], each label in its own box."""
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            for polygon in polygons(labels[box] == number):
                yield number, polygon + np.array([box[0].start, box[1].start])


def _keyholed(outer: NDArray[np.float64], holes: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One ring of an outer ring and its holes.

    A channel runs to the right from a hole's rightmost point between two rows. What it meets first there is a point of the
    outer ring or of a hole farther right, since between rows contours have points wherever they cross.
    """

    def start(ring: NDArray[np.float64]) -> int:
        return int(np.where(ring[:, 1] % 1 == 0.5, ring[:, 0], -np.inf).argmax())

    for hole in sorted(holes, key=lambda ring: -ring[start(ring), 0]):
        first = start(hole)
        column, row = hole[first]
        meets = np.where((outer[:, 1] == row) & (outer[:, 0] > column), outer[:, 0], np.inf)
        at = int(meets.argmin())
        loop = np.roll(hole, -first, axis=0)
        outer = np.concatenate([outer[: at + 1], loop, loop[:1], outer[at:]])
    return outer


def _straightened(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the points in the middle of straight lines; a channel's ends stay."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    onward = (before * after).sum(1) > 0
    return np.asarray(ring[~((turns == 0) & onward)], np.float64)


def _contour(lps: NDArray[np.float64], source: Dataset, number: int) -> Dataset:
    """Coordinates stay bytes: as pydicom's numbers they would take forty times the memory."""
    item = Dataset()
    item.ContourImageSequence = [_reference(source)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(lps)
    item.ContourNumber = number
    text = "\\".join(f"{value:.4f}" for value in lps.ravel()).encode()
    text += b" " * (len(text) % 2)
    tag = Tag("ContourData")
    item[tag] = RawDataElement(tag, "DS", len(text), text, 0, True, True)
    item.set_original_encoding(True, True, default_encoding)  # as the file's: bytes are written as they are
    return item


def _described(
    sources: Sequence[Dataset],
    structures: Sequence[Structure],
    contours: dict[int, list[Dataset]],
    *,
    algorithm: str,
    version: str,
) -> FileDataset:
    head = source.header(sources[0])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = STORAGE
    meta.MediaStorageSOPInstanceUID = generate_uid()
    # implicit: with explicit types a contour could hold no more than 64 KiB
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in _COPIED:
        if keyword in head:
            file.add(head[keyword])
    now = datetime.now()
    file.SOPClassUID, file.SOPInstanceUID = STORAGE, meta.MediaStorageSOPInstanceUID
    file.Modality, file.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    file.SeriesNumber, file.InstanceNumber = SERIES_NUMBER, 1
    file.SeriesDescription = f"Structures, {NOTICE}"
    file.Manufacturer, file.ManufacturerModelName = source.MANUFACTURER, algorithm[:64]
    file.SoftwareVersions = list(source.software(version))
    file.OperatorsName = ""
    file.PositionReferenceIndicator = ""
    file.StructureSetLabel, file.StructureSetName = "RESEARCH USE", NOTICE
    file.StructureSetDescription = f"{NOTICE}. Made by {algorithm} {version} without review."[:1024]
    file.StructureSetDate, file.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    file.InstanceCreationDate, file.InstanceCreationTime = file.StructureSetDate, file.StructureSetTime
    file.SeriesDate, file.SeriesTime = file.StructureSetDate, file.StructureSetTime
    file.ApprovalStatus = "UNAPPROVED"
    file.ReferencedFrameOfReferenceSequence = [_frame_of_reference(sources)]
    file.StructureSetROISequence, file.ROIContourSequence, file.RTROIObservationsSequence = [], [], []
    for number, structure in enumerate(structures, 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, structure.name
        roi.ReferencedFrameOfReferenceUID = file.FrameOfReferenceUID
        roi.ROIDescription = NOTICE
        roi.ROIGenerationAlgorithm, roi.ROIGenerationDescription = "AUTOMATIC", f"{algorithm} {version}"[:64]
        drawn.ROIDisplayColor = list(structure.color)
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = contours[structure.number]
        file.StructureSetROISequence.append(roi)
        file.ROIContourSequence.append(drawn)
        file.RTROIObservationsSequence.append(_observation(number, structure))
    return file


def _observation(number: int, structure: Structure) -> Dataset:
    """What the ROI is. A finding's role in a plan is its planner's to name: it stays empty."""
    made = Dataset()
    made.ObservationNumber = made.ReferencedROINumber = number
    made.RTROIInterpretedType = "" if structure.code is None or structure.category == ABNORMALITY else "ORGAN"
    made.ROIInterpreter = ""
    category, code = structure.category, structure.code or ANATOMY
    made.SegmentedPropertyCategoryCodeSequence = [_coded(category.value, category.scheme_designator, category.meaning)]
    made.RTROIIdentificationCodeSequence = [_coded(code.value, code.scheme_designator, code.meaning)]
    if structure.side is not None:
        side = SIDES[structure.side]
        modifier = _coded(side.value, side.scheme_designator, side.meaning)
        made.RTROIIdentificationCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return made


def _coded(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning[:64]
    return item


def _frame_of_reference(sources: Sequence[Dataset]) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(source) for source in sources]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY, sources[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return item
