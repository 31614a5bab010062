"""Quantization-aware training: a network that computes as in int8 while it is trained, by NNCF.

`aware` puts quantizers into a torch network, fitted on samples; it is trained on as before; `stripped` makes their ranges
and the int8 weights constants, so that it exports to ONNX and OpenVINO.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import nncf
import torch
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph
from nncf.torch.function_hook.wrapper import get_hook_storage, is_wrapped
from nncf.torch.model_graph_manager import get_const_node, get_module_by_name, split_const_name
from nncf.torch.quantization import extensions, reference
from nncf.torch.quantization.layers import BaseQuantizer
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers torch.ops.quantized_decomposed

from core.compression.graphs import quietly
from core.errors import ConfigError, DataError


class _Plain:
    """The quantizers' arithmetic in plain torch. NNCF would compile C++ for it at the first call: a minute, a compiler, and a
    lock that processes wait for in vain; or, without a compiler, run torch.compile."""

    Quantize_forward = staticmethod(reference.torch_executor.forward)
    Quantize_backward = staticmethod(reference.torch_executor.backward)


for _functions in (extensions.QuantizedFunctionsCPU, extensions.QuantizedFunctionsCUDA):
    vars(_functions)["_loaded_namespace"] = _Plain


class Wrapped(nn.Module):
    """A network within a module: NNCF cannot put quantizers into a Sequential itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)


def aware(model: nn.Module, samples: Sequence[Any], *, keep: Sequence[str] = ()) -> nn.Module:
    """A copy of the network that computes as in int8, its ranges fitted on samples and trained on with the weights.

    Args:
        model: float, in plain torch, and trained: ranges move slowly, and those of an untrained network hold it back. A
            Sequential comes back as `Wrapped`.
        samples: tensor, or tuple of tensors, of each call; every class among them.
        keep: names of modules that stay in float.

    Raises:
        DataError: no samples.
        ConfigError: a name in `keep` that is no module, or a network that NNCF cannot follow.

    Source:
        Jacob et al., Quantization and Training of Neural Networks, 2018 (arXiv:1712.05877), as NNCF does it.
    """
    if not len(samples):
        raise DataError("no calibration samples; give some hundred calls' inputs, every class among them")
    names = dict(model.named_modules())
    if unknown := [name for name in keep if name not in names]:
        raise ConfigError(f"keep names {unknown[0]!r}, which is no module; there are {', '.join([*names][1:12])}")
    network = copy.deepcopy(model)
    modes = {name: module.training for name, module in network.named_modules()}
    sequential = isinstance(network, nn.Sequential)
    place = "network/" if sequential else ""
    patterns = [rf"{place}{name.replace('.', '/')}/.*" for name in keep]
    try:
        with quietly():
            quantized: nn.Module = nncf.quantize(
                (Wrapped(network) if sequential else network).eval(),
                nncf.Dataset(list(samples)),
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False),
            )
    except Exception as error:  # whatever NNCF says of a network it cannot follow
        raise ConfigError(
            f"NNCF cannot quantize the {type(model).__name__} ({type(error).__name__}: {error}); keep= the part in float"
        ) from error
    for name, mode in modes.items():
        quantized.get_submodule(f"{place.strip('/')}.{name}".strip(".")).training = mode
    quantized.training = modes[""]
    return quantized


def stripped(model: nn.Module, example: Any) -> nn.Module:
    """A copy in evaluation mode whose quantizers are constants and whose weights are int8: for export, no more training.

    Args:
        model: made by `aware`.
        example: what one call takes: a tensor or a tuple of them.

    Raises:
        ConfigError: the model has no quantizers.
    """
    if not is_wrapped(model):
        raise ConfigError(f"the {type(model).__name__} has no quantizers; make it with aware(model, samples)")
    fixed = copy.deepcopy(model).eval()
    with quietly(), torch.no_grad():
        graph, hooks = build_nncf_graph(fixed, example), get_hook_storage(fixed)
        for name, quantizer in list(hooks.named_hooks()):
            if not isinstance(quantizer, BaseQuantizer):
                continue
            kind, operator, port = decode_hook_name(name)
            constant = get_const_node(graph.get_node_by_name(operator), port, graph) if kind == "pre_hooks" else None
            if constant is None:
                hooks.set_submodule(name, Fixed(quantizer))
            else:
                owner, last = split_const_name(constant.layer_attributes.name)
                hooks.set_submodule(name, Fixed(quantizer, getattr(get_module_by_name(owner, fixed), last)))
    return fixed


class Fixed(nn.Module):
    """A quantizer whose range is a constant; with a weight, that weight in int8."""

    def __init__(self, quantizer: BaseQuantizer, weight: Tensor | None = None) -> None:
        super().__init__()
        quantizer.set_levels()
        self.low, self.high, scale, zero = quantizer.get_parameters_for_torch_fq()
        self.dtype = torch.int8 if self.low < 0 else torch.uint8
        shape = list(quantizer.scale_shape)
        self.axis = shape.index(max(shape)) if quantizer.per_channel else None
        if self.axis is None:
            self.scale, self.zero = float(scale), int(zero)
        else:
            self.register_buffer("scale", scale.detach().flatten().clone())
            self.register_buffer("zero", zero.detach().flatten().to(torch.int32))
        self.register_buffer("whole", None)
        if weight is not None:
            self.whole = self._to_int8(quantizer.quantize(weight, execute_traced_op_as_identity=False))

    def forward(self, values: Tensor) -> Tensor:
        """[...] -> [...] the nearest numbers that int8 has."""
        rounded = self._to_int8(values) if self.whole is None else self.whole
        operators = torch.ops.quantized_decomposed
        about = (self.scale, self.zero, self.low, self.high, self.dtype)
        result: Tensor = (
            operators.dequantize_per_tensor(rounded, *about)
            if self.axis is None
            else operators.dequantize_per_channel(rounded, *about[:2], self.axis, *about[2:])
        )
        return result

    def _to_int8(self, values: Tensor) -> Tensor:
        operators = torch.ops.quantized_decomposed
        about = (self.scale, self.zero, self.low, self.high, self.dtype)
        result: Tensor = (
            operators.quantize_per_tensor(values, *about)
            if self.axis is None
            else operators.quantize_per_channel(values, *about[:2], self.axis, *about[2:])
        )
        return result
