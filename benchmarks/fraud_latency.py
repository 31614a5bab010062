# ruff: noqa: E402
"""How fast card fraud is, beside its peers: one event, many events, the carried state, over HTTP, and in bounded memory.

    python benchmarks/fraud_latency.py [--quick] [--json FILE] [--only event table state http memory]

Ways that are compared take turns in one process, so that a busy machine slows all of them alike: trust ratios more than
milliseconds. Networks have random weights where only their speed counts. One thread throughout.

The service part runs a real `bentoml serve`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch start their threads
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fraud_service import bounded_memory, over_http
from benchmarks.fraud_state import carried_state, given_events
from benchmarks.tables import Record, goal, keep, table
from core.data.transforms import FeatureScaler
from core.device import machine
from core.inference.timing import interleaved, quantiles
from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.features import SPREAD_FLOOR, Block, Entity, FeatureConfig, Features
from verticals.finance.fraud.features_event import History
from verticals.finance.fraud.model import FraudNet, ModelConfig
from verticals.finance.fraud.step import ScoreStep

if TYPE_CHECKING:
    from verticals.finance.fraud.predictor import FraudPredictor

TODAY = 20_400 * DAY
"""2025-11-08 UTC: where the made-up histories end."""
HUNDRED = FeatureConfig(
    customer_windows=(1 / 24, 1.0, 7.0, 14.0, 30.0),
    terminal_windows=(1.0, 7.0, 30.0),
    pair_windows=(7.0, 30.0),
    risk_windows=(1.0, 7.0, 14.0, 28.0),
)
"""About a hundred features."""
SIDES: tuple[Entity, ...] = ("customer", "terminal")
SETS: tuple[Literal["default", "wide"], ...] = ("default", "wide")
SYNCHRONOUS: tuple[Literal["normal", "full"], ...] = ("normal", "full")
CARD_EVENTS, TERMINAL_EVENTS = 120, 600
"""Events of each card and terminal in 30 days (4 and 20 a day)."""


# -- one event ---------------------------------------------------------------------------------------------------------


def pasts(rng: np.random.Generator, pairs: int) -> Events:
    """Thirty days in which card k (0 to `pairs`) pays often, a quarter of it at terminal k, where others pay too."""
    parts = []
    for pair in range(pairs):
        others = TERMINAL_EVENTS - CARD_EVENTS // 4
        card = np.r_[np.full(CARD_EVENTS, pair), rng.integers(1_000, 9_000, others)]
        place = np.arange(CARD_EVENTS)
        terminal = np.r_[np.where(place % 4 == 0, pair, rng.integers(1_000, 1_020, CARD_EVENTS)), np.full(others, pair)]
        stamp = TODAY - rng.integers(0, 30 * DAY, len(card))
        labels = np.where(rng.random(len(card)) < 0.01, 1, 0).astype(np.int8)
        parts.append(Events(stamp, card, terminal, np.round(rng.gamma(2, 25, len(card)), 2), labels))
    joined = Events.joined(parts)
    return joined.rows(np.argsort(joined.time, kind="stable"))


def untrained(config: FeatureConfig, events: Events) -> tuple[Any, dict[str, Any], Any]:
    """A configuration, its constants and a session: everything of a model but the training."""
    from core.data.pipeline import DataPipeline
    from core.evaluation.calibration import Calibration
    from core.inference.session import TorchSession
    from verticals.finance.fraud.config import FraudConfig

    features = Features(config)
    raw = features.table(events, first=len(events) - 3000)
    pipeline = DataPipeline(transforms=[FeatureScaler("log_standard", columns=features.names)])
    pipeline.fit_block(raw, features.names, time=events.time[-3000:], until=TODAY + DAY)
    columns = pipeline.transform_block(raw, features.names)
    constants = {
        "features": list(features.names),
        "pipeline": pipeline.record(),
        "usual_raw": np.median(raw, axis=1).tolist(),
        "usual": np.median(columns, axis=0).tolist(),
        "calibration": Calibration().model_dump(),
        "threshold": 0.5,
    }
    net = FraudNet(ModelConfig(), features.names)
    net.encoding.fit(torch.from_numpy(columns[::6]), torch.arange(len(columns[::6])) % 10 == 0)
    return FraudConfig(features=config), constants, TorchSession(ScoreStep(net))


def history_of(events: Events, side: Literal["customer", "terminal"], code: int, memory: int) -> History:
    own = events.rows((events.customer if side == "customer" else events.terminal) == code)
    return History(own.time, own.amount, own.terminal if side == "customer" else own.customer, own.fraud, memory)


def one_event(quick: bool, folder: Path) -> list[Record]:
    from verticals.finance.fraud.predictor import FraudPredictor
    from verticals.finance.fraud.records import key_code
    from verticals.finance.fraud.store import Chunk
    from verticals.finance.fraud.store_embedded import EmbeddedStore

    pairs = 6 if quick else 24  # cards that take turns
    plain = pasts(np.random.default_rng(0), pairs)
    known = {code: key_code(str(code)) for code in np.unique(np.r_[plain.customer, plain.terminal]).tolist()}
    customer, terminal = (
        np.array([known[code] for code in column.tolist()]) for column in (plain.customer, plain.terminal)
    )
    events = Events(plain.time, customer, terminal, plain.amount, plain.fraud)
    ways: dict[str, Callable[[], object]] = {}
    stores = []
    for config in (HUNDRED, FeatureConfig.of_size("wide")):
        made, constants, session = untrained(config, events)
        bare = FraudPredictor(made, constants, session)
        size = f"{len(bare.features):,} features"
        codes = np.array([known[pair] for pair in range(pairs)])
        ways[f"{size}: features and network, histories given"] = _given(bare, events, codes)
        for synchronous in SYNCHRONOUS:
            store = EmbeddedStore(folder / f"{len(bare.features)}-{synchronous}.sqlite", synchronous=synchronous)
            stores.append(store)
            store.load([Chunk([str(row) for row in range(len(events))], events)], source="history")
            predictor = FraudPredictor(made, constants, session, store=store)
            predictor.warm()
            ways[f"{size}: with the store (read and commit), synchronous={synchronous}"] = _asked(predictor, pairs)
        ways[f"{size}: three reasons, apart"] = _explained(bare)
    gc.collect()
    gc.freeze()
    taken = interleaved(ways, 60 if quick else 600)
    for store in stores:
        store.close()
    rows = [{"one event": name, **quantiles(values)} for name, values in taken.items()]
    table(
        f"(a) One event: card with {CARD_EVENTS} events and terminal with {TERMINAL_EVENTS} in 30 days",
        rows,
        "The store rows hold everything from the request's checks to the durable answer; normal survives kill -9, full a power cut.",
    )
    many = f"{len(bare.features):,}"
    counted = [
        row for row in rows if row["one event"].startswith(many) and row["one event"].endswith(("given", "normal"))
    ]
    worst = max(row["p99_ms"] for row in counted)
    return [
        *rows,
        goal(f"p99 at most 10 ms with {many} features, reasons and disk sync apart ({worst:.1f})", worst <= 10),
    ]


def _given(bare: FraudPredictor, events: Events, codes: NDArray[np.int64]) -> Callable[[], object]:
    """Features, scaling, network and calibration of one event whose histories are in memory."""
    from verticals.finance.fraud.states import CardStates

    memory, names = bare.features.memory, bare.features.names
    cards = [history_of(events, "customer", code, memory) for code in codes.tolist()]
    terminals = [history_of(events, "terminal", code, memory) for code in codes.tolist()]
    states, turn = CardStates(bare.layout), itertools.count(1)

    def way() -> object:
        number = next(turn)
        pair, now = number % len(codes), TODAY + number * 1_000_000
        raw = bare.features.event(now, 30.0, int(codes[pair]), cards[pair], terminals[pair])
        scaled = bare.pipeline.transform_block(raw[:, None].astype(np.float32), names, {})
        logit = states.advance(bare.session, codes[pair : pair + 1], np.array([now]), scaled)
        return bare.calibration.apply(logit)

    return way


def _asked(predictor: FraudPredictor, pairs: int) -> Callable[[], object]:
    """A request as the service hands it on; a threshold that no score reaches keeps reasons out."""
    from verticals.finance.fraud.requests import Decision, Transaction

    turn = itertools.count(1)

    def way() -> object:
        number = next(turn)
        sent = Transaction(
            transaction_id=f"new-{number}",
            time=datetime.fromtimestamp((TODAY + number * 1_000_000) / 1e6, UTC),
            customer=str(number % pairs),
            terminal=str(number % pairs),
            amount=30.0,
        )
        (answer,) = predictor([sent], explain="alerts", threshold=2.0)
        if not isinstance(answer, Decision):
            raise answer
        return answer

    return way


def _explained(bare: FraudPredictor) -> Callable[[], object]:
    """Reasons for one score of a card whose memory is full, so that every past event is looked at."""
    from verticals.finance.fraud.states import CardStates

    width = len(bare.columns)
    states, met = CardStates(bare.layout), bare.layout.zeros(1)
    for back in range(20, 0, -1):
        states.advance(
            bare.session, np.zeros(1, np.int64), np.array([TODAY - back * DAY]), np.zeros((1, width), np.float32), met
        )
    scaled = np.random.default_rng(1).normal(size=(1, width)).astype(np.float32)
    return lambda: bare.occlusion(scaled, np.array([TODAY / DAY]), met, np.zeros(1), 3)


# -- many events -------------------------------------------------------------------------------------------------------


def many_events(quick: bool, folder: Path) -> list[Record]:
    if quick:  # pandas pays for each group: few cards, or this alone takes a minute
        events, source = given_events(None)
        kept = events.rows(events.customer < np.unique(events.customer)[60])
        records, ratio = against_pandas(kept, f"{source}, 60 cards", days=(7.0,))
        records += whole_sets(kept)
        return [*records, goal(f"20 times pandas ({ratio:.1f}; few rows: see the full run)", ratio >= 20)]
    events, source = given_events(200_000)
    records, ratio = against_pandas(events, source, days=(1.0, 7.0, 30.0))
    records += whole_sets(events)
    everything, source = given_events(None)
    more, other = against_pandas(everything, f"all {source}", days=(1.0, 7.0, 30.0))
    met = min(ratio, other) >= 20
    return [*records, *more, goal(f"20 times pandas ({ratio:.1f}, and {other:.1f} on all rows)", met)]


def against_pandas(events: Events, source: str, *, days: tuple[float, ...]) -> tuple[list[Record], float]:
    """Both ways on the same rows, checked against each other; the records and how many times faster ours is."""
    import pandas

    statistics, sides = ("count", "sum", "mean", "std", "min", "max"), ("customer", "terminal")
    windows = tuple(int(day * DAY) for day in days)
    blocks = [Block(side, "amount", statistic, windows) for side in SIDES for statistic in statistics]
    ours = Features(FeatureConfig(), blocks)
    frame = pandas.DataFrame(
        {
            "time": events.time.astype("datetime64[us]"),
            "customer": events.customer,
            "terminal": events.terminal,
            "amount": events.amount,
        }
    )

    def rolling() -> NDArray[np.float64]:
        found = []
        for side in sides:
            order = np.argsort(frame[side].to_numpy(), kind="stable")
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            groups = frame.groupby(side)
            for statistic in statistics:
                for day in days:
                    window = groups.rolling(f"{day:g}D", on="time")["amount"]
                    values = window.std(ddof=0) if statistic == "std" else getattr(window, statistic)()
                    found.append(values.to_numpy()[back])
        return np.array(found)

    own, peer = (
        ours.table(events, dtype=np.float64)[-len(blocks) * len(days) :],
        rolling(),
    )  # to compare, and to warm up
    shape = (len(sides), len(statistics), len(days), len(events))
    means, spreads = peer.reshape(shape)[:, 2:3], peer.reshape(shape)[:, 3:4]
    spreads[spreads**2 <= SPREAD_FLOOR * (means**2 + spreads**2)] = 0.0  # what ours counts as rounding
    means = np.repeat(means, len(statistics), axis=1).reshape(peer.shape)
    gap = np.abs(own - peer) / np.maximum(np.maximum(np.abs(peer), means), 1e-12)
    deviation = np.repeat([block.statistic == "std" for block in blocks], len(days))
    exact, rough = float(gap[~deviation].max()), float(gap[deviation].max())
    if exact > 1e-9 or rough > 1e-6:
        raise SystemExit(f"Features.table and pandas disagree: {exact:.1e}, deviations {rough:.1e}")
    taken: dict[str, list[float]] = {"Features.table": [], "pandas groupby-rolling": []}
    for name in ("Features.table", "pandas groupby-rolling", "Features.table", "Features.table"):
        start = time.perf_counter()
        ours.table(events, dtype=np.float64) if name == "Features.table" else rolling()
        taken[name].append(time.perf_counter() - start)
    middle = {name: float(np.median(values)) for name, values in taken.items()}
    ratio = middle["pandas groupby-rolling"] / middle["Features.table"]
    rows: list[Record] = [
        {
            "same features": name,
            "seconds": seconds,
            "events_per_second": len(events) / seconds,
            "times_pandas": middle["pandas groupby-rolling"] / seconds,
        }
        for name, seconds in middle.items()
    ]
    spans = ", ".join(f"{day:g}" for day in days)
    table(
        f"(b) Many events: {len(events):,} rows ({source}), {len(peer)} features: {' '.join(statistics)} of {spans} days by customer and terminal",
        rows,
        f"Largest difference {exact:.0e} of the value, deviations {rough:.0e} of the larger of value and mean (under 1e-4 of the mean they count as zero in both).",
    )
    return rows, ratio


def whole_sets(events: Events) -> list[Record]:
    rows: list[Record] = []
    for size in SETS:
        features = Features(FeatureConfig.of_size(size))
        start = time.perf_counter()
        features.table(events)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "whole sets": size,
                "features": len(features),
                "seconds": seconds,
                "events_per_second": len(events) / seconds,
            }
        )
    table("    Whole sets of features on the same rows", rows)
    return rows


# -- all of it ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parts: dict[str, Callable[[bool, Path], list[Record]]] = {
        "event": one_event,
        "table": many_events,
        "state": carried_state,
        "http": over_http,
        "memory": bounded_memory,
    }
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="fewer rounds and rows: under a minute")
    arguments.add_argument("--json", metavar="FILE", help="write the tables as records")
    arguments.add_argument("--only", nargs="+", choices=list(parts), default=list(parts), help="some of the tables")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = machine()
    print(
        ", ".join(f"{key} {value}" for key, value in found.items())
        + ", one thread"
        + (", quick" if given.quick else "")
    )
    records: dict[str, list[Record]] = {}
    with tempfile.TemporaryDirectory(prefix="fraud-") as folder:
        for name in given.only:
            start = time.perf_counter()
            records[name] = parts[name](given.quick, Path(folder))
            print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
    keep(given.json, machine=found, quick=given.quick, **records)


if __name__ == "__main__":
    main()
