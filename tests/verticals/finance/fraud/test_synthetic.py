"""The planted patterns are there, are the whole answer, and read back through the real door."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.data.ordered import Ordered
from core.errors import DataError
from verticals.finance.fraud.records import read_events, schema
from verticals.finance.fraud.synthetic import SyntheticConfig, synthetic_transactions, write_synthetic

CONFIG = SyntheticConfig(num_customers=800, num_terminals=1000, num_days=90)
HANDBOOK_COLUMNS = [
    "TRANSACTION_ID",
    "TX_DATETIME",
    "CUSTOMER_ID",
    "TERMINAL_ID",
    "TX_AMOUNT",
    "TX_TIME_SECONDS",
    "TX_TIME_DAYS",
    "TX_FRAUD",
    "TX_FRAUD_SCENARIO",
]


@pytest.fixture(scope="module")
def columns() -> dict[str, NDArray[Any]]:
    table = synthetic_transactions(CONFIG)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def test_it_is_the_handbooks_table_in_time_order(columns: dict[str, NDArray[Any]]) -> None:
    assert list(columns) == HANDBOOK_COLUMNS
    assert (np.diff(columns["TX_DATETIME"]) >= np.timedelta64(0)).all()
    start = np.datetime64(CONFIG.start, "us")
    np.testing.assert_array_equal(columns["TX_DATETIME"], start + columns["TX_TIME_SECONDS"].astype("timedelta64[s]"))
    np.testing.assert_array_equal(columns["TX_TIME_DAYS"], columns["TX_TIME_SECONDS"] // 86_400)
    assert columns["TX_TIME_DAYS"].max() == CONFIG.num_days - 1
    assert len(np.unique(columns["TRANSACTION_ID"])) == len(columns["TRANSACTION_ID"])
    expected = CONFIG.num_customers * CONFIG.num_days * CONFIG.mean_per_day
    assert 0.9 < len(columns["TX_AMOUNT"]) / expected < 1.1
    assert columns["TX_AMOUNT"].min() > 0


def test_the_seed_decides_everything() -> None:
    small = CONFIG.model_copy(update={"num_customers": 50, "num_days": 10})
    assert synthetic_transactions(small).equals(synthetic_transactions(small))
    assert not synthetic_transactions(small).equals(synthetic_transactions(small.model_copy(update={"seed": 1})))


def test_every_planted_pattern_is_there(columns: dict[str, NDArray[Any]]) -> None:
    scenario, amount = columns["TX_FRAUD_SCENARIO"], columns["TX_AMOUNT"]
    np.testing.assert_array_equal(columns["TX_FRAUD"], scenario > 0)
    assert set(np.unique(scenario)) == {0, 1, 2, 3}
    assert 0.003 < (scenario > 0).mean() < 0.03
    # 1: no genuine payment is as large
    assert amount[scenario == 0].max() < CONFIG.large_amount <= amount[scenario == 1].min()


def test_a_compromised_terminal_takes_only_fraud_for_its_weeks(columns: dict[str, NDArray[Any]]) -> None:
    day, terminal, scenario = columns["TX_TIME_DAYS"], columns["TERMINAL_ID"], columns["TX_FRAUD_SCENARIO"]
    terminals = np.unique(terminal[scenario == 2])
    assert len(terminals) > 10
    for one in terminals:
        days = day[(terminal == one) & (scenario == 2)]
        for first in (days.min(), days.max()):
            at = (terminal == one) & (day == first)
            assert (scenario[at] == 2).all(), "fraud and genuine payments on the same day"
        if days.max() - days.min() < CONFIG.terminal_days:
            inside = (terminal == one) & (day >= days.min()) & (day <= days.max())
            assert (scenario[inside] == 2).all()


def test_a_compromised_card_pays_more_in_a_third_of_its_payments(columns: dict[str, NDArray[Any]]) -> None:
    scenario, customer, day, amount = (
        columns[n] for n in ("TX_FRAUD_SCENARIO", "CUSTOMER_ID", "TX_TIME_DAYS", "TX_AMOUNT")
    )
    ratios, shares = [], []
    for card in np.unique(customer[scenario == 3]):
        mine = customer == card
        days = day[mine & (scenario == 3)]
        ratios.append(amount[mine & (scenario == 3)].mean() / amount[mine & (scenario == 0)].mean())
        if days.max() - days.min() < CONFIG.customer_days:
            inside = mine & (day >= days.min()) & (day <= days.max())
            shares.append((scenario[inside] == 3).mean())
    assert CONFIG.customer_factor * 0.8 < np.mean(ratios) < CONFIG.customer_factor * 1.2
    assert 0.3 < np.mean(shares) < 0.6  # from first to last fraud: the ends are fraud by choice


def test_cards_pay_nearby_and_in_their_own_way(columns: dict[str, NDArray[Any]]) -> None:
    genuine = columns["TX_FRAUD_SCENARIO"] == 0
    customer, terminal, amount = (columns[name][genuine] for name in ("CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"))
    pairs = np.unique(np.stack([customer, terminal]), axis=1)
    assert np.bincount(pairs[0]).max() <= CONFIG.reach
    means = np.bincount(customer, amount) / np.maximum(np.bincount(customer), 1)
    spread_within = np.std(amount - means[customer])
    assert np.std(means) > 0.8 * spread_within


def test_no_pattern_no_fraud() -> None:
    quiet = SyntheticConfig(
        num_customers=100, num_days=20, large_share=0, compromised_terminals=0, compromised_customers=0
    )
    assert synthetic_transactions(quiet).column("TX_FRAUD").to_numpy().sum() == 0
    tiny = SyntheticConfig(num_customers=1, num_terminals=1, num_days=1, compromised_terminals=1.0)
    assert set(synthetic_transactions(tiny).column("TX_FRAUD_SCENARIO").to_pylist()) <= {2}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_written_files_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"synthetic{suffix}"
    small = CONFIG.model_copy(update={"num_customers": 200, "num_days": 60})
    found = write_synthetic(small, path)
    table = synthetic_transactions(small)
    assert found["transactions"] == len(table)
    assert found["frauds"] == sum(
        found[name] for name in ("large_amounts", "at_compromised_terminals", "of_compromised_cards")
    )
    with Ordered(path, schema()) as ordered:
        assert ordered.sorted
        chunks = list(read_events(ordered))
    np.testing.assert_array_equal(
        np.concatenate([chunk.events.amount for chunk in chunks]), table.column("TX_AMOUNT").to_numpy()
    )
    assert sum(int((chunk.events.fraud == 1).sum()) for chunk in chunks) == found["frauds"]


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown kind of file; allowed are \.parquet and \.csv"):
        write_synthetic(CONFIG, tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="no such folder"):
        write_synthetic(CONFIG, tmp_path / "absent" / "a.csv")


def test_the_usual_size_takes_well_under_a_second() -> None:
    small = SyntheticConfig(num_customers=200, num_terminals=400, num_days=60)
    start = time.process_time()
    synthetic_transactions(small)
    assert time.process_time() - start < 1.0
