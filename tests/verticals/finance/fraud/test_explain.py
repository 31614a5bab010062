"""Reasons: which features of a cause are looked at, and that the most telling one is found among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, TensorSpec
from verticals.finance.fraud.explain import MOST_MEMBERS, Occlusion

WINDOWS = [f"{days}d" for days in range(1, 35)]
NAMES = [f"customer_amount_{statistic}_{window}" for statistic in ("mean", "max", "std") for window in WINDOWS]


class Weighted:
    """A session whose logit is a weighted sum of the features; it remembers nothing."""

    inputs = (TensorSpec("features", ("B", len(NAMES))), TensorSpec("time", ("B",), "float64"))
    outputs = (TensorSpec("logit", ("B",)),)

    def __init__(self, weight: NDArray[np.float32]) -> None:
        self.weight, self.rows = weight, 0

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        self.rows += len(arrays["features"])
        return {"logit": arrays["features"] @ self.weight}


def test_every_family_is_looked_at_before_any_is_looked_at_twice() -> None:
    occlusion = Occlusion(Weighted(np.zeros(len(NAMES), np.float32)), NAMES, np.zeros(len(NAMES), np.float32))
    off = np.random.default_rng(0).random(len(NAMES)).astype(np.float32)
    off[:34] += 10  # one family is far off in all its windows
    found = occlusion.candidates(next(iter(occlusion.causes)), off)
    assert len(set(found.tolist())) == len(found) == MOST_MEMBERS
    families = found // 34
    for first in range(0, MOST_MEMBERS - 2, 3):
        assert sorted(families[first : first + 3].tolist()) == [0, 1, 2]
        for family, place in zip(families[first : first + 3], found[first : first + 3], strict=True):
            rank = (off[family * 34 : (family + 1) * 34] > off[place]).sum()
            assert rank == first // 3


def test_the_most_telling_feature_is_found_in_few_rows() -> None:
    weight = np.zeros(len(NAMES), np.float32)
    planted = 34 + 20
    weight[planted] = 3.0
    session = Weighted(weight)
    features = np.random.default_rng(1).normal(size=len(NAMES)).astype(np.float32)
    features[planted] = 4.0  # its family's furthest, though many of other families are as far off
    features[68:] += 5
    logit = float(features @ weight)
    (effect,) = Occlusion(session, NAMES, np.zeros(len(NAMES), np.float32))(features, 17_000.0, {}, logit, 3)
    assert effect.place == planted
    assert session.rows <= 1 + MOST_MEMBERS
