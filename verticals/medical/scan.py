"""A scan as users have it: a NIfTI file, a folder of DICOM files, or a zip archive of them.

Headers come first, so that a cost can be promised before a voxel is read. What an archive is unpacked to is gone when the
block ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError
from verticals.medical.archive import extracted
from verticals.medical.dicom.series import Series, inspect_series, read_series
from verticals.medical.nifti import inspect_nifti, read_nifti
from verticals.medical.volume import Grid, Volume

_GZIP, _ZIP = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class Scan:
    """A scan whose headers have been read and checked."""

    grid: Grid
    is_dicom: bool
    read: Callable[[], Series | Volume]
    """Reads the voxels, as int16 HU on `grid`. Raises DataError for what is wrong with them."""


@contextmanager
def opened(path: Path, *, unpack_to: Path | None = None) -> Iterator[Scan]:
    """The scan at a path, told by its content, not by its name.

    Args:
        unpack_to: a new folder for what an archive holds, which stays; a temporary one where None.

    Raises:
        DataError: no such file, a file of another kind, or the first fault of its headers.
    """
    if path.is_dir():
        yield Scan(inspect_series(path), True, lambda: read_series(path))
        return
    start = _start(path)
    if start.startswith(_ZIP):
        kept = nullcontext(str(unpack_to)) if unpack_to else tempfile.TemporaryDirectory(prefix="series-")
        with kept as folder:
            files = extracted(path, Path(folder))
            yield Scan(inspect_series(files), True, lambda: read_series(files))
    elif start[128:132] == b"DICM":
        yield Scan(inspect_series([path]), True, lambda: read_series([path]))
    elif start.startswith(_GZIP) or start[:4] in (
        b"\x5c\x01\x00\x00",
        b"\x00\x00\x01\x5c",
        b"\x1c\x02\x00\x00",
        b"\x00\x00\x02\x1c",
    ):
        yield Scan(inspect_nifti(path), False, lambda: read_nifti(path))
    elif not start:
        raise DataError("the file is empty (0 bytes); send it again")
    else:
        raise DataError(
            "the file is no scan; give a NIfTI file (.nii, .nii.gz), a folder of DICOM files of one CT series, or a zip archive of them"
        )


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except FileNotFoundError:
        raise DataError(
            "there is no such file or folder; give a NIfTI file, or a folder or zip archive of DICOM files"
        ) from None
    except OSError as error:
        raise DataError(f"the scan cannot be opened: {error.strerror}") from None


def volume_of(scan: Series | Volume) -> Volume:
    """The voxels."""
    return scan.volume if isinstance(scan, Series) else scan
