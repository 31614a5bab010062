"""Forms that come in pieces of any size, against httpx that wrote them; what is no such form, and what is left of it."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from core.errors import DataError, Unavailable
from core.serving import uploads
from core.serving.uploads import Upload


class Form(Upload):
    scan: Path
    notes: list[str] | str = ""


def sent(**options: object) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://a", **options)  # type: ignore[arg-type]
    return request.read(), request.headers["content-type"]


def read(pieces: Sequence[bytes], kind: str, folder: Path, *, broken_off: bool = False) -> Form:
    left: Iterator[bytes] = iter(pieces)

    async def receive() -> Message:
        piece = next(left, None)
        if piece is None:
            return {"type": "http.disconnect"} if broken_off else {"type": "http.request", "body": b""}
        return {"type": "http.request", "body": piece, "more_body": True}

    async def endpoint() -> Form:
        scope = {"type": "http", "headers": [(b"content-type", kind.encode())]}
        return await (await Form.from_http_request(Request(scope, receive), None)).received(folder)

    return asyncio.run(endpoint())


@given(
    content=st.binary(max_size=300),
    notes=st.lists(st.text(max_size=20), max_size=3),
    cuts=st.lists(st.integers(0, 900), max_size=8),
    chunk=st.integers(1, 400),
)
def test_a_form_in_any_pieces_is_what_was_sent(content: bytes, notes: list[str], cuts: list[int], chunk: int) -> None:
    body, kind = sent(files={"scan": ("Wodehouse.dcm", content)}, data={"notes": notes})
    places = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
    pieces = [body[start:end] for start, end in pairwise(places)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "CHUNK_BYTES", chunk)
        form = read(pieces, kind, Path(folder))
        assert [path.name for path in Path(folder).iterdir()] == ["scan"]
        assert form.scan == Path(folder) / "scan"
        assert form.scan.read_bytes() == content
    assert form.sha256 == {"scan": hashlib.sha256(content).hexdigest()}
    assert form.notes == (notes if len(notes) > 1 else notes[0] if notes else "")


FILE = ("a", b"x")
TEXT = b'--x\r\nContent-Disposition: form-data; name="notes"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"{}", "application/json", r"no multipart form; .* curl -F scan=@FILE"),
        (b"", "", "no multipart form"),
        (b"--x--", "multipart/form-data", "no multipart form"),
        (b"x", "multipart/form-data; boundary=" + "b" * 999, "no well-formed"),
        (b"nonsense", "multipart/form-data; boundary=x", "no well-formed"),
        (b"--x\r\n" + b"a" * 20_000, "multipart/form-data; boundary=x", "no well-formed"),
        (TEXT, "multipart/form-data; boundary=x", "cut short"),
        (TEXT + b"n" * 70_000, "multipart/form-data; boundary=x", "notes is longer than the 65536 bytes"),
        (sent(files=[("scan", FILE), ("scan", FILE)]), "", "scan came twice"),
        (sent(files={"other": FILE}), "", "a field that is not known; allowed are scan, notes"),
        (sent(files={"scan": FILE}, data={"notes": ["n"] * 40}), "", "more than 32 parts"),
        (sent(files={"notes": FILE}, data={"scan": "http://169.254.0.1/"}), "", "scan is no file"),
    ],
)
def test_what_is_no_such_form_is_refused(body: bytes | tuple[bytes, str], kind: str, text: str, tmp_path: Path) -> None:
    content, kind = body if isinstance(body, tuple) else (body, kind)
    with pytest.raises(DataError, match=text):
        read([content], kind, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    body, kind = sent(files={"notes": FILE})
    with pytest.raises(ValidationError) as raised:
        read([body], kind, tmp_path)
    assert [fault["loc"] for fault in raised.value.errors()] == [("scan",)]


def test_a_client_that_leaves_is_told_apart(tmp_path: Path) -> None:
    body, kind = sent(files={"scan": ("a", bytes(1000))})
    with pytest.raises(ClientDisconnect):
        read([body[:500]], kind, tmp_path, broken_off=True)


def test_a_disk_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    body, kind = sent(files={"scan": FILE})
    with pytest.raises(Unavailable, match="cannot be written"):
        read([body], kind, tmp_path / "gone")
