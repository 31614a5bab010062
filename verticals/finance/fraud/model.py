"""The network: an LSTM with attention over a card's events, beside the event itself. No input or output, no loss.

`FraudNet` reads whole chunks of histories; `ScoreStep` is the same network for one event a card, with the carried state
as named tensors in and out, which is what ships. Legend: B card, L event, F feature, H hidden, T remembered state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import Config
from core.contract import TensorSpec
from core.nn.sequence import RecallLSTM, RecallState


class ModelConfig(Config):
    """Size of the network."""

    num_embedding: int = 64
    """Width of an event's embedding."""
    num_hidden: int = 48
    """Width of the LSTM's hidden state."""
    num_states: int = 16
    """Hidden states of earlier events that the attention may look back to."""
    num_heads: int = 2
    """Attention heads; 0 leaves attention out."""
    num_features_hidden: int = 128
    """Width of the layers that join event and history."""
    dropout: float = 0.1
    """Share of activations dropped in training."""
    prevalence: float = 0.01
    """Share of frauds that an untrained network answers."""


class FraudNet(nn.Module):
    """Scores a card's events in order, in constant time and memory for each."""

    def __init__(self, config: ModelConfig, num_features: int) -> None:
        """
        Args:
            config: sizes.
            num_features: F, the scaled features of one event.
        """
        super().__init__()
        self.config, self.num_features = config, num_features
        self.embed = nn.Sequential(nn.Linear(num_features, config.num_embedding), nn.SiLU())
        self.history = RecallLSTM(
            config.num_embedding, config.num_hidden, num_states=config.num_states, num_heads=config.num_heads
        )
        width = config.num_features_hidden
        self.head = nn.Sequential(
            nn.Linear(num_features + self.history.num_outputs, width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, 1),
        )
        with torch.no_grad():
            nn.init.constant_(self.get_parameter("head.6.bias"), float(torch.logit(torch.tensor(config.prevalence))))

    def initial(self, batch_size: int, *, device: torch.device | str | None = None) -> RecallState:
        """The state before a card's first event."""
        return self.history.initial(batch_size, device=device)

    def forward(
        self, features: Tensor, time: Tensor, state: RecallState, lengths: Tensor | None = None
    ) -> tuple[Tensor, RecallState]:
        """
        Args:
            features: [B, L, F] float32 scaled features, padding at the end (finite).
            time: [B, L] float64 days.
            state: what was carried here; `initial(B)` for new cards.
            lengths: [B] int64 real events of each row, None where all L are.

        Returns:
            [B, L] float32 logits (without meaning in the padding) and the new state.
        """
        recalled, state = self.history(self.embed(features), time, state, lengths)
        logits: Tensor = self.head(torch.cat([features, recalled], dim=2)).squeeze(2)
        return logits.float(), state

    def step(self, features: Tensor, time: Tensor, state: RecallState) -> tuple[Tensor, RecallState]:
        """`forward` for one event of each card, [B, F] features and [B] time -> [B] logits; a test proves them equal."""
        recalled, state = self.history.step(_run(self.embed, features), time, state)
        logits = _run(self.head, torch.cat([features, recalled], dim=1)).squeeze(1)
        return logits.float(), state


def _run(layers: nn.Sequential, values: Tensor) -> Tensor:
    """The layers, the plain ones without the cost of calling a module, which is more than that of a small one's numbers."""
    for layer in layers._modules.values():
        if type(layer) is nn.Linear:
            values = F.linear(values, layer.weight, layer.bias)
        elif type(layer) is nn.SiLU:
            values = F.silu(values)
        elif type(layer) is not nn.Dropout or layer.training:
            values = layer(values)
    return values


class ScoreStep(nn.Module):
    """One event of each of B cards: what a Session runs. Tensors only, no control flow that depends on data."""

    def __init__(self, net: FraudNet) -> None:
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

    def forward(self, features: Tensor, time: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """[B, F] features, [B] time and the state's tensors -> [B] logit and the new state's tensors."""
        logits, carried = self.net.step(features, time, RecallState(*state))
        return logits, *carried
