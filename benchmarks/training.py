"""Trainings of benchmarks: checkpointed in a folder, taken up where they stopped, timed over all their parts."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.contract import Data
from core.device import machine
from core.distributed.strategy import Strategy
from core.errors import ConfigError
from core.run import Run, revision
from core.training.checkpoint import Checkpointer
from core.training.log import Log
from core.training.loop import FitConfig, fit


def trained(
    folder: Path, name: str, task: nn.Module, data: Data, config: FitConfig, *, settings: str, device: torch.device
) -> float:
    """Trains the task, or what is left of it; the seconds that training took in all.

    Args:
        settings: all that decides the training; kept beside it.

    Raises:
        ConfigError: the folder holds a training of other settings.
    """
    stated = folder / f"{name}.json"
    if (folder / name).exists() and (not stated.exists() or stated.read_text() != settings):
        raise ConfigError(
            f"{folder} holds a training of {name} with other settings ({stated.name}); give another --cache"
        )
    stated.write_text(settings)
    clock = folder / f"{name}.seconds"
    before = float(clock.read_text()) if clock.exists() else 0.0
    started = time.perf_counter()

    class Timed(Checkpointer):
        def save(self, state: dict[str, Any]) -> None:
            super().save(state)
            clock.write_text(str(before + time.perf_counter() - started))

    with Log(folder / f"{name}.jsonl", quiet=not sys.stderr.isatty()) as log:
        fit(task, data, config, strategy=Strategy(device), log=log, checkpointer=Timed(folder / name))
    return float(clock.read_text())


def kept(
    path: Path,
    *,
    application: str,
    recipe: str,
    config: str,
    fingerprint: Mapping[str, Any],
    constants: Mapping[str, Any],
    network: nn.Module,
    report: Mapping[str, Any],
) -> None:
    """A network as a run, which `verticals predict`, `export` and `compress` and other benchmarks take."""
    path.mkdir(exist_ok=True)
    run = Run(path)
    run.write_text("config.yaml", config)
    run.write_json("code.json", {"application": application, "recipe": recipe, **revision()})
    run.write_json("data.json", fingerprint)
    run.write_json("constants.json", constants)
    run.write_weights(network)
    run.write_json("report.json", {**report, "machine": machine()})
