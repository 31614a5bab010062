"""Batch norm over all ranks: two processes with half of a batch each do what one does with all of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from core.distributed.launch import launch
from core.distributed.norm import BatchNorm2d, num_ranks, synced


def batch() -> Tensor:
    return 3 + 2 * torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))


def trained(norm: nn.BatchNorm2d, x: Tensor) -> dict[str, Tensor]:
    """A step's answer, gradients and running figures, for the loss that is a sum of cubes."""
    x = x.clone().requires_grad_()
    answer = norm(x)
    answer.pow(3).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    kept = {"mean": norm.running_mean, "variance": norm.running_var}
    return {"answer": answer.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, **kept}  # type: ignore[dict-item]


def rank(folder: str) -> None:
    place = torch.distributed.get_rank()
    assert num_ranks() == 2
    torch.save(trained(BatchNorm2d(5, momentum=0.3), batch()[2 * place : 2 * place + 2]), f"{folder}/{place}.pt")


def test_two_ranks_are_one_batch(tmp_path: Path) -> None:
    launch(rank, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{place}.pt", weights_only=True) for place in (0, 1))
    whole = trained(nn.BatchNorm2d(5, momentum=0.3), batch())
    for name in ("answer", "x"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole[name], rtol=1e-4, atol=1e-4)
    for name in ("weight", "bias"):  # gradients of the ranks are added up by whoever trains
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-4, atol=1e-3)
    for name in ("mean", "variance"):
        torch.testing.assert_close(first[name], whole[name])
        assert torch.equal(first[name], second[name])


def test_alone_and_when_it_answers_it_is_torchs() -> None:
    ours, torchs = BatchNorm2d(5), nn.BatchNorm2d(5)
    for name, value in trained(ours, batch()).items():
        torch.testing.assert_close(value, trained(nn.BatchNorm2d(5), batch())[name])
    torchs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(batch()), torchs.eval()(batch()))


def test_a_network_of_timm_is_synced_in_place_and_answers_as_before() -> None:
    import timm

    for name in ("test_efficientnet", "test_resnet"):
        network = timm.create_model(name, pretrained=False)
        names, x = list(network.state_dict()), torch.randn(2, 3, 64, 64)
        plain = timm.create_model(name, pretrained=False)
        plain.load_state_dict(network.state_dict())
        synced(network)
        assert list(network.state_dict()) == names
        assert all(isinstance(layer, BatchNorm2d) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
        torch.testing.assert_close(network.eval()(x), plain.eval()(x))
        torch.testing.assert_close(network.train()(x), plain.train()(x), rtol=1e-3, atol=1e-4)
