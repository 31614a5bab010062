"""Card fraud as an `Application`: what the verbs, the tests and the service need to know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.contract import Application, Limits
from core.data.pipeline import DataPipeline
from core.data.tables import TableWriter
from core.training.log import progress
from verticals.finance.fraud.calibration import calibration
from verticals.finance.fraud.config import RECIPES, FraudConfig
from verticals.finance.fraud.data import FraudData
from verticals.finance.fraud.evaluation import constants, evaluate
from verticals.finance.fraud.history import load_history
from verticals.finance.fraud.model import FraudNet
from verticals.finance.fraud.predictor import FraudPredictor
from verticals.finance.fraud.records import ordered, read_events
from verticals.finance.fraud.requests import Transaction
from verticals.finance.fraud.step import ScoreStep
from verticals.finance.fraud.synthetic import write_synthetic
from verticals.finance.fraud.task import FraudTask
from verticals.finance.fraud.window import WindowStep


def task(config: FraudConfig, data: FraudData) -> FraudTask:
    """The network, its encoding fitted on the training days, with its loss."""
    net = FraudNet(config.model, data.pipeline.feature_names)
    net.encoding.fit(*data.encoding_rows())
    return FraudTask(net, config.loss)


def model(config: FraudConfig, made: Mapping[str, Any]) -> FraudNet:
    """The network without weights."""
    return FraudNet(config.model, DataPipeline.from_record(made["pipeline"]).feature_names)


def predict(predictor: FraudPredictor, config: FraudConfig, source: str, target: Path) -> dict[str, Any]:
    """Writes score and decision of every row of a file (.parquet, .csv or .jsonl), in time order.

    Raises:
        DataError: a fault in the file, or an output of another kind; nothing is written.
    """
    alerts = 0
    with TableWriter(target) as table, progress() as bar:
        task = bar.add_task("rows", total=None, note="")
        for columns in _answers(predictor, config, source):
            table.write(columns)
            alerts += int(np.sum(columns["decision"] == "alert"))
            bar.update(task, completed=table.rows)
    return {"rows": table.rows, "alerts": alerts, "text": f"{table.rows} rows to {target} ({alerts} alerts)"}


def _answers(predictor: FraudPredictor, config: FraudConfig, source: str) -> Iterator[dict[str, NDArray[Any]]]:
    with ordered(config.data, source) as rows:
        for scores in predictor.stream(read_events(rows)):
            yield {
                "transaction_id": scores.ids.astype(str),
                "time": scores.events.time.astype("datetime64[us]"),
                "score": scores.score,
                "decision": np.where(scores.alert, "alert", "pass"),
                "threshold": np.full(len(scores.score), predictor.threshold),
                "version": np.full(len(scores.score), predictor.version),
            }


def check(config: FraudConfig, source: str) -> dict[str, Any]:
    """Reads a file whole: rows, span, cards, terminals, frauds; raises DataError at the first fault."""
    data = FraudData(config, sources=[source])
    events = data.events
    found = {
        **data.fingerprint,
        "customers": len(np.unique(events.customer)),
        "terminals": len(np.unique(events.terminal)),
        "frauds": int((events.fraud == 1).sum()),
        "unlabelled": int((events.fraud < 0).sum()),
        "total_amount": round(float(events.amount.sum()), 2),
    }
    return {**found, "text": "\n".join(f"{key:<14}{value}" for key, value in found.items())}


def synthesize(config: FraudConfig, path: Path) -> dict[str, Any]:
    """Writes synthetic transactions (.parquet or .csv)."""
    found = write_synthetic(config.data.synthetic, path)
    return {
        "path": str(path),
        **found,
        "text": f"{path}: " + ", ".join(f"{value} {key}" for key, value in found.items()),
    }


def example() -> Transaction:
    """A transaction of a card that nobody has seen."""
    return Transaction.model_validate(Transaction.model_config["json_schema_extra"]["example"])  # type: ignore[index]


def _distillation(config: FraudConfig) -> torch.nn.Module:
    """Each member's logit is a yes or no of its own."""
    from core.compression.distillation import TemperatureCrossEntropy  # training only

    return TemperatureCrossEntropy(2.0, kind="sigmoid")


LIMITS = {
    "float32": Limits(tensor=1e-3, answers={"score": 1e-3, "alert": 1e-3}, figure="auc_roc", drop=1e-4),
    "bfloat16": Limits(tensor=0.05, answers={"score": 0.05, "alert": 2e-3}, figure="auc_roc", drop=2e-3),
    "int8": Limits(tensor=0.2, answers={"score": 0.1, "alert": 2e-3}, figure="auc_roc", drop=2e-3),
}
"""A score is a probability; of int8 and bfloat16 some of the calls that were close may change."""

APPLICATION = Application(
    name="finance.fraud",
    title="Card fraud",
    recipes=RECIPES,
    data=FraudData,
    task=task,
    constants=constants,
    model=model,
    forms={"step": ScoreStep, "window": WindowStep},
    whole=("history",),
    distillation=_distillation,
    limits=LIMITS,
    calibration=calibration,
    predictor=FraudPredictor,
    has_threshold=True,
    evaluate=evaluate,
    samples=lambda config, source: FraudData(config, sources=[source]),
    predict=predict,
    cost=None,
    archive=None,
    check=check,
    synthesize=synthesize,
    remember=load_history,
    begins_filled=False,
    example=example,
    card=Path(__file__).parent / "README.md",
)
