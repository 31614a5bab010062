# ruff: noqa: E402
"""The fraud model through `verticals compress`: one event in other runtimes and in int8, beside torch eager and XGBoost.

    python benchmarks/fraud_runtimes.py [--quick] [--json FILE] [--weeks N]

A model is trained on the last weeks of the handbook's file where VERTICALS_DATA is set, else on synthetic transactions,
and compressed in both its forms: the window, re-run for each event, and the carried step that ships. Scores are those of
its test days; every artifact has passed parity. Latencies of one event take turns in one process, one thread.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch start their threads
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.fraud_state import trees_row
from benchmarks.tables import Record, goal, keep, table
from core.contract import Arrays
from core.device import machine
from core.inference.model import network_of, session_of
from core.inference.program import example
from core.inference.timing import interleaved, quantiles
from pipelines.compress import compress
from pipelines.train import train
from verticals.finance.fraud import APPLICATION
from verticals.finance.fraud.features import Features

WINDOW = 64


def trained(folder: Path, weeks: int, quick: bool) -> Path:
    """A run: the debug recipe on synthetic data, or the default one on the file's last weeks."""
    if quick:
        return Path(train("finance.fraud", recipe="debug", runs=str(folder / "runs"), alias="none")["run"])
    data = []
    if root := os.environ.get("VERTICALS_DATA"):
        whole = pq.read_table(Path(root) / "fraud/handbook/transactions.parquet").drop_columns(["TX_FRAUD_SCENARIO"])
        stamp = whole["TX_DATETIME"].to_numpy().astype("datetime64[us]")
        data = [str(folder / "rows.parquet")]
        pq.write_table(whole.filter(stamp >= stamp.max() - np.timedelta64(7 * weeks, "D")), data[0])
    settings = ["data.test_days=7", "data.validation_days=7"]
    return Path(train("finance.fraud", settings=settings, data=data, runs=str(folder / "runs"), alias="none")["run"])


def ways_of(form: str, run: Path, made: Path) -> dict[str, Callable[[], object]]:
    """One event by a form: torch eager, and every artifact, each checked to give the same logit."""
    network = APPLICATION.forms[form](network_of(APPLICATION, run)).eval()
    torch.manual_seed(0)
    one = {axis: 1 for spec in network.inputs for axis in spec.shape[:1] if isinstance(axis, str)}
    tensors = example(network.inputs, one)
    arrays: Arrays = {}
    for spec, tensor in zip(network.inputs, tensors, strict=True):
        arrays[spec.name] = (torch.randn_like(tensor) if tensor.dtype == torch.float32 else tensor).numpy()
        if spec.name == "count":
            arrays[spec.name][:] = network.state[0].shape[1] if form == "window" else network.net.config.num_states
        elif spec.name == "time":
            arrays[spec.name][:] = 20_000.0
        elif spec.name == "times":
            arrays[spec.name][:] = 20_000.0 - np.arange(tensor.shape[1])[::-1] / 3

    @torch.inference_mode()
    def eager() -> Any:
        return network(*(torch.from_numpy(arrays[spec.name]) for spec in network.inputs))

    ways: dict[str, Callable[[], object]] = {f"{form}: torch eager": eager}
    logits = {"eager": float(eager()[0])}
    for path in sorted(path for path in made.iterdir() if (path / "artifact.json").exists()):
        session = session_of(APPLICATION, path)
        ways[f"{form}: {path.name}"] = partial(session, arrays)
        logits[path.name] = float(session(arrays)["logit"][0])
    if hasattr(network, "one"):
        ways[f"{form}: numpy, what the service runs"] = lambda: network.one(arrays)
    print(f"  logits of one event, {form}: " + ", ".join(f"{name} {value:.4f}" for name, value in logits.items()))
    return ways


def own_forward(run: Path) -> Callable[[], object]:
    """The network's forward over a whole window in eager torch."""
    net: Any = network_of(APPLICATION, run).eval()
    features, days = (
        torch.randn(1, WINDOW, net.num_features),
        20_000 + torch.arange(WINDOW, dtype=torch.float64)[None] / 3,
    )

    @torch.inference_mode()
    def whole() -> Any:
        return net(features, days, net.initial(1))

    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the debug recipe on synthetic data: about a minute")
    parser.add_argument("--json", metavar="FILE", help="the tables as records")
    parser.add_argument("--weeks", type=int, default=8, help="of the handbook's file (default: 8)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Record] = []
    scores: list[Record] = []
    goals: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = trained(folder, given.weeks, given.quick)
        made = {form: folder / form for form in ("window", "step")}
        for form, target in made.items():
            result = compress(str(run), form=form, max_score_drop=0.05 if given.quick else 0.002, output=str(target))
            scores += [
                {"form": form, **{key: row[key] for key in ("model", "value", "low", "high", "n", "bytes")}}
                for row in result["rows"]
            ]
        table("Scores of the test days (AUC ROC, 95 % over cards); parity of every artifact passed", scores)
        ways: dict[str, Callable[[], object]] = {}
        for form, target in made.items():
            ways |= ways_of(form, run, target)
        ways[f"{WINDOW} events by the network's own forward, torch eager"] = own_forward(run)
        if trees := trees_row(Features(APPLICATION.recipes["default"]().features), given.quick):
            ways["XGBoost, 300 trees of depth 6, inplace_predict of one row"] = trees
        gc.collect()
        taken = interleaved(ways, 200 if given.quick else 1000)
    middle = {name: float(np.median(values.wall)) for name, values in taken.items()}
    rows = [
        {"one event": name, **quantiles(values), "times_window_eager": middle["window: torch eager"] / middle[name]}
        for name, values in taken.items()
    ]
    table("One event", rows)
    best = {
        form: min(value for name, value in middle.items() if name.startswith(form) and "run-" in name) for form in made
    }
    window, step = (middle[f"{form}: torch eager"] / best[form] for form in ("window", "step"))
    goals.append(goal(f"window form at least 4.5 times faster than torch eager ({window:.2f})", window >= 4.5))
    goals.append(goal(f"carried step at least 1.5 times faster than torch eager ({step:.2f})", step >= 1.5))
    for form in made:
        values = {row["model"]: row["value"] for row in scores if row["form"] == form}
        lost = values["run"] - values["run-onnx-int8"]
        goals.append(goal(f"{form}: AUC loss of int8 at most 0.002 ({lost:+.5f})", lost <= 0.002))
    keep(given.json, machine=machine(), scores=scores, latency=rows, goals=goals)


if __name__ == "__main__":
    main()
