"""Runs a network: named arrays in, named arrays out. Here is torch; other runtimes keep the same call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """A network in eager torch, for inference only.

    A network may have a method `one`, from named arrays of one row to named arrays: on the CPU it answers single rows.
    """

    def __init__(self, model: torch.nn.Module, *, device: torch.device | None = None) -> None:
        """
        Args:
            model: a `Network` that is a module; it is put into evaluation mode and onto `device` (default: CPU).
        """
        self._device = device or torch.device("cpu")
        self._model = cast(Network, model.to(self._device).eval())
        self.inputs, self.outputs = self._model.inputs, self._model.outputs
        self._plain = [(spec, np.dtype(spec.dtype), spec.shape[1:]) for spec in self.inputs]
        self._on_cpu = self._device.type == "cpu"
        self._one: Callable[[Mapping[str, NDArray[Any]]], Arrays] | None = (
            getattr(self._model, "one", None) if self._on_cpu else None
        )

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """
        Raises:
            ValueError: an array is missing or is not what its TensorSpec says.
        """
        if len(arrays) != len(self.inputs) or any(spec.name not in arrays for spec in self.inputs):
            raise ValueError(f"given arrays {sorted(arrays)}; needed are {[spec.name for spec in self.inputs]}")
        alone = self._one is not None
        for spec, dtype, rest in self._plain:
            array = arrays[spec.name]
            if array.dtype != dtype or array.ndim == 0 or array.shape[1:] != rest or type(spec.shape[0]) is int:
                spec.check(array)  # the whole rule, wherever the short one does not say yes
            alone = alone and len(array) == 1
        if alone and self._one is not None:
            return self._one(arrays)
        tensors = [torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in self.inputs]
        if not self._on_cpu:
            tensors = [tensor.to(self._device) for tensor in tensors]
        with torch.inference_mode():
            results = self._model(*tensors)
        if not self._on_cpu:
            results = tuple(result.cpu() for result in results)
        return {spec.name: result.numpy() for spec, result in zip(self.outputs, results, strict=True)}
