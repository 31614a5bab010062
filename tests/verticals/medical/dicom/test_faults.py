"""Series that are refused, and what the refusal says."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from core.errors import DataError
from tests.verticals.medical.phantoms import (
    SECRET,
    at_same_places,
    edited,
    jpeg_lossless,
    noise,
    placed,
    recompressed,
    setting,
)
from verticals.medical.dicom import decode, geometry, headers, series
from verticals.medical.dicom.series import inspect_series, read_series
from verticals.medical.dicom.write import write_series


def refused(source: Path, *substance: str, pixels: bool = False) -> None:
    """Refused with a message that holds the substance and nothing of the patient or of names of files; from the headers
    alone unless the fault lies in pixels."""
    if pixels:
        inspect_series(source)
    for call in (read_series,) if pixels else (read_series, inspect_series):
        with pytest.raises(DataError) as caught:
            call(source)
        message = str(caught.value)
        for part in substance:
            assert part in message, message
        for secret in ("Geheim", "Klara", "SYNTHETIC", ".dcm", "2.25.", "1.2.826", str(source)):
            assert secret not in message, message


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_pixels_that_are_damaged(syntax: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path
    write_series(noise(placed((40, 33, 6))), folder, patient_name=SECRET)
    edited(folder, lambda dataset, _: recompressed(dataset, syntax))
    whole = sorted(folder.iterdir())[3]
    content = whole.read_bytes()
    whole.write_bytes(content[:-40])
    refused(folder, "file 4 of 6", "cut short", pixels=True)
    whole.write_bytes(content)
    edited(folder, lambda dataset, _: setattr(dataset, "PixelData", encapsulate([b"\xff\x00" * 40])), only=3)
    refused(folder, "file 4 of 6", pixels=True)
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("place", "value"), [(6, 17), (15, 0)])
def test_a_frame_that_ends_its_decoder_ends_nothing_else(
    place: int, value: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """gdcm 3.2.6 aborts, or reads where it may not, over a bit depth of 17 and a code table without codes."""
    volume = noise(placed((40, 33, 3)))
    write_series(volume, tmp_path, patient_name=SECRET)
    jpeg_lossless(tmp_path)
    path = tmp_path / "000002.dcm"
    whole = path.read_bytes()
    spoiled = bytearray(whole)
    spoiled[whole.rindex(b"\xff\xd8\xff\xc3") + place] = value
    path.write_bytes(spoiled)
    refused(tmp_path, "file 2 of 3", "cannot be decoded as 'JPEG Lossless", pixels=True)
    assert capfd.readouterr() == ("", "")
    path.write_bytes(whole)
    assert at_same_places(volume, read_series(tmp_path).volume)


def test_a_decoder_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(noise(placed((40, 33, 3))), tmp_path)
    jpeg_lossless(tmp_path)
    monkeypatch.setattr(decode, "DECODE_SECONDS", 0.01)
    refused(tmp_path, "file 1 of 3", "cannot be decoded", pixels=True)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_frame_that_claims_a_larger_matrix_is_not_decoded(syntax: str, tmp_path: Path) -> None:
    write_series(noise(placed((64, 40, 2))), tmp_path)

    def cropped(dataset: pydicom.Dataset, _: int) -> None:
        recompressed(dataset, syntax)
        dataset.Rows = 20

    edited(tmp_path, cropped)
    refused(tmp_path, "another matrix size", pixels=True)


def test_a_transfer_syntax_without_decoder_is_named(folder: Path) -> None:
    def named(syntax: str) -> Callable[[pydicom.Dataset, int], None]:
        return lambda dataset, _: setattr(dataset.file_meta, "TransferSyntaxUID", syntax)

    edited(folder, lambda dataset, _: recompressed(dataset, RLELossless))
    edited(folder, named(JPEGExtended12Bit))
    refused(folder, "JPEG Extended", "Explicit VR Little Endian")
    edited(folder, named("1.2.3.4.5"))
    refused(folder, "unknown transfer syntax")


def test_a_deflated_file_is_refused_before_it_is_inflated(folder: Path) -> None:
    edited(folder, lambda dataset, _: setattr(dataset.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2.1.99"), only=2)
    refused(folder, "file 3 of 6", "Deflated")


def moved(dataset: pydicom.Dataset, millimetres: float, axis: int = 2) -> None:
    position = [float(v) for v in dataset.ImagePositionPatient]
    position[axis] += millimetres
    dataset.ImagePositionPatient = [f"{v:.6f}" for v in position]


def test_spacing_within_one_percent_is_even_and_beyond_is_not(folder: Path) -> None:
    edited(folder, lambda dataset, _: moved(dataset, 0.024), only=3)
    assert read_series(folder).volume.grid.spacing_mm[2] == pytest.approx(2.5)
    edited(folder, lambda dataset, _: moved(dataset, 0.6), only=3)
    refused(folder, "apart", "within 1 %", "1.876", "3.124")


def test_a_spacing_that_creeps_is_refused(tmp_path: Path) -> None:
    write_series(noise(placed((3, 3, 101))), tmp_path)
    edited(tmp_path, lambda dataset, number: moved(dataset, 0.02 * min(number, 50)))
    refused(tmp_path, "changes along the scan", "101")


def test_a_slice_that_is_turned_a_little_is_refused_where_that_is_half_a_voxel(folder: Path, tmp_path: Path) -> None:
    turned = setting(ImageOrientationPatient=[-1, -0.0009, 0, 0.0009, -1, 0])
    edited(folder, turned, only=2)
    assert read_series(folder).volume.grid.shape == (7, 5, 6)
    write_series(noise(placed((3, 700, 4))), tmp_path / "large")
    edited(tmp_path / "large", turned, only=2)
    refused(tmp_path / "large", "is turned against the others", "voxels from where", "less than half")


def test_slices_that_creep_sideways_are_named(tmp_path: Path) -> None:
    write_series(noise(placed((9, 9, 40), spacing=(0.4, 0.4, 5.0))), tmp_path)
    edited(tmp_path, lambda dataset, number: moved(dataset, 0.04 * max(0, number - 20), axis=0))
    refused(tmp_path, "has moved sideways from the others", "less than half")


def test_a_slice_moved_sideways_is_refused(folder: Path) -> None:
    edited(folder, lambda dataset, _: moved(dataset, 4.0, axis=0), only=2)
    refused(folder, "not on one line", "4.00 mm sideways")


@pytest.mark.parametrize(
    ("gone", "substance"),
    [
        ([2], ["1 slice(s) missing", "1 between slice 2 and 3", "-877.62 and -872.62", "2.5 mm apart"]),
        ([1, 2], ["2 slice(s) missing", "2 between slice 1 and 2"]),
        ([1, 3], ["2 slice(s) missing", "1 between slice 1 and 2", "1 between slice 2 and 3"]),
    ],
)
def test_missing_slices_are_counted_and_placed(folder: Path, gone: list[int], substance: list[str]) -> None:
    paths = sorted(folder.iterdir())
    for number in gone:
        paths[number].unlink()
    refused(folder, *substance)


def test_duplicates_are_refused(folder: Path) -> None:
    first = sorted(folder.iterdir())[0]
    copy = folder / "copy.dcm"
    copy.write_bytes(first.read_bytes())
    refused(folder, "duplicate slice", "file 1 of 7 and file 7 of 7 are the same image")
    edited(folder, lambda dataset, _: setattr(dataset, "SOPInstanceUID", generate_uid()), only=6)
    refused(folder, "duplicate slices: 1 lie at the same place", "file 1 of 7", "file 7 of 7")


def test_two_series_in_one_folder(folder: Path) -> None:
    write_series(noise(placed()), folder / "other")
    refused(folder, "2 series in one place, of 6, 4 images")


@pytest.mark.parametrize(
    ("values", "substance"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, ["different orientation", "file 3 of 6"]),
        ({"Rows": 7, "Columns": 5}, ["matrix size", "7 x 5", "5 x 7"]),
        ({"PixelSpacing": [0.9, 0.85]}, ["pixel spacing", "0.8 x 0.9", "0.85 x 0.9"]),
        ({"FrameOfReferenceUID": "1.2.3"}, ["2 frames of reference"]),
        ({"StudyInstanceUID": "1.2.3"}, ["2 studies"]),
        ({"PatientID": "Klara-2"}, ["2 patient IDs"]),
        ({"Modality": "MR"}, ["file 3 of 6", "'MR'", "allowed is CT"]),
        ({"Modality": "Klara^W"}, ["file 3 of 6", "modality no term of DICOM", "allowed is CT"]),
        ({"PhotometricInterpretation": "MONOCHROME1"}, ["MONOCHROME1", "MONOCHROME2"]),
        ({"PhotometricInterpretation": "KLARA W"}, ["no term of DICOM", "MONOCHROME2"]),
        ({"RescaleType": "Wodehouse^Klara"}, ["no term of DICOM", "Hounsfield"]),
        ({"SamplesPerPixel": 3}, ["3 samples per pixel"]),
        ({"NumberOfFrames": 20}, ["multi-frame"]),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, ["multi-frame (enhanced)"]),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, ["Secondary Capture", "CT Image Storage"]),
        ({"ImageOrientationPatient": [1, 0, 0, 0.1, 0.995, 0]}, ["perpendicular unit vectors"]),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, ["length 2 and 1"]),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1]}, ["ImageOrientationPatient", "6 finite numbers"]),
        ({"PixelSpacing": [0, 0.8]}, ["PixelSpacing 0 x 0.8", "greater than 0"]),
        ({"PixelSpacing": "0.8"}, ["PixelSpacing", "2 finite numbers"]),
        ({"RescaleSlope": "0"}, ["RescaleSlope is 0"]),
        ({"RescaleType": "Z_EFF"}, ["Z_EFF", "Hounsfield"]),
        ({"BitsAllocated": 12}, ["bits allocated 12"]),
        ({"HighBit": 11}, ["high bit 11"]),
        ({"Rows": 60000}, ["60000", "4,096"]),
        *(({keyword: None}, ["file 3 of 6", "lacks", keyword]) for keyword in headers._REQUIRED),
        ({"Modality": None}, ["lacks Modality"]),
        ({"ImagePositionPatient": None, "PixelSpacing": None}, ["lacks ImagePositionPatient, PixelSpacing"]),
    ],
    ids=str,
)
def test_headers_that_are_refused(folder: Path, values: dict[str, Any], substance: list[str]) -> None:
    edited(folder, setting(**values), only=2)
    refused(folder, *substance)


@pytest.mark.parametrize("text", [b"nan\\0\\1 ", b"one\\0\\1 ", b"1e999\\0\\1 "])
def test_a_position_that_is_no_number(folder: Path, text: bytes) -> None:
    path = sorted(folder.iterdir())[1]
    dataset = pydicom.dcmread(path)
    dataset.ImagePositionPatient = ["7", "7", "7"]
    stream = io.BytesIO()
    dataset.save_as(stream)
    packed = stream.getvalue().replace(b"DS\x06\x007\\7\\7 ", b"DS" + len(text).to_bytes(2, "little") + text)
    assert text in packed
    path.write_bytes(packed)
    refused(folder, "file 2 of 6", "ImagePositionPatient")


def test_a_single_slice_and_too_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert geometry.MAX_SLICES == 1200
    monkeypatch.setattr(geometry, "MAX_VOXELS", 7 * 5 * 6 - 1)
    refused(folder, "210 voxels", "209")
    monkeypatch.setattr(geometry, "MAX_SLICES", 5)
    refused(folder, "6 slices", "up to 5")
    monkeypatch.setattr(series, "MAX_FILES", 5)
    refused(folder, "6 files", "up to 5")
    monkeypatch.undo()
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    refused(folder, "single slice")


def test_pixels_that_are_missing_or_cut_short(folder: Path) -> None:
    edited(folder, setting(PixelData=None), only=1)
    refused(folder, "file 2 of 6", "no pixel data", pixels=True)
    edited(folder, lambda dataset, _: dataset.add_new("PixelData", "OW", bytes(7 * 5 * 2)), only=1)
    whole = sorted(folder.iterdir())[4]
    content = whole.read_bytes()
    for length in (len(content) - 2, len(content) - 60):
        whole.write_bytes(content[:length])
        refused(folder, "file 5 of 6", "cut short", pixels=True)
    whole.write_bytes(content)
    edited(folder, lambda dataset, _: setattr(dataset, "PixelData", bytes(7 * 5 * 4)), only=1)
    refused(folder, "file 2 of 6", "140 bytes of pixels where its matrix takes 70", pixels=True)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_is_cut_or_damaged_is_read_alike_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_series(noise(placed((3, 3, 3))), Path(name), patient_name=SECRET, study_uid="2.25.7", series_uid="2.25.8")
        path = Path(name) / "000002.dcm"
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            place = data.draw(st.integers(132, len(content) - 19))
            content[place : place + 2] = data.draw(st.binary(min_size=2, max_size=2))
        path.write_bytes(content)
        message = ""
        try:
            assert read_series(Path(name)).volume.grid.shape == (3, 3, 3)
        except DataError as error:
            message = str(error)
        assert "Geheim" not in message


@pytest.mark.parametrize(
    ("content", "substance"),
    [
        (b"", "is empty (0 bytes)"),
        (b"notes on the patient", "is no DICOM file"),
        (bytes(128) + b"DICM", "does not say its transfer syntax"),
        (bytes(128) + b"DICM" + b"\xff" * 300, "transfer syntax"),
        (bytes(4000), "is no DICOM file"),
    ],
)
def test_other_files_are_refused(folder: Path, content: bytes, substance: str) -> None:
    (folder / "a note about Klara.txt").write_bytes(content)
    refused(folder, "file 7 of 7", substance)


def test_a_localizer_is_skipped_in_its_own_series_only(folder: Path) -> None:
    sample = pydicom.dcmread(folder / "000001.dcm")
    sample.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    sample.SOPInstanceUID = generate_uid()
    sample.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    sample.save_as(folder / "scout.dcm")
    assert read_series(folder).volume.grid.shape == (7, 5, 6)
    sample.SeriesInstanceUID = generate_uid()
    sample.save_as(folder / "scout.dcm")
    refused(folder, "2 series in one place, of 6, 1 images")
    edited(folder, lambda dataset, _: setattr(dataset, "ImageType", sample.ImageType))
    refused(folder, "no CT slice", "7 localizers")


def test_sources_that_are_no_series(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no file there")
    with pytest.raises(DataError, match="file 7 of 7: no such file"):
        read_series([*folder.iterdir(), folder / "gone"])
    with pytest.raises(DataError, match="is no file"):
        read_series([*folder.iterdir(), tmp_path])
    assert at_same_places(read_series(folder).volume, read_series(list(folder.iterdir())).volume)
