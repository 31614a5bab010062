"""`RecallLSTM` for one event of each sequence: what a service runs.

Legend: B sequence, I input, H hidden, T remembered state, A attention head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.nn.sequence import RecallLSTM, RecallState

Floats = NDArray[Any]
"""float32, times float64."""

_UNSEEN = -1e4
"""Added to the score of what is not there: its weight is zero, and unlike infinity it has a form in int8."""


class RecallStep:
    """`RecallLSTM.forward` for one event of each sequence, for inference: with one event an operation costs more than its numbers.

    It holds a copy of the weights: for others, make another one.
    """

    @torch.no_grad()
    def __init__(self, recall: RecallLSTM) -> None:
        size = recall.num_hidden
        weight = torch.cat([recall.gates.weight, recall.recurrent.weight], 1).t()
        twice = torch.ones(4 * size, device=weight.device)
        twice[3 * size :] = 2.0  # tanh(x) = 2 * sigmoid(2 * x) - 1
        self.weight, self.bias = (weight * twice).contiguous(), recall.gates.bias * twice
        self.num_states, self.num_heads = recall.num_states, recall.num_heads
        if recall.num_heads:
            scale = 1 / math.sqrt(size + 1)
            self.query_weight = recall.query.weight.t().contiguous() * scale
            self.query_bias = recall.query.bias * scale
            mask = recall.get_buffer("mask").clamp(min=_UNSEEN)
            self.mask = F.pad(mask, (0, 1)).unsqueeze(1)  # [T + 1, 1, T + 1]
        self._one: tuple[Floats, Floats, tuple[Floats, Floats] | None] | None = None

    def __call__(self, inputs: Tensor, time: Tensor, state: RecallState) -> tuple[Tensor, RecallState]:
        """
        Args:
            inputs: [B, I].
            time: [B] float64 days.
            state: what was carried here.

        Returns:
            [B, num_outputs] float32 and the state after the event.
        """
        was_hidden, was_cell, memory, times, was_count = state
        num_states = self.num_states
        gates = torch.addmm(self.bias, torch.cat((inputs, was_hidden), 1), self.weight).sigmoid()
        take, keep, give, new = gates.chunk(4, 1)
        cell = torch.addcmul(keep * was_cell, take, new - 0.5, value=2.0)
        hidden = give * cell.tanh()
        now = time.unsqueeze(1)
        carried = RecallState(
            hidden,
            cell,
            torch.cat((memory.narrow(1, 1, num_states - 1), hidden.unsqueeze(1)), 1),
            torch.cat((times.narrow(1, 1, num_states - 1), now), 1),
            (was_count + 1).clamp(max=num_states),
        )
        if not self.num_heads:
            return hidden, carried
        return self.look_back(hidden, now - times, memory, self.mask.index_select(0, was_count)), carried

    def look_back(self, hidden: Tensor, days: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """What an event recalls of the T states before it.

        Args:
            hidden: [B, H] its own state.
            days: [B, T] float64, how long ago the others arose.
            memory: [B, T, H].
            mask: [B, 1, T + 1], far below zero where there is no state; the last is nothing to recall.

        Returns:
            [B, num_outputs].
        """
        age = (days.relu() * 24.0).log1p().float()
        seen = F.pad(torch.cat((memory, age.unsqueeze(2)), 2), (0, 0, 0, 1))  # [B, T + 1, H + 1], nothing scores zero
        query = torch.addmm(self.query_bias, hidden, self.query_weight).view(-1, self.num_heads, seen.shape[2])
        weight = torch.baddbmm(mask, query, seen.transpose(1, 2)).softmax(2)
        recalled = torch.bmm(weight, seen)
        return torch.cat((hidden, recalled.flatten(1)), 1)

    def one(
        self, inputs: Floats, time: float, hidden: Floats, cell: Floats, memory: Floats, times: Floats, count: int
    ) -> tuple[Floats, Floats, Floats, Floats, Floats, int]:
        """A single event, [I], and its sequence's state without the axis B, in numpy: operations cost a third of torch's.

        Returns:
            [num_outputs] and the new state.
        """
        if self._one is None:
            gates = (self.weight * 0.5).numpy(), (self.bias * 0.5).numpy()  # sigmoid(x) = (1 + tanh(x / 2)) / 2
            heads = (self.query_weight.numpy(), self.query_bias.numpy()) if self.num_heads else None
            self._one = *gates, heads
        weight, bias, heads = self._one
        size, num_states = len(hidden), self.num_states
        gates = np.tanh(np.concatenate((inputs, hidden)) @ weight + bias)
        take, keep, give = (gates[: 3 * size] * 0.5 + 0.5).reshape(3, size)
        cell = keep * cell + take * gates[3 * size :]
        hidden = give * np.tanh(cell)
        new_memory, new_times = np.empty_like(memory), np.empty_like(times)
        new_memory[:-1], new_memory[-1], new_times[:-1], new_times[-1] = memory[1:], hidden, times[1:], time
        new = hidden, cell, new_memory, new_times, min(count + 1, num_states)
        if heads is None or not count:
            return np.concatenate((hidden, np.zeros(self.num_heads * (size + 1), np.float32))), *new
        age = np.log1p(np.maximum(time - times[num_states - count :], 0.0) * 24.0)
        seen = np.empty((count, size + 1), np.float32)
        seen[:, :size], seen[:, size] = memory[num_states - count :], age
        query = (hidden @ heads[0] + heads[1]).reshape(self.num_heads, size + 1)
        score = query @ seen.T
        highest = np.maximum(score.max(1, keepdims=True), 0.0)
        power = np.exp(score - highest)
        recalled = (power / (power.sum(1, keepdims=True) + np.exp(-highest))) @ seen
        return np.concatenate((hidden, recalled.reshape(-1))), *new
