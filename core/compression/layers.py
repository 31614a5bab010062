"""What compression asks of a network: which layers have a width, what it answers to an example, what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from core.errors import ConfigError

Example = tuple[Any, ...]
"""What `model(*example)` takes: tensors, or named tuples of them."""

MIXING = (_ConvNd, nn.Linear)
"""Layers that write channels of their own."""
WHOLE: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "the heads of an attention share its width",
    nn.RNNBase: "the gates of a recurrent layer share its width",
}
"""Layers that keep their width, and why."""


class PerChannel(TorchFunctionMode):
    """Norms over channels only scale and shift: what is left is the same with fewer of them, and can be compared."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is functional.layer_norm:
            names = ("input", "normalized_shape", "weight", "bias", "eps")
        elif func is functional.group_norm:
            names = ("input", "num_groups", "weight", "bias", "eps")
        else:
            return func(*args, **given)
        values = dict(zip(names, args, strict=False)) | given
        result, weight, bias = values["input"], values.get("weight"), values.get("bias")
        trailing = 1 if func is functional.layer_norm else result.dim() - 1
        shape = (-1, *[1] * (trailing - 1))
        result = result if weight is None else result * (weight if trailing == 1 else weight.view(shape))
        return result if bias is None else result + (bias if trailing == 1 else bias.view(shape))


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels


def filters(layer: nn.Module, weight: Tensor) -> Tensor:
    """[channels, ...] what writes each channel."""
    if not isinstance(layer, _ConvTransposeNd):
        return weight
    inputs, outputs = weight.shape[:2]
    parts = weight.view(layer.groups, inputs // layer.groups, outputs, *weight.shape[2:])
    return parts.transpose(1, 2).flatten(0, 1)


def whole_because(layer: nn.Module) -> str | None:
    """Why a layer of this kind keeps its width; None where it may lose channels."""
    return next((why for kind, why in WHOLE.items() if isinstance(layer, kind)), None)


def reason(layer: nn.Module, multiple: int = 1) -> str:
    """Why a layer that nothing speaks for or against kept its width, where multiples of so many channels are left."""
    if width(layer) == 1:
        return "it has one channel"
    if width(layer) <= multiple:
        return f"it has {width(layer)} channels, and {multiple} of a layer stay"
    return (
        whole_because(layer)
        or "its channels are tied to those of a layer that stays whole, to the input, or to the answer"
    )


def layers_of(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Layers that have a width, by name; what is inside a layer that stays whole goes with it."""
    kinds: tuple[type[nn.Module], ...] = (*MIXING, *WHOLE)
    return [(name, layer) for name, layer in model.named_modules(prefix=prefix) if isinstance(layer, kinds)]


def tied(model: nn.Module) -> list[str]:
    """Layers with a parameter that another module has as well."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    found = {name for names in owners.values() if len(names) > 1 for name in names}
    return [name for name, _ in layers_of(model) if name in found]


def width(layer: Any) -> int:
    """Channels that a layer writes."""
    names = ("out_channels", "out_features", "embed_dim", "hidden_size")
    return int(next(getattr(layer, name) for name in names if hasattr(layer, name)))


def tensors_of(answer: Any) -> list[Tensor]:
    return [part for part in tree_flatten(answer)[0] if isinstance(part, Tensor)]


def answer(model: nn.Module, example: Example) -> list[Tensor]:
    """The tensors of the answer in evaluation mode. With gradients: without them torch has other paths for some layers."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.enable_grad():
            return [tensor.detach() for tensor in tensors_of(model.eval()(*example))]
    finally:
        for module, mode in modes.items():
            module.training = mode


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def num_macs(model: nn.Module, example: Example) -> int:
    """Multiplications with addition of one call, in matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        answer(model, example)
    return int(counter.get_total_flops()) // 2


def few(names: Iterable[str]) -> str:
    listed = [name for name in names if name]
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")


def example_of(model: nn.Module) -> Example:
    """Random numbers of a row that the model takes; raises ConfigError where it does not say what that is."""
    generator = torch.Generator().manual_seed(0)
    specs = getattr(model, "inputs", None)
    shapes = [((1, *spec.shape[1:]), getattr(torch, spec.dtype)) for spec in specs] if specs else []
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if not shapes and size:
        shapes = [((1, *size), torch.float32)]
    if not shapes:
        first = next((layer for layer in model.modules() if isinstance(layer, _ConvNd | nn.Linear)), None)
        if isinstance(first, _ConvNd):  # a network that begins with a convolution takes pictures, of whatever size
            sides = {1: 1024, 2: 224, 3: 64}[len(first.kernel_size)]
            shapes = [((1, first.in_channels, *[sides] * len(first.kernel_size)), torch.float32)]
    if not shapes or any(isinstance(axis, str) for shape, _ in shapes for axis in shape):
        raise ConfigError(
            f"the {type(model).__name__} does not say what it takes (neither `inputs` of fixed sizes nor pretrained_cfg); "
            "give example=(tensor, ...)"
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return tuple(
        torch.rand(shape, generator=generator).to(device, dtype)
        if dtype.is_floating_point
        else torch.zeros(shape, dtype=dtype, device=device)
        for shape, dtype in shapes
    )
