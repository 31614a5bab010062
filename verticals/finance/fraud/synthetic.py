"""Synthetic card transactions with three planted kinds of fraud and a known answer.

Cards live at a point of the plane, pay at terminals within reach, and each has its own mean amount, daily rate and usual
hours. Planted (`TX_FRAUD_SCENARIO`): 1 amounts beyond a limit that no card pays; 2 terminals where for some weeks every
payment is fraud; 3 cards of which for some weeks a third of the payments is fraud, with amounts multiplied.

Source: the idea of the simulator in the Fraud Detection Handbook (Le Borgne et al., 2022), written anew: amounts are
lognormal around the card's mean, hours follow a mixture, terminals are chosen by distance, everything is one numpy pass.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import Field

from core.config import Config
from core.errors import DataError

DAY_SECONDS = 86_400


class SyntheticConfig(Config):
    """How much is made up, and how often the planted patterns occur."""

    num_customers: int = Field(1000, ge=1)
    """Cards."""
    num_terminals: int = Field(2000, ge=1)
    """Terminals."""
    num_days: int = Field(120, ge=1)
    """Days."""
    start: date = date(2025, 1, 1)
    """First day, UTC."""
    mean_per_day: float = Field(2.0, gt=0)
    """Payments a card and day, on average over the cards."""
    reach: int = Field(20, ge=1)
    """Terminals nearest to a card, among which it chooses."""
    large_amount: float = Field(220.0, gt=0)
    """Currency units from which on a payment is fraud (1); genuine ones stay below."""
    large_share: float = Field(0.0007, ge=0, le=1)
    """Share of payments that are turned into such large ones."""
    compromised_terminals: float = Field(0.0004, ge=0, le=1)
    """Share of the terminals that is compromised (2) every day."""
    terminal_days: int = Field(28, ge=1)
    """Days that a terminal stays compromised."""
    compromised_customers: float = Field(0.0006, ge=0, le=1)
    """Share of the cards that is compromised (3) every day."""
    customer_days: int = Field(14, ge=1)
    """Days that a card stays compromised."""
    customer_factor: float = Field(5.0, gt=1)
    """What amounts of the compromised card's fraudulent third are multiplied by."""
    seed: int = Field(0, ge=0)
    """Of everything random."""


def synthetic_transactions(config: SyntheticConfig) -> pa.Table:
    """The handbook's columns in time order, with `TX_FRAUD` and the planted `TX_FRAUD_SCENARIO` (0 for genuine)."""
    places, habits, payments, planted = (np.random.default_rng([config.seed, part]) for part in range(4))
    nearest = _nearest(config, places)
    mean_amount = habits.uniform(5.0, 100.0, config.num_customers)
    rate = habits.gamma(4.0, config.mean_per_day / 4.0, config.num_customers)
    midday = habits.normal(13.0, 2.0, config.num_customers)

    counts = payments.poisson(rate[:, None], (config.num_customers, config.num_days))
    customer = np.repeat(np.arange(config.num_customers), counts.sum(axis=1))
    day = np.repeat(np.tile(np.arange(config.num_days), config.num_customers), counts.ravel())
    hour = payments.normal(midday[customer], 4.5)
    hour = np.where((hour < 0) | (hour >= 24), payments.uniform(0, 24, len(hour)), hour)
    second = day * DAY_SECONDS + (hour * 3600).astype(np.int64)
    order = np.argsort(second, kind="stable")
    customer, day, second = customer[order], day[order], second[order]
    terminal = nearest[customer, payments.integers(0, nearest.shape[1], len(customer))]
    amount = np.minimum(
        mean_amount[customer] * payments.lognormal(-0.08, 0.4, len(customer)), config.large_amount * 0.99
    )

    scenario = np.zeros(len(customer), np.int8)
    large = planted.random(len(customer)) < config.large_share
    amount[large] = config.large_amount * planted.uniform(1.0, 2.0, int(large.sum()))
    scenario[large] = 1
    terminals = _compromised(
        config.num_terminals, config.num_days, config.compromised_terminals, config.terminal_days, planted
    )
    scenario[terminals[terminal, day]] = 2
    customers = _compromised(
        config.num_customers, config.num_days, config.compromised_customers, config.customer_days, planted
    )
    stolen = customers[customer, day] & (planted.random(len(customer)) < 1 / 3) & (scenario == 0)
    amount[stolen] *= config.customer_factor
    scenario[stolen] = 3

    start = np.datetime64(config.start, "us").astype(np.int64)
    return pa.table(
        {
            "TRANSACTION_ID": pa.array(np.arange(len(customer))),
            "TX_DATETIME": pa.array(start + second * 1_000_000).cast(pa.timestamp("us")),
            "CUSTOMER_ID": pa.array(customer),
            "TERMINAL_ID": pa.array(terminal),
            "TX_AMOUNT": pa.array(np.round(amount, 2)),
            "TX_TIME_SECONDS": pa.array(second),
            "TX_TIME_DAYS": pa.array(day),
            "TX_FRAUD": pa.array((scenario > 0).astype(np.int8)),
            "TX_FRAUD_SCENARIO": pa.array(scenario),
        }
    )


def write_synthetic(config: SyntheticConfig, path: Path) -> dict[str, Any]:
    """Writes a file (.parquet or .csv) and counts what is in it.

    Raises:
        DataError: another suffix, or a folder that is not there.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise DataError(f"{path}: unknown kind of file; allowed are .parquet and .csv")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such folder; make it first")
    table = synthetic_transactions(config)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    scenario = table.column("TX_FRAUD_SCENARIO").to_numpy()
    names = ("large_amounts", "at_compromised_terminals", "of_compromised_cards")
    found = {name: int((scenario == number).sum()) for number, name in enumerate(names, 1)}
    return {"transactions": len(table), "cards": config.num_customers, "frauds": int((scenario > 0).sum()), **found}


def _nearest(config: SyntheticConfig, rng: np.random.Generator) -> NDArray[np.int64]:
    """[customers, reach] the terminals nearest to each card, a thousand cards at a time."""
    cards, terminals = rng.uniform(0, 100, (config.num_customers, 2)), rng.uniform(0, 100, (config.num_terminals, 2))
    reach = min(config.reach, config.num_terminals)
    rows = []
    for first in range(0, config.num_customers, 1000):
        part = cards[first : first + 1000]
        squares = (part[:, :1] - terminals[:, 0]) ** 2 + (part[:, 1:] - terminals[:, 1]) ** 2
        rows.append(np.argpartition(squares, reach - 1, axis=1)[:, :reach])
    return np.concatenate(rows).astype(np.int64)


def _compromised(count: int, num_days: int, share: float, length: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """[count, days] whether a terminal or card is compromised: it starts by chance and lasts `length` days."""
    begun = rng.random((count, num_days)) < share
    total = np.cumsum(begun, axis=1, dtype=np.int64)
    if length < num_days:
        total[:, length:] -= total[:, :-length].copy()
    return total > 0
