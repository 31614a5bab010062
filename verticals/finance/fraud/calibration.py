"""What a quantized network is calibrated on: events of the validation days as the network meets them, frauds among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.compression.calibration import calibration_rows
from core.contract import Arrays, Session
from core.evaluation.splits import DAY
from verticals.finance.fraud.config import FraudConfig
from verticals.finance.fraud.data import FraudData
from verticals.finance.fraud.predictor import FraudPredictor


class _Kept:
    """A session that keeps the inputs of events at some times."""

    def __init__(self, session: Session, days: NDArray[np.float64]) -> None:
        self.session, self.inputs, self.outputs = session, session.inputs, session.outputs
        self._days = days
        self.rows: list[Arrays] = []

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        for row in np.flatnonzero(np.isin(arrays["time"], self._days)):
            self.rows.append({name: array[row : row + 1].copy() for name, array in arrays.items()})
        return self.session(arrays, out=out)


def calibration(
    config: FraudConfig, constants: Mapping[str, Any], session: Session, data: FraudData, count: int
) -> tuple[list[Arrays], dict[str, int]]:
    """Inputs of so many validation events, each [1, ...] with the state that it meets, and how many are of each class.

    Raises:
        DataError: the validation days hold events of one class only.
    """
    held = data.held("validation")
    time = data.events.time[held.rows]
    times, counts = np.unique(time, return_counts=True)
    alone = np.flatnonzero(np.isin(time, times[counts == 1]))  # a time then names its event
    chosen = alone[calibration_rows(held.label[alone], min(count, len(alone)))]
    kept = _Kept(session, time[chosen] / DAY)
    for _ in FraudPredictor(config, constants, kept).stream(data.chunks(until=held.span.end)):
        pass
    frauds = int((held.label[chosen] == 1).sum())
    return kept.rows, {"genuine": len(chosen) - frauds, "fraud": frauds}
