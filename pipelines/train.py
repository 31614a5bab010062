"""`verticals train`: data to a finished Run, and the Run to a registered version."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from core import registry
from core.contract import Application
from core.device import machine, pick_device, seed_everything
from core.distributed.launch import launch
from core.distributed.strategy import Strategy
from core.errors import ConfigError
from core.evaluation.report import write_report
from core.inference.model import served
from core.inference.parts import torch_session
from core.memory import peak_bytes
from core.run import Run
from core.training.checkpoint import Checkpointer
from core.training.log import Log, working
from core.training.loop import fit
from verticals import load


def train(
    application: str,
    *,
    recipe: str = "default",
    settings: Sequence[str] = (),
    data: Sequence[str] = (),
    device: str = "auto",
    runs: str = "runs",
    resume: str | None = None,
    processes: int = 1,
    alias: str = "candidate",
) -> dict[str, Any]:
    """Trains, evaluates on the test days, writes the report, and registers the version under `alias`.

    Args:
        settings: overrides as `key=value`.
        data: files to train on; they take the place of the recipe's sources.
        resume: a run directory to go on with; its own configuration is used.
        alias: `candidate`, `production` or `none` (not registered).

    Raises:
        ConfigError: unknown application, recipe or setting.
        DataError: data that cannot be used.
    """
    app = load(application)
    if processes < 1:
        raise ConfigError(f"--processes {processes}; allowed are 1 and more")
    if resume:
        if settings or data:
            raise ConfigError(
                "--resume goes on with the run's own configuration; leave out --set and --data, or train anew"
            )
        run = Run.open(Path(resume))
        if run.application != application:
            raise ConfigError(f"{resume} is a run of {run.application}, not of {application}")
    else:
        if recipe not in app.recipes:
            raise ConfigError(f"{application} has no recipe {recipe!r}; there are: {', '.join(app.recipes)}")
        config = app.recipes[recipe]().override(
            [*settings, *([f"data.sources=[{', '.join(map(_quoted, data))}]"] if data else [])]
        )
        run = Run.create(Path(runs), application, config, recipe)
    try:
        if processes > 1:
            launch(_train, processes, application, str(run.path), device)
        else:
            _train(application, str(run.path), device)
    except BaseException:
        if not resume and not (run.path / "data.json").exists():  # refused before it began: nothing to go on with
            run.discard()
        raise
    report = run.read_json("report.json")
    version = None
    if alias != "none":
        version = registry.register(run.path, application)
        registry.set_alias(application, alias, version)
    return {
        "run": str(run.path),
        "version": version,
        "alias": alias if version else None,
        "figures": report["figures"],
        "text": f"{report['text']}\nrun      {run.path}\nversion  {version or '(not registered)'}{f' = {alias}' if version else ''}",
    }


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _train(application: str, path: str, device: str) -> None:
    """What every process of a training does; the first one evaluates and writes."""
    app, run = load(application), Run(Path(path))
    config = next(iter(app.recipes.values()))().from_yaml(run.read_text("config.yaml"))
    if "OMP_NUM_THREADS" not in os.environ:  # on shared cores torch with a thread for each is many times slower
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    strategy = Strategy(pick_device(device))
    seed_everything(config.fit.seed)  # type: ignore[attr-defined]  # every application's Config has `fit`
    main = strategy.rank == 0
    with working("reading data, computing features") if main else nullcontext():
        data = app.data(config)
        task = app.task(config, data)
    if main:
        run.write_json("data.json", data.fingerprint)
        print(f"run {run.path}", file=sys.stderr)
    with Log(run.path / "metrics.jsonl" if main else None, quiet=not main) as log:
        fit(task, data, config.fit, strategy=strategy, log=log, checkpointer=Checkpointer(run.path / "checkpoints"))  # type: ignore[attr-defined]
    if main:
        with working("calibration, figures with intervals, report"):
            finish(app, run, config, data, task)


def finish(app: Application, run: Run, config: Any, data: Any, task: Any) -> None:
    """From a trained task to a finished run: constants, weights, figures of the test days, report."""
    task.cpu().eval()
    constants = app.constants(config, data, task)
    run.write_json("constants.json", constants)
    run.write_weights(task.model)
    predictor = app.predictor(config, constants, torch_session(served(app, task.model)), version=run.path.name)
    evaluation = app.evaluate(predictor, data, "test")
    record = {
        **evaluation.record(),
        "text": evaluation.text,
        "machine": machine(),
        "peak_gb": round(peak_bytes() / 1e9, 2),
    }
    losses = [line for line in run.read_text("metrics.jsonl").splitlines() if line]
    write_report(
        run.path / "report.html",
        evaluation.sections(
            config=config.to_yaml(), data=data.fingerprint, code=run.read_json("code.json"), steps=losses
        ),
        title=f"{app.title}: {run.path.name}",
    )
    run.write_json("report.json", record)
