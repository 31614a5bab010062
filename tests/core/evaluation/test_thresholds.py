"""Thresholds against a search over every cut, and at the edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from core.evaluation.scored import Scored
from core.evaluation.thresholds import by_budget, by_cost, effect, trade_off

tables = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 10), min_size=n, max_size=n),
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
        st.lists(st.integers(3, 6), min_size=n, max_size=n),
        st.lists(st.integers(0, 50), min_size=n, max_size=n),
    )
)


@given(tables, st.sampled_from([0.0, 0.4, 1.0, 3.0, 50.0]))
@settings(max_examples=150, deadline=None)
def test_the_budget_is_kept_and_used_as_far_as_ties_allow(table, budget):
    score, label, day, _ = (np.asarray(column) for column in table)
    chosen = by_budget(Scored(score, label, day=day), budget)
    num_days = day.max() - day.min() + 1
    alerted = score >= chosen.threshold
    assert alerted.sum() <= budget * num_days
    assert chosen.alerts_per_day == pytest.approx(alerted.sum() / num_days)
    assert chosen.recall == pytest.approx(label[alerted].sum() / label.sum() if label.sum() else np.nan, nan_ok=True)
    assert chosen.precision == pytest.approx(label[alerted].mean() if alerted.any() else np.nan, nan_ok=True)
    if not alerted.all():
        assert (score >= score[~alerted].max()).sum() > budget * num_days


@given(tables, st.sampled_from([0.0, 1.0, 7.5, 200.0]))
@settings(max_examples=150, deadline=None)
def test_the_cost_is_the_least_of_all_thresholds(table, alert_cost):
    score, label, day, amount = (np.asarray(column) for column in table)
    rows = Scored(score, label, day=day)
    num_days = day.max() - day.min() + 1

    def cost(threshold):
        alerted = score >= threshold
        return (alert_cost * alerted.sum() + amount[(label == 1) & ~alerted].sum()) / num_days

    chosen = by_cost(rows, alert_cost=alert_cost, missed_cost=amount)
    every = [*sorted(set(score)), 11]
    assert chosen.cost_per_day == pytest.approx(min(map(cost, every)))
    assert cost(chosen.threshold) == pytest.approx(chosen.cost_per_day)
    fewest = max(threshold for threshold in every if cost(threshold) == min(map(cost, every)))
    assert (score >= chosen.threshold).sum() == (score >= fewest).sum()
    again = effect(rows, chosen.threshold, alert_cost=alert_cost, missed_cost=amount)
    assert again == pytest.approx(chosen, nan_ok=True)


def test_the_threshold_lies_between_scores():
    rows = Scored([0.9, 0.5, 0.1], [1, 0, 0], day=[0, 0, 0])
    assert by_budget(rows, 1.0).threshold == pytest.approx(0.7)
    assert by_budget(rows, 2.9).threshold == pytest.approx(0.3)
    neighbours = Scored([np.nextafter(0.5, 1), 0.5], [1, 0], day=[0, 0])
    assert by_budget(neighbours, 1.0).alerts_per_day == 1.0
    assert by_budget(neighbours, 1.0).threshold > 0.5


def test_ties_are_alerted_together_or_not_at_all():
    rows = Scored([0.9, 0.9, 0.9, 0.1], [1, 1, 0, 0], day=[0, 0, 0, 0])
    nothing = by_budget(rows, 2.0)
    assert nothing.threshold > 0.9
    assert nothing.recall == 0.0
    assert np.isnan(nothing.precision)
    assert nothing.alerts_per_day == 0.0
    assert by_budget(rows, 3.0).recall == 1.0


def test_a_budget_above_the_volume_alerts_everything():
    rows = Scored([0.9, 0.5, 0.1], [1, 0, 0], day=[0, 1, 1])
    chosen = by_budget(rows, 1000.0)
    assert chosen.threshold == 0.1
    assert chosen.alerts_per_day == 1.5
    assert chosen.false_alarm_rate == 1.0


def test_without_a_positive_cost_alerts_nothing_and_the_record_is_json():
    rows = Scored([0.9, 0.5], [0, 0], day=[0, 0])
    chosen = by_cost(rows, alert_cost=2.0, missed_cost=100.0)
    assert chosen.threshold > 0.9
    assert chosen.cost_per_day == 0.0
    assert np.isnan(chosen.recall)
    assert json.loads(json.dumps(chosen.record(), allow_nan=False))["recall"] is None


def test_dear_misses_lower_the_threshold():
    random = np.random.default_rng(0)
    label = (random.random(5000) < 0.05).astype(int)
    rows = Scored(random.normal(size=5000) + 2 * label, label, day=np.zeros(5000, int))
    cheap, dear = (by_cost(rows, alert_cost=1.0, missed_cost=missed) for missed in (5.0, 50.0))
    assert dear.threshold < cheap.threshold
    assert dear.recall > cheap.recall
    assert dear.precision < cheap.precision


def test_the_trade_off_runs_from_the_first_alert_to_all():
    rows = Scored([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0], day=[0, 0, 1, 1])
    threshold, alerts, recall, precision = trade_off(rows)
    assert threshold.tolist() == [0.9, 0.5, 0.1]
    assert alerts.tolist() == [0.5, 1.5, 2.0]
    assert recall.tolist() == [0.5, 1.0, 1.0]
    assert precision == pytest.approx([1.0, 2 / 3, 0.5])


def test_input_is_checked_at_the_door():
    rows = Scored([0.9, 0.5], [1, 0], day=[0, 0])
    with pytest.raises(DataError, match="alert budget of -1"):
        by_budget(rows, -1.0)
    with pytest.raises(DataError, match="negative or not finite"):
        by_cost(rows, alert_cost=-1.0, missed_cost=1.0)
    with pytest.raises(DataError, match="one for each of 2 rows"):
        by_cost(rows, alert_cost=1.0, missed_cost=[1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="one cost without the other"):
        effect(rows, 0.5, alert_cost=1.0)
    with pytest.raises(DataError, match="no rows"):
        by_budget(Scored([], [], day=[]), 1.0)
    with pytest.raises(DataError, match="day="):
        by_budget(Scored([0.9], [1]), 1.0)
