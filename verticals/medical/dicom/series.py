"""A CT series from its files: volume in Hounsfield units, and the headers that what is derived from it refers to.

Headers are read and checked first, pixels then, one slice at a time. What is not one even stack of CT slices is refused.
Skipped are objects that hold no image (DICOMDIR, RT structures, reports), files that systems leave behind (`.DS_Store`), and
localizers that carry the UID of the series, as some scanners store them; a localizer with its own UID is a second series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pydicom

from core.errors import DataError
from verticals.medical.dicom.decode import Decoder
from verticals.medical.dicom.geometry import MAX_SLICES, arranged
from verticals.medical.dicom.headers import Slice, read_slice
from verticals.medical.dicom.pixels import hounsfield
from verticals.medical.volume import Grid, Volume

MAX_FILES = 4 * MAX_SLICES
"""Files in one place: the headers of all are held at once."""

_LEFT_BEHIND = {"thumbs.db", "desktop.ini", "dicomdir"}


@dataclass(frozen=True, eq=False)
class Series:
    """A CT series in memory."""

    volume: Volume
    """int16 HU [column, row, slice]."""
    sources: list[pydicom.Dataset]
    """Header of each slice, without pixels; private elements are left out."""


def read_series(source: Path | Sequence[Path]) -> Series:
    """The series in a folder, searched with its subfolders, or of the given files; memory is that of the volume.

    Raises:
        DataError: the first fault, by the place of its file in the sorted listing: "file 17 of 60".
    """
    slices, grid = _checked(source)
    array = np.empty(grid.shape, np.int16, order="F")
    with Decoder() as decoder:
        for k, piece in enumerate(slices):
            array[:, :, k] = hounsfield(piece, decoder).T
    return Series(Volume(array, grid), [piece.header for piece in slices])


def inspect_series(source: Path | Sequence[Path]) -> Grid:
    """Shape and place of a series (columns, rows, slices) from its headers alone, with all of their checks: enough to
    promise a cost.

    Raises:
        DataError: as `read_series`, but for pixels.
    """
    return _checked(source)[1]


def is_left_behind(name: PurePath) -> bool:
    """Whether a file is one that systems and discs put beside the images: hidden, or known by its name."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in name.parts)
    return hidden or "__MACOSX" in name.parts or name.name.lower() in _LEFT_BEHIND


def _checked(source: Path | Sequence[Path]) -> tuple[list[Slice], Grid]:
    paths = _listed(source)
    found = [read_slice(path, f"file {number} of {len(paths)}") for number, path in enumerate(paths, 1)]
    images = [piece for piece in found if piece is not None]
    slices = [piece for piece in images if not piece.is_localizer]
    if not slices:
        raise DataError(
            f"no CT slice among {len(paths)} files ({len(images)} localizers, {len(paths) - len(images)} without an image); "
            "give the files of one CT series"
        )
    scanned = {str(piece.header.SeriesInstanceUID) for piece in slices}
    strange = [piece for piece in images if str(piece.header.SeriesInstanceUID) not in scanned]
    return arranged(slices + strange)


def _listed(source: Path | Sequence[Path]) -> list[Path]:
    """Files in sorted order; those that systems leave in folders are not among them."""
    if isinstance(source, Path):
        if not source.is_dir():
            raise DataError("no such folder; give the folder of one CT series, or a list of its files")
        paths = sorted(
            path for path in source.rglob("*") if not is_left_behind(path.relative_to(source)) and path.is_file()
        )
    else:
        paths = sorted(source)
    if not paths:
        raise DataError("no file there; give the files of one CT series")
    if len(paths) > MAX_FILES:
        raise DataError(
            f"{len(paths):,} files in one place; allowed are up to {MAX_FILES:,}: give the files of one series"
        )
    return paths
