"""`FraudNet.weigh` and `pooled` in one, from weights that are folded beforehand: the part that every form of the network shares.

Legend: B card, F feature, K member, S side (card, terminal), E evidence, R recalled.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.nn.folded import FoldedLinear, Layer
from verticals.finance.fraud.model import FraudNet

_LEAST, _MOST = 1e-300, 700.0
"""Least chance of fraud, and minus the log of the least chance of none, of a member: beyond them float64 ends."""

_CERTAIN = 1e4
"""A logit whose chance is 1."""


class Heads:
    """From features and what is recalled to one logit. It holds a copy of the weights: for others, make another one."""

    @torch.no_grad()
    def __init__(self, net: FraudNet) -> None:
        sides = (net.of_card, net.of_terminal)
        card, terminal = (side.first for side in sides)
        num_encoded = net.encoding.num_outputs * len(net.card)
        encoded, recalled = card.weight[:, :num_encoded], card.weight[:, num_encoded:]
        layers = [Layer(net.card, encoded, card.bias), Layer(net.terminal, terminal.weight, terminal.bias)]
        self._first = FoldedLinear(net.encoding, layers)
        self._recalled = recalled.t().contiguous()  # [R, E]
        self._spread = torch.stack([side.spread for side in sides])[:, :, None]  # [S, K, 1, E]
        self._second = torch.stack([side.second.weight.t() for side in sides])  # [S, E, E]
        self._second_bias = torch.stack([side.second.bias for side in sides])[:, None]  # [S, 1, E]
        self._scale = torch.stack([side.scale for side in sides])[:, :, None]  # [S, K, 1, E]
        out, bias = (torch.cat([getattr(side, name) for side in sides]) for name in ("out", "bias"))
        self._out = torch.stack([out, -out], 2)  # [S * K, E, 2] for and against fraud
        self._bias = torch.stack([bias, -bias], 1)[:, None]  # [S * K, 1, 2]
        self._one: tuple[NDArray[np.float32], ...] | None = None
        self._trace(net)

    def _trace(self, net: FraudNet) -> None:
        """Chances are products of one factor of either side: of fraud (card's fraud) * 1 and (card's none) * (terminal's fraud),
        of none (card's none) * (terminal's none). The sides' last layers give these factors, 3 * K of each.
        """
        signs = self._bias.new_tensor([[1.0, -1.0, -1.0], [0.0, 1.0, -1.0]])
        own = torch.eye(members := net.config.num_members, device=signs.device)
        self._factors = []
        """Of each side: weight [K * E, 3 * K], bias."""
        for side, sign in zip((net.of_card, net.of_terminal), signs, strict=True):
            weight = torch.einsum("ke,j,kl->kejl", side.out, sign, own).reshape(-1, 3 * members)
            bias = sign[:, None] * side.bias + (sign == 0)[:, None] * _CERTAIN
            self._factors.append((weight, bias.flatten()))
        either = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, device=signs.device)
        self._either = either.repeat_interleave(members, 0)  # [3 * K, 2] which chances add up to fraud and to none
        self._least = members * either.new_tensor([_LEAST, math.exp(-_MOST)])
        self._odds = either.new_tensor([1.0, -1.0])

    def __call__(self, features: Tensor, recalled: Tensor) -> Tensor:
        """[B, F] and [B, R] -> [B] logit of the members' mean probability."""
        if torch.compiler.is_exporting():
            return self._traced(features, recalled)
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

    def _traced(self, features: Tensor, recalled: Tensor) -> Tensor:
        """The same in operations that ONNX has, and in few of them: an exported graph is this."""
        card, terminal = self._first.traced(features)  # [B, 1, E]
        chances = []
        for side, first in enumerate((card + recalled.unsqueeze(1) @ self._recalled, terminal)):
            hidden = F.silu(first) * self._spread[side, :, 0]  # [B, K, E]
            hidden = F.silu((hidden @ self._second[side] + self._second_bias[side]) * self._scale[side, :, 0])
            weight, bias = self._factors[side]
            chances.append(torch.addmm(bias, hidden.flatten(1), weight).double().sigmoid())
        either = (chances[0] * chances[1]) @ self._either  # [B, 2]
        return (torch.maximum(either, self._least).log() @ self._odds).float()

    def one(self, features: NDArray[np.float32], recalled: NDArray[np.float32]) -> float:
        """A single event's [F] and [R], on the CPU in numpy: its operations cost less."""
        if self._one is None:
            folded = (self._recalled, self._spread[:, :, 0], self._second, self._second_bias, self._scale[:, :, 0])
            heads = (self._out[:, :, 0].view_as(folded[1]), self._bias[:, 0, 0].view(len(self._second), -1))
            self._one = tuple(tensor.numpy() for tensor in (*folded, *heads))
        recalled_weight, spread, second, second_bias, scale, out, bias = self._one
        first = self._first.one(features)
        first[0] += recalled @ recalled_weight
        inside = silu((np.matmul(silu(first)[:, None] * spread, second) + second_bias) * scale)  # [S, K, E]
        card, terminal = (np.einsum("ske,ske->sk", inside, out) + bias).tolist()
        return _either(card, terminal)


def _either(card: list[float], terminal: list[float]) -> float:
    """[K] logits of either side -> logit of the members' mean probability."""
    yes = no = 0.0
    for one, other in zip(card, terminal, strict=True):
        none = max(one, 0.0) + math.log1p(math.exp(-abs(one))) + max(other, 0.0) + math.log1p(math.exp(-abs(other)))
        none = min(max(none, _LEAST), _MOST)  # minus the log of no fraud on either side
        yes, no = yes - math.expm1(-none), no + math.exp(-none)
    return math.log(yes / no)


def silu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    half: NDArray[np.float32] = values * np.float32(0.5)
    result: NDArray[np.float32] = half + half * np.tanh(half)
    return result
