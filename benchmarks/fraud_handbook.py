# ruff: noqa: E402
"""Card fraud by the Fraud Detection Handbook's protocol: the network beside its peers, same features, same run.

    VERTICALS_DATA=... python benchmarks/fraud_handbook.py [--quick] [--json FILE] [--cache FOLDER]

Four prequential test weeks, two regimes that share them: trained on the protocol's 7 days, and on all earlier days.
What is chosen is chosen on the four weeks that lie 28 days earlier; test weeks are never thinned. What is fitted is kept
under --cache by its settings: a run that was stopped goes on where it was. Intervals and tests are bootstraps over cards.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # jobs run side by side, one a core
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

from benchmarks.fraud_models import Recipe, network, peer, stacked
from benchmarks.fraud_protocol import EARLIER_DAYS, Bench, Job, Week
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
Settings = tuple[tuple[str, Any], ...]
"""A model's keyword arguments; a tuple, so that they name what is kept in the cache."""
TRIALS = 30
BUDGET_MINUTES = 75.0
NETWORK, TAUGHT = "network", "network taught by a forest"
GENUINE_KEPT = 10
"""Where all earlier days are trained on, trials and the stack learn from every fraud and one genuine event in so many."""
TAUGHT_DAYS = 21
"""Days before the training days on which the taught network hears a forest of the same training labels."""
METRICS: dict[str, Metric] = {
    "AUC": auc_roc,
    "AP": average_precision,
    "CP@100": partial(group_precision_at_k, k=100),
    "recall@6%": partial(recall_at_false_alarm_rate, rate=0.06),
    "recall@0.1%": partial(recall_at_false_alarm_rate, rate=0.001),
    "recall@100/day": partial(recall_at_alerts, alerts_per_day=100.0),
}
MAIN = {name: METRICS[name] for name in ("AUC", "AP", "CP@100")}


PEERS: dict[str, Callable[..., Any]] = {
    "logistic regression": lambda **given: make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=300, solver="newton-cholesky", **given)
    ),
    "random forest": lambda **given: RandomForestClassifier(max_depth=12, random_state=0, **given),
    "HistGradientBoosting": lambda **given: HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.07, max_leaf_nodes=15, l2_regularization=1.0, random_state=0, **given
    ),
    "XGBoost": lambda **given: XGBClassifier(tree_method="hist", n_jobs=1, **given),
}


def lr_of_the_handbook(bench: Bench) -> Floats:
    """Logits of logistic regression on the handbook's own 15 features, on its single split."""
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
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return peer(model, values, bench.label, bench.fold(Week("week")))


def peer_logits(bench: Bench, name: str, week: Week, settings: Settings) -> Floats:
    """A peer's logits of a fold."""
    return peer(PEERS[name](**dict(settings)), bench.features, bench.label, bench.fold(week))


def trial(bench: Bench, regime: str, number: int, settings: Settings, weeks: tuple[Week, ...]) -> Floats:
    """AP of XGBoost with these settings on each validation fold."""
    found = []
    for week in weeks:
        fold = bench.fold(week)
        rows, weight = _thinned(bench, fold.train) if regime == "all" else (fold.train, None)
        model = PEERS["XGBoost"](**dict(settings))
        model.fit(bench.features[rows], bench.label[rows], sample_weight=weight)
        score = model.predict_proba(bench.features[fold.held.rows])[:, 1]
        found.append(average_precision(fold.held.scored(score)))
    return np.array(found)


def network_logits(bench: Bench, week: Week, recipe: Recipe) -> Floats:
    """The network's logits of a fold; its weights are kept beside them, for the stack."""
    logits, net, scaler = network(recipe, bench.names, bench.features, bench.events, bench.fold(week))
    torch.save((net.state_dict(), scaler.record()), _weights(bench, week, recipe))
    return logits


def stack_logits(bench: Bench, week: Week, recipe: Recipe, settings: Settings) -> Floats:
    """XGBoost on the features and the state of the network that `network_logits` trained."""
    weights, record = torch.load(_weights(bench, week, recipe))
    net = FraudNet(recipe.model, bench.names)
    net.load_state_dict(weights)
    fold = bench.fold(week)
    weight = None
    if week.regime == "all":
        rows, kept = _thinned(bench, fold.train)
        weight = np.zeros(len(fold.train), np.float32)
        weight[np.searchsorted(fold.train, rows)] = kept
    scaler = FeatureScaler.from_record(record)
    return stacked(PEERS["XGBoost"](**dict(settings)), net, scaler, bench.features, bench.events, fold, weight)


def _weights(bench: Bench, week: Week, recipe: Recipe) -> Path:
    return bench.path(Job(network_logits, (week, recipe))).with_suffix(".pt")


def _thinned(bench: Bench, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Every fraud and a share of the rest, and the weights that undo it."""
    fraud = bench.label[rows] == 1
    kept = fraud | (np.arange(len(rows)) % GENUINE_KEPT == 0)
    return rows[kept], np.where(fraud[kept], 1.0, GENUINE_KEPT).astype(np.float32)


def handbook(bench: Bench) -> list[Record]:
    """Whether sizes and logistic regression come out as published: .870 / .605 / .291 on the single split."""
    week = Week("week")
    fold = bench.fold(week)
    test = bench.scored([week], bench.run([Job(lr_of_the_handbook, ())]))[0]
    found = {name: float(metric(test)) for name, metric in MAIN.items()}
    sizes = (len(fold.train), int((bench.label[fold.train] == 1).sum()), len(test), test.positives)
    near = all(abs(found[name] - want) <= 0.005 for name, want in zip(MAIN, (0.870, 0.605, 0.291), strict=True))
    figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    return [
        goal(f"sizes {sizes} as published", sizes == (67_240, 598, 58_264, 385)),
        goal(f"LR on the handbook's 15 features ({figures}) within .005 of .870 / .605 / .291", near),
    ]


def boosted(bench: Bench, regime: str) -> Settings:
    """The best of random XGBoost settings on validation folds."""
    weeks = tuple(Week(regime, back, EARLIER_DAYS) for back in range(2 if regime == "week" and not bench.quick else 1))
    generator = np.random.default_rng(0)
    jobs = []
    for number in range(2 if bench.quick else TRIALS):
        settings = {
            "n_estimators": 50 if bench.quick else int(generator.choice([100, 200, 300, 500])),
            "max_depth": int(generator.integers(2, 8)),
            "learning_rate": float(np.round(np.exp(generator.uniform(np.log(0.015), np.log(0.2))), 4)),
            "subsample": float(generator.choice([0.5, 0.7, 0.9, 1.0])),
            "colsample_bytree": float(generator.choice([0.2, 0.35, 0.5, 0.8])),
            "min_child_weight": float(generator.choice([1, 3, 10])),
            "reg_lambda": float(generator.choice([0.3, 1, 5, 20])),
        }
        jobs.append(Job(trial, (regime, number, tuple(settings.items()), weeks)))
    found = [float(values.mean()) for values in bench.run(jobs)]
    best = int(np.argmax(found))
    chosen: Settings = jobs[best].arguments[2]
    print(f"  XGBoost, {regime}: best of {len(jobs)} trials has AP {found[best]:.4f} on {len(weeks)} validation folds")
    print(f"    {dict(chosen)}")
    return chosen


def recipe_of(regime: str, *, quick: bool, **changes: Any) -> Recipe:
    """The network's recipe in a regime."""
    recipe = Recipe()
    sampler, epochs = recipe.sampler, recipe.epochs
    if regime == "all":
        sampler, epochs = sampler.model_copy(update={"span": 64}), 3
    model = recipe.model.model_copy(update={"input_dropout": 0.05}) if regime == "all" else recipe.model
    if quick:
        sampler, epochs = sampler.model_copy(update={"ratio": 10.0}), 1
        model = model.model_copy(update={"num_bins": 4, "num_evidence": 32, "num_members": 2})
    base: dict[str, Any] = {"sampler": sampler, "epochs": epochs, "model": model}
    return Recipe(**{**base, **changes})


def regime_logits(bench: Bench, regime: str) -> dict[str, list[Floats]]:
    """Logits of every model on every test fold."""
    weeks = [Week(regime, back) for back in range(1 if bench.quick else 4)]
    settings = boosted(bench, regime)
    share = 2e5 / len(bench.fold(weeks[0]).train)
    forest = {"n_estimators": 20 if bench.quick else 100, "max_samples": None if share >= 1 else share}
    given: dict[str, Settings] = {name: () for name in PEERS}
    given |= {"random forest": tuple(forest.items()), "XGBoost": settings}
    recipe = recipe_of(regime, quick=bench.quick)
    jobs = {NETWORK: [Job(network_logits, (week, recipe)) for week in weeks]}
    if regime == "week" and not bench.quick:
        taught = recipe_of(regime, quick=False, taught_days=TAUGHT_DAYS, epochs=2)
        jobs[TAUGHT] = [Job(network_logits, (week, taught)) for week in weeks]
    jobs |= {name: [Job(peer_logits, (name, week, own)) for week in weeks] for name, own in given.items()}
    made = iter(bench.run([job for row in jobs.values() for job in row]))
    rows = {name: [next(made) for _ in weeks] for name in jobs}
    rows["stacked: XGBoost on features and network state"] = bench.run(
        [Job(stack_logits, (week, recipe, settings)) for week in weeks]
    )
    rows["network + XGBoost (mean logit)"] = [
        (one + other) / 2 for one, other in zip(rows[NETWORK], rows["XGBoost"], strict=True)
    ]
    return rows


def report(
    bench: Bench, regime: str, logits: dict[str, list[Floats]], *, draws: int
) -> tuple[list[Record], list[Record]]:
    """Figures with intervals of each row, and the paired comparison of the network with each other."""
    weeks = [Week(regime, back) for back in range(len(logits[NETWORK]))]
    tests = {name: bench.scored(weeks, values) for name, values in logits.items()}
    rows = [{"model": name} | _cells(test, draws) for name, test in tests.items()]
    frauds, events = sum(test.positives for test in tests[NETWORK]), sum(map(len, tests[NETWORK]))
    table(
        f"Regime {regime}: mean of {len(weeks)} test weeks, {events:,} events, {frauds:,} frauds ({frauds / events:.3%}), "
        "95 % intervals over cards",
        rows,
    )
    paired = [
        {"row": own, "minus": name, "figure": key} | one.record()
        for own in (NETWORK, TAUGHT)
        if own in tests
        for name, test in tests.items()
        if name != own
        for key, one in compare(tests[own], test, MAIN, draws=draws).items()
    ]
    table("  Paired bootstrap", paired)
    return rows, paired


def _cells(tests: Sequence[Scored], draws: int) -> Record:
    """Figures as text with their intervals."""
    figures = measure(tests, METRICS, draws=draws)
    return {key: f"{one.value:.4f} ({one.low:.3f} to {one.high:.3f})" for key, one in figures.items()}


def ablation(bench: Bench, *, draws: int) -> list[Record]:
    """What sampler, focal loss, attention, steps of the encoding and calibration each give, in the 7-day regime.

    Calibration is fitted on the answers of a network trained 28 days earlier, on its own test week.
    """
    base = recipe_of("week", quick=bench.quick)
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "sampler: 20 genuine per fraud (a fifth of the steps), weights undo it": {
            "sampler": base.sampler.model_copy(update={"ratio": 20.0})
        },
        "sampler: 20 genuine per fraud (a fifth of the steps), weights left": {
            "sampler": base.sampler.model_copy(update={"ratio": 20.0, "unbiased": False})
        },
        "focal loss, gamma 2": {"loss": base.loss.model_copy(update={"gamma": 2.0})},
        "no attention": {"model": base.model.model_copy(update={"num_heads": 0})},
        "no steps in the encoding": {"model": base.model.model_copy(update={"num_steps": 0})},
    }
    variants = dict(list(variants.items())[: 2 if bench.quick else None])
    backs = range(1 if bench.quick else 2)
    weeks, earlier = [Week("week", back) for back in backs], [Week("week", back, EARLIER_DAYS) for back in backs]
    jobs = [
        Job(network_logits, (week, recipe_of("week", quick=bench.quick, **changes)))
        for changes in variants.values()
        for week in (*weeks, *earlier)
    ]
    made = iter(bench.run(jobs))
    rows: list[Record] = []
    first: list[Scored] = []
    for name in variants:
        raw, before = [next(made) for _ in weeks], [next(made) for _ in earlier]
        tests = bench.scored(weeks, raw)
        first = first or tests
        row: Record = {"network": name}
        if tests is not first:
            one = compare(tests, first, {"AP": average_precision}, draws=draws)["AP"]
            row["AP minus first"] = f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        row |= {key: float(np.mean([metric(test) for test in tests])) for key, metric in METRICS.items()}
        calibrated = [
            Calibration.platt(values, bench.fold(week).held.label).apply(own)
            for week, values, own in zip(earlier, before, raw, strict=True)
        ]
        after = [bench.fold(week).held.scored(values) for week, values in zip(weeks, calibrated, strict=True)]
        for key, metric in (("ECE", calibration_error), ("Brier", brier)):
            row |= {
                f"{key} {when}": float(np.mean([metric(test) for test in parts]))
                for when, parts in (("before", tests), ("after", after))
            }
        rows.append(row)
    table(f"Ablation, 7-day regime, mean of {len(weeks)} test weeks; calibrated on the weeks 28 days earlier", rows)
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
    found = machine()
    print(", ".join(f"{key} {value}" for key, value in found.items()) + (", quick" if given.quick else ""))
    start = time.perf_counter()
    bench = Bench(source, Path(given.cache), quick=given.quick)
    draws = 20 if given.quick else 1000
    goals: list[Record] = [] if given.quick else handbook(bench)
    records: dict[str, Any] = {}
    for regime, wanted in (("week", 0.73), ("all", 0.76)):
        if regime not in given.regime or (given.quick and regime == "all"):
            continue
        logits = regime_logits(bench, regime)
        rows, paired = report(bench, regime, logits, draws=draws)
        records[regime] = {"rows": rows, "paired": paired}
        weeks = [Week(regime, back) for back in range(len(logits[NETWORK]))]
        means = {
            name: {
                key: float(np.mean([metric(one) for one in bench.scored(weeks, values)]))
                for key, metric in MAIN.items()
            }
            for name, values in logits.items()
        }
        for own in (NETWORK, TAUGHT):
            if own not in means:
                continue
            against = next(one for one in paired if (one["row"], one["minus"], one["figure"]) == (own, "XGBoost", "AP"))
            difference = f"{against['difference']:+.4f} ({against['low']:+.4f} to {against['high']:+.4f})"
            goals += [
                goal(f"{own}, {regime}: AP {means[own]['AP']:.4f} of {wanted}", means[own]["AP"] >= wanted),
                goal(f"{own}, {regime}: CP@100 {means[own]['CP@100']:.4f} of 0.303", means[own]["CP@100"] >= 0.303),
                goal(f"{own} beyond XGBoost, {regime}: AP {difference}", against["low"] > 0),
            ]
        if regime == "week":
            value = means["XGBoost"]["AP"]
            goals.append(goal(f"the table stands: XGBoost, week, AP {value:.4f} of 0.71", value >= 0.71))
    if not given.no_ablation and "week" in given.regime:
        records["ablation"] = ablation(bench, draws=draws)
    minutes = bench.seconds / 60 / (os.cpu_count() or 1)
    print(
        f"\n  all that is fitted takes {bench.seconds:,.0f} s of one core, {minutes:.0f} minutes on {os.cpu_count()}; "
        f"{bench.spent:,.0f} s of it this time; {time.perf_counter() - start:,.0f} s in all"
    )
    if not given.quick:
        goals.append(goal(f"all training within {BUDGET_MINUTES:.0f} minutes", minutes <= BUDGET_MINUTES))
    keep(given.json, machine=found, quick=given.quick, goals=goals, fitting_core_seconds=bench.seconds, **records)


if __name__ == "__main__":
    main()
