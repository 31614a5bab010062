"""The focal loss against binary cross entropy, a hand computation, and what it promises at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from core.nn.losses import FocalLoss

floats = st.floats(-30, 30, allow_nan=False, width=32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(floats, st.floats(0, 1, width=32)), min_size=1, max_size=20))
def test_without_focus_it_is_cross_entropy(rows: list[tuple[float, float]]) -> None:
    logits, target = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    ours = FocalLoss(0.0, reduction="none")(logits, target)
    peer = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(ours, peer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("logit", "target"), [(0.3, 1.0), (-2.0, 1.0), (1.7, 0.0), (-4.0, 0.0)])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_one_element_by_hand(logit: float, target: float, gamma: float, alpha: float | None) -> None:
    p = 1 / (1 + math.exp(-logit))
    right = p if target else 1 - p
    share = 1.0 if alpha is None else alpha if target else 1 - alpha
    expected = -share * (1 - right) ** gamma * math.log(right)
    ours = FocalLoss(gamma, alpha=alpha)(torch.tensor([logit]), torch.tensor([target]))
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        loss = FocalLoss(gamma, reduction="sum")(logits, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_weights_leave_elements_out() -> None:
    logits, target = torch.randn(10), (torch.rand(10) > 0.5).float()
    weight = torch.tensor([1.0] * 4 + [0.0] * 6)
    ours = FocalLoss(2.0)(logits, target, weight)
    assert float(ours) == pytest.approx(float(FocalLoss(2.0)(logits[:4], target[:4])), rel=1e-6)
    assert float(FocalLoss(2.0)(logits, target, torch.zeros(10))) == 0.0


def test_focus_shrinks_easy_examples_more_than_hard_ones() -> None:
    easy, hard = torch.tensor([4.0]), torch.tensor([-1.0])
    one = torch.ones(1)
    ratio = [float(FocalLoss(g)(easy, one) / FocalLoss(g)(hard, one)) for g in (0.0, 1.0, 2.0)]
    assert ratio == sorted(ratio, reverse=True)


@pytest.mark.parametrize("arguments", [{"gamma": -1.0}, {"alpha": 0.0}, {"alpha": 1.0}, {"reduction": "max"}])
def test_settings_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        FocalLoss(**arguments)  # type: ignore[arg-type]
