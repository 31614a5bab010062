"""Networks of several parts that are called one at a time: an encoder of pictures, one of texts, a head that compares.

A form of a network may be `Parts`. Its session takes the inputs of one part a call; an artifact of it holds a graph for each part.
A name is one tensor wherever it stands: what one part gives another may take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.contract import Arrays, Session, TensorSpec
from core.inference.session import Precision, TorchSession

WHOLE = ""
"""Name of the only part of a network that has none."""


class Parts(nn.Module):
    """Called with the inputs of all parts, in order, it gives the outputs of all."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        """
        Args:
            parts: networks with `inputs` and `outputs`, no two with an output of one name.
        """
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.inputs, self.outputs = specs_of(parts)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip((spec.name for spec in self.inputs), tensors, strict=True))
        results: list[Tensor] = []
        for part in self.parts.values():
            made = part(*(given[spec.name] for spec in part.inputs))  # type: ignore[union-attr]
            results += [made] if isinstance(made, Tensor) else made
        return tuple(results)


def parts_of(network: nn.Module) -> Mapping[str, nn.Module]:
    """A network's parts by name; itself as `WHOLE` where it has none."""
    return dict(network.parts.items()) if isinstance(network, Parts) else {WHOLE: network}


def specs_of(parts: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of all, each name once."""
    inputs = {spec.name: spec for part in parts.values() for spec in part.inputs}
    outputs = [spec for part in parts.values() for spec in part.outputs]
    return tuple(inputs.values()), tuple(outputs)


class PartsSession:
    """A session of each part; a call runs the one whose inputs it names, or several."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self.sessions = dict(sessions)
        self._names = {name: frozenset(spec.name for spec in session.inputs) for name, session in sessions.items()}
        self.inputs, self.outputs = specs_of(sessions)

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        """
        Raises:
            ValueError: an array is no part's, lacks another of its part, or is not what its TensorSpec says.
        """
        called = [name for name, names in self._names.items() if names <= arrays.keys()]
        if not called or set().union(*(self._names[name] for name in called)) != arrays.keys():
            parts = "; ".join(", ".join(sorted(names)) for names in self._names.values())
            raise ValueError(
                f"given arrays {', '.join(sorted(arrays))}; a call takes all those of one part, or of several: {parts}"
            )
        results: Arrays = {}
        for name in called:
            results |= self.sessions[name]({tensor: arrays[tensor] for tensor in self._names[name]}, out=out)
        return results


def sessions_of(session: Session) -> Mapping[str, Session]:
    """A session's parts by name; itself as `WHOLE` where it has none."""
    return session.sessions if isinstance(session, PartsSession) else {WHOLE: session}


def torch_session(
    network: nn.Module, *, device: torch.device | None = None, precision: Precision = "float32"
) -> Session:
    """A session over a network in torch, whether it has parts or not."""
    if isinstance(network, Parts):
        return PartsSession(
            {name: TorchSession(part, device=device, precision=precision) for name, part in network.parts.items()}
        )
    return TorchSession(network, device=device, precision=precision)
