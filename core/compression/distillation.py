"""A student learns from a teacher: a Task that wraps a Task and a frozen one of the same kind.

Both tasks see the same batch, so that what a task carries from batch to batch goes on for both, and what their networks
answer is caught on the way. Any recipe trains the result as it would the student alone.

Legend: B example, C class, A anchor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from core.contract import Step
from core.errors import ConfigError

Kind = Literal["softmax", "sigmoid"]
"""One class of several, or each logit a yes or no of its own."""


class Distillation(nn.Module):
    """`(1 - weight)` of the task's loss and `weight` of what the student's answers lack of the teacher's.

    The teacher is no part of this module's state: it is not trained, averaged or written to checkpoints, it stays in
    evaluation mode, and it moves to devices along with the student.
    """

    def __init__(self, task: nn.Module, teacher_task: nn.Module, loss: nn.Module, *, weight: float = 0.5) -> None:
        """
        Args:
            task: the student's Task.
            teacher_task: a Task of the same type around a trained network, built for the same data.
            loss: called with what `task.model` and `teacher_task.model` answered, in their own structure; its
                parameters (adapters) are trained and stay behind at export.
            weight: share of `loss`, in (0, 1].

        Raises:
            ConfigError: the weight is out of range, or the teacher is of another task.
        """
        super().__init__()
        if not 0 < weight <= 1:
            raise ConfigError(f"the weight of distillation is {weight}; allowed is above 0 and up to 1")
        if type(task) is not type(teacher_task):
            raise ConfigError(
                f"the teacher is a {type(teacher_task).__name__} and the student a {type(task).__name__}; "
                "a student learns from a teacher of its own task only"
            )
        if task is teacher_task or task.model is teacher_task.model:
            raise ConfigError("the teacher is the student itself; give a network of its own, with its trained weights")
        self.task, self.loss, self.weight = task, loss, weight
        self._teacher = (teacher_task.eval().requires_grad_(False),)  # in a tuple: hidden from parameters and state
        self._caught = tuple(Caught(cast(nn.Module, one.model)) for one in (task, teacher_task))

    @property
    def model(self) -> nn.Module:
        """The student's network: what ships."""
        return cast(nn.Module, self.task.model)

    @property
    def teacher_task(self) -> nn.Module:
        return self._teacher[0]

    def forward(self, batch: Any) -> Step:
        """The mixed loss; logs are the task's, and `task_loss` and `distillation`.

        Raises:
            ConfigError: the networks answer in different structures or shapes.
        """
        with torch.no_grad():
            self.teacher_task(batch)
        step = self.task(batch)
        student, teacher = (caught.take() for caught in self._caught)
        _compare(student, teacher)
        distance = self.loss(student, teacher)
        mixed = (1 - self.weight) * step.loss + self.weight * distance
        logs = {**step.logs, "task_loss": step.loss.detach(), "distillation": distance.detach()}
        return Step(mixed, {**logs, "loss": mixed.detach()} if "loss" in step.logs else logs)

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Distillation:
        super()._apply(change, recurse)  # type: ignore[no-untyped-call]
        self.teacher_task._apply(change, recurse)  # type: ignore[no-untyped-call]
        return self


class Caught:
    """What a module answered last."""

    def __init__(self, module: nn.Module) -> None:
        self.value: Any = None
        module.register_forward_hook(self)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled network steps out here and goes on
    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.value = output

    def take(self) -> Any:
        """The answer; it is kept no longer. Raises ConfigError where there is none."""
        value, self.value = self.value, None
        if value is None:
            raise ConfigError("the task did not call a module that distillation listens to; call it, not its forward")
        return value


class TemperatureCrossEntropy(nn.Module):
    """Softened answers: cross entropy from the teacher's to the student's at a temperature, times its square.

    Without the teacher's own entropy, which is a constant: 0 where both agree.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531). `sigmoid` is the
        same for logits that are each a yes or no, such as the members of an ensemble.
    """

    def __init__(
        self, temperature: float = 4.0, *, kind: Kind = "softmax", answer: int | str = 0, axis: int = -1
    ) -> None:
        """
        Args:
            temperature: above 0; the higher, the more the small chances count.
            kind: what the logits mean.
            answer: which part of the networks' answers are the logits: place in a tuple, or name.
            axis: of the classes, for `softmax`.

        Raises:
            ConfigError: the temperature is not positive or the kind unknown.
        """
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"the temperature is {temperature}; allowed is a number above 0, usually 2 to 8")
        if kind not in ("softmax", "sigmoid"):
            raise ConfigError(f"kind is {kind!r}; allowed are softmax and sigmoid")
        self.temperature, self.kind, self.answer, self.axis = temperature, kind, answer, axis

    def forward(self, student: Any, teacher: Any) -> Tensor:
        """Two answers -> scalar, the mean over all but the classes."""
        return _mean(self.each(_part(student, self.answer), _part(teacher, self.answer)))

    def each(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Two tensors of logits -> [...] float32, without the classes' axis where `kind` is softmax."""
        if student.shape != teacher.shape:
            raise ConfigError(_other(student, teacher))
        if self.kind == "softmax" and student.shape[self.axis] == 1:
            raise ConfigError("softmax over one class is always 1; give kind='sigmoid'")
        ours, theirs = student.float() / self.temperature, teacher.float() / self.temperature
        if self.kind == "softmax":
            log_ours, log_theirs = F.log_softmax(ours, self.axis), F.log_softmax(theirs, self.axis)
            lack = (log_theirs.exp() * (log_theirs - log_ours)).sum(self.axis)
        else:
            lack = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
            lack = lack + (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
        return lack * self.temperature**2


class SegmentationDistillation(TemperatureCrossEntropy):
    """`TemperatureCrossEntropy` of every pixel or voxel: [B, C, *space] logits; one class is a yes or no."""

    def __init__(self, temperature: float = 4.0, *, foreground: float = 1.0, answer: int | str = 0) -> None:
        """
        Args:
            foreground: weight of a voxel that the teacher takes for anything but class 0 (with one class: for yes);
                the others weigh 1. Small structures want more.
        """
        super().__init__(temperature, answer=answer, axis=1)
        if not foreground > 0:
            raise ConfigError(f"the weight of the foreground is {foreground}; allowed is a number above 0")
        self.foreground = foreground

    def forward(self, student: Any, teacher: Any) -> Tensor:
        ours, theirs = _part(student, self.answer), _part(teacher, self.answer)
        if theirs.dim() < 3:
            raise ConfigError(f"the teacher answers {list(theirs.shape)}; a segmentation is [B, C, *space]")
        self.kind = "sigmoid" if theirs.shape[1] == 1 else "softmax"
        lack = self.each(ours, theirs)
        inside = theirs > 0 if self.kind == "sigmoid" else theirs.argmax(1) > 0
        weight = torch.where(inside, self.foreground, 1.0)
        return (lack * weight).sum() / weight.sum().clamp(min=1)


class DetectionDistillation(nn.Module):
    """Class logits and boxes of every anchor, weighted by how sure the teacher is that something is there.

    Source:
        After Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, 2017: soft classes and
        boxes. Deviation: no bound on the boxes' loss; the teacher's confidence weighs anchors in its place.
    """

    def __init__(
        self, temperature: float = 2.0, *, boxes_weight: float = 1.0, logits: int | str = 0, boxes: int | str = 1
    ) -> None:
        """
        Args:
            boxes_weight: of the boxes beside the classes, at least 0.
            logits: where the [B, A, C] logits are in the networks' answers, each class a yes or no.
            boxes: where the [B, A, 4] boxes are, in any units that both use.
        """
        super().__init__()
        self.classes = TemperatureCrossEntropy(temperature, kind="sigmoid")
        self.boxes_weight, self.logits, self.boxes = boxes_weight, logits, boxes

    def forward(self, student: Any, teacher: Any) -> Tensor:
        """Two answers -> scalar. With the same anchors, in the same order."""
        ours, theirs = _part(student, self.logits), _part(teacher, self.logits)
        our_boxes, their_boxes = (_part(answer, self.boxes).float() for answer in (student, teacher))
        if our_boxes.shape != their_boxes.shape or our_boxes.shape[:-1] != ours.shape[:-1]:
            raise ConfigError(_other(our_boxes, their_boxes))
        sure = theirs.float().sigmoid().amax(-1)  # [B, A]
        total = sure.sum().clamp(min=1e-6)
        classes = (self.classes.each(ours, theirs).sum(-1) * sure).sum() / total
        boxes = (F.smooth_l1_loss(our_boxes, their_boxes, reduction="none").sum(-1) * sure).sum() / total
        return classes + self.boxes_weight * boxes


class FeatureDistance(nn.Module):
    """Mean square difference of inner layers, as a share of the teacher's mean square; channels are matched by a linear map.

    Source:
        Romero et al., FitNets, 2015 (arXiv:1412.6550). Deviation: a share, so that layers of any scale weigh the same.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: Mapping[str, str],
        *,
        widths: Mapping[str, tuple[int, int]] | None = None,
        axis: int = 1,
    ) -> None:
        """
        Args:
            student: the network of the student's Task.
            teacher: that of the teacher's.
            layers: names of the student's modules and the teacher's module for each, whose outputs are compared.
            widths: by the student's name the channels of both, where the modules do not tell.
            axis: of the channels: 1 for images, -1 for sequences.

        Raises:
            ConfigError: a name is no module, or a width is not known.
        """
        super().__init__()
        if not layers:
            raise ConfigError("no layers to compare; give {'student layer': 'teacher layer'}")
        self.axis, self.adapters, self._caught = axis, nn.ModuleList(), []
        for mine, its in layers.items():
            pair = [_module(network, name) for network, name in ((student, mine), (teacher, its))]
            have, want = (widths or {}).get(mine) or [
                _width(module, name) for module, name in zip(pair, (mine, its), strict=True)
            ]
            self.adapters.append(nn.Identity() if have == want else nn.Linear(have, want, bias=False))
            self._caught.append((mine, its, Caught(pair[0]), Caught(pair[1])))

    def forward(self, student: Any, teacher: Any) -> Tensor:
        """Scalar, the mean over the layers; the answers themselves are not looked at."""
        distances = []
        for adapter, (mine, its, ours, theirs) in zip(self.adapters, self._caught, strict=True):
            left, right = (_part(caught.take(), 0).float() for caught in (ours, theirs))
            left = adapter(left.movedim(self.axis, -1)).movedim(-1, self.axis)
            if left.shape != right.shape:
                raise ConfigError(
                    f"{mine} gives {list(left.shape)} and the teacher's {its} {list(right.shape)}; choose layers whose outputs "
                    "have the same size but for the channels"
                )
            distances.append((left - right).square().mean() / right.square().mean().clamp(min=1e-12))
        return torch.stack(distances).mean()


def _compare(student: Any, teacher: Any) -> None:
    """Raises ConfigError where two answers are of other structures, or the first tensors of other shapes."""
    (ours, structure), (theirs, other) = tree_flatten(student), tree_flatten(teacher)
    if structure != other:
        raise ConfigError(f"the teacher answers {other} and the student {structure}; they are of different tasks")
    if ours and isinstance(ours[0], Tensor) and ours[0].shape != theirs[0].shape:
        raise ConfigError(_other(ours[0], theirs[0]))


def _other(ours: Tensor, theirs: Tensor) -> str:
    return (
        f"the teacher answers {list(theirs.shape)} and the student {list(ours.shape)}; they have to answer the same "
        "question: the same classes, members and sizes"
    )


def _part(answer: Any, key: int | str) -> Tensor:
    """A tensor of an answer. A tensor alone is its own first part."""
    if isinstance(answer, Tensor) and key == 0:
        return answer
    try:
        found = getattr(answer, key) if isinstance(key, str) and hasattr(answer, key) else answer[key]
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"the networks' answer ({type(answer).__name__}) has no part {key!r}") from None
    if not isinstance(found, Tensor):
        raise ConfigError(f"part {key!r} of the networks' answer is a {type(found).__name__}; needed is a tensor")
    return found


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of no values."""
    return values.sum() / max(values.numel(), 1)


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in network.named_modules() if known]
        raise ConfigError(
            f"{type(network).__name__} has no layer {name!r}; there are {', '.join(names[:12])}"
        ) from None


def _width(module: nn.Module, name: str) -> int:
    for attribute in ("out_channels", "out_features", "num_features", "num_channels", "embed_dim"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    raise ConfigError(
        f"how many channels {name} ({type(module).__name__}) gives is not known; give widths={{'...': (8, 16)}}"
    )
