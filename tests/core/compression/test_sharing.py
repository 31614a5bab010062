"""Parameter sharing: one set a group, written once, restored when loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core.compression.quantization import dynamic
from core.compression.sharing import ParameterSharing, num_file_bytes
from core.config import Config
from core.contract import TensorSpec
from core.errors import ConfigError
from core.inference.export import write_network
from core.run import Run, load_weights


def encoder(num_layers: int = 6) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_a_group_has_one_set_of_parameters() -> None:
    model = encoder()
    before = [parameter.clone() for parameter in model.parameters()]
    sharing = ParameterSharing(model, group_size=4)
    assert sharing.groups == [tuple(f"layers.{i}" for i in range(4)), ("layers.4", "layers.5")]
    shared = sharing.share()
    assert sum(p.numel() for p in shared.parameters()) * 3 == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    first, third, fourth = (shared.get_submodule(f"layers.{i}") for i in (0, 3, 4))
    assert all(a is b for a, b in zip(first.parameters(), third.parameters(), strict=True))
    assert not any(a is b for a, b in zip(first.parameters(), fourth.parameters(), strict=True))
    inputs = torch.randn(2, 5, 16)
    expected = inputs
    for index in (0, 0, 0, 0, 4, 4):  # oracle: the first layer of each group, again and again
        expected = model.get_submodule(f"layers.{index}")(expected)
    torch.testing.assert_close(shared(inputs), expected)


def test_a_step_moves_all_layers_of_a_group_by_the_sum_of_their_gradients() -> None:
    shared = ParameterSharing(encoder(), group_size=3).share()
    before = shared.get_submodule("layers.2").get_parameter("linear1.weight").detach().clone()
    shared(torch.randn(2, 5, 16)).square().sum().backward()
    torch.optim.SGD(shared.parameters(), 0.1).step()
    left, right = (shared.get_submodule(f"layers.{i}").get_parameter("linear1.weight") for i in (0, 2))
    assert torch.equal(left, right)
    assert not torch.equal(right, before)


def test_the_file_holds_each_tensor_once_and_loading_restores_the_sharing(tmp_path: Path) -> None:
    model = encoder()
    shared = ParameterSharing(model, group_size=3).share()
    whole, small = (Run.create(tmp_path, "test.sharing", Config(), name) for name in ("whole", "small"))
    whole.write_weights(model)
    small.write_weights(shared)
    sizes = [(run.path / "model.safetensors").stat().st_size for run in (whole, small)]
    assert sizes == [num_file_bytes(model), num_file_bytes(shared)]
    assert sizes[1] < 0.4 * sizes[0]
    assert load_file(small.path / "model.safetensors").keys() < shared.state_dict().keys()
    for fresh in (encoder(), ParameterSharing(encoder(), group_size=3).share()):
        load_weights(fresh, small.path / "model.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), shared.parameters(), strict=True))
        assert num_file_bytes(fresh) == sizes[1]


class Stack(nn.Module):
    """Layers that have their own place in a graph, over rows and over sequences."""

    def __init__(self, *axes: int | str) -> None:
        super().__init__()
        self.inputs = (TensorSpec("x", ("B", *axes)),)
        self.outputs = (TensorSpec("y", ("B", *axes)),)
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.mark.parametrize("axes", [(256,), ("T", 256)])
def test_onnx_files_hold_what_is_shared_once_and_so_do_their_int8_forms(
    tmp_path: Path, axes: tuple[int | str, ...]
) -> None:
    numbers = 256 * 256
    for name, group_size, sets in (("own", 1, 4), ("pairs", 2, 2), ("all", 4, 1)):
        network: nn.Module = Stack(*axes)
        if group_size > 1:
            network = ParameterSharing(network, group_size).share()
        (folder := tmp_path / name).mkdir()
        write_network(network, folder, "onnx")
        for path, width in ((folder / "model.onnx", 4), (dynamic(folder / "model.onnx", folder / "int8.onnx"), 1)):
            assert sets * numbers * width < path.stat().st_size < (sets + 0.5) * numbers * width, path


def test_tied_buffers_and_views_of_one_tensor_are_written_right(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.arange(12.0).view(3, 4)
            self.register_buffer("one", base[:2])
            self.register_buffer("two", base[1:])
            self.register_buffer("same", base[:2])
            self.register_buffer("none", torch.empty(0))
            self.register_buffer("empty", torch.empty(0))

    run = Run.create(tmp_path, "test.sharing", Config(), "odd")
    model = Odd()
    run.write_weights(model)
    fresh = Odd()
    for buffer in fresh.buffers():
        buffer.zero_()
    load_weights(fresh, run.path / "model.safetensors")
    assert fresh.get_buffer("two").tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert fresh.get_buffer("same") is fresh.get_buffer("one")


def test_rows_are_found_in_sequentials_and_not_within_a_layer_of_a_row() -> None:
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))  # noqa: E731
    model = nn.ModuleDict({"tower": nn.ModuleList([block(), block(), nn.Linear(4, 2)]), "alone": block()})
    assert ParameterSharing(model, group_size=2).groups == [("tower.0", "tower.1"), ("alone.0", "alone.2")]


@pytest.mark.parametrize("group_size", [-1, 0, 1, 7])
def test_a_group_size_out_of_range_is_refused(group_size: int) -> None:
    with pytest.raises(ConfigError, match=f"group_size is {group_size}; allowed is 2 to 6"):
        ParameterSharing(encoder(), group_size)


def test_a_network_without_equal_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to share"):
        ParameterSharing(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), 2)
