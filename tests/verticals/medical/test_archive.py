"""Zip archives as people send them, and as attackers do."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from core.errors import DataError, Unavailable
from verticals.medical import archive
from verticals.medical.archive import extracted
from verticals.medical.dicom.series import read_series
from verticals.medical.dicom.write import write_series
from verticals.medical.volume import Grid, Volume

SECRET = "Klara Geheim"


def packed(path: Path, members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refused(path: Path, folder: Path, *substance: str) -> None:
    with pytest.raises(DataError) as caught:
        extracted(path, folder)
    message = str(caught.value)
    for part in substance:
        assert part in message, message
    assert "Klara" not in message
    assert str(path.name) not in message
    assert not [file for file in folder.rglob("*") if file.is_file()]


def test_members_come_out_in_order_under_neutral_names(tmp_path: Path) -> None:
    members = {
        f"{SECRET}/b.dcm": b"first",
        f"{SECRET}/empty folder/": b"",
        f"{SECRET}/a": b"",
        "__MACOSX/._b.dcm": b"x",
        f"{SECRET}/.DS_Store": b"x",
        "DICOMDIR": b"x",
        "c..dcm": b"third",
    }
    paths = extracted(packed(tmp_path / "sent.zip", members), tmp_path / "out" / "here")
    assert [path.name for path in paths] == ["000001.dcm", "000002.dcm", "000003.dcm"]
    assert [path.read_bytes() for path in paths] == [b"first", b"", b"third"]
    assert sorted((tmp_path / "out" / "here").iterdir()) == paths


def test_a_series_from_an_archive_is_the_series(tmp_path: Path) -> None:
    grid = Grid((6, 5, 4), np.diag([1.0, 1.0, 3.0, 1.0]))
    array = np.random.default_rng(0).integers(-1000, 2000, grid.shape).astype(np.int16)
    write_series(Volume(array, grid), tmp_path / "series", seed=2)
    names = {f"{SECRET}/{path.name}": path.read_bytes() for path in (tmp_path / "series").iterdir()}
    paths = extracted(packed(tmp_path / "sent.zip", names), tmp_path / "out")
    np.testing.assert_array_equal(read_series(paths).volume.array, read_series(tmp_path / "series").volume.array)


@pytest.mark.parametrize(
    ("name", "substance"),
    [
        ("../out.dcm", "'..' in its path"),
        ("a/../../out.dcm", "'..' in its path"),
        ("a\\..\\..\\out.dcm", "'..' in its path"),
        ("/etc/klara", "absolute path"),
        ("\\\\server\\share", "absolute path"),
        ("C:\\klara.dcm", "absolute path"),
    ],
)
def test_paths_that_lead_elsewhere(name: str, substance: str, tmp_path: Path) -> None:
    sent = packed(tmp_path / "sent.zip", {"good.dcm": b"x", name: b"x"})
    refused(sent, tmp_path / "out", "member 2 of 2", substance)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["sent.zip"]


@pytest.mark.parametrize(("kind", "called"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "no plain file")])
def test_members_that_are_no_files(kind: int, called: str, tmp_path: Path) -> None:
    link = zipfile.ZipInfo(SECRET)
    link.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    refused(tmp_path / "sent.zip", tmp_path / "out", called)


def test_an_encrypted_archive(tmp_path: Path) -> None:
    content = bytearray(packed(tmp_path / "sent.zip", {SECRET: b"x" * 50}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "sent.zip").write_bytes(content)
    refused(tmp_path / "sent.zip", tmp_path / "out", "encrypted", "without a password")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_packing(method: int, tmp_path: Path) -> None:
    refused(packed(tmp_path / "sent.zip", {SECRET: b"x" * 50}, method=method), tmp_path / "out", "stored and deflated")


def test_an_archive_in_an_archive(tmp_path: Path) -> None:
    inner = packed(tmp_path / "inner.zip", {SECRET: b"x"}).read_bytes()
    sent = packed(tmp_path / "sent.zip", {"good.dcm": b"x", f"{SECRET}.dcm": inner})
    refused(sent, tmp_path / "out", "member 2 of 2", "a zip archive itself")


def test_a_bomb_by_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = packed(tmp_path / "sent.zip", {f"{SECRET}{n}": bytes(2**20) for n in range(4)})
    assert len(extracted(sent, tmp_path / "small")) == 4  # small bombs do no harm
    monkeypatch.setattr(archive, "RATIO_FREE_BYTES", 2**21)
    refused(sent, tmp_path / "out", "100 times its size")


def test_a_bomb_by_size_is_stopped_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 3 * 2**20)
    random = np.random.default_rng(0).bytes(2**20)
    sent = packed(tmp_path / "sent.zip", {f"{SECRET}{n}": random for n in range(4)})
    refused(sent, tmp_path / "out", "more than 3 MiB")


def test_a_size_that_the_archive_understates(tmp_path: Path) -> None:
    content = bytearray(packed(tmp_path / "sent.zip", {SECRET: bytes(5000)}).read_bytes())
    for place, offset in ((0, 22), (content.index(b"PK\x01\x02"), 24)):
        content[place + offset : place + offset + 4] = struct.pack("<I", 10)
    (tmp_path / "sent.zip").write_bytes(content)
    refused(tmp_path / "sent.zip", tmp_path / "out", "member 1 of 1", "damaged")


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = packed(tmp_path / "sent.zip", {f"{SECRET}{n}": b"x" for n in range(6)})
    monkeypatch.setattr(archive, "MAX_FILES", 5)
    refused(sent, tmp_path / "out", "6 members", "up to 5")
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 100)
    refused(sent, tmp_path / "out", "list of members is too long")


def test_a_wide_list_of_members_is_measured_before_it_is_read(tmp_path: Path) -> None:
    """The record of zip64 wins over the short one, as it does in zipfile."""
    content = packed(tmp_path / "sent.zip", {SECRET: b"x"}).read_bytes()
    end = content.index(b"PK\x05\x06")
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 2**40, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    (tmp_path / "sent.zip").write_bytes(content[:end] + record + locator + content[end:])
    refused(tmp_path / "sent.zip", tmp_path / "out", "list of members is too long")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(300), b"PK\x05\x06"])
def test_files_that_are_no_archives(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "sent.zip").write_bytes(content)
    refused(tmp_path / "sent.zip", tmp_path / "out", "no zip archive")


def test_damaged_archives(tmp_path: Path) -> None:
    random = np.random.default_rng(0).bytes(3000)
    content = packed(tmp_path / "sent.zip", {"good.dcm": random, SECRET: random}).read_bytes()
    (tmp_path / "sent.zip").write_bytes(content[:-30])
    refused(tmp_path / "sent.zip", tmp_path / "out", "no zip archive")
    spoiled = bytearray(content)
    spoiled[4500] ^= 0xFF
    (tmp_path / "sent.zip").write_bytes(spoiled)
    refused(tmp_path / "sent.zip", tmp_path / "out", "member 2 of 2", "damaged")


def test_archives_without_files(tmp_path: Path) -> None:
    refused(packed(tmp_path / "sent.zip", {}), tmp_path / "out", "holds no file")
    refused(packed(tmp_path / "sent.zip", {"folder/": b"", "__MACOSX/x": b"x"}), tmp_path / "out", "holds no file")
    refused(tmp_path / "gone.zip", tmp_path / "out", "cannot be opened")
    refused(tmp_path, tmp_path / "out", "cannot be opened")


def test_a_folder_that_is_in_use_or_cannot_be_written(tmp_path: Path) -> None:
    sent = packed(tmp_path / "sent.zip", {SECRET: b"x"})
    extracted(sent, tmp_path / "out")
    with pytest.raises(DataError, match="not empty"):
        extracted(sent, tmp_path / "out")
    assert (tmp_path / "out" / "000001.dcm").read_bytes() == b"x"
    with pytest.raises(Unavailable, match="cannot be unpacked"):
        extracted(sent, sent / "below")


def test_no_bytes_make_it_raise_anything_else(tmp_path: Path) -> None:
    content = packed(tmp_path / "sent.zip", {"a": b"1" * 99, "b": b"2" * 99}).read_bytes()
    random = np.random.default_rng(4)
    for trial in range(150):
        spoiled = bytearray(content)
        for place in random.integers(0, len(content), 3):
            spoiled[place] = random.integers(256)
        (tmp_path / "sent.zip").write_bytes(spoiled)
        with io.BytesIO(spoiled):
            try:
                assert len(extracted(tmp_path / "sent.zip", tmp_path / f"out{trial}")) <= 2
            except DataError:
                assert not list((tmp_path / f"out{trial}").iterdir())
