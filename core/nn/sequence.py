"""Sequence models whose state is carried: an event costs the same whether its history is long or short.

`RecallLSTM` reads the events of one entity (a card, a machine) in order. Beside its hidden state it remembers its last T
hidden states and when they arose, and each event attends to them. All of that is `RecallState`, a tuple of tensors of
fixed shape: feeding a history in one piece, in chunks, or event by event gives the same numbers.

Legend: B sequence, L event, I input, H hidden, T remembered state, A attention head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RecallState(NamedTuple):
    """What is carried from one event of a sequence to the next."""

    hidden: Tensor
    """[B, H] float32, hidden state of the LSTM."""
    cell: Tensor
    """[B, H] float32, its cell."""
    memory: Tensor
    """[B, T, H] float32, the last T hidden states, oldest first; the newest `count` of them are real."""
    times: Tensor
    """[B, T] float64, days, when they arose."""
    count: Tensor  # type: ignore[assignment]  # tuples have a method of that name
    """[B] int64, how many states the memory holds, at most T."""

    def detach(self) -> RecallState:
        """The same state, cut off from the graph that made it."""
        return RecallState(*(part.detach() for part in self))

    def where(self, keep: Tensor, other: RecallState) -> RecallState:
        """This state in the rows where `keep` ([B] bool) is true, `other` in the rest."""
        return RecallState(
            *(
                torch.where(keep.view(-1, *[1] * (mine.dim() - 1)), mine, its)
                for mine, its in zip(self, other, strict=True)
            )
        )


class RecallLSTM(nn.Module):
    """LSTM in which each event also attends to the hidden states of the T events before it.

    The attention query comes from the event's own hidden state; a remembered state is looked at together with its age
    (logarithm of days), so that "recently" can be learned. A learned nothing-to-recall competes with the memory, hence
    an empty memory needs no special case: it recalls zeros.

    Source:
        Hochreiter & Schmidhuber 1997 for the LSTM; additive context over past states as in the LSTM with attention of
        the Fraud Detection Handbook (Le Borgne et al., 2022). Deviation: there the window is re-run for every event;
        here the states are those of the one long run, so an event costs O(T) and not O(T) LSTM steps.
    """

    def __init__(self, num_inputs: int, num_hidden: int, *, num_states: int = 16, num_heads: int = 2) -> None:
        """
        Args:
            num_inputs: I.
            num_hidden: H.
            num_states: T, how many earlier hidden states are remembered, at least 1.
            num_heads: A, at least 1; 0 leaves attention out (the state keeps its shape).
        """
        super().__init__()
        if num_states < 1 or num_heads < 0:
            raise ValueError(
                f"num_states is {num_states} and num_heads {num_heads}; allowed are at least 1 and at least 0"
            )
        self.num_hidden, self.num_states, self.num_heads = num_hidden, num_states, num_heads
        self.gates = nn.Linear(num_inputs, 4 * num_hidden)
        self.recurrent = nn.Linear(num_hidden, 4 * num_hidden, bias=False)
        self.num_outputs = num_hidden + num_heads * (num_hidden + 1)
        """Width of the output: the hidden state, then for each head what it recalled and its age."""
        if num_heads:
            self.query = nn.Linear(num_hidden, num_heads * (num_hidden + 1))
            place = torch.arange(num_states)
            unreal = place < num_states - torch.arange(num_states + 1)[:, None]
            mask = torch.zeros(num_states + 1, num_states).masked_fill(unreal, -math.inf)
            self.register_buffer("mask", mask, persistent=False)  # [T + 1, T] what to add to scores, by count
        with torch.no_grad():
            self.gates.bias[num_hidden : 2 * num_hidden].fill_(1.0)  # the forget gate starts open
            for part in self.recurrent.weight.chunk(4):
                nn.init.orthogonal_(part)

    def initial(self, batch_size: int, *, device: torch.device | str | None = None) -> RecallState:
        """The state before the first event of `batch_size` sequences."""
        zeros = torch.zeros(batch_size, self.num_hidden, device=device)
        return RecallState(
            zeros,
            zeros.clone(),
            torch.zeros(batch_size, self.num_states, self.num_hidden, device=device),
            torch.zeros(batch_size, self.num_states, dtype=torch.float64, device=device),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def forward(
        self, inputs: Tensor, time: Tensor, state: RecallState, lengths: Tensor | None = None
    ) -> tuple[Tensor, RecallState]:
        """
        Args:
            inputs: [B, L, I] events in order, padding at the end.
            time: [B, L] float64 days, not falling within a sequence.
            state: what was carried here.
            lengths: [B] int64, events that are real; None where all L are.

        Returns:
            [B, L, num_outputs] float32 (without meaning in the padding) and the state after the last real event.
        """
        hiddens, hidden, cell = self._recur(self.gates(inputs).float(), state.hidden, state.cell, lengths)
        memory = torch.cat([state.memory, hiddens], dim=1)
        times = torch.cat([state.times, time], dim=1)
        outputs = (
            torch.cat([hiddens, self._recall(hiddens, memory, time, times, state.count)], dim=2)
            if self.num_heads
            else hiddens
        )
        num_events, num_states = inputs.shape[1], self.num_states
        if lengths is None:
            kept, kept_times = memory[:, num_events:], times[:, num_events:]
            count = state.count + num_events
        else:
            place = lengths[:, None] + torch.arange(num_states, device=lengths.device)
            kept_times = times.gather(1, place)
            kept = memory.gather(1, place[:, :, None].expand(-1, -1, self.num_hidden))
            count = state.count + lengths
        return outputs, RecallState(hidden, cell, kept, kept_times, count.clamp(max=num_states))

    def _recur(
        self, gates: Tensor, hidden: Tensor, cell: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, 4H] input part of the gates -> [B, L, H] hidden states, and the last real hidden state and cell."""
        hiddens = []
        for step, part in enumerate(gates.unbind(1)):
            take, keep, give, new = (part + self.recurrent(hidden).float()).chunk(4, dim=1)
            new_cell = torch.sigmoid(keep) * cell + torch.sigmoid(take) * torch.tanh(new)
            new_hidden = torch.sigmoid(give) * torch.tanh(new_cell)
            if lengths is not None:
                real = (step < lengths)[:, None]
                new_cell, new_hidden = torch.where(real, new_cell, cell), torch.where(real, new_hidden, hidden)
            hidden, cell = new_hidden, new_cell
            hiddens.append(hidden)
        return torch.stack(hiddens, dim=1), hidden, cell

    def _recall(self, hiddens: Tensor, memory: Tensor, time: Tensor, times: Tensor, count: Tensor) -> Tensor:
        """What each event recalls of the T states before it.

        Args:
            hiddens: [B, L, H].
            memory: [B, T + L, H], the carried states and then those of these events.
            time: [B, L] days.
            times: [B, T + L] days.
            count: [B], how many of the carried states are real.

        Returns:
            [B, L, A * (H + 1)].
        """
        batch, num_events, num_hidden = hiddens.shape
        place = torch.arange(memory.shape[1], device=memory.device)
        step = torch.arange(num_events, device=memory.device)[:, None]
        band = (place >= step) & (place < step + self.num_states)  # [L, T + L]: the T states before each event
        seen = band & (place >= self.num_states - count[:, None, None])  # [B, L, T + L]
        age = torch.log1p(24 * (time[:, :, None] - times[:, None, :]).clamp(min=0)).float()  # log of hours
        query = self.query(hiddens).view(batch, num_events, self.num_heads, num_hidden + 1).transpose(1, 2)
        score = query[..., :num_hidden] @ memory[:, None].transpose(2, 3) + query[..., num_hidden:] * age[:, None]
        score = (score / math.sqrt(num_hidden + 1)).float().masked_fill(~seen[:, None], -math.inf)
        nothing = score.new_zeros(batch, self.num_heads, num_events, 1)
        weight = torch.softmax(torch.cat([score, nothing], dim=3), dim=3)[..., :-1]  # [B, A, L, T + L]
        recalled = torch.cat([(weight @ memory[:, None]).float(), (weight * age[:, None]).sum(3, keepdim=True)], dim=3)
        return recalled.transpose(1, 2).reshape(batch, num_events, self.num_heads * (num_hidden + 1))
