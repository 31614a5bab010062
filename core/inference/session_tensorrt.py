"""A network in TensorRT, on an NVIDIA GPU. An engine belongs to the GPU and to the TensorRT that it was built with."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorrt as trt
import torch
from numpy.typing import NDArray

from core.contract import Arrays, TensorSpec
from core.errors import ArtifactError, ConfigError
from core.inference.session import Check, Precision, SessionConfig, kept, plain

LOGGER = trt.Logger(trt.Logger.ERROR)


def build_engine(
    source: Path,
    target: Path,
    *,
    inputs: Sequence[TensorSpec],
    precision: Precision,
    sizes: Mapping[str, tuple[int, int, int]],
) -> None:
    """An engine for this GPU from an ONNX file.

    Args:
        sizes: smallest, usual and largest size of every free axis, by its name.

    Raises:
        ConfigError: a precision that is not built here, or a free axis without sizes.
        ArtifactError: TensorRT refuses the network; its words are given.
    """
    if precision not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"TensorRT engines are built in float32, float16 or bfloat16 here, not in {precision}")
    if lacking := sorted({axis for spec in inputs for axis in spec.shape if isinstance(axis, str)} - set(sizes)):
        raise ConfigError(f"TensorRT needs the sizes of axis {', '.join(lacking)}: give the network `ranges`")
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse_from_file(str(source)):
        faults = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
        raise ArtifactError(f"TensorRT cannot read {source.name}: {faults}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if precision != "float32":
        config.set_flag(trt.BuilderFlag.FP16 if precision == "float16" else trt.BuilderFlag.BF16)
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        axes = next(spec.shape for spec in inputs if spec.name == tensor.name)
        bounds = [[sizes[axis][k] if isinstance(axis, str) else axis for axis in axes] for k in range(3)]
        profile.set_shape(tensor.name, *bounds)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ArtifactError(f"TensorRT cannot build an engine from {source.name}; its log says why")
    target.write_bytes(engine)


class TensorRtSession:
    """Runs an `.engine`. Calls go one after the other on a CUDA stream of their own."""

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
            ArtifactError: the engine is damaged, or of another GPU or TensorRT.
        """
        device = (config or SessionConfig()).device
        self._device = torch.device("cuda" if device == "cpu" else device)
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; export it again")
        engine = trt.Runtime(LOGGER).deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ArtifactError(
                f"{path} is not an engine of this GPU and this TensorRT ({trt.__version__}); build it here"
            )
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._context, self._stream = engine.create_execution_context(), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._check, self._turn = Check(self.inputs), threading.Lock()

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        """
        Raises:
            ValueError: an array is missing or is not what its TensorSpec says.
        """
        self._check(arrays)
        with self._turn, torch.cuda.stream(self._stream):
            given = {name: torch.from_numpy(plain(a)).to(self._device) for name, a in arrays.items()}
            for name, tensor in given.items():
                if not self._context.set_input_shape(name, tuple(tensor.shape)):
                    raise ValueError(f"{name} is {list(tensor.shape)}: the engine was not built for this size")
                self._context.set_tensor_address(name, tensor.data_ptr())
            made = {
                spec.name: torch.empty(
                    tuple(self._context.get_tensor_shape(spec.name)),
                    dtype=getattr(torch, spec.dtype),
                    device=self._device,
                )
                for spec in self.outputs
            }
            for name, tensor in made.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("TensorRT could not run the engine; its log says why")
            self._stream.synchronize()
            return kept({name: tensor.cpu().numpy() for name, tensor in made.items()}, out)
