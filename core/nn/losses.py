"""Losses on logits for rare events. Shapes are free: prediction, target and weight are elementwise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Reduction = Literal["none", "mean", "sum"]


class FocalLoss(nn.Module):
    """Binary cross entropy in which easy examples count less: each term is scaled by (1 - p_correct) ** gamma.

    With gamma 0 and no alpha it is binary cross entropy. It rewards confident ranking, not calibration: scores trained
    with gamma > 0 are pulled towards 0.5 and need calibrating before they are read as probabilities.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, 2017 (arXiv:1708.02002). Deviations: the target may lie
        between 0 and 1 (the loss is linear in it, so smoothed labels work); `mean` divides by the sum of the weights,
        not by the number of elements; everything is computed in float32 whatever the autocast.
    """

    def __init__(self, gamma: float = 2.0, *, alpha: float | None = None, reduction: Reduction = "mean") -> None:
        """
        Args:
            gamma: focus, at least 0.
            alpha: share of the positive class in (0, 1); the negative class gets 1 - alpha. None weighs both by 1.
            reduction: `none` keeps the shape, `sum` adds, `mean` divides the sum by the total weight.

        Raises:
            ValueError: gamma is negative, alpha outside (0, 1), or the reduction unknown.
        """
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma is {gamma}; allowed is 0 or more")
        if alpha is not None and not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha}; allowed is a number between 0 and 1, or None")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; allowed are none, mean and sum")
        self.gamma, self.alpha, self.reduction = gamma, alpha, reduction

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """
        Args:
            logits: [...] any real number.
            target: [...] 0 to 1, like `logits`.
            weight: [...] at least 0, like `logits`; 0 leaves an element out (its logit must still be finite).

        Returns:
            [...] or a scalar, float32; the mean over no weight at all is 0.
        """
        logits, target = logits.float(), target.float()
        positive = functional.softplus(-logits)  # -log p
        negative = functional.softplus(logits)  # -log (1 - p)
        if self.gamma:  # (1 - p) ** gamma through its logarithm: exact for small p, and no infinite slope at gamma < 1
            positive, negative = (
                positive * torch.exp(-self.gamma * negative),
                negative * torch.exp(-self.gamma * positive),
            )
        if self.alpha is not None:
            positive, negative = self.alpha * positive, (1 - self.alpha) * negative
        loss = target * positive + (1 - target) * negative
        if weight is not None:
            loss = loss * weight
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        if weight is None:
            return loss.mean()
        total = weight.float().sum()
        return loss.sum() / torch.where(total > 0, total, torch.ones_like(total))

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}, reduction={self.reduction}"
