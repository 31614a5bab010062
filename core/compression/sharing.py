"""Consecutive layers of one shape use one set of parameters: the file gets smaller, the computation does not.

Each layer stays a module of its own, with its own dropout, buffers and hooks; only the parameters are the same objects.
`core.run` writes them once and says in the file who else uses them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from safetensors.torch import save
from torch import nn

from core.errors import ConfigError
from core.run import weights_of


class ParameterSharing:
    """Shares parameters within groups of consecutive layers, found in every ModuleList and Sequential.

    Source:
        Lan et al., ALBERT, 2020 (arXiv:1909.11942): groups of layers. Deviation: there a network is trained so from the
        start; here one may be trained already, and then a group starts from its first layer and has to be trained on.
    """

    def __init__(self, model: nn.Module, group_size: int = 4) -> None:
        """
        Args:
            model: left as it is.
            group_size: layers that share one set, from 2 to the length of the longest row of equal layers; what is left
                at a row's end makes a smaller group.

        Raises:
            ConfigError: the group size is out of range, or no two consecutive layers have the same parameters.
        """
        self.model, self.group_size = model, group_size
        rows = list(_rows(model))
        longest = max((len(row) for row in rows), default=0)
        if not longest:
            raise ConfigError(
                f"the {type(model).__name__} has no ModuleList or Sequential with two consecutive layers of one shape: "
                "there is nothing to share"
            )
        if not 2 <= group_size <= longest:
            raise ConfigError(f"group_size is {group_size}; allowed is 2 to {longest}, the longest row of equal layers")
        chunks = [row[start : start + group_size] for row in rows for start in range(0, len(row), group_size)]
        self.groups = [tuple(chunk) for chunk in chunks if len(chunk) > 1]
        """Names of the layers of each group."""

    def share(self) -> nn.Module:
        """A copy of the model whose groups share their parameters."""
        model = copy.deepcopy(self.model)
        for first, *others in self.groups:
            chosen = dict(model.get_submodule(first).named_parameters())
            for name, parameter in chosen.items():
                owner, _, last = name.rpartition(".")
                for other in others:
                    setattr(model.get_submodule(f"{other}.{owner}".rstrip(".")), last, parameter)
        return model


def num_file_bytes(model: nn.Module) -> int:
    """Size of the file that `Run.write_weights` makes: every tensor once, with the header."""
    tensors, shared = weights_of(model)
    return len(save(tensors, shared))


def _rows(module: nn.Module, prefix: str = "") -> Iterator[list[str]]:
    """Names of consecutive layers of one shape, two and more; rows within a layer of a row are left out."""
    row: list[str] = []
    within: set[str] = set()
    kind = None
    for name, child in module.named_children() if isinstance(module, (nn.ModuleList, nn.Sequential)) else ():
        shape = _shape(child)
        if not shape[1]:  # an activation between two layers
            continue
        if row and shape != kind:
            if len(row) > 1:
                yield row
                within.update(row)
            row = []
        row, kind = [*row, f"{prefix}{name}"], shape
    if len(row) > 1:
        yield row
        within.update(row)
    for name, child in module.named_children():
        if f"{prefix}{name}" not in within:
            yield from _rows(child, f"{prefix}{name}.")


def _shape(module: nn.Module) -> tuple[type, tuple[tuple[str, tuple[int, ...]], ...]]:
    return type(module), tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
