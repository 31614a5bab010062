"""The loss against MONAI's, and what it says of organs that nobody drew."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses.dice import DiceCELoss
from torch import Tensor, nn

from verticals.medical.ct.loader import Batch
from verticals.medical.ct.task import SMOOTH, LossConfig, SegmentationTask, losses

SHAPE = (6, 4, 8)


def drawn(batch: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, *SHAPE, generator=generator)
    return logits, torch.randint(0, classes, (batch, *SHAPE), generator=generator)


def known(batch: int, classes: int, *missing: int) -> Tensor:
    made = torch.ones(batch, classes, dtype=torch.bool)
    made[:, list(missing)] = False
    return made


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), classes=st.integers(2, 5), seed=st.integers(0, 99))
def test_with_every_organ_drawn_it_is_monai_s_dice_and_cross_entropy(batch: int, classes: int, seed: int) -> None:
    logits, target = drawn(batch, classes, seed)
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    dice, cross_entropy = losses(logits, target, known(batch, classes))
    torch.testing.assert_close(dice + cross_entropy, monai(logits, target[:, None]))


def test_the_weights_weigh_the_two_parts() -> None:
    logits, target = drawn(2, 3, 0)
    batch = Batch(logits, target, known(2, 3))
    dice, cross_entropy = losses(logits, target, batch.known)
    task = SegmentationTask(nn.Identity(), LossConfig(dice=0.25, cross_entropy=3.0))
    step = task(batch)
    torch.testing.assert_close(step.loss, 0.25 * dice + 3 * cross_entropy)
    assert set(step.logs) == {"dice_loss", "cross_entropy"}


def test_a_missing_organ_is_pushed_neither_way() -> None:
    """Where nobody drew organ 2, moving probability between it and the background changes nothing."""
    logits, target = drawn(2, 3, 1)
    target[target == 2] = 0
    logits.requires_grad_()
    sum(losses(logits, target, known(2, 3, 2))).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    background, organ, missing = logits.grad.unbind(1)
    share = logits.detach().softmax(1)
    # both get the gradient of their sum, each by its share of it: their ratio, which nobody knows, is left alone
    torch.testing.assert_close(missing * share[:, 0], background * share[:, 2], atol=1e-7, rtol=1e-4)
    assert organ.abs().max() > 0
    moved = logits.detach().clone()
    merged = torch.logsumexp(moved[:, [0, 2]], dim=1)
    moved[:, 0], moved[:, 2] = merged - 20, merged  # everything that was either is now the missing organ
    for one, other in zip(
        losses(moved, target, known(2, 3, 2)), losses(logits.detach(), target, known(2, 3, 2)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_absent_organ_is_no_missing_one() -> None:
    """Drawn without a voxel: every probability of it is too much."""
    logits, target = drawn(1, 3, 2)
    target[target == 2] = 0
    logits.requires_grad_()
    absent = losses(logits, target, known(1, 3))
    missing = losses(logits, target, known(1, 3, 2))
    assert absent[1] > missing[1]  # some of what is called organ 2 is wrong only where it was looked for
    (absent[0] + absent[1]).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2] > 0).all()  # less of organ 2 is better, at every voxel
    assert absent[0] > missing[0]


def test_each_case_counts_by_its_own_organs() -> None:
    logits, target = drawn(2, 3, 3)
    target[0][target[0] == 1] = 0
    mixed = torch.tensor([[True, False, True], [True, True, True]])
    dice, _ = losses(logits, target, mixed)
    apart = [losses(logits[k : k + 1], target[k : k + 1], mixed[k : k + 1])[0] for k in range(2)]
    torch.testing.assert_close(dice, (apart[0] + apart[1]) / 2)


def test_a_case_without_any_organ_drawn_has_only_background_to_learn() -> None:
    logits, target = drawn(1, 3, 4)
    target.zero_()
    logits.requires_grad_()
    dice, cross_entropy = losses(logits, target, torch.tensor([[True, False, False]]))
    assert float(dice.detach()) == 1.0  # no organ, no score
    torch.testing.assert_close(cross_entropy, torch.zeros(()), atol=1e-6, rtol=0)
    (dice + cross_entropy).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


class Levels(nn.Module):
    """Answers at full and at half size."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, image[:, :, ::2, ::2, ::2]]


def test_coarser_levels_weigh_half_as_much_against_the_nearest_labels() -> None:
    logits, target = drawn(2, 3, 5)
    batch = Batch(logits, target, known(2, 3))
    whole = SegmentationTask(Levels(), LossConfig())(batch)
    fine = sum(losses(logits, target, batch.known))
    coarse = sum(losses(logits[:, :, ::2, ::2, ::2], target[:, ::2, ::2, ::2], batch.known))
    torch.testing.assert_close(whole.loss, 2 / 3 * fine + 1 / 3 * coarse)


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_logits_of_any_size_give_a_finite_loss(value: float) -> None:
    logits, target = drawn(1, 3, 6)
    logits[:, 2] = value
    for given_known in (known(1, 3), known(1, 3, 2)):
        target_known = torch.where(target == 2, torch.zeros_like(target), target)
        leaf = logits.clone().requires_grad_()
        loss = sum(losses(leaf, target_known, given_known))
        assert torch.isfinite(loss)  # type: ignore[arg-type]
        loss.backward()  # type: ignore[union-attr]
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
