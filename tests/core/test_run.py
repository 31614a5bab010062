"""Run directories: complete files, weights in safetensors, clear errors for what is missing or damaged."""

from pathlib import Path

import pytest
import torch

from core.config import Config
from core.errors import ArtifactError
from core.run import Run, load_weights


class Settings(Config):
    size: int = 3


def test_a_run_remembers_what_it_was_made_from(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "finance.fraud", Settings(size=5), "debug")
    again = Run.open(run.path)
    assert again.application == "finance.fraud"
    assert Settings.from_yaml(again.read_text("config.yaml")).size == 5
    assert {"recipe", "created", "version", "commit", "dirty"} <= set(again.read_json("code.json"))


def test_weights_come_back_as_they_went(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "finance.fraud", Settings(), "debug")
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    run.write_weights(model)
    load_weights(other, run.path / "model.safetensors")
    assert torch.equal(model.weight, other.weight)
    assert not list(run.path.glob("*.part"))


def test_damage_and_misfit_are_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "finance.fraud", Settings(), "debug")
    with pytest.raises(ArtifactError, match="did not finish"):
        run.read_json("report.json")
    with pytest.raises(ArtifactError, match="missing"):
        load_weights(torch.nn.Linear(3, 2), run.path / "model.safetensors")
    run.write_weights(torch.nn.Linear(3, 2))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_weights(torch.nn.Linear(4, 2), run.path / "model.safetensors")
    weights = run.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="damaged"):
        load_weights(torch.nn.Linear(3, 2), weights)
    with pytest.raises(ArtifactError, match="no run directory"):
        Run.open(tmp_path)


def test_a_figure_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "finance.fraud", Settings(), "debug")
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("report.json", {"auc": float("nan")})
    assert not (run.path / "report.json").exists()
