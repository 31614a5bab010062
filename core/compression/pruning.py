"""Removes whole channels, so that tensors become smaller: no masks, no sparse formats, any runtime gains.

torch-pruning finds which layers' channels have to go together (residuals, concatenations, squeeze-excite). Its rules do
not know every network, so each group is proved before it is pruned: the smaller network has to answer as the whole one
does with the same channels' readers set to zero. Where it does not, the group stays whole and is named with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_map

from core.compression.layers import (
    MIXING,
    Example,
    PerChannel,
    answer,
    example_of,
    few,
    filters,
    is_depthwise,
    layers_of,
    num_macs,
    num_parameters,
    reason,
    tensors_of,
    tied,
    whole_because,
    width,
)
from core.compression.tracing import at_last_layers, end_at_sums, leniently, out_of_place
from core.errors import ConfigError
from core.nn.shapes import fit_to

__all__ = ["MagnitudePruner", "Pruned", "fit_to", "num_macs", "prune"]

_TOLERANCE = 1e-3
"""How far the smaller network's answers may be from the proof's, as a share of the largest answer."""


@dataclass(frozen=True)
class Pruned:
    """A smaller network and what was done to it. Pairs are before and after."""

    model: nn.Module
    parameters: tuple[int, int]
    macs: tuple[int, int]
    """Multiplications with addition of `model(*example)`, in matrix products and convolutions."""
    channels: dict[str, tuple[int, int]]
    """Of each layer that writes fewer channels, by name."""
    refused: dict[str, str]
    """Layers that kept their width, by name, and why."""


def prune(
    model: nn.Module,
    ratio: float,
    example: Example,
    *,
    importance: Literal["l1", "group"] = "group",
    multiple: int = 1,
    steps: int = 1,
    keep: Sequence[str] = (),
    recover: Callable[[nn.Module, int], None] | None = None,
) -> Pruned:
    """A copy of `model` in which every layer that allows it has lost the same share of its channels.

    Layers of equal width stay equal in width. LayerNorm and GroupNorm normalise over the channels that are left.

    Args:
        model: a float network in plain torch, not compiled; it is left as it is.
        ratio: share of the channels that goes, in (0, 1).
        example: arguments of one call, not all zeros: the proof is as good as what flows through the network.
        importance: `l1` is the L1 norm of the filters that write a channel; `group` the L2 norm of all weights that
            write, scale and read it.
        multiple: what is left of a layer's channels is rounded down to a multiple of it; a layer that has no more stays whole.
        steps: the share rises evenly over so many steps (a gradual schedule), at least 1.
        keep: names of modules that keep their width, with all that is in them.
        recover: called with the network and the step, from 1, after each step; trains it in place. Parameters are new
            after every step: so has its optimizer to be.

    Raises:
        ConfigError: an argument out of range, a name in `keep` that is none, a network that cannot be traced, or one of
            which nothing can be pruned.

    Source:
        Li et al., Pruning Filters for Efficient ConvNets, 2017 (arXiv:1608.08710): `l1`; deviation: the norms of all
        filters that write one channel (through a residual) are added. Fang et al., DepGraph, 2023 (arXiv:2301.12900):
        `group`, at one ratio for every layer.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"the pruning ratio is {ratio}; allowed is a share of the channels between 0 and 1, as 0.3")
    if importance not in ("l1", "group"):
        raise ConfigError(f"importance is {importance!r}; allowed are l1 and group")
    if min(steps, multiple) < 1:
        raise ConfigError(f"steps is {steps}, multiple is {multiple}; allowed is 1 or more")
    names = dict(model.named_modules())
    for name in keep:
        if name not in names:
            raise ConfigError(f"keep names {name!r}, which is no module of the model; there are {few(names)}")
    search = _Search(model, example, importance, ratio, keep, multiple)
    refused = search.refused()
    small = copy.deepcopy(model)
    modes = {module: module.training for module in small.modules()}
    learns = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    pruner = search.pruner(small, steps=steps, whole=refused)
    for step in range(1, steps + 1):
        with leniently():
            for group in pruner.step(interactive=True):
                if _root(pruner, group) not in refused:
                    group.prune()
        for module, mode in modes.items():
            module.training = mode
        for name, parameter in small.named_parameters():
            parameter.requires_grad_(learns[name])
        if recover is not None:
            recover(small, step)
    widths = {name: (width(names[name]), width(layer)) for name, layer in layers_of(small)}
    channels = {name: pair for name, pair in widths.items() if pair[0] != pair[1]}
    rest = {name: refused.get(name, reason(names[name], multiple)) for name in widths if name not in channels}
    if not channels:
        why = (
            "; ".join(f"{name}: {reason}" for name, reason in list(rest.items())[:5]) or "it has no layers with weights"
        )
        raise ConfigError(f"nothing of the {type(model).__name__} can be pruned by {ratio}: {why}")
    if [tensor.shape for tensor in answer(small, example)] != search.shapes:
        raise ConfigError("the pruned network answers in other shapes: recover changed the network; let it train only")
    small.zero_grad(set_to_none=True)
    return Pruned(
        small,
        (num_parameters(model), num_parameters(small)),
        (num_macs(model, example), num_macs(small, example)),
        channels,
        rest,
    )


class MagnitudePruner:
    """`prune` by the L1 norm, for a network whose input is known."""

    def __init__(self, model: nn.Module, prune_ratio: float = 0.3, *, example: Example | None = None) -> None:
        """
        Args:
            example: see `prune`; by default random numbers of the model's `inputs` (TensorSpecs whose first axis alone
                is free) or of timm's `pretrained_cfg`.

        Raises:
            ConfigError: no example is given and the model does not say what it takes.
        """
        self.model, self.prune_ratio = model, prune_ratio
        self.example = example if example is not None else example_of(model)

    def prune(self) -> nn.Module:
        """The smaller copy; for the sizes and the refused layers call `core.compression.pruning.prune`."""
        return prune(self.model, self.prune_ratio, self.example, importance="l1").model


class _Search:
    """Finds which layers have to stay whole, on copies of the network."""

    def __init__(
        self, model: nn.Module, example: Example, importance: str, ratio: float, keep: Sequence[str], multiple: int
    ) -> None:
        self.model, self.example, self.ratio, self.multiple = model, example, ratio, multiple
        self.importance = (
            _FilterNorm() if importance == "l1" else torch_pruning.importance.GroupMagnitudeImportance(p=2)
        )
        self.kept = {name: "kept on request" for top in keep for name, _ in layers_of(model.get_submodule(top), top)}
        self.kept |= {name: why for name, layer in layers_of(model) for why in [whole_because(layer)] if why}
        self.kept |= {name: "its weights are another layer's too" for name in tied(model)}
        try:
            self.shapes = [tensor.shape for tensor in answer(model, example)]
        except Exception as error:  # whatever foreign code says
            raise ConfigError(
                f"the {type(model).__name__} does not take the example ({type(error).__name__}: {error}); give the arguments "
                "of one call as a tuple"
            ) from error
        self.cut: str | None = None
        """A part that torch-pruning cannot follow, and that it is kept from seeing."""
        self._find_cut()

    def _find_cut(self) -> None:
        """Sets `cut`; raises ConfigError where there is no such part."""
        parts = [name for name, module in self.model.named_modules() if name and next(module.children(), None)]
        faults = []
        for self.cut in (None, *parts):
            try:
                self.pruner(copy.deepcopy(self.model), steps=1, whole=())
                break
            except Exception as error:  # whatever goes wrong in tracing foreign code
                faults.append(f"{type(error).__name__}: {error}")
        else:
            raise ConfigError(
                f"torch-pruning cannot follow the {type(self.model).__name__} ({faults[0]}), nor with a part left out"
            )
        if self.cut:
            inside = self.model.get_submodule(self.cut)
            self.kept |= {
                name: f"torch-pruning cannot follow it ({faults[0]})" for name, _ in layers_of(inside, self.cut)
            }

    def pruner(self, model: nn.Module, *, steps: int, whole: Iterable[str]) -> Any:
        """torch-pruning's pruner of `model`, which it puts into evaluation mode."""
        for parameter in model.parameters():  # tracing goes by gradients
            parameter.requires_grad_(parameter.is_floating_point())
        with leniently(), out_of_place(model), torch.enable_grad():
            pruner = torch_pruning.pruner.BasePruner(
                model,
                self.example,
                self.importance,
                pruning_ratio=self.ratio,
                round_to=self.multiple if self.multiple > 1 else None,
                iterative_steps=steps,
                ignored_layers=[model.get_submodule(name) for name in whole],
                in_channel_groups={},
                out_channel_groups={},
                num_heads={},
                root_module_types=list(MIXING),
                forward_fn=self._traced,
                output_transform=lambda answer: [part for part in tensors_of(answer) if part.grad_fn is not None],
            )
        end_at_sums(pruner.DG)
        return pruner

    def _traced(self, model: nn.Module, example: Example) -> Any:
        """What torch-pruning follows to: the last layers, without a gradient into the part that is cut or out of it."""

        def free(value: Any) -> Any:
            floats = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().requires_grad_() if floats else value

        if not self.cut:
            return at_last_layers(model, example)
        part = model.get_submodule(self.cut)
        hooks = [
            part.register_forward_pre_hook(lambda _, inputs: tree_map(free, inputs)),
            part.register_forward_hook(lambda _, inputs, output: tree_map(free, output)),
        ]
        try:
            return model(*example)
        finally:
            for hook in hooks:
                hook.remove()

    def refused(self) -> dict[str, str]:
        """Layers that stay whole, and why: those kept, and all of a group whose pruning cannot be proved right."""
        trial = copy.deepcopy(self.model)
        pruner = self.pruner(trial, steps=1, whole=self.kept)
        members: dict[str, list[str]] = {}
        ends = []
        with leniently():
            for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=MIXING):
                root, writes = _root(pruner, group), pruner.DG.is_out_channel_pruning_fn
                targets = [item.dep.target.module for item in group if writes(item.dep.handler)]
                members[root] = [pruner.DG._module2name[module] for module in targets if isinstance(module, MIXING)]
                if any(item.dep.target.type == torch_pruning.ops.OPTYPE.OUTPUT for item in group):
                    ends.append(root)
        found = {**self._culprits(ends), **self._culprits([root for root in members if root not in ends])}
        return {**self.kept, **{name: why for root, why in found.items() for name in [root, *members[root]]}}

    def _culprits(self, roots: list[str]) -> dict[str, str]:
        """The groups that cannot be pruned, found by halving."""
        why = self._fault(roots) if roots else None
        if why is None:
            return {}
        if len(roots) == 1:
            return {roots[0]: why}
        middle = len(roots) // 2
        return {**self._culprits(roots[:middle]), **self._culprits(roots[middle:])}

    def _fault(self, roots: list[str]) -> str | None:
        """Why these groups cannot be pruned together, None where it is proved that they can."""
        small, whole = copy.deepcopy(self.model), copy.deepcopy(self.model).eval()
        pruner = self.pruner(small, steps=1, whole=self.kept)
        try:
            with leniently():
                for group in list(pruner.step(interactive=True)):  # indices as they are before anything is pruned
                    if _root(pruner, group) in roots:
                        _blank(whole, pruner, group)
                pruner.current_step = 0
                for group in pruner.step(interactive=True):
                    if _root(pruner, group) in roots:
                        group.prune()
            with PerChannel():
                left, right = answer(small, self.example), answer(whole, self.example)
        except Exception as error:  # whatever a network says to sizes it does not expect
            return f"the network does not run with fewer of its channels ({str(error).splitlines()[0][:120]})"
        if [tensor.shape for tensor in left] != self.shapes:
            return "its channels are the answer"
        for mine, proof in zip(left, right, strict=True):
            if not mine.is_floating_point():
                if not torch.equal(mine, proof):
                    return "without its channels other answers change"
            elif mine.numel() and not (mine - proof).abs().max() <= _TOLERANCE * proof.abs().max().clamp(min=1e-6):
                return "without its channels other answers change"
        return None


class _FilterNorm(torch_pruning.importance.Importance):  # type: ignore[misc]
    """[channels] L1 norm of the filters that write a channel, added over all layers that write it."""

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        channels = len(group[0].idxs)
        norm, found = torch.zeros(channels), False
        for item in group:
            layer, handler = item.dep.target.module, item.dep.handler
            if handler.__name__ != "prune_out_channels" or not isinstance(layer, MIXING) or is_depthwise(layer):
                continue
            weight = layer.weight.detach().float().cpu()
            rows = filters(layer, weight)[item.idxs].abs().flatten(1).sum(1)
            norm.index_add_(0, torch.tensor(item.root_idxs), rows)
            found = True
        return norm if found else None


@torch.no_grad()
def _blank(whole: nn.Module, pruner: Any, group: Any) -> None:
    """Sets to zero in `whole` what reads the channels of `group`."""
    names, device = pruner.DG._module2name, next(whole.parameters()).device
    for item in group:
        target, idxs = item.dep.target, torch.tensor(item.idxs, device=device)
        if target.type == torch_pruning.ops.OPTYPE.PARAMETER:
            whole.get_parameter(pruner.DG._param_to_name[target.module]).index_fill_(target.pruning_dim, idxs, 0)
        elif isinstance(target.module, MIXING) and item.dep.handler.__name__ == "prune_in_channels":
            layer = whole.get_submodule(names[target.module])
            weight = layer.get_parameter("weight")
            if not isinstance(layer, _ConvNd):
                weight.index_fill_(1, idxs, 0)
            elif isinstance(layer, _ConvTransposeNd):
                weight.index_fill_(0, idxs, 0)
            elif not is_depthwise(layer):
                reads, writes = layer.in_channels // layer.groups, layer.out_channels // layer.groups
                for index in item.idxs:
                    group_of, place = divmod(index, reads)
                    weight[group_of * writes : (group_of + 1) * writes, place] = 0


def _root(pruner: Any, group: Any) -> str:
    return str(pruner.DG._module2name[group[0].dep.target.module])
