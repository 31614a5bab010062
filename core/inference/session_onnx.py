"""A network in ONNX Runtime, on the CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from core.contract import Arrays, TensorSpec
from core.device import pick_device
from core.errors import ArtifactError, ConfigError
from core.inference.session import Check, Precision, SessionConfig, kept, plain


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
        if precision in ("bfloat16", "int8-bfloat16"):
            raise ConfigError("ONNX Runtime has no bfloat16 on a CPU; allowed: float32, int8; OpenVINO has bfloat16")
        providers = _providers(config.device)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = config.threads, 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its errors are many classes without a common one
            raise ArtifactError(f"{path} cannot be loaded by ONNX Runtime ({_line(error)}); export it again") from None
        if (used := self._session.get_providers()[0]) != (wanted := _name(providers[0])):
            raise ConfigError(f"device {config.device!r}: {wanted} cannot start here, ONNX Runtime would use {used}")
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
        if out is None or not self._can_write(arrays, out):
            return kept(dict(zip(self._names, self._session.run(self._names, arrays), strict=True)), out)
        binding = self._session.io_binding()
        alive = {name: plain(array) for name, array in arrays.items()}
        for name, array in alive.items():
            binding.bind_cpu_input(name, array)
        for name in self._names:
            array = out[name]
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return out

    def _can_write(self, arrays: Mapping[str, NDArray[Any]], out: Arrays) -> bool:
        """Whether `out` is plain memory of the very sizes, none of it an input's: else results are copied into it."""
        lengths = {
            axis: length
            for spec in self.inputs
            for axis, length in zip(spec.shape, arrays[spec.name].shape, strict=True)
        }
        for spec in self.outputs:
            array = out.get(spec.name)
            if (
                array is None
                or not array.flags.carray
                or array.dtype != np.dtype(spec.dtype)
                or array.shape != tuple(lengths.get(axis, axis) for axis in spec.shape)
                or any(np.may_share_memory(array, given) for given in arrays.values())
            ):
                return False
        return True


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ConfigError(f"device {device!r}: this ONNX Runtime has no CUDA; install onnxruntime-gpu or use cpu")
    settings = {"device_id": pick_device(device).index or 0, "use_tf32": 0}  # float32 means float32
    return [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]


def _name(provider: Any) -> str:
    return provider if isinstance(provider, str) else str(provider[0])


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
