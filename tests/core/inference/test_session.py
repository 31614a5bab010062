"""The session: arrays as their specs say, in and out, and nothing else."""

import numpy as np
import pytest
import torch
from torch import nn

from core.contract import TensorSpec
from core.inference.session import TorchSession


class Doubler(nn.Module):
    inputs = (TensorSpec("x", ("B", 3)), TensorSpec("time", ("B",), "float64"))
    outputs = (TensorSpec("y", ("B", 3)), TensorSpec("later", ("B",), "float64"))

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.drop(x) * self.scale, time + 1


def test_named_arrays_in_and_out_without_dropout_or_gradient() -> None:
    session = TorchSession(Doubler().train())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    results = session({"x": x, "time": np.array([1.0, 2.0])})
    assert list(results) == ["y", "later"]
    np.testing.assert_array_equal(results["y"], 2 * x)
    assert results["later"].dtype == np.float64


def test_inputs_are_not_changed_and_may_be_slices() -> None:
    session = TorchSession(Doubler())
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    kept = wide.copy()
    results = session({"x": wide[:, ::2], "time": np.zeros(2)})
    np.testing.assert_array_equal(results["y"], 2 * wide[:, ::2])
    np.testing.assert_array_equal(wide, kept)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "needed are"),
        ({"x": np.zeros((1, 3), np.float32), "time": np.zeros(1), "more": np.zeros(1)}, "needed are"),
        ({"x": np.zeros((1, 4), np.float32), "time": np.zeros(1)}, "x is float32"),
        ({"x": np.zeros((1, 3)), "time": np.zeros(1)}, "x is float64"),
        ({"x": np.zeros(3, np.float32), "time": np.zeros(1)}, "allowed is float32"),
    ],
)
def test_other_arrays_are_refused_by_name(arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TorchSession(Doubler())(arrays)


class Single(Doubler):
    def one(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": arrays["x"] * 3, "later": arrays["time"]}


def test_a_single_row_goes_the_networks_own_way() -> None:
    session = TorchSession(Single())
    row = np.ones((1, 3), np.float32)
    assert session({"x": row, "time": np.zeros(1)})["y"].tolist() == [[3.0, 3.0, 3.0]]
    assert session({"x": np.ones((2, 3), np.float32), "time": np.zeros(2)})["y"].max() == 2.0
    with pytest.raises(ValueError, match="x is float64"):
        session({"x": np.ones((1, 3)), "time": np.zeros(1)})
