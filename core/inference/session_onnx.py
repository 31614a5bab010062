"""A network in ONNX Runtime, on the CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from core.contract import Arrays, TensorSpec
from core.errors import ArtifactError, ConfigError
from core.inference.session import Check, Precision, SessionConfig, kept


class OnnxSession:
    """Runs a `.onnx` file. ONNX Runtime computes in the types that the file holds and in no others."""

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
            ArtifactError: the file is missing or damaged, or its tensors are not those of the specs.
            ConfigError: a precision or device that ONNX Runtime does not have here.
        """
        config = config or SessionConfig()
        if precision == "bfloat16":
            raise ConfigError("ONNX Runtime has no bfloat16 on a CPU; allowed: float32, int8; OpenVINO has bfloat16")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = config.threads, 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=_providers(config.device))
        except Exception as error:  # its errors are many classes without a common one
            raise ArtifactError(f"{path} cannot be loaded by ONNX Runtime ({_line(error)}); export it again") from None
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        found = (
            {node.name for node in self._session.get_inputs()},
            {node.name for node in self._session.get_outputs()},
        )
        if found != ({spec.name for spec in inputs}, {spec.name for spec in outputs}):
            raise ArtifactError(f"{path} has other tensors ({found}) than its record says; export it again")
        self._names = [spec.name for spec in self.outputs]
        self._check = Check(self.inputs)

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        """
        Raises:
            ValueError: an array is missing or is not what its TensorSpec says.
        """
        self._check(arrays)
        if out is None:
            return dict(zip(self._names, self._session.run(self._names, arrays), strict=True))
        binding = self._session.io_binding()
        alive = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        for name, array in alive.items():
            binding.bind_cpu_input(name, array)
        for name in self._names:
            array = out[name]
            if not array.flags.c_contiguous:  # ONNX Runtime writes into plain memory only
                return kept(self(arrays), out)
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return out


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ConfigError(f"device {device!r}: this ONNX Runtime has no CUDA; install onnxruntime-gpu or use cpu")
    return [("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)}), "CPUExecutionProvider"]


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
