"""Batch norm and sums over the batch of all ranks, on any device: torch's SyncBatchNorm runs on GPUs only. B batch, C channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def num_ranks() -> int:
    """Of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over ranks of what no gradient flows through: a normaliser of the global batch."""
    if num_ranks() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


class _Sum(torch.autograd.Function):
    """The sum over ranks, through which gradients flow: each rank's loss depends on every rank's part."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return sum_over_ranks(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's batch norm; in training on several ranks the statistics are those of the global batch.

    Every rank has as many places as the others.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or num_ranks() == 1:
            return super().forward(input)
        world, axes = num_ranks(), (0, 2, 3)
        x = input.float()
        mean = _Sum.apply(x.mean(axes)) / world
        centred = x - mean[:, None, None]
        variance = _Sum.apply(centred.square().mean(axes)) / world
        with torch.no_grad():
            places = x.numel() // x.shape[1] * world
            momentum, seen = float(self.momentum or 0), variance * (places / max(1, places - 1))
            for kept, value in ((self.running_mean, mean), (self.running_var, seen)):
                assert kept is not None  # track_running_stats is on
                kept.lerp_(value, momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        output: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return output.to(input.dtype)


class _BatchNormAct2d(BatchNorm2d):
    """timm's batch norm with what it does to the result."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
        self.load_state_dict(norm.state_dict())
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(super().forward(input)))
        return result


def synced(network: nn.Module) -> nn.Module:
    """A network whose batch norms, timm's with an activation too, are over the batch of all ranks: in place, under the same names."""
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                norm.__class__ = BatchNorm2d
            elif isinstance(norm, nn.BatchNorm2d) and hasattr(norm, "act") and hasattr(norm, "drop"):
                setattr(parent, name, _BatchNormAct2d(norm))
    return network
