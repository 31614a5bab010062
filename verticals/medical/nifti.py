"""NIfTI files (.nii, .nii.gz) as volumes and back.

Headers are parsed by nibabel and checked before any voxel is read; voxels are streamed in chunks into the array they end in.
NIfTI's coordinates are RAS+ mm as ours are. Messages name no file.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from core.errors import DataError, Unavailable
from verticals.medical.dicom.geometry import MAX_VOXELS
from verticals.medical.volume import Grid, Volume

CHUNK_VOXELS = 2**20
"""Voxels that are converted at a time."""
MAX_WRITTEN_SIDE = 2**15 - 1
"""Voxels along an axis that the header of NIfTI-1 can say."""
MAX_HEADER_BYTES = 2**24
"""Before the voxels: header and extensions."""

_GZIP = b"\x1f\x8b"
_MAX_DEFLATE_RATIO = 1032
"""Bytes that one byte of deflate can stand for at most."""
_UNKNOWN_UNIT, _MILLIMETRES = 0, 2
_WRITABLE = ("int16", "uint8", "uint16", "float32")
_FAULTS = (EOFError, zlib.error, OSError)
_image: Any = nib.Nifti1Image  # nibabel says that it is typed, and is not
_narrow_header: Any = nib.Nifti1Header
_wide_header: Any = nib.Nifti2Header


@dataclass(frozen=True, eq=False)
class _Header:
    grid: Grid
    stored: np.dtype[Any]
    offset: int
    slope: float
    intercept: float

    @property
    def num_bytes(self) -> int:
        return self.grid.num_voxels * self.stored.itemsize


def read_nifti(path: Path) -> Volume:
    """A scan: int16 HU, rounded, and saturated where values exceed that type.

    Raises:
        DataError: no NIfTI, no place in the patient, more than one volume, voxels that are no numbers, cut short.
    """
    limits = np.iinfo(np.int16)
    with _opened(path) as (stream, header):
        array = np.empty(header.grid.shape, np.int16, order="F")
        flat = array.reshape(-1, order="F")
        for start, values in _chunks(stream, header):
            flat[start : start + len(values)] = np.clip(np.rint(values), limits.min, limits.max)
    return Volume(array, header.grid)


def read_labels(path: Path) -> Volume:
    """A mask: whole numbers from 0, as uint8 where they fit, else uint16.

    Raises:
        DataError: as `read_nifti`, or a value that is no whole number from 0 to 65,535.
    """
    with _opened(path) as (stream, header):
        array = np.empty(header.grid.shape, np.uint16, order="F")
        flat = array.reshape(-1, order="F")
        for start, values in _chunks(stream, header):
            if (values != np.rint(values)).any():
                raise DataError("the mask holds values that are no whole numbers; allowed are labels from 0 to 65,535")
            if (values < 0).any() or (values > np.iinfo(np.uint16).max).any():
                raise DataError("the mask holds labels below 0 or above 65,535; allowed are labels from 0 to 65,535")
            flat[start : start + len(values)] = values
    return Volume(array.astype(np.uint8) if array.max(initial=0) < 256 else array, header.grid)


def inspect_nifti(path: Path) -> Grid:
    """Shape and place from the header alone, with all of its checks.

    Raises:
        DataError: as `read_nifti`, but for voxels.
    """
    with _opened(path) as (_, header):
        return header.grid


def write_nifti(volume: Volume, path: Path) -> None:
    """Writes a volume, whole or not at all; packed where the name ends in .gz. The header holds nothing but the geometry.

    Raises:
        DataError: another suffix, or another type than int16, uint8, uint16 and float32.
        Unavailable: the folder is missing, full or not to be written.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise DataError("the name to write to ends in neither .nii nor .nii.gz; name the file one of these")
    if volume.array.dtype.name not in _WRITABLE:
        raise DataError(f"voxels of type {volume.array.dtype.name}; allowed are {', '.join(_WRITABLE)}")
    if max(volume.grid.shape) > MAX_WRITTEN_SIDE:
        raise DataError(
            f"a volume of {_by(volume.grid.shape)} voxels; NIfTI holds {MAX_WRITTEN_SIDE:,} along an axis: crop or resample it"
        )
    image = _image(volume.array, None)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.grid.affine, code="scanner")
    if volume.grid.is_orthogonal:  # a quaternion cannot shear
        image.set_qform(volume.grid.affine, code="scanner")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                if path.name.lower().endswith(".gz"):
                    with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0) as packed:
                        image.to_stream(packed)
                else:
                    image.to_stream(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Unavailable(f"the volume cannot be written: {error.strerror}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], _Header]]:
    """A stream that stands at the first voxel, and the header."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only opening it may fail so
    except OSError:
        raise DataError("the file cannot be opened: no such file, a folder, or no permission") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise DataError("the file is empty (0 bytes); send it again")
        packed = file.read(2) == _GZIP
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if packed else file as source:
            stream = cast(IO[bytes], source)
            header = _header(stream)
            needed = header.offset + header.num_bytes
            if needed > size * (_MAX_DEFLATE_RATIO if packed else 1):
                raise DataError(
                    f"the header promises {_by(header.grid.shape)} voxels, {needed:,} bytes, which a file of {size:,} bytes "
                    "cannot hold: cut short, or a wrong header; send it again"
                )
            yield stream, header


def _header(stream: IO[bytes]) -> _Header:
    try:
        start = stream.read(540)
    except _FAULTS:
        raise DataError("the file is packed, but damaged or cut short; send it again") from None
    wide = start[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
    kind = _wide_header if wide else _narrow_header
    magic = start[4:8] if wide else start[344:348]
    if magic[:3] in (b"ni1", b"ni2"):
        raise DataError("a NIfTI header whose voxels lie in a second file; allowed is one file, .nii or .nii.gz")
    if magic[:3] not in (b"n+1", b"n+2"):
        raise DataError("no NIfTI file (its mark 'n+1' is missing); give a .nii or .nii.gz file")
    silent = logging.Logger("silent", logging.CRITICAL + 1)
    try:
        parsed = kind(start[: kind.sizeof_hdr], check=False)
        _check_stated(parsed)
        parsed.check_fix(logger=silent, error_level=40)
        shape, stored = parsed.get_data_shape(), parsed.get_data_dtype()
        slope, intercept = parsed.get_slope_inter()
        offset = float(parsed["vox_offset"])
    except (HeaderDataError, ValueError, TypeError, LookupError, ArithmeticError):
        raise DataError("the NIfTI header is damaged, or of a type that is not known; write the file again") from None
    if stored.kind not in "iuf" or stored.itemsize > 8:
        raise DataError(f"voxels of type {stored.name!r}; allowed are whole and real numbers of up to 64 bits")
    if not kind.sizeof_hdr <= offset <= MAX_HEADER_BYTES:
        raise DataError("the NIfTI header says that voxels start where they cannot; write the file again")
    grid = _grid(parsed, shape)
    return _Header(grid, stored, int(offset), 1.0 if slope is None else slope, 0.0 if intercept is None else intercept)


def _check_stated(parsed: Any) -> None:
    """Raises DataError for what nibabel would mend in silence: another spacing, another scale of the voxels."""
    spacing = np.asarray(parsed["pixdim"][1:4], np.float64)
    if int(parsed["sform_code"]) == 0 and not (spacing > 0).all():  # else the affine has the spacing
        raise DataError(
            f"the voxel spacing is {' x '.join(f'{mm:g}' for mm in spacing)} mm; each has to be greater than 0: correct the header"
        )
    scale = float(parsed["scl_slope"]), float(parsed["scl_inter"])
    if np.isinf(scale).any():  # 0 and NaN say that there is none
        raise DataError(f"voxels are to be scaled by {scale[0]:g} and moved by {scale[1]:g}; both have to be finite")


def _grid(parsed: Any, shape: tuple[int, ...]) -> Grid:
    """Shape and affine, checked."""
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise DataError(f"the file has axes of {_by(shape)}; allowed is one volume of 3 axes: take one of its volumes")
    if any(length < 1 for length in shape):
        raise DataError(f"the file has axes of {_by(shape)}; each has to hold at least 1 voxel: write the file again")
    if min(shape[:3]) < 2:
        raise DataError(f"the file has axes of {_by(shape[:3])}, a single slice; a volume takes at least 2 along each")
    voxels = shape[0] * shape[1] * shape[2]
    if voxels > MAX_VOXELS:
        raise DataError(f"the volume has {voxels:,} voxels; allowed are up to {MAX_VOXELS:,}: crop or resample it")
    unit = int(parsed["xyzt_units"]) & 7
    if unit not in (_UNKNOWN_UNIT, _MILLIMETRES):
        called = {1: "metres", 3: "micrometres"}.get(unit, "a unit that is not known")
        raise DataError(f"lengths are in {called}; allowed is mm: write the file again in mm")
    try:
        affine = parsed.get_sform(coded=True)[0]
        if affine is None:
            affine = parsed.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError, ArithmeticError, np.linalg.LinAlgError):
        raise DataError("the orientation in the NIfTI header (qform) is no rotation; write the file again") from None
    if affine is None:
        raise DataError(
            "the file does not say where its voxels lie in the patient (sform and qform codes are 0); "
            "convert it from DICOM again, or set its sform"
        )
    return Grid((shape[0], shape[1], shape[2]), affine)


def _chunks(stream: IO[bytes], header: _Header) -> Iterator[tuple[int, NDArray[Any]]]:
    """(place, values) of all voxels in the order of the file, scaled; finite float64, or whole numbers as stored.

    Raises:
        DataError: the file ends too early, is damaged, or holds voxels that are no numbers.
    """
    try:
        stream.seek(header.offset)
        for start in range(0, header.grid.num_voxels, CHUNK_VOXELS):
            count = min(CHUNK_VOXELS, header.grid.num_voxels - start)
            raw = _exactly(stream, count * header.stored.itemsize)
            values = np.frombuffer(raw, header.stored)
            if header.slope != 1 or header.intercept != 0 or header.stored.kind == "f":
                values = values.astype(np.float64)
                with np.errstate(invalid="ignore", over="ignore"):
                    values = values * header.slope + header.intercept
                if not np.isfinite(values).all():
                    bad = int((~np.isfinite(values)).sum())
                    raise DataError(
                        f"{bad:,} voxels of a part of the file are no numbers (NaN or infinite); "
                        "replace them, as by -1024 outside of the scan"
                    )
            yield start, values
        stream.read(1)  # a packed file ends here: its checksum is compared
    except _FAULTS:
        raise DataError("the file is damaged or cut short: its voxels cannot be read; send it again") from None


def _exactly(stream: IO[bytes], count: int) -> bytes:
    """Raises EOFError where the stream holds less."""
    buffer = io.BytesIO()
    while (left := count - buffer.tell()) > 0:
        part = stream.read(left)
        if not part:
            raise EOFError
        buffer.write(part)
    return buffer.getvalue()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
