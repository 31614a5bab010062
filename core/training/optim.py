"""Optimizer, schedule and the averaged weights, from one Config."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from core.config import Config
from core.errors import ConfigError

NARROW = 16
"""Channels in or out that a kernel has at least for Muon."""


class OptimConfig(Config):
    """Optimizer, warm-up and a schedule over the whole training."""

    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """`muon` gives matrices and kernels steps of equal length in every direction, as long as AdamW's, which the rest gets: fewer
    steps, each dearer (five products of a matrix with itself). `sgd` is with Nesterov's momentum of 0.99, as nnU-Net trains."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(1e-2, ge=0)
    """Decay of the weights (decoupled but with sgd), for tensors of two and more axes only (biases and norms are left alone)."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of all steps over which the rate rises from zero."""
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    """How the rate goes on after the warm-up; `cosine` ends at zero, so does `polynomial`, with a power of 0.9."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay per step of the exponential average of the weights that ships; 0 ships the last weights."""


def optimizer_of(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters, in groups: decayed and not; with muon first and last layers, too narrow to
    have directions, by themselves.

    Source: Jordan et al. 2024 for Muon, Liu et al. 2025 (arXiv 2502.16982) for steps as long as AdamW's; timm's code.

    Raises:
        ConfigError: timm is not installed.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat, kernels = [p for p in trainable if p.ndim < 2], [p for p in trainable if p.ndim >= 2]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]
    if config.optimizer == "muon":
        try:
            from timm.optim.muon import Muon
        except ImportError as error:
            raise ConfigError(
                "fit.optim.optimizer is muon, which timm has, and timm is not installed: pip install timm, or take adamw"
            ) from error
        wide: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for kernel in kernels:
            wide[min(kernel.shape[:2]) >= NARROW].append(kernel)
        groups = [
            {"params": wide[True], "weight_decay": config.weight_decay, "use_fallback": False},
            {"params": wide[False], "weight_decay": config.weight_decay, "use_fallback": True},
            {"params": flat, "weight_decay": 0.0, "use_fallback": True},
        ]
        muon: torch.optim.Optimizer = Muon([group for group in groups if group["params"]], lr=config.lr, nesterov=True)
        return muon
    filled = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(filled, lr=config.lr, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(filled, lr=config.lr)


def rate(config: OptimConfig, step: int, total: int) -> float:
    """Learning rate of a step, counted from 0, out of `total`."""
    warm = config.warmup * total
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - warm) / max(1.0, total - warm))
    if config.schedule == "polynomial":
        return config.lr * float((1 - done) ** 0.9)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


class WeightAverage:
    """Exponential moving average of a module's weights (Polyak averaging); early steps are averaged faster."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.shadow = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                self.shadow[name].lerp_(tensor, 1 - decay)
            else:
                self.shadow[name].copy_(tensor)
