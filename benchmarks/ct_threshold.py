"""A session that stands for a perfect network: it tells structures by their Hounsfield units, half way to their surface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.contract import Arrays, TensorSpec
from verticals.medical.ct.config import CtConfig, PredictConfig
from verticals.medical.ct.plan import Plan
from verticals.medical.ct.predictor import CtPredictor

LABELS = {"background": 0, "kidney_right": 1, "kidney_left": 2, "SpinalCord": 3}
HU = {"kidney_right": 200, "kidney_left": 500, "SpinalCord": 800}
"""In a body of 0; structures lie more than two of the network's voxels apart."""


def plan_of(spacing_mm: tuple[float, float, float], *, patch_size: tuple[int, int, int] = (24, 24, 24)) -> Plan:
    """A plan that hands Hounsfield units on as they are."""
    return Plan(
        spacing_mm=spacing_mm,
        patch_size=patch_size,
        strides=((1, 1, 1), (2, 2, 2)),
        widths=(1, 1),
        batch_size=2,
        hu_low=-1024,
        hu_high=1024,
        hu_mean=0,
        hu_std=1,
        labels=LABELS,
    )


def predictor_of(plan: Plan, *, predict: PredictConfig | None = None, **options: Any) -> CtPredictor:
    """The application's predictor over a `Thresholds`."""
    config = CtConfig(predict=predict or PredictConfig())
    return CtPredictor(
        config, {"plan": plan.model_dump(mode="json")}, Thresholds(plan), version="thresholds", **options
    )


class Thresholds:
    """A voxel belongs to the structure of the largest value within two voxels, where it has half of that value."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, plan: Plan) -> None:
        self.inputs = (TensorSpec("image", ("window", 1, *plan.patch_size)),)
        self.outputs = (TensorSpec("logits", ("window", plan.num_classes, *plan.patch_size)),)
        self.num_calls = 0

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        self.num_calls += 1
        image = arrays["image"][:, 0]
        largest = ndimage.maximum_filter(image, size=(1, 5, 5, 5))
        values = np.array([0, *HU.values()], np.float32)
        nearest = np.abs(largest[:, None] - values[None, :, None, None, None]).argmin(1)
        labels = np.where(image > 0.5 * largest, nearest, 0)
        logits = np.float32(10) * (labels[:, None] == np.arange(len(values))[None, :, None, None, None])
        return {"logits": logits.astype(np.float32)}
