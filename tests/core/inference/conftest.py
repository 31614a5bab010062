from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.contract import Arrays, Session
from core.inference import artifact
from core.inference.export import write_network
from core.inference.session import SessionConfig, TorchSession

Opened = Callable[..., tuple[Session, Session]]
FORMATS: tuple[artifact.Format, ...] = ("torch", "onnx", "openvino")


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


def drawn(session: Session, seed: int = 0, **sizes: int) -> Arrays:
    """Random arrays that fit a session."""
    random = np.random.default_rng(seed)
    arrays = {}
    for spec in session.inputs:
        values = random.normal(size=[axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape])
        arrays[spec.name] = np.asarray(values > 0 if spec.dtype == "bool" else values * 3).astype(spec.dtype)
    return arrays


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float = 2e-6) -> None:
    """Relative to the largest value of each tensor."""
    assert list(found) == list(wanted)
    for name, true in wanted.items():
        assert (found[name].dtype, found[name].shape) == (true.dtype, true.shape)
        scale = float(np.abs(true.astype(np.float64)).max(initial=1e-3))
        np.testing.assert_allclose(found[name] / scale, true / scale, rtol=0, atol=tolerance, err_msg=name)
