"""How one training step is spread over processes, applied from outside the model."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Strategy:
    """One process, or data parallel over the process group that `launch` started.

    Data parallel averages gradients over ranks; a Task divides by the normaliser of the *global* batch times
    `1 / world_size`, so that the average is the gradient of the global loss.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def wrap(self, task: nn.Module) -> nn.Module:
        """The module to call in a training step; `task` itself still holds the weights."""
        task.to(self.device)
        if self.world_size == 1:
            return task
        return DistributedDataParallel(task, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def mean(self, value: torch.Tensor) -> float:
        """The mean over ranks of a scalar."""
        value = value.detach().to(torch.float64 if self.device.type == "cpu" else torch.float32).clone()
        if self.world_size > 1:
            dist.all_reduce(value)
            value /= self.world_size
        return float(value)
