"""The other ways to see a board: in colour, without its golden one, through a backbone of timm; trained, exported, inspected."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.inference.model import build
from pipelines.export import export
from pipelines.train import train
from verticals.manufacturing.pcb import APPLICATION
from verticals.manufacturing.pcb.predictor import Request
from verticals.manufacturing.pcb.synthetic import SyntheticConfig, make_board

FEW = [
    "fit.epochs=1",
    "predict.least_score=0.003",
    "data.synthetic.num_boards=12",
    "sampler.num_batches=40",
]


@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        (["data.num_channels=3", "model.backbone=mobilenetv3_small_050"], 6),
        (["data.num_channels=3", "data.template=false"], 3),
        (["data.template=false"], 1),
    ],
)
def test_a_way_to_see_goes_from_training_to_an_answer(
    settings: list[str], channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    said = train(
        "manufacturing.pcb", recipe="debug", settings=[*FEW, *settings], runs=str(tmp_path / "runs"), alias="none"
    )
    export(said["run"], format="openvino", output=str(tmp_path / "artifact"))
    _, predictor = build(APPLICATION, tmp_path / "artifact", "v1")
    assert predictor.inputs[0].shape[1] == channels
    colours = 3 if "data.num_channels=3" in settings else 1
    made = make_board(SyntheticConfig(shape=(300, 260)), 3)
    picture, golden = (one.repeat(colours, axis=2) for one in (made.picture, made.golden))
    (answer,) = predictor([Request(picture, golden if predictor.sees_golden else None)])
    assert answer.num_tiles == 4
    assert answer.verdict in ("pass", "fail")
    assert (answer.findings.corners >= 0).all()
    assert (answer.findings.corners[:, 2:] <= [260, 300]).all()
