"""Pruning: smaller tensors that answer rightly, layers refused by name, files that load without a record."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.compression.pruning import MagnitudePruner, prune
from core.compression.tracing import at_last_layers
from core.contract import TensorSpec
from core.errors import ArtifactError, ConfigError
from core.nn.shapes import fit_to
from tests.core.compression.networks import Branches, Gated
from verticals.finance.fraud import APPLICATION
from verticals.finance.fraud.model import FraudNet
from verticals.finance.fraud.step import ScoreStep


def images(size: int = 32) -> tuple[Tensor]:
    return (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)),)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("mobilenetv3_small_050", num_classes=5)


def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches()


def densenet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5)


def answer(model: nn.Module, example: tuple[Any, ...]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(*example)
    return result


@pytest.mark.parametrize("build", [resnet, mobilenet, branches, densenet])
@pytest.mark.parametrize("importance", ["l1", "group"])
def test_tensors_become_smaller_and_a_file_needs_no_record(build: Any, importance: Any, tmp_path: Path) -> None:
    model, example = build(), images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune(model, 0.4, example, importance=importance)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert pruned.model.training
    assert pruned.parameters[1] < 0.7 * pruned.parameters[0]
    assert pruned.macs[1] < 0.7 * pruned.macs[0]
    assert list(pruned.refused.values()) == ["its channels are the answer"]
    for network, name in ((model, "whole"), (pruned.model, "small")):
        save_file(network.state_dict(), tmp_path / name)
    assert (tmp_path / "small").stat().st_size < 0.75 * (tmp_path / "whole").stat().st_size
    tensors = load_file(tmp_path / "small")
    fresh = fit_to(build(), tensors)
    fresh.load_state_dict(tensors)
    assert torch.equal(answer(fresh, example), answer(pruned.model, example))
    for name, layer in fresh.named_modules():
        assert repr(layer) == repr(pruned.model.get_submodule(name))


@pytest.mark.parametrize("build", [resnet, branches, densenet])
def test_channels_that_are_nothing_are_the_first_to_go(build: Any) -> None:
    """Oracle: filters of zeros, without a shift after them, add nothing: without them the answers are the same."""
    model = build()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                planted = torch.arange(layer.out_channels) % 4 == 1  # a quarter, at the same places everywhere
                layer.weight[planted] = 0
                if layer.bias is not None:
                    layer.bias[planted] = 0
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                layer.running_mean[torch.arange(layer.num_features) % 4 == 1] = 0  # type: ignore[index]
    pruned = prune(model, 0.25, images(), importance="l1")
    assert pruned.parameters[1] < 0.8 * pruned.parameters[0]
    torch.testing.assert_close(answer(pruned.model, images()), answer(model, images()), rtol=1e-4, atol=1e-5)
    random = copy.deepcopy(pruned.model)
    with torch.no_grad():
        next(random.parameters())[0] = 0
    assert not torch.allclose(answer(random, images()), answer(model, images()), rtol=1e-4, atol=1e-5)


def test_the_proof_finds_a_group_that_torch_pruning_gets_wrong() -> None:
    """Two layers of eight channels, the second's turned round before they are added: channel i is not channel i."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 8), nn.Linear(4, 8)
            self.inside, self.out = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            both = self.one(inputs) + self.two(inputs).flip(1)
            result: Tensor = self.out(self.inside(both.relu()).relu())
            return result

    pruned = prune(Turned(), 0.25, (torch.randn(3, 4),))
    assert pruned.channels == {"inside": (16, 12)}
    assert pruned.refused["one"] == pruned.refused["two"] == "without its channels other answers change"


def test_attention_stays_whole_and_is_named() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    pruned = prune(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 0.5, (torch.randn(2, 5, 16),))
    assert pruned.channels == {"layers.0.linear1": (64, 32), "layers.1.linear1": (64, 32)}
    assert pruned.refused["layers.0.self_attn"] == "the heads of an attention share its width"
    vision = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3, embed_dim=24)
    narrow = prune(vision, 0.5, images())
    assert narrow.channels["patch_embed.proj"] == (24, 12)
    assert narrow.channels["blocks.1.mlp.fc1"] == (96, 48)
    assert "does not run with fewer" in narrow.refused["blocks.0.attn.qkv"]
    assert answer(narrow.model, images()).shape == (2, 3)


def test_gates_in_chunks_stay_whole_and_are_named() -> None:
    torch.manual_seed(0)
    pruned = prune(Gated(), 0.5, (torch.randn(2, 3, 6), torch.zeros(2, 8)))
    assert pruned.channels == {"first": (20, 10)}
    assert {"gates", "recurrent", "second"} <= pruned.refused.keys()


def test_the_fraud_network_keeps_its_history_and_loses_evidence() -> None:
    torch.manual_seed(0)
    config = APPLICATION.recipes["debug"]().model  # type: ignore[attr-defined]
    columns = ["amount", "hour", "customer_count", "terminal_risk", "pair_count"]
    net = FraudNet(config, columns)
    net.encoding.lows.copy_(torch.linspace(-2, 2, net.encoding.num_ramps).expand_as(net.encoding.lows))
    net.encoding.slopes.fill_(0.5)
    time = torch.arange(8.0, dtype=torch.float64).view(2, 4)
    example = (torch.randn(2, 4, len(columns)), time, net.initial(2))
    pruned = prune(net, 0.25, example)
    width = (config.num_evidence, config.num_evidence * 3 // 4)
    assert pruned.channels == {
        f"of_{side}.{layer}": width for side in ("card", "terminal") for layer in ("first", "second")
    }
    assert {"history.gates", "history.recurrent", "history.query"} <= pruned.refused.keys()
    small = pruned.model.eval()
    assert small.of_card.out.shape == (config.num_members, width[1])  # type: ignore[union-attr]
    logits, state = small(*example)
    step = ScoreStep(small)  # type: ignore[arg-type]
    carried, heard = net.initial(2), []
    for event in range(4):
        logit, *rest = step(example[0][:, event], time[:, event], *carried)
        carried, heard = type(carried)(*rest), [*heard, logit]
    expected = torch.logsumexp(nn.functional.logsigmoid(logits), -1) - torch.logsumexp(
        nn.functional.logsigmoid(-logits), -1
    )
    torch.testing.assert_close(torch.stack(heard, 1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(carried.hidden, state.hidden)
    fresh = fit_to(FraudNet(config, columns), small.state_dict())
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh.eval()(*example)[0], logits)


def test_a_gradual_schedule_recovers_after_each_step_and_ends_at_the_ratio() -> None:
    widths = []

    def recover(model: nn.Module, step: int) -> None:
        assert model.training
        widths.append((step, model.stem.out_channels))  # type: ignore[union-attr]
        nn.functional.mse_loss(model(*images()), torch.zeros(2, 4)).backward()
        torch.optim.SGD(model.parameters(), 0.01).step()

    model = branches()
    model.head.weight.requires_grad_(False)  # type: ignore[union-attr]
    pruned = prune(model, 0.5, images(), steps=4, recover=recover)
    assert widths == [(1, 14), (2, 12), (3, 10), (4, 8)]
    learns = {name: parameter.requires_grad for name, parameter in pruned.model.named_parameters()}
    assert [name for name, flag in learns.items() if not flag] == ["head.weight"]
    assert all(parameter.grad is None for parameter in pruned.model.parameters())


def test_what_is_kept_keeps_its_width() -> None:
    pruned = prune(branches(), 0.5, images(), keep=("left", "stem"))
    assert pruned.refused["left"] == "kept on request"
    assert pruned.channels.keys() == {"right", "join"}
    with pytest.raises(ConfigError, match="keep names 'lef', which is no module of the model; there are stem, left"):
        prune(branches(), 0.5, images(), keep=("lef",))


def test_layers_that_share_weights_stay_whole() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 12), nn.Linear(12, 2))
    model[2].weight = model[0].weight
    pruned = prune(model, 0.5, (torch.randn(4, 8),))
    assert pruned.channels == {"4": (12, 6)}
    assert pruned.refused["2"] == "its weights are another layer's too"


@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_left_comes_in_multiples(steps: int) -> None:
    pruned = prune(resnet(), 0.3, images(), multiple=16, steps=steps)
    left = {small for _, small in pruned.channels.values()}
    assert left == {32, 80, 176, 352}  # of 64, 128, 256, 512
    narrow = prune(branches(), 0.3, images(), multiple=8)
    assert all(small % 8 == 0 and small > 0 for _, small in narrow.channels.values())
    with pytest.raises(ConfigError, match="nothing of the Branches can be pruned"):
        prune(branches(), 0.3, images(), multiple=1024)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        prune(branches(), ratio, images())


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="importance is 'l2'; allowed are l1 and group"):
        prune(branches(), 0.5, images(), importance="l2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps is 0"):
        prune(branches(), 0.5, images(), steps=0)
    with pytest.raises(ConfigError, match="multiple is 0"):
        prune(branches(), 0.5, images(), multiple=0)
    with pytest.raises(ConfigError, match="does not take the example"):
        prune(branches(), 0.5, (torch.rand(1, 4, 8, 8),))
    with pytest.raises(ConfigError, match="nothing of the Linear can be pruned by 0.5: .*the answer"):
        prune(nn.Linear(4, 2), 0.5, (torch.rand(1, 4),))
    with pytest.raises(ConfigError, match="nothing of the LSTM can be pruned .*gates"):
        prune(nn.LSTM(4, 8), 0.5, (torch.rand(3, 2, 4),))


def test_the_magnitude_pruner_finds_its_example() -> None:
    model = branches()
    assert MagnitudePruner(model).example[0].shape == (1, 3, 224, 224)
    model.inputs = (TensorSpec("images", ("B", 3, 16, 16)),)  # type: ignore[assignment]
    small = MagnitudePruner(model, prune_ratio=0.5).prune()
    assert small.stem.out_channels == 8  # type: ignore[union-attr]
    same = prune(model, 0.5, images(16), importance="l1").model
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), same.parameters(), strict=True))
    timed = MagnitudePruner(timm.create_model("mobilenetv3_small_050"))
    assert timed.example[0].shape == (1, 3, 224, 224)


def test_weights_that_do_not_fit_leave_the_model_as_it_is() -> None:
    model, wanted = branches(), dict(branches().state_dict())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor, match in (
        ("stem.weight", torch.zeros(20, 3, 3, 3), "never larger"),
        ("stem.weight", torch.zeros(16, 3, 5, 5), "only channels"),
        ("head.bias", torch.zeros(0), "only channels"),
        ("extra", torch.zeros(1), "extra unknown"),
    ):
        with pytest.raises(ArtifactError, match=match):
            fit_to(model, {**wanted, name: tensor})
    with pytest.raises(ArtifactError, match="head.bias missing"):
        fit_to(model, {name: tensor for name, tensor in wanted.items() if name != "head.bias"})
    lstm = nn.LSTM(4, 8)
    with pytest.raises(ArtifactError, match="a LSTM cannot take another size"):
        fit_to(lstm, nn.LSTM(4, 6).state_dict())
    with pytest.raises(ArtifactError, match="do not divide into 4 groups"):
        fit_to(nn.GroupNorm(4, 16), nn.GroupNorm(2, 10).state_dict())
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_a_network_of_pictures_needs_no_example() -> None:
    network = torchvision.models.resnet18(num_classes=4)
    small = MagnitudePruner(network, prune_ratio=0.3).prune()
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in network.parameters())
    with pytest.raises(ConfigError, match="give example="):
        MagnitudePruner(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), prune_ratio=0.3).prune()


@pytest.mark.parametrize("num_samples", [1, 2])
def test_units_that_write_in_place_after_an_instance_norm_hide_no_layer(num_samples: int) -> None:
    """The U-Net of the CT application, whose skip connections and transposed convolutions go along."""
    from verticals.medical.ct.model import UNet3D

    torch.manual_seed(0)
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    network = UNet3D(3, patch_size=(8, 8, 8), widths=(8, 16, 16), strides=strides, windows=((-0.5, 0.5),))
    widths = {name: layer.out_channels for name, layer in network.named_modules() if isinstance(layer, nn.Conv3d)}
    example = (torch.rand(num_samples, 1, 8, 8, 8),)
    pruned = prune(network, 0.25, example).model
    smaller = {name: layer.out_channels for name, layer in pruned.named_modules() if isinstance(layer, nn.Conv3d)}
    assert all(smaller[name] == (3 if name == "head" else 0.75 * widths[name]) for name in widths)
    assert answer(pruned, example).shape == (num_samples, 3, 8, 8, 8)
    assert all(layer.inplace for layer in pruned.modules() if isinstance(layer, nn.LeakyReLU))


class Detector(nn.Module):
    """Answers for every place of two levels, by layers whose channels are the answer's."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        levels = [head(part) for head, part in zip(self.heads, (fine, self.coarse(fine).relu()), strict=True)]
        places = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        sides: Tensor = (places.unflatten(2, (2, 4)).softmax(-1) * torch.arange(4.0)).sum(-1)
        return sides


def test_what_comes_after_the_last_layers_is_not_followed() -> None:
    torch.manual_seed(0)
    network, x = Detector(), torch.randn(2, 3, 32, 32)
    ends = at_last_layers(network, (x,))
    assert [end.shape for end in sorted(ends, key=lambda end: -end.shape[-1])] == [(2, 8, 16, 16), (2, 8, 8, 8)]
    pruned = prune(network, 0.5, (x,))
    assert pruned.channels == {"fine": (16, 8), "coarse": (16, 8)}
    assert set(pruned.refused) == {"heads.0", "heads.1"}
    assert pruned.model(x).shape == network(x).shape


def test_an_answer_behind_further_weights_is_followed_whole() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    x = torch.randn(2, 3, 8, 8)
    assert isinstance(at_last_layers(network, (x,)), Tensor)
