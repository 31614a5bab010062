"""Figures of a detector's scores: ranking, alerts and probabilities, each one function of `Scored` rows.

All of them come from the rows' cumulative sums, under the rows' weights: the same lines make a figure and the thousand
draws of its interval. A figure that does not exist (no positive row) is nan.

Legend: N row, B bin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from core.errors import DataError
from core.evaluation.scored import Floats, Ints, Scored

ROUNDING = 1e-9
"""Slack on a limit of weights: 0.06 of 50 rows is 3 rows, whatever the last bit of the product says."""


class Reliability(NamedTuple):
    """What was predicted beside what came, in bins (lowest scores first)."""

    predicted: Floats
    """[B] mean probability."""
    observed: Floats
    """[B] share of positives."""
    mass: Floats
    """[B] rows (their weight)."""


Metric = Callable[[Scored], float]
"""A figure of scored rows; options are bound with functools.partial."""


def auc_roc(rows: Scored) -> float:
    """Chance that a positive row scores above a negative one (a tie counts half); nan with one class only."""
    _, true, false = rows.curve
    if not true[-1] or not false[-1]:
        return float("nan")
    gain = np.diff(true, prepend=0.0)
    at = np.flatnonzero(gain)
    before = np.where(at > 0, false[at - 1], 0.0)
    above = np.dot(gain[at], 0.5 * (false[at] + before))
    return float(1.0 - above / (true[-1] * false[-1]))


def average_precision(rows: Scored) -> float:
    """Mean precision over the positives, each at its own score (no interpolation); nan without a positive row."""
    _, true, false = rows.curve
    if not true[-1]:
        return float("nan")
    gain = np.diff(true, prepend=0.0)
    at = np.flatnonzero(gain)
    return float(np.sum(gain[at] * true[at] / (true[at] + false[at])) / true[-1])


def _last_within(cumulative: Floats, limit: float) -> int:
    """Index of the last distinct score whose cumulative weight is at most the limit; -1 where none is."""
    return int(np.searchsorted(cumulative, limit + ROUNDING, side="right")) - 1


def recall_at_false_alarm_rate(rows: Scored, rate: float) -> float:
    """Share of positives alerted by the lowest threshold that alerts at most `rate` of the negatives."""
    _, true, false = rows.curve
    if not true[-1]:
        return float("nan")
    place = _last_within(false, rate * false[-1])
    return float(true[place] / true[-1]) if place >= 0 else 0.0


def recall_at_alerts(rows: Scored, alerts_per_day: float) -> float:
    """Share of positives alerted by the lowest threshold with at most `alerts_per_day` alerts on an average day."""
    _, true, false = rows.curve
    if not true[-1]:
        return float("nan")
    place = _last_within(true + false, alerts_per_day * rows.num_days)
    return float(true[place] / true[-1]) if place >= 0 else 0.0


def precision_at_alerts(rows: Scored, alerts_per_day: float) -> float:
    """Share of positives among the alerts of that threshold; nan where ties leave no threshold within the budget."""
    _, true, false = rows.curve
    place = _last_within(true + false, alerts_per_day * rows.num_days)
    alerts = float(true[place] + false[place]) if place >= 0 else 0.0
    return float(true[place]) / alerts if alerts else float("nan")


def group_precision_at_k(rows: Scored, k: int = 100) -> float:
    """Card precision@k: share of compromised groups among each day's k most suspicious, mean over the days with rows.

    A group's score is its largest of the day, and it is compromised on a day with a positive row. A compromised group
    that an earlier day's k caught is left out. Each day's share is of k, also where a day has fewer groups.
    Groups of one score stand in the order of their rows. A group that counts m times is m groups.

    Source: Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud Detection, `card_precision_top_k`.
    """
    left = np.ones(len(rows.groups)) if rows.times is None else rows.times.astype(np.float64)
    days = rows.group_days()
    share = 0.0
    for group, positive in days:
        size = 4 * k  # enough unless most groups are caught or not drawn
        while True:
            have = left[group[:size]]
            reached = np.cumsum(have)
            if reached[-1] >= k or size >= len(group):
                break
            size *= 4
        hits = np.clip(k - (reached - have), 0.0, have) * positive[:size]
        share += float(hits.sum()) / k
        left[group[:size]] -= hits
    return share / len(days)


def brier(rows: Scored) -> float:
    """Mean squared distance of probability and label: 0 is best, a constant's is prevalence * (1 - prevalence)."""
    _check_probability(rows)
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    return _mean((rows.score - rows.label) ** 2, weight)


def reliability(rows: Scored, bins: int = 15) -> Reliability:
    """Predicted beside observed shares in bins of equal mass; rows of one score never part, so bins may be fewer.

    The bins hold equal numbers of rows as given: weights of a draw move what is in a bin, not its edges.

    Raises:
        DataError: scores outside 0 to 1.
    """
    return _binned(rows, np.arange(bins, dtype=np.float64) * (len(rows) / bins))


def tail_reliability(rows: Scored, least: int = 50) -> Reliability:
    """As `reliability`, in bins that each hold half of the rows above: where positives are rare, they lie on top.

    Args:
        least: rows of the highest bin, at least.

    Raises:
        DataError: scores outside 0 to 1.
    """
    halvings = max(0, int(np.log2(max(len(rows) / least, 1.0))))
    return _binned(rows, np.append(0.0, len(rows) / 2.0 ** np.arange(halvings, 0, -1)))


def _binned(rows: Scored, wanted: Floats) -> Reliability:
    """Bins that start at these ranks (0 the highest score, rising); a score goes where the middle of its rows lies."""
    _check_probability(rows)
    starts = np.append(0, rows.ends[:-1] + 1)
    place = np.searchsorted((starts + rows.ends + 1) / 2, wanted)
    edges: Ints = starts[np.unique(place[place < len(starts)])]
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    mass = np.add.reduceat(weight, edges)
    predicted = np.add.reduceat(weight * rows.score, edges)
    observed = np.add.reduceat(weight * rows.label, edges)
    held = np.flatnonzero(mass)[::-1]
    return Reliability(predicted[held] / mass[held], observed[held] / mass[held], mass[held])


def calibration_error(rows: Scored, bins: int = 15) -> float:
    """Expected calibration error: mean distance of predicted from observed share over bins of equal mass.

    Zero is best. Noise in the bins adds to it, so an interval by bootstrap lies above the value of the rows as given.
    """
    predicted, observed, mass = reliability(rows, bins)
    return _mean(np.abs(predicted - observed), mass)


def _mean(values: Floats, weight: Floats) -> float:
    total = float(weight.sum())
    return float(np.dot(values, weight)) / total if total else float("nan")


def _check_probability(rows: Scored) -> None:
    if rows.score[-1] < 0 or rows.score[0] > 1:
        raise DataError(f"scores from {rows.score[-1]:.4g} to {rows.score[0]:.4g} are no probabilities; calibrate them")


def detection(
    *, k: int = 100, false_alarm_rates: tuple[float, ...] = (0.001, 0.06), alerts_per_day: float = 100.0
) -> dict[str, Metric]:
    """The named figures of a detector on probabilities: ranking, group precision, recall at rates and budget."""
    return {
        "auc_roc": auc_roc,
        "average_precision": average_precision,
        f"group_precision_at_{k}": partial(group_precision_at_k, k=k),
        **{
            f"recall_at_{rate:.3g}_false_alarms": partial(recall_at_false_alarm_rate, rate=rate)
            for rate in false_alarm_rates
        },
        f"recall_at_{alerts_per_day:g}_alerts_a_day": partial(recall_at_alerts, alerts_per_day=alerts_per_day),
        f"precision_at_{alerts_per_day:g}_alerts_a_day": partial(precision_at_alerts, alerts_per_day=alerts_per_day),
        "brier": brier,
        "calibration_error": calibration_error,
    }
