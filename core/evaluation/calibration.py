"""From a network's logit to a probability: Platt scaling, and the shift that a class-balanced sampler calls for.

A focal loss and a balanced sampler both leave a score that ranks well and lies about its size. Two numbers, fitted on
validation days as they are, repair that and keep the order. How well is seen in `metrics.reliability`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from core.config import Config
from core.errors import DataError
from core.evaluation.scored import Floats

SLOPE_FLOOR = 1e-3
"""The least slope: a score that points the wrong way is flattened, never reversed, and keeps its order."""

LOGIT_CEILING = 1e6
"""A logit beyond this counts as this much when fitting."""


class Calibration(Config):
    """probability = sigmoid(slope * logit + intercept); the order of the logits is kept. Its record is its JSON."""

    slope: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """Above 1 sharpens, below 1 softens (overconfident logits)."""
    intercept: float = Field(default=0.0, allow_inf_nan=False)
    """Logits to add."""

    @classmethod
    def platt(cls, logit: ArrayLike, label: ArrayLike) -> Calibration:
        """Fits slope and intercept by maximum likelihood on held-out rows that nobody thinned.

        Where only one class is present, the slope stays 1 and the intercept alone is fitted. A slope under
        `SLOPE_FLOOR` is set to it, and the intercept fitted to that.

        Args:
            logit: [N] finite.
            label: [N] 1 positive, 0 negative.

        Raises:
            DataError: no rows, different lengths, a logit that is not finite, a label other than 0 and 1.

        Source: Platt (1999), with its smoothed targets (N+ + 1)/(N+ + 2) and 1/(N- + 2), which keep the fit finite
        under perfect separation; Newton's method with step halving, after Lin, Lin and Weng (2007).
        """
        values, labels = np.asarray(logit, dtype=np.float64), np.asarray(label)
        if values.ndim != 1 or values.shape != labels.shape or not len(values):
            raise DataError(f"calibration takes one logit and one label a row; given {values.shape} and {labels.shape}")
        if not np.isfinite(values).all():
            raise DataError(f"{int((~np.isfinite(values)).sum())} of {len(values)} logits are not finite")
        if not np.isin(labels, (0, 1)).all():
            raise DataError("calibration needs labels 0 and 1; leave out rows whose label is not known")
        positive = labels == 1
        count = int(positive.sum())
        target = np.where(positive, (count + 1) / (count + 2), 1 / (len(labels) - count + 2))
        x = np.clip(values, -LOGIT_CEILING, LOGIT_CEILING)
        centre, scale = float(x.mean()), float(x.std()) or 1.0
        z = (x - centre) / scale
        if 0 < count < len(labels):
            slope, intercept = _newton(z, target)
            if slope / scale >= SLOPE_FLOOR:
                return cls(slope=slope / scale, intercept=intercept - slope * centre / scale)
        fixed = SLOPE_FLOOR if 0 < count < len(labels) else 1.0
        _, intercept = _newton(z, target, slope=fixed * scale)
        return cls(slope=fixed, intercept=intercept - fixed * centre)

    def with_prior(self, *, trained: float, actual: float) -> Calibration:
        """The same map for another base rate: adds the difference of the two log odds.

        Args:
            trained: share of positives in what the logits come from (a balanced sampler's batches), 0 to 1 exclusive.
            actual: share of positives where the probabilities are used.

        Raises:
            DataError: a share outside 0 to 1, both exclusive.

        Source: Saerens, Latinne and Decaestecker (2002), equation 4, in log odds.
        """
        for name, share in (("trained", trained), ("actual", actual)):
            if not 0.0 < share < 1.0:
                raise DataError(f"the {name} share of positives is {share}; allowed is more than 0 and less than 1")
        shift = math.log(actual / (1 - actual)) - math.log(trained / (1 - trained))
        return Calibration(slope=self.slope, intercept=self.intercept + shift)

    def apply(self, logit: ArrayLike) -> Floats:
        """Probabilities in the shape of the logits; infinite logits give 0 and 1."""
        return _sigmoid(self.slope * np.asarray(logit, dtype=np.float64) + self.intercept)

    def logit(self, probability: float) -> float:
        """The logit that `apply` maps to this probability: where a threshold lies on the network's own scale.

        Raises:
            DataError: a probability outside 0 to 1, both exclusive.
        """
        if not 0.0 < probability < 1.0:
            raise DataError(f"probability {probability} has no finite logit; allowed is more than 0 and less than 1")
        return (math.log(probability / (1 - probability)) - self.intercept) / self.slope


def _sigmoid(x: NDArray[np.float64]) -> Floats:
    small = np.exp(-np.abs(x))
    result: Floats = np.where(x >= 0, 1.0, small) / (1.0 + small)
    return result


def _newton(z: Floats, target: Floats, *, slope: float | None = None) -> tuple[float, float]:
    """Slope and intercept that minimise the cross-entropy; with a slope given, the intercept alone."""
    free = slope is None
    rate = float(target.mean())
    at = np.array([0.0 if slope is None else slope, math.log(rate / (1 - rate))])

    def loss(point: Floats) -> float:
        x = point[0] * z + point[1]
        return float(np.mean(np.logaddexp(0.0, x) - target * x))

    now = loss(at)
    for _ in range(100):
        p = _sigmoid(at[0] * z + at[1])
        error, bend = p - target, p * (1 - p) + 1e-12
        gradient = np.array([np.mean(error * z) if free else 0.0, np.mean(error)])
        if np.abs(gradient).max() < 1e-12:
            break
        cross = np.mean(bend * z) if free else 0.0
        hessian = np.array([[np.mean(bend * z * z) if free else 1.0, cross], [cross, np.mean(bend)]])
        step = np.linalg.solve(hessian + 1e-14 * np.eye(2), gradient)
        length = 1.0
        while length > 1e-10:
            trial = at - length * step
            value = loss(trial)
            if value <= now - 1e-4 * length * float(gradient @ step):
                break
            length /= 2
        else:
            break  # no step lowers the loss any more: as good as the arithmetic allows
        at, now = trial, value
    return float(at[0]), float(at[1])
