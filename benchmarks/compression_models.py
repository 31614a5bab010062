"""What `compression_chain.py` trains: a teacher, and pruned students that learn from it. Each is a job of its own process,
kept under the cache by its arguments, so that a benchmark that was stopped goes on.

Legend: B crop of a batch, R side of a view.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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
        """What has to be there before: the teacher, the student that is pruned further, the boards' teacher for steel's."""
        if self.ratio:
            less = max((ratio for ratio in (0.0, *ratios) if ratio < self.ratio), default=0.0)
            return [self._replace(ratio=0.0), self._replace(ratio=less)]
        return [self._replace(dataset="boards")] if self.dataset == "steel" else []


class Budget(NamedTuple):
    """Epochs of training."""

    teacher: int
    student: int

    @classmethod
    def of(cls, dataset: Dataset, quick: bool) -> Budget:
        if quick:
            return cls(1, 1)
        return cls(8, 8) if dataset == "boards" else cls(14, 14)


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


def run(jobs: Sequence[Job], ratios: Sequence[float], cache: Path, *, quick: bool, processes: int) -> dict[str, float]:
    """Trains what is not there yet, side by side; seconds of processor time by name, also of what was there."""
    cache.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not (cache / f"{job.name}.safetensors").exists()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running: dict[Any, Job] = {}
        while waiting or running:
            ready = [
                job
                for job in waiting
                if all((cache / f"{need.name}.safetensors").exists() for need in job.needs(ratios))
            ]
            for job in ready[: processes - len(running)]:
                waiting.remove(job)
                running[pool.submit(train, job, tuple(ratios), str(cache), quick)] = job
            if not running:
                raise SystemExit(f"{waiting[0].name} waits for what nobody trains")
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(done)
                print(f"  {job.name}: {done.result():.0f} s of one core", flush=True)
    return {job.name: float((cache / f"{job.name}.seconds").read_text()) for job in jobs}


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
        most=128 if quick else None,
    )
    budget = Budget.of(job.dataset, quick)
    network = _student(job, ratios, folder, data, budget) if job.ratio else _teacher(job, folder, data, budget)
    part = folder / f"{job.name}.part"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, part)
    seconds = process_time() - started
    (folder / f"{job.name}.seconds").write_text(f"{seconds:.1f}")
    part.rename(folder / f"{job.name}.safetensors")
    return seconds


def _teacher(job: Job, folder: Path, data: CropData, budget: Budget) -> nn.Module:
    """From nothing; steel's from the boards' of the same seed, with a last layer of its own."""
    network = mobilenet(job.seed)
    if job.dataset == "steel":
        boards = load_file(folder / f"{job._replace(dataset='boards').name}.safetensors")
        rest = {name: tensor for name, tensor in boards.items() if not name.startswith("classifier.")}
        network.load_state_dict(rest, strict=False)
    task = CropTask(network)
    _fit(task, data, budget.teacher, seed=job.seed)
    return task.model


def _student(job: Job, ratios: tuple[float, ...], folder: Path, data: CropData, budget: Budget) -> nn.Module:
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
    pruned = prune(network, share, example, steps=2, recover=lambda small, step: taught(small, 1, steps=12))
    taught(pruned.model, budget.student)
    return task.model


def _fit(task: nn.Module, data: CropData, epochs: int, *, seed: int, steps: int = 0) -> None:
    optim = OptimConfig(lr=2e-3, weight_decay=0.05, warmup=0.15, clip_norm=5.0, average=0.98 if not steps else 0.0)
    config = FitConfig(epochs=epochs, max_steps=steps, optim=optim, seed=seed)
    with Log(None, quiet=True) as log:
        fit(task, data, config, strategy=Strategy(torch.device("cpu")), log=log)
