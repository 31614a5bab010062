"""TensorRT answers as torch does. Only an NVIDIA GPU with TensorRT can say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip(
    "tensorrt", reason="TensorRT is not installed: it needs an NVIDIA GPU, and this runs on such a machine only"
)
if not torch.cuda.is_available():
    pytest.skip(
        "no CUDA device is visible: TensorRT engines are built for the GPU they run on", allow_module_level=True
    )

from core.errors import ArtifactError
from core.inference import artifact as artifacts
from core.inference.export import write_network
from core.inference.session import TorchSession
from tests.core.inference.pictures import PictureNet, trained


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 2e-2)])
def test_an_engine_answers_as_torch(tmp_path: Path, precision: str, tolerance: float) -> None:
    network = trained()
    network.ranges = {"B": (1, 4, 8)}  # type: ignore[assignment]
    write_network(network, tmp_path, "tensorrt", precision=precision)  # type: ignore[arg-type]
    record = artifacts.Record(
        application="tests.pictures",
        source="trained",
        form="network",
        format="tensorrt",
        precision=precision,  # type: ignore[arg-type]
        runtime=artifacts.runtime_version("tensorrt"),
        inputs=PictureNet.inputs,
        outputs=PictureNet.outputs,
    )
    session = artifacts.open_network(tmp_path, record)
    for rows in (1, 3, 8):
        image = {"image": np.random.default_rng(rows).normal(size=(rows, 3, 32, 32)).astype(np.float32)}
        want = TorchSession(network)(image)["logits"]
        np.testing.assert_allclose(session(image)["logits"], want, atol=tolerance * np.abs(want).max())
    (tmp_path / "model.engine").write_bytes((tmp_path / "model.engine").read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="is not an engine of this GPU"):
        artifacts.open_network(tmp_path, record)
