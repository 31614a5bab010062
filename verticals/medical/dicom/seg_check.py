"""Reads a DICOM Segmentation with pydicom's headers and numpy alone, apart from the code that wrote it, and holds it
against the mask: one frame in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from verticals.medical.dicom import source
from verticals.medical.dicom.source import LPS, GeometryError
from verticals.medical.labels import Structure
from verticals.medical.volume import Grid, Volume

_PIXEL_DATA = b"\xe0\x7f\x10\x00"


def read_back(path: Path, grid: Grid) -> dict[str, tuple[NDArray[np.float64], int]]:
    """Of each segment, by its label: centroid in mm RAS and number of voxels, from the file's own geometry, frame by frame.

    Raises:
        GeometryError: a frame that does not lie on voxels of the grid.
    """
    with path.open("rb") as file:
        with source.quiet():
            head = dcmread(file, stop_before_pixels=True)
        labels = {int(item.SegmentNumber): str(item.SegmentLabel) for item in head.SegmentSequence}
        shared = head.SharedFunctionalGroupsSequence[0]
        totals = {number: np.zeros(4) for number in labels}
        frames = _frames(file, head)
        for number, (item, frame) in enumerate(zip(head.PerFrameFunctionalGroupsSequence, frames, strict=True), 1):
            to_ras = _pixel_to_ras(item, shared)
            _check_frame(to_ras, grid, frame.shape, number)
            if head.SegmentationType == "BINARY":
                group = item if "SegmentIdentificationSequence" in item else shared
                values = [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
                found = [frame]
            else:
                values = [int(value) for value in np.unique(frame) if value]
                found = [frame == value for value in values]
            for value, inside in zip(values, found, strict=True):
                by_column, by_row = inside.sum(0, dtype=np.int64), inside.sum(1, dtype=np.int64)
                count = int(by_row.sum())
                sums = (by_column @ np.arange(len(by_column)), by_row @ np.arange(len(by_row)), count)
                totals[value] += [*(to_ras @ np.array(sums, np.float64)), count]
    return {
        labels[number]: (total[:3] / total[3] if total[3] else np.full(3, np.nan), int(total[3]))
        for number, total in totals.items()
        if number > 0  # a label map describes its background too
    }


def verify(path: Path, mask: Volume, structures: Sequence[Structure]) -> None:
    """Holds a written segmentation against the mask.

    Raises:
        GeometryError: a segment whose voxels are not as many, or whose centroid lies half a voxel or more off along an axis.
    """
    found = read_back(path, mask.grid)
    expected = centroids(mask, structures)
    present = {name for name, (_, count) in expected.items() if count}
    if set(found) != present:
        raise GeometryError(
            f"the segmentation lacks {sorted(present - set(found))} of the mask's structures, and has {sorted(set(found) - present)} too many"
        )
    for name in sorted(present):
        (written, written_count), (centroid, count) = found[name], expected[name]
        off = float(np.abs(mask.grid.index(written) - mask.grid.index(centroid)).max())
        if written_count != count or not off < 0.5:
            raise GeometryError(
                f"segment {name}: {written_count} voxels around a point {off:.3g} voxels from that of the mask's {count}; "
                "allowed are as many, less than half a voxel off along each axis"
            )


def centroids(mask: Volume, structures: Sequence[Structure]) -> dict[str, tuple[NDArray[np.float64], int]]:
    """Of each structure, by name: centroid in mm RAS (NaN where it is empty) and number of voxels, in one pass."""
    length = max(structure.number for structure in structures) + 1
    columns, rows = (np.arange(n, dtype=np.float64) for n in mask.array.shape[:2])
    totals = np.zeros((length, 4))
    for k in range(mask.array.shape[2]):
        plane = mask.array[:, :, k]
        found = np.nonzero(plane)
        if not len(found[0]):
            continue
        values = plane[found]
        count = np.bincount(values, minlength=length)[:length]
        totals[:, 0] += np.bincount(values, columns[found[0]], length)[:length]
        totals[:, 1] += np.bincount(values, rows[found[1]], length)[:length]
        totals[:, 2] += k * count
        totals[:, 3] += count
    return {
        structure.name: (
            mask.grid.world(total[:3] / total[3]) if total[3] else np.full(3, np.nan),
            int(total[3]),
        )
        for structure in structures
        for total in (totals[structure.number],)
    }


def _frames(file: BinaryIO, head: Dataset) -> Iterator[NDArray[Any]]:
    """[R, C] of each frame: 0 and 1, or segment numbers; read from where the pixel element stands."""
    if file.read(4) != _PIXEL_DATA:
        raise GeometryError("the segmentation has no pixels where they belong")
    file.read(8)
    rows, columns, bits = int(head.Rows), int(head.Columns), int(head.BitsAllocated)
    start, pixels = file.tell(), rows * columns
    for number in range(int(head.NumberOfFrames)):
        first = number * pixels * bits
        last = first + pixels * bits
        file.seek(start + first // 8)
        data = file.read(-(-last // 8) - first // 8)
        if bits == 1:
            unpacked = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            yield unpacked[first % 8 : first % 8 + pixels].reshape(rows, columns)
        else:
            yield np.frombuffer(data, "<u2" if bits == 16 else "u1").reshape(rows, columns)


def _pixel_to_ras(item: Dataset, shared: Dataset) -> NDArray[np.float64]:
    """[3, 3] that maps (column, row, 1) to mm RAS, from a frame's groups or the shared ones."""

    def group(name: str) -> Dataset:
        return cast(Dataset, (item if name in item else shared)[name].value[0])

    origin = [float(value) for value in group("PlanePositionSequence").ImagePositionPatient]
    along = [float(value) for value in group("PlaneOrientationSequence").ImageOrientationPatient]
    rows_mm, columns_mm = (float(value) for value in group("PixelMeasuresSequence").PixelSpacing)
    steps = np.array([np.array(along[:3]) * columns_mm, np.array(along[3:]) * rows_mm, np.array(origin)])
    return np.asarray((steps * LPS).T, np.float64)


def _check_frame(to_ras: NDArray[np.float64], grid: Grid, shape: tuple[int, ...], number: int) -> None:
    rows, columns = shape
    corners = np.array([(0, 0, 1), (columns - 1, 0, 1), (0, rows - 1, 1)]) @ to_ras.T
    index = grid.index(corners)
    if (
        np.abs(index - np.round(index)).max() >= 0.5 - 1e-9
        or (np.round(index) < 0).any()
        or (np.round(index) >= grid.shape).any()
    ):
        raise GeometryError(f"frame {number} of the segmentation lies outside of the mask")
