"""Model files as graphs: what layers an ONNX or OpenVINO file has, which of them can be int8, reading and writing whole."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino as ov
from numpy.typing import NDArray

from core.errors import ArtifactError, ConfigError
from core.inference.session_openvino import runtime

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


def of_kinds(source: Path, kinds: Sequence[str]) -> list[str]:
    """Names of a file's layers of some kinds of operation that could be int8: `LSTM` of ONNX, `GroupConvolution` of OpenVINO."""
    check(source, None, (".onnx", ".xml"))
    if source.suffix == ".xml":
        wanted = set(kinds) & set(OPENVINO_STATIC)
        ordered = read_openvino(source).get_ordered_ops()
        return [one.get_friendly_name() for one in ordered if one.get_type_name() in wanted]
    wanted = set(kinds) & set(DYNAMIC)
    return [node.name for node in read_onnx(source).graph.node if node.op_type in wanted]


def layers(source: Path) -> list[str]:
    """Names of the layers of an ONNX or OpenVINO file that static int8 can have, in order: what `keep` may name."""
    check(source, None, (".onnx", ".xml"))
    return quantizable(read_onnx(source) if source.suffix == ".onnx" else read_openvino(source))


def run(path: Path, samples: Samples) -> list[NDArray[np.float64]]:
    """Each output of an ONNX or OpenVINO file over all samples, one after another and flat."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers = [session.run(None, dict(sample)) for sample in samples]
    else:
        compiled = runtime().compile_model(runtime().read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        answers = [list(compiled(dict(sample)).values()) for sample in samples]
    return [
        np.concatenate([np.asarray(one, np.float64).ravel() for one in parts]) for parts in zip(*answers, strict=True)
    ]


def check(source: Path, target: Path | None, allowed: tuple[str, ...]) -> None:
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


def read_onnx(source: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(source)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise several kinds for damage
        raise ArtifactError(f"{source} is no ONNX model ({type(error).__name__}); export it again") from error
    return model


def read_openvino(source: Path) -> ov.Model:
    try:
        return runtime().read_model(source)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise ArtifactError(f"{source} is no OpenVINO model ({reason}); export it again") from error


def inputs_of(model: Any) -> set[str]:
    if isinstance(model, ov.Model):
        return {port.get_any_name() for port in model.inputs}
    weights = {tensor.name for tensor in model.graph.initializer}
    return {port.name for port in model.graph.input} - weights


def quantizable(model: Any) -> list[str]:
    """Layers in order, without those of float64, which no runtime has int8 for."""
    left_out = set(never_int8(model))
    if isinstance(model, ov.Model):
        ordered = [(one.get_friendly_name(), one.get_type_name()) for one in model.get_ordered_ops()]
    else:
        ordered = [(node.name, node.op_type) for node in model.graph.node]
    kinds = OPENVINO_STATIC if isinstance(model, ov.Model) else ONNX_STATIC
    return [name for name, kind in ordered if kind in kinds and name not in left_out]


def floats(model: Any, keep: Sequence[str]) -> list[str]:
    """Names of all operators that stay in float."""
    found = {*keep, *never_int8(model)} - {REST}
    if REST in keep:
        is_openvino = isinstance(model, ov.Model)
        every = (
            [one.get_friendly_name() for one in model.get_ops()]
            if is_openvino
            else [one.name for one in model.graph.node]
        )
        found |= set(every) - set(quantizable(model))
    return sorted(found)


def never_int8(model: Any) -> list[str]:
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


def apart(model: onnx.ModelProto) -> onnx.ModelProto:
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


def check_known(keep: Sequence[str], names: Sequence[str], source: Path) -> None:
    for name in keep:
        if name not in names:
            raise ConfigError(
                f"keep names {name!r}, which is no layer of {source.name} that could be int8; there are "
                f"{', '.join(names[:12]) or 'none'}{' ...' if len(names) > 12 else ''}"
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
def whole(target: Path) -> Iterator[Path]:
    """A place to write `target` to; it moves there, with what lies beside it, when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        yield Path(folder) / target.name
        for part in sorted(Path(folder).iterdir()):  # the .bin before the .xml that names it
            os.replace(part, target.parent / part.name)
