"""Figures of a fraud model on held days, and its report: everything through the Predictor that answers in production."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from core.contract import Arrays
from core.evaluation.bootstrap import Figures, measure
from core.evaluation.calibration import Calibration
from core.evaluation.metrics import detection
from core.evaluation.report import Record, Section, Table, Text, figures_table
from core.evaluation.scored import Scored
from core.evaluation.splits import check_fitted
from core.evaluation.thresholds import Threshold, by_budget, by_cost, effect
from verticals.finance.fraud.config import DecisionConfig, FraudConfig
from verticals.finance.fraud.data import FraudData
from verticals.finance.fraud.predictor import FraudPredictor

ALERT_SHARE = 0.005
"""Share of the transactions that is alerted where no budget is given."""

DRAWS = 1000


@dataclass(frozen=True)
class Evaluation:
    """Figures with intervals of one model on one span of days."""

    split: str
    figures: Figures
    decided: Threshold
    """What the model's threshold does on these days."""
    score: np.ndarray
    """[N] probabilities, in the order of the split's events."""
    calibrated: Scored
    uncalibrated: Scored

    @property
    def answers(self) -> Arrays:
        """Of every event of the split: its probability, and whether it is alerted."""
        return {"score": self.score, "alert": self.score >= self.decided.threshold}

    def record(self) -> dict[str, Any]:
        """JSON-able: `figures` by name with intervals and counts, `threshold` with what it does."""
        return {"split": self.split, "figures": self.figures.record(), "threshold": self.decided.record()}

    @property
    def text(self) -> str:
        """For a terminal."""
        at = self.decided
        return f"{self.split} days\n{self.figures.table()}\nat threshold {at.threshold:.4f}: recall {at.recall:.3f}, precision {at.precision:.3f}, {at.alerts_per_day:.1f} alerts a day"

    def sections(
        self, *, config: str, data: Mapping[str, Any], code: Mapping[str, Any], steps: Sequence[str]
    ) -> list[Section]:
        """The report. `steps` are the lines of metrics.jsonl; none where nothing was trained."""
        from core.evaluation.plots import detection_plots  # matplotlib: a service never draws

        losses = [json.loads(line) for line in steps]
        history = {"loss": ([step["step"] for step in losses], [step["loss"] for step in losses])} if losses else None
        simulated = (
            "These transactions are synthetic: the figures show that the line works, not what it does on real cards."
            if data["sources"] == ["synthetic"]
            else ""
        )
        threshold = {key: "-" if value is None else f"{value:.4g}" for key, value in self.decided.record().items()}
        return [
            Text(
                "What this is",
                f"Figures of the {self.split} days with 95 % intervals (bootstrap over cards, {DRAWS} draws). {simulated}",
            ),
            figures_table(self.figures),
            Table(
                "Decision",
                list(threshold),
                [list(threshold.values())],
                "The threshold was chosen on validation days; this is what it does here.",
            ),
            *detection_plots(self.calibrated, uncalibrated=self.uncalibrated, history=history, chosen=self.decided),
            Record("Data", dict(data)),
            Record("Code", dict(code)),
            Record("Configuration", yaml.safe_load(config)),
        ]


def choose(rows: Scored, amounts: np.ndarray, decision: DecisionConfig) -> Threshold:
    """The threshold that a decision rule wants on validation rows.

    Args:
        amounts: [N] currency units, in the order the rows were given in.
    """
    if decision.rule == "cost":
        return by_cost(rows, alert_cost=decision.cost_of_alert, missed_cost=decision.cost_of_missed_share * amounts)
    return by_budget(rows, decision.alerts_per_day or ALERT_SHARE * len(rows) / rows.num_days)


def held_scores(predictor: FraudPredictor, data: FraudData, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, probabilities and amounts of a split's events, from the start of the table on, through the Predictor."""
    held = data.held(split)
    scores = list(predictor.stream(data.chunks(until=held.span.end)))
    rows = held.rows
    logit, score, amount = (
        np.concatenate(parts)[rows]
        for parts in zip(*((s.logit, s.score, s.events.amount) for s in scores), strict=True)
    )
    return logit, score, amount


def evaluate(predictor: FraudPredictor, data: FraudData, split: str) -> Evaluation:
    """Figures of every event of the split.

    Raises:
        LeakError: the model's transforms were fitted on days of the split.
        DataError: no such split, or labels missing in it.
    """
    held = data.held(split)
    if split != "all":
        check_fitted(predictor.pipeline.fitted_until, held.span.start, what="the model's pipeline")
    logit, score, _ = held_scores(predictor, data, split)
    calibrated = held.scored(score)
    budget = predictor.config.decision.alerts_per_day or ALERT_SHARE * len(held) / calibrated.num_days
    figures = measure(calibrated, detection(alerts_per_day=round(budget, 1)), draws=DRAWS)
    uncalibrated = held.scored(Calibration().apply(logit))
    return Evaluation(split, figures, effect(calibrated, predictor.threshold), score, calibrated, uncalibrated)


def constants(config: FraudConfig, data: FraudData, task: Any) -> dict[str, Any]:
    """What ships beside the weights: columns, pipeline, usual values, and calibration and threshold of validation days."""
    from core.inference.session import TorchSession
    from verticals.finance.fraud.step import ScoreStep

    made: dict[str, Any] = {
        "features": list(data.features.names),
        "pipeline": data.pipeline.record(),
        **data.usual,
        "calibration": Calibration().model_dump(),
        "threshold": 0.5,
    }
    held = data.held("validation")
    check_fitted(data.pipeline.fitted_until, held.span.start, what="the pipeline")
    rough = FraudPredictor(config, made, TorchSession(ScoreStep(task.model)))
    logit, _, amounts = held_scores(rough, data, "validation")
    calibration = Calibration.platt(logit, held.label)
    chosen = choose(held.scored(calibration.apply(logit)), amounts, config.decision)
    return {
        **made,
        "calibration": calibration.model_dump(),
        "threshold": min(1.0, chosen.threshold),
        "chosen": chosen.record(),
    }
