"""The recorder: an even draw of calls, the same for two of one seed, and copies of what was given and answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from core.contract import Arrays, TensorSpec
from core.inference.recording import Recorder
from core.inference.session import kept


class Adding:
    """A session: y = x + 1, and the state grows by x."""

    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", ("B",)), TensorSpec("state", ("B", 2)))
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", ("B",)), TensorSpec("new_state", ("B", 2)))

    def __call__(self, arrays: Mapping[str, Any], *, out: Arrays | None = None) -> Arrays:
        if arrays["x"].size and arrays["x"].flat[0] == -1:
            raise ValueError("minus one")
        results = {"y": arrays["x"] + np.float32(1), "new_state": arrays["state"] + arrays["x"][:, None]}
        return kept(results, out)


def call(number: int, rows: int = 3) -> Arrays:
    return {"x": np.full(rows, number, np.float32), "state": np.full((rows, 2), number, np.float32)}


def test_it_answers_as_its_session_and_keeps_everything_while_there_is_room() -> None:
    recorder = Recorder(Adding(), most=10)
    for number in range(7):
        assert recorder(call(number))["y"].tolist() == [number + 1] * 3
    assert (recorder.inputs, recorder.outputs, recorder.num_calls) == (Adding.inputs, Adding.outputs, 7)
    assert sorted(recorder.calls) == list(range(7))
    for number, (inputs, outputs) in recorder.calls.items():
        assert inputs["x"][0] == number
        assert outputs["y"][0] == number + 1
        assert outputs["new_state"].tolist() == [[2 * number] * 2] * 3


def test_two_of_one_seed_keep_the_same_calls() -> None:
    recorders = [Recorder(Adding(), most=5, seed=seed) for seed in (3, 3, 4)]
    for number in range(300):
        for recorder in recorders:
            recorder(call(number))
    first, second, other = (sorted(recorder.calls) for recorder in recorders)
    assert first == second != other
    assert len(first) == 5
    assert all(recorder.calls[number].inputs["x"][0] == number for recorder in recorders for number in recorder.calls)


def test_every_call_is_as_likely_to_be_kept() -> None:
    counts = np.zeros(40)
    for seed in range(1500):
        recorder = Recorder(Adding(), most=4, rows=1, seed=seed)
        for number in range(40):
            recorder(call(number, rows=1))
        counts[list(recorder.calls)] += 1
    # 1500 draws of 4 of 40: each 150 times, standard deviation 11.6
    assert counts.sum() == 6000
    assert np.abs(counts - 150).max() < 4.5 * 11.6


def test_rows_are_cut_where_every_tensor_has_them() -> None:
    recorder = Recorder(Adding(), rows=4)
    recorder(call(1, rows=9))
    recorder(call(2, rows=2))
    assert [len(array) for kept_call in recorder.calls.values() for part in kept_call for array in part.values()] == (
        [4] * 4 + [2] * 4
    )


class Uneven(Adding):
    outputs = (TensorSpec("y", ("B",)), TensorSpec("new_state", (2, "B")))


class Single(Adding):
    inputs = (*Adding.inputs, TensorSpec("factor", ()))


@pytest.mark.parametrize("kind", [Uneven, Single])
def test_rows_are_left_whole_where_some_tensor_has_none(kind: type[Adding]) -> None:
    recorder = Recorder(kind(), rows=4)
    recorder({**call(1, rows=9), **({"factor": np.array(2.0, np.float32)} if kind is Single else {})})
    assert len(recorder.calls[0].inputs["x"]) == 9
    if kind is Single:
        assert recorder.calls[0].inputs["factor"].shape == ()


def test_what_is_kept_is_nobody_elses_memory() -> None:
    recorder, arrays = Recorder(Adding()), call(5)
    results = recorder(arrays)
    for array in (*arrays.values(), *results.values()):
        array.fill(99)
    assert recorder.calls[0].inputs["x"].tolist() == [5, 5, 5]
    assert recorder.calls[0].outputs["new_state"].tolist() == [[10, 10]] * 3


def test_inputs_are_kept_as_they_were_before_the_answer_is_written_over_them() -> None:
    recorder, arrays = Recorder(Adding()), call(5)
    out = {"y": np.empty(3, np.float32), "new_state": arrays["state"]}
    assert recorder(arrays, out=out) is out
    recorder(arrays, out=out)
    assert [recorder.calls[k].inputs["state"][0, 0] for k in (0, 1)] == [5, 10]
    assert [recorder.calls[k].outputs["new_state"][0, 0] for k in (0, 1)] == [10, 15]


def test_a_call_that_fails_is_not_kept_and_does_not_shift_the_draw() -> None:
    recorders = [Recorder(Adding(), most=3, seed=1) for _ in range(2)]
    for number in range(60):
        for recorder in recorders:
            if number % 7 == 2:
                with pytest.raises(ValueError, match="minus one"):
                    recorder(call(-1))
            else:
                recorder(call(number))
    assert sorted(recorders[0].calls) == sorted(recorders[1].calls)
    assert recorders[0].num_calls == 60
    assert len(recorders[0].calls) <= 3
    assert all(number % 7 != 2 for number in recorders[0].calls)


CALL_BYTES = 4 * 4 * 2 * 3
"""A call of four rows: 3 numbers in and 3 out for each."""


def test_calls_are_bounded_by_bytes_and_still_drawn_evenly() -> None:
    counts = np.zeros(30)
    for seed in range(1500):
        recorder = Recorder(Adding(), most=20, most_bytes=5 * CALL_BYTES + 1, seed=seed)
        for number in range(30):
            recorder(call(number, rows=4))
        assert len(recorder.calls) == 5
        counts[list(recorder.calls)] += 1
    # 1500 draws of 5 of 30: each 250 times, standard deviation 14.4
    assert np.abs(counts - 250).max() < 4.5 * 14.4


def test_two_that_are_bounded_keep_the_same_calls_of_any_sizes() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 60, 200)
    recorders = [Recorder(Adding(), most=10, most_bytes=12 * CALL_BYTES, seed=seed) for seed in (3, 3)]
    for number, rows in enumerate(sizes):
        for recorder in recorders:
            recorder(call(number, rows=int(rows)))
    first, second = (sorted(recorder.calls) for recorder in recorders)
    assert first == second
    held = sum(
        array.nbytes for kept_call in recorders[0].calls.values() for part in kept_call for array in part.values()
    )
    assert held <= 12 * CALL_BYTES or len(first) == 1


def test_one_call_is_kept_whatever_its_size() -> None:
    recorder = Recorder(Adding(), most_bytes=1)
    for number in range(20):
        recorder(call(number))
    assert len(recorder.calls) == 1
