"""A small fraud model trained once for all tests that ask it something."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

from core.device import seed_everything
from core.distributed.strategy import Strategy
from core.inference.session import TorchSession
from core.training.log import Log
from core.training.loop import fit
from verticals.finance.fraud import APPLICATION
from verticals.finance.fraud.config import FraudConfig
from verticals.finance.fraud.data import FraudData
from verticals.finance.fraud.predictor import FraudPredictor
from verticals.finance.fraud.store import EventStore


class Trained(NamedTuple):
    config: FraudConfig
    data: FraudData
    constants: dict[str, Any]
    session: TorchSession

    def predictor(self, store: EventStore | None = None, *, version: str = "v1") -> FraudPredictor:
        return FraudPredictor(self.config, self.constants, self.session, version=version, store=store)


@cache
def trained(*changes: str) -> Trained:
    """The debug recipe after its three epochs."""
    config = APPLICATION.recipes["debug"]().override(changes)
    seed_everything(0)
    data = APPLICATION.data(config)
    task = APPLICATION.task(config, data)
    with Log(None, quiet=True) as log:
        fit(task, data, config.fit, strategy=Strategy(torch.device("cpu")), log=log)  # type: ignore[attr-defined]
    constants = APPLICATION.constants(config, data, task)
    return Trained(config, data, dict(constants), TorchSession(APPLICATION.forms["step"](task.model)))  # type: ignore[arg-type]
