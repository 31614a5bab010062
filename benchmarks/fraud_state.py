"""The carried state beside its peers: re-running a window of events in torch eager, and trees on the same features.

Run by fraud_latency.py. All ways of the network give the same logit, which is checked. Legend: H hidden, T remembered state.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import torch.nn.functional as F

from benchmarks.tables import Record, goal, table
from core.inference.timing import interleaved, quantiles
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.features import FeatureConfig, Features
from verticals.finance.fraud.model import FraudNet, ModelConfig, pooled
from verticals.finance.fraud.step import ScoreStep

WINDOW = 64


def given_events(rows: int | None) -> tuple[Events, str]:
    """Rows (all, or so many from the handbook's second month on) where VERTICALS_DATA is set, else synthetic ones."""
    from verticals.finance.fraud.synthetic import SyntheticConfig, synthetic_transactions

    if root := os.environ.get("VERTICALS_DATA"):
        read, source = pa.parquet.read_table(Path(root) / "fraud/handbook/transactions.parquet"), "handbook"
        read = read if rows is None else read.slice(300_000, rows)
    else:
        cards = (rows or 400_000) // 120 + 1
        read = synthetic_transactions(SyntheticConfig(num_customers=cards, num_terminals=2 * cards, num_days=60))
        read, source = read.slice(0, rows), "synthetic"
    customer, terminal = (
        np.unique(read[name].to_numpy(zero_copy_only=False), return_inverse=True)[1].astype(np.int64)
        for name in ("CUSTOMER_ID", "TERMINAL_ID")
    )
    stamp = read["TX_DATETIME"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    label = read["TX_FRAUD"].to_numpy().astype(np.int8)
    return Events(stamp, customer, terminal, read["TX_AMOUNT"].to_numpy(), label), source


def rerun(step: ScoreStep, features: torch.Tensor, days: torch.Tensor) -> torch.Tensor:
    """The last event's logit from the whole window, in the fewest torch operations: one matmul for all inputs, attention once."""
    net, recall = step.net, step.net.history
    size, states = recall.num_hidden, recall.num_states
    given = F.linear(net.embed(net._own(features)), recall.gates.weight, recall.gates.bias)
    hidden, cell, recurrent = torch.zeros(1, size), torch.zeros(1, size), recall.recurrent.weight.t()
    hiddens = []
    for part in given.unsqueeze(1).unbind(0):
        gates = torch.addmm(part, hidden, recurrent)
        take, keep, give, _ = torch.sigmoid(gates).chunk(4, 1)
        cell = torch.addcmul(keep * cell, take, torch.tanh(gates.narrow(1, 3 * size, size)))
        hidden = give * torch.tanh(cell)
        hiddens.append(hidden)
    return _answer(step, features, days, torch.cat(hiddens[-states - 1 : -1]), hidden)


def _answer(
    step: ScoreStep, features: torch.Tensor, days: torch.Tensor, memory: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """The logit from the window's hidden states, by the folded layers that the step itself uses."""
    recall, states = step.net.history, len(memory)
    age = torch.log1p((days[-1] - days[-states - 1 : -1]) * 24).float()
    seen = torch.cat([memory, age.unsqueeze(1)], 1)
    query = F.linear(hidden, recall.query.weight, recall.query.bias).view(recall.num_heads, -1)
    score = query @ seen.t() / math.sqrt(recall.num_hidden + 1)
    recalled = torch.softmax(F.pad(score, (0, 1)), 1)[:, :-1] @ seen
    return step.weigh(features[-1:], torch.cat([hidden, recalled.view(1, -1)], 1))


def as_lstm(net: FraudNet) -> torch.nn.LSTM:
    """torch.nn.LSTM with the network's own weights (its gates stand in another order)."""
    recall = net.history
    lstm = torch.nn.LSTM(net.config.num_embedding, recall.num_hidden, batch_first=True).eval()
    take, keep, give, new = torch.arange(4 * recall.num_hidden).chunk(4)
    order = torch.cat([take, keep, new, give])
    with torch.no_grad():
        lstm.get_parameter("weight_ih_l0").copy_(recall.gates.weight[order])
        lstm.get_parameter("weight_hh_l0").copy_(recall.recurrent.weight[order])
        lstm.get_parameter("bias_ih_l0").copy_(recall.gates.bias[order])
        lstm.get_parameter("bias_hh_l0").zero_()
    return lstm


def carried_state(quick: bool, folder: Path) -> list[Record]:
    from core.inference.session import TorchSession

    features = Features(FeatureConfig())
    net = FraudNet(ModelConfig(), features.names).eval()
    net.encoding.fit(torch.randn(2000, len(features)), torch.arange(2000) < 100)
    folded, lstm = ScoreStep(net), as_lstm(net)
    session = TorchSession(folded)
    window = torch.randn(WINDOW, len(features))
    days = 17_000 + torch.arange(WINDOW, dtype=torch.float64) / 3
    state = net.initial(1)
    with torch.inference_mode():
        _, state = net(window[None, :-1], days[None, :-1], state)
    arrays = {name: part.numpy() for name, part in zip((spec.name for spec in session.inputs[2:]), state, strict=True)}
    arrays |= {"features": window[-1:].numpy(), "time": days[-1:].numpy()}

    @torch.inference_mode()
    def whole() -> torch.Tensor:
        return pooled(net(window[None], days[None], net.initial(1))[0][0, -1])

    @torch.inference_mode()
    def stripped() -> torch.Tensor:
        return rerun(folded, window, days)

    @torch.inference_mode()
    def fused() -> torch.Tensor:
        hiddens = lstm(net.embed(net._own(window))[None])[0][0]
        return _answer(folded, window, days, hiddens[-net.history.num_states - 1 : -1], hiddens[-1:])

    same = [float(session(arrays)["logit"][0]), *(float(way().squeeze()) for way in (whole, stripped, fused))]
    if max(same) - min(same) > 1e-4:
        raise SystemExit(f"the ways do not answer the same: {same}")
    step, own, few, native = (
        "one step of the session",
        f"{WINDOW} events: the network's own forward",
        f"{WINDOW} events: its fewest torch operations",
        f"{WINDOW} events: torch.nn.LSTM (fused kernel), attention once",
    )
    ways: dict[str, Callable[[], object]] = {step: lambda: session(arrays), own: whole, few: stripped, native: fused}
    if trees := trees_row(features, quick):
        ways["XGBoost, 300 trees of depth 6, inplace_predict of one row"] = trees
    gc.collect()
    taken = interleaved(ways, 100 if quick else 600)
    middle = {name: float(np.median(values.wall)) for name, values in taken.items()}
    rows = [
        {"one answer": name, **quantiles(values), "times_step": middle[name] / middle[step]}
        for name, values in taken.items()
    ]
    table(
        f"(c) The carried state: default network, {len(features)} features; all four network ways give the same logit",
        rows,
    )
    ratios = {name: middle[name] / middle[step] for name in middle}
    others = f"{ratios[few]:.1f} stripped by hand, {ratios[native]:.1f} torch.nn.LSTM"
    goals = [goal(f"10 times a re-run window in torch eager ({ratios[own]:.1f}; {others})", ratios[own] >= 10)]
    if trees:
        goals.append(
            goal(f"faster than XGBoost ({list(ratios.values())[-1]:.2f} of a step)", list(ratios.values())[-1] > 1)
        )
    return [*rows, *goals]


def trees_row(features: Features, quick: bool) -> Callable[[], object] | None:
    try:
        import xgboost
    except ImportError:
        print("XGBoost is not installed: its row is left out (pip install verticals[benchmarks])")
        return None
    events, _ = given_events(20_000 if quick else 60_000)
    matrix = np.ascontiguousarray(features.table(events).T)
    booster = xgboost.train(
        {"max_depth": 6, "nthread": 1, "objective": "binary:logistic", "tree_method": "hist", "max_bin": 64},
        xgboost.DMatrix(matrix, label=events.fraud == 1, nthread=1),
        num_boost_round=300,
    )
    row = matrix[-1:].copy()
    return lambda: booster.inplace_predict(row)
