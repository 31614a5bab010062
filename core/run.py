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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.config import Config
from core.errors import ArtifactError

SHARED = "shared"
"""Key of a weight file's metadata: JSON of the names that use another name's tensor."""


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
        tensors, shared = weights_of(model)
        save_file(tensors, part, metadata=shared)
        os.replace(part, self.path / "model.safetensors")


def weights_of(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    """What goes into a model's file: each tensor once, and metadata that names what else uses it (None where none does)."""
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            shared[name] = first[place]
        else:
            whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
            tensors[name] = (tensor.detach() if whole else tensor.detach().clone()).cpu().contiguous()
    return tensors, {SHARED: json.dumps(shared)} if shared else None


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor of a safetensors file by name, and which names share another's tensor.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            shared: dict[str, str] = json.loads((file.metadata() or {}).get(SHARED, "{}"))
        return {**tensors, **{name: tensors[first] for name, first in shared.items()}}, shared
    except FileNotFoundError:
        raise ArtifactError(f"weights {path} are missing: train again or restore the file") from None
    except Exception as error:  # safetensors raises several kinds
        raise ArtifactError(f"weights {path} are damaged ({error}); train again or restore the file") from error


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fills `model` from a safetensors file; what shares one tensor in the file shares it in the model.

    Raises:
        ArtifactError: the file is missing or damaged, or its tensors are not those of the model.
    """
    tensors, shared = read_weights(path)
    try:
        model.load_state_dict(tensors)
    except Exception as error:  # torch raises several kinds for misfit
        raise ArtifactError(
            f"weights {path} do not fit this model ({error}); they are damaged or of another application"
        ) from error
    for name, first in shared.items():
        (owner, _, last), (source, _, origin) = name.rpartition("."), first.rpartition(".")
        setattr(model.get_submodule(owner), last, getattr(model.get_submodule(source), origin))


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
