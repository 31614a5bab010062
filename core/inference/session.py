"""Runs a network: named arrays in, named arrays out. Here is torch; other runtimes keep the same call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from core.contract import Arrays, TensorSpec


class Network(Protocol):
    """A network that says which tensors it takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]: ...


class TorchSession:
    """A network in eager torch, for inference only."""

    def __init__(self, model: torch.nn.Module, *, device: torch.device | None = None) -> None:
        """
        Args:
            model: a `Network` that is a module; it is put into evaluation mode and onto `device` (default: CPU).
        """
        self._device = device or torch.device("cpu")
        self._model = cast(Network, model.to(self._device).eval())
        self.inputs, self.outputs = self._model.inputs, self._model.outputs

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """
        Raises:
            ValueError: an array is missing or is not what its TensorSpec says.
        """
        missing = [spec.name for spec in self.inputs if spec.name not in arrays]
        if missing or len(arrays) != len(self.inputs):
            raise ValueError(f"given arrays {sorted(arrays)}; needed are {[spec.name for spec in self.inputs]}")
        for spec in self.inputs:
            spec.check(arrays[spec.name])
        with torch.inference_mode():
            tensors = [
                torch.from_numpy(np.ascontiguousarray(arrays[spec.name])).to(self._device) for spec in self.inputs
            ]
            results = self._model(*tensors)
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}
