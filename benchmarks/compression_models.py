"""What `compression_chain.py` trains: a teacher, and pruned students that learn from it. Each is a job of its own process,
kept under the cache by its arguments, so that a benchmark that was stopped goes on.

Legend: B crop of a batch, R side of a view.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.defect_crops import (
    BOARD_VARIATION,
    STEEL_VARIATION,
    Crops,
    Split,
    Variation,
    board_test,
    board_validation,
    mobilenet,
    steel_test,
    steel_validation,
    view,
)
from core.compression.distillation import Distillation, TemperatureCrossEntropy
from core.compression.pruning import prune
from core.contract import Step
from core.device import seed_everything
from core.distributed.strategy import Strategy
from core.nn.shapes import fit_to
from core.training.log import Log
from core.training.loop import FitConfig, fit
from core.training.optim import OptimConfig

Dataset = Literal["boards", "steel"]
Held = Literal["test", "validation"]


class Job(NamedTuple):
    """A network to train; the name of its file."""

    dataset: Dataset
    held: Held
    seed: int
    ratio: float = 0.0
    """Share of the channels that is pruned; 0 is the teacher."""

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.held}-seed{self.seed}-pruned{round(100 * self.ratio):02d}"

    def needs(self, ratios: Sequence[float]) -> list[Job]:
        """Of a student its teacher and the network that is pruned further; of steel's teacher the boards'."""
        if self.ratio:
            less = max((ratio for ratio in (0.0, *ratios) if ratio < self.ratio), default=0.0)
            return [self._replace(ratio=0.0), self._replace(ratio=less)]
        return [self._replace(dataset="boards")] if self.dataset == "steel" else []


EPOCHS: dict[Dataset, tuple[int, int]] = {"boards": (7, 7), "steel": (24, 14)}
"""Of a teacher and of a student."""


class Work(NamedTuple):
    """Something to train in a process of its own, and what has to be there before."""

    name: str
    """Of the file `name.seconds`, written when it is done."""
    needs: tuple[str, ...]
    call: Callable[..., float]
    """Returns its seconds of processor time."""
    given: tuple[Any, ...]


class Batch(NamedTuple):
    """Views of crops."""

    image: Tensor
    """[B, 3, R, R]"""
    label: Tensor
    """[B]"""


class CropData:
    """`core.contract.Data` over crops: every epoch a new order and new views."""

    def __init__(self, crops: Crops, variation: Variation, *, batch_size: int, most: int | None = None) -> None:
        self.crops, self.variation, self.batch_size = crops, variation, batch_size
        self.rows = np.arange(len(crops.label))[:most]
        self.fingerprint: dict[str, Any] = {"crops": len(self.rows)}

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        return len(self.rows) // self.batch_size

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(self.rows)
        generator = torch.Generator().manual_seed(epoch)
        for first in range(0, len(order) - self.batch_size + 1, self.batch_size):
            rows = order[first : first + self.batch_size]
            pixels = torch.from_numpy(self.crops.pixels[rows])
            yield Batch(
                view(pixels, vary=self.variation, generator=generator), torch.from_numpy(self.crops.label[rows])
            )

    def samples(self, split: str) -> Any:
        return self.crops


class CropTask(nn.Module):
    """Cross entropy of the class."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Step:
        loss = F.cross_entropy(self.model(batch.image), batch.label)
        return Step(loss, {"loss": loss.detach()})


def crops_of(dataset: Dataset, held: Held) -> Split:
    """Training and held crops of the data beside VERTICALS_DATA."""
    root = Path(os.environ["VERTICALS_DATA"])
    if dataset == "boards":
        return (board_test if held == "test" else board_validation)(root / "pcb/DeepPCB")
    return (steel_test if held == "test" else steel_validation)(root / "steel/NEU-DET")


def network_of(job: Job, cache: Path) -> nn.Module:
    """A trained network."""
    network, tensors = mobilenet(job.seed), load_file(cache / f"{job.name}.safetensors")
    fit_to(network, tensors)
    network.load_state_dict(tensors)
    return network.eval()


def works(jobs: Sequence[Job], ratios: Sequence[float], cache: Path, *, quick: bool) -> list[Work]:
    """Each job after what it needs."""
    alone = quick  # steel's teacher then starts from nothing
    return [
        Work(
            job.name,
            tuple(need.name for need in job.needs(ratios) if not (alone and need.dataset != job.dataset)),
            train,
            (job, tuple(ratios), str(cache), quick),
        )
        for job in jobs
    ]


def run(waiting: Sequence[Work], cache: Path, *, processes: int) -> dict[str, float]:
    """Trains what is not there yet, side by side; seconds of processor time by name, also of what was there."""
    cache.mkdir(parents=True, exist_ok=True)
    there = {path.stem for path in cache.glob("*.seconds")}
    left = [work for work in waiting if work.name not in there]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running: dict[Any, Work] = {}
        while left or running:
            ready = [work for work in left if there.issuperset(work.needs)]
            for work in ready[: processes - len(running)]:
                left.remove(work)
                running[pool.submit(work.call, *work.given)] = work
            if not running:
                raise SystemExit(f"{left[0].name} waits for what nobody trains: {', '.join(left[0].needs)}")
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                work = running.pop(done)
                print(f"  {work.name}: {done.result():.0f} s of one core", flush=True)
                there.add(work.name)
    return {work.name: float((cache / f"{work.name}.seconds").read_text()) for work in waiting}


def train(job: Job, ratios: tuple[float, ...], cache: str, quick: bool) -> float:
    """One job, in a process of its own; returns its processor time in seconds."""
    torch.set_num_threads(1)
    seed_everything(job.seed)
    started, folder = process_time(), Path(cache)
    variation = BOARD_VARIATION if job.dataset == "boards" else STEEL_VARIATION
    data = CropData(
        crops_of(job.dataset, job.held).train,
        variation,
        batch_size=64 if job.dataset == "boards" else 32,
        most=64 if quick else None,
    )
    epochs = (1, 1) if quick else EPOCHS[job.dataset]
    network = (
        _student(job, ratios, folder, data, epochs[1], hurried=quick)
        if job.ratio
        else _teacher(job, folder, data, epochs[0], alone=quick)
    )
    part = folder / f"{job.name}.part"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, part)
    part.rename(folder / f"{job.name}.safetensors")
    seconds = process_time() - started
    (folder / f"{job.name}.seconds").write_text(f"{seconds:.1f}")
    return seconds


def _teacher(job: Job, folder: Path, data: CropData, epochs: int, *, alone: bool) -> nn.Module:
    """From nothing; steel's from the boards' of the same seed, with a last layer of its own."""
    network = mobilenet(job.seed)
    if job.dataset == "steel" and not alone:
        boards = load_file(folder / f"{job._replace(dataset='boards').name}.safetensors")
        rest = {name: tensor for name, tensor in boards.items() if not name.startswith("classifier.")}
        network.load_state_dict(rest, strict=False)
    task = CropTask(network)
    _fit(task, data, epochs, seed=job.seed)
    return task.model


def _student(
    job: Job, ratios: tuple[float, ...], folder: Path, data: CropData, epochs: int, *, hurried: bool
) -> nn.Module:
    """Pruned from the next less pruned network in two steps, then taught by the teacher for the rest of its epochs."""
    teacher_job, source = job.needs(ratios)
    teacher = CropTask(network_of(teacher_job, folder))
    share = 1 - (1 - job.ratio) / (1 - source.ratio)
    task = CropTask(mobilenet(job.seed))

    def taught(network: nn.Module, epochs: int, steps: int = 0) -> None:
        task.model = network
        loss = TemperatureCrossEntropy(2.0)
        _fit(Distillation(task, teacher, loss, weight=0.7), data, epochs, seed=job.seed, steps=steps)

    example = (next(iter(data.train(rank=0, world_size=1, epoch=0))).image[:2],)
    network = network_of(source, folder).train()
    pruned = prune(
        network, share, example, steps=2, recover=lambda small, step: taught(small, 1, steps=1 if hurried else 12)
    )
    taught(pruned.model, epochs)
    return task.model


def _fit(task: nn.Module, data: CropData, epochs: int, *, seed: int, steps: int = 0) -> None:
    optim = OptimConfig(lr=2e-3, weight_decay=0.05, warmup=0.15, clip_norm=5.0, average=0.98 if not steps else 0.0)
    config = FitConfig(epochs=epochs, max_steps=steps, optim=optim, seed=seed)
    with Log(None, quiet=True) as log:
        fit(task, data, config, strategy=Strategy(torch.device("cpu")), log=log)
