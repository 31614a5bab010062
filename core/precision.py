"""Numeric precision of training: which type the matrix work runs in, and loss scaling where the type needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from core.errors import ConfigError

Precision = Literal["float32", "bf16", "fp16"]


class PrecisionPolicy:
    """Autocast and gradient scaling for one precision on one device.

    Raises:
        ConfigError: fp16 on a CPU, where it is some fifty times slower than float32: use bf16.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError("precision fp16 on a CPU is far slower than float32; allowed here: float32, bf16")
        self.precision, self.device = precision, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)
