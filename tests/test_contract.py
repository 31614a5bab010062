"""Every promise of core/contract.py, over every application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.contract import Application, Predictor
from core.device import seed_everything
from core.distributed.launch import launch
from core.distributed.strategy import Strategy
from core.inference.model import served
from core.inference.parts import torch_session
from core.training.log import Log
from core.training.loop import fit
from verticals import APPLICATIONS, load

STEPS = 20
TOLERANCE = {"bf16": 0.05, "compile": 1e-3, "processes": 1e-3}
"""Largest relative difference of any of the 20 losses from float32 in one process; bf16 has 8 bits of mantissa."""
GENTLE = "fit.optim.lr=1e-4"
"""So that a rounding error stays one: at a large rate a training that assigns anchors to boxes takes another way after it."""


pytestmark = pytest.mark.parametrize("name", APPLICATIONS)


def settings(*changes: str) -> list[str]:
    return [f"fit.max_steps={STEPS}", "fit.epochs=20", *changes]


def config_of(app: Application, *changes: str) -> Any:
    return app.recipes["debug"]().override(settings(*changes))


def train(name: str, path: str, *changes: str) -> None:
    """Trains the debug recipe; rank 0 writes its losses to `path`."""
    app = load(name)
    config = config_of(app, *changes)
    strategy = Strategy(torch.device("cpu"))
    seed_everything(config.fit.seed)
    data = app.data(config)
    task = app.task(config, data)
    with Log(Path(path) if strategy.rank == 0 else None, quiet=True) as log:
        fit(task, data, config.fit, strategy=strategy, log=log)


def losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of one process in float32, by application, at the gentle rate."""
    made = {}
    for name in APPLICATIONS:
        path = tmp_path_factory.mktemp("float32") / "losses.jsonl"
        train(name, str(path), GENTLE)
        made[name] = losses(path)
    return made


def test_losses_are_finite_and_fall(name: str, tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    train(name, str(path))
    found = losses(path)
    assert len(found) == STEPS
    assert np.isfinite(found).all()
    assert np.mean(found[-5:]) < np.mean(found[:5])


@pytest.mark.parametrize("how", ["bf16", "compile"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_losses_hold_in_other_arithmetic(name: str, how: str, float32: dict[str, list[float]], tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    train(name, str(path), GENTLE, "fit.precision=bf16" if how == "bf16" else "fit.compile=true")
    assert losses(path) == pytest.approx(float32[name], rel=TOLERANCE[how])


def test_losses_hold_on_two_processes(name: str, float32: dict[str, list[float]], tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    launch(train, 2, name, str(path), GENTLE)
    assert losses(path) == pytest.approx(float32[name], rel=TOLERANCE["processes"])


def test_every_parameter_gets_a_gradient(name: str) -> None:
    app = load(name)
    config = config_of(app)
    seed_everything(0)
    data = app.data(config)
    task = app.task(config, data)
    for batch, _ in zip(data.train(rank=0, world_size=1, epoch=0), range(3), strict=False):
        task(batch).loss.backward()
    silent = [key for key, value in task.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert not silent


def test_ranks_get_as_many_batches(name: str) -> None:
    app = load(name)
    data = app.data(config_of(app))
    counts = {sum(1 for _ in data.train(rank=rank, world_size=2, epoch=1)) for rank in (0, 1)}
    assert counts == {data.num_batches(world_size=2, epoch=1)}


def test_the_predictor_and_its_session_keep_their_specs(name: str) -> None:
    app = load(name)
    config = config_of(app)
    data = app.data(config)
    task = app.task(config, data).eval()
    made = app.constants(config, data, task)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    network = app.model(config, made)
    network.load_state_dict(task.model.state_dict())  # type: ignore[union-attr,operator]
    session = torch_session(served(app, network))
    predictor = app.predictor(config, made, session, version="test")
    assert isinstance(predictor, Predictor)
    arrays = {
        spec.name: np.zeros([3 if isinstance(axis, str) else axis for axis in spec.shape], spec.dtype)
        for spec in predictor.inputs
    }
    results = session(arrays)
    for spec in predictor.outputs:
        spec.check(results[spec.name])
    with pytest.raises(ValueError, match="allowed is"):
        session({**arrays, predictor.inputs[0].name: arrays[predictor.inputs[0].name].astype(np.int16)})
    cost = predictor.estimate([app.example()])
    assert cost.bytes > 0
    assert cost.seconds > 0


def test_the_model_card_says_what_it_must(name: str) -> None:
    text = load(name).card.read_text(encoding="utf-8")
    for heading in ("## Data", "## Intended use", "## Scores", "## Limits"):
        assert heading in text


def test_recipes_are_complete_and_survive_their_record(name: str) -> None:
    app = load(name)
    assert {"debug", "default"} <= set(app.recipes)
    for recipe in app.recipes.values():
        config = recipe()
        assert type(config).from_yaml(config.to_yaml()) == config
