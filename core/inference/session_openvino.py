"""A network in OpenVINO, on the CPU."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import openvino as ov
from numpy.typing import NDArray

from core.contract import Arrays, TensorSpec
from core.errors import ArtifactError, ConfigError
from core.inference.session import Check, Precision, SessionConfig, kept, plain

HINTS = {"float32": "f32", "int8": "f32", "bfloat16": "bf16", "int8-bfloat16": "bf16"}
"""OpenVINO would choose bfloat16 by itself where the processor has it: here it is asked for or does not happen."""


@cache
def runtime() -> ov.Core:
    """The process's one Core. Each Core that is made gives the thread a stack for signals, and those that end in the order in
    which they began leave it one that is gone: the next signal, a Ctrl-C or a service's end, would be a segmentation fault.
    """
    return ov.Core()


class OpenVinoSession:
    """Runs an `.xml` with its `.bin`. Each of its streams has a request, whose buffers are used again and again."""

    def __init__(
        self,
        path: Path,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        precision: Precision = "float32",
        config: SessionConfig | None = None,
    ) -> None:
        """
        Raises:
            ArtifactError: the files are missing or damaged, or their tensors are not those of the specs.
            ConfigError: a precision or device that OpenVINO is not used with here.
        """
        config = config or SessionConfig()
        if precision not in HINTS:
            raise ConfigError(
                f"OpenVINO computes in {', '.join(HINTS)} here, not in {precision}: fp16 on a CPU is slow"
            )
        if config.device != "cpu":
            raise ConfigError(f"device {config.device!r}: OpenVINO runs on the CPU here; use cpu")
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": config.streams,
            "INFERENCE_NUM_THREADS": config.threads * config.streams,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = runtime().compile_model(runtime().read_model(path), "CPU", settings)
        except RuntimeError as error:
            raise ArtifactError(f"{path} cannot be loaded by OpenVINO ({_line(error)}); export it again") from None
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != HINTS[precision]:
            raise ConfigError(f"this processor has no {precision}: OpenVINO would compute in {used}; export in float32")
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        found = [{name for port in ports for name in port.get_names()} for ports in (compiled.inputs, compiled.outputs)]
        for specs, names in zip((inputs, outputs), found, strict=True):
            if lacking := [spec.name for spec in specs if spec.name not in names]:
                raise ArtifactError(
                    f"{path} has no tensor {', '.join(lacking)}; it is of another model: export it again"
                )
        self._check = Check(self.inputs)
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(config.streams):
            self._idle.put(compiled.create_infer_request())

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        """Waits for an idle stream where all are busy.

        Raises:
            ValueError: an array is missing or is not what its TensorSpec says.
        """
        self._check(arrays)
        request = self._idle.get()
        try:
            request.infer({name: plain(array) for name, array in arrays.items()}, share_inputs=True)
            results = {spec.name: request.get_tensor(spec.name).data for spec in self.outputs}
            return kept(results, out) if out is not None else {name: array.copy() for name, array in results.items()}
        finally:
            self._idle.put(request)


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__
