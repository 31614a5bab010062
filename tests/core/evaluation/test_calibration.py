"""Calibration against scikit-learn's logistic regression, and where there is little to fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from core.errors import DataError
from core.evaluation.calibration import SLOPE_FLOOR, Calibration
from core.evaluation.metrics import calibration_error
from core.evaluation.scored import Scored


def drawn(seed, n=20_000, *, slope=1.0, intercept=-4.0):
    """Logits and labels whose true map is known."""
    random = np.random.default_rng(seed)
    logit = random.normal(scale=2.0, size=n)
    return logit, (random.random(n) < 1 / (1 + np.exp(-slope * logit - intercept))).astype(int)


def test_the_planted_map_is_found():
    logit, label = drawn(0, 200_000, slope=0.7, intercept=-3.0)
    fitted = Calibration.platt(logit, label)
    assert fitted.slope == pytest.approx(0.7, abs=0.02)
    assert fitted.intercept == pytest.approx(-3.0, abs=0.05)


@pytest.mark.parametrize("shift", [0.0, 500.0])
def test_the_fit_equals_scikit_learn_on_the_same_smoothed_targets(shift):
    logit, label = drawn(1, 3000)
    positives, negatives = label.sum(), len(label) - label.sum()
    target = np.where(label, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(logit, 2)[:, None], np.repeat([1, 0], 3000), sample_weight=np.concatenate([target, 1 - target])
    )
    fitted = Calibration.platt(logit + shift, label)
    assert fitted.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
    assert fitted.intercept + fitted.slope * shift == pytest.approx(oracle.intercept_[0], rel=1e-4)


def test_it_repairs_what_a_focal_loss_bends():
    logit, label = drawn(2)
    held_logit, held_label = drawn(3)
    fitted = Calibration.platt(0.3 * logit + 1.5, label)
    bent = Scored(Calibration().apply(0.3 * held_logit + 1.5), held_label)
    straight = Scored(fitted.apply(0.3 * held_logit + 1.5), held_label)
    assert calibration_error(bent) > 0.3
    assert calibration_error(straight) < 0.01


def test_perfect_separation_stays_finite():
    logit = np.array([-3.0, -2.0, -1.0, 1.0, 2.0])
    fitted = Calibration.platt(logit, [0, 0, 0, 1, 1])
    probability = fitted.apply(logit)
    assert np.isfinite([fitted.slope, fitted.intercept]).all()
    assert (probability[:3] < 0.5).all()
    assert (probability[3:] > 0.5).all()


@given(st.lists(st.tuples(st.floats(-1e8, 1e8), st.integers(0, 1)), min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_labels_give_a_map_that_keeps_the_order(rows):
    logit, label = (np.array(column) for column in zip(*rows, strict=True))
    fitted = Calibration.platt(logit, label)
    probability = fitted.apply(np.sort(logit))
    assert np.isfinite(probability).all()
    assert (np.diff(probability) >= 0).all()


def test_a_score_that_points_the_wrong_way_is_flattened_not_reversed():
    logit, label = drawn(4)
    fitted = Calibration.platt(-logit, label)
    assert fitted.slope == SLOPE_FLOOR
    assert fitted.apply(-logit).mean() == pytest.approx(label.mean(), abs=1e-3)


def test_one_class_moves_the_intercept_only():
    fitted = Calibration.platt([0.0, 1.0, 2.0, 3.0], [0, 0, 0, 0])
    assert fitted.slope == 1.0
    assert fitted.apply([0.0, 1.0, 2.0, 3.0]).mean() == pytest.approx(1 / 6)


def test_the_prior_shift_undoes_class_balance():
    random = np.random.default_rng(5)
    label = (random.random(400_000) < 0.01).astype(int)
    x = random.normal(size=len(label)) + 1.5 * label
    logit_if_balanced = 1.5 * x - 1.5**2 / 2  # the exact log odds where both classes are equally frequent
    shifted = Calibration().with_prior(trained=0.5, actual=0.01)
    assert calibration_error(Scored(Calibration().apply(logit_if_balanced), label)) > 0.2
    assert calibration_error(Scored(shifted.apply(logit_if_balanced), label)) < 0.001
    assert shifted.with_prior(trained=0.01, actual=0.5).intercept == pytest.approx(0.0)


def test_the_record_is_json_and_refuses_what_would_reverse():
    fitted = Calibration(slope=1.25, intercept=-0.5)
    assert Calibration.model_validate_json(fitted.model_dump_json()) == fitted
    for wrong in ({"slope": 0.0}, {"slope": -1.0}, {"intercept": float("nan")}, {"gain": 2.0}):
        with pytest.raises(ValidationError):
            Calibration(**wrong)


def test_apply_has_an_inverse_and_holds_at_the_ends():
    fitted = Calibration(slope=2.0, intercept=-1.0)
    assert fitted.apply(fitted.logit(0.03)) == pytest.approx(0.03)
    assert fitted.apply([-np.inf, -1e5, 1e5, np.inf]).tolist() == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(DataError, match="no finite logit"):
        fitted.logit(1.0)


@pytest.mark.parametrize(
    ("logit", "label", "message"),
    [
        ([], [], "one logit and one label"),
        ([1.0], [0, 1], "one logit and one label"),
        ([1.0, np.inf], [0, 1], "1 of 2 logits are not finite"),
        ([1.0, 2.0], [0, -1], "labels 0 and 1"),
    ],
)
def test_input_is_checked_at_the_door(logit, label, message):
    with pytest.raises(DataError, match=message):
        Calibration.platt(logit, label)


def test_priors_are_shares():
    with pytest.raises(DataError, match="the actual share of positives is 0"):
        Calibration().with_prior(trained=0.5, actual=0)
