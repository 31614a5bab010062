"""What clients send wrongly: each fault is a 4xx that names it, and leaves nothing on the disk. The same real service."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.bento import Server
from tests.verticals.medical.phantoms import edited, setting
from tests.verticals.medical.uploads import Client, folders, nifti, packed, small, until
from verticals.medical.dicom.write import write_series
from verticals.medical.nifti import write_nifti


def series(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """A DICOM series that is spoiled, in an archive."""

    def make(folder: Path) -> Path:
        write_series(small(), folder / "series")
        change(folder / "series")
        return packed(folder / "series", folder / "bad.zip")

    return make


def volume(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """A NIfTI file that is spoiled."""

    def make(folder: Path) -> Path:
        target = folder / "bad.nii"
        change(target)
        return target

    return make


def archive(name: str, *, content: bytes = b"x", flags: int = 0) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "bad.zip", "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr(name, content)
        if flags:
            found = (folder / "bad.zip").read_bytes()
            place = found.rindex(b"PK\x01\x02") + 8
            (folder / "bad.zip").write_bytes(found[:place] + bytes([flags]) + found[place + 1 :])
        return folder / "bad.zip"

    return make


def some_header(target: Path, *, affine: np.ndarray | None = None) -> None:
    nifti(np.zeros((8, 8, 8), np.int16), target, affine=affine)


def patched(target: Path, offset: int, value: bytes) -> None:
    some_header(target)
    content = bytearray(target.read_bytes())
    content[offset : offset + len(value)] = value
    target.write_bytes(content)


def two_series(folder: Path) -> None:
    write_series(small(), folder / "other")


def cut(folder: Path) -> None:
    path = sorted(folder.iterdir())[7]
    path.write_bytes(path.read_bytes()[:-500])


NAN = np.array([np.nan], np.float32).tobytes()
ZERO_ROW = np.zeros(4, np.float32).tobytes()
AT_THE_DOOR: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (volume(lambda path: path.write_bytes(b"")), "empty"),
    "no scan": (volume(lambda path: path.write_bytes(b"%PDF-1.7" + bytes(999))), "the file is no scan"),
    "not a DICOM": (archive("a.dcm", content=b"hello" * 99), "file 1 of 1"),
    "bomb": (archive("a.dcm", content=bytes(80_000_000)), "100 times its size"),
    "path traversal": (archive("../../Wodehouse.dcm"), "leads out of its folder"),
    "encrypted": (archive("a.dcm", flags=1), "encrypted"),
    "single slice": (series(lambda folder: [path.unlink() for path in sorted(folder.iterdir())[1:]]), "slice"),
    "two series": (series(two_series), "series"),
    "missing slice": (series(lambda folder: sorted(folder.iterdir())[5].unlink()), "missing"),
    "MR": (series(lambda folder: edited(folder, setting(Modality="MR"))), "MR"),
    "MONOCHROME1": (
        series(lambda folder: edited(folder, setting(PhotometricInterpretation="MONOCHROME1"))),
        "MONOCHROME1",
    ),
    "4-D": (volume(lambda path: nifti(np.zeros((8, 8, 8, 3), np.int16), path)), "8 x 8 x 8 x 3"),
    "NaN affine": (volume(lambda path: patched(path, 280, NAN)), "affine|finite|number"),
    "zero spacing": (volume(lambda path: patched(path, 280, ZERO_ROW)), "spacing|affine|plane|invert|same"),
}


@pytest.mark.parametrize("what", AT_THE_DOOR)
def test_a_bad_scan_is_refused_at_the_door_and_leaves_nothing(
    server: Server, client: Client, tmp_path: Path, what: str
) -> None:
    make, text = AT_THE_DOOR[what]
    before = folders(server)
    scan = make(tmp_path)
    for endpoint in ("/submit", "/segment"):
        answer = client.send(endpoint, scan)
        assert answer.status_code == 422, answer.text
        assert any(word in answer.json()["error"]["message"] for word in text.split("|")), answer.text
        assert "Wodehouse" not in answer.text
    assert folders(server) == before


IN_THE_MIDDLE: dict[str, Callable[[Path], Path]] = {
    "DICOM": series(cut),
    "gzip": volume(lambda path: write_cut(path)),
}


def write_cut(path: Path) -> None:
    whole = path.with_name("whole.nii.gz")
    write_nifti(small(), whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


@pytest.mark.parametrize("what", IN_THE_MIDDLE)
def test_a_scan_that_breaks_off_is_told_with_its_own_status(
    server: Server, client: Client, tmp_path: Path, what: str
) -> None:
    before = folders(server)
    scan = IN_THE_MIDDLE[what](tmp_path)
    answer = client.send("/segment", scan)
    assert answer.status_code == 422, answer.text
    sent = client.send("/submit", scan)
    if sent.status_code == 202:
        job = sent.json()["job"]
        status = client.until(job, "failed")
        assert status["code"] == "unusable_data"
        sent = client.result(job, "nifti")
    assert sent.status_code == 422
    assert sent.json()["error"]["code"] == "unusable_data"
    assert sent.json()["error"]["message"] == answer.json()["error"]["message"]
    until(lambda: folders(server) == before)  # it is written down first, then what belongs to it is removed


@pytest.mark.parametrize(
    ("content", "kind", "status", "text"),
    [
        (b"", None, 422, "no multipart form"),
        (b"{}", "application/json", 422, "no multipart form"),
        (b"garbage", "multipart/form-data; boundary=x", 422, "cut short"),
        (b"garbage", "multipart/form-data", 422, "no multipart form"),
        (b'--x\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\nhalf', None, 422, "cut short"),
        (b"--x--\r\n", None, 400, "scan"),
        (b'--x\r\nContent-Disposition: form-data; name="scan"\r\n\r\nhttp://a/b\r\n--x--\r\n', None, 422, "is no file"),
        (b'--x\r\nContent-Disposition: form-data; name="Wodehouse"\r\n\r\n1\r\n--x--\r\n', None, 422, "not known"),
    ],
)
def test_a_body_that_is_no_form_is_refused(
    server: Server, client: Client, content: bytes, kind: str | None, status: int, text: str
) -> None:
    before = folders(server)
    kind = kind or ("multipart/form-data; boundary=x" if content else "text/plain")
    answer = client.http.post("/submit", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert text in answer.text
    assert "Wodehouse" not in answer.text
    assert folders(server) == before


def test_formats_that_the_scan_does_not_allow_are_named(client: Client, files: Path) -> None:
    answer = client.send("/submit", files / "small.nii.gz", formats="seg")
    assert answer.status_code == 422
    assert "['seg'] refer to the slices of a DICOM series" in answer.text
    unknown = client.send("/submit", files / "small.nii.gz", formats="stl")
    assert unknown.status_code == 400
    assert "'nifti', 'seg', 'rtstruct' or 'preview'" in unknown.text


def test_a_body_over_the_limit_is_413_and_leaves_nothing(server: Server, client: Client, tmp_path: Path) -> None:
    before = folders(server)
    (tmp_path / "huge.nii").write_bytes(bytes(21_000_000))
    answer = client.send("/submit", tmp_path / "huge.nii")
    assert answer.status_code == 413
    assert "20000000 bytes" in answer.text

    def stream() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n'
        for _ in range(21):
            yield bytes(1_000_000)

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.http.post("/submit", content=stream(), headers=kind)  # whose length is not said
    assert answer.status_code == 413
    answer = client.http.post("/status", content=bytes(17 * 2**20))
    assert answer.status_code == 413
    assert folders(server) == before


def test_a_scan_smaller_than_a_patch_is_answered(client: Client, tmp_path: Path) -> None:
    scan = nifti(np.full((9, 5, 3), 40, np.int16), tmp_path / "tiny.nii")
    answer = client.send("/segment", scan)
    assert answer.status_code == 200, answer.text
    found = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))  # type: ignore[no-untyped-call]
    assert found.shape == (9, 5, 3)
