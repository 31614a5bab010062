"""What better means for CT segmentation: soft Dice and cross entropy, with organs that were not drawn left out. B sample, K class."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Config
from core.contract import Step
from verticals.medical.ct.loader import Batch

SMOOTH = 1e-5
"""Keeps the Dice of an organ that is neither drawn nor predicted finite."""


class LossConfig(Config):
    """The loss."""

    dice: float = Field(1.0, ge=0)
    """Weight of one minus the mean soft Dice of the organs."""
    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the mean cross entropy of the voxels."""


class SegmentationTask(nn.Module):
    """Network and loss; with deep supervision a coarser level weighs half as much as the next finer one.

    An organ that is *missing* in a case (nobody drew it) counts as background or itself, whichever the network says: its
    probability is added to the background's, and it has no Dice. An organ that is *absent* is drawn, with no voxel.

    Source: Milletari et al. 2016 and Isensee et al. 2021 for the sum; Shi et al. 2021 for the marginal cross entropy.
    """

    def __init__(self, model: nn.Module, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Batch) -> Step:
        answers = self.model(batch.image)
        levels: list[Tensor] = list(answers) if isinstance(answers, list | tuple) else [answers]
        weights = [0.5**level for level in range(len(levels))]
        dice = cross_entropy = torch.zeros((), device=batch.image.device)
        for weight, logits in zip(weights, levels, strict=True):
            target = _reduced(batch.target, logits)
            one, other = losses(logits, target, batch.known)
            dice = dice + weight / sum(weights) * one
            cross_entropy = cross_entropy + weight / sum(weights) * other
        loss = self.config.dice * dice + self.config.cross_entropy * cross_entropy
        return Step(loss, {"dice_loss": dice.detach(), "cross_entropy": cross_entropy.detach()})


def losses(logits: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """One minus the mean soft Dice of known organs, and the mean cross entropy.

    Args:
        logits: [B, K, X, Y, Z].
        target: [B, X, Y, Z] labels of known organs, 0 elsewhere.
        known: [B, K] whether the class was drawn; the background always was.
    """
    logs = F.log_softmax(logits.float(), dim=1)
    if not bool(known.all()):
        logs = _marginal(logs, known)
    index = target.long()[:, None]
    cross_entropy = -logs.gather(1, index).mean()
    probabilities = logs.exp()
    axes = (2, 3, 4)
    drawn = torch.zeros_like(probabilities).scatter_(1, index, 1.0)
    shared = (probabilities * drawn).sum(axes)[:, 1:]
    total = probabilities.sum(axes)[:, 1:] + drawn.sum(axes)[:, 1:]
    score = (2 * shared + SMOOTH) / (total + SMOOTH)  # [B, K - 1]
    counted = known[:, 1:].float()
    each = (score * counted).sum(1) / counted.sum(1).clamp(min=1)
    return 1 - each.mean(), cross_entropy


def _marginal(logs: Tensor, known: Tensor) -> Tensor:
    """Log probabilities with those of missing organs added to the background's."""
    merged = known.clone()
    merged[:, 0] = False  # True now: classes that stay by themselves
    apart = merged[:, :, None, None, None]
    background = logs.masked_fill(apart, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat((background, logs[:, 1:]), dim=1)


def _reduced(target: Tensor, logits: Tensor) -> Tensor:
    """The target at a coarser level's size: the label of the nearest voxel."""
    size = logits.shape[2:]
    if target.shape[1:] == size:
        return target
    return F.interpolate(target[:, None].float(), size=size, mode="nearest")[:, 0].to(target.dtype)
