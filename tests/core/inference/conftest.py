from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.contract import Session
from core.inference import artifact
from core.inference.export import write_network
from core.inference.session import SessionConfig, TorchSession

Opened = Callable[..., tuple[Session, Session]]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[nn.Module], artifact.Format], Path]:
    """(network's class, format) -> a folder with its files, made once."""
    folders: dict[tuple[type[nn.Module], str], Path] = {}

    def make(kind: type[nn.Module], format: artifact.Format) -> Path:
        if (kind, format) not in folders:
            folders[kind, format] = tmp_path_factory.mktemp(f"{kind.__name__}-{format}")
            write_network(network_of(kind), folders[kind, format], format)
        return folders[kind, format]

    return make


@pytest.fixture(scope="session")
def opened(folder_of: Callable[[type[nn.Module], artifact.Format], Path]) -> Opened:
    """(network's class, format, precision, settings) -> the network in torch itself, and in the runtime."""

    def open_both(
        kind: type[nn.Module], format: artifact.Format, precision: str = "float32", **config: Any
    ) -> tuple[Session, Session]:
        record = record_of(kind, format, precision=precision)
        session = artifact.open_network(folder_of(kind, format), record, SessionConfig(**config))
        return TorchSession(network_of(kind)), session

    return open_both


def network_of(kind: type[nn.Module]) -> nn.Module:
    """One network of the class, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind().eval()


def record_of(kind: type[Any], format: artifact.Format, **more: Any) -> artifact.Record:
    fields = {"application": "test.network", "source": "run", "form": "network", "runtime": "", "precision": "float32"}
    return artifact.Record(**{**fields, **more}, format=format, inputs=kind.inputs, outputs=kind.outputs)
