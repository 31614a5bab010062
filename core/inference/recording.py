"""A session that keeps some of its calls: what a network really got and gave while a Predictor answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Session


class Call(NamedTuple):
    """Arrays of one call, cut to the first rows."""

    inputs: Arrays
    outputs: Arrays


class Recorder:
    """Answers as its session does and keeps up to `most` calls, drawn evenly from all of them.

    Two recorders of one seed that are called as often keep the same calls.
    """

    def __init__(self, session: Session, *, most: int = 48, rows: int = 64, seed: int = 0) -> None:
        """
        Args:
            most: calls kept.
            rows: rows kept of each call, where the first axis of every tensor is one free axis.
        """
        self.session, self.inputs, self.outputs = session, session.inputs, session.outputs
        self.num_calls = 0
        self.calls: dict[int, Call] = {}
        """By the number of the call."""
        self._places: list[int] = []
        self._most, self._random = most, np.random.default_rng(seed)
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
            del self.calls[self._places[place]]
            self._places[place] = number
        else:
            self._places.append(number)
        self.calls[number] = Call(inputs, self._cut(results))
        return results

    def _cut(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        return {name: (array[: self._rows] if self._rows else array).copy() for name, array in arrays.items()}
