"""Where models are kept, and the file of aliases and thresholds beside them: read whole, written whole.

`BENTOML_HOME/verticals/aliases.json` is renamed into place under a lock: a reader sees the old text or the new one.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import ArtifactError

LAYOUT = 1
"""Of the alias file; another number is refused."""

_NAME = re.compile(r"[a-z0-9](?:[-._a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class State:
    """One application's part of the alias file."""

    aliases: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)


def store() -> Path:
    """The BentoML model store: `models` below BENTOML_HOME (default: `bentoml` in the home folder)."""
    home = os.path.expandvars(os.environ.get("BENTOML_HOME") or "~/bentoml")
    return Path(home).expanduser() / "models"


def alias_file() -> Path:
    """Where aliases and thresholds are; its modification time tells a service that they changed."""
    return store().parent / "verticals" / "aliases.json"


def read_states() -> dict[str, State]:
    """The alias file, whole and checked; no file is no alias.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = alias_file()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["layout"] != LAYOUT:
            raise ValueError(f"layout {record['layout']}, this code reads {LAYOUT}")
        states = {
            checked(application, "application"): State(
                {checked(alias, "alias"): checked(version, "version") for alias, version in part["aliases"].items()},
                {checked(version, "version"): float(value) for version, value in part["thresholds"].items()},
            )
            for application, part in record["applications"].items()
        }
        if not all(math.isfinite(value) for state in states.values() for value in state.thresholds.values()):
            raise ValueError("a threshold is not a finite number")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArtifactError) as error:
        raise ArtifactError(
            f"the alias file {path} is damaged ({type(error).__name__}: {error}); restore it from a copy, or delete it "
            "and set the aliases again: the versions themselves are untouched"
        ) from None
    return states


@contextmanager
def locked() -> Iterator[dict[str, State]]:
    """Gives the applications' states to change; what is there at the end is written, unless the block raises."""
    path = alias_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / "aliases.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        states = read_states()
        yield states
        applications = {
            application: {"aliases": state.aliases, "thresholds": state.thresholds}
            for application, state in sorted(states.items())
        }
        replace(path, json.dumps({"layout": LAYOUT, "applications": applications}, indent=1))


def replace(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a restart after a power cut, sees the old text or the new one."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with open(part, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Puts a file's content, or a directory's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checked(name: Any, kind: str) -> str:
    """A name that is legal as a BentoML tag, and so as a folder."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArtifactError(f"{kind} {name!r} is not allowed: up to 63 small letters, digits, '-', '_' and '.'")
    return name
