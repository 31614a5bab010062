"""The first layer where an artifact departs from its network: both graphs are run with every common value as an output."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from core.contract import Arrays, TensorSpec
from core.inference import program as programs
from core.inference.artifact import Record, network_files
from core.inference.export import WITHIN
from core.inference.session import plain


def error_of(true: NDArray[Any], given: NDArray[Any]) -> float:
    """Largest difference, relative to the largest finite true value; infinity where one alone is not finite."""
    if true.shape != given.shape:
        return float("inf")
    a, b = true.astype(np.float64), given.astype(np.float64)
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all() or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(np.abs(a[finite]).max(), 1e-12))


class _Tap(torch.fx.Interpreter):
    """Runs a graph and keeps each node's floating tensor under the node's name."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.values: Arrays = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.values[n.name] = result.detach().numpy().copy()  # later nodes may write into it
        return result


def first_departure(
    graphs: Mapping[str, ExportedProgram],
    folder: Path,
    record: Record,
    arrays: Mapping[str, NDArray[Any]],
    *,
    limit: float,
) -> str:
    """Where, in words: the value, its module and source line, and the error there.

    Args:
        graphs: the original's by part, as `export.write_network` returned them.
        folder: the artifact's.
        arrays: one call's inputs.
        limit: relative error from which on a value has departed.
    """
    part = record.part_of(arrays)
    program, record = graphs[part], record.part(part)
    true = _values_of(program, record.inputs, arrays)
    nodes = {node.name: node for node in program.graph.nodes}
    called = dict(zip(program.graph_signature.user_outputs, (spec.name for spec in record.outputs), strict=True))
    called |= {spec.name: spec.name + WITHIN for spec in (*record.inputs, *record.outputs) if spec.name not in called}
    if record.format == "torch":
        called = {}
    given = _values_in(folder, part, record, arrays, {called.get(name, name) for name in true})
    compared = 0
    for name in true:  # in the graph's order
        there = called.get(name, name)
        if there not in given or nodes.get(name) is None or nodes[name].op == "placeholder":
            continue
        compared += 1
        error = error_of(true[name], given[there])
        if error > limit:
            what = "is not finite there" if error == float("inf") else f"is off by {error:.3g} of its largest value"
            return f"first departs at {name} in {programs.place_of(nodes[name])}, which {what} (limit {limit:g})"
    if not compared:
        return "its layers have other names than the original's, so that no first one can be told"
    return f"none of {compared} inner values departs by more than {limit:g}: the fault lies in how outputs are named or ordered"


def _values_of(program: ExportedProgram, inputs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        tap = _Tap(program.module())
        tap.run(*(torch.from_numpy(plain(arrays[spec.name])) for spec in inputs))
    return tap.values


def _values_in(folder: Path, part: str, record: Record, arrays: Mapping[str, NDArray[Any]], names: set[str]) -> Arrays:
    files = network_files(record.format, part)
    if record.format == "torch":
        return _values_of(programs.load(folder, files), record.inputs, arrays)
    file = folder / files[0]
    feed = {name: plain(array) for name, array in arrays.items()}
    if record.format == "onnx":
        return _onnx_values(file, feed, names)
    if record.format == "openvino":
        return _openvino_values(file, feed, names, record)
    return {}  # an engine has no inner values left


def _onnx_values(file: Path, feed: Arrays, names: set[str]) -> Arrays:
    import onnx
    import onnxruntime as ort

    proto = onnx.load(file)
    there = {output.name for output in proto.graph.output}
    inner = [name for node in proto.graph.node for name in node.output if name in names - there]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(inner))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [node.name for node in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, feed), strict=True))


def _openvino_values(file: Path, feed: Arrays, names: set[str], record: Record) -> Arrays:
    from core.inference.session_openvino import HINTS, runtime

    model = runtime().read_model(file)
    found = {name: port for node in model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}
    inner = {name: port for name, port in found.items() if name in names}
    for port in inner.values():
        if not any(target.get_node().get_type_name() == "Result" for target in port.get_target_inputs()):
            model.add_outputs([port])
    compiled = runtime().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[record.precision]})
    results = compiled(feed)
    return {name: value for port, value in results.items() for name in port.get_names() if name in inner}
