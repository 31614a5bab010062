"""Several calls under way at once: every answer in order, errors in their place, nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from core.contract import Arrays, TensorSpec
from core.inference import artifact
from core.inference.session import stream
from tests.core.inference.conftest import FORMATS, Opened, assert_same, drawn
from tests.core.inference.networks import Convolution


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_a_stream_gives_every_answer_in_order(opened: Opened, format: artifact.Format, streams: int) -> None:
    true, session = opened(Convolution, format, streams=streams)
    tiles = [drawn(session, seed, B=1, H=4 + seed % 5, W=6) for seed in range(12)]
    found = list(stream(session, iter(tiles), streams=streams))
    assert len(found) == len(tiles)
    for tile, results in zip(tiles, found, strict=True):
        assert_same(results, true(tile))


class Doubling:
    """A session that takes its time: `seconds` each call, or until `gate` has as many callers as it waits for."""

    inputs, outputs = (TensorSpec("x", ("B",), "int64"),), (TensorSpec("y", ("B",), "int64"),)

    def __init__(self, gate: threading.Barrier | None = None, *, refused: int = -1) -> None:
        self.refused = refused
        self.gate, self.calls, self.under_way, self.most = gate, 0, 0, 0
        self.lock = threading.Lock()

    def __call__(self, arrays: Mapping[str, Any], *, out: Arrays | None = None) -> Arrays:
        with self.lock:
            self.calls, self.under_way = self.calls + 1, self.under_way + 1
            self.most = max(self.most, self.under_way)
        try:
            if self.gate:
                self.gate.wait(10)
            time.sleep(0.002 * int(arrays["x"][0] % 3))  # later ones are done first
            if arrays["x"][0] == self.refused:
                raise ValueError("thirteen")
            return {"y": arrays["x"] * 2}
        finally:
            with self.lock:
                self.under_way -= 1


def numbers(count: int) -> Iterator[Arrays]:
    return ({"x": np.array([number])} for number in range(count))


def test_several_calls_are_under_way_at_once() -> None:
    session = Doubling(threading.Barrier(3))  # a call returns when three have begun
    found = list(stream(session, numbers(9), streams=3))
    assert [int(results["y"][0]) for results in found] == list(range(0, 18, 2))
    assert session.most == 3


@pytest.mark.parametrize("streams", [1, 3])
def test_an_error_comes_in_its_place_and_ends_the_stream(streams: int) -> None:
    session = Doubling(refused=13)
    answers = stream(session, numbers(100), streams=streams)
    assert [int(next(answers)["y"][0]) for _ in range(13)] == list(range(0, 26, 2))
    with pytest.raises(ValueError, match="thirteen"):
        next(answers)
    with pytest.raises(StopIteration):
        next(answers)
    assert session.calls <= 14 + streams
    assert session.under_way == 0


@pytest.mark.parametrize("streams", [1, 3])
def test_an_abandoned_stream_leaves_no_thread_and_takes_no_more_input(streams: int) -> None:
    threads, taken = threading.active_count(), []
    session = Doubling()
    answers = stream(session, (taken.append(1) or arrays for arrays in numbers(1000)), streams=streams)  # type: ignore[func-returns-value]
    assert int(next(answers)["y"][0]) == 0
    answers.close()  # type: ignore[attr-defined]
    assert len(taken) <= streams + 1
    assert session.under_way == 0
    assert threading.active_count() == threads


def test_a_stream_of_nothing_is_empty() -> None:
    assert [list(stream(Doubling(), numbers(0), streams=streams)) for streams in (1, 2)] == [[], []]


def test_input_is_drawn_as_answers_are_taken() -> None:
    taken: list[int] = []
    answers = stream(Doubling(), (taken.append(1) or arrays for arrays in numbers(50)), streams=2)  # type: ignore[func-returns-value]
    for count, _ in enumerate(answers, 1):
        assert len(taken) <= count + 2
