"""One weight changed in an artifact's file is located at its very layer, with its path and its line."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from core.contract import TensorSpec
from core.inference import artifact
from core.inference.departure import error_of, first_departure
from core.inference.export import graphs_of, to_openvino, write_network
from tests.core.inference.conftest import network_of, record_of

FORMATS: tuple[artifact.Format, ...] = ("torch", "onnx", "openvino")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.wide(x))
        return x + self.narrow(hidden)


class Deep(nn.Module):
    """Two blocks and two heads, of which one gives an output directly."""

    inputs = (TensorSpec("x", ("B", 6)),)
    outputs = (TensorSpec("score", ("B", 1)), TensorSpec("linear", ("B", 2)), TensorSpec("state", ("B", 6)))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.score, self.other = nn.Linear(6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = torch.relu_(self.blocks[0](x))  # in place: the block's sum is written over
        second = self.blocks[1](first)
        score = torch.sigmoid(self.score(second))
        return score, self.other(second), second


def line_of(code: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"test_departure.py:{next(k for k, line in enumerate(lines, 1) if line.strip() == code)}: {code}"


PLACES = {
    "blocks.0.wide.weight": "hidden = torch.tanh(self.wide(x))",
    "blocks.0.narrow.bias": "return x + self.narrow(hidden)",
    "blocks.1.wide.bias": "hidden = torch.tanh(self.wide(x))",
    "blocks.1.narrow.weight": "return x + self.narrow(hidden)",
    "score.weight": "score = torch.sigmoid(self.score(second))",
    "other.bias": "return score, self.other(second), second",
}


@functools.cache
def files_of(format: artifact.Format) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_network(network_of(Deep), Path(folder), format)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def program_of(format: artifact.Format) -> ExportedProgram:
    return graphs_of(network_of(Deep), format)


def planted(folder: Path, format: artifact.Format, name: str, change: Callable[[Any], Any]) -> None:
    """The network's files with one weight changed in the file itself."""
    for file, content in files_of("torch" if format == "torch" else "onnx").items():
        (folder / file).write_bytes(content)
    if format == "torch":
        tensors = load_file(folder / "model.safetensors")
        key = f"parameter:network.{name}"
        tensors[key] = torch.from_numpy(change(tensors[key].numpy()))
        save_file(tensors, folder / "model.safetensors")
        return
    proto = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == f"network.{name}")
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), weight.name))
    onnx.save(proto, folder / "model.onnx")
    if format == "openvino":
        to_openvino(folder / "model.onnx", folder / "model.xml")
        (folder / "model.onnx").unlink()


def departure(folder: Path, format: artifact.Format, *, limit: float = 1e-4) -> str:
    arrays = {"x": np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)}
    return first_departure(program_of(format), folder, record_of(Deep, format), arrays, limit=limit)


def nudged(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = weight.copy()
    changed.flat[0] += 0.05
    return changed


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", PLACES)
def test_a_changed_weight_is_located_at_its_layer(tmp_path: Path, format: artifact.Format, name: str) -> None:
    planted(tmp_path, format, name, nudged)
    words = departure(tmp_path, format)
    assert words.startswith("first departs at linear")
    assert f" in {name.rpartition('.')[0]} ({line_of(PLACES[name])}), which is off by 0." in words
    assert words.endswith("of its largest value (limit 0.0001)")


@pytest.mark.parametrize("format", FORMATS)
def test_a_value_that_is_not_finite_is_told_as_such(tmp_path: Path, format: artifact.Format) -> None:
    planted(tmp_path, format, "blocks.1.wide.bias", lambda weight: np.full_like(weight, np.nan))
    assert "in blocks.1.wide (" in (words := departure(tmp_path, format))
    assert "which is not finite there" in words


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_network_does_not_depart(tmp_path: Path, format: artifact.Format) -> None:
    planted(tmp_path, format, "score.weight", lambda weight: weight.copy())
    words = departure(tmp_path, format, limit=1e-5)
    found = int(words.split()[2])
    assert words.startswith(f"none of {found} inner values departs by more than 1e-05")
    assert found >= 8


def test_a_small_change_is_below_the_limit(tmp_path: Path) -> None:
    planted(tmp_path, "onnx", "score.weight", lambda weight: weight * np.float32(1.001))
    assert departure(tmp_path, "onnx", limit=1e-2).startswith("none of")
    assert "in score (" in departure(tmp_path, "onnx", limit=1e-5)


def test_of_another_network_the_outputs_are_compared(tmp_path: Path) -> None:
    class Other(Deep):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x[:, :1] - 1, x[:, 1:3] - 2, x - 3

    write_network(Other(), tmp_path, "onnx")
    words = departure(tmp_path, "onnx")
    assert words.startswith("first departs at")


@pytest.mark.parametrize(
    ("true", "given", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([-np.inf, 2.0], [-np.inf, 1.0], 0.5),
        ([1.0, 2.0], [np.nan, 2.0], np.inf),
        ([np.nan, 2.0], [0.0, 2.0], np.inf),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
        ([np.nan, np.nan], [np.nan, np.nan], 0.0),
        ([1.0, 2.0], [1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_the_error_is_relative_and_what_is_not_finite_has_to_be_alike(
    true: list[float], given: list[float], error: float
) -> None:
    assert error_of(np.array(true), np.array(given)) == error


def test_the_error_of_labels() -> None:
    assert error_of(np.array([True, False]), np.array([True, True])) == 1.0
    assert error_of(np.array([3, 4]), np.array([3, 4])) == 0.0
