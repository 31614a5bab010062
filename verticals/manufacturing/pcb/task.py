"""What better means for a detector: classes by a focal loss, boxes by overlap and by the distributions of their sides.

B tile, A anchor, M drawn box, K class. Source: Feng et al. 2021 (TOOD) for the targets; Li et al. 2020 (generalized focal
loss) for the focal loss of soft targets and the distributions; Rezatofighi et al. 2019 and Zheng et al. 2020 for the overlap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Config
from core.contract import Step
from core.distributed.norm import num_ranks, sum_over_ranks
from verticals.manufacturing.pcb.assignment import assign
from verticals.manufacturing.pcb.model import Raw


class Batch(NamedTuple):
    """Tiles of one step."""

    picture: Tensor
    """[B, C, S, S] uint8, the golden template's channels last."""
    drawn: Tensor
    """[B, M, 4] corners in pixels of the tile; zeros fill up."""
    classes: Tensor
    """[B, M] int64; -1 fills up."""


class LossConfig(Config):
    """The loss."""

    classes: float = Field(1.0, ge=0)
    """Weight of the focal loss of classes."""
    overlap: float = Field(2.5, ge=0)
    """Weight of one minus the boxes' overlap."""
    sides: float = Field(0.5, ge=0)
    """Weight of the cross entropy of the sides' distances."""
    focus: float = Field(1.5, ge=0)
    """How much less easy anchors count; 0 is binary cross entropy."""


class DetectionTask(nn.Module):
    """Network and loss."""

    def __init__(self, model: nn.Module, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Batch) -> Step:
        raw: Raw = self.model(batch.picture)
        is_box = batch.classes >= 0
        classes = batch.classes.clamp(min=0)
        found = assign(raw.logits.sigmoid(), raw.boxes, raw.places, batch.drawn, classes, is_box)
        total = sum_over_ranks(found.weight.sum()).clamp(min=1.0) / num_ranks()
        target = torch.zeros_like(raw.logits)
        of_class = classes.gather(1, found.box) if classes.shape[1] else found.box
        target.scatter_(2, of_class[..., None], found.weight[..., None])
        apart = (raw.logits.sigmoid() - target).abs().pow(self.config.focus)
        class_loss = (F.binary_cross_entropy_with_logits(raw.logits, target, reduction="none") * apart).sum() / total
        has = found.weight > 0
        overlap_loss = side_loss = raw.boxes.sum() * 0
        if bool(has.any()):
            weight = found.weight[has]
            wanted = torch.gather(batch.drawn, 1, found.box[..., None].expand(-1, -1, 4))[has]
            overlap_loss = ((1 - complete_overlap(raw.boxes[has], wanted)) * weight).sum() / total
            places = raw.places.expand(len(has), -1, 3)[has]
            side_loss = (_side_loss(raw.sides[has], wanted, places) * weight).sum() / total
        loss = self.config.classes * class_loss + self.config.overlap * overlap_loss + self.config.sides * side_loss
        return Step(
            loss,
            {"class_loss": class_loss.detach(), "overlap_loss": overlap_loss.detach(), "side_loss": side_loss.detach()},
        )


def complete_overlap(one: Tensor, other: Tensor) -> Tensor:
    """[N] overlap, less the distance of middles and the difference in shape: complete IoU (Zheng et al. 2020).

    Args:
        one, other: [N, 4] corners; gradients go to `one`.
    """
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    size, wanted = (one[:, 2:] - one[:, :2]).clamp(min=1e-6), (other[:, 2:] - other[:, :2]).clamp(min=1e-6)
    overlap = shared / (size.prod(-1) + wanted.prod(-1) - shared).clamp(min=1e-9)
    around = torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])
    apart = (one[:, :2] + one[:, 2:] - other[:, :2] - other[:, 2:]).square().sum(-1) / 4
    shape = (4 / math.pi**2) * (torch.atan(size[:, 0] / size[:, 1]) - torch.atan(wanted[:, 0] / wanted[:, 1])).square()
    with torch.no_grad():
        trade = shape / (1 - overlap + shape).clamp(min=1e-9)
    return overlap - apart / around.square().sum(-1).clamp(min=1e-9) - trade * shape


def _side_loss(sides: Tensor, wanted: Tensor, places: Tensor) -> Tensor:
    """[N] cross entropy of the two distances next to the true one, the nearer weighing more; the mean of four sides."""
    stride, middle = places[:, 2:], places[:, :2]
    reach = torch.cat((middle - wanted[:, :2], wanted[:, 2:] - middle), dim=1) / stride
    reach = reach.clamp(0, sides.shape[-1] - 1 - 0.01)
    low = reach.long()
    share = reach - low
    logs = F.log_softmax(sides, dim=-1)
    under, over = logs.gather(-1, low[..., None])[..., 0], logs.gather(-1, low[..., None] + 1)[..., 0]
    return -((1 - share) * under + share * over).mean(-1)
