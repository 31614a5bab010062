"""Checkpoints of a training: written whole or not at all, loaded without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from core.errors import ArtifactError


class Checkpointer:
    """Keeps the newest state of a training in `folder/last.pt`; a crash while writing leaves the one before."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "last.pt"

    def save(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)

    def load(self) -> dict[str, Any] | None:
        """The newest state, None where there is none.

        Raises:
            ArtifactError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            return dict(torch.load(self.path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ArtifactError(
                f"checkpoint {self.path} cannot be read ({error}); delete it to train from the start"
            ) from error
