"""A difference is told for what it is: columns exchanged, another scale, another centre, missing values, nested records."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.inference.diagnosis import changed, difference, exchanged, turned, turned_labels

SAME = 1e-6


def table(rows: int = 50, columns: int = 6, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.normal(size=(rows, columns)) * 10.0 ** np.arange(columns)).astype(np.float32)


def pictures(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(size=(4, 3, 6, 7)).astype(np.float32)


# columns and channels


@given(st.permutations(range(6)), st.booleans())
def test_a_permutation_planted_is_a_permutation_told(order: list[int], named: bool) -> None:
    true = table()
    columns = ["amount", "hour", "count", "mean", "share", "age"]
    words = difference(true, true[:, order], columns if named else (), tolerance=SAME)
    names = columns if named else [f"column {k}" for k in range(6)]
    moved = [(names[k], names[source]) for k, source in enumerate(order) if k != source]
    if moved:
        told = re.findall(r"([\w ]+?) holds ([\w ]+)", words.removeprefix("has its columns exchanged: "))
        assert words.startswith("has its columns exchanged: ")
        assert [(a.strip(), b.strip()) for a, b in told] == moved[:4]
    else:
        assert words == "differs: "  # nothing to tell: nobody asks


@given(st.integers(0, 5), st.floats(0.01, 100).filter(lambda factor: abs(factor - 1) > 0.01))
def test_one_column_rescaled_is_told_with_its_factor(column: int, factor: float) -> None:
    true, given = table(), table()
    given[:, column] *= np.float32(factor)
    words = difference(true, given, tolerance=SAME)
    found = re.fullmatch(rf"differs: column {column} is ([\d.e+-]+) times the original: it is scaled otherwise", words)
    assert found, words
    assert float(found[1]) == pytest.approx(factor, rel=1e-4)


@given(st.integers(0, 5), st.floats(0.01, 5), st.sampled_from([-1, 1]))
def test_one_column_shifted_is_told_with_its_shift(column: int, spreads: float, sign: int) -> None:
    true = table().astype(np.float64)
    given = true.copy()
    shift = sign * spreads * 10.0**column
    given[:, column] += shift
    words = difference(true, given, tolerance=SAME)
    found = re.fullmatch(rf"differs: column {column} is the original plus ([\d.e+-]+): it is centred otherwise", words)
    assert found, words
    assert float(found[1]) == pytest.approx(shift, rel=1e-3)


def test_channels_in_the_order_of_opencv_are_told_so() -> None:
    true = pictures()
    assert difference(true, true[:, ::-1], tolerance=SAME) == (
        "has its channels exchanged: channel 0 holds channel 2, channel 2 holds channel 0 (BGR for RGB)"
    )
    turned = difference(true, true[:, [1, 2, 0]], ["red", "green", "blue"], tolerance=SAME)
    assert turned == "has its channels exchanged: red holds green, green holds blue, blue holds red"
    assert "BGR" not in difference(table(columns=3), table(columns=3)[:, ::-1], tolerance=SAME)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x * 255, "is 255 times the original: it is scaled otherwise"),
        (lambda x: x / 255, "is 0.00392157 times the original: it is scaled otherwise"),
        (lambda x: x * 2 - 1, "is 2 times the original plus -1: it is scaled otherwise"),
        (lambda x: x - 0.5, "is the original plus -0.5: it is centred otherwise"),
        (lambda x: 1 - x, "is -1 times the original plus 1: it is scaled otherwise"),
        (lambda x: x[:, :, ::-1], "differs in every channel (differs by up to"),
        (lambda x: x**2.2, "the picture is resized, cropped or normalised otherwise"),
    ],
)
def test_what_was_done_to_a_whole_picture_is_told(change: Any, words: str) -> None:
    true = pictures().astype(np.float64)
    assert words in difference(true, change(true), tolerance=SAME)


def test_channels_normalised_each_in_its_own_way_are_told_apart_from_the_rest() -> None:
    true = pictures()
    given = true.copy()
    given[:, 1] = given[:, 1] * 3
    assert difference(true, given, tolerance=SAME) == (
        "differs: channel 1 is 3 times the original: it is scaled otherwise"
    )


def test_noise_is_neither_a_scale_nor_a_shift() -> None:
    true = table(columns=1).astype(np.float64)
    given = true + 1e-5 * np.random.default_rng(1).normal(size=true.shape)
    words = difference(true, given, tolerance=SAME)
    assert words.startswith("differs: column 0 differs by up to ")
    assert "correlation 1.000" in words


def test_many_columns_are_counted_after_the_first() -> None:
    true = table()
    words = difference(true, true * 2, tolerance=SAME)
    assert words.count("is 2 times") == 4
    assert words.endswith(" and 2 further columns differ")


def test_a_column_filled_with_one_number_is_told() -> None:
    true = table(columns=2)
    given = true.copy()
    given[:, 1] = 7
    assert difference(true, given, tolerance=SAME) == "differs: column 1 is 7 everywhere"
    constant = np.zeros((5, 2), np.float32)
    given = constant + np.array([7, 0], np.float32)
    assert "column 0 differs by up to 7 (correlation nan)" in difference(constant, given, tolerance=SAME)


def test_missing_values_are_told_apart_from_overflow() -> None:
    true = table(columns=2)
    overflown = true.copy()
    overflown[:3, 1] = np.inf
    assert difference(true, overflown, tolerance=SAME) == "holds 3 values that are not finite"
    missing = true.copy()
    missing[:5, 0] = np.nan
    filled = np.nan_to_num(missing, nan=0.0)
    assert "numbers in 5 places that are not finite in the original: missing values are filled otherwise" in (
        difference(missing, filled, tolerance=SAME)
    )
    assert "exchanged: column 0 holds column 1" in difference(missing, missing[:, ::-1], tolerance=SAME)
    scaled = missing.copy()
    scaled[:, 0] *= 2
    assert difference(missing, scaled, tolerance=SAME) == (
        "differs: column 0 is 2 times the original: it is scaled otherwise"
    )


@pytest.mark.parametrize("shape", [(), (5,), (5, 1), (5, 2), (5, 3, 4), (0, 3)])
def test_arrays_of_every_rank_are_told(shape: tuple[int, ...]) -> None:
    true = np.asarray(np.random.default_rng(0).normal(size=shape))
    for given_array in (true + 1, true > 0, np.zeros(shape, np.int64)):
        assert isinstance(difference(true, np.asarray(given_array), tolerance=SAME), str)


# clipped values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x + 30, r"is the original plus 30(\.\d+)?: it is centred otherwise before it is clipped"),
        (lambda x: 1.5 * x, r"is 1\.5 times the original: it is scaled otherwise before it is clipped"),
        (lambda x: x + 1e4, r"holds its largest value in 100% of places, the original in \d+%: it is centred or"),
        (lambda x: x - 250, r"holds its smallest value in \d+% of places, the original in \d+%: it is centred or"),
    ],
)
def test_what_was_done_before_values_were_clipped_is_told(change: Any, words: str) -> None:
    values = np.random.default_rng(0).normal(0, 80, (4, 1, 6, 7, 8))
    assert re.match(words, difference(values.clip(-100, 100), change(values).clip(-100, 100), tolerance=SAME))


# turns

TURN = st.tuples(st.permutations(range(3)), st.tuples(st.booleans(), st.booleans(), st.booleans()))


def turn_of(array: NDArray[Any], turn: tuple[list[int], tuple[bool, ...]]) -> NDArray[Any]:
    order, flips = turn
    return array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def words_of(turn: tuple[list[int], tuple[bool, ...]]) -> str | None:
    """As one would say it."""
    order, flips = turn
    moved = ", ".join(f"axis {place} holds axis {axis}" for place, axis in enumerate(order) if place != axis)
    axes = [str(place) for place, flip in enumerate(flips) if flip]
    said = [f"has its axes exchanged: {moved}"] if moved else []
    said += [f"is mirrored along {'axis' if len(axes) == 1 else 'axes'} {' and '.join(axes)}"] if axes else []
    return ", and ".join(said) or None


@given(TURN, st.integers(0, 9))
def test_a_turn_of_windows_is_told_whatever_their_order(turn: tuple[list[int], tuple[bool, ...]], seed: int) -> None:
    random = np.random.default_rng(seed)
    windows = [random.normal(size=(4, 4, 4)).astype(np.float32) for _ in range(6)]
    given_windows = [turn_of(windows[place], turn) for place in random.permutation(6)]
    assert turned([*windows, np.zeros((4, 4, 4), np.float32)], given_windows) == words_of(turn)


@given(TURN)
def test_a_turn_of_masks_is_told_though_some_labels_differ(turn: tuple[list[int], tuple[bool, ...]]) -> None:
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[1:4, 2:6, 3:8], mask[6:8, 0:3, 1:3] = 1, 2
    other = turn_of(mask, turn).copy()
    other[other == 2] = 0
    assert turned_labels([mask, mask], [other, other]) == words_of(turn)


def test_what_no_turn_explains_is_not_called_one() -> None:
    random = np.random.default_rng(0)
    one, other = (random.normal(size=(4, 4, 4)).astype(np.float32) for _ in range(2))
    assert turned([one], [other]) is None
    assert turned([one, other], [one, one[::-1]]) is None  # as many are where they were
    assert turned([np.zeros((3, 3))], [np.ones((3, 3))]) is None
    assert turned([], []) is None
    labels = [random.integers(0, 3, (5, 5)).astype(np.uint8) for _ in range(2)]
    assert turned_labels(labels[:1], labels[1:]) is None
    assert turned_labels([labels[0].ravel()], [labels[1].ravel()]) is None


# outputs


def test_two_outputs_in_each_others_place_are_told() -> None:
    random = np.random.default_rng(0)
    true = [{name: random.normal(size=(n, 2)) for name in "abc"} | {"d": random.normal(size=n)} for n in (3, 1)]
    turned = [{**arrays, "a": arrays["c"], "c": arrays["a"]} for arrays in true]
    assert exchanged(true, turned, "abcd", tolerance=SAME) == [("a", "c")]
    assert exchanged(true, true, "abcd", tolerance=SAME) == []
    assert exchanged(true, [{**arrays, "a": arrays["c"]} for arrays in true], "abcd", tolerance=SAME) == []


# records

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_infinity=False) | st.text("abc", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON)
def test_a_record_does_not_differ_from_itself(record: Any) -> None:
    assert changed(record, record) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=4), st.integers(1, 9))
def test_a_value_changed_deep_in_a_record_is_told_with_its_path(path: list[tuple[str, int]], by: int) -> None:
    true: Any = 1
    other: Any = 1 + by
    for name, place in reversed(path):
        true, other = ({name: [0] * place + [value] + [0]} for value in (true, other))
    where = ".".join(f"{name}.{place}" for name, place in path)
    assert changed(true, other) == [f"{where} is {1 + by}, the original has 1"]


def test_records_of_other_shapes_are_told() -> None:
    true = {"pipeline": {"transforms": [{"mean": [0.1, 0.2]}, {"name": "log"}], "fill": None}, "threshold": 0.5}
    other = {"pipeline": {"transforms": [{"mean": [0.1, 0.3]}], "fill": None}, "threshold": 0.5, "extra": "x" * 99}
    assert changed(true, other) == [
        "pipeline.transforms has 1 entries, the original has 2",
        "extra is 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., the original has None",
    ]
    assert changed({"a": [1, 2]}, {"a": {"b": 1}}) == ["a is {'b': 1}, the original has [1, 2]"]
    assert changed({"a": 1}, {}) == ["a is None, the original has 1"]
    assert changed({"a": float("nan")}, {"a": float("nan")}) == []


def test_many_changed_values_are_counted_after_the_first() -> None:
    lines = changed({"mean": list(range(10))}, {"mean": list(range(1, 11))})
    assert lines[0] == "mean.0 is 1, the original has 0"
    assert lines[4:] == ["and 6 further values differ"]


def test_long_texts_that_differ_are_shown_where_they_do() -> None:
    true = "x" * 500 + "here it is" + "y" * 500
    (line,) = changed({"tokenizer": true}, {"tokenizer": true.replace("here", "Else")})
    assert line.startswith("tokenizer differs from character 500 on: 'Else it is")
    assert ", the original has 'here it is" in line
    assert len(line) < 250
