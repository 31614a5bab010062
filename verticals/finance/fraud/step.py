"""The network as it ships: one event of each card, with the carried state as named tensors in and out.

The numbers are those of `FraudNet.forward`, from weights that are folded beforehand: with one event, every operation
costs more than its numbers, and every weight that is read more than its sum.

Legend: B card, F feature, H hidden, T remembered state, R recalled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.contract import Arrays, TensorSpec
from core.nn.sequence import RecallState
from core.nn.sequence_step import RecallStep
from verticals.finance.fraud.heads import Heads, silu
from verticals.finance.fraud.model import FraudNet

Shapes = Mapping[str, tuple[tuple[int | str, ...], str]]
"""Shape and type of carried tensors, by name."""


class Form(nn.Module):
    """A form of the network for one event of each of B cards: what a Session runs. No control flow that depends on data.

    It holds folded copies of the network's weights, made anew when others are loaded into it or its mode changes.
    """

    def __init__(self, net: FraudNet, shapes: Shapes) -> None:
        super().__init__()
        self.net = net
        self.state = tuple(TensorSpec(name, shape, dtype) for name, (shape, dtype) in shapes.items())
        """The carried tensors, in order; a card never seen starts with zeros."""
        self.inputs = (
            TensorSpec("features", ("B", net.num_features)),
            TensorSpec("time", ("B",), "float64"),
            *self.state,
        )
        """What `forward` takes, in order. `time` is in days."""
        self.outputs = (
            TensorSpec("logit", ("B",)),
            *(TensorSpec(f"new_{spec.name}", spec.shape, spec.dtype) for spec in self.state),
        )
        """What `forward` gives, in order: `new_hidden` is the next event's `hidden`, and so on."""
        self._limit = net.encoding.limit
        self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        net = self.net
        self._changes = net.changes
        self._heads = Heads(net)
        weight, self._embed_bias = (net.embed.get_parameter(f"0.{name}").clone() for name in ("weight", "bias"))
        self._embed = weight.new_zeros(net.num_features, len(weight)).index_copy_(0, net.card, weight.t())

    def _fresh(self) -> None:
        if self._changes != self.net.changes:
            with torch.inference_mode(False):
                self._fold()

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Form:
        super()._apply(change, recurse)  # type: ignore[no-untyped-call]
        self._fold()
        return self

    def train(self, mode: bool = True) -> Form:
        """Sets training or evaluation mode, and folds where that has become stale: an export traces what is there."""
        super().train(mode)
        self._fresh()
        return self

    def embedded(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, I], what the LSTM reads."""
        return F.silu(torch.addmm(self._embed_bias, features.clamp(-self._limit, self._limit), self._embed))

    def weigh(self, features: Tensor, recalled: Tensor) -> Tensor:
        """[B, F] and [B, R] -> [B] logit of the members' mean probability: `FraudNet.weigh` and `pooled` in one."""
        return self._heads(features, recalled)


class ScoreStep(Form):
    """The state that is carried is the LSTM's and its memory: an event costs the same whatever came before."""

    def __init__(self, net: FraudNet) -> None:
        size, num_states = net.config.num_hidden, net.config.num_states
        shapes: Shapes = {
            "hidden": (("B", size), "float32"),
            "cell": (("B", size), "float32"),
            "memory": (("B", num_states, size), "float32"),
            "times": (("B", num_states), "float64"),
            "count": (("B",), "int64"),
        }
        super().__init__(net, shapes)  # in the order of RecallState

    def _fold(self) -> None:
        super()._fold()
        self._history = RecallStep(self.net.history)
        self._one: tuple[NDArray[np.float32], ...] | None = None

    def forward(self, features: Tensor, time: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """[B, F] features, [B] time and the state's tensors -> [B] logit and the new state's tensors."""
        self._fresh()
        recalled, carried = self._history(self.embedded(features), time, RecallState(*state))
        return self.weigh(features, recalled), *carried

    def one(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """`forward` for one card on the CPU, [1, ...] arrays by name: a session prefers it, for numpy's operations cost less."""
        self._fresh()
        if self._one is None:
            self._one = self._embed.numpy(), self._embed_bias.numpy()
        embed, embed_bias = self._one
        features = arrays["features"][0]
        own = np.minimum(np.maximum(features, -self._limit), self._limit)
        met = (arrays[spec.name][0] for spec in self.state)
        hidden, cell, memory, times, count = met
        recalled, *state = self._history.one(
            silu(own @ embed + embed_bias), float(arrays["time"][0]), hidden, cell, memory, times, int(count)
        )
        answer = {"logit": np.array([self._heads.one(features, recalled)], np.float32)}
        for spec, new in zip(self.outputs[1:], state, strict=True):
            answer[spec.name] = np.asarray(new)[None]
        return answer
