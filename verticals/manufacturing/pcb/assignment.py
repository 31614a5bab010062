"""Which anchors answer for which drawn box: task-aligned assignment. B tile, A anchor, M drawn box, K class.

Source: Feng et al. 2021, TOOD: those whose score and box together fit best. Deviation: a box that no anchor's middle lies in
(smaller than a stride) is answered for by the anchors nearest to its middle.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Assigned(NamedTuple):
    """What each anchor is to answer."""

    box: Tensor
    """[B, A] place of its box among the drawn ones; of no meaning where it has none."""
    weight: Tensor
    """[B, A] 0 to 1, how well it fits beside the best; the target of its class. 0 for background."""


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """[B, M, A] intersection over union of drawn boxes [B, M, 4] and the anchors' [B, A, 4]."""
    a, b = one[:, :, None], other[:, None]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    places: Tensor,
    drawn: Tensor,
    classes: Tensor,
    is_box: Tensor,
    *,
    most: int = 10,
    score_power: float = 0.5,
    overlap_power: float = 6.0,
) -> Assigned:
    """
    Args:
        scores: [B, A, K] probabilities.
        boxes: [B, A, 4] what the anchors answer.
        places: [A, 3] x, y, stride.
        drawn: [B, M, 4].
        classes: [B, M].
        is_box: [B, M] false where a row only fills the table.
        most: anchors of a box.
    """
    num_anchors, num_drawn = scores.shape[1], drawn.shape[1]
    if not num_drawn:
        nothing = scores.new_zeros(scores.shape[:2])
        return Assigned(nothing.long(), nothing)
    fit = overlaps(drawn, boxes)  # [B, M, A]
    of_class = torch.gather(scores.transpose(1, 2), 1, classes[..., None].expand(-1, -1, num_anchors))
    metric = of_class.pow(score_power) * fit.pow(overlap_power)
    allowed = _candidates(places, drawn) & is_box[..., None]
    metric = torch.where(allowed, metric, metric.new_full((), -1.0))
    count = min(most, num_anchors)
    best = metric.topk(count, dim=-1)
    taken = torch.zeros_like(allowed).scatter_(-1, best.indices, best.values >= 0)
    contested = taken.sum(1) > 1  # [B, A]: the box that it fits best
    first = torch.where(taken, fit, fit.new_full((), -1.0)).argmax(1)
    only = torch.zeros_like(taken).scatter_(1, first[:, None], True)
    taken = torch.where(contested[:, None], only & taken, taken)
    metric = torch.where(taken, metric, metric.new_zeros(()))
    best_metric = metric.amax(-1, keepdim=True)
    best_fit = torch.where(taken, fit, fit.new_zeros(())).amax(-1, keepdim=True)
    weight = (metric / best_metric.clamp(min=1e-9) * best_fit).amax(1)
    return Assigned(taken.to(torch.uint8).argmax(1), weight)


def _candidates(places: Tensor, drawn: Tensor) -> Tensor:
    """[B, M, A] anchors whose middle lies in the box; where there is none, those within a stride of the box's middle."""
    x, y, stride = places.unbind(-1)
    x1, y1, x2, y2 = (side[..., None] for side in drawn.unbind(-1))
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    near = ((x - (x1 + x2) / 2).abs() < stride) & ((y - (y1 + y2) / 2).abs() < stride)
    near &= stride == stride.min()
    return torch.where(inside.any(-1, keepdim=True), inside, near)
