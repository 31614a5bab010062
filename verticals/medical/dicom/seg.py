"""DICOM Segmentation: a mask as one segment a structure, in the frame of reference of the series that it was made of.

highdicom describes segments and frames as if each frame were one pixel; the real ones are packed here and streamed
behind it, since highdicom keeps all of them in memory (1 GB for 105 structures in 300 slices). What was written is
proved by `seg_check`. C columns, R rows, K slices.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import highdicom
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from core.errors import CapacityError, DataError
from verticals.medical.dicom import source
from verticals.medical.dicom.source import NOTICE, GeometryError
from verticals.medical.labels import ANATOMY, SIDES, Structure
from verticals.medical.volume import Volume

SERIES_NUMBER = 9001
Kind = Literal["BINARY", "LABELMAP"]
_MAX_BYTES = 2**32 - 2
"""Of one element of a DICOM file."""
PIXEL_DATA = b"\xe0\x7f\x10\x00"


def write_seg(
    mask: Volume,
    sources: Sequence[Dataset],
    structures: Sequence[Structure],
    path: Path,
    *,
    algorithm: str,
    version: str,
    kind: Kind | None = None,
) -> tuple[Structure, ...] | None:
    """The structures that the mask does not hold: they have no segment. None where it holds nothing at all: DICOM has no
    empty segmentation, so no file is written.

    Segments are numbered from 1 without gaps, by rising number of the structure.

    Args:
        mask: uint8 or uint16 [C, R, K] on the series' grid.
        sources: the headers of its slices, `sources[k]` for slice k.
        algorithm: name of the model.
        version: the model's.
        kind: LABELMAP is smaller and newer: few viewers read it yet, so that None takes it only for what does not fit
            into a file otherwise.

    Raises:
        DataError: a label that no structure has, or a header that DICOM does not allow.
        GeometryError: the mask is not on the series' grid.
        CapacityError: more pixels than a DICOM file holds.
    """
    structures = sorted(structures, key=lambda structure: structure.number)
    source.aligned(mask, sources)
    counts = source.voxels_per_slice(mask, structures)
    present = [at for at in range(len(structures)) if counts[:, at].any()]
    empty = tuple(structure for at, structure in enumerate(structures) if at not in present)
    if not present:
        return None
    kept = [structures[at] for at in present]
    occupied = counts[:, present] > 0
    pixels = mask.array.shape[0] * mask.array.shape[1]
    sizes: dict[Kind, int] = {
        "BINARY": -(-int(occupied.sum()) * pixels // 8),
        "LABELMAP": int(occupied.any(1).sum()) * pixels * (2 if len(kept) > 255 else 1),
    }
    kind = kind or ("BINARY" if sizes["BINARY"] <= _MAX_BYTES else "LABELMAP")
    size, wide = sizes[kind], kind == "LABELMAP" and len(kept) > 255
    if size > _MAX_BYTES:
        raise CapacityError(
            f"{len(kept)} structures in {len(sources)} slices of {pixels:,} pixels exceed the 4 GiB of a DICOM file; split the series"
        )
    segmentation = _described(occupied, sources, kept, kind=kind, algorithm=algorithm, version=version)
    rows, columns = mask.array.shape[1], mask.array.shape[0]
    segmentation.Rows, segmentation.Columns = rows, columns
    segmentation.SegmentsOverlap = "NO"
    places = _places(segmentation, sources)
    del segmentation.PixelData
    try:
        with source.quiet():
            segmentation.save_as(path)
        del segmentation
        with path.open("ab") as file:
            file.write(PIXEL_DATA + (b"OW" if wide else b"OB") + struct.pack("<HI", 0, size + size % 2))
            written = (
                _write_binary(file, mask, kept, places)
                if kind == "BINARY"
                else _write_labels(file, mask, kept, places, wide=wide)
            )
            if written != size:
                raise GeometryError(f"{written} bytes of frames were written, {size} announced")
            file.write(b"\0" * (size % 2))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return empty


def _described(
    occupied: NDArray[np.bool_],
    sources: Sequence[Dataset],
    structures: Sequence[Structure],
    *,
    kind: str,
    algorithm: str,
    version: str,
) -> Segmentation:
    """The whole file but for its pixels: frames [K, structures] where `occupied`.

    Raises:
        DataError: highdicom refuses a header.
    """
    try:
        with source.quiet():
            heads = [source.header(one) for one in sources]
            for head in heads:  # each frame is one pixel, and directions that differ in the last digit are one
                head.Rows = head.Columns = 1
                head.ImageOrientationPatient = heads[0].ImageOrientationPatient
                head.PixelSpacing = heads[0].PixelSpacing
                head.SliceThickness = heads[0].get("SliceThickness") or _thickness(sources)
            identification = highdicom.AlgorithmIdentificationSequence(
                name=algorithm[:64], version=version[:64], family=codes.DCM.ArtificialIntelligence
            )
            segmentation = Segmentation(
                heads,
                occupied[:, None, None, :].astype(np.uint8) if kind == "BINARY" else _first(occupied),
                kind,
                [_segment(number, one, identification) for number, one in enumerate(structures, 1)],
                series_instance_uid=generate_uid(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer=source.MANUFACTURER,
                manufacturer_model_name=algorithm[:64],
                software_versions=source.software(version),  # type: ignore[arg-type]  # it takes any number
                device_serial_number="none",
                content_label="RESEARCH_USE",
                content_description=NOTICE,
                series_description=f"Segmentation, {NOTICE}",
            )
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        # no cause: its text may quote the patient's header
        raise DataError(
            f"the series' headers hold values that DICOM does not allow in a segmentation ({type(error).__name__}); "
            "ask for NIfTI alone, or export the series again"
        ) from None
    return segmentation


def _first(occupied: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """[K, 1, 1] 1 in the slices that hold anything."""
    return np.asarray(occupied.any(1), np.uint16)[:, None, None]


def _segment(number: int, structure: Structure, identification: Any) -> SegmentDescription:
    description = SegmentDescription(
        number,
        structure.name,
        structure.category,
        structure.code or ANATOMY,
        SegmentAlgorithmTypeValues.AUTOMATIC,
        identification,
        display_color=CIELabColor.from_rgb(*structure.color),
    )
    if structure.side is not None:
        side = SIDES[structure.side]
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = side.value, side.scheme_designator, side.meaning
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [item]
    return description


def _thickness(sources: Sequence[Dataset]) -> float:
    """Of series that do not say: the distance of the first two slices, or 1 mm of a single one."""
    found = source.planes(sources[:2])
    return 1.0 if len(found) < 2 else round(abs(float((found[1].origin - found[0].origin) @ found[0].normal)), 4) or 1.0


def _places(segmentation: Dataset, sources: Sequence[Dataset]) -> list[tuple[int, int]]:
    """(slice, segment number) of each frame, in the file's order, by the slice's own position."""
    at = {_position(source): k for k, source in enumerate(sources)}
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    found = []
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        number = 0
        if segmentation.SegmentationType == "BINARY":
            group = item if "SegmentIdentificationSequence" in item else shared
            number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found.append((at[_position(item.PlanePositionSequence[0])], number))
    return found


def _position(item: Dataset) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in item.ImagePositionPatient)


def _write_binary(
    file: BinaryIO, mask: Volume, structures: Sequence[Structure], places: Sequence[tuple[int, int]]
) -> int:
    """Bits of all frames on end, the first in the lowest: a byte may hold pixels of two frames."""
    rest, written = np.empty(0, bool), 0
    for k, number in places:
        bits = np.equal(mask.array[:, :, k].T, structures[number - 1].number).ravel()
        bits = np.concatenate([rest, bits]) if len(rest) else bits
        whole = len(bits) // 8 * 8
        written += file.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        rest = bits[whole:]
    return written + (file.write(np.packbits(rest, bitorder="little").tobytes()) if len(rest) else 0)


def _write_labels(
    file: BinaryIO,
    mask: Volume,
    structures: Sequence[Structure],
    places: Sequence[tuple[int, int]],
    *,
    wide: bool,
) -> int:
    """Frames of segment numbers."""
    table = np.zeros(max(structure.number for structure in structures) + 1, "<u2" if wide else "u1")
    for number, structure in enumerate(structures, 1):
        table[structure.number] = number
    return sum(file.write(np.ascontiguousarray(table[mask.array[:, :, k].T]).tobytes()) for k, _ in places)
