"""Figures of cases against plain loops over the same draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from core.evaluation.cases import case_comparisons, case_figures

SCORE = st.one_of(st.floats(0, 1), st.just(float("nan")))


def drawn(cases: int, draws: int, seed: int) -> list[list[int]]:
    """The cases of each draw: as often as the generator's counts say."""
    counts = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=draws)
    return [np.repeat(np.arange(cases), row).tolist() for row in counts]


@settings(max_examples=25, deadline=None)
@given(st.lists(SCORE, min_size=1, max_size=8), st.integers(0, 9))
def test_figures_are_means_of_draws_over_the_cases_that_have_the_score(row: list[float], seed: int) -> None:
    figure = case_figures({"dice": row}, draws=200, seed=seed)["dice"]
    there = [value for value in row if not np.isnan(value)]
    assert figure.positives == len(there)
    if not there:
        assert np.isnan([figure.value, figure.low, figure.high]).all()
        return
    means = []
    for cases in drawn(len(row), 200, seed):
        values = [row[case] for case in cases if not np.isnan(row[case])]
        if values:
            means.append(np.mean(values))
    assert figure.value == pytest.approx(np.mean(there))
    assert figure.low == pytest.approx(np.percentile(means, 2.5), abs=1e-9)
    assert figure.high == pytest.approx(np.percentile(means, 97.5), abs=1e-9)


def test_figures_of_one_seed_are_the_same_and_a_constant_has_no_width() -> None:
    rows = {"dice": np.random.default_rng(0).uniform(size=30), "same": np.full(30, 0.25)}
    one, other = case_figures(rows), case_figures(rows)
    assert one["dice"] == other["dice"]
    assert one["dice"].low < one["dice"].value < one["dice"].high
    assert (one["same"].low, one["same"].value, one["same"].high) == (0.25, 0.25, 0.25)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=8), st.integers(0, 9))
def test_comparisons_are_of_the_same_cases_under_the_same_draws(pairs: list[tuple[float, float]], seed: int) -> None:
    first, second = ([pair[k] for pair in pairs] for k in (0, 1))
    found = case_comparisons({"dice": first}, {"dice": second}, draws=200, seed=seed)["dice"]
    gaps = np.array(first) - np.array(second)
    there = gaps[~np.isnan(gaps)]
    if not len(there):
        assert np.isnan([found.difference, found.low, found.high, found.p_value]).all()
        return
    means = []
    for cases in drawn(len(pairs), 200, seed):
        values = [gaps[case] for case in cases if not np.isnan(gaps[case])]
        if values:
            means.append(np.mean(values))
    below, above = sum(mean <= 0 for mean in means), sum(mean >= 0 for mean in means)
    assert found.difference == pytest.approx(there.mean())
    assert found.low == pytest.approx(np.percentile(means, 2.5), abs=1e-9)
    assert found.high == pytest.approx(np.percentile(means, 97.5), abs=1e-9)
    if np.abs(means).min() > 1e-9:  # a sum of floats that is 0 may fall on either side of it
        assert found.p_value == pytest.approx(min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1)))


def test_a_model_that_is_better_on_every_case_is_told_so() -> None:
    random = np.random.default_rng(0)
    worse = random.uniform(0.5, 0.8, 25)
    better = worse + random.uniform(0.01, 0.05, 25)
    found = case_comparisons({"dice": better}, {"dice": worse})["dice"]
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.01
    same = case_comparisons({"dice": worse}, {"dice": worse})["dice"]
    assert (same.difference, same.p_value) == (0.0, 1.0)


@pytest.mark.parametrize(
    "scores",
    [{}, {"dice": []}, {"dice": [0.5], "hd95_mm": [1.0, 2.0]}, {"dice": [[0.5, 0.6]]}],
    ids=["none", "no case", "other numbers", "two axes"],
)
def test_scores_that_are_no_table_are_refused(scores: dict[str, list[float]]) -> None:
    with pytest.raises(DataError, match="one score a case"):
        case_figures(scores)


def test_comparisons_of_other_scores_or_cases_are_refused() -> None:
    with pytest.raises(DataError, match="compare the same ones"):
        case_comparisons({"dice": [0.5]}, {"hd95_mm": [0.5]})
    with pytest.raises(DataError, match="1 cases against 2; compare on the same cases"):
        case_comparisons({"dice": [0.5]}, {"dice": [0.5, 0.6]})
