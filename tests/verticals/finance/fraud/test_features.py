"""Features: one definition in two ways, held to each other, to loops written by hand, and to time's arrow."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.features import FeatureConfig, Features
from verticals.finance.fraud.features_event import History

HANDBOOK = "fraud/handbook/transactions.parquet"
SMALL = FeatureConfig(
    customer_windows=(0.5, 2.0, 9.0),
    terminal_windows=(1.0, 9.0),
    pair_windows=(5.0,),
    risk_windows=(1.0, 4.0),
    label_delay=2.0,
    memory=3.0,
)


def random_events(seed: int, *, rows: int = 300, days: float = 25.0, customers: int = 6, terminals: int = 5) -> Events:
    """Few cards and terminals, ties in time, amounts with repeats, labels known and not."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, int(days * 24), rows)) * (DAY // 24) + 17_000 * DAY
    return Events(
        time,
        rng.integers(-(2**62), 2**62, customers)[rng.integers(0, customers, rows)],
        rng.integers(-(2**62), 2**62, terminals)[rng.integers(0, terminals, rows)],
        np.round(rng.choice([0.0, 5.0, 5.0, 17.3, 240.0, 1e6], rows) * rng.choice([1.0, 1.0, 1.37], rows), 2),
        rng.choice(np.array([-1, 0, 0, 1], np.int8), rows),
    )


def one_by_one(features: Features, events: Events, rows: range, *, trim: bool = False) -> np.ndarray:
    """[F, rows] by the event way, from histories that grow (or are made anew from the horizon's events)."""
    cards: dict[int, History] = {}
    terminals: dict[int, History] = {}
    out = np.empty((len(features), len(rows)))
    for i in range(rows.stop):
        time, card, terminal = int(events.time[i]), int(events.customer[i]), int(events.terminal[i])
        pasts = []
        for side, code, column, other in (
            (cards, card, events.customer, events.terminal),
            (terminals, terminal, events.terminal, events.customer),
        ):
            if trim:
                earlier = np.flatnonzero((column[:i] == code) & (events.time[:i] > time - features.horizon))
                pasts.append(
                    History(
                        events.time[earlier],
                        events.amount[earlier],
                        other[earlier],
                        events.fraud[earlier],
                        features.memory,
                    )
                )
            else:
                pasts.append(side.setdefault(code, History.empty(features.memory)))
        amount = float(events.amount[i])
        if i in rows:
            out[:, rows.index(i)] = features.event(time, amount, terminal, pasts[0], pasts[1])
        if not trim:
            pasts[0].append(time, amount, terminal, int(events.fraud[i]), features.memory)
            pasts[1].append(time, amount, card, int(events.fraud[i]), features.memory)
    return out


def assert_same(features: Features, table: np.ndarray, single: np.ndarray) -> None:
    """1e-9 relative; deviations, which subtract, 1e-6."""
    for name, ours, theirs in zip(features.names, table, single, strict=True):
        tolerance = 1e-6 if "_std_" in name or "_deviation_" in name else 1e-9
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_two_ways_agree(seed: int, wide: bool, trim: bool) -> None:
    features = Features(SMALL.model_copy(update={"wide": wide}))
    events = random_events(seed)
    table = features.table(events, dtype=np.float64)
    assert np.isfinite(table).all()
    assert_same(features, table, one_by_one(features, events, range(len(events)), trim=trim))


def test_context_may_be_given_instead_of_computed() -> None:
    features, events = Features(SMALL), random_events(1)
    whole = features.table(events, dtype=np.float64)
    np.testing.assert_allclose(
        features.table(events, dtype=np.float64, first=200), whole[:, 200:], rtol=1e-9, atol=1e-12
    )
    recent = events.rows(events.time > events.time[200] - features.horizon)
    part = features.table(recent, dtype=np.float64)[:, -100:]
    np.testing.assert_allclose(part, whole[:, -100:], rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 250))
def test_later_events_and_labels_not_yet_known_change_nothing(seed: int, cut: int) -> None:
    features, events = Features(SMALL), random_events(seed, rows=250)
    whole = features.table(events, dtype=np.float64)
    assert_same(features, features.table(events.rows(slice(0, cut)), dtype=np.float64), whole[:, :cut])
    unknown = events.time > events.time[cut - 1] - int(SMALL.label_delay * DAY)
    hidden = replace(events, fraud=np.where(unknown, np.int8(-1), events.fraud))
    assert_same(features, features.table(hidden, dtype=np.float64)[:, :cut], whole[:, :cut])


def test_windows_counted_by_hand() -> None:
    features, events = Features(SMALL), random_events(5)
    table = dict(zip(features.names, features.table(events, dtype=np.float64), strict=True))
    delay = int(SMALL.label_delay * DAY)
    for i in range(0, len(events), 7):
        past = np.arange(len(events)) <= i
        for days in SMALL.customer_windows:
            inside = past & (events.customer == events.customer[i]) & (events.time > events.time[i] - days * DAY)
            name = f"{days:.4g}d"
            assert table[f"customer_amount_count_{name}"][i] == inside.sum()
            assert table[f"customer_amount_mean_{name}"][i] == pytest.approx(events.amount[inside].mean())
            assert table[f"customer_amount_max_{name}"][i] == events.amount[inside].max()
            assert table[f"customer_amount_std_{name}"][i] == pytest.approx(
                events.amount[inside].std(), rel=1e-6, abs=1e-3
            )
        for days in SMALL.risk_windows:
            known = events.time <= events.time[i] - delay
            inside = (
                known & (events.terminal == events.terminal[i]) & (events.time > events.time[i] - delay - days * DAY)
            )
            frauds = (events.fraud[inside] == 1).sum()
            assert table[f"terminal_fraud_known_{days:.4g}d"][i] == inside.sum()
            assert table[f"terminal_fraud_frauds_{days:.4g}d"][i] == frauds
            assert table[f"terminal_fraud_risk_{days:.4g}d"][i] == pytest.approx(frauds / max(inside.sum(), 1))


def test_the_first_event_ever_has_finite_features() -> None:
    for config in (FeatureConfig(), SMALL, FeatureConfig.of_size("wide")):
        features = Features(config)
        empty = History.empty(features.memory)
        single = features.event(17_000 * DAY, 12.5, 7, empty, empty)
        alone = Events(
            np.array([17_000 * DAY]), np.array([3]), np.array([7]), np.array([12.5]), np.array([-1], np.int8)
        )
        assert_same(features, features.table(alone, dtype=np.float64), single[:, None])
        assert np.isfinite(single).all()


def test_an_empty_table_and_a_disordered_one() -> None:
    features, events = Features(SMALL), random_events(0)
    assert features.table(events.rows(slice(0, 0))).shape == (len(features), 0)
    with pytest.raises(ValueError, match="time order"):
        features.table(events.rows(np.arange(len(events))[::-1]))


def test_names_are_unique_and_sizes_as_promised() -> None:
    sizes = {size: Features(FeatureConfig.of_size(size)) for size in ("small", "default", "wide")}  # type: ignore[arg-type]
    assert all(len(set(features.names)) == len(features) for features in sizes.values())
    assert 50 <= len(sizes["small"]) <= 90
    assert 100 <= len(sizes["default"]) <= 200
    assert len(sizes["wide"]) >= 2000


@pytest.fixture(scope="module")
def handbook() -> Events:
    folder = os.environ.get("VERTICALS_DATA")
    if not folder or not (Path(folder) / HANDBOOK).exists():
        pytest.skip(f"VERTICALS_DATA does not name a folder with {HANDBOOK}")
    import pyarrow.parquet

    columns = ["TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"]
    table = pyarrow.parquet.read_table(Path(folder) / HANDBOOK, columns=columns).slice(0, 200_000)
    time = table.column("TX_DATETIME").to_numpy().astype("datetime64[us]").astype(np.int64)
    others = (table.column(name).to_numpy() for name in columns[1:])
    customer, terminal, amount, fraud = others
    return Events(time, customer.astype(np.int64), terminal.astype(np.int64), amount, fraud.astype(np.int8))


def test_the_two_ways_agree_on_200_000_handbook_rows(handbook: Events) -> None:
    """The table way over all rows; the event way, whose histories hold all rows, for every 23rd of them from the first to
    the last. VERTICALS_EVERY=1 compares each row, which takes minutes."""
    features, every = Features(FeatureConfig()), int(os.environ.get("VERTICALS_EVERY", "23"))
    table = features.table(handbook, dtype=np.float64)[:, ::every]
    assert_same(features, table, one_by_one(features, handbook, range(0, len(handbook), every)))


def test_of_two_thousand_features_none_is_constant_and_no_two_are_equal(handbook: Events) -> None:
    features = Features(FeatureConfig.of_size("wide"))
    table = features.table(handbook)
    assert [name for name, row in zip(features.names, table, strict=True) if row.min() == row.max()] == []
    assert len({row.tobytes() for row in table}) == len(features) >= 2000
