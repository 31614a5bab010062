"""Versions of trained models in the BentoML model store, and the aliases and thresholds beside it.

A version is a directory `BENTOML_HOME/models/APPLICATION/VERSION` whose `manifest.json` holds the sha256 of every file;
its name ends in the manifest's own hash, so nothing in it can change unseen. Aliases (`candidate`, `production`) and
threshold overrides are one JSON file, `BENTOML_HOME/verticals/aliases.json`, that is renamed into place. BentoML is
imported only to write to its store: reading and listing stay cheap.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from core.aliases import State, alias_file, checked, locked, read_states, replace, store, sync
from core.errors import ArtifactError

LAYOUT = 1
"""Of the version's directory; another number is refused."""

FILES = ("config.yaml", "constants.json", "data.json", "model.safetensors", "report.json", "report.html")
"""What a version made of a run consists of, beside `manifest.json` and BentoML's own `model.yaml`."""

_VERSION = re.compile(r"\d{8}t\d{6}-[0-9a-f]{8}")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A registered model: where its files are and what is known of it without loading them."""

    application: str
    version: str
    """`YYYYMMDDtHHMMSS-xxxxxxxx` in UTC; sorts by age."""
    path: Path
    created: datetime
    code: Mapping[str, Any]
    """Revision of the code that trained it, as the Run recorded it."""
    report: Mapping[str, Any]
    """The scores: `report.json`."""
    aliases: tuple[str, ...] = ()
    threshold: float | None = None
    """Override of the threshold that the model was registered with; None where there is none."""


def register(run_directory: Path, application: str) -> str:
    """Copies a finished run, or an exported artifact, into the model store. The version appears whole or not at all.

    Returns:
        The new version's name.

    Raises:
        ArtifactError: the run is unfinished (the missing file is named) or belongs to another application; the artifact
            has no report of parity that passed on these very files.
    """
    checked(application, "application")
    exported = (run_directory / "artifact.json").is_file()
    parts = _of_artifact(run_directory, application) if exported else FILES
    for name in (*parts, "code.json"):
        if not (run_directory / name).is_file():
            raise ArtifactError(
                f"{run_directory} has no {name}: the training did not finish; run `verticals train {application}`"
            )
    code = _read_json(run_directory / "code.json")
    if code.get("application", application) != application:
        raise ArtifactError(f"{run_directory} is a run of {code['application']}, not of {application}")

    from bentoml.models import create  # here only: everything but writing works without it

    created = datetime.now(UTC)
    home = alias_file().parent
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="staging-", dir=home) as staging:
        files = Path(staging) / "files"
        files.mkdir()
        for name in parts:
            shutil.copyfile(run_directory / name, files / name)
        manifest = {
            "layout": LAYOUT,
            "application": application,
            "created": created.isoformat(),
            "code": code,
            "files": {
                name: {"sha256": _sha256(files / name), "bytes": (files / name).stat().st_size} for name in parts
            },
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (files / "manifest.json").write_text(text, encoding="utf-8")
        version = f"{created:%Y%m%dt%H%M%S}-{_digest(text)}"
        with create(f"{application}:{version}", _model_store=_model_store(Path(staging))) as model:
            shutil.copytree(files, model.path, dirs_exist_ok=True)
        whole = Path(staging) / application / version
        for path in whole.iterdir():
            sync(path)
        sync(whole)
        target = store() / application / version
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(whole, target)
        sync(target.parent)
        replace(target.parent / "latest", version)
    return version


def _of_artifact(path: Path, application: str) -> tuple[str, ...]:
    """The files of an exported artifact whose parity was shown.

    Raises:
        ArtifactError: no report, one that failed, or one about other files; a file is not what was exported.
    """
    from core.inference import artifact  # here only: it brings torch

    record = artifact.proved(path)
    if record.application != application:
        raise ArtifactError(f"{path} is an artifact of {record.application}, not of {application}")
    return (*sorted(record.files), "artifact.json")


def versions(application: str) -> list[Version]:
    """Every version of the application, oldest first, by its manifest and report alone: the hashes are left to `resolve`.

    A version whose manifest or report is damaged is left out, with a warning in the log.
    """
    state = read_states().get(checked(application, "application"), State())
    folder = store() / application
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = []
    for name in names:
        try:
            found.append(_open(application, name, state))
        except ArtifactError as error:
            logger.warning("left out: %s", str(error))
    return found


def resolve(application: str, name: str = "production") -> Version:
    """The version that an alias or a version's name stands for, with every file checked against its hash.

    Raises:
        ArtifactError: there is none (says which command makes one), or a file differs, is missing or is foreign.
    """
    state = read_states().get(checked(application, "application"), State())
    version = state.aliases.get(name, name)
    if not _VERSION.fullmatch(version) or not (store() / application / version).is_dir():
        _raise_unknown(application, name, state)
    found = _open(application, version, state)
    manifest = _read_json(found.path / "manifest.json")
    for file, known in manifest["files"].items():
        path = found.path / file
        if not path.is_file():
            raise ArtifactError(f"{application} {version}: {file} is missing in {found.path}; {_repair(application)}")
        if path.stat().st_size != known["bytes"] or _sha256(path) != known["sha256"]:
            raise ArtifactError(
                f"{application} {version}: {file} is not what was registered (its sha256 differs); {_repair(application)}"
            )
    foreign = {path.name for path in found.path.iterdir()} - {*manifest["files"], "manifest.json", "model.yaml"}
    if foreign:
        raise ArtifactError(
            f"{application} {version}: {', '.join(sorted(foreign))} was added after the registration; remove it from {found.path}"
        )
    return found


def aliases(application: str) -> dict[str, str]:
    """Alias -> version."""
    return dict(read_states().get(checked(application, "application"), State()).aliases)


def thresholds(application: str) -> dict[str, float]:
    """Version -> threshold override."""
    return dict(read_states().get(checked(application, "application"), State()).thresholds)


def set_alias(application: str, alias: str, name: str) -> Version:
    """Points `alias` at a version (or at what another alias stands for). The version's files are checked first.

    Raises:
        ArtifactError: no such version, or it is damaged.
    """
    if _VERSION.fullmatch(checked(alias, "alias")):
        raise ArtifactError(f"alias {alias!r} has the form of a version; give a word, as `candidate` or `production`")
    with locked() as states:
        found = resolve(application, name)
        states.setdefault(application, State()).aliases[alias] = found.version
    return _open(application, found.version, read_states()[application])


def set_threshold(application: str, name: str, threshold: float | None) -> None:
    """Overrides the decision threshold of a version (given by name or alias) from now on; None takes it back.

    The override belongs to the version, whose scores it was chosen on: an alias that moves on does not take it along.

    Raises:
        ArtifactError: no such version, or the threshold is not a finite number.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ArtifactError(f"threshold {threshold} is not a finite number")
    with locked() as states:
        version = resolve(application, name).version
        overrides = states.setdefault(application, State()).thresholds
        overrides.pop(version, None)
        if threshold is not None:
            overrides[version] = float(threshold)


def delete(application: str, version: str) -> None:
    """Removes a version from the store.

    Raises:
        ArtifactError: an alias points to it, or there is no such version.
    """
    with locked() as states:
        state = states.get(checked(application, "application"), State())
        if version in state.aliases:
            raise ArtifactError(f"{version} is an alias; give the version itself, {state.aliases[version]}")
        if not _VERSION.fullmatch(version) or not (store() / application / version).is_dir():
            _raise_unknown(application, version, state)
        holders = sorted(alias for alias, target in state.aliases.items() if target == version)
        if holders:
            raise ArtifactError(
                f"{application} {version} is {' and '.join(holders)}: point the alias at another version before deleting it"
            )
        from bentoml.models import delete as remove

        remove(f"{application}:{version}", _model_store=_model_store(store()))
        state.thresholds.pop(version, None)


def _open(application: str, version: str, state: State) -> Version:
    """A version by its manifest, which has to be the one that its name was made from."""
    path = store() / application / version
    manifest_path = path / "manifest.json"
    try:
        text = manifest_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ArtifactError(
            f"{application} {version}: manifest.json is missing in {path}; {_repair(application)}"
        ) from None
    manifest = _read_json(manifest_path)
    layout, owner = manifest.get("layout"), manifest.get("application")
    if layout != LAYOUT:
        raise ArtifactError(
            f"{application} {version} has layout {layout}; this code reads {LAYOUT}: {_repair(application)}"
        )
    if owner != application:
        raise ArtifactError(f"{path} is a model of {owner}, not of {application}; {_repair(application)}")
    if _digest(text) != version.rpartition("-")[2]:
        raise ArtifactError(
            f"{application} {version}: manifest.json is not what was registered; {_repair(application)}"
        )
    return Version(
        application=application,
        version=version,
        path=path,
        created=datetime.fromisoformat(manifest["created"]),
        code=manifest["code"],
        report=_read_json(path / "report.json"),
        aliases=tuple(sorted(alias for alias, target in state.aliases.items() if target == version)),
        threshold=state.thresholds.get(version),
    )


def _raise_unknown(application: str, name: str, state: State) -> NoReturn:
    folder = store() / application
    known = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not known:
        raise ArtifactError(
            f"there is no model of {application} in {store()}; make one with: verticals train {application}"
        )
    if name in state.aliases:
        raise ArtifactError(
            f"{name} of {application} is {state.aliases[name]}, which is gone; known are {', '.join(known)}; "
            f"choose one of them, or make a new one with: verticals train {application}"
        )
    raise ArtifactError(
        f"{application} has no {name!r}; known are the versions {', '.join(known)} and the aliases "
        f"{', '.join(sorted(state.aliases)) or '(none)'}; choose one, or make a new one with: verticals train {application}"
    )


def _repair(application: str) -> str:
    return f"restore it from a copy, choose another version, or make a new one with: verticals train {application}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: str) -> str:
    return hashlib.sha256(manifest.encode()).hexdigest()[:8]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}); restore it from a copy") from None


def keep_private() -> None:
    """Turns off BentoML's reports to its makers, unless BENTOML_DO_NOT_TRACK is set: a bank's service calls nobody."""
    from bentoml._internal.utils.analytics.usage_stats import do_not_track

    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    do_not_track.cache_clear()  # the `bentoml` command has asked already


def _model_store(path: Path) -> Any:
    from bentoml._internal.models import ModelStore  # private names: tests/core/serving/test_bentoml.py holds them

    keep_private()
    return ModelStore(path)
