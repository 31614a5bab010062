"""The gate names what an artifact does otherwise to a board: doubles that stay, heads that are exchanged, a template that is shifted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.contract import Application
from core.inference.artifact import Record, runtime_version
from core.inference.departure import first_departure
from core.inference.export import graphs_of, write_network
from core.inference.model import config_of, network_of
from core.inference.parity import Report, Side, compare
from core.inference.session import TorchSession
from core.run import Run
from pipelines.export import export
from verticals.manufacturing.pcb import APPLICATION
from verticals.manufacturing.pcb.config import PcbConfig
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.model import PcbDetector, TileForm
from verticals.manufacturing.pcb.predictor import Inspection, PcbPredictor, Request

ARTIFACT = "artifact"


@pytest.fixture(scope="module")
def run(trained: tuple[Path, dict[str, Any]]) -> Path:
    return Path(trained[1]["run"])


@pytest.fixture(scope="module")
def data(run: Path) -> PcbData:
    return PcbData(config_of(APPLICATION, run))


def compared(
    run: Path,
    data: PcbData,
    folder: Path,
    *,
    predictor: type[PcbPredictor] = PcbPredictor,
    change: Callable[[PcbDetector], None] = lambda network: None,
) -> Report:
    """The gate's report on an ONNX file of the network, changed, behind another predictor."""

    def made(config: PcbConfig, record: Mapping[str, Any], session: Any, *, version: str) -> PcbPredictor:
        return (predictor if version == ARTIFACT else PcbPredictor)(config, record, session, version=version)

    app: Application = dataclasses.replace(APPLICATION, predictor=made)
    config, constants = config_of(app, run), Run(run).read_json("constants.json")
    true, given = (TileForm(network_of(app, run)) for _ in range(2))
    change(given.network)
    write_network(given, folder, "onnx")
    record = Record(
        application=app.name,
        source=run.name,
        form="tile",
        format="onnx",
        precision="float32",
        runtime=runtime_version("onnx"),
        inputs=true.inputs,
        outputs=true.outputs,
    )
    from core.inference.artifact import open_network

    sides = (
        Side("original", config, constants, TorchSession(true)),
        Side(ARTIFACT, config, constants, open_network(folder, record)),
    )
    program, limit = graphs_of(true, "onnx"), app.limits["float32"].tensor

    def locate(arrays: Any) -> str:
        return first_departure(program, folder, record, arrays, limit=limit)

    return compare(app, *sides, data, "test", precision="float32", locate=locate).report


def said(report: Report, stage: str) -> list[str]:
    assert not report.passed
    return [line.partition(": ")[2] for line in report.findings if line.startswith(f"{stage}: ")]


def test_what_agrees_passes(run: Path, data: PcbData, tmp_path: Path) -> None:
    report = compared(run, data, tmp_path)
    assert report.findings == []
    assert len(report.answers["findings"]["labels"]) > 2  # some boards have several findings of a class, some none
    assert report.answers["score"]["spread"] > 0.2


class WithDoubles(PcbPredictor):
    """Leaves the suppression of doubles out."""

    def __init__(self, config: PcbConfig, *given: Any, **named: Any) -> None:
        predict = config.predict.model_copy(update={"most_overlap": 1.0})
        super().__init__(config.model_copy(update={"predict": predict}), *given, **named)


def test_doubles_that_are_not_suppressed(run: Path, data: PcbData, tmp_path: Path) -> None:
    report = compared(run, data, tmp_path, predictor=WithDoubles)
    lines = said(report, "finish")
    assert lines[0].startswith("findings share unlike")
    assert lines[0].endswith("the numbers agree, so the threshold or the rule that makes labels of them differs")
    assert not said(report, "network")
    assert not said(report, "prepare")
    assert report.score["artifact"] < report.score["original"]


def exchanged_branches(network: PcbDetector) -> None:
    """What classes are told by, and what boxes are told by, of the finest level."""
    head: Any = network.heads[0]
    head.classes, head.box = head.box, head.classes


def exchanged_classes(network: PcbDetector) -> None:
    """The last layers tell the classes in another order."""
    for head in network.heads:
        layer: Any = head.logits
        layer.weight.data, layer.bias.data = layer.weight.data.flip(0), layer.bias.data.flip(0)


@pytest.mark.parametrize(
    ("change", "layer"),
    [(exchanged_branches, "network.heads.0.classes.0"), (exchanged_classes, "network.heads.0.logits")],
)
def test_exchanged_heads(
    run: Path, data: PcbData, tmp_path: Path, change: Callable[[PcbDetector], None], layer: str
) -> None:
    report = compared(run, data, tmp_path, change=change)
    line = said(report, "network")[0]
    assert layer in line
    assert "map50 falls from" in said(report, "score")[0]


class Unaligned(PcbPredictor):
    """Takes the golden board as it was taught, a pixel off."""

    def _inspect(self, request: Request) -> Inspection:
        assert request.golden is not None
        return super()._inspect(request._replace(golden=None))

    def _registered(self, request: Request) -> Any:
        return request.picture, np.roll(request.picture, 3, axis=1), (0, 0)


def test_another_golden_board(run: Path, data: PcbData, tmp_path: Path) -> None:
    report = compared(run, data, tmp_path, predictor=Unaligned)
    assert said(report, "prepare")[0].startswith("picture differs: channel 1 differs")
    assert not said(report, "network")


@pytest.mark.parametrize(
    ("format", "precision"), [("openvino", "float32"), ("openvino", "bfloat16"), ("onnx", "float32")]
)
def test_a_sound_export_passes(run: Path, tmp_path: Path, format: str, precision: str) -> None:
    report = export(str(run), format=format, precision=precision, output=str(tmp_path / "artifact"))["parity"]
    assert report["passed"]
    assert set(report["tensors"]) == {"logits", "boxes"}
    assert set(report["answers"]) == {"findings", "counting", "score"}
    one = 1 / report["figures"]["map50"]["positives"]  # a rounded score may put one finding behind another
    assert report["score"]["limit"] == pytest.approx(0.001 if precision == "float32" else 0.005 + one)
