"""Reasons: which features of a cause are looked at, the most telling one among them, and many events as each alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.contract import Arrays, TensorSpec
from tests.verticals.finance.fraud.model import trained
from verticals.finance.fraud import explain
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
    logit = np.array([features @ weight], np.float64)
    occlusion = Occlusion(session, NAMES, np.zeros(len(NAMES), np.float32))
    ((effect,),) = occlusion(features[None], np.array([17_000.0]), {}, logit, 3)
    assert effect.place == planted
    assert session.rows <= 1 + MOST_MEMBERS


@pytest.mark.parametrize("variants", [explain.MOST_VARIANTS, 1])
def test_effects_of_many_events_are_those_of_each(monkeypatch: pytest.MonkeyPatch, variants: int) -> None:
    monkeypatch.setattr(explain, "MOST_VARIANTS", variants)
    predictor, rng = trained().predictor(), np.random.default_rng(0)
    occlusion, count = predictor.occlusion, 20
    features = rng.normal(size=(count, len(predictor.columns))).astype(np.float32)
    days = rng.uniform(17_000, 17_010, count)
    state = predictor.layout.zeros(count)
    for k in range(10):  # one card has never been seen, others for a while, some for longer than is remembered
        active = np.arange(count) > 2 * k
        given = {key: value[active] for key, value in state.items()}
        seen = rng.normal(size=(active.sum(), features.shape[1])).astype(np.float32)
        results = occlusion.session({"features": seen, "time": np.full(active.sum(), 16_990.0 + k), **given})
        for key, value in state.items():
            value[active] = results[f"new_{key}"]
    assert sorted(set(state["count"].tolist()))[::7] == [0, 7]
    logits = occlusion.session({"features": features, "time": days, **state})["logit"].astype(np.float64)
    many = occlusion(features, days, state, logits, 6)
    for row, effects in enumerate(many):
        met = {key: value[row : row + 1] for key, value in state.items()}
        one = slice(row, row + 1)
        (alone,) = occlusion(features[one], days[one], met, logits[one], 6)
        assert [effect[:2] for effect in effects] == [effect[:2] for effect in alone]
        np.testing.assert_allclose([e.effect for e in effects], [e.effect for e in alone], atol=1e-4)
        for effect in (effect for effect in effects if effect.cause in occlusion.causes):
            hidden, places = features[one].copy(), occlusion.causes[effect.cause]
            hidden[:, places] = occlusion.usual[places]
            (without,) = occlusion.session({"features": hidden, "time": days[one], **met})["logit"]
            assert effect.effect == pytest.approx(logits[row] - without, abs=1e-4)
    assert occlusion(features, days, state, logits, 0) == [[]] * count


def test_states_without_each_event_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    state = {
        "hidden": rng.normal(size=(5, 3)),
        "memory": rng.normal(size=(5, 4, 3)),
        "times": rng.normal(size=(5, 4)),
        "count": np.array([0, 4, 2, 0, 1]),
    }
    owners, variants = explain._without_each(state)
    assert owners.tolist() == [1, 1, 1, 1, 2, 2, 4]
    for row in (1, 2, 4):
        for forgotten, number in enumerate(np.flatnonzero(owners == row)):
            kept = np.delete(np.arange(4), 4 - state["count"][row] + forgotten)
            for key in ("memory", "times"):
                np.testing.assert_array_equal(variants[key][number, 1:], state[key][row, kept])
            assert variants["count"][number] == state["count"][row] - 1
            np.testing.assert_array_equal(variants["hidden"][number], state["hidden"][row])


def test_a_network_without_memory_has_no_past_events() -> None:
    class Sum:
        inputs = outputs = ()

        def __call__(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
            return {"logit": arrays["features"].sum(1)}

    occlusion = Occlusion(Sum(), ["amount", "night"], np.zeros(2, np.float32))  # type: ignore[arg-type]
    features = np.array([[1, 0], [0.5, 2]], np.float32)
    first, second = occlusion(features, np.zeros(2), {}, features.sum(1).astype(np.float64), 3)
    assert [(effect.place, effect.effect) for effect in first] == [(0, 1.0)]
    assert [(effect.place, effect.effect) for effect in second] == [(1, 2.0), (0, 0.5)]
