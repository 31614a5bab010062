"""Rebuilds a trained model from its directory: configuration, constants, weights, session, Predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.contract import Application
from core.device import pick_device
from core.inference.session import TorchSession
from core.run import Run, load_weights


def build(app: Application, path: Path, name: str, *, device: str = "cpu", **predictor: Any) -> tuple[Any, Any]:
    """The configuration and the Predictor of a run's or version's directory.

    Args:
        name: what the Predictor calls the version.
        predictor: further arguments of the application's Predictor.

    Raises:
        ArtifactError: a file is missing or damaged, or was made by other code.
    """
    files = Run(path)
    config = next(iter(app.recipes.values()))().from_yaml(files.read_text("config.yaml"))
    constants = files.read_json("constants.json")
    model = app.model(config, constants)
    load_weights(model, path / "model.safetensors")
    session = TorchSession(app.deployed(model), device=pick_device(device))
    return config, app.predictor(config, constants, session, version=name, **predictor)
