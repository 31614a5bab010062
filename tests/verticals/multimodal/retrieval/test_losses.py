"""Contrastive losses against their formulas written out, and the balance of losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from verticals.multimodal.retrieval.losses import MOST_SCALE, ContrastiveLoss, DynamicLoss


def pairs(num_pictures: int, captions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities, and which captions are whose: `captions` for each picture, in a mixed order."""
    random = torch.Generator().manual_seed(seed)
    owner = torch.arange(num_pictures).repeat(captions)[torch.randperm(num_pictures * captions, generator=random)]
    similarity = torch.rand(num_pictures, len(owner), generator=random) * 2 - 1
    return similarity, torch.arange(num_pictures)[:, None] == owner[None]


@pytest.mark.parametrize(("num_pictures", "captions"), [(5, 1), (4, 3), (1, 2)])
def test_softmax_is_its_formula_with_no_caption_of_the_own_picture_as_negative(
    num_pictures: int, captions: int
) -> None:
    similarity, own = pairs(num_pictures, captions)
    scale, total = 1 / 0.1, 0.0
    for picture, caption in own.nonzero().tolist():
        one = math.exp(scale * similarity[picture, caption])
        others = sum(math.exp(scale * s) for s, mine in zip(similarity[picture], own[picture], strict=True) if not mine)
        theirs = sum(
            math.exp(scale * s) for s, mine in zip(similarity[:, caption], own[:, caption], strict=True) if not mine
        )
        total -= (math.log(one / (one + others)) + math.log(one / (one + theirs))) / 2
    loss = ContrastiveLoss(temperature=0.1)(similarity, own)
    assert float(loss.detach()) == pytest.approx(total / int(own.sum()), rel=1e-5, abs=1e-6)


def test_softmax_of_one_caption_each_is_cross_entropy_both_ways() -> None:
    similarity, own = pairs(6, 1)
    order = own.int().argmax(0).argsort()
    logits = similarity[:, order] / 0.07
    right = torch.arange(6)
    expected = (nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits.T, right)) / 2
    assert torch.allclose(ContrastiveLoss()(similarity, own), expected, atol=1e-5)


def test_sigmoid_is_its_formula() -> None:
    similarity, own = pairs(4, 2)
    loss = ContrastiveLoss("sigmoid", temperature=0.1)
    with torch.no_grad():
        loss.bias.fill_(-3.0)  # type: ignore[union-attr]
    total = 0.0
    for picture in range(4):
        for caption in range(8):
            sign = 1 if own[picture, caption] else -1
            total -= math.log(1 / (1 + math.exp(-sign * (10 * float(similarity[picture, caption]) - 3))))
    assert float(loss(similarity, own).detach()) == pytest.approx(total / 4, rel=1e-5)


def test_another_caption_of_the_picture_changes_nothing_by_its_likeness() -> None:
    similarity, own = pairs(3, 2)
    loss = ContrastiveLoss()
    changed = similarity.clone().requires_grad_()
    chosen = own.nonzero()
    first = chosen[chosen[:, 0] == 0]
    only = own.clone()
    only[0, first[1, 1]] = False  # what it would be as a negative
    assert not torch.allclose(loss(changed, only), loss(changed, own), rtol=1e-3)
    loss(changed, own).backward()
    assert changed.grad is not None
    assert (changed.grad[own] < 0).all()
    assert (changed.grad[~own] > 0).all()


def test_the_scale_has_a_bound() -> None:
    loss = ContrastiveLoss()
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    assert float(loss.scale.detach()) == MOST_SCALE


def test_a_kind_and_a_temperature_that_are_none() -> None:
    with pytest.raises(ValueError, match="kind is 'hinge'"):
        ContrastiveLoss("hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature is 0"):
        ContrastiveLoss(temperature=0.0)


def learned(balance: nn.Module, steps: int = 400) -> None:
    """Trains the balance alone, of a loss of 4 and one of 1."""
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        balance(torch.tensor([4.0, 1.0])).backward()
        optimizer.step()


def test_dynamic_loss_learns_weights_that_are_positive_and_smaller_for_larger_losses() -> None:
    balance = DynamicLoss(2)
    learned(balance)
    assert balance.weights.tolist() == pytest.approx([0.25, 1.0], rel=1e-2)  # its minimum: one over each loss


class SeedsLoss(nn.Module):
    """The formula of the article."""

    def __init__(self, base_weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(base_weights))

    def forward(self, losses: Tensor) -> Tensor:
        total = losses.sum()
        return sum((loss * weight / total for loss, weight in zip(losses, self.weights, strict=True)), torch.zeros(()))


def test_the_formula_of_the_seeds_turns_weights_negative() -> None:
    balance = SeedsLoss([1.0, 1.0])
    learned(balance)
    assert (balance.weights < 0).all()
    assert balance.weights[0] < balance.weights[1]
    losses = torch.tensor([4.0, 1.0], requires_grad=True)
    balance(losses).backward()
    assert losses.grad is not None
    assert losses.grad[0] < 0
