"""Runs a network: named arrays in, named arrays out. Here is torch; ONNX Runtime, OpenVINO and TensorRT keep the same call.

Every session checks its arrays against its TensorSpecs, may be called by several threads, and writes into `out` where
that is given. `stream` keeps several calls under way at once: tiles of a board, windows of a volume.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from core.config import Config
from core.contract import Arrays, Session, TensorSpec

Precision = Literal["float32", "bfloat16", "float16", "int8", "int8-bfloat16"]
"""What a network computes in. Of a quantized one, `int8` runs the rest in float32, `int8-bfloat16` in bfloat16."""


class SessionConfig(Config):
    """How a session runs. What it computes, and how precisely, is the artifact's matter and part of its parity report."""

    threads: int = Field(1, ge=1)
    """Threads of one call. With more, runtimes on shared cores are often slower than with one."""
    streams: int = Field(1, ge=1)
    """Calls under way at the same time; each has buffers of its own."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""


class Check:
    """Arrays against TensorSpecs, quickly where they fit."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._plain = [
            (spec, np.dtype(spec.dtype), spec.shape[1:], isinstance((*spec.shape, 0)[0], str)) for spec in specs
        ]
        self._free = [
            (spec.name, place, axis) for spec in specs for place, axis in enumerate(spec.shape) if isinstance(axis, str)
        ]

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """
        Raises:
            ValueError: an array is missing, is not what its TensorSpec says, or two differ in an axis of one name.
        """
        if len(arrays) != len(self._specs) or any(spec.name not in arrays for spec in self._specs):
            raise ValueError(f"given arrays {sorted(arrays)}; needed are {[spec.name for spec in self._specs]}")
        for spec, dtype, rest, free in self._plain:
            array = arrays[spec.name]
            if not free or array.dtype != dtype or array.ndim == 0 or array.shape[1:] != rest:
                spec.check(array)  # the whole rule, wherever the short one does not say yes
        lengths: dict[str, int] = {}
        for name, place, axis in self._free:
            length = arrays[name].shape[place]
            if lengths.setdefault(axis, length) != length:
                raise ValueError(
                    f"{name} is {length} long along {axis}, others are {lengths[axis]}; axis {axis} has to be of one length"
                )


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or a copy where a runtime could not take its memory as it stands. (`np.ascontiguousarray` would make a
    row of a number, and torch takes no memory that is read-only.)"""
    return array if array.flags.carray else array.copy(order="C")


def kept(results: Arrays, out: Arrays | None) -> Arrays:
    """The results, written into `out` where that is given.

    Raises:
        ValueError: an array of `out` does not have its result's shape or type.
    """
    if out is None:
        return results
    for name, result in results.items():
        if name not in out or out[name].shape != result.shape or out[name].dtype != result.dtype:
            raise ValueError(f"out.{name} has to be {result.dtype}{list(result.shape)}")
    for name, result in results.items():
        np.copyto(out[name], result)
    return out


def stream(session: Session, batches: Iterable[Mapping[str, NDArray[Any]]], *, streams: int) -> Iterator[Arrays]:
    """The session's answers in order, with up to `streams` calls under way at once and as many answers waiting."""
    if streams == 1:
        yield from map(session, batches)
        return
    with ThreadPoolExecutor(streams, thread_name_prefix="stream") as pool:
        waiting: deque[Future[Arrays]] = deque()
        try:
            for arrays in batches:
                waiting.append(pool.submit(session, arrays))
                if len(waiting) > streams:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for late in waiting:
                late.cancel()


class Network(Protocol):
    """A network that says which tensors it takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]: ...


class TorchSession:
    """A network in torch, for inference only.

    A network may have a method `one`, from named arrays of one row to named arrays: on the CPU it answers single rows.
    """

    def __init__(
        self, model: torch.nn.Module, *, device: torch.device | None = None, precision: Precision = "float32"
    ) -> None:
        """
        Args:
            model: a `Network` that is a module; it is put into evaluation mode and onto `device` (default: CPU).
            precision: `bfloat16` and `float16` run under autocast.
        """
        self._device = device or torch.device("cpu")
        self._model = cast(Network, model.eval().to(self._device))
        self.inputs, self.outputs = self._model.inputs, self._model.outputs
        self._check = Check(self.inputs)
        self._lower = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
        self._on_cpu = self._device.type == "cpu"
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._one: Callable[[Mapping[str, NDArray[Any]]], Arrays] | None = (
            getattr(self._model, "one", None) if self._on_cpu and not self._lower else None
        )

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        """
        Raises:
            ValueError: an array is missing or is not what its TensorSpec says.
        """
        self._check(arrays)
        if self._one is not None and all(array.shape[:1] == (1,) for array in arrays.values()):
            return kept(self._one(arrays), out)
        tensors = [torch.from_numpy(plain(arrays[spec.name])) for spec in self.inputs]
        if not self._on_cpu:
            tensors = [tensor.to(self._device) for tensor in tensors]
        lower: AbstractContextManager[object] = (
            torch.autocast(self._device.type, dtype=self._lower) if self._lower else nullcontext()
        )
        with torch.inference_mode(), lower:
            answer = self._model(*tensors)
        results = (answer,) if isinstance(answer, torch.Tensor) else answer
        if self._lower:
            results = tuple(result.float() if result.dtype == self._lower else result for result in results)
        if not self._on_cpu:
            results = tuple(result.detach().cpu() for result in results)
        else:  # what a network passes on as it is would else be the caller's own array, or a weight
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
            results = tuple(
                result.detach().clone()
                if (place := result.untyped_storage().data_ptr()) in given or place in self._weights
                else result
                for result in results
            )
        return kept({spec.name: result.numpy() for spec, result in zip(self.outputs, results, strict=True)}, out)
