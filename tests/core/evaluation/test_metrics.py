"""Figures against scikit-learn and against the plainest loops that say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from core.errors import DataError
from core.evaluation.metrics import (
    auc_roc,
    average_precision,
    brier,
    calibration_error,
    detection,
    group_precision_at_k,
    precision_at_alerts,
    recall_at_alerts,
    recall_at_false_alarm_rate,
    reliability,
    tail_reliability,
)
from core.evaluation.scored import Scored


def simulated(seed, n=4000, *, rate=0.03, groups=300, days=5, steps=None):
    """A noisy detector; `steps` rounds its scores so that many tie."""
    random = np.random.default_rng(seed)
    label = (random.random(n) < rate).astype(int)
    score = 1 / (1 + np.exp(3 - random.normal(size=n) - 2 * label))
    if steps:
        score = np.round(score * steps) / steps
    return score, label, random.integers(0, groups, n) * 7, np.sort(random.integers(20, 20 + days, n))


columns = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 8), min_size=n, max_size=n),
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
        st.lists(st.integers(0, 3), min_size=6, max_size=6),
    )
)


@pytest.mark.parametrize("steps", [None, 20])
def test_ranking_equals_scikit_learn_with_and_without_weights(steps):
    score, label, group, _ = simulated(0, steps=steps)
    rows = Scored(score, label, group=group)
    assert auc_roc(rows) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert average_precision(rows) == pytest.approx(average_precision_score(label, score), abs=1e-12)
    times = np.random.default_rng(1).integers(0, 4, len(rows.groups)).astype(float)
    weight = times[np.searchsorted(rows.groups, group)]
    drawn = rows.resampled(times)
    assert auc_roc(drawn) == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-12)
    assert average_precision(drawn) == pytest.approx(
        average_precision_score(label, score, sample_weight=weight), abs=1e-12
    )
    assert auc_roc(rows) == pytest.approx(roc_auc_score(label, score), abs=1e-12), (
        "a draw changed the rows it came from"
    )


@given(columns)
@settings(max_examples=150, deadline=None)
def test_ranking_equals_scikit_learn_on_rows_written_out(table):
    score, label, group, _, times = (np.asarray(column) for column in table)
    rows = Scored(score, label, group=group)
    drawn = rows.resampled(times[rows.groups].astype(float))
    written = np.repeat(np.arange(len(score)), times[group])
    positives = label[written].sum()
    if 0 < positives < len(written):
        assert auc_roc(drawn) == pytest.approx(roc_auc_score(label[written], score[written]), abs=1e-12)
        assert average_precision(drawn) == pytest.approx(
            average_precision_score(label[written], score[written]), abs=1e-12
        )
    elif not positives:
        assert np.isnan(auc_roc(drawn))
        assert np.isnan(average_precision(drawn))


@given(columns, st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0, 4.0, 100.0]))
@settings(max_examples=150, deadline=None)
def test_recall_and_precision_equal_a_search_over_all_thresholds(table, rate, alerts_per_day):
    score, label, _, day, _ = (np.asarray(column) for column in table)
    rows = Scored(score, label, day=day)
    num_days = day.max() - day.min() + 1
    by_rate, by_alerts, precision = 0.0, 0.0, float("nan")
    for threshold in sorted(set(score), reverse=True):
        alerted = score >= threshold
        recall = label[alerted].sum() / max(label.sum(), 1)
        if (1 - label)[alerted].sum() <= rate * (1 - label).sum() + 1e-9:
            by_rate = recall
        if alerted.sum() <= alerts_per_day * num_days:
            by_alerts, precision = recall, label[alerted].mean()
    if label.sum():
        assert recall_at_false_alarm_rate(rows, rate) == pytest.approx(by_rate)
        assert recall_at_alerts(rows, alerts_per_day) == pytest.approx(by_alerts)
    assert precision_at_alerts(rows, alerts_per_day) == pytest.approx(precision, nan_ok=True)


def card_precision_top_k(score, label, card, day, k):
    """The handbook's words as a loop."""
    caught, shares = set(), []
    for today in sorted(set(day)):
        best, compromised = {}, {}
        for s, y, c, d in zip(score, label, card, day, strict=True):
            if d == today and c not in caught:
                best[c] = max(s, best.get(c, -np.inf))
                compromised[c] = max(y, compromised.get(c, 0))
        top = sorted(best, key=lambda c: -best[c])[:k]
        hits = [c for c in top if compromised[c]]
        shares.append(len(hits) / k)
        caught |= set(hits)
    return np.mean(shares)


@pytest.mark.parametrize("k", [1, 10, 50, 1000])
def test_group_precision_equals_the_handbook(k):
    score, label, group, day = simulated(2, 1500, groups=120)
    rows = Scored(score, label, group=group, day=day)
    expected = card_precision_top_k(score, label, group, day, k)
    assert group_precision_at_k(rows, k) == pytest.approx(expected)
    assert expected > 0


@pytest.mark.parametrize("k", [7, 40])
def test_group_precision_of_a_draw_counts_copies_as_cards(k):
    score, label, group, day = simulated(3, 1500, groups=120)
    rows = Scored(score, label, group=group, day=day)
    times = np.random.default_rng(4).integers(0, 4, len(rows.groups))
    written = np.repeat(np.arange(len(score)), times[np.searchsorted(rows.groups, group)])
    copy_number = np.concatenate([np.arange(n) for n in times[np.searchsorted(rows.groups, group)]])
    cards = [f"{card}-{number}" for card, number in zip(group[written], copy_number, strict=True)]
    expected = card_precision_top_k(score[written], label[written], cards, day[written], k)
    assert group_precision_at_k(rows.resampled(times.astype(float)), k) == pytest.approx(expected)


def test_group_precision_leaves_out_cards_that_an_earlier_day_caught():
    rows = Scored([0.9, 0.1, 0.9, 0.5], [1, 0, 1, 0], group=["a", "b", "a", "b"], day=[0, 0, 1, 1])
    assert group_precision_at_k(rows, 1) == 0.5


def test_brier_and_calibration_error_equal_their_definitions():
    score, label, group, _ = simulated(5, 3000)
    rows = Scored(score, label, group=group)
    assert brier(rows) == pytest.approx(brier_score_loss(label, score))
    order = np.argsort(score)
    parts = np.array_split(order, 10)  # 3,000 rows without ties: ten bins of 300
    expected = sum(len(part) / 3000 * abs(score[part].mean() - label[part].mean()) for part in parts)
    assert calibration_error(rows, 10) == pytest.approx(expected)
    predicted, observed, mass = reliability(rows, 10)
    assert np.all(np.diff(predicted) > 0)
    assert mass.tolist() == [300.0] * 10
    assert np.dot(observed, mass) == label.sum()


def test_bins_never_part_rows_of_one_score():
    predicted, observed, mass = reliability(Scored([0.2] * 9 + [0.7], [0] * 9 + [1]), 5)
    assert predicted == pytest.approx([0.2, 0.7])
    assert observed.tolist() == [0.0, 1.0]
    assert mass.tolist() == [9.0, 1.0]


def test_tail_bins_halve_towards_the_top():
    score, label, *_ = simulated(6, 1600)
    assert tail_reliability(Scored(score, label), 100).mass.tolist() == [800.0, 400.0, 200.0, 100.0, 100.0]


def test_figures_that_do_not_exist_are_nan():
    nothing = Scored([0.1, 0.2], [0, 0], group=[1, 2], day=[0, 0])
    for name, metric in detection(alerts_per_day=1.0).items():
        value = metric(nothing)
        existing = name.startswith(("group_precision", "precision", "brier", "calibration"))
        assert np.isnan(value) != existing, name


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        ([], [], "no rows"),
        ([0.1, np.nan], [0, 1], "1 of 2 scores are not finite"),
        ([0.1, 0.2], [0, -1], "1 of 2 labels are neither 0 nor 1"),
        ([0.1, 0.2], [0], "columns of one length"),
    ],
)
def test_rows_are_checked_at_the_door(score, label, message):
    with pytest.raises(DataError, match=message):
        Scored(score, label)


def test_a_figure_says_what_the_rows_lack():
    with pytest.raises(DataError, match="day="):
        recall_at_alerts(Scored([0.1, 0.2], [0, 1]), 1.0)
    with pytest.raises(DataError, match="no probabilities"):
        brier(Scored([0.1, 2.0], [0, 1]))
