"""Distillation: the losses against independent forms, a teacher left alone, and a student that learns more by it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.compression.distillation import (
    DetectionDistillation,
    Distillation,
    FeatureDistance,
    SegmentationDistillation,
    TemperatureCrossEntropy,
)
from core.contract import Step
from core.device import seed_everything
from core.distributed.launch import launch
from core.distributed.strategy import Strategy
from core.errors import ConfigError
from core.training.log import Log
from core.training.loop import FitConfig, fit
from core.training.optim import OptimConfig
from verticals.finance.fraud import APPLICATION


class Points(NamedTuple):
    x: Tensor
    y: Tensor
    labelled: Tensor


class ClassTask(nn.Module):
    """Cross entropy over the labelled rows."""

    def __init__(self, width: int, num_classes: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, batch: Points) -> Step:
        each = F.cross_entropy(self.model(batch.x), batch.y, reduction="none")
        loss = (each * batch.labelled).sum() / batch.labelled.sum().clamp(min=1)
        return Step(loss, {"loss": loss.detach()})


def points(rows: int, seed: int, share: float = 1.0) -> Points:
    """Four classes in eight sectors around the centre: a border that few labels do not show."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=generator)
    y = ((torch.atan2(x[:, 1], x[:, 0]) / torch.pi + 1) * 4).floor().long() % 4
    return Points(x, y, (torch.arange(rows) < share * rows).float())


class Batches:
    def __init__(self, batch: Points, times: int) -> None:
        self.batch, self.times = batch, times
        self.fingerprint: dict[str, Any] = {}

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        return self.times

    def train(self, *, rank: int, world_size: int, epoch: int) -> Any:
        return iter([self.batch] * self.times)

    def samples(self, split: str) -> Any:
        raise NotImplementedError


def trained(task: nn.Module, batch: Points, steps: int) -> nn.Module:
    config = FitConfig(epochs=1, optim=OptimConfig(lr=0.02, weight_decay=0.0))
    with Log(None, quiet=True) as log:
        fit(task, Batches(batch, steps), config, strategy=Strategy(torch.device("cpu")), log=log)
    return task


def accuracy(task: nn.Module) -> float:
    test = points(2000, 99)
    with torch.no_grad():
        return float((task.model(test.x).argmax(1) == test.y).float().mean())  # type: ignore[operator]


def test_a_student_of_a_teacher_beats_one_of_few_labels() -> None:
    torch.manual_seed(0)
    teacher = trained(ClassTask(64), points(2000, 1), 400)
    few = points(600, 2, share=0.04)
    scores = {}
    for name in ("alone", "taught"):
        torch.manual_seed(1)
        student: nn.Module = ClassTask(24)
        task = student if name == "alone" else Distillation(student, teacher, TemperatureCrossEntropy(2.0), weight=0.9)
        scores[name] = accuracy(trained(task, few, 300))
    assert accuracy(teacher) > 0.9
    assert scores["taught"] > scores["alone"] + 0.1
    assert scores["taught"] > 0.85


def test_softmax_is_the_divergence_of_torch_and_its_gradient_that_of_cross_entropy() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    for temperature in (1.0, 4.0):
        loss = TemperatureCrossEntropy(temperature)(ours, theirs)
        left, right = F.log_softmax(ours / temperature, 1), F.log_softmax(theirs / temperature, 1)
        expected = F.kl_div(left, right, log_target=True, reduction="batchmean") * temperature**2
        torch.testing.assert_close(loss, expected)
        hard = F.cross_entropy(ours / temperature, (theirs / temperature).softmax(1)) * temperature**2
        torch.testing.assert_close(*(torch.autograd.grad(one, ours)[0] for one in (loss, hard)))
    assert TemperatureCrossEntropy()(theirs, theirs) == 0


def test_sigmoid_is_softmax_over_yes_and_no() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 3) * 30, torch.randn(6, 3) * 30
    both = [torch.stack([torch.zeros_like(one), one], dim=-1) for one in (ours, theirs)]
    torch.testing.assert_close(
        TemperatureCrossEntropy(2.0, kind="sigmoid")(ours, theirs), TemperatureCrossEntropy(2.0)(*both)
    )


@pytest.mark.parametrize("space", [(6,), (4, 5), (3, 4, 2)])
def test_segmentation_is_the_mean_over_voxels_in_any_number_of_axes(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 3, *space), torch.randn(2, 3, *space)
    rows = [one.movedim(1, -1).reshape(-1, 3) for one in (ours, theirs)]
    torch.testing.assert_close(SegmentationDistillation(2.0)(ours, theirs), TemperatureCrossEntropy(2.0)(*rows))
    inside = rows[1].argmax(1) > 0
    each = TemperatureCrossEntropy(2.0).each(*rows)
    expected = (each * (1 + 4 * inside)).sum() / (1 + 4 * inside).sum()
    torch.testing.assert_close(SegmentationDistillation(2.0, foreground=5.0)(ours, theirs), expected)
    one = SegmentationDistillation(2.0)(ours[:, :1], theirs[:, :1])
    torch.testing.assert_close(one, TemperatureCrossEntropy(2.0, kind="sigmoid")(ours[:, :1], theirs[:, :1]))


def test_detection_looks_where_the_teacher_sees_something() -> None:
    torch.manual_seed(0)
    loss = DetectionDistillation()
    logits, boxes = torch.full((1, 3, 2), -9.0), torch.rand(1, 3, 4)
    logits[0, 0, 1] = 5.0
    assert loss((logits, boxes), (logits, boxes)) == 0
    moved = {anchor: boxes.clone() for anchor in (0, 1)}
    for anchor, part in moved.items():
        part[0, anchor] += 0.5
    seen, unseen = (float(loss((logits, moved[anchor]), (logits, boxes))) for anchor in (0, 1))
    assert seen == pytest.approx(4 * 0.5 * 0.5**2, rel=0.01)
    assert unseen < 0.001 * seen
    named = DetectionDistillation(logits="scores", boxes="boxes")
    answers = [{"scores": logits, "boxes": part} for part in (moved[0], boxes)]
    assert float(named(*answers)) == pytest.approx(seen)
    with pytest.raises(ConfigError, match="has no part 'scores'"):
        named((logits, boxes), (logits, boxes))


def test_features_pull_the_student_towards_the_teacher_through_an_adapter() -> None:
    torch.manual_seed(0)
    student, teacher = ClassTask(8), ClassTask(32)
    loss = FeatureDistance(student.model, teacher.model, {"0": "0"})
    assert loss.adapters[0].weight.shape == (32, 8)  # type: ignore[union-attr]
    task = Distillation(student, teacher, loss, weight=1.0)
    assert {"loss.adapters.0.weight", "task.model.0.weight"} <= task.state_dict().keys()
    batch = points(200, 0)
    first = float(task(batch).logs["distillation"])
    trained(task, batch, 100)
    assert float(task(batch).logs["distillation"]) < 0.1 * first
    same = FeatureDistance(student.model, copy.deepcopy(student.model), {"0": "0"})
    assert isinstance(same.adapters[0], nn.Identity)
    with pytest.raises(ConfigError, match="has no layer '7'; there are 0, 1, 2"):
        FeatureDistance(student.model, teacher.model, {"7": "0"})
    with pytest.raises(ConfigError, match="give widths="):
        FeatureDistance(student.model, teacher.model, {"1": "1"})
    FeatureDistance(student.model, teacher.model, {"1": "1"}, widths={"1": (8, 32)})


def test_the_teacher_is_left_alone() -> None:
    torch.manual_seed(0)
    student, teacher = ClassTask(8), ClassTask(16)
    teacher.model.append(nn.Dropout(0.5))
    student.model.append(nn.Dropout(0.0))
    before = copy.deepcopy(teacher.state_dict())
    task = Distillation(student, teacher, TemperatureCrossEntropy())
    assert task.model is student.model
    assert task.state_dict().keys() == {f"task.{name}" for name in student.state_dict()}
    assert list(task.parameters()) == list(student.parameters())
    trained(task, points(64, 0), 5)
    task.train()
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    task.to(torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64
    task.to(torch.float32)
    twin = copy.deepcopy(task)
    assert twin(points(8, 0)).loss.isfinite()
    assert all(caught.value is None for one in (task, twin) for caught in one._caught)


def test_a_weight_of_one_asks_the_teacher_only() -> None:
    torch.manual_seed(0)
    batch, student, teacher = points(64, 0), ClassTask(8), ClassTask(16)
    task = Distillation(student, teacher, TemperatureCrossEntropy(3.0), weight=1.0)
    expected = TemperatureCrossEntropy(3.0)(student.model(batch.x), teacher.model(batch.x))
    torch.testing.assert_close(task(batch).loss, expected)
    half = Distillation(student, teacher, TemperatureCrossEntropy(3.0), weight=0.25)
    torch.testing.assert_close(half(batch).loss, 0.75 * student(batch).loss + 0.25 * expected)


def test_a_compiled_student_is_still_heard() -> None:
    torch.manual_seed(0)
    task = Distillation(ClassTask(8), ClassTask(16), TemperatureCrossEntropy())
    batch = points(32, 0)
    plain = task(batch)
    task.model.compile(backend="eager")
    compiled = task(batch)
    torch.testing.assert_close(compiled.loss, plain.loss)
    compiled.loss.backward()
    torch._dynamo.reset()


def _rank(path: str) -> None:
    strategy = Strategy(torch.device("cpu"))
    torch.manual_seed(0)
    task = Distillation(ClassTask(8), ClassTask(16), TemperatureCrossEntropy())
    batch = points(32, 0)
    mine = Points(*(part[strategy.rank :: strategy.world_size] for part in batch))
    with Log(None, quiet=True) as log:
        fit(task, Batches(mine, 4), FitConfig(epochs=1), strategy=strategy, log=log)
    if strategy.rank == 0:
        torch.save(task.state_dict(), path)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    launch(_rank, 2, str(tmp_path / "two.pt"))
    _rank(str(tmp_path / "one.pt"))
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor)


def test_a_task_with_a_state_carries_it_for_both() -> None:
    """The fraud task: the student narrower than the teacher, both with the members' logits."""
    config = APPLICATION.recipes["debug"]()
    data = APPLICATION.data(config)
    seed_everything(0)
    teacher = APPLICATION.task(config, data)
    student = APPLICATION.task(config.override(["model.num_hidden=8", "model.num_evidence=16"]), data)
    task = Distillation(student, teacher, TemperatureCrossEntropy(kind="sigmoid"), weight=0.5)
    for batch, _ in zip(data.train(rank=0, world_size=1, epoch=0), range(3), strict=False):
        step = task(batch)
        step.loss.backward()
    assert student._state.hidden.shape[1] == 8  # type: ignore[union-attr]
    assert teacher._state.hidden.shape[1] == 16  # type: ignore[union-attr]
    assert bool(teacher._state.hidden.any())  # type: ignore[union-attr]
    assert {"events", "task_loss", "distillation"} <= step.logs.keys()
    other = APPLICATION.task(config.override(["model.num_members=3"]), data)
    with pytest.raises(ConfigError, match="the same classes, members and sizes"):
        Distillation(other, teacher, TemperatureCrossEntropy(kind="sigmoid"))(batch)


def test_a_teacher_of_another_task_is_refused() -> None:
    class OtherTask(ClassTask):
        pass

    student = ClassTask(4)
    with pytest.raises(ConfigError, match="the teacher is a OtherTask and the student a ClassTask"):
        Distillation(student, OtherTask(4), TemperatureCrossEntropy())
    with pytest.raises(ConfigError, match="the teacher is the student itself"):
        Distillation(student, student, TemperatureCrossEntropy())
    with pytest.raises(ConfigError, match=r"answers \[8, 5\] and the student \[8, 4\]"):
        Distillation(student, ClassTask(4, num_classes=5), TemperatureCrossEntropy())(points(8, 0))

    class Pair(nn.Sequential):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input), input

    teacher = ClassTask(4)
    teacher.model = Pair(*teacher.model)
    task = Distillation(student, teacher, TemperatureCrossEntropy())
    with pytest.raises((ConfigError, TypeError)):
        task(points(8, 0))


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.5, float("nan")])
def test_numbers_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight of distillation"):
        Distillation(ClassTask(4), ClassTask(4), TemperatureCrossEntropy(), weight=weight)
    with pytest.raises(ConfigError, match="temperature is -1"):
        TemperatureCrossEntropy(-1)
    with pytest.raises(ConfigError, match="softmax over one class"):
        TemperatureCrossEntropy()(torch.zeros(3, 1), torch.zeros(3, 1))


def test_training_needs_no_library_of_pruning_or_quantization() -> None:
    code = (
        "import sys, core.compression.distillation, core.compression.sharing, core.compression.calibration, core.nn.shapes\n"
        "print({'nncf', 'openvino', 'onnxruntime', 'onnx', 'torch_pruning'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"
