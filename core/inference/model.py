"""Rebuilds a trained model from its directory: configuration, constants, network, session, Predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from core.contract import Application, Session
from core.device import pick_device
from core.errors import ArtifactError
from core.inference import artifact
from core.inference.parts import torch_session
from core.inference.session import SessionConfig
from core.nn.shapes import fit_to
from core.run import Run, load_weights, read_weights


def served(app: Application, network: torch.nn.Module) -> torch.nn.Module:
    """The form of a network that a run is served as: the application's first."""
    return next(iter(app.forms.values()))(network)


def network_of(app: Application, path: Path) -> torch.nn.Module:
    """The trained network of a run's or version's directory.

    Raises:
        ArtifactError: a file is missing or damaged, or was made by other code; or the directory is an artifact.
    """
    if artifact.is_artifact(path):
        raise ArtifactError(
            f"{path} is an exported artifact: what it was made of is needed here, the run or version "
            f"{artifact.read(path).source}, trained in torch"
        )
    model = app.model(config_of(app, path), Run(path).read_json("constants.json"))
    weights = path / "model.safetensors"
    fit_to(model, read_weights(weights)[0])  # pruned weights are smaller than the configuration says
    load_weights(model, weights)
    return model


def config_of(app: Application, path: Path) -> Any:
    """The configuration that a directory was made with."""
    return next(iter(app.recipes.values()))().from_yaml(Run(path).read_text("config.yaml"))


def session_of(
    app: Application, path: Path, *, form: str | None = None, config: SessionConfig | None = None
) -> Session:
    """A session over a run, a version, or an artifact, whose files are checked against their hashes.

    Args:
        form: of the network; the first where None. An artifact has one form.
    """
    config = config or SessionConfig()
    if artifact.is_artifact(path):
        record = artifact.read(path)
        if record.application != app.name:
            raise ArtifactError(f"{path} is an artifact of {record.application}, not of {app.name}")
        return artifact.open_network(path, record, config)
    network = network_of(app, path)
    made = app.forms[form](network) if form else served(app, network)
    return torch_session(made, device=pick_device(config.device))


def build(
    app: Application,
    path: Path,
    name: str,
    *,
    session: SessionConfig | None = None,
    settings: Sequence[str] = (),
    **predictor: Any,
) -> tuple[Any, Any]:
    """The configuration and the Predictor of a run's, version's or artifact's directory.

    Args:
        name: what the Predictor calls the version.
        session: how its network runs.
        settings: overrides of the model's own configuration, as `key=value`.
        predictor: further arguments of the application's Predictor.

    Raises:
        ArtifactError: a file is missing or damaged, or was made by other code.
    """
    opened = session_of(app, path, config=session)  # first: of an artifact it checks every file
    config, constants = config_of(app, path).override(settings), Run(path).read_json("constants.json")
    return config, app.predictor(config, constants, opened, version=name, **predictor)
