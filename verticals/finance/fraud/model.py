"""The network: an LSTM with attention over a card's events, beside the event itself. No input or output, no loss.

Two kinds of evidence are kept apart and meet as probabilities: the card's (its events, its history) and the terminal's.
`FraudNet` reads whole chunks of histories; `step.ScoreStep` is the same network for one event a card, which is what ships.

Legend: B card, L event, F feature, H hidden, T remembered state, K member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Config
from core.nn.encoding import PiecewiseLinear
from core.nn.sequence import RecallLSTM, RecallState


class ModelConfig(Config):
    """Size of the network."""

    num_bins: int = Field(12, ge=1)
    """Quantile bins of a feature's encoding, of all training events and again of the frauds."""
    num_steps: int = Field(7, ge=0)
    """Thresholds of a feature's encoding at which frauds part from the rest, at most."""
    num_embedding: int = Field(48, ge=1)
    """Width of an event's embedding."""
    num_hidden: int = Field(48, ge=1)
    """Width of the LSTM's hidden state."""
    num_states: int = Field(16, ge=1)
    """Hidden states of earlier events that the attention may look back to."""
    num_heads: int = Field(2, ge=0)
    """Attention heads; 0 leaves attention out."""
    num_evidence: int = Field(128, ge=1)
    """Width of the layers that weigh one kind of evidence."""
    num_members: int = Field(4, ge=1)
    """Members of the ensemble that shares these layers; their probabilities are averaged."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of activations dropped in training."""
    input_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of encoded features dropped in training."""
    prevalence: float = Field(0.01, gt=0, lt=1)
    """Share of frauds that an untrained network answers."""


class Evidence(nn.Module):
    """Weighs one kind of evidence: K members that share their weights and scale them each in its own way.

    Source:
        Gorishniy, Kotelnikov and Babenko, TabM, 2024 (arXiv:2410.24210), after BatchEnsemble (Wen et al., 2020).
    """

    def __init__(self, num_inputs: int, config: ModelConfig) -> None:
        super().__init__()
        width, members = config.num_evidence, config.num_members
        self.first, self.second = nn.Linear(num_inputs, width), nn.Linear(width, width)
        self.spread = nn.Parameter(
            torch.ones(members, width) + (0.5 * torch.randn(members, width) if members > 1 else 0)
        )
        self.scale = nn.Parameter(torch.ones(members, width))
        self.out = nn.Parameter(torch.randn(members, width) * (0.3 / math.sqrt(width)))
        self.bias = nn.Parameter(torch.full((members,), math.log(config.prevalence / 2)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., num_inputs] -> [..., K] logits."""
        hidden = self.dropout(F.silu(self.first(inputs)))[..., None, :] * self.spread
        hidden = F.silu(self.second(hidden) * self.scale)
        return (hidden * self.out).sum(-1).float() + self.bias


class FraudNet(nn.Module):
    """Scores a card's events in order, in constant time and memory for each."""

    card: Tensor
    terminal: Tensor

    def __init__(self, config: ModelConfig, columns: Sequence[str]) -> None:
        """
        Args:
            config: sizes.
            columns: [F] names of the scaled features of one event; the names say whose they are.
        """
        super().__init__()
        self.config, self.num_features = config, len(columns)
        self.changes = 0
        """Rises where weights may have changed: when others are loaded, and between training and evaluation."""
        self.register_load_state_dict_post_hook(_count_change)  # type: ignore[no-untyped-call]
        sides = {
            "card": [i for i, name in enumerate(columns) if not name.startswith("terminal_")],
            "terminal": [i for i, name in enumerate(columns) if not name.startswith(("customer_", "pair_"))],
        }
        for name, places in sides.items():
            self.register_buffer(name, torch.tensor(places, dtype=torch.int64), persistent=False)
        self.encoding = PiecewiseLinear(len(columns), config.num_bins, num_steps=config.num_steps)
        self.embed = nn.Sequential(nn.Linear(len(sides["card"]), config.num_embedding), nn.SiLU())
        self.history = RecallLSTM(
            config.num_embedding, config.num_hidden, num_states=config.num_states, num_heads=config.num_heads
        )
        width = self.encoding.num_outputs
        self.of_card = Evidence(width * len(sides["card"]) + self.history.num_outputs, config)
        self.of_terminal = Evidence(width * len(sides["terminal"]), config)

    def initial(self, batch_size: int, *, device: torch.device | str | None = None) -> RecallState:
        """The state before a card's first event."""
        return self.history.initial(batch_size, device=device)

    def forward(
        self,
        features: Tensor,
        time: Tensor,
        state: RecallState,
        lengths: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, RecallState]:
        """
        Args:
            features: [B, L, F] float32 scaled features, padding at the end (finite).
            time: [B, L] float64 days.
            state: what was carried here; `initial(B)` for new cards.
            lengths: [B] int64 real events of each row, None where all L are.
            wanted: [B, L] bool, N of them true: the events whose logits are computed; None for all.

        Returns:
            [B, L, K] or [N, K] float32 logits of the members (without meaning in the padding; `pooled` makes one of
            them) and the new state.
        """
        recalled, state = self.recall(features, time, state, lengths)
        if wanted is not None:
            features, recalled = features[wanted], recalled[wanted]
        return self.weigh(features, recalled), state

    def recall(
        self, features: Tensor, time: Tensor, state: RecallState, lengths: Tensor | None = None
    ) -> tuple[Tensor, RecallState]:
        """What each event's card remembers with it: [B, L, R], the hidden state first, and the new state; see `forward`."""
        recalled: tuple[Tensor, RecallState] = self.history(self.embed(self._own(features)), time, state, lengths)
        return recalled

    def train(self, mode: bool = True) -> FraudNet:
        """Sets training or evaluation mode."""
        self.changes += mode != self.training
        return super().train(mode)

    def _own(self, features: Tensor) -> Tensor:
        limit = self.encoding.limit
        own: Tensor = features[..., self.card].clamp(-limit, limit)
        return own

    def weigh(self, features: Tensor, recalled: Tensor) -> Tensor:
        """[..., F] and [..., R] -> [..., K]: fraud if the card or the terminal makes it one (noisy or: -log(1 - p) adds up)."""
        card = torch.cat([self._encoded(features, self.card), recalled], dim=-1)
        none = F.softplus(self.of_card(card)) + F.softplus(self.of_terminal(self._encoded(features, self.terminal)))
        return none + torch.log(-torch.expm1(-none.clamp(min=1e-30)))

    def _encoded(self, features: Tensor, side: Tensor) -> Tensor:
        """[..., F] -> [..., G * num_outputs]; in training whole features are left out by chance."""
        encoded = self.encoding(features, side)
        if self.training and self.config.input_dropout:
            kept = F.dropout(torch.ones_like(encoded[..., :1]), self.config.input_dropout)
            encoded = encoded * kept
        flat: Tensor = encoded.flatten(-2)
        return flat


def _count_change(net: FraudNet, keys: Any) -> None:
    net.changes += 1


def pooled(logits: Tensor) -> Tensor:
    """[..., K] logits of members -> [...] logit of their mean probability."""
    yes, no = (torch.logsumexp(F.logsigmoid(sign * logits), dim=-1) for sign in (1, -1))
    return yes - no
