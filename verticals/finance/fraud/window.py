"""The network over a window: the LSTM runs anew through a card's last events for each event, from an empty state.

The answers are those of `FraudNet.forward` until the window is full; after that events drop out of it, where the carried
state of `step.ScoreStep` would still hold their trace. It costs more, and most of it is one LSTM over many events.

Legend: B card, I embedding, H hidden, L event of the window, T remembered state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.nn.sequence_step import RecallStep
from verticals.finance.fraud.model import FraudNet
from verticals.finance.fraud.step import Form, Shapes

_CLOSED = -1e4
"""What is added to the LSTM's input gate where the window holds no event: nothing enters, and its state stays zero."""


class WindowStep(Form):
    """The state that is carried is the window: the embedded events of a card before this one, the newest last."""

    float_layers = ("LSTM",)
    """Kinds of ONNX operations that stay float32 in int8: with so few hidden units an int8 LSTM is the slower one, and what
    closes its gate takes the scale of the weights beside it."""

    def __init__(self, net: FraudNet, num_events: int = 64) -> None:
        """
        Args:
            num_events: L, the newest one among them; more than the network's T.
        """
        if num_events <= net.config.num_states:
            raise ValueError(f"a window of {num_events} events is not longer than num_states, {net.config.num_states}")
        self.num_events, past = num_events, num_events - 1
        shapes: Shapes = {
            "window": (("B", past, net.config.num_embedding), "float32"),
            "times": (("B", past), "float64"),
            "count": (("B",), "int64"),
        }
        super().__init__(net, shapes)

    @torch.no_grad()
    def _fold(self) -> None:
        super()._fold()
        recall, past = self.net.history, self.num_events - 1
        self._history, device = RecallStep(recall), recall.gates.weight.device
        take, keep, give, new = torch.arange(4 * recall.num_hidden, device=device).chunk(4)
        order = torch.cat([take, keep, new, give])  # as torch's LSTM has its gates
        missing = torch.zeros(len(order), 1, device=device)
        missing[take] = _CLOSED
        weights = torch.cat([recall.gates.weight[order], missing], 1), recall.recurrent.weight[order]
        self._lstm = [*weights, recall.gates.bias[order], torch.zeros(len(order), device=device)]
        count, place = torch.arange(past + 1, device=device)[:, None], torch.arange(past + 1, device=device)
        self._missing = (place < past - count).float().unsqueeze(2)  # [L, L, 1] by count: 1 where there is no event
        if recall.num_heads:
            self._mask = self._history.mask[count[:, 0].clamp(max=recall.num_states)]  # [L, 1, T + 1] by count

    def forward(self, features: Tensor, time: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """[B, F] features, [B] time and the state's tensors -> [B] logit and the new state's tensors."""
        self._fresh()
        window, times, count = state
        past, num_states, now = self.num_events - 1, self._history.num_states, time.unsqueeze(1)
        events = torch.cat((window, self.embedded(features).unsqueeze(1)), 1)  # [B, L, I]
        given = torch.cat((events, self._missing.index_select(0, count)), 2)
        start = events.new_zeros(1, events.shape[0], self.net.history.num_hidden)
        hiddens = torch.lstm(given, (start, start), self._lstm, True, 1, 0.0, False, False, True)[0]
        recalled = hiddens.select(1, past)
        if self.net.history.num_heads:
            before = past - num_states
            memory, days = hiddens.narrow(1, before, num_states), now - times.narrow(1, before, num_states)
            recalled = self._history.look_back(recalled, days, memory, self._mask.index_select(0, count))
        carried = events.narrow(1, 1, past), torch.cat((times.narrow(1, 1, past - 1), now), 1)
        return self.weigh(features, recalled), *carried, (count + 1).clamp(max=past)
