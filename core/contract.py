"""The few types that an application, the engine and a service share. Nothing here does any work.

What trains is the Task; what ships is `task.model`. Evaluation, bench, batch prediction and the service all go through
the one Predictor; only the Session under it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from core.config import Config

if TYPE_CHECKING:
    import torch

Arrays = dict[str, NDArray[Any]]
"""Named arrays, as a Session takes and gives them."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of one tensor of a model. A letter in the shape is a free axis, shared by name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"

    def check(self, array: NDArray[Any]) -> None:
        """Raises ValueError where the array's type, rank or a fixed axis differs."""
        fits = len(array.shape) == len(self.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(self.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(self.dtype):
            raise ValueError(
                f"{self.name} is {array.dtype}{list(array.shape)}; allowed is {self.dtype}{list(self.shape)}"
            )


class Step(NamedTuple):
    """What one training step gives back."""

    loss: torch.Tensor
    """Scalar to minimise; the mean over ranks is the loss of the global batch."""
    logs: dict[str, torch.Tensor]
    """Scalars to record."""


class Estimate(NamedTuple):
    """What a request will cost, promised before it starts."""

    bytes: int
    seconds: float


class Session(Protocol):
    """A loaded network: named arrays in, named arrays out, whatever runtime is below. Several threads may call it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, arrays: Mapping[str, NDArray[Any]], *, out: Arrays | None = None) -> Arrays:
        """`out` holds arrays of the results' shapes to write into (numpy's idiom: buffers that are used again)."""


class Data(Protocol):
    """An application's data: deterministic batches for training, samples for everything else."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data: sources, rows, span, content hash."""

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        """Batches that every rank gets in this epoch."""

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Any]:
        """This rank's batches of one epoch (NamedTuples of tensors); every rank gets the same number of them."""

    def samples(self, split: str) -> Any:
        """The application's samples of `train`, `validation` or `test`, in order."""


@runtime_checkable
class Predictor(Protocol):
    """Request to tensors to session to response: the only way from a user's input to an answer."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, requests: Sequence[Any]) -> list[Any]: ...

    def estimate(self, requests: Sequence[Any]) -> Estimate: ...


class Metrics(Protocol):
    """Figures with intervals of one split, as a record, as text and as a report."""

    @property
    def text(self) -> str:
        """For a terminal."""

    @property
    def answers(self) -> Arrays:
        """[N, ...] what the Predictor answered to the split's samples, in order: floats are numbers, all else labels.
        Masks, of another shape for each sample, are flat and on end here; a property `pictures` has them as they are."""

    def record(self) -> dict[str, Any]:
        """JSON-able, with `figures` by name."""

    def sections(
        self, *, config: str, data: Mapping[str, Any], code: Mapping[str, Any], steps: Sequence[str]
    ) -> Sequence[Any]:
        """Sections of `core.evaluation.report`; `steps` are the lines of metrics.jsonl."""


class Archive(Protocol):
    """Where a hospital or a factory keeps its pictures."""

    def fetch(self, study: str, series: str | None, folder: Path) -> None:
        """Writes a series into a folder that the application can read. Raises DataError, Unavailable."""

    def store(self, answer: Path) -> int:
        """Sends what `Application.predict` wrote; how many objects that were. Raises DataError, Unavailable."""


@dataclass(frozen=True)
class Limits:
    """How far an artifact may stand from the network that it was made of."""

    tensor: float
    """Largest error of an output tensor, relative to the tensor's largest value."""
    answers: Mapping[str, float]
    """Of each answer: largest difference of a number, or share of labels that may differ."""
    figure: str
    """Name of the figure that is the score."""
    drop: float
    """How much of the score may be lost."""
    counts: bool = False
    """Whether the score is a share of its positives: then one of them may be lost besides, since few of them cannot tell less."""


@dataclass(frozen=True)
class Application:
    """Everything the engine and the verbs need to know about one application."""

    name: str
    """`vertical.application`, as in `finance.fraud`."""
    title: str
    """One line for `verticals list`."""
    recipes: Mapping[str, Callable[[], Config]]
    """Complete configurations by name; `debug` is obligatory and trains in seconds on a CPU."""
    data: Callable[[Any], Data]
    """Config -> Data."""
    task: Callable[[Any, Any], torch.nn.Module]
    """(Config, Data) -> Task: a module with `.model`, whose forward(batch) gives a Step."""
    constants: Callable[[Any, Any, Any], Mapping[str, Any]]
    """(Config, Data, Task) -> what ships beside the weights as JSON: preprocessing, calibration, thresholds."""
    model: Callable[[Any, Mapping[str, Any]], torch.nn.Module]
    """(Config, constants) -> the network without weights, built like `task.model`."""
    forms: Mapping[str, Callable[[Any], torch.nn.Module]]
    """Network -> a form of it that a Session runs, with `inputs` and `outputs`; the first is what a run is served as."""
    whole: Sequence[str]
    """Modules of the network that keep their width when channels are pruned."""
    distillation: Callable[[Any], torch.nn.Module]
    """Config -> the loss between a student's and a teacher's answers, for `core.compression.distillation.Distillation`."""
    limits: Mapping[str, Limits]
    """What parity demands of an artifact, by its precision: `float32`, `bfloat16`, `int8`."""
    calibration: Callable[..., tuple[list[Arrays], dict[str, int]]]
    """(config, constants, session, data, count) -> what the network gets for so many validation samples, one a row, and how many there are
    of each class: for quantization, so every class is among them."""
    predictor: Callable[..., Predictor]
    """(Config, constants, session, version=...) -> Predictor; also threshold=..., where it has one."""
    has_threshold: bool
    """Whether the Predictor decides at a score, which `verticals release --threshold` may set."""
    evaluate: Callable[..., Metrics]
    """(predictor, data, split) -> Metrics."""
    samples: Callable[..., Any]
    """(config, source) -> Data over a file, every labelled row of it in the split `all`: for `verticals evaluate -i`."""
    predict: Callable[..., dict[str, Any]]
    """(predictor, config, source, target path) -> writes the answers to a file or folder, whole or not at all and in bounded
    memory, and says what was done, `text` among it."""
    cost: Callable[..., Estimate] | None
    """(predictor, config, source) -> the most that `predict` will take, from headers alone; None where no file is too large."""
    archive: Callable[[str], Archive] | None
    """URL -> what inputs may be fetched from and answers stored in; None where there is no such thing."""
    check: Callable[..., dict[str, Any]]
    """(config, source) -> what is in a file; raises DataError that names what is wrong with it."""
    synthesize: Callable[..., dict[str, Any]]
    """(config, path) -> writes small truthful data with a known answer, and says what is in it."""
    remember: Callable[..., dict[str, Any]] | None
    """(config, source, store) -> fills what the service keeps with a file's past or a data set, resumably; None where it keeps nothing."""
    begins_filled: bool
    """Whether a service that begins with a model of synthetic data keeps such data too: a search in nothing finds nothing."""
    example: Callable[[], Any]
    """A request that the Predictor answers: documentation, smoke test and warm-up."""
    card: Path
    """The model card (README.md of the application's folder)."""
