"""The settings of card fraud, and its recipes: complete configurations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from core.config import Config
from core.data.samplers import SamplerConfig
from core.training.loop import FitConfig
from core.training.optim import OptimConfig
from verticals.finance.fraud.features import FeatureConfig
from verticals.finance.fraud.model import ModelConfig
from verticals.finance.fraud.synthetic import SyntheticConfig
from verticals.finance.fraud.task import LossConfig


class DataConfig(Config):
    """Which transactions, how their columns are called, and which days train, choose and test."""

    sources: tuple[str, ...] = ()
    """Files (.csv .jsonl .parquet) or SQL (`URL::table or SELECT`); none means synthetic data."""
    columns: dict[str, str] = {}
    """What the file calls a column, where it is not the handbook's name: {"amount": "BETRAG"}."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of the file that are no part of a transaction, beside the handbook's own."""
    delimiter: Literal[",", ";", "\t", "|"] = ","
    """Between the fields of a CSV file."""
    decimal: Literal[".", ","] = "."
    """Mark of numbers that are written as text."""
    numeric: tuple[str, ...] = ()
    """Further columns that are numbers and become features."""
    categorical: tuple[str, ...] = ()
    """Further columns that are categories and become features."""
    max_categories: int = Field(50, ge=2)
    """Categories of a column that get a feature of their own; rarer ones share one."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """What is made up where there is no source."""
    label_delay: float = Field(7.0, ge=0)
    """Days until a transaction's label is known: the gap between training, validation and test days."""
    validation_days: float = Field(14.0, gt=0)
    """Days that choose calibration and threshold."""
    test_days: float = Field(14.0, gt=0)
    """The last days, seen by nothing before the figures are made."""
    train_days: float = Field(0.0, ge=0)
    """Days before the first gap whose labels are targets; 0 takes all of them."""


class DecisionConfig(Config):
    """How a probability becomes a decision."""

    rule: Literal["budget", "cost"] = "budget"
    """`budget` alerts the most suspicious few a day, `cost` weighs alerts against missed fraud."""
    alerts_per_day: float = Field(0.0, ge=0)
    """Alerts a day that can be worked on; 0 takes one in two hundred transactions."""
    cost_of_alert: float = Field(5.0, gt=0)
    """Currency units that looking at one alert costs."""
    cost_of_missed_share: float = Field(1.0, gt=0)
    """Share of a missed fraud's amount that is lost."""
    num_reasons: int = Field(3, ge=0)
    """Reasons given with a decision, at most."""


class FraudConfig(Config):
    """Everything that decides a fraud model."""

    data: DataConfig = DataConfig()
    features: FeatureConfig = FeatureConfig()
    scaling: Literal["log_standard", "standard", "minmax", "robust"] = "log_standard"
    """How features are brought to one scale, fitted on the training days."""
    sampler: SamplerConfig = SamplerConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    fit: FitConfig = FitConfig()
    decision: DecisionConfig = DecisionConfig()


def debug() -> FraudConfig:
    """Seconds on one core: few cards, few features, a small network."""
    return FraudConfig(
        data=DataConfig(
            synthetic=SyntheticConfig(num_customers=120, num_terminals=150, num_days=70), validation_days=7, test_days=7
        ),
        features=FeatureConfig.of_size("small"),
        sampler=SamplerConfig(batch_size=32, chunk=16, context=32, span=32),
        model=ModelConfig(
            num_bins=4,
            num_steps=3,
            num_embedding=16,
            num_hidden=16,
            num_states=8,
            num_evidence=32,
            num_members=2,
            dropout=0.0,
            input_dropout=0.0,
        ),
        fit=FitConfig(epochs=3, optim=OptimConfig(lr=5e-3)),
    )


def default() -> FraudConfig:
    """The shipped model, on synthetic data where no source is given; a few minutes on two cores."""
    return FraudConfig(
        data=DataConfig(synthetic=SyntheticConfig(num_customers=300, num_terminals=600, num_days=110)),
        sampler=SamplerConfig(batch_size=64, chunk=32, context=16, span=48),
        fit=FitConfig(epochs=4, optim=OptimConfig(lr=2e-3, weight_decay=0.3, warmup=0.1, average=0.99)),
    )


def wide() -> FraudConfig:
    """More than 2,000 features of the last two weeks; fewer ramps for each, for memory in training."""
    return default().model_copy(
        update={"features": FeatureConfig.of_size("wide"), "model": ModelConfig(num_bins=4, num_steps=3)}
    )


RECIPES: dict[str, Callable[[], FraudConfig]] = {"debug": debug, "default": default, "wide": wide}
