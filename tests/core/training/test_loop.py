"""The training loop: learns, resumes exactly, spreads over processes, and refuses losses that are not finite."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from core.contract import Step
from core.distributed.launch import launch
from core.distributed.strategy import Strategy
from core.errors import ArtifactError, ConfigError, DataError
from core.precision import PrecisionPolicy
from core.training.checkpoint import Checkpointer
from core.training.log import Log
from core.training.loop import FitConfig, fit
from core.training.optim import OptimConfig, WeightAverage, optimizer_of, rate

CPU = torch.device("cpu")
SLOPE = torch.tensor([[1.0, -2.0, 0.5]])


class Points(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    normalizer: torch.Tensor


class Line:
    """Noise-free points of a plane; the global batch is the same for every number of processes."""

    fingerprint: dict[str, Any] = {}

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        return 6

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Points]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(6):
            x = torch.randn(12, 3, generator=generator)
            rows = slice(rank, None, world_size)
            yield Points(x[rows], (x @ SLOPE.T)[rows], torch.tensor(12 / world_size))

    def samples(self, split: str) -> Any:
        raise NotImplementedError


class LineTask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.1))

    def forward(self, batch: Points) -> Step:
        loss = (self.model(batch.x) - batch.y).square().sum() / batch.normalizer
        return Step(loss, {"count": torch.tensor(float(len(batch.x)))})


class WideTask(LineTask):
    """With a layer between that has directions."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.1), nn.Linear(16, 24), nn.Linear(24, 1))


class Broken(LineTask):
    def forward(self, batch: Points) -> Step:
        return Step(super().forward(batch).loss * torch.tensor(float("nan")), {})


def run(
    config: FitConfig, folder: Path | None = None, task: nn.Module | None = None, data: Any = None
) -> tuple[nn.Module, list[float]]:
    task = task or LineTask()
    with Log(None, quiet=True) as log:
        fit(
            task,
            data or Line(),
            config,
            strategy=Strategy(CPU),
            log=log,
            checkpointer=Checkpointer(folder) if folder else None,
        )
    return task, [record["loss"] for record in log.records]


def test_fit_learns_the_plane() -> None:
    calm = LineTask()
    calm.model[1].p = 0.0  # type: ignore[union-attr]
    task, losses = run(FitConfig(epochs=30, optim=OptimConfig(lr=0.1, weight_decay=0.0)), task=calm)
    assert losses[-1] < 0.05 * losses[0]
    assert not task.training


@pytest.mark.parametrize(
    "optim", [OptimConfig(), OptimConfig(average=0.9), OptimConfig(optimizer="muon"), OptimConfig(optimizer="sgd")]
)
def test_resuming_equals_never_stopping(tmp_path: Path, optim: OptimConfig) -> None:
    config = FitConfig(epochs=4, optim=optim)
    whole, losses = run(config, tmp_path / "whole", task=WideTask())
    with pytest.raises(RuntimeError, match="stopped"):
        run(config, tmp_path / "part", task=WideTask(), data=Stopping(after=14))
    resumed, rest = run(config, tmp_path / "part", task=WideTask())
    assert rest == losses[12:]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


class Stopping(Line):
    def __init__(self, after: int) -> None:
        self.left = after

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Points]:
        for batch in super().train(rank=rank, world_size=world_size, epoch=epoch):
            if not self.left:
                raise RuntimeError("stopped")
            self.left -= 1
            yield batch


def _rank(path: str) -> None:
    task = LineTask()
    task.model[1].p = 0.0
    strategy = Strategy(CPU)
    with Log(Path(path) if strategy.rank == 0 else None, quiet=True) as log:
        fit(task, Line(), FitConfig(epochs=2), strategy=strategy, log=log)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    task = LineTask()
    task.model[1].p = 0.0  # type: ignore[union-attr]
    _, single = run(FitConfig(epochs=2), task=task)
    launch(_rank, 2, str(tmp_path / "log.jsonl"))
    double = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert double == pytest.approx(single, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    with pytest.raises(DataError, match=r"lower fit\.optim\.lr"):
        run(FitConfig(), task=Broken())


def test_no_batches_is_an_error() -> None:
    class Empty(Line):
        def num_batches(self, *, world_size: int, epoch: int) -> int:
            return 0

    with pytest.raises(DataError, match="no batch"):
        run(FitConfig(), data=Empty())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"half a file")
    with pytest.raises(ArtifactError, match="delete it"):
        Checkpointer(tmp_path).load()


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="bf16"):
        PrecisionPolicy("fp16", CPU)


def test_the_rate_rises_then_falls_to_zero() -> None:
    config = OptimConfig(lr=1.0, warmup=0.1)
    rates = [rate(config, step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 10
    assert rates[0] < 0.2
    assert rates[-1] < 1e-3
    assert rate(OptimConfig(lr=1.0, warmup=0.0, schedule="constant"), 99, 100) == 1.0


def test_the_average_of_constant_weights_is_those_weights() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.99)
    for _ in range(5):
        average.update(model)
    assert torch.allclose(average.shadow["weight"], model.weight)


def test_muon_steps_alike_in_every_direction_and_narrow_layers_by_adamw() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 2, 1))
    before = [layer.weight.detach().clone() for layer in model]
    optimizer = optimizer_of(model, OptimConfig(optimizer="muon", lr=0.01, weight_decay=0.0))
    for layer in model:
        layer.weight.grad = torch.randn_like(layer.weight) * torch.logspace(-1, 1, len(layer.weight)).view(-1, 1, 1, 1)
        layer.bias.grad = torch.zeros_like(layer.bias)
    assert torch.linalg.cond(model[1].weight.grad.flatten(1)) > 50
    optimizer.step()
    first, wide, last = (layer.weight.detach() - old for layer, old in zip(model, before, strict=True))
    lengths = torch.linalg.svdvals(wide.flatten(1)) / (0.01 * 0.2 * 144**0.5)
    assert lengths.min() > 0.6
    assert lengths.max() < 1.4
    for step in (first, last):  # AdamW's first: the same length for every weight
        assert step.abs().max() / step.abs().median() < 1.01


def test_muon_without_timm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim.muon", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        optimizer_of(nn.Linear(2, 2), OptimConfig(optimizer="muon"))
