"""Opens a trained model, from the registry or from a run directory: what several verbs begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from core import registry
from core.contract import Application, Predictor
from core.errors import ArtifactError
from core.inference.model import build
from core.inference.session import SessionConfig
from core.run import Run
from verticals import load


class Model(NamedTuple):
    """A model that answers, and what it was made from."""

    app: Application
    config: Any
    predictor: Predictor
    version: str
    path: Path


def open_model(
    application: str,
    *,
    version: str = "production",
    run: str | None = None,
    as_released: bool = False,
    device: str = "cpu",
    **predictor: Any,
) -> Model:
    """
    Args:
        version: version or alias in the registry; every file is checked against its hash.
        run: a run directory instead.
        as_released: decides at the threshold that was set for the version, as the service does.
        predictor: further arguments of the application's Predictor.

    Raises:
        ArtifactError: no such model, damaged, or of another application.
    """
    app = load(application)
    if run:
        opened = Run.open(Path(run))
        if opened.application != application:
            raise ArtifactError(f"{run} is a run of {opened.application}, not of {application}")
        path, name = opened.path, opened.path.name
    else:
        found = registry.resolve(application, version)
        path, name = found.path, found.version
        if as_released and found.threshold is not None:
            predictor["threshold"] = found.threshold
    return Model(app, *build(app, path, name, session=SessionConfig(device=device), **predictor), name, path)
