"""The network as it ships: one event of each card, with the carried state as named tensors in and out.

The numbers are those of `FraudNet.forward`, from weights that are folded beforehand: with one event, every operation
costs more than its numbers, and every weight that is read more than its sum.

Legend: B card, F feature, H hidden, T remembered state, K member, S side (card, terminal), E evidence, R recalled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.contract import Arrays, TensorSpec
from core.nn.folded import FoldedLinear, Layer
from core.nn.sequence import RecallState, RecallStep
from verticals.finance.fraud.model import FraudNet

_LEAST, _MOST = 1e-300, 700.0
"""Least chance of fraud, and minus the log of the least chance of none, of a member: beyond them float64 ends."""


class ScoreStep(nn.Module):
    """One event of each of B cards: what a Session runs. Tensors only, no control flow that depends on data."""

    def __init__(self, net: FraudNet) -> None:
        """
        Args:
            net: its weights are folded now, and again when others are loaded into it or its mode changes.
        """
        super().__init__()
        self.net = net
        config = net.config
        shapes: dict[str, tuple[tuple[int | str, ...], str]] = {
            "hidden": (("B", config.num_hidden), "float32"),
            "cell": (("B", config.num_hidden), "float32"),
            "memory": (("B", config.num_states, config.num_hidden), "float32"),
            "times": (("B", config.num_states), "float64"),
            "count": (("B",), "int64"),
        }
        self.state = tuple(TensorSpec(name, shape, dtype) for name, (shape, dtype) in shapes.items())
        """The carried tensors, in the order of `RecallState`; a card never seen starts with zeros."""
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
        sides = (net.of_card, net.of_terminal)
        card, terminal = (side.first for side in sides)
        num_encoded = net.encoding.num_outputs * len(net.card)
        encoded, recalled = card.weight[:, :num_encoded], card.weight[:, num_encoded:]
        layers = [Layer(net.card, encoded, card.bias), Layer(net.terminal, terminal.weight, terminal.bias)]
        self._first, self._history = FoldedLinear(net.encoding, layers), RecallStep(net.history)
        self._recalled = recalled.t().contiguous()  # [R, E]
        weight, self._embed_bias = (net.embed.get_parameter(f"0.{name}").clone() for name in ("weight", "bias"))
        self._embed = weight.new_zeros(net.num_features, len(weight)).index_copy_(0, net.card, weight.t())
        self._spread = torch.stack([side.spread for side in sides])[:, :, None]  # [S, K, 1, E]
        self._second = torch.stack([side.second.weight.t() for side in sides])  # [S, E, E]
        self._second_bias = torch.stack([side.second.bias for side in sides])[:, None]  # [S, 1, E]
        self._scale = torch.stack([side.scale for side in sides])[:, :, None]  # [S, K, 1, E]
        out, bias = (torch.cat([getattr(side, name) for side in sides]) for name in ("out", "bias"))
        self._out = torch.stack([out, -out], 2)  # [S * K, E, 2] for and against fraud
        self._bias = torch.stack([bias, -bias], 1)[:, None]  # [S * K, 1, 2]
        self._one: tuple[NDArray[np.float32], ...] | None = None

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> ScoreStep:
        super()._apply(change, recurse)  # type: ignore[no-untyped-call]
        self._fold()
        return self

    def forward(self, features: Tensor, time: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """[B, F] features, [B] time and the state's tensors -> [B] logit and the new state's tensors."""
        if self._changes != self.net.changes:
            with torch.inference_mode(False):
                self._fold()
        embedded = F.silu(torch.addmm(self._embed_bias, features.clamp(-self._limit, self._limit), self._embed))
        recalled, carried = self._history(embedded, time, RecallState(*state))
        return self.weigh(features, recalled), *carried

    def weigh(self, features: Tensor, recalled: Tensor) -> Tensor:
        """[B, F] and [B, R] -> [B] logit of the members' mean probability: `FraudNet.weigh` and `pooled` in one."""
        first = self._first(features)
        first.select(1, 0).addmm_(recalled, self._recalled)
        batch, num_sides, width = first.shape
        hidden = F.silu(first).transpose(0, 1).unsqueeze(1) * self._spread  # [S, K, B, E]
        hidden = torch.baddbmm(self._second_bias, hidden.reshape(num_sides, -1, width), self._second)
        hidden = F.silu(hidden.view(num_sides, -1, batch, width) * self._scale)
        either = torch.baddbmm(self._bias, hidden.view(-1, batch, width), self._out).double().sigmoid()
        card, terminal = either.view(num_sides, -1, batch, 2).unbind(0)  # [K, B, 2] chances of fraud and of none
        (fraud, none), (fraud_too, none_too) = card.unbind(2), terminal.unbind(2)
        yes = torch.addcmul(fraud, none, fraud_too).clamp_min(_LEAST).sum(0)
        return (yes / (none * none_too).clamp_min(math.exp(-_MOST)).sum(0)).log().float()

    def one(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """`forward` for one card on the CPU, [1, ...] arrays by name: a session prefers it, for numpy's operations cost less."""
        if self._changes != self.net.changes:
            with torch.inference_mode(False):
                self._fold()
        if self._one is None:
            folded = (self._embed, self._embed_bias, self._recalled, self._spread[:, :, 0], self._second)
            heads = (self._out[:, :, 0].view_as(folded[3]), self._bias[:, 0, 0].view(len(self._second), -1))
            arrays_of = (*folded, self._second_bias, self._scale[:, :, 0], *heads)
            self._one = tuple(tensor.numpy() for tensor in arrays_of)
        embed, embed_bias, recalled_weight, spread, second, second_bias, scale, out, bias = self._one
        features = arrays["features"][0]
        own = np.minimum(np.maximum(features, -self._limit), self._limit)
        met = (arrays[spec.name][0] for spec in self.state)
        hidden, cell, memory, times, count = met
        recalled, *state = self._history.one(
            _silu(own @ embed + embed_bias), float(arrays["time"][0]), hidden, cell, memory, times, int(count)
        )
        first = self._first.one(features)
        first[0] += recalled @ recalled_weight
        inside = _silu((np.matmul(_silu(first)[:, None] * spread, second) + second_bias) * scale)  # [S, K, E]
        card, terminal = (np.einsum("ske,ske->sk", inside, out) + bias).tolist()
        answer = {"logit": np.array([_either(card, terminal)], np.float32)}
        for spec, new in zip(self.outputs[1:], state, strict=True):
            answer[spec.name] = np.asarray(new)[None]
        return answer


def _either(card: list[float], terminal: list[float]) -> float:
    """[K] logits of either side -> logit of the members' mean probability."""
    yes = no = 0.0
    for one, other in zip(card, terminal, strict=True):
        none = max(one, 0.0) + math.log1p(math.exp(-abs(one))) + max(other, 0.0) + math.log1p(math.exp(-abs(other)))
        none = min(max(none, _LEAST), _MOST)  # minus the log of no fraud on either side
        yes, no = yes - math.expm1(-none), no + math.exp(-none)
    return math.log(yes / no)


def _silu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    half: NDArray[np.float32] = values * np.float32(0.5)
    silu: NDArray[np.float32] = half + half * np.tanh(half)
    return silu
