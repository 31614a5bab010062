"""What better means for card fraud: a focal loss over the events that count, with the card's state carried along.

A batch is the next chunk of each of B lanes. A lane goes through one card's history chunk by chunk and then takes up
the next card; the state after a chunk is where the next one starts, as in serving, and gradients stop between chunks.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from core.config import Config
from core.contract import Step
from core.nn.losses import FocalLoss
from core.nn.sequence import RecallState
from verticals.finance.fraud.model import FraudNet


class Batch(NamedTuple):
    """The next chunk of each lane. B lane, L event, F feature."""

    features: Tensor
    """[B, L, F] float32 scaled features, zeros in the padding."""
    time: Tensor
    """[B, L] float64 days, zeros in the padding."""
    target: Tensor
    """[B, L] float32, 1 fraud, 0 genuine."""
    weight: Tensor
    """[B, L] float32, 0 for context and padding."""
    lengths: Tensor
    """[B] int64 real events of each lane."""
    fresh: Tensor
    """[B] bool, true where the lane takes up a new card: its state starts from nothing."""
    normalizer: Tensor
    """[] float32, what the weighted losses are divided by: the mean over ranks is the loss of the global batch."""


class LossConfig(Config):
    """The loss."""

    gamma: float = 0.0
    """Focus of the focal loss; 0 is cross entropy."""
    alpha: float | None = None
    """Share of the fraud class in the loss, None for one weight each."""
    smoothing: float = 0.0
    """Targets are moved this far from 0 and 1."""


class FraudTask(nn.Module):
    """Network and loss. The carried state lives here and never in the checkpoint: every epoch begins with new cards."""

    def __init__(self, model: FraudNet, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = FocalLoss(config.gamma, alpha=config.alpha, reduction="none")
        self.smoothing = config.smoothing
        self._state: RecallState | None = None

    def forward(self, batch: Batch) -> Step:
        """The loss of the lanes' next chunk; the lanes' state moves on."""
        wanted = batch.weight > 0
        logits, state = self.model(batch.features, batch.time, self._carried(batch), batch.lengths, wanted)
        self._state = state.detach()
        target = batch.target[wanted] * (1 - 2 * self.smoothing) + self.smoothing
        members = self.loss(logits, target[:, None].expand_as(logits)).mean(-1)  # each member learns for itself
        loss = (members * batch.weight[wanted]).sum() / batch.normalizer
        return Step(loss, {"loss": loss.detach(), "events": wanted.sum()})

    def _carried(self, batch: Batch) -> RecallState:
        """The state each lane goes on from. A different number of lanes means other data: all start from nothing."""
        start = self._network().initial(len(batch.fresh), device=batch.features.device)
        if self._state is None or len(self._state.hidden) != len(batch.fresh):
            return start
        return start.where(batch.fresh, self._state)

    def _network(self) -> FraudNet:
        """The network itself, under whatever torch.compile has wrapped around it."""
        return getattr(self.model, "_orig_mod", self.model)
