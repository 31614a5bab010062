"""Where to put the threshold: by an alert budget or by cost, on validation rows as they are.

A row is alerted where its score is at least the threshold. The threshold lies midway between the lowest score alerted
and the next below, so that the last bit of a score decides nothing; rows of one score are alerted together.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from core.errors import DataError
from core.evaluation.metrics import ROUNDING
from core.evaluation.scored import Floats, Scored


class Threshold(NamedTuple):
    """A threshold and what it gave on the rows it was judged on; nan where a share does not exist."""

    threshold: float
    """Alert where the score is at least this."""
    recall: float
    """Share of the positives alerted; nan without a positive."""
    precision: float
    """Share of positives among the alerts; nan without an alert."""
    false_alarm_rate: float
    """Share of the negatives alerted; nan without a negative."""
    alerts_per_day: float
    cost_per_day: float
    """In the unit of the costs given; nan where none were."""

    def record(self) -> dict[str, float | None]:
        """JSON-able values; None where a value does not exist."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}


class TradeOff(NamedTuple):
    """What each threshold in turn gives, the highest first."""

    threshold: Floats
    """[K] distinct scores."""
    alerts_per_day: Floats
    recall: Floats
    precision: Floats


def by_budget(rows: Scored, alerts_per_day: float) -> Threshold:
    """The lowest threshold with at most this many alerts on an average day of the rows.

    A budget above the volume alerts every row; one too small for the highest score and its ties alerts none.

    Raises:
        DataError: a negative budget, or rows without days.
    """
    if not alerts_per_day >= 0:
        raise DataError(f"alert budget of {alerts_per_day} a day; allowed is 0 and more")
    _, true, false = rows.curve
    return _at(rows, int(np.searchsorted(true + false, alerts_per_day * rows.num_days + ROUNDING, side="right")))


def by_cost(rows: Scored, *, alert_cost: float, missed_cost: ArrayLike) -> Threshold:
    """The threshold of least cost: `alert_cost` for each alert, `missed_cost` for each positive left alone.

    Of several thresholds at one cost the highest is taken: the fewest alerts. Costs are not per card: a missed event
    costs its own amount, whatever an earlier alert would have stopped.

    Args:
        alert_cost: currency units an alert, at least 0.
        missed_cost: currency units a missed positive: one number, or [N] one a row in the order given to `Scored`
            (the amount).

    Raises:
        DataError: a negative or non-finite cost, a column of another length, or rows without days.
    """
    alerting, missing = _costs(rows, alert_cost, missed_cost)
    return _at(rows, int(np.argmin(alerting + missing)), alerting + missing)


def effect(
    rows: Scored, threshold: float, *, alert_cost: float | None = None, missed_cost: ArrayLike | None = None
) -> Threshold:
    """What a given threshold does on these rows: the test's answer to a threshold chosen on validation.

    Raises:
        DataError: as `by_cost`; one of the two costs without the other.
    """
    cost = None
    if alert_cost is not None and missed_cost is not None:
        cost = np.add(*_costs(rows, alert_cost, missed_cost))
    elif alert_cost is not None or missed_cost is not None:
        raise DataError("one cost without the other; give alert_cost and missed_cost, or neither")
    alerted = int(np.searchsorted(-rows.curve.threshold, -threshold, side="right"))
    return _at(rows, alerted, cost)._replace(threshold=float(threshold))


def trade_off(rows: Scored) -> TradeOff:
    """Recall and precision against alerts a day, at every distinct score.

    Raises:
        DataError: rows without days.
    """
    threshold, true, false = rows.curve
    recall = true / true[-1] if true[-1] else np.full(len(true), np.nan)
    return TradeOff(threshold, (true + false) / rows.num_days, recall, true / (true + false))


def _costs(rows: Scored, alert_cost: float, missed_cost: ArrayLike) -> tuple[Floats, Floats]:
    """Cost of the alerts and of the misses with none, one, ... all of the distinct scores alerted: two of [K + 1]."""
    missed = np.asarray(missed_cost, dtype=np.float64)
    if missed.ndim and missed.shape != rows.order.shape:
        raise DataError(f"missed_cost has shape {missed.shape}; give one number, or one for each of {len(rows)} rows")
    if not (math.isfinite(alert_cost) and alert_cost >= 0 and np.isfinite(missed).all() and (missed >= 0).all()):
        raise DataError("a cost is negative or not finite; allowed is 0 and more")
    each = (missed[rows.order] if missed.ndim else np.full(len(rows), missed)) * rows.label
    caught = np.append(0.0, np.cumsum(each)[rows.ends])
    alerts = np.append(0, rows.ends + 1)
    return alert_cost * alerts, caught[-1] - caught


def _at(rows: Scored, alerted: int, cost: Floats | None = None) -> Threshold:
    """What alerting the highest `alerted` distinct scores gives; cost is [K + 1]."""
    scores, true, false = rows.curve
    hits, alarms = (float(true[alerted - 1]), float(false[alerted - 1])) if alerted else (0.0, 0.0)
    if not alerted:
        threshold = float(np.nextafter(scores[0], np.inf))
    elif alerted == len(scores):
        threshold = float(scores[-1])
    else:
        above, below = float(scores[alerted - 1]), float(scores[alerted])
        middle = below + (above - below) / 2
        threshold = middle if below < middle else above
    return Threshold(
        threshold,
        _share(hits, true[-1]),
        _share(hits, hits + alarms),
        _share(alarms, false[-1]),
        (hits + alarms) / rows.num_days,
        float("nan") if cost is None else float(cost[alerted]) / rows.num_days,
    )


def _share(part: float, whole: Any) -> float:
    return float(part / whole) if whole else float("nan")
