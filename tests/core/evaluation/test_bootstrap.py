"""Intervals that cover what they promise, and a paired test that finds a planted difference and no other."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from core.errors import DataError
from core.evaluation.bootstrap import Figure, Figures, compare, measure
from core.evaluation.metrics import auc_roc, average_precision, brier, detection, recall_at_false_alarm_rate
from core.evaluation.scored import Scored

RANKING = {"auc": auc_roc, "ap": average_precision}


def cards(seed, *, signal=2.0, noise=0.0, cards=400, rows=8, score_seed=None):
    """Rows of cards whose label and part of whose score are the card's own, so that rows of a card are alike."""
    random = np.random.default_rng(seed)
    card = np.repeat(np.arange(cards), rows)
    label = np.repeat((random.random(cards) < 0.1).astype(int), rows)
    score = np.repeat(random.normal(size=cards), rows) + 0.3 * random.normal(size=len(card)) + signal * label
    if score_seed is not None:
        score = score + noise * np.random.default_rng(score_seed).normal(size=len(card))
    return Scored(score, label, group=card, day=np.tile(np.arange(rows), cards))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = auc_roc(cards(10_000, cards=60_000))
    held = narrow = 0
    for seed in range(60):
        rows = cards(seed, cards=300)
        figure = measure(rows, {"auc": auc_roc}, draws=150, seed=seed)["auc"]
        held += figure.low <= truth <= figure.high
        alone = Scored(rows.score, rows.label)  # every row a cluster of its own
        row_figure = measure(alone, {"auc": auc_roc}, draws=60, seed=seed)["auc"]
        narrow += row_figure.low <= truth <= row_figure.high
    assert 52 <= held <= 60  # 95 % of 60 is 57; percentile intervals of 30 positive cards fall a little short
    assert narrow < held - 8, "rows of one card are alike: an interval that ignores cards must be too narrow"


def test_one_draw_gives_a_card_the_same_count_in_every_fold():
    fold = cards(1)
    once = measure(fold, RANKING, draws=80)
    twice = measure([fold, fold], RANKING, draws=80)
    for name in RANKING:
        assert twice[name][:3] == pytest.approx(once[name][:3], abs=1e-12)
    assert twice["auc"].n == 2 * once["auc"].n == 6400
    assert twice["auc"].positives == 2 * once["auc"].positives


def test_folds_of_different_cards_are_averaged():
    first, second = cards(2), cards(3, signal=1.0)
    figure = measure([first, second], {"auc": auc_roc}, draws=20)["auc"]
    assert figure.value == pytest.approx((auc_roc(first) + auc_roc(second)) / 2)
    assert figure.low < figure.value < figure.high


def test_the_seed_decides_the_draws():
    rows = cards(4)
    assert measure(rows, RANKING, draws=30, seed=5) == measure(rows, RANKING, draws=30, seed=5)
    assert measure(rows, RANKING, draws=30, seed=5) != measure(rows, RANKING, draws=30, seed=6)


def test_a_planted_difference_is_found():
    better, worse = cards(6), cards(6, noise=1.0, score_seed=1)
    result = compare([better, better], [worse, worse], RANKING, draws=200)
    for comparison in result.values():
        assert comparison.difference > 0
        assert comparison.low > 0
        assert comparison.p_value == pytest.approx(2 / 201)
        assert comparison.draws == 200
    mirrored = compare(worse, better, RANKING, draws=200)
    assert mirrored["auc"].difference == pytest.approx(-result["auc"].difference)
    assert mirrored["auc"].high < 0


def test_no_difference_is_found_where_there_is_none():
    low = 0
    for seed in range(20):
        pair = (cards(seed, noise=0.7, score_seed=100 + seed), cards(seed, noise=0.7, score_seed=200 + seed))
        low += compare(*pair, {"auc": auc_roc}, draws=100)["auc"].p_value < 0.05
    assert low <= 3
    same = compare(cards(7), cards(7), {"auc": auc_roc}, draws=50)["auc"]
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_is_narrower_than_two_intervals():
    first, second = cards(8, noise=0.2, score_seed=1), cards(8, noise=0.2, score_seed=2)
    paired = compare(first, second, {"auc": auc_roc}, draws=200)["auc"]
    alone = measure(first, {"auc": auc_roc}, draws=200)["auc"]
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_only_the_same_rows_are_compared():
    rows = cards(9)
    other = Scored(rows.score, rows.label[::-1], group=rows.groups[rows.group], day=rows.day)
    with pytest.raises(DataError, match="fold 0: the two models do not score the same rows"):
        compare(rows, other, RANKING, draws=5)
    with pytest.raises(DataError, match="1 folds against 2"):
        compare(rows, [rows, rows], RANKING, draws=5)
    with pytest.raises(DataError, match="group="):
        measure([Scored([0.1, 0.2], [0, 1])] * 2, RANKING, draws=5)
    with pytest.raises(DataError, match="no test set"):
        measure([], RANKING, draws=5)


def test_the_same_rows_are_recognised_whatever_the_scores_and_their_order():
    label, group = np.array([0, 1, 0, 1]), np.array(["a", "b", "c", "d"])
    one = Scored([0.1, 0.9, 0.5, 0.3], label, group=group)
    two = Scored([0.7, 0.2, 0.2, 0.8], label, group=group)
    assert one.same_rows(two)
    assert not one.same_rows(Scored([0.7, 0.2, 0.2, 0.8], label, group=group[::-1]))


def test_figures_are_a_record_and_a_table():
    probability = Scored([0.9, 0.2, 0.1, 0.3], [1, 0, 0, 0], group=[1, 2, 3, 4], day=[0, 0, 1, 1])
    figures = measure(probability, detection(k=2, alerts_per_day=1.0), draws=20)
    record = json.loads(json.dumps(figures.record(), allow_nan=False))
    assert record["auc_roc"]["value"] == 1.0
    assert record["auc_roc"]["n"] == 4
    assert record["auc_roc"]["positives"] == 1
    assert record["auc_roc"]["prevalence"] == 0.25
    lines = figures.table().splitlines()
    assert len(lines) == len(figures) + 1
    assert len({len(line) for line in lines}) == 1
    assert all(line.startswith(name) and "25.000%" in line for name, line in zip(figures, lines[1:], strict=True))


def test_draws_in_which_a_figure_does_not_exist_are_left_out():
    rare = Scored([0.9, 0.2, 0.1, 0.3], [1, 0, 0, 0], group=[1, 2, 3, 4])
    figure = measure(rare, {"auc": auc_roc}, draws=50)["auc"]
    assert figure[:3] == (1.0, 1.0, 1.0)
    none = measure(Scored([0.9, 0.2], [0, 0], group=[1, 2]), {"auc": auc_roc}, draws=10)
    assert none.record()["auc"]["low"] is None
    assert none.record()["auc"]["value"] is None


def test_a_figure_of_any_kind_can_be_measured():
    rows = Scored([0.9, 0.2, 0.1, 0.3] * 50, [1, 0, 0, 0] * 50, group=np.repeat(np.arange(50), 4))
    figures = measure(rows, {"brier": brier, "recall": partial(recall_at_false_alarm_rate, rate=0.01)}, draws=10)
    assert figures["brier"].value == pytest.approx((0.01 + 0.04 + 0.01 + 0.09) / 4)
    assert figures["recall"] == Figure(1.0, 1.0, 1.0, 200, 50)
    assert isinstance(figures, Figures)
