"""Writes a network for a runtime. One graph is the source of all: torch.export, then ONNX, then OpenVINO or TensorRT.

Names of the graph's values survive in ONNX and OpenVINO: parity finds by them the first layer where an artifact departs.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.export import ExportedProgram

from core.contract import TensorSpec
from core.errors import ArtifactError
from core.inference import program as programs
from core.inference.artifact import Format, network_files
from core.inference.parts import parts_of
from core.inference.session import Precision

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""Of ONNX: the newest that ONNX Runtime, OpenVINO and TensorRT of this year all read."""

WITHIN = ".within"
"""Is added to a value's name that is also a tensor's of the specs: the exporter would give both one name."""

FOLDED = 2**24
"""Numbers of a constant that are worked out beforehand, at most: an LSTM's weights are put in ONNX's order, and then have
to be plain weights to become int8."""


def write_network(
    network: nn.Module, folder: Path, format: Format, *, precision: Precision = "float32"
) -> dict[str, ExportedProgram]:
    """Writes the network's files (`artifact.network_files`) into the folder, those of each part where it has some.

    Args:
        network: a form of an application's network, with `inputs` and `outputs`.
        precision: what a TensorRT engine computes in; other formats hold float32 here.

    Returns:
        By part the graph whose names the files keep.

    Raises:
        ArtifactError: the network cannot be exported; says why, and the line.
    """
    return {
        name: _write(part, folder, format, network_files(format, name), precision)
        for name, part in parts_of(network).items()
    }


def _write(
    network: nn.Module, folder: Path, format: Format, files: Sequence[str], precision: Precision
) -> ExportedProgram:
    program = programs.trace(network)
    if format == "torch":
        programs.save(program, folder, files)
        return program
    made = to_onnx(program, network.inputs, network.outputs)  # type: ignore[arg-type]
    import onnx

    file = folder / files[0]
    path = file.with_suffix(".onnx")
    onnx.save(made.proto, path)
    if format == "openvino":
        to_openvino(path, file)
        path.unlink()
    elif format == "tensorrt":
        from core.inference.session_tensorrt import build_engine

        sizes: Mapping[str, Any] = getattr(network, "ranges", {})
        build_engine(path, file, inputs=network.inputs, precision=precision, sizes=sizes)  # type: ignore[arg-type]
        path.unlink()
    return made.program


def graphs_of(network: nn.Module, format: Format) -> dict[str, ExportedProgram]:
    """What `write_network` would return; nothing is written."""
    return {name: _graph_of(part, format) for name, part in parts_of(network).items()}


def _graph_of(network: nn.Module, format: Format) -> ExportedProgram:
    program = programs.trace(network)
    return program if format == "torch" else to_onnx(program, network.inputs, network.outputs).program  # type: ignore[arg-type]


class Onnx:
    """An ONNX graph and the exported program that its values are named after."""

    def __init__(self, proto: onnx.ModelProto, program: ExportedProgram) -> None:
        self.proto, self.program = proto, program


def to_onnx(program: ExportedProgram, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Onnx:
    """
    Raises:
        ArtifactError: an operation has no counterpart in ONNX; it and its line are named.
    """
    import torch.onnx
    from onnxscript import optimizer

    taken, given = (
        {f"{kind}.{spec.name}": spec.name for spec in part} for kind, part in (("in", inputs), ("out", outputs))
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            made = torch.onnx.export(
                program,
                input_names=[*taken],
                output_names=[*given],
                opset_version=OPSET,
                dynamo=True,
                custom_translation_table={torch.ops.aten.lstm.input: _lstm},
                verbose=False,
            )
        except Exception as error:  # the exporter's kinds are its own
            raise _unsupported(program, error) from error
    assert made is not None
    assert made.exported_program is not None
    optimizer.fold_constants(made.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    proto, found = made.model_proto, made.exported_program
    rename(proto.graph, {name: name + WITHIN for name in (*taken.values(), *given.values())} | taken | given)
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        del node.metadata_props[:]  # they hold paths of the machine
        node.doc_string = ""
    return Onnx(proto, found)


def _lstm(
    input: Any,
    hx: Any,
    params: Any,
    has_biases: Any,
    num_layers: Any,
    dropout: Any,
    train: Any,
    bidirectional: Any,
    batch_first: Any,
) -> Any:  # torch's names
    """torch's LSTM as one of ONNX; where it has one layer and direction, without the exporter's detours over shapes."""
    from onnxscript import onnx_opset
    from onnxscript.function_libs.torch_lib.ops.core import aten_lstm

    if num_layers != 1 or bidirectional or not has_biases:
        return aten_lstm(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    op: Any = onnx_opset.opset20
    size, swap = hx[0].shape[2], [1, 0, 2]

    def ordered(weight: Any) -> Any:  # gates i, f, g, o as i, o, f, g
        take, keep, new, give = (op.Slice(weight, [at * size], [(at + 1) * size], [0]) for at in range(4))
        return op.Concat(take, give, keep, new, axis=0)

    weight, recurrent = (op.Unsqueeze(ordered(param), [0]) for param in params[:2])
    bias = op.Unsqueeze(op.Concat(ordered(params[2]), ordered(params[3]), axis=0), [0])
    given = op.Transpose(input, perm=swap) if batch_first else input
    start = (None, None) if all(map(_zeros, hx)) else hx  # ONNX's own start
    outputs, hidden, cell = op.LSTM(given, weight, recurrent, bias, None, *start, hidden_size=size)
    outputs = op.Squeeze(outputs, [1])
    return (op.Transpose(outputs, perm=swap) if batch_first else outputs), hidden, cell


def _zeros(value: Any) -> bool:
    """Whether an ONNX value is zeros, of a shape that the inputs may say."""
    node = value.producer()
    if value.const_value is not None or node is None:
        return value.const_value is not None and not value.const_value.numpy().any()
    if node.op_type in ("Cast", "CastLike", "Expand", "Identity"):
        return _zeros(node.inputs[0])
    fill = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and fill is None:
        return True
    return node.op_type in ("Constant", "ConstantOfShape") and fill is not None and not fill.value.numpy().any()


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Gives values of a graph, and of the graphs within it, other names."""
    for node in graph.node:
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                rename(inner, names)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def to_openvino(source: Path, target: Path) -> None:
    """An ONNX file as OpenVINO's `.xml` and `.bin`, in the types that it has (OpenVINO would make float16 of them).

    Raises:
        ArtifactError: OpenVINO refuses the network; its words are given.
    """
    import openvino as ov
    from openvino.passes import ConstantFolding, Manager

    from core.inference.session_openvino import runtime

    try:
        model = runtime().read_model(source)  # convert_model would tell its makers
        passes = Manager()
        passes.register_pass(ConstantFolding())  # else weights that are reshaped are not seen as weights by quantizers
        passes.run_passes(model)
        ov.save_model(model, target, compress_to_fp16=False)
    except Exception as error:  # its errors are RuntimeErrors and its frontends' own
        raise ArtifactError(f"OpenVINO cannot read {source.name}: {str(error).strip()[:300]}") from error


def _unsupported(program: ExportedProgram, error: Exception) -> ArtifactError:
    """Which operation ONNX lacks, and the line that asks for it."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    operations = re.findall(r"No ONNX function found for <OpOverload\(op='([\w.:]+)", "\n".join(texts))
    if not operations:
        reason = next((line.strip() for line in reversed(texts) for line in line.splitlines() if line.strip()), "")
        return ArtifactError(f"the network cannot become ONNX: {reason[:300]}; export --format torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = program.run_decompositions().graph.nodes
    asking = [programs.place_of(node) for node in nodes if str(node.target).startswith(operations[0])]
    name = operations[0].rpartition(".")[2]  # the exporter takes some apart that are whole in the graph
    asking = asking or [programs.place_of(node) for node in program.graph.nodes if name in str(node.target)]
    return ArtifactError(
        f"the network cannot become ONNX: {operations[0]} has no counterpart there. It is asked for by "
        f"{asking[0] if asking else 'the network'}. Write that line with other operations, or export --format torch"
    )
