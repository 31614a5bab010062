"""Compressed pixels, decoded in a process of their own: some decoders end the process they run in over a damaged frame.

Run as a program, this file is that process, and imports nothing of ours. A request is a line of JSON, [path, plugin]; the
answer is a line of JSON, {"dtype", "shape"} or {} for a fault, and the bytes of the array.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

DECODE_SECONDS = 60
"""For one slice, with the start of the process; the largest takes about one."""


class Decoder:
    """A process that starts with the first frame and ends with the `with` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, path: Path, plugin: str, shape: tuple[int, int]) -> NDArray[Any] | None:
        """[rows, columns] pixels as stored, None where they cannot be decoded into that shape."""
        if self._process is None:
            # -P: this folder's modules shall not stand in for others; what decoders print may quote a header
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        limit = threading.Timer(DECODE_SECONDS, self._process.kill)
        limit.start()
        try:
            decoded = _asked(self._process, path, plugin, shape)
        finally:
            limit.cancel()
        if decoded is None:
            self._end()
        return decoded

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _asked(process: subprocess.Popen[bytes], path: Path, plugin: str, shape: tuple[int, int]) -> NDArray[Any] | None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps([str(path.absolute()), plugin]).encode() + b"\n")
        process.stdin.flush()
        head = json.loads(process.stdout.readline() or b"{}")
    except (OSError, ValueError):
        return None
    if head.get("shape") != list(shape):
        return None
    dtype = np.dtype(head["dtype"])
    content = process.stdout.read(shape[0] * shape[1] * dtype.itemsize)
    if len(content) < shape[0] * shape[1] * dtype.itemsize:
        return None
    return np.frombuffer(content, dtype).reshape(shape)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a decoder prints is no answer
    for line in sys.stdin.buffer:
        path, plugin = json.loads(line)
        head, content = {}, b""
        try:
            dataset = pydicom.dcmread(path)
            decoder = get_decoder(UID(str(dataset.file_meta.TransferSyntaxUID)))
            pixels, _ = decoder.as_array(dataset, raw=True, decoding_plugin=plugin)
            head, content = {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes()
        except Exception:  # a process edge: what went wrong may quote the patient, and only that it did is said
            pass
        answers.write(json.dumps(head).encode() + b"\n" + content)
        answers.flush()


if __name__ == "__main__":
    _serve()
