"""Opens a trained model, from the registry, a run directory or an artifact: what several verbs begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core import registry
from core.contract import Application, Data, Predictor
from core.errors import ArtifactError, ConfigError
from core.inference.artifact import is_artifact
from core.inference.model import build
from core.inference.session import SessionConfig
from core.run import Run
from verticals import APPLICATIONS, load


class Place(NamedTuple):
    """Where a model's files are."""

    app: Application
    name: str
    path: Path
    code: Mapping[str, Any]
    """Revision of the code that trained it."""


class Model(NamedTuple):
    """A model that answers, and what it was made from."""

    app: Application
    config: Any
    predictor: Predictor
    version: str
    path: Path


def find(where: str) -> Place:
    """
    Args:
        where: a directory (a run or an artifact), or `APPLICATION` or `APPLICATION:VERSION` in the registry.

    Raises:
        ArtifactError: no such model, or it is damaged.
        ConfigError: neither a directory nor an application.
    """
    path = Path(where)
    if path.is_dir():
        run = Run.open(path)
        return Place(load(run.application), path.name, path, run.read_json("code.json"))
    name, _, version = where.partition(":")
    if name not in APPLICATIONS:
        raise ConfigError(
            f"{where!r} is neither the directory of a run or artifact nor an application ({', '.join(APPLICATIONS)}); "
            "give one, as runs/finance.fraud/..., finance.fraud or finance.fraud:candidate"
        )
    found = registry.resolve(name, version or "production")
    return Place(load(name), found.version, found.path, found.code)


def samples(place: Place, config: Any, *, input: str | None, split: str) -> tuple[Data, str]:
    """The samples of a labelled file, or of the data that the model was trained from, and the name of their split."""
    return (place.app.samples(config, input), "all") if input else (place.app.data(config), split)


def open_model(
    application: str,
    *,
    version: str = "production",
    run: str | None = None,
    as_released: bool = False,
    device: str = "cpu",
    settings: Sequence[str] = (),
    **predictor: Any,
) -> Model:
    """
    Args:
        version: version or alias in the registry; every file is checked against its hash.
        run: a run or artifact directory instead.
        as_released: decides at the threshold that was set for the version, as the service does.
        settings: overrides of the model's own configuration, as `key=value`.
        predictor: further arguments of the application's Predictor.

    Raises:
        ArtifactError: no such model, damaged, or of another application.
        ConfigError: no such setting.
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
    session = SessionConfig(device=device)
    return Model(app, *build(app, path, name, session=session, settings=settings, **predictor), name, path)


def size_of(path: Path) -> int:
    """Bytes of a model's network: its weights, or the files that an artifact's runtime reads."""
    from core.inference.artifact import network_files, read
    from core.inference.parts import WHOLE

    names: tuple[str, ...] = ("model.safetensors",)
    if is_artifact(path):
        record = read(path)
        names = tuple(name for part in record.parts or (WHOLE,) for name in network_files(record.format, part))
    return sum((path / name).stat().st_size for name in names)
