"""Every kind of picture that a camera or a person leaves, legal and not."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from core.data.pictures import header_of, read_picture
from core.errors import CapacityError, DataError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (40, 60), np.uint8)
COLOUR = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_grey_and_colour_come_as_they_are(format: str) -> None:
    assert (read_picture(file_of(Image.fromarray(GREY), format), num_channels=1)[..., 0] == GREY).all()
    assert (read_picture(file_of(Image.fromarray(COLOUR), format), num_channels=3) == COLOUR).all()


def test_grey_is_shown_in_colour_and_colour_in_grey() -> None:
    assert (read_picture(file_of(Image.fromarray(GREY)), num_channels=3) == GREY[..., None]).all()
    shown = read_picture(file_of(Image.fromarray(COLOUR)), num_channels=1)[..., 0]
    assert (shown == cv2.cvtColor(COLOUR, cv2.COLOR_RGB2GRAY)).all()


def test_one_bit_is_black_and_white() -> None:
    bits = GREY > 127
    assert (read_picture(file_of(Image.fromarray(bits)), num_channels=1)[..., 0] == bits * 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_by_white(format: str) -> None:
    deep = RANDOM.integers(0, 4096, (40, 60), np.uint16)
    data = file_of(Image.fromarray(deep), format)
    assert header_of(data).bits == 16
    shown = read_picture(data, num_channels=1, white=4095)[..., 0]
    assert (shown == np.rint(deep * (255 / 4095))).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_colour(suffix: str) -> None:
    deep = RANDOM.integers(0, 4096, (40, 60, 3), np.uint16)
    data = cv2.imencode(suffix, deep[..., ::-1])[1].tobytes()
    header = header_of(data)
    assert (header.bits, header.num_channels, header.width, header.height) == (16, 3, 60, 40)
    assert (read_picture(data, num_channels=3, white=4095) == np.rint(deep * (255 / 4095))).all()


def test_palette_and_cmyk() -> None:
    palette = Image.fromarray(COLOUR).quantize(64)
    assert (read_picture(file_of(palette), num_channels=3) == np.array(palette.convert("RGB"))).all()
    cmyk = file_of(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(cmyk)) as opened:
        assert (read_picture(cmyk, num_channels=3) == np.array(opened.convert("RGB"))).all()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_a_picture_is_turned_as_it_says(format: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = file_of(Image.fromarray(COLOUR), format, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        upright = np.array(ImageOps.exif_transpose(opened))
    assert header_of(data)[:2] == upright.shape[1::-1]
    assert (read_picture(data, num_channels=3) == upright).all()


def test_a_renamed_file_is_read_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(file_of(Image.fromarray(GREY)))
    assert (read_picture(tmp_path / "a.jpg", num_channels=1)[..., 0] == GREY).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty, of 0 bytes"),
        (b"hello", "is no picture"),
        (b"%PDF-1.7 hello", "is no picture"),
        (file_of(Image.fromarray(COLOUR))[:-2000], "damaged, or was cut off"),
        (file_of(Image.fromarray(COLOUR), "JPEG")[:-800], "damaged, or was cut off"),
        (file_of(Image.fromarray(COLOUR), "TIFF")[:-800], "damaged, or was cut off"),
        (
            file_of(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            "shows 2 pictures",
        ),
        (
            file_of(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            "shows 2 pictures",
        ),
        (file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "values of 32 bits"),
    ],
)
def test_what_is_no_usable_picture_is_refused_by_name(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "board.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_picture(path, num_channels=1)
    assert "board.png" in str(caught.value)


def test_a_huge_picture_is_refused_with_the_figure_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(Image.new("L", (30_000, 30_000)))
    monkeypatch.setenv("VERTICALS_MEMORY_GB", "1.5")
    with pytest.raises(CapacityError, match=r"30,000 x 30,000 pixels: \d+\.\d+ GB"):
        read_picture(data, num_channels=1)
