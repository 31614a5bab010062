"""The gate names planted faults of a picture model: channels, scale, resize mode, overflow of a narrow number type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import ArtifactError
from core.inference import artifact as artifacts
from core.inference.departure import first_departure
from core.inference.export import write_network
from core.inference.parity import Report, Side, compare
from core.inference.session import Precision, TorchSession
from tests.core.inference.pictures import APPLICATION, CONSTANTS, PictureConfig, PictureData, PictureNet, trained


def compared(
    folder: Path,
    network: nn.Module | None = None,
    *,
    format: artifacts.Format = "onnx",
    precision: Precision = "float32",
    **constants: Any,
) -> Report:
    """The gate's report on an artifact of the trained network, or of another in its place, with constants changed."""
    folder.mkdir(exist_ok=True)
    original, given = trained(), network or trained()
    write_network(given, folder, format)
    record = artifacts.Record(
        application=APPLICATION.name,
        source="trained",
        form="network",
        format=format,
        precision=precision,
        runtime=artifacts.runtime_version(format),
        inputs=PictureNet.inputs,
        outputs=PictureNet.outputs,
    )
    from core.inference.export import graphs_of

    program = graphs_of(original, format)
    return compare(
        APPLICATION,
        Side("original", PictureConfig(), CONSTANTS, TorchSession(original)),
        Side("artifact", PictureConfig(), {**CONSTANTS, **constants}, artifacts.open_network(folder, record)),
        PictureData(),
        "test",
        precision=precision,
        locate=lambda arrays: first_departure(
            program, folder, record, arrays, limit=APPLICATION.limits[precision].tensor
        ),
    ).report


def findings(report: Report, stage: str) -> list[str]:
    assert not report.passed
    return [line.partition(": ")[2] for line in report.findings if line.startswith(stage)]


@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
def test_what_agrees_passes(tmp_path: Path, format: artifacts.Format) -> None:
    report = compared(tmp_path, format=format)
    assert report.findings == []
    assert report.score["original"] > 0.9  # the network has learned something: agreement means something
    assert len(report.answers["label"]["labels"]) == 4


def test_bgr_for_rgb(tmp_path: Path) -> None:
    report = compared(tmp_path, channels="BGR")
    assert findings(report, "constants") == ["channels is 'BGR', the original has 'RGB'"]
    (line,) = findings(report, "prepare")
    assert line.startswith("image has its channels exchanged: channel 0 holds channel 2")
    assert "BGR for RGB" in line
    assert not findings(report, "network")
    assert "accuracy falls" in findings(report, "score")[0]


class Reversed(nn.Module):
    """Reads BGR."""

    inputs, outputs = PictureNet.inputs, PictureNet.outputs

    def __init__(self) -> None:
        super().__init__()
        self.network = trained()

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image.flip(1))
        return logits


def test_bgr_inside_the_network(tmp_path: Path) -> None:
    (line,) = findings(compared(tmp_path, Reversed()), "network")
    assert "reads its inputs in another order: channel 0 as channel 2, channel 2 as channel 0" in line


def test_the_scale_by_255_is_missing(tmp_path: Path) -> None:
    report = compared(tmp_path, scale=1.0, mean=[0.0] * 3, deviation=[1.0] * 3)
    assert "image is 63.75 times the original plus 102: it is scaled otherwise" in findings(report, "prepare")
    plain = {"mean": [0.0] * 3, "deviation": [1.0] * 3}
    report = compare_with(tmp_path, {**CONSTANTS, **plain}, {**CONSTANTS, **plain, "scale": 1.0})
    assert "image is 255 times the original: it is scaled otherwise" in findings(report, "prepare")


def compare_with(folder: Path, true: Mapping[str, Any], given: Mapping[str, Any]) -> Report:
    session = TorchSession(trained())
    sides = (Side(name, PictureConfig(), made, session) for name, made in (("a", true), ("b", given)))
    return compare(APPLICATION, *sides, PictureData(), "test", precision="float32").report


def test_another_resize_mode(tmp_path: Path) -> None:
    report = compared(tmp_path, resize="nearest")
    (line,) = findings(report, "prepare")
    assert line.startswith("image differs in every channel")
    assert "the picture is resized, cropped or normalised otherwise" in line
    assert not findings(report, "network")


class Narrow(nn.Module):
    """The network in float16, where a hidden value exceeds its range (weights are large here and small there)."""

    inputs, outputs = PictureNet.inputs, PictureNet.outputs

    def __init__(self, *, factor: float) -> None:
        super().__init__()
        self.network = PictureNet()
        self.network.load_state_dict(trained().state_dict())
        self.factor = factor
        with torch.no_grad():
            for tensor in (self.network.first.weight, self.network.first.bias):
                tensor.mul_(factor)
            self.network.second.weight.div_(factor)

    def forward(self, image: Tensor) -> Tensor:
        net = self.network
        hidden = torch.relu(net.first(image)).half().float()  # what float16 keeps of it
        hidden = torch.relu(net.second(hidden))
        logits: Tensor = net.head(torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1))
        return logits


def test_float16_overflow(tmp_path: Path) -> None:
    assert compared(tmp_path / "small", Narrow(factor=1.0), precision="float16").passed
    lines = findings(compared(tmp_path / "large", Narrow(factor=1e6), precision="float16"), "network")
    assert "values are not finite: the range of its number type is exceeded" in lines[0]
    assert "first departs at" in lines[0]


def test_another_class_everywhere(tmp_path: Path) -> None:
    blind = PictureNet()
    blind.load_state_dict(trained().state_dict())
    with torch.no_grad():
        blind.head.weight.zero_()
    session = TorchSession(blind)
    sides = (Side(name, PictureConfig(), CONSTANTS, session) for name in ("a", "b"))
    report = compare(APPLICATION, *sides, PictureData(), "test", precision="float32").report
    assert [line.partition(":")[0] for line in report.findings] == ["samples", "samples"]  # label and chance


def test_no_limits_no_parity(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no parity limits for bfloat16; there are limits for float32, float16"):
        compared(tmp_path, precision="bfloat16", format="openvino")
