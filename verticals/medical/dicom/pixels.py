"""Hounsfield units of one slice from its stored pixels, compressed or not."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from core.errors import DataError
from verticals.medical.dicom.decode import Decoder
from verticals.medical.dicom.headers import FAULTS, PYTHON_PLUGIN, Slice, decoding_plugin, quiet
from verticals.medical.volume import AIR_HU

_STARTS_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_JPEG_2000 = b"\xff\x4f\xff\x51"


def hounsfield(piece: Slice, decoder: Decoder) -> NDArray[np.int16]:
    """[rows, columns] HU = slope * stored + intercept, rounded and held to int16; padding is air.

    Raises:
        DataError: the pixels are missing, cut short, or cannot be decoded.
    """
    try:
        stored = _stored(piece, decoder)
    except DataError as error:
        raise DataError(f"{piece.name}: {error}") from None
    header = piece.header
    unused = int(header.BitsAllocated) - int(header.BitsStored)
    # what stands in unused bits (overlays once did) is no value; the sign is kept
    stored = (stored << unused) >> unused
    values = stored * piece.slope
    values += piece.intercept
    np.rint(values, out=values)
    limits = np.iinfo(np.int16)
    np.clip(values, limits.min, limits.max, out=values)
    values[_padding(stored, header)] = AIR_HU
    return values.astype(np.int16)


def _stored(piece: Slice, decoder: Decoder) -> NDArray[Any]:
    """[rows, columns] as stored: 8, 16 or 32 bits, signed or not."""
    shape = (piece.shape[1], piece.shape[0])
    with quiet():
        dataset, pixels = _opened(piece, shape)
        syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
        plugin = decoding_plugin(syntax)
        if plugin is None:
            size = shape[0] * shape[1] * int(piece.header.BitsAllocated) // 8
            if len(pixels) not in (size, size + size % 2):
                raise DataError(
                    f"has {len(pixels):,} bytes of pixels where its matrix takes {size:,}: "
                    f"{'cut short' if len(pixels) < size else 'more than one slice, or a wrong header'}; send it again"
                )
        elif plugin != PYTHON_PLUGIN and _coded_shape(pixels) != shape:
            raise DataError("holds compressed pixels of another matrix size than its header says; send it again")
        stored = _decoded(dataset, syntax) if plugin in (None, PYTHON_PLUGIN) else None
    if plugin not in (None, PYTHON_PLUGIN):
        stored = decoder(piece.path, plugin, shape)  # not within `quiet`: others may read meanwhile
    if stored is None or stored.shape != shape:
        raise DataError(
            f"its pixels cannot be decoded as {syntax.name!r}: damaged or cut short; "
            "send it again, or convert the series to Explicit VR Little Endian"
        )
    return stored


def _opened(piece: Slice, shape: tuple[int, int]) -> tuple[pydicom.Dataset, bytes]:
    """The file once more, with its pixels: those of the header that passed."""
    try:
        dataset = pydicom.dcmread(piece.path)
        same = dataset.SOPInstanceUID == piece.header.SOPInstanceUID
        same = same and (dataset.get("Rows"), dataset.get("Columns")) == shape
        pixels = dataset.get("PixelData")
    except FAULTS:
        raise DataError("cannot be read to its end: damaged, cut short, or removed meanwhile; send it again") from None
    if not same:
        raise DataError("was changed while the series was read; read it again")
    if not pixels:
        raise DataError("has no pixel data: it is cut short, or was stored without them; send it again")
    return dataset, pixels


def _decoded(dataset: pydicom.Dataset, syntax: UID) -> NDArray[Any] | None:
    """[rows, columns] of pixels that are not compressed, or run-length encoded; None where that fails."""
    try:
        return np.asarray(get_decoder(syntax).as_array(dataset, raw=True)[0])
    except (*FAULTS, RuntimeError):
        return None


def _coded_shape(pixels: bytes) -> tuple[int, int]:
    """(rows, columns) that a JPEG frame of any kind claims: what a decoder would allocate. (0, 0) where it claims none."""
    try:
        frame = next(generate_frames(pixels, number_of_frames=1))
        if frame[:4] == _JPEG_2000:
            right, bottom, left, top = struct.unpack(">4I", frame[8:24])
            return bottom - top, right - left
        place = 2  # the segments follow the mark of the start
        while frame[place] == 0xFF:
            if frame[place + 1] in _STARTS_OF_FRAME:
                rows, columns = struct.unpack(">2H", frame[place + 5 : place + 9])
                return rows, columns
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    except (*FAULTS, StopIteration):
        pass
    return 0, 0


def _padding(stored: NDArray[Any], header: pydicom.Dataset) -> NDArray[np.bool_]:
    """[rows, columns] pixels that stand for nothing: equal to PixelPaddingValue, or within its range."""
    ends = [header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")]
    numbers = [
        np.int64(end).astype(stored.dtype) for end in ends if isinstance(end, int)
    ]  # US or SS: as the pixels are
    if not numbers or not isinstance(ends[0], int):
        return np.zeros(stored.shape, bool)
    inside: NDArray[np.bool_] = (stored >= min(numbers)) & (stored <= max(numbers))
    return inside
