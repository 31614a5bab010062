"""Gives the layers of a full-size network the sizes of smaller weights, so that a pruned file needs no other record."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from core.errors import ArtifactError

_WHOLE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers whose tensors hold several gates or heads: their sizes do not say which are left."""


def fit_to(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Reshapes the layers of `model`, in place, to the sizes of the weights, and gives those layers their values.

    Sizes may only fall, and only along channels: kernels stay. Layers without a difference are not touched (load the
    weights afterwards). A model of the weights' own sizes stays as it is.

    Args:
        model: built at full size.
        tensors: its state by name, pruned.

    Raises:
        ArtifactError: names that are missing or too many, a size that grew, or a layer that cannot have another size;
            the model is then unchanged.
    """
    state = model.state_dict()
    if state.keys() != tensors.keys():
        missing, unknown = sorted(state.keys() - tensors.keys()), sorted(tensors.keys() - state.keys())
        raise ArtifactError(
            f"the weights are of another network: {_few(missing)} missing, {_few(unknown)} unknown to this model; "
            "build the model by the configuration the weights were trained with"
        )
    changed = {name for name, tensor in state.items() if tensor.shape != tensors[name].shape}
    layers = {owner: model.get_submodule(owner) for owner in sorted({name.rpartition(".")[0] for name in changed})}
    for name in sorted(changed):
        _check(name, layers[name.rpartition(".")[0]], state[name], tensors[name])
    groups = {owner: _groups(owner, layer, tensors) for owner, layer in layers.items() if isinstance(layer, _ConvNd)}
    for name in sorted(changed):
        owner, _, last = name.rpartition(".")
        value = tensors[name].detach().to(state[name].device, state[name].dtype).clone()
        old = getattr(layers[owner], last)
        setattr(layers[owner], last, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
    for owner, layer in layers.items():
        _describe(layer, groups.get(owner, 1))
    return model


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" or "nothing"


def _check(name: str, layer: nn.Module, have: Tensor, want: Tensor) -> None:
    told = f"{name} is {list(have.shape)} in the model and {list(want.shape)} in the weights"
    fixed = (
        2 if isinstance(layer, _ConvNd) and name.endswith("weight") else have.dim()
    )  # the axes after it are a kernel
    if have.dim() != want.dim() or have.shape[fixed:] != want.shape[fixed:] or not want.numel():
        raise ArtifactError(f"{told}: only channels may differ; the weights are of another network")
    if any(new > old for new, old in zip(want.shape, have.shape, strict=True)):
        raise ArtifactError(f"{told}: pruning makes a layer smaller, never larger; build the model at its full size")
    if isinstance(layer, _WHOLE):
        raise ArtifactError(f"{told}: a {type(layer).__name__} cannot take another size; build the model at that size")
    if isinstance(layer, nn.GroupNorm) and want.shape[0] % layer.num_groups:
        raise ArtifactError(f"{told}: its channels do not divide into {layer.num_groups} groups")


def _groups(owner: str, layer: _ConvNd, tensors: Mapping[str, Tensor]) -> int:
    """Groups of the smaller convolution: one for each channel where it was depthwise, else as many as before."""
    weight = tensors[f"{owner}.weight" if owner else "weight"]
    writes = 1 if isinstance(layer, _ConvTransposeNd) else 0
    if layer.groups > 1 and layer.groups == layer.in_channels:
        depth = layer.out_channels // layer.groups
        return weight.shape[0] // (1 if writes else depth)
    if weight.shape[0] % layer.groups:
        raise ArtifactError(
            f"{owner} has {weight.shape[0]} channels in the weights: not divisible by {layer.groups} groups"
        )
    return layer.groups


def _describe(layer: nn.Module, groups: int) -> None:
    """Sets the attributes that tell a layer's size."""
    if isinstance(layer, _ConvNd):
        first, second = layer.weight.shape[:2]
        layer.groups = groups
        turned = isinstance(layer, _ConvTransposeNd)
        layer.in_channels, layer.out_channels = (first, second * groups) if turned else (second * groups, first)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _NormBase):
        state = layer.weight if layer.weight is not None else layer.running_mean
        assert state is not None
        layer.num_features = state.shape[0]
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = layer.weight.shape[0]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.shape[0]
