"""The files of a zip archive that somebody sent, under names of our own.

An archive is refused as a whole where a member could write elsewhere, hide what it is, or grow beyond a limit. Sizes are
counted while members are unpacked: what the archive says of itself is not believed.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePath, PurePosixPath

from core.errors import DataError, Unavailable
from verticals.medical.dicom.series import MAX_FILES, is_left_behind

MAX_TOTAL_BYTES = 2**31
"""Of all unpacked members: twice the largest volume as int16, so that 32-bit pixels and headers fit."""
MAX_RATIO = 100
"""Unpacked to packed bytes. CT shrinks 2 to 5 times, a scan that is mostly padding 20 times, a bomb 1,000 times."""
RATIO_FREE_BYTES = 2**26
"""Unpacked bytes from which on the ratio counts: what is small does no harm."""
MAX_DIRECTORY_BYTES = MAX_FILES * 1024
"""Of the list of members, which is read as a whole before they can be counted."""

_CHUNK_BYTES = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OSError,
    struct.error,
)


def extracted(path: Path, folder: Path) -> list[Path]:
    """Unpacks a zip archive into `folder` (made if it is missing) as 000001.dcm, 000002.dcm, ... in the archive's order.

    What systems leave behind (`__MACOSX`, DICOMDIR, hidden files) is not unpacked. After a fault nothing of it is left.

    Raises:
        DataError: no archive, damaged, encrypted, or with a member or size that is not allowed.
        Unavailable: the folder cannot be written.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the archive cannot be unpacked: {error.strerror}") from None
    try:
        _unpack(path, folder, written)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return written


def _unpack(path: Path, folder: Path, written: list[Path]) -> None:
    _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except _FAULTS:
        raise DataError("no zip archive, or cut short; pack the series again and send it again") from None
    with archive:
        members = archive.infolist()
        if len(members) > MAX_FILES:
            raise DataError(
                f"the archive has {len(members):,} members; allowed are up to {MAX_FILES:,}: pack one series"
            )
        for number, member in enumerate(members, 1):
            _check_member(member, f"member {number} of {len(members)} of the archive")
        files = [
            (number, member)
            for number, member in enumerate(members, 1)
            if not member.is_dir() and not is_left_behind(PurePosixPath(member.filename))
        ]
        if not files:
            raise DataError("the archive holds no file; pack the files of one series")
        total, packed = 0, path.stat().st_size
        for number, member in files:
            target = folder / f"{len(written) + 1:06d}.dcm"
            if target.exists():
                raise DataError("the folder to unpack into is not empty; give an empty one")
            written.append(target)
            total = _copy(archive, member, target, f"member {number} of {len(members)} of the archive", total, packed)


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, name: str, total: int, packed: int) -> int:
    """Unpacks one member; `total` bytes before it were unpacked, the result is with it."""
    try:
        sink = open(target, "xb")  # noqa: SIM115 - closed below, apart from the archive's own faults
    except OSError as error:
        raise Unavailable(f"the archive cannot be unpacked: {error.strerror}") from None
    with sink:
        start = True
        try:
            stream = archive.open(member)
        except _FAULTS:
            raise DataError(f"{name} cannot be unpacked: damaged; pack the series again and send it again") from None
        with stream:
            while True:
                try:
                    chunk = stream.read(_CHUNK_BYTES)
                except _FAULTS:
                    raise DataError(
                        f"{name} cannot be unpacked: damaged or cut short; pack the series again and send it again"
                    ) from None
                if start and chunk.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                    raise DataError(f"{name} is a zip archive itself; pack the series' files directly")
                start = False
                if not chunk:
                    return total
                total += len(chunk)
                if total > MAX_TOTAL_BYTES:
                    raise DataError(
                        f"the archive unpacks to more than {MAX_TOTAL_BYTES / 2**20:,.0f} MiB, which is the limit; pack one series"
                    )
                if total > RATIO_FREE_BYTES and total > MAX_RATIO * packed:
                    raise DataError(
                        f"the archive unpacks to more than {MAX_RATIO} times its size, as no scan does; pack the series again"
                    )
                try:
                    sink.write(chunk)
                except OSError as error:
                    raise Unavailable(f"the archive cannot be unpacked: {error.strerror}") from None


def _check_member(member: zipfile.ZipInfo, name: str) -> None:
    """Raises DataError for a member that could write elsewhere or is no plain file that can be read."""
    if member.flag_bits & 0x41:
        raise DataError(f"{name} is encrypted; pack the series without a password")
    stored = member.orig_filename.replace("\\", "/")
    parts = PurePath(stored).parts
    if stored.startswith("/") or re.match(r"[A-Za-z]:", stored):
        raise DataError(f"{name} has an absolute path; pack a folder by its relative name")
    if ".." in parts:
        raise DataError(f"{name} leads out of its folder ('..' in its path); pack the series again")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        called = "a symbolic link" if kind == stat.S_IFLNK else "no plain file"
        raise DataError(f"{name} is {called}; pack the files themselves")
    if member.compress_type not in _METHODS:
        raise DataError(f"{name} is packed by method {member.compress_type}; allowed are stored and deflated")


def _check_directory(path: Path) -> None:
    """Raises DataError where any end record of the archive announces a list of members above the limit."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            stream.seek(max(0, size - 2**16 - 200))
            tail = stream.read()
    except OSError:
        raise DataError("the archive cannot be opened: no such file, or no permission") from None
    for end in re.finditer(rb"PK\x05\x06", tail):
        lists = [*struct.iter_unpack("<I", tail[end.start() + 12 : end.start() + 16])]
        wide = tail[max(0, end.start() - 76) : end.start()]  # the record of zip64 and its locator
        if wide[56:60] == b"PK\x06\x07":
            lists = [*struct.iter_unpack("<Q", wide[40:48])]
        if any(listed > MAX_DIRECTORY_BYTES for (listed,) in lists):
            raise DataError(
                f"the archive's list of members is too long; allowed are up to {MAX_FILES:,}: pack one series"
            )
