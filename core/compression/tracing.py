"""How torch-pruning is led through networks that its rules do not follow: what it is shown, and where it has to stop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning.dependency import index_mapping

from core.compression.layers import MIXING, Example, tensors_of


@contextmanager
def leniently() -> Iterator[None]:
    """torch-pruning without its warnings (of parameters it has to guess at) and without its fault over concatenations with
    a model's input, whose channels it does not know: both leave guesses, which the proof settles."""
    update = index_mapping.update_concat_index_mapping

    def careful(graph: Any, node: Any) -> None:
        try:
            update(graph, node)
        except TypeError:
            node.enable_index_mapping = False

    index_mapping.update_concat_index_mapping = careful
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        index_mapping.update_concat_index_mapping = update


@contextmanager
def out_of_place(model: nn.Module) -> Iterator[None]:
    """Units that write into their input do not: over a view (instance norm's answer) the trace would lose the layer before."""
    units = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in units:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in units:
            module.inplace = True  # type: ignore[assignment]


def at_last_layers(model: nn.Module, example: Example) -> Any:
    """What the last layers write, where nothing that comes after them has weights; else the answer.

    In what makes boxes of it, or another list over places, torch-pruning takes places for channels and does not come back.
    """
    written: dict[Any, Tensor] = {}

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.grad_fn is not None:
            written[output.grad_fn] = output

    hooks = [layer.register_forward_hook(keep) for layer in model.modules() if isinstance(layer, MIXING)]
    try:
        result = model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    ends: dict[Any, Tensor] = {}
    nodes = [part.grad_fn for part in tensors_of(result) if part.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node in written:
            ends[node] = written[node]
            continue
        if hasattr(node, "variable"):  # a weight
            return result
        before = {one for one, _ in node.next_functions if one is not None} - seen
        seen |= before
        nodes += before
    return list(ends.values()) or result


def end_at_sums(graph: Any) -> None:
    """A sum or mean over channels reads them all and has none itself: what comes after it is not tied to them."""
    for node in graph.module2node.values():
        name = node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""
        if not name.startswith(("SumBackward1", "MeanBackward1")):
            continue
        rank = len(node.grad_fn._saved_self_sym_sizes)
        axes = {(axis - 2**64 if axis >= 2**63 else axis) % rank for axis in node.grad_fn._saved_dim}
        before = list(node.inputs)
        while before and not any(isinstance(one.module, MIXING) for one in before):
            before = [earlier for one in before for earlier in one.inputs][:64]
        layer = next((one.module for one in before if isinstance(one.module, MIXING)), None)
        if layer is not None and (1 if isinstance(layer, _ConvNd) else rank - 1) in axes:
            node.dependencies = [tie for tie in node.dependencies if tie.target not in node.outputs]
            for after in node.outputs:
                after.dependencies = [tie for tie in after.dependencies if tie.target is not node]
