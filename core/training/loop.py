"""`fit`: the training loop, straight code with four collaborators (Strategy, PrecisionPolicy, Checkpointer, Log)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from core.config import Config
from core.contract import Data
from core.device import seed_everything
from core.distributed.strategy import Strategy
from core.errors import DataError
from core.precision import Precision, PrecisionPolicy
from core.training.checkpoint import Checkpointer
from core.training.log import Log
from core.training.optim import OptimConfig, WeightAverage, optimizer_of, rate


class FitConfig(Config):
    """How long and how a Task is trained."""

    epochs: int = Field(10, ge=1)
    """Passes over `Data.train`."""
    max_steps: int = Field(0, ge=0)
    """Stops after this many steps; 0 is no limit. The schedule is laid over the steps that will be taken."""
    optim: OptimConfig = OptimConfig()
    precision: Precision = "float32"
    compile: bool = False
    """Whether the network runs under torch.compile."""
    seed: int = 0
    """Seed of dropout and initial weights; batches are seeded by the data."""


def fit(
    task: nn.Module,
    data: Data,
    config: FitConfig,
    *,
    strategy: Strategy,
    log: Log,
    checkpointer: Checkpointer | None = None,
) -> None:
    """Trains `task` in place; afterwards it holds the weights that ship.

    Every epoch is seeded by its number, so resuming after a finished epoch equals never stopping.

    Raises:
        DataError: the loss is not finite, or the data gave no batch.
    """
    policy = PrecisionPolicy(config.precision, strategy.device)
    if config.compile:
        task.model.compile()  # type: ignore[union-attr]  # nn.Module.compile keeps names of parameters as they are
    module = strategy.wrap(task)
    optimizer = optimizer_of(task, config.optim)
    average = WeightAverage(task, config.optim.average) if config.optim.average else None
    first, step = 0, 0
    total = sum(data.num_batches(world_size=strategy.world_size, epoch=epoch) for epoch in range(config.epochs))
    if not total:
        raise DataError("the training days hold no batch: give more days or more transactions")
    total = min(total, config.max_steps) if config.max_steps else total
    if checkpointer and (state := checkpointer.load()):
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
        policy.scaler.load_state_dict(state["scaler"])
        first, step = state["epoch"], state["step"]
        if average and state["average"]:
            average.shadow, average.steps = state["average"], state["average_steps"]
    module.train()
    for epoch in range(first, config.epochs):
        if config.max_steps and step >= config.max_steps:
            break
        seed_everything(config.seed + 1_000_003 * (epoch + 1))
        batches = data.train(rank=strategy.rank, world_size=strategy.world_size, epoch=epoch)
        for batch in batches:
            if config.max_steps and step >= config.max_steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate(config.optim, step, total)
            optimizer.zero_grad(set_to_none=True)
            with policy.autocast():
                loss, logs = module(_to(batch, strategy.device))
            mean = strategy.mean(loss)
            if mean != mean or mean in (float("inf"), float("-inf")):
                raise DataError(
                    f"the loss of step {step} is {mean}; lower fit.optim.lr, or look for extreme values in the data"
                )
            policy.scaler.scale(loss).backward()
            policy.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(task.parameters(), config.optim.clip_norm)
            policy.scaler.step(optimizer)
            policy.scaler.update()
            step += 1
            if average:
                average.update(task)
            values = {name: float(value) for name, value in logs.items()}
            log.step(step, mean, {**values, "epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}, total=total)
        if checkpointer and strategy.rank == 0:
            checkpointer.save(
                {
                    "task": task.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": policy.scaler.state_dict(),
                    "average": average.shadow if average else None,
                    "average_steps": average.steps if average else 0,
                    "epoch": epoch + 1,
                    "step": step,
                }
            )
    if average:
        task.load_state_dict(average.shadow)
    task.eval()


def _to(batch: Any, device: torch.device) -> Any:
    """The batch, a NamedTuple of tensors, on a device."""
    return type(batch)(*(value.to(device, non_blocking=True) for value in batch))
