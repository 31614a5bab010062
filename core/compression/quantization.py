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
import numpy as np
import onnx
import onnxruntime
import openvino as ov
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from core.compression.calibration import calibration_rows
from core.errors import ArtifactError, ConfigError, DataError

__all__ = ["calibration_rows", "dynamic", "layers", "quantize_file", "run", "static"]

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

REST = "*"
"""In `keep`: all operators that are no layers (sums, products, means, activations), which are int8 too where that is faster."""

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
        keep: names of layers that stay in float; see `layers`; `*` for all that is no layer.
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
    model = _apart(_onnx(source)) if source.suffix == ".onnx" else _openvino(source)
    wanted = _inputs(model)
    for place, sample in enumerate(samples):
        if sample.keys() != wanted:
            raise DataError(f"calibration sample {place} has {sorted(sample)}; {source.name} takes {sorted(wanted)}")
    names = _quantizable(model)
    _known(keep, [*names, REST], source)
    if not set(names) - set(keep):
        raise ConfigError(f"nothing in {source} was quantized: no layer is left that is not kept in float")
    try:
        quantized = _quantized(model, samples, keep, preset)
    except Exception as error:  # whatever NNCF says of a graph it cannot follow
        raise ConfigError(
            f"NNCF cannot quantize {source} ({type(error).__name__}: {error}); take the dynamic form, another format, or "
            "keep the layer it speaks of"
        ) from error
    with _whole(target) as part:
        if isinstance(quantized, ov.Model):
            ov.save_model(quantized, part, compress_to_fp16=False)
        else:
            onnx.save(quantized, part)
        try:
            run(part, samples[:1])
        except Exception as error:  # runtimes have kinds of their own
            raise ConfigError(
                f"the int8 form of {source} does not run ({error}); keep the layer it speaks of"
            ) from error
    return target


def of_kinds(source: Path, kinds: Sequence[str]) -> list[str]:
    """Names of an ONNX file's layers of some kinds of operation, as `LSTM`, which `dynamic` could make int8."""
    _check(source, None, (".onnx",))
    wanted = set(kinds) & set(DYNAMIC)
    return [node.name for node in _onnx(source).graph.node if node.op_type in wanted]


def layers(source: Path) -> list[str]:
    """Names of the layers of an ONNX or OpenVINO file that static int8 can have, in order: what `keep` may name."""
    _check(source, None, (".onnx", ".xml"))
    return _quantizable(_onnx(source) if source.suffix == ".onnx" else _openvino(source))


def run(path: Path, samples: Samples) -> list[NDArray[np.float64]]:
    """Each output of an ONNX or OpenVINO file over all samples, one after another and flat."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers = [session.run(None, dict(sample)) for sample in samples]
    else:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        answers = [list(compiled(dict(sample)).values()) for sample in samples]
    return [
        np.concatenate([np.asarray(one, np.float64).ravel() for one in parts]) for parts in zip(*answers, strict=True)
    ]


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
    """Layers in order, without those of float64, which no runtime has int8 for."""
    left_out = set(_never(model))
    if isinstance(model, ov.Model):
        ordered = [(one.get_friendly_name(), one.get_type_name()) for one in model.get_ordered_ops()]
    else:
        ordered = [(node.name, node.op_type) for node in model.graph.node]
    kinds = OPENVINO_STATIC if isinstance(model, ov.Model) else ONNX_STATIC
    return [name for name, kind in ordered if kind in kinds and name not in left_out]


def _floats(model: Any, keep: Sequence[str]) -> list[str]:
    """Names of all operators that stay in float."""
    found = {*keep, *_never(model)} - {REST}
    if REST in keep:
        is_openvino = isinstance(model, ov.Model)
        every = (
            [one.get_friendly_name() for one in model.get_ops()]
            if is_openvino
            else [one.name for one in model.graph.node]
        )
        found |= set(every) - set(_quantizable(model))
    return sorted(found)


def _never(model: Any) -> list[str]:
    """Operators that stay in float: those of float64, for no runtime has int8 of them."""
    if isinstance(model, ov.Model):
        double = [
            one for one in model.get_ops() if any(port.get_element_type() == ov.Type.f64 for port in one.outputs())
        ]
        found = {one.get_friendly_name() for one in double}
        while double:  # and what leads into them: OpenVINO moves the scales of int8 down until the next product
            one = double.pop()
            for before in (port.get_source_output().get_node() for port in one.inputs()):
                if before.get_friendly_name() in found or before.get_type_name() in ("Parameter", "Constant"):
                    continue
                found.add(before.get_friendly_name())
                if before.get_type_name() not in OPENVINO_STATIC:
                    double.append(before)
        return sorted(found)
    graph = onnx.shape_inference.infer_shapes(model).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {
        one.name: one.type.tensor_type.elem_type for one in (*graph.value_info, *graph.input, *graph.output)
    } | weights
    return [
        node.name
        for node in graph.node
        if any(kinds.get(name) == onnx.TensorProto.DOUBLE for name in (*node.input, *node.output))
    ]


def _apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each Gemm whose addend is computed as a MatMul of its name and an Add: NNCF fails on the former."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        about = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        plain = about.get("alpha", 1.0) == about.get("beta", 1.0) == 1.0 and not about.get("transA", 0)
        turned = bool(about.get("transB", 0))
        computed = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] not in weights
        if not computed or not plain or (turned and node.input[1] not in weights):
            nodes.append(node)
            continue
        first, second, addend = node.input
        if turned:
            values = onnx.numpy_helper.to_array(weights[second]).T.copy()
            second = f"{node.name}_turned"
            graph.initializer.append(onnx.numpy_helper.from_array(values, second))
        nodes.append(onnx.helper.make_node("MatMul", [first, second], [f"{node.name}_product"], name=node.name))
        nodes.append(
            onnx.helper.make_node("Add", [f"{node.name}_product", addend], node.output, name=f"{node.name}_sum")
        )
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _known(keep: Sequence[str], names: Sequence[str], source: Path) -> None:
    for name in keep:
        if name not in names:
            raise ConfigError(
                f"keep names {name!r}, which is no layer of {source.name} that could be int8; there are "
                f"{', '.join(names[:12]) or 'none'}{' ...' if len(names) > 12 else ''}"
            )


def _quantized(model: Any, samples: Samples, keep: Sequence[str], preset: Preset) -> Any:
    """The int8 form in memory; `model` stays as it is."""
    transformer = preset == "transformer"
    with quietly():
        return nncf.quantize(
            model.clone() if isinstance(model, ov.Model) else model,
            nncf.Dataset([dict(sample) for sample in samples]),
            preset=nncf.QuantizationPreset("mixed" if transformer else preset),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=_floats(model, keep), validate=False),
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings of what NNCF's own libraries have deprecated, without its progress on the standard output, and
    without ONNX Runtime's pages about types that stay as they are, which it writes to the root logger."""
    root = logging.getLogger()
    root.addFilter(_no_pages)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(_no_pages)


def _no_pages(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Inference failed or unsupported type to quantize")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A place to write `target` to; it moves there, with what lies beside it, when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        yield Path(folder) / target.name
        for part in sorted(Path(folder).iterdir()):  # the .bin before the .xml that names it
            os.replace(part, target.parent / part.name)
