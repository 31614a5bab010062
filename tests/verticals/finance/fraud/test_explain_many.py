"""Reasons of many events are those that each one gets alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.verticals.finance.fraud.model import trained
from verticals.finance.fraud import explain_many
from verticals.finance.fraud.explain import Occlusion, _without_each
from verticals.finance.fraud.explain_many import effects_of_many


@pytest.mark.parametrize("variants", [explain_many.MOST_VARIANTS, 1])
def test_effects_of_many_are_those_of_each(monkeypatch: pytest.MonkeyPatch, variants: int) -> None:
    monkeypatch.setattr(explain_many, "MOST_VARIANTS", variants)
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
    many = effects_of_many(occlusion, features, days, state, logits, 6)
    for row, effects in enumerate(many):
        met = {key: value[row : row + 1] for key, value in state.items()}
        alone = occlusion(features[row], days[row], met, logits[row], 6)
        assert [effect[:2] for effect in effects] == [effect[:2] for effect in alone]
        np.testing.assert_allclose([e.effect for e in effects], [e.effect for e in alone], atol=1e-4)
    assert effects_of_many(occlusion, features, days, state, logits, 0) == [[]] * count


def test_states_without_each_event_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    state = {
        "hidden": rng.normal(size=(5, 3)),
        "memory": rng.normal(size=(5, 4, 3)),
        "times": rng.normal(size=(5, 4)),
        "count": np.array([0, 4, 2, 0, 1]),
    }
    owners, variants = explain_many._without_each(state)
    assert owners.tolist() == [1, 1, 1, 1, 2, 2, 4]
    for row in (1, 2, 4):
        alone = _without_each({key: value[row : row + 1] for key, value in state.items()})
        assert alone is not None
        for key, value in alone.items():
            np.testing.assert_array_equal(variants[key][owners == row], value)


def test_a_network_without_memory_has_no_past_events() -> None:
    class Sum:
        inputs = outputs = ()

        def __call__(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
            return {"logit": arrays["features"].sum(1)}

    occlusion = Occlusion(Sum(), ["amount", "night"], np.zeros(2, np.float32))  # type: ignore[arg-type]
    features = np.array([[1, 0], [0.5, 2]], np.float32)
    first, second = effects_of_many(occlusion, features, np.zeros(2), {}, features.sum(1).astype(np.float64), 3)
    assert [(effect.place, effect.effect) for effect in first] == [(0, 1.0)]
    assert [(effect.place, effect.effect) for effect in second] == [(1, 2.0), (0, 0.5)]
