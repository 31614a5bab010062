"""Splits keep the future out of the past; whatever would let it in is an error."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, DataError, LeakError
from core.evaluation.splits import DAY, Held, Removal, Span, TimeSplit, check_fitted, check_split, prequential

START = int(np.datetime64("2024-03-01", "us").astype(np.int64))


def events(seed, *, days=40, n=3000, cards=60, rate=0.02):
    random = np.random.default_rng(seed)
    time = START + np.sort(random.integers(0, days * DAY, n))
    return time, (random.random(n) < rate).astype(np.int8), random.integers(0, cards, n) * 11 - 300


@given(
    train=st.sampled_from([0.5, 3.0, math.inf]),
    validation=st.sampled_from([0.0, 2.0]),
    test=st.sampled_from([1.0, 4.5]),
    delay=st.sampled_from([0.0, 0.25, 3.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_spans_are_ordered_a_delay_apart_and_pass_the_check(train, validation, test, delay, seed):
    time, label, card = events(seed)
    time = np.random.default_rng(seed).permutation(time)
    split = TimeSplit.before(
        START + 20 * DAY, train_days=train, validation_days=validation, test_days=test, delay_days=delay
    )
    held = Held(split.test, time=time, label=label, group=card)
    train_rows = split.rows(time, split.train)
    later = held.rows if split.validation is None else split.rows(time, split.validation)
    assert time[train_rows].max() + delay * DAY <= time[later].min()
    assert time[later].max() + (delay * DAY if split.validation else 0) <= time[held.rows].max()
    check_split(time, train_rows, later, delay)
    check_split(time, train_rows, held.rows, delay)
    assert held.rows.tolist() == [i for i, t in enumerate(time) if START + 20 * DAY <= t < START + (20 + test) * DAY]
    if math.isinf(train):
        assert len(train_rows) == (time < split.train.end).sum()


def test_prequential_folds_are_one_split_moved_in_time():
    folds = prequential(START + 30 * DAY, folds=3, step_days=5, train_days=7, test_days=4, delay_days=2)
    assert [(fold.test.start - START) // DAY for fold in folds] == [20, 25, 30]
    assert all(fold.test.start - fold.train.end == 2 * DAY for fold in folds)
    assert all(fold.train.end - fold.train.start == 7 * DAY for fold in folds)
    with pytest.raises(ConfigError, match="step no shorter"):
        prequential(START, folds=3, step_days=3, train_days=7, test_days=4, delay_days=2)


def test_a_split_without_its_gap_cannot_be_made():
    train, test = Span(START, START + 7 * DAY), Span(START + 10 * DAY, START + 12 * DAY)
    TimeSplit(train, test, delay_days=3)
    with pytest.raises(LeakError, match=r"train ends 2024-03-08 .* test starts 2024-03-11 .* 3.5 days late"):
        TimeSplit(train, test, delay_days=3.5)
    with pytest.raises(LeakError, match="validation ends"):
        TimeSplit(train, test, Span(START + 7 * DAY, START + 10 * DAY + 1))
    with pytest.raises(ConfigError, match=r"test span .* is empty"):
        TimeSplit(train, Span(START, START))
    with pytest.raises(DataError, match=r"no event from .* the table is from"):
        TimeSplit(train, test).rows(np.array([START + 20 * DAY]), test)


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_random_split_is_an_error(seed):
    time, *_ = events(seed, n=400)
    rows = np.random.default_rng(seed).permutation(400)
    with pytest.raises(LeakError, match=r"\d+ of 300 training rows are not older than the first test row"):
        check_split(time, rows[:300], rows[300:], 0.0)


def test_each_leak_is_named_with_counts_and_times():
    time = START + np.arange(10) * DAY
    check_split(time, np.arange(4), np.arange(6, 10), 3.0)
    with pytest.raises(LeakError, match="1 of 5 test rows are training rows too"):
        check_split(time, np.arange(6), np.arange(5, 10), 0.0)
    with pytest.raises(LeakError, match=r"2 of 6 training rows lie less than the label delay of 3 days .*2024-03-07"):
        check_split(time, np.arange(6), np.arange(7, 10)[::-1] - 1, 3.0)
    with pytest.raises(LeakError, match="1 of 4 training rows are not older"):
        check_split(time, np.array([0, 1, 2, 9]), np.arange(6, 9), 0.0)
    with pytest.raises(DataError, match="0 training and 2 test rows"):
        check_split(time, np.arange(0), np.arange(2), 0.0)


def test_a_transform_fitted_on_test_days_is_an_error():
    check_fitted(START - 1, START)
    for fitted in (START, START + DAY):
        with pytest.raises(LeakError, match=r"the scaler was fitted on events up to .* the test starts 2024-03-01"):
            check_fitted(fitted, START, what="the scaler")


@given(seed=st.integers(0, 500), delay=st.sampled_from([0.0, 1.0, 2.5]), known=st.sampled_from([2.0, 7.0, math.inf]))
@settings(max_examples=60, deadline=None)
def test_removal_equals_the_rule_read_aloud(seed, delay, known):
    time, label, card = events(seed, n=500, cards=40, rate=0.05)
    order = np.random.default_rng(seed).permutation(500)
    time, label, card = time[order], label[order], card[order]
    span = Span(START + 20 * DAY + DAY // 3, START + 27 * DAY)
    removed = Removal(delay, known).rows(span, time=time, label=label, group=card)
    for row in range(500):
        expected = False
        if span.start <= time[row] < span.end:
            today = span.start + (time[row] - span.start) // DAY * DAY
            expected = any(
                span.start - (delay + known) * DAY <= time[i] < today - delay * DAY
                for i in np.flatnonzero((card == card[row]) & (label == 1))
            )
        assert removed[row] == expected


def test_a_thinned_test_set_cannot_be_scored():
    time, label, card = events(1)
    held = Held(Span(START + 20 * DAY, START + 27 * DAY), time=time, label=label, group=card, removal=Removal(2.0))
    assert held.removed > 0
    score = np.random.default_rng(0).random(len(time))
    rows = held.scored(score[held.rows])
    assert len(rows) == len(held)
    assert rows.positives == held.label.sum()
    assert rows.num_days == 7
    with pytest.raises(LeakError, match="score every one"):
        held.scored(score[held.rows][1:])
    genuine = held.rows[held.label == 0]
    thinned = np.setdiff1d(held.rows, genuine[::2])
    with pytest.raises(LeakError, match=f"miss {len(genuine[::2])} genuine and 0 positive of {len(held)} events"):
        held.scored(score[thinned], rows=thinned)
    with pytest.raises(LeakError, match="hold 1 from elsewhere and 0 twice"):
        held.check(np.append(held.rows, 0))
    with pytest.raises(LeakError, match="hold 0 from elsewhere and 1 twice"):
        held.check(np.append(held.rows, held.rows[0]))


def test_scores_in_another_order_find_their_rows():
    time, label, card = events(2)
    held = Held(Span(START, START + 5 * DAY), time=time, label=label, group=card)
    score = np.random.default_rng(0).random(len(held))
    order = np.random.default_rng(1).permutation(len(held))
    straight, shuffled = held.scored(score), held.scored(score[order], rows=held.rows[order])
    assert straight.same_rows(shuffled)
    assert np.array_equal(straight.score, shuffled.score)
    assert np.array_equal(straight.label, shuffled.label)


def test_events_without_a_label_are_not_judged():
    time, label, card = events(3)
    label[-5:] = -1
    with pytest.raises(DataError, match=r"5 of .* have no label yet"):
        Held(Span(START + 30 * DAY, START + 40 * DAY), time=time, label=label, group=card)
    with pytest.raises(DataError, match="no event"):
        Held(Span(START - 2 * DAY, START - DAY), time=time, label=label, group=card)


def test_the_handbook_sizes_come_out():
    folder = os.environ.get("VERTICALS_DATA")
    path = Path(folder or "") / "fraud/handbook/transactions.parquet"
    if not folder or not path.exists():
        pytest.skip("needs VERTICALS_DATA with fraud/handbook/transactions.parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path, columns=["TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD"])
    time = table["TX_DATETIME"].to_numpy().astype("datetime64[us]").astype(np.int64)
    label = table["TX_FRAUD"].to_numpy().astype(np.int8)
    card = table["CUSTOMER_ID"].to_numpy().astype(np.int64)
    last = int(np.datetime64("2018-08-08", "us").astype(np.int64))
    fold = prequential(last, folds=4, train_days=7, test_days=7, delay_days=7)[-1]
    train = fold.rows(time, fold.train)
    held = Held(fold.test, time=time, label=label, group=card, removal=Removal(7, 7))
    assert (len(train), label[train].sum()) == (67_240, 598)
    assert (len(held), held.label.sum()) == (58_264, 385)
    everything = TimeSplit.before(last, train_days=math.inf, test_days=7, delay_days=7)
    assert everything.test == fold.test
    assert len(everything.rows(time, everything.train)) == (time < last - 7 * DAY).sum()
    check_split(time, train, held.rows, 7)
