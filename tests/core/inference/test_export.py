"""What ONNX says otherwise than torch: LSTMs of every kind and start, as graphs that give the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from core.contract import TensorSpec
from core.inference.export import write_network


class Lstm(nn.Module):
    """An LSTM from a state that is empty, full of one number, or given."""

    inputs = (TensorSpec("x", ("B", 7, 6)), TensorSpec("hidden", ("B", 5)))

    def __init__(self, start: float | None, *, layers: int = 1, bidirectional: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.start, self.sides = start, layers * (1 + bidirectional)
        self.lstm = nn.LSTM(6, 5, num_layers=layers, bidirectional=bidirectional, bias=bias, batch_first=True)
        self.outputs = (TensorSpec("y", ("B", 7, 10 if bidirectional else 5)),)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        start = hidden.unsqueeze(0).expand(self.sides, -1, -1)
        if self.start is not None:
            start = (torch.ones if self.start else torch.zeros)(self.sides, x.shape[0], 5)
        answer: Tensor = self.lstm(x, (start.contiguous(), start.contiguous()))[0]
        return answer


@pytest.mark.parametrize(
    "network",
    [Lstm(0.0), Lstm(1.0), Lstm(None), Lstm(0.0, layers=2), Lstm(1.0, bidirectional=True), Lstm(0.0, bias=False)],
    ids=["empty", "ones", "given", "two layers", "both ways", "no bias"],
)
def test_an_lstm_answers_in_onnx_as_in_torch(network: Lstm, tmp_path: Path) -> None:
    write_network(network.eval(), tmp_path, "onnx", precision="float32")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x, hidden = torch.randn(batch, 7, 6), torch.randn(batch, 5)
        (found,) = session.run(None, {"x": x.numpy(), "hidden": hidden.numpy()})
        np.testing.assert_allclose(found, network(x, hidden).detach().numpy(), atol=1e-6)


def test_an_empty_start_costs_nothing(tmp_path: Path) -> None:
    """It is the operation's own, not zeros of a size that is worked out at every call."""
    write_network(Lstm(0.0).eval(), tmp_path, "onnx", precision="float32")
    (lstm,) = (node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "LSTM")
    assert not any(lstm.input[5:])
