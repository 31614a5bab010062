"""The directory that records one training: what was trained, on what, by which code, with what result."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from core.config import Config
from core.errors import ArtifactError


class Run:
    """`config.yaml data.json code.json metrics.jsonl checkpoints/ model.safetensors constants.json report.json report.html`.

    Every file is written whole or not at all. A run is *finished* when `report.json` is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, application: str, config: Config, recipe: str) -> Run:
        """A new directory `root/application/TIME-RECIPE-xxxx` with the configuration and the code's revision."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        run = cls(root / application / f"{stamp}-{recipe}-{secrets.token_hex(2)}")
        run.path.mkdir(parents=True)
        run.write_text("config.yaml", config.to_yaml())
        run.write_json("code.json", {"application": application, "recipe": recipe, "created": stamp, **revision()})
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Raises ArtifactError where the directory is no run."""
        if not (path / "config.yaml").is_file() or not (path / "code.json").is_file():
            raise ArtifactError(
                f"{path} is no run directory (config.yaml and code.json are missing); give one that `verticals train` made"
            )
        return cls(path)

    def discard(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def application(self) -> str:
        return str(self.read_json("code.json")["application"])

    def write_text(self, name: str, text: str) -> None:
        part = self.path / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.path / name)

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))

    def read_text(self, name: str) -> str:
        """Raises ArtifactError where the file is missing."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ArtifactError(
                f"{self.path} has no {name}: the training did not finish; run it again or with --resume"
            ) from None

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises ArtifactError where the file is missing or no JSON object."""
        try:
            return dict(json.loads(self.read_text(name)))
        except ValueError as error:
            raise ArtifactError(f"{self.path / name} is damaged ({error}); train again or restore the file") from None

    def write_weights(self, model: torch.nn.Module) -> None:
        part = self.path / "model.safetensors.part"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, part)
        os.replace(part, self.path / "model.safetensors")


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fills `model` from a safetensors file.

    Raises:
        ArtifactError: the file is missing or damaged, or its tensors are not those of the model.
    """
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ArtifactError(f"weights {path} are missing: train again or restore the file") from None
    except Exception as error:  # safetensors and torch raise several kinds for damage and for misfit
        raise ArtifactError(
            f"weights {path} do not fit this model ({error}); they are damaged or of another application"
        ) from error


def revision() -> dict[str, Any]:
    """Version of the package, and the commit where the code runs from a checkout (`dirty` with uncommitted changes)."""
    try:
        package = version("verticals")
    except PackageNotFoundError:
        package = "not installed"
    folder = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    commit = git("rev-parse", "HEAD") if (folder / ".git").exists() else None
    return {"version": package, "commit": commit, "dirty": bool(git("status", "--porcelain")) if commit else None}
