"""Int8 of model files: dynamic by ONNX Runtime, static with calibration by NNCF for ONNX and OpenVINO.

Dynamic measures the ranges of activations anew for every call and wants no samples: right for recurrent and small
networks. Static fits them once on calibration samples: right for convolutions. Training with int8 in mind is in
`core.compression.aware`; which layers to leave in float is in `core.compression.sensitivity`.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import nncf
import onnx
import openvino as ov
from nncf.telemetry.wrapper import telemetry
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from core.compression.calibration import calibration_rows
from core.errors import ArtifactError, ConfigError, DataError

__all__ = ["calibration_rows", "dynamic", "layers", "quantize_file", "static"]

Preset = Literal["mixed", "performance", "transformer"]
Samples = Sequence[Mapping[str, NDArray[Any]]]
"""One call each: arrays by the names of the model's inputs."""

DYNAMIC = ("MatMul", "Gemm", "LSTM", "Conv", "Attention", "Gather", "EmbedLayerNormalization")
"""Operators of ONNX that ONNX Runtime has a dynamic int8 form of."""
ONNX_STATIC = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OPENVINO_STATIC = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "MatMul",
    "LSTMSequence",
    "GRUSequence",
)

REFUSED = {
    **dict.fromkeys(
        (".pt", ".pth", ".bin", ".pkl"), "it is a pickle, and a pickle is never loaded: it runs what it holds"
    ),
    ".pt2": "torch.export's files may hold pickles, which are never loaded: they run what they hold",
    ".safetensors": "it holds weights and no architecture",
    ".engine": "a TensorRT engine is compiled already",
}
"""Kinds of file that are not quantized, and why."""

nncf.set_log_level(logging.ERROR)
vars(telemetry)["_impl"] = None  # NNCF reports its use to its maker over the network: not from here


def dynamic(source: Path, target: Path, *, keep: Sequence[str] = ()) -> Path:
    """Writes the dynamic int8 form of an ONNX file: weights by channel in int8, activations as they come.

    Args:
        source: `.onnx`.
        target: `.onnx`, another file; written whole or not at all.
        keep: names of layers that stay in float; see `layers`.

    Raises:
        ArtifactError: the source is missing or damaged.
        ConfigError: another kind of file, a layer in `keep` that is none, or nothing that can be quantized.
    """
    _check(source, target, (".onnx",))
    model = _onnx(source)
    names = [node.name for node in model.graph.node if node.op_type in DYNAMIC]
    _known(keep, names, source)
    add_pre_process_metadata(model)  # else it advises a step that torch's exporter has done
    with _whole(target) as part, quietly():
        quantize_dynamic(
            onnx.shape_inference.infer_shapes(model),
            part,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
        )
        kinds = {node.op_type for node in onnx.load(part).graph.node}
        if not any(
            "Integer" in kind or kind.startswith(("DynamicQuantize", "QAttention", "Dequantize")) for kind in kinds
        ):
            raise ConfigError(
                f"nothing in {source} has a dynamic int8 form but what is kept; such are {', '.join(DYNAMIC)} with weights"
            )
    return target


def static(source: Path, target: Path, samples: Samples, *, keep: Sequence[str] = (), preset: Preset = "mixed") -> Path:
    """Writes the static int8 form of an ONNX or OpenVINO file, its ranges fitted on samples.

    Args:
        source: `.onnx`, or `.xml` with its `.bin` beside it.
        target: of the same kind, another file; written whole or not at all.
        samples: what the model is called with; every class among them, see `calibration_rows`.
        keep: names of layers that stay in float; see `layers`. Sums and means beside them are int8 all the same.
        preset: `mixed` fits activations on both sides of zero by themselves, `performance` symmetrically; `transformer`
            is `mixed` with rules for attention.

    Raises:
        DataError: no samples, or arrays that are not the model's inputs.
        ArtifactError: the source is missing or damaged.
        ConfigError: another kind of file, a preset or layer that is none, or nothing that can be quantized.
    """
    _check(source, target, (".onnx", ".xml"))
    if preset not in ("mixed", "performance", "transformer"):
        raise ConfigError(f"preset is {preset!r}; allowed are mixed, performance and transformer")
    if not len(samples):
        raise DataError("no calibration samples; give some hundred calls' inputs, every class among them")
    model = _onnx(source) if source.suffix == ".onnx" else _openvino(source)
    wanted = _inputs(model)
    for place, sample in enumerate(samples):
        if sample.keys() != wanted:
            raise DataError(f"calibration sample {place} has {sorted(sample)}; {source.name} takes {sorted(wanted)}")
    names = _quantizable(model)
    _known(keep, names, source)
    quantized = (
        _quantized(model, [dict(sample) for sample in samples], keep, preset) if set(names) - set(keep) else None
    )
    if quantized is None or _num_ranges(model) == _num_ranges(quantized):
        raise ConfigError(f"nothing in {source} was quantized: no layer is left that is not kept in float")
    with _whole(target) as part:
        if isinstance(quantized, ov.Model):
            ov.save_model(quantized, part, compress_to_fp16=False)
        else:
            onnx.save(quantized, part)
    return target


def layers(source: Path) -> list[str]:
    """Names of the layers of an ONNX or OpenVINO file that static int8 can have, in order: what `keep` may name."""
    _check(source, None, (".onnx", ".xml"))
    return _quantizable(_onnx(source) if source.suffix == ".onnx" else _openvino(source))


def quantize_file(
    input_model: Path | str,
    output_dir: Path | str,
    method: Literal["dynamic", "static"] = "dynamic",
    bitwidth: int = 8,
    samples: Samples | None = None,
) -> Path:
    """Writes the int8 form of a model file, under its name, into a new directory.

    Args:
        input_model: `.onnx` or, for `static`, `.xml`.
        output_dir: made whole or not at all; must not be there yet.
        bitwidth: 8.
        samples: for `static`.

    Returns:
        The file.

    Raises:
        ConfigError: a kind of file, method or number of bits that is not quantized here, or a directory that is there.
        DataError: `static` without samples.
        ArtifactError: the file is missing or damaged.
    """
    source, folder = Path(input_model), Path(output_dir)
    if bitwidth != 8:
        raise ConfigError(f"bitwidth is {bitwidth}; allowed is 8: the runtimes here compute in no other")
    if method not in ("dynamic", "static"):
        raise ConfigError(f"method is {method!r}; allowed are dynamic and static")
    if method == "dynamic" and source.suffix == ".xml":
        raise ConfigError(
            "OpenVINO has no dynamic int8 of a file; give method='static' with samples, or the .onnx file"
        )
    _check(source, None, (".onnx", ".xml"))
    if folder.exists():
        raise ConfigError(f"{folder} is there already; give a directory that is not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        if method == "static":
            static(source, part / source.name, samples or ())
        else:
            dynamic(source, part / source.name)
        os.replace(part, folder)
    return folder / source.name


def _check(source: Path, target: Path | None, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError for a kind of file that is not allowed, ArtifactError for one that is missing."""
    if source.suffix in REFUSED:
        why = REFUSED[source.suffix]
        raise ConfigError(f"{source} is not quantized: {why}; export the model to {' or '.join(allowed)} first")
    if source.suffix not in allowed:
        raise ConfigError(f"{source} ends in {source.suffix or 'nothing'!r}; allowed here are {' and '.join(allowed)}")
    if target is not None and (target.suffix != source.suffix or target.resolve() == source.resolve()):
        raise ConfigError(
            f"the target {target} has to be another file that ends in {source.suffix}, as the source does"
        )
    if not source.is_file():
        raise ArtifactError(f"{source} is missing; export the model first")


def _onnx(source: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(source)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise several kinds for damage
        raise ArtifactError(f"{source} is no ONNX model ({type(error).__name__}); export it again") from error
    return model


def _openvino(source: Path) -> ov.Model:
    try:
        return ov.Core().read_model(source)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise ArtifactError(f"{source} is no OpenVINO model ({reason}); export it again") from error


def _inputs(model: Any) -> set[str]:
    if isinstance(model, ov.Model):
        return {port.get_any_name() for port in model.inputs}
    weights = {tensor.name for tensor in model.graph.initializer}
    return {port.name for port in model.graph.input} - weights


def _quantizable(model: Any) -> list[str]:
    if isinstance(model, ov.Model):
        return [one.get_friendly_name() for one in model.get_ordered_ops() if one.get_type_name() in OPENVINO_STATIC]
    return [node.name for node in model.graph.node if node.op_type in ONNX_STATIC]


def _num_ranges(model: Any) -> int:
    """How many tensors of the graph are int8."""
    if isinstance(model, ov.Model):
        return sum(one.get_type_name() == "FakeQuantize" for one in model.get_ops())
    return sum(node.op_type == "DequantizeLinear" for node in model.graph.node)


def _known(keep: Sequence[str], names: Sequence[str], source: Path) -> None:
    for name in keep:
        if name not in names:
            raise ConfigError(
                f"keep names {name!r}, which is no layer of {source.name} that could be int8; there are "
                f"{', '.join(names[:12]) or 'none'}{' ...' if len(names) > 12 else ''}"
            )


def _quantized(model: Any, samples: Sequence[dict[str, NDArray[Any]]], keep: Sequence[str], preset: Preset) -> Any:
    """The int8 form in memory; `model` stays as it is."""
    transformer = preset == "transformer"
    with quietly():
        return nncf.quantize(
            model.clone() if isinstance(model, ov.Model) else model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset("mixed" if transformer else preset),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=list(keep)),
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings of what NNCF's own libraries have deprecated, and without its progress on the standard output."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A place to write `target` to; it moves there, with what lies beside it, when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        yield Path(folder) / target.name
        for part in sorted(Path(folder).iterdir()):  # the .bin before the .xml that names it
            os.replace(part, target.parent / part.name)
