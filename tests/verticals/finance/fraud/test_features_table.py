"""Features of a table: context counts without being computed, and equal those of one event at a time."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.features import CURRENT, STATISTICS, Block, FeatureConfig, Features
from verticals.finance.fraud.features_event import EventView, EventWindows, History
from verticals.finance.fraud.features_table import EntityTable, TableWindow

SMALL = FeatureConfig(
    customer_windows=(0.5, 3.0),
    terminal_windows=(0.25, 2.0),
    pair_windows=(2.0, 5.0),
    risk_windows=(1.0, 4.0),
    label_delay=2.0,
    memory=3.0,
    wide=True,
)


def made(count: int) -> Events:
    rng = np.random.default_rng(count)
    time = np.sort(rng.integers(0, 20, count)) * DAY // 2 + 17_000 * DAY  # many events of the same moment
    return Events(
        time,
        rng.integers(-3, 3, count),
        rng.integers(-2, 2, count),
        np.round(rng.gamma(2, 20, count), 2),
        rng.integers(-1, 2, count).astype(np.int8),
    )


def test_context_changes_nothing_but_which_rows_are_given() -> None:
    events, features = made(300), Features(SMALL)
    whole = features.table(events, dtype=np.float64)
    for first in (0, 1, 150, 299, 300):
        np.testing.assert_array_equal(features.table(events, dtype=np.float64, first=first), whole[:, first:])


@pytest.mark.parametrize("config", [SMALL, SMALL.model_copy(update={"wide": False})])
def test_one_event_at_a_time_equals_the_table(config: FeatureConfig) -> None:
    events, features = made(200), Features(config)
    table = features.table(events, dtype=np.float64)
    cards: dict[int, History] = {}
    terminals: dict[int, History] = {}
    for row, (time, customer, terminal, amount, fraud) in enumerate(
        zip(*(c.tolist() for c in events.columns), strict=True)
    ):
        card = cards.setdefault(customer, History.empty(features.memory))
        place = terminals.setdefault(terminal, History.empty(features.memory))
        one = features.event(time, amount, terminal, card, place)
        np.testing.assert_allclose(one, table[:, row], rtol=1e-9, atol=1e-6, err_msg=f"row {row}")
        card.append(time, amount, terminal, fraud, features.memory)
        place.append(time, amount, customer, fraud, features.memory)


def test_blocks_of_ones_own_are_computed_in_the_order_given() -> None:
    events = made(120)
    blocks = [Block("terminal", "amount", name, (DAY, 3 * DAY)) for name in ("max", "sum", "drift")]
    own = Features(SMALL, blocks)
    assert own.names[len(CURRENT) :] == tuple(name for block in blocks for name in block.names)
    found = own.table(events, dtype=np.float64)[len(CURRENT) :]
    for width, row in ((DAY, 0), (3 * DAY, 1)):
        for k in range(len(events)):
            inside = (events.terminal[: k + 1] == events.terminal[k]) & (events.time[: k + 1] > events.time[k] - width)
            amounts = events.amount[: k + 1][inside]
            assert found[row, k] == amounts.max()
            assert found[2 + row, k] == pytest.approx(amounts.sum())
    assert set(STATISTICS) >= {block.statistic for block in blocks}


def test_an_empty_table_has_no_rows() -> None:
    features = Features(SMALL)
    assert features.table(made(0)).shape == (len(features), 0)


def test_the_wide_set_has_more_than_two_thousand_features_with_names_of_their_own() -> None:
    names = Features(FeatureConfig.of_size("wide")).names
    assert len(names) > 2000
    assert len(set(names)) == len(names)


def test_what_was_computed_on_the_way_is_freed_at_once() -> None:
    """Nothing waits for Python to collect cycles: a file's chunks would pile up, and a service does not collect."""
    events, features = made(300), Features(SMALL.model_copy(update={"wide": False}))
    empty = History.empty(features.memory)
    gc.collect()
    gc.disable()
    try:
        features.table(events)
        features.event(int(events.time[-1]), 5.0, 1, empty, empty)
        kept = [item for item in gc.get_objects() if type(item) in (EntityTable, TableWindow, EventView, EventWindows)]
    finally:
        gc.enable()
    assert kept == []
