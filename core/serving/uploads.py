"""Files that come in a multipart form, streamed to the place where they belong: no copy in memory, none elsewhere on disk.

BentoML's own file inputs are read into memory, copied to a temporary file that bears the client's name for it, and fetched
by the server where a URL stands in a file's place. Here files are named by their field, and what a client calls them is
not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from _bentoml_sdk.io_models import IODescriptor  # private: tests/core/serving/test_bentoml.py holds it
from pydantic import PrivateAttr
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from core.durable.files import written
from core.errors import DataError

CHUNK_BYTES = 2**20
"""Bytes that go to the disk at a time."""
MAX_TEXT_BYTES = 65_536
"""Of a field that is no file."""
MAX_PARTS = 32


class Upload(IODescriptor):  # type: ignore[misc]  # BentoML's private packages are untyped
    """An endpoint's only argument where files come with it: a subclass names the form's fields, files as `Path`.

    The endpoint gets it unread, and says where files go: `given = await request.received(folder)`.
    """

    _request: Request = PrivateAttr()
    _sha256: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of the whole form, where the client says it; else 0."""
        length = self._request.headers.get("content-length", "")
        return int(length) if length.isdecimal() else 0

    @property
    def sha256(self) -> Mapping[str, str]:
        """Of each file that was received."""
        return self._sha256

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Self:
        unread: Self = cls.model_construct()
        unread._request = request
        return unread

    async def received(self, folder: Path) -> Self:
        """Reads the form; each file is FOLDER/FIELD.

        Raises:
            DataError: no multipart form, damaged or cut short, with fields that are not known, or text for a file.
            ValidationError: a field is missing, or its value is not allowed.
            Unavailable: the disk is full.
        """
        kind, options = parse_options_header(self._request.headers.get("content-type", ""))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise DataError(
                f"the body is no multipart form; send the file as one: curl -F {self.multipart_fields[0]}=@FILE"
            )
        form = _Form(options[b"boundary"], folder, files=self.multipart_fields, fields=type(self).model_fields)
        try:
            pending = bytearray()
            async for piece in self._request.stream():
                pending += piece
                if len(pending) >= CHUNK_BYTES:
                    await asyncio.to_thread(form.write, bytes(pending))
                    pending.clear()
            await asyncio.to_thread(form.write, bytes(pending))
            values = form.values()
        finally:
            form.close()
        given: Self = type(self).model_validate(values)
        given._sha256 = form.sha256
        return given


class _Form:
    """The parts of a form as they come."""

    def __init__(self, boundary: bytes, folder: Path, *, files: Collection[str], fields: Collection[str]) -> None:
        self._folder, self._files, self._fields = folder, files, fields
        self._parts = 0
        self._header, self._value, self._disposition = b"", b"", b""
        self._name = ""
        self._text = bytearray()
        self._texts: dict[str, list[str]] = {}
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._ended = False
        self.sha256: dict[str, str] = {}
        events: dict[str, Any] = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_named,
            "on_header_value": self._header_valued,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._form_ends,
        }
        try:
            self._parser = MultipartParser(boundary, events)  # type: ignore[arg-type]
        except FormParserError:
            raise _damaged() from None

    def write(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError:
            raise _damaged() from None

    def values(self) -> dict[str, Any]:
        """What came, by field; a list where a field came several times."""
        if not self._ended:
            raise _damaged()
        texts = {name: given if len(given) > 1 else given[0] for name, given in self._texts.items()}
        return {**texts, **{name: self._folder / name for name in self.sha256}}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise DataError(f"the form has more than {MAX_PARTS} parts; allowed are the fields {self._known()}")
        self._header, self._value, self._disposition = b"", b"", b""
        self._text.clear()

    def _header_named(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_valued(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name not in self._fields:
            raise DataError(f"the form has a field that is not known; allowed are {self._known()}")
        if self._name not in self._files:
            return
        if b"filename" not in options:
            raise DataError(f"{self._name} is no file; send one, as by curl -F {self._name}=@FILE")
        if self._name in self.sha256:
            raise DataError(f"{self._name} came twice; send one file")
        with written():
            self._file = open(self._folder / self._name, "xb")  # noqa: SIM115 - closed where the part or the form ends
        self._digest = hashlib.sha256()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            with written():
                self._file.write(memoryview(data)[start:end])
            self._digest.update(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_TEXT_BYTES:
            raise DataError(f"{self._name} is longer than the {MAX_TEXT_BYTES} bytes that are allowed")

    def _part_ends(self) -> None:
        if self._file is not None:
            with written():
                self._file.close()
            self._file = None
            self.sha256[self._name] = self._digest.hexdigest()
        else:
            self._texts.setdefault(self._name, []).append(self._text.decode("utf-8", "replace"))

    def _form_ends(self) -> None:
        self._ended = True

    def _known(self) -> str:
        return ", ".join(self._fields)


def _damaged() -> DataError:
    return DataError("the body is no well-formed multipart form, or was cut short; send it again")
