# ruff: noqa: E402
"""Card fraud by the Fraud Detection Handbook's protocol: the network beside its peers, same features, same run.

    VERTICALS_DATA=... python benchmarks/fraud_handbook.py [--quick] [--json FILE] [--cache FOLDER]

Four prequential test weeks, two regimes that share them: trained on the protocol's 7 days, and on all earlier days.
Everything is tuned on test-like weeks at least 28 days earlier; test weeks are never thinned. What is fitted is kept
under --cache by its settings: a run that was stopped goes on where it was. Intervals and tests are bootstraps over cards.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

from benchmarks.fraud_models import Fold, Recipe, network, peer, stacked
from benchmarks.fraud_protocol import EARLIER_DAYS, Bench, scored
from benchmarks.tables import Record, goal, keep, table
from core.data.transforms import FeatureScaler
from core.device import machine
from core.evaluation.bootstrap import compare, measure
from core.evaluation.calibration import Calibration
from core.evaluation.metrics import (
    Metric,
    auc_roc,
    average_precision,
    brier,
    calibration_error,
    group_precision_at_k,
    recall_at_alerts,
    recall_at_false_alarm_rate,
)
from core.evaluation.scored import Scored
from core.evaluation.splits import DAY
from verticals.finance.fraud.features import Block, FeatureConfig, Features
from verticals.finance.fraud.model import FraudNet

Floats = NDArray[np.float64]
TRIALS = 30
TAUGHT_EPOCHS = 2
GENUINE_PER_FRAUD = 30.0
"""Genuine targets drawn for each fraud when all earlier days are trained on; their weights undo it."""
METRICS: dict[str, Metric] = {
    "AUC": auc_roc,
    "AP": average_precision,
    "CP@100": partial(group_precision_at_k, k=100),
    "recall@6%": partial(recall_at_false_alarm_rate, rate=0.06),
    "recall@0.1%": partial(recall_at_false_alarm_rate, rate=0.001),
    "recall@100/day": partial(recall_at_alerts, alerts_per_day=100.0),
}
MAIN = {name: METRICS[name] for name in ("AUC", "AP", "CP@100")}


def handbook_lr(bench: Bench) -> Record:
    """Logistic regression on the handbook's own 15 features, single split: .870 / .605 / .291 is published."""
    spans = tuple(days * DAY for days in (1, 7, 30))
    blocks = [
        Block("customer", "amount", "count", spans),
        Block("customer", "amount", "mean", spans),
        Block("terminal", "fraud", "known", spans, 7 * DAY),
        Block("terminal", "fraud", "risk", spans, 7 * DAY),
    ]
    features = Features(FeatureConfig(), blocks)
    own = [
        place
        for place, name in enumerate(features.names)
        if name in ("amount", "night", "weekend") or name.startswith(("customer_", "terminal_"))
    ]
    values = features.table(bench.events)[own].T.astype(np.float64)
    fold = bench.folds("week", count=1)[0]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    rows = scored(bench, [fold], [peer(model, values, bench.label, fold)])
    found = {name: float(metric(rows[0])) for name, metric in MAIN.items()}
    print(
        f"  split: {len(fold.train):,} / {int((bench.label[fold.train] == 1).sum())} and {len(fold.held):,} / {rows[0].positives}"
    )
    near = all(abs(found[name] - want) <= 0.005 for name, want in zip(MAIN, (0.870, 0.605, 0.291), strict=True))
    return {
        "features": values.shape[1],
        **found,
        **goal("LR on the handbook's 15 features within .005 of .870 / .605 / .291", near),
    }


def boosted(bench: Bench, regime: str) -> dict[str, Any]:
    """The best of random XGBoost settings on validation folds."""
    folds = bench.folds(regime, earlier=EARLIER_DAYS, count=1 if bench.quick or regime == "all" else 2)
    generator = np.random.default_rng(0)
    trials = 2 if bench.quick else TRIALS
    found: list[tuple[float, dict[str, Any]]] = []
    for _ in range(trials):
        settings = {
            "n_estimators": int(generator.choice([100, 200, 300, 500])),
            "max_depth": int(generator.integers(2, 8)),
            "learning_rate": float(np.round(np.exp(generator.uniform(np.log(0.015), np.log(0.2))), 4)),
            "subsample": float(generator.choice([0.5, 0.7, 0.9, 1.0])),
            "colsample_bytree": float(generator.choice([0.2, 0.35, 0.5, 0.8])),
            "min_child_weight": float(generator.choice([1, 3, 10])),
            "reg_lambda": float(generator.choice([0.3, 1, 5, 20])),
        }
        if bench.quick:
            settings["n_estimators"] = 50

        def run(settings: dict[str, Any] = settings) -> NDArray[Any]:
            values = []
            for fold in folds:
                rows = fold.train
                weight = np.ones(len(rows))
                if regime == "all":  # trials only: every fraud, a fifth of the rest
                    keep_row = (bench.label[rows] == 1) | (np.arange(len(rows)) % 5 == 0)
                    rows, weight = rows[keep_row], np.where(bench.label[rows[keep_row]] == 1, 1.0, 5.0)
                model = XGBClassifier(tree_method="hist", **settings)
                model.fit(bench.features[rows], bench.label[rows], sample_weight=weight)
                score = model.predict_proba(bench.features[fold.held.rows])[:, 1]
                values.append(average_precision(fold.held.scored(score)))
            return np.array(values)

        value = float(bench.kept(f"trial {regime}", (settings, len(folds)), run).mean())
        found.append((value, settings))
    found.sort(key=lambda one: -one[0])
    print(
        f"  XGBoost, {regime}: best of {trials} trials on {len(folds)} validation folds has AP {found[0][0]:.4f}: {found[0][1]}"
    )
    return found[0][1]


def recipe_of(regime: str, *, quick: bool, **changes: Any) -> Recipe:
    """The network's recipe in a regime."""
    recipe = Recipe()
    sampler = recipe.sampler
    if regime == "all":
        sampler = sampler.model_copy(update={"ratio": GENUINE_PER_FRAUD, "span": 32, "chunk": 48})
    if quick:
        sampler = sampler.model_copy(update={"ratio": 10.0})
    base: dict[str, Any] = {"sampler": sampler, "epochs": 1 if quick else recipe.epochs}
    return Recipe(**{**base, **changes})


def run_network(bench: Bench, name: str, fold: Fold, recipe: Recipe) -> Floats:
    """The network's logits of the held rows; its weights are kept beside them, for the stack."""

    def make() -> Floats:
        logits, net, scaler = network(recipe, bench.names, bench.features, bench.events, fold)
        torch.save((net.state_dict(), scaler.record()), bench.weights(name, fold, recipe))
        return logits

    return bench.kept(f"{name} {fold.name}", (name, len(fold.train), recipe), make)


def run_stack(bench: Bench, name: str, fold: Fold, recipe: Recipe, settings: dict[str, Any]) -> Floats:
    """XGBoost on the features and the network's state."""

    def make() -> Floats:
        path = bench.weights(name, fold, recipe)
        if path.exists():
            weights, record = torch.load(path)
            net = FraudNet(recipe.model, bench.names)
            net.load_state_dict(weights)
            scaler = FeatureScaler.from_record(record)
        else:
            _, net, scaler = network(recipe, bench.names, bench.features, bench.events, fold)
        model = XGBClassifier(tree_method="hist", **settings)
        return stacked(model, net, scaler, bench.features, bench.events, fold)

    return bench.kept(f"stack {name} {fold.name}", (len(fold.train), recipe, settings), make)


def taught_network(bench: Bench, fold: Fold, recipe: Recipe, settings: dict[str, Any]) -> Floats:
    """The network that also learns, on earlier days without labels, what XGBoost of the same fold answers there."""

    def make() -> Floats:
        teacher = XGBClassifier(tree_method="hist", **settings)
        teacher.fit(bench.features[fold.train], bench.label[fold.train])
        return network(recipe, bench.names, bench.features, bench.events, fold, teacher=teacher)[0]

    return bench.kept(f"taught {fold.name}", ("taught", len(fold.train), settings, recipe), make)


def regime_rows(bench: Bench, regime: str) -> dict[str, list[Floats]]:
    """Logits of every model on every test fold."""
    folds = bench.folds(regime, count=1 if bench.quick else 4)
    settings = boosted(bench, regime)
    trees = {"n_estimators": 20} if bench.quick else {"n_estimators": 100}
    makers: dict[str, Callable[[], Any]] = {
        "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)),
        "random forest": lambda: RandomForestClassifier(
            max_depth=12, max_samples=min(1.0, 2e5 / len(folds[0].train)), n_jobs=-1, random_state=0, **trees
        ),
        "HistGradientBoosting": lambda: HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.07, max_leaf_nodes=15, l2_regularization=1.0, random_state=0
        ),
        "XGBoost": lambda: XGBClassifier(tree_method="hist", **settings),
    }
    rows: dict[str, list[Floats]] = {}
    for name, make in makers.items():
        detail = settings if name == "XGBoost" else name
        rows[name] = [
            bench.kept(
                f"{name} {regime} {fold.name}",
                (detail, len(fold.train)),
                partial(peer, make(), bench.features, bench.label, fold),
            )
            for fold in folds
        ]
    recipe = recipe_of(regime, quick=bench.quick)
    rows["network"] = [run_network(bench, f"network {regime}", fold, recipe) for fold in folds]
    rows["stacked: XGBoost on features and network state"] = [
        run_stack(bench, f"network {regime}", fold, recipe, settings) for fold in folds
    ]
    if regime == "week":
        taught = recipe_of(regime, quick=bench.quick, epochs=1 if bench.quick else TAUGHT_EPOCHS)
        rows["network taught by XGBoost"] = [taught_network(bench, fold, taught, settings) for fold in folds]
    rows["network + XGBoost (mean logit)"] = [
        (one + other) / 2 for one, other in zip(rows["network"], rows["XGBoost"], strict=True)
    ]
    return rows


def report(
    bench: Bench, regime: str, logits: dict[str, list[Floats]], *, draws: int
) -> tuple[list[Record], list[Record]]:
    """Figures with intervals of each row, and the paired comparison of the network with each other."""
    folds = bench.folds(regime, count=len(logits["network"]))
    tests = {name: scored(bench, folds, values) for name, values in logits.items()}
    rows: list[Record] = []
    for name, test in tests.items():
        figures = measure(test, METRICS, draws=draws)
        rows.append(
            {"model": name}
            | {key: f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for key, one in figures.items()}
        )
    prevalence = sum(test.positives for test in tests["network"]) / sum(map(len, tests["network"]))
    table(
        f"Regime {regime}: mean of {len(folds)} test weeks, prevalence {prevalence:.3%}, 95 % intervals over cards",
        rows,
    )
    paired: list[Record] = []
    for name, test in tests.items():
        if name != "network":
            for key, one in compare(tests["network"], test, MAIN, draws=draws).items():
                paired.append({"network minus": name, "figure": key} | one.record())
    table("  Paired bootstrap", paired)
    return rows, paired


def ablation(bench: Bench, *, draws: int) -> list[Record]:
    """What sampler, focal loss and attention each give: the 7-day regime, the last test week."""
    fold = bench.folds("week", count=1)[0]
    base = recipe_of("week", quick=bench.quick)
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "sampler: 20 genuine per fraud, weights undo it": {"sampler": base.sampler.model_copy(update={"ratio": 20.0})},
        "sampler: 20 genuine per fraud, weights left": {
            "sampler": base.sampler.model_copy(update={"ratio": 20.0, "unbiased": False})
        },
        "focal loss, gamma 2": {"loss": Recipe().loss.model_copy(update={"gamma": 2.0})},
        "no attention": {"model": base.model.model_copy(update={"num_heads": 0})},
    }
    variants = dict(list(variants.items())[: 2 if bench.quick else None])
    rows: list[Record] = []
    for name, changes in variants.items():
        values = run_network(bench, "network week", fold, recipe_of("week", quick=bench.quick, **changes))
        raw = scored(bench, [fold], [values])[0]
        figures = {key: float(metric(raw)) for key, metric in METRICS.items()}
        # fitted on every other card of the test week, judged on the rest: no card is in both
        half = fold.held.group % 2 == 0
        calibration = Calibration.platt(values[half], fold.held.label[half])
        parts = {
            "before": Scored(1 / (1 + np.exp(-values[~half])), fold.held.label[~half]),
            "after": Scored(calibration.apply(values[~half]), fold.held.label[~half]),
        }
        errors = {
            f"{key} {when}": float(f(part))
            for when, part in parts.items()
            for key, f in (("ECE", calibration_error), ("Brier", brier))
        }
        rows.append({"network": name} | figures | errors)
    table(
        "Ablation, 7-day regime, last test week; calibrated on half of the cards, ECE and Brier on the other half", rows
    )
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="one fold, few trials, small features: under a minute")
    arguments.add_argument("--json", metavar="FILE", help="write the tables as records")
    arguments.add_argument(
        "--cache", metavar="FOLDER", default=".cache/fraud_handbook", help="what was fitted is kept here"
    )
    arguments.add_argument("--regime", nargs="+", choices=["week", "all"], default=["week", "all"])
    arguments.add_argument("--no-ablation", action="store_true", help="leave the ablation out")
    given = arguments.parse_args()
    folder = os.environ.get("VERTICALS_DATA")
    source = Path(folder or "") / "fraud/handbook/transactions.parquet"
    if not folder or not source.exists():
        sys.exit(
            f"no data: set VERTICALS_DATA to the folder that holds fraud/handbook/transactions.parquet (now {folder!r})"
        )
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    found = machine()
    print(", ".join(f"{key} {value}" for key, value in found.items()) + (", quick" if given.quick else ""))
    start = time.perf_counter()
    bench = Bench(source, Path(given.cache), quick=given.quick)
    draws = 100 if given.quick else 1000
    records: dict[str, Any] = {"handbook": handbook_lr(bench) if not given.quick else {}}
    goals: list[Record] = []
    for regime, wanted in (("week", 0.73), ("all", 0.76)):
        if regime not in given.regime or (given.quick and regime == "all"):
            continue
        logits = regime_rows(bench, regime)
        rows, paired = report(bench, regime, logits, draws=draws)
        records[regime] = {"rows": rows, "paired": paired}
        tests = scored(bench, bench.folds(regime, count=len(logits["network"])), logits["network"])
        means = {key: float(np.mean([metric(test) for test in tests])) for key, metric in MAIN.items()}
        against = next(one for one in paired if one["network minus"] == "XGBoost" and one["figure"] == "AP")
        goals += [
            goal(f"network, {regime}: AP {means['AP']:.4f} of {wanted}", means["AP"] >= wanted),
            goal(f"network, {regime}: CP@100 {means['CP@100']:.4f} of 0.303", means["CP@100"] >= 0.303),
            goal(
                f"network beyond XGBoost, {regime}: AP {against['difference']:+.4f} ({against['low']:+.4f} to {against['high']:+.4f})",
                against["low"] > 0,
            ),
        ]
        if regime == "week":
            trees = scored(bench, bench.folds(regime, count=len(tests)), logits["XGBoost"])
            value = float(np.mean([average_precision(test) for test in trees]))
            goals.append(goal(f"the table stands: XGBoost, week, AP {value:.4f} of 0.71", value >= 0.71))
    if not given.no_ablation and "week" in given.regime:
        records["ablation"] = ablation(bench, draws=draws)
    print(f"\n  {time.perf_counter() - start:.0f} s this time, what the cache held apart")
    keep(given.json, machine=found, quick=given.quick, goals=goals, seconds=time.perf_counter() - start, **records)


if __name__ == "__main__":
    main()
