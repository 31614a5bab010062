"""Losses of pairs, and their balance. Captions of one picture are never each other's negatives.

Legend: B picture, M caption.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["softmax", "sigmoid"]
MOST_SCALE = 100.0
"""Similarities are multiplied by no more: beyond, CLIP's authors saw training become unstable."""


class ContrastiveLoss(nn.Module):
    """Own pairs are alike, others are not. The scale of similarities is learned, and stays behind at export.

    `softmax`: each own pair against the other pictures' captions of the batch, and against the captions' other pictures; a
    picture's further captions are on neither side. `sigmoid`: each pair is a yes or no of its own.

    Source:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arXiv:2103.00020), which has
        one caption a picture; Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arXiv:2303.15343), whose sum over
        pairs is divided by the number of pictures here too.
    """

    def __init__(self, kind: Kind = "softmax", *, temperature: float = 0.07) -> None:
        """
        Args:
            temperature: at the start; above 0.

        Raises:
            ValueError: the kind is unknown, or the temperature not positive.
        """
        super().__init__()
        if kind not in ("softmax", "sigmoid"):
            raise ValueError(f"kind is {kind!r}; allowed are softmax and sigmoid")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; allowed is a number above 0")
        self.kind = kind
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if kind == "sigmoid" else None

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied by."""
        return self.log_scale.exp().clamp(max=MOST_SCALE)

    def forward(self, similarity: Tensor, own: Tensor) -> Tensor:
        """
        Args:
            similarity: [B, M] cosines.
            own: [B, M] bool, whether the caption is the picture's; at least one is.

        Returns:
            Scalar, float32.
        """
        logits = similarity.float() * self.scale
        if self.bias is not None:
            signs = torch.where(own, 1.0, -1.0)
            return F.softplus(-signs * (logits + self.bias)).sum() / len(logits)
        others = logits.masked_fill(own, -math.inf)
        rows, columns = others.logsumexp(1, keepdim=True), others.logsumexp(0, keepdim=True)
        losses = F.softplus(rows - logits) + F.softplus(columns - logits)  # log(e^s + e^rest) - s
        return losses[own].mean() / 2


class DynamicLoss(nn.Module):
    """A sum of losses whose balance is learned: each is divided by its own uncertainty, and uncertainty costs.

    `sum(exp(-s) * loss + s)`, with a learned `s` for each: a weight is positive whatever is learned. The formula that the seeds give,
    `sum(w * loss / total)` with learned `w`, has no such bound: its minimum is at minus infinity, a weight of the larger loss falls
    below 0 and then rewards that loss for growing.

    Source:
        Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, 2018 (arXiv:1705.07115), the form for
        classification losses without its factor 1/2.
    """

    def __init__(self, num_losses: int) -> None:
        super().__init__()
        self.uncertainty = nn.Parameter(torch.zeros(num_losses))

    @property
    def weights(self) -> Tensor:
        """[losses], all positive."""
        return torch.exp(-self.uncertainty)

    def forward(self, losses: Tensor) -> Tensor:
        """[losses] -> scalar."""
        return (self.weights * losses + self.uncertainty).sum()
