"""One file of a CT series: its header, read without the pixels and held to what a slice has to say.

Coordinates are DICOM's here, LPS in mm. A file is called by its place, as "file 17 of 60": names, UIDs and whatever else
stands in a header are the patient's and appear in no message.
"""

from __future__ import annotations

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from core.errors import DataError

MAX_MATRIX = 4096
"""Rows or columns of a slice; scanners reconstruct 512 to 2,048."""
MAX_FILE_BYTES = 2**27
"""Of one slice: the largest matrix in 32 bits is half of it."""
UNIT_TOLERANCE = 1e-3
"""How far direction cosines may depart from unit length and a right angle: their digits are rounded."""

FAULTS = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What pydicom raises over bytes that are no DICOM, or damaged."""

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_DIRECTORY = "1.2.840.10008.1.3.10"
_WITHOUT_IMAGE = ("RTSTRUCT", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN")
"""Modalities of objects that stand beside a series and hold no image."""
_NATIVE = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2")
_DEFLATED = "1.2.840.10008.1.2.1.99"
PYTHON_PLUGIN = "pydicom"
"""The decoder that is no compiled library: whatever it is given, it ends in an exception at worst."""
_PLUGINS = {
    "1.2.840.10008.1.2.5": (PYTHON_PLUGIN,),  # RLE
    "1.2.840.10008.1.2.4.57": ("gdcm",),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm"),  # JPEG-LS
    "1.2.840.10008.1.2.4.90": ("gdcm", "pylibjpeg"),  # JPEG 2000; pylibjpeg stands for OpenJPEG here
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),  # High-Throughput JPEG 2000
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm"),  # from here on something may be lost
    "1.2.840.10008.1.2.4.91": ("gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.50": ("pillow", "gdcm"),  # JPEG, 8 bits
}
"""pydicom's decoders by transfer syntax, both best first. Those under a GPL are left out, which costs 12-bit JPEG."""
ENCODINGS = (*_NATIVE, *_PLUGINS)
"""Transfer syntaxes whose pixels are read, the best first: a sender of several is asked for the first that it has."""
_TERMS = (
    f" {' '.join(_WITHOUT_IMAGE)} CR CT DX MG MR NM OPT OT PT PX RF RTDOSE RTIMAGE SC SEG US XA XC MONOCHROME1 RGB "
    "PALETTE COLOR YBR_FULL YBR_FULL_422 YBR_ICT YBR_RCT OD MGML Z_EFF ED EDW HU_MOD PCT "
    "POINT OPEN_PLANAR OPEN_NONPLANAR CLOSED_PLANAR CLOSEDPLANAR_XOR "
)
"""Of DICOM, which messages may repeat; other text in their place may be anything."""
_REQUIRED = (
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
)
_KEPT_BYTES = 2**16
_lock = threading.RLock()


@dataclass(frozen=True, eq=False)
class Slice:
    """A header that passed, and the values of it that geometry and pixels need."""

    path: Path
    name: str
    """"file 17 of 60"."""
    header: pydicom.Dataset
    """Without pixels, private elements, elements above 64 KiB, and those whose value cannot be read."""
    shape: tuple[int, int]
    """Columns, rows."""
    spacing_mm: NDArray[np.float64]
    """[2] between columns, between rows."""
    across: NDArray[np.float64]
    """[3] unit vector along which the column index grows."""
    down: NDArray[np.float64]
    """[3] unit vector along which the row index grows, perpendicular to `across`."""
    position_mm: NDArray[np.float64]
    """[3] centre of the first pixel."""
    slope: float
    intercept: float

    @property
    def is_localizer(self) -> bool:
        kinds = self.header.get("ImageType") or ()
        return "LOCALIZER" in ([kinds] if isinstance(kinds, str) else kinds)


@contextmanager
def quiet() -> Iterator[None]:
    """Around calls of pydicom on a patient's data: its warnings and log lines quote values. One thread at a time, since
    both are settings of the process."""
    logger = logging.getLogger("pydicom")
    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def decoding_plugin(syntax: str) -> str | None:
    """The decoder of a transfer syntax, None where the pixels are not compressed.

    Raises:
        DataError: nothing that is installed decodes it.
    """
    if syntax in _NATIVE:
        return None
    if syntax in _PLUGINS:
        available = get_decoder(UID(syntax)).available_plugins
        for plugin in _PLUGINS[syntax]:
            if plugin in available:
                return plugin
    called = UID(syntax).name if UID(syntax).name != syntax else "unknown transfer syntax"
    raise DataError(
        f"pixels are encoded as {called!r}, which is not decoded here; "
        "convert the series to Explicit VR Little Endian, or ask the archive for it in that encoding"
    )


def read_slice(path: Path, name: str) -> Slice | None:
    """The header of a file, None for an object that holds no image (DICOMDIR, RT structures, reports).

    Raises:
        DataError: no DICOM, no single-frame CT image, or a header that lacks or contradicts what a slice needs.
    """
    try:
        with quiet():
            header, syntax = _opened(path)
            if header is None or str(header.get("Modality", "")) in _WITHOUT_IMAGE:
                return None
            _check_kind(header)
            decoding_plugin(syntax)
            return _slice(path, name, header)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _opened(path: Path) -> tuple[pydicom.Dataset | None, str]:
    """Header and transfer syntax; no header for a DICOMDIR."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError("is no file; give files, or one folder")
        if size == 0:
            raise DataError("is empty (0 bytes); send it again")
        if size > MAX_FILE_BYTES:
            raise DataError(f"has {size / 2**20:,.0f} MiB; a slice has at most {MAX_FILE_BYTES // 2**20}")
        meta = read_file_meta_info(path)
        syntax = str(meta.get("TransferSyntaxUID", ""))
        if str(meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
            return None, syntax
        if not syntax:
            raise DataError(
                "does not say its transfer syntax (0002,0010): cut short, or stored without a file header; "
                "export the series again"
            )
        if syntax == _DEFLATED:  # pydicom inflates such a file as a whole, whatever it grows to
            decoding_plugin(syntax)
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        raise DataError(
            "is no DICOM file (no 'DICM' at byte 128); leave only the files of one CT series in the folder"
        ) from None
    except FileNotFoundError:
        raise DataError("no such file") from None
    except FAULTS:
        raise DataError("cannot be read as DICOM: damaged, or no permission; send it again") from None
    _settle(header)
    return header, syntax


def _settle(header: pydicom.Dataset) -> None:
    """Converts every element now, in place: later it would warn with its value, or fail. See `Slice.header`."""
    for tag in list(header.keys()):
        try:
            stored = header.get_item(tag)
            if tag.is_private or len(getattr(stored, "value", None) or b"") > _KEPT_BYTES:
                del header[tag]
                continue
            element = header[tag]
            if element.VR == "SQ":
                for item in element.value:
                    _settle(item)
        except FAULTS:
            del header[tag]


def _check_kind(header: pydicom.Dataset) -> None:
    """Raises DataError unless this is a single-frame CT image in grey values."""
    kind, modality = str(header.get("SOPClassUID", "")), header.get("Modality")
    if modality and modality != "CT":
        raise DataError(f"modality {term(modality)}; allowed is CT: leave only the CT series in the folder")
    if kind in _ENHANCED or _count(header.get("NumberOfFrames")) > 1:
        raise DataError(
            "is a multi-frame (enhanced) CT image; allowed is CT Image Storage with one file a slice: convert the series"
        )
    if kind != _CT_IMAGE:
        called = UID(kind).name if kind and UID(kind).name != kind else "none that is known"
        raise DataError(f"object class {called!r}; allowed is 'CT Image Storage'")
    missing = [keyword for keyword in ("Modality", *_REQUIRED) if header.get(keyword) in (None, "")]
    if missing:
        raise DataError(
            f"lacks {', '.join(missing)}, or cannot be read there; export the series again, with full headers"
        )
    if (samples := _count(header.SamplesPerPixel)) != 1:
        raise DataError(f"has {samples} samples per pixel (colour); a CT slice has 1")
    if header.PhotometricInterpretation != "MONOCHROME2":
        raise DataError(f"photometric interpretation {term(header.PhotometricInterpretation)}; allowed is MONOCHROME2")
    unit = str(header.get("RescaleType") or "HU")
    if unit not in ("HU", "US"):  # scanners write US, unspecified, for Hounsfield units too
        raise DataError(f"its values are {term(unit)} (RescaleType); allowed are Hounsfield units, HU")


def term(value: Any) -> str:
    """A value of a header for a message: what is no term of DICOM may hold a name, and is not repeated."""
    return repr(str(value)) if f" {value} " in _TERMS else "no term of DICOM"


def _slice(path: Path, name: str, header: pydicom.Dataset) -> Slice:
    columns, rows = _count(header.Columns), _count(header.Rows)
    if not (0 < columns <= MAX_MATRIX and 0 < rows <= MAX_MATRIX):
        raise DataError(f"has {columns} x {rows} pixels; allowed are 1 to {MAX_MATRIX:,} columns and rows")
    allocated, stored = _count(header.BitsAllocated), _count(header.BitsStored)
    high, sign = _count(header.HighBit), _count(header.PixelRepresentation)
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1 or sign not in (0, 1):
        raise DataError(
            f"bits allocated {allocated}, stored {stored}, high bit {high}, pixel representation {sign}; allowed are 8, 16 "
            "or 32 allocated, stored no more than that, the high bit one less than stored, representation 0 or 1"
        )
    slope, intercept = float(_numbers(header, "RescaleSlope", 1)[0]), float(_numbers(header, "RescaleIntercept", 1)[0])
    if slope == 0:
        raise DataError("RescaleSlope is 0: all pixels would be one value; correct the header")
    between_rows, between_columns = _numbers(header, "PixelSpacing", 2)
    if not (between_rows > 1e-3 and between_columns > 1e-3):
        raise DataError(
            f"PixelSpacing {between_rows:g} x {between_columns:g} mm; each has to be greater than 0: correct the header"
        )
    across, down = _numbers(header, "ImageOrientationPatient", 6).reshape(2, 3)
    lengths = float(np.linalg.norm(across)), float(np.linalg.norm(down))
    cosine = float(across @ down)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(cosine)) > UNIT_TOLERANCE:
        raise DataError(
            f"ImageOrientationPatient holds vectors of length {lengths[0]:.4g} and {lengths[1]:.4g} with the product "
            f"{cosine:.4g}; allowed are two perpendicular unit vectors: correct the header"
        )
    across = across / lengths[0]
    down = down - across * (across @ down)
    return Slice(
        path,
        name,
        header,
        (columns, rows),
        np.array([between_columns, between_rows]),
        across,
        down / np.linalg.norm(down),
        _numbers(header, "ImagePositionPatient", 3),
        slope,
        intercept,
    )


def _numbers(header: pydicom.Dataset, keyword: str, count: int) -> NDArray[np.float64]:
    """[count] finite values of an element that is there."""
    value: Any = header.get(keyword)
    try:
        values = np.array([float(v) for v in ([value] if isinstance(value, str | float | int) else value)])
    except (TypeError, ValueError, ArithmeticError):
        values = np.array([np.nan])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise DataError(f"{keyword} does not hold {count} finite number{'s' if count > 1 else ''}; correct the header")
    return values


def _count(value: Any) -> int:
    """A whole number of a header, -1 for anything else."""
    try:
        return int(value)
    except (TypeError, ValueError, ArithmeticError):
        return -1
