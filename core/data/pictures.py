"""Pictures, from files as cameras and people leave them, to uint8 [Y, X, C]; refused by name where that cannot be done.

8 and 16 bit, grey and colour, one bit, palettes, CMYK: PNG, JPEG, TIFF, BMP, WebP, GIF. Values of 16 bit are scaled by `white`.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from core.errors import CapacityError, DataError
from core.memory import memory_limit, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

Picture = NDArray[np.uint8]
"""[Y, X, C], C is 1 (grey) or 3 (red, green, blue)."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
LEAST_SIDE = 16
"""Pixels: what is smaller shows nothing."""
BYTES_PER_VALUE = 3
"""Held while a picture is decoded, for each value of it: the file's own pixels, the turned ones, the array."""

TURN = 0x0112
"""Exif's tag of how a camera was held."""
SIDEWAYS = (5, 6, 7, 8)
"""Its values that exchange width and height."""

Image.MAX_IMAGE_PIXELS = None  # `opened` compares what a picture needs with the memory there is


class Header(NamedTuple):
    """What a file says of itself."""

    width: int
    height: int
    num_channels: int
    bits: int


class Opened(NamedTuple):
    """A picture whose pixels are not read yet."""

    image: Image.Image
    header: Header
    turn: int
    """How the camera was held, as Exif numbers it; 1 is upright."""
    file: IO[bytes]


def header_of(source: Path | bytes, *, name: str = "") -> Header:
    """
    Args:
        name: what errors call it; a path's own where left out.

    Raises:
        DataError: it is no picture, or one that shows several.
    """
    with opened(source, name=name) as found:
        return found.header


def suffix_of(source: Path | bytes) -> str:
    """Of a file of that format, `.png`. Raises DataError where it is no picture."""
    with opened(source) as found:
        return f".{str(found.image.format).lower()}"


def read_picture(
    source: Path | bytes, *, num_channels: int, white: int = 65535, name: str = "", most_pixels: int | None = None
) -> Picture:
    """The picture, in grey or in colour whatever the file is in.

    Args:
        num_channels: 1 or 3.
        white: value of 16-bit files that is white: 4095 for a camera of 12 bits.
        most_pixels: that are decoded; as many as memory holds where None.
        name: what errors call it; a path's own where left out.

    Raises:
        DataError: it is no picture, is damaged, or shows several.
        CapacityError: it has more pixels, or needs more memory than there is; nothing was decoded.
    """
    with opened(source, name=name) as found:
        name = name or _name(source)
        if most_pixels is not None and found.header.width * found.header.height > most_pixels:
            raise CapacityError(
                f"{name} has {found.header.width:,} x {found.header.height:,} pixels; allowed are {most_pixels / 1e6:g} million: "
                "make it smaller"
            )
        needed = resident_bytes() + picture_bytes(found.header, num_channels)
        if needed > (limit := memory_limit()):
            raise CapacityError(
                f"{name} has {found.header.width:,} x {found.header.height:,} pixels: {needed / 1e9:.2f} GB of memory to read it; "
                f"allowed are {limit / 1e9:.2f} GB: cut it into parts"
            )
        try:
            pixels = _pixels(found, white)
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, cv2.error) as error:
            raise DataError(f"{name} is damaged, or was cut off ({error}); send it again") from None
    if pixels.shape[2] == num_channels:
        return pixels
    if num_channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], np.uint8)


def picture_bytes(header: Header, num_channels: int) -> int:
    """The most that reading a picture adds to what a process holds."""
    values = header.width * header.height * max(header.num_channels, num_channels)
    return BYTES_PER_VALUE * values * (2 if header.bits > 8 else 1)


@contextmanager
def opened(source: Path | bytes, *, name: str = "") -> Iterator[Opened]:
    """The file as a picture, its header read.

    Raises:
        DataError: it cannot be read, is no picture, shows several, or is too small.
    """
    name = name or _name(source)
    try:
        file: IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None
    with file:
        if not file.read(1):
            raise DataError(f"{name} is empty, of 0 bytes; send it again")
        file.seek(0)
        try:
            image = Image.open(file, formats=FORMATS)
            frames = getattr(image, "n_frames", 1)
            is_deep = _is_16_bit(image)
            turn = _turn_of(image)
        except UnidentifiedImageError:
            raise DataError(
                f"{name} is no picture, or its beginning is damaged; allowed are {', '.join(FORMATS)}"
            ) from None
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise DataError(f"{name} is damaged, or was cut off ({error}); send it again") from None
        if frames > 1:
            raise DataError(f"{name} shows {frames} pictures; give a file for each")
        if min(image.size) < LEAST_SIDE:
            raise DataError(
                f"{name} has {image.size[0]} x {image.size[1]} pixels; allowed are {LEAST_SIDE} and more on each side"
            )
        if image.mode in ("F", "I") and not is_deep:
            raise DataError(
                f"{name} has values of 32 bits; allowed are 8 and 16: convert it, with what is white at the top"
            )
        width, height = image.size[::-1] if turn in SIDEWAYS and image.format != "TIFF" else image.size
        is_grey = image.mode in ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")
        yield Opened(image, Header(width, height, 1 if is_grey else 3, 16 if is_deep else 8), turn, file)


def _name(source: Path | bytes) -> str:
    return source.name if isinstance(source, Path) else "the picture"


def _is_16_bit(image: Image.Image) -> bool:
    """What Pillow reads of colour in 16 bits is in 8; its tiles say so."""
    return image.mode.startswith("I;16") or any(
        "16" in str(tile[3]) for tile in getattr(image, "tile", ()) if image.mode != "P"
    )


def _turn_of(image: Image.Image) -> int:
    """From the header alone: of a PNG Pillow would read the whole picture to find out."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    turn = image.getexif().get(TURN, 1)
    return turn if turn in range(1, 9) else 1


def _pixels(found: Opened, white: int) -> Picture:
    image, is_grey = found.image, found.header.num_channels == 1
    turn = 1 if image.format == "TIFF" else found.turn  # Pillow lays those upright itself
    if found.header.bits == 16:
        image.load()  # it notices what is missing, and OpenCV does not
        if not is_grey:
            return _upright(_eight_bits(_deep_colour(found.file), white), found.turn)
        return _upright(_eight_bits(np.asarray(image)[..., None], white), turn)
    array = np.array(image.convert("L" if is_grey else "RGB"), np.uint8)
    return _upright(array[..., None] if is_grey else array, turn)


def _deep_colour(file: IO[bytes]) -> NDArray[np.uint16]:
    file.seek(0)
    deep = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3:
        raise OSError("its values of 16 bits cannot be read")
    return np.asarray(deep[..., 2::-1], np.uint16)


def _upright(array: Picture, turn: int) -> Picture:
    """As Exif's value says: 2 mirrored, 3 upside down, 4 both, 5 to 8 the same of what lies sideways."""
    if turn in SIDEWAYS:
        array = array.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def _eight_bits(deep: NDArray[np.generic], white: int) -> Picture:
    scaled = np.multiply(deep, 255.0 / white, dtype=np.float32)
    return np.asarray(np.clip(np.rint(scaled, out=scaled), 0, 255), np.uint8)
