"""A session that keeps some of its calls: what a network really got and gave while a Predictor answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Session

MOST_BYTES = 2**29
"""What recorded calls may take: 48 windows of a volume and 100 classes would be 20 GB."""


class Call(NamedTuple):
    """Arrays of one call, cut to the first rows."""

    inputs: Arrays
    outputs: Arrays


class Recorder:
    """Answers as its session does and keeps up to `most` calls, drawn evenly from all of them.

    Two recorders of one seed that are called as often, with arrays of the same sizes, keep the same calls.
    """

    def __init__(
        self, session: Session, *, most: int = 48, rows: int = 64, most_bytes: int = MOST_BYTES, seed: int = 0
    ) -> None:
        """
        Args:
            most: calls kept.
            rows: rows kept of each call, where the first axis of every tensor is one free axis.
            most_bytes: of all calls kept; one is kept whatever its size.
        """
        self.session, self.inputs, self.outputs = session, session.inputs, session.outputs
        self.num_calls = 0
        self.calls: dict[int, Call] = {}
        """By the number of the call."""
        self._places: list[int] = []
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._random = np.random.default_rng(seed)
        firsts = {spec.shape[0] if spec.shape else None for spec in (*self.inputs, *self.outputs)}
        self._rows = rows if len(firsts) == 1 and isinstance(firsts.pop(), str) else None

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        number, self.num_calls = self.num_calls, self.num_calls + 1
        place = number if number < self._most else int(self._random.integers(number + 1))
        if place >= self._most:
            return self.session(arrays, out=out)
        inputs = self._cut(arrays)  # before the call: `out` may be the very arrays
        results = self.session(arrays, out=out)
        if place < len(self._places):
            self._drop(self._places[place])
            self._places[place] = number
        else:
            self._places.append(number)
        self.calls[number] = Call(inputs, self._cut(results))
        self._bytes += _bytes(self.calls[number])
        while self._bytes > self._most_bytes and len(self._places) > 1:  # an even draw of fewer is still even
            self._drop(self._places.pop(int(self._random.integers(len(self._places)))))
            self._most = len(self._places)
        return results

    def _drop(self, number: int) -> None:
        self._bytes -= _bytes(self.calls.pop(number))

    def _cut(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        return {name: (array[: self._rows] if self._rows else array).copy() for name, array in arrays.items()}


def _bytes(call: Call) -> int:
    return sum(array.nbytes for part in call for array in part.values())
