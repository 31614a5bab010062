"""The gate: an artifact that answers otherwise than its run is refused, and the fault is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core import registry
from core.errors import ArtifactError, ParityError
from core.inference import artifact as artifacts
from core.inference.export import write_network
from core.inference.model import network_of
from pipelines import cli
from pipelines.export import export
from pipelines.model import find
from pipelines.train import train
from verticals.finance.fraud import APPLICATION
from verticals.finance.fraud.model import FraudNet
from verticals.finance.fraud.step import ScoreStep


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the debug recipe."""
    made = train("finance.fraud", recipe="debug", runs=str(tmp_path_factory.mktemp("runs")), alias="none")
    return Path(made["run"])


@pytest.fixture(scope="module")
def net(run: Path) -> FraudNet:
    network = network_of(APPLICATION, run)
    assert isinstance(network, FraudNet)
    return network


@pytest.fixture(scope="module")
def good(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that passed."""
    path = tmp_path_factory.mktemp("good") / "artifact"
    assert export(str(run), format="onnx", output=str(path))["parity"]["passed"]
    return path


class Turned(nn.Module):
    """A step whose features or outputs were put in another order."""

    def __init__(
        self, step: ScoreStep, *, features: tuple[int, int] | None = None, outputs: tuple[str, str] | None = None
    ):
        super().__init__()
        self.step, self.inputs, self.outputs = step, step.inputs, step.outputs
        names, places = [spec.name for spec in step.outputs], list(range(step.net.num_features))
        self.order = list(range(len(names)))
        if outputs:
            a, b = (names.index(name) for name in outputs)
            self.order[a], self.order[b] = b, a
        if features:
            places[features[0]], places[features[1]] = features[1], features[0]
        self.register_buffer("places", torch.tensor(places))

    def forward(self, features: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given = self.step(features.index_select(1, self.get_buffer("places")), *rest)
        return tuple(given[k] for k in self.order)


def forged(
    path: Path,
    run: Path,
    network: nn.Module,
    *,
    constants: Callable[[dict[str, Any]], object] = lambda made: None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """An artifact that nobody compared, its hashes as they should be."""
    with artifacts.staged(path) as folder:
        place = find(str(run))
        artifacts.copy_run(place.path, folder, code=place.code)
        made = json.loads((folder / "constants.json").read_text())
        constants(made)
        (folder / "constants.json").write_text(json.dumps(made))
        write_network(network, folder, "torch")
        artifacts.seal(
            folder,
            artifacts.Record(
                application="finance.fraud",
                source=place.name,
                form="step",
                format="torch",
                precision="float32",
                runtime=artifacts.runtime_version("torch"),
                inputs=network.inputs,  # type: ignore[arg-type]
                outputs=network.outputs,  # type: ignore[arg-type]
                notes=dict(notes or {}),
            ),
        )
    return path


def test_what_agrees_passes_and_says_how_well(run: Path, good: Path, net: FraudNet, tmp_path: Path) -> None:
    report = export(str(run), check=str(good))["parity"]
    assert report["passed"]
    assert report["findings"] == []
    assert set(report["tensors"]) == {spec.name for spec in ScoreStep(net).outputs}
    assert report["answers"]["alert"]["labels"].keys() == {"False", "True"}
    assert report["score"]["original"] == pytest.approx(report["score"]["artifact"], abs=1e-4)
    same = forged(tmp_path / "same", run, ScoreStep(net), notes={"calibration": {"genuine": 90, "fraud": 10}})
    assert export(str(run), check=str(same))["parity"]["passed"]  # the forger alone plants no fault


def refusal(run: Path, path: Path) -> str:
    """The words of the gate."""
    with pytest.raises(ParityError) as caught:
        export(str(run), check=str(path))
    return str(caught.value)


def test_wrong_scaler_constants(run: Path, net: FraudNet, tmp_path: Path) -> None:
    def change(made: dict[str, Any]) -> None:
        scaler = made["pipeline"]["transforms"][0]
        scaler["center"][scaler["names"].index("log_amount")] += 0.5

    words = refusal(run, forged(tmp_path / "a", run, ScoreStep(net), constants=change))
    assert "constants: pipeline.transforms.0.center.1 is " in words
    assert "prepare: features differs: log_amount is the original plus -" in words
    assert "network" not in words  # which agrees on the same inputs


def test_input_columns_that_are_swapped(run: Path, net: FraudNet, tmp_path: Path) -> None:
    names = [name for name in json.loads((run / "constants.json").read_text())["features"]]
    places = names.index("amount"), names.index("night")
    words = refusal(run, forged(tmp_path / "a", run, Turned(ScoreStep(net), features=places)))
    assert "network: it reads its inputs in another order: amount as night, night as amount" in words


def test_times_that_a_runtime_rounds(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--format", "openvino", "-o", str(tmp_path / "a")]) == 1
    words = capsys.readouterr().err
    assert "output new_times: relative error" in words
    assert "(float64: a runtime that computes in 32 bits cannot hold it)" in words
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_threshold(run: Path, net: FraudNet, tmp_path: Path) -> None:
    words = refusal(
        run, forged(tmp_path / "a", run, ScoreStep(net), constants=lambda made: made.update(threshold=0.01))
    )
    assert "constants: threshold is 0.01, the original has 0." in words
    assert "finish: alert share unlike" in words
    assert re.search(r"answer score +differs by (0|\d(\.\d+)?e-(0[6-9]|1\d)) ", words)


def test_a_stale_state_layout(run: Path, net: FraudNet, tmp_path: Path) -> None:
    columns = json.loads((run / "constants.json").read_text())["features"]
    other = FraudNet(net.config.model_copy(update={"num_states": 4}), columns)
    words = refusal(run, forged(tmp_path / "a", run, ScoreStep(other)))
    assert "state layout: memory is float32[B, 4, 16], the original has float32[B, 8, 16]" in words
    turned = ScoreStep(net)
    turned.inputs = (*turned.inputs[:2], turned.inputs[3], turned.inputs[2], *turned.inputs[4:])
    words = refusal(run, forged(tmp_path / "b", run, turned))
    assert "state layout: the inputs come in the order features, time, cell, hidden" in words


def test_calibration_on_one_class(run: Path, net: FraudNet, tmp_path: Path) -> None:
    notes = {"calibration": {"genuine": 300, "fraud": 0}}
    words = refusal(run, forged(tmp_path / "a", run, ScoreStep(net), notes=notes))
    assert "calibration: all 300 samples are of class genuine" in words


def test_a_weight_file_that_is_cut_off(run: Path, good: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(good, tmp_path / "cut"))
    whole = (path / "model.onnx").read_bytes()
    (path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"model\.onnx has \d+ bytes, \d+ were written: it was cut off"):
        export(str(run), check=str(path))
    with pytest.raises(ArtifactError, match=r"model\.onnx has \d+ bytes"):
        find_and_answer(path)


def find_and_answer(path: Path) -> None:
    from pipelines.model import open_model

    open_model("finance.fraud", run=str(path))


def test_outputs_that_are_swapped(run: Path, net: FraudNet, tmp_path: Path) -> None:
    words = refusal(run, forged(tmp_path / "a", run, Turned(ScoreStep(net), outputs=("new_hidden", "new_cell"))))
    assert "network: outputs new_hidden and new_cell are exchanged" in words


def test_a_weight_that_changed_is_found_in_its_layer(run: Path, net: FraudNet, tmp_path: Path) -> None:
    other = network_of(APPLICATION, run)
    with torch.no_grad():
        other.get_parameter("embed.0.weight")[3] *= 1.5
    words = refusal(run, forged(tmp_path / "a", run, ScoreStep(other)))  # type: ignore[arg-type]
    assert "network: output new_hidden: relative error" in words
    assert "first departs at" in words
    assert "step.py:" in words
    assert "32 bits" not in words


def test_agreement_that_says_nothing(run: Path, net: FraudNet, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(run, tmp_path / "silent"))
    made = json.loads((silent / "constants.json").read_text())
    (silent / "constants.json").write_text(json.dumps({**made, "threshold": 1.0}))
    with pytest.raises(ParityError, match="every alert is False: agreement says nothing"):
        export(str(silent), format="torch", output=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["silent"]


def test_the_registry_wants_the_report_and_the_service_the_hashes(
    run: Path, good: Path, net: FraudNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    with pytest.raises(ArtifactError, match="no parity report"):
        registry.register(forged(tmp_path / "a", run, ScoreStep(net)), "finance.fraud")
    version = registry.register(good, "finance.fraud")
    registry.set_alias("finance.fraud", "production", version)
    from pipelines.model import open_model

    assert type(open_model("finance.fraud").predictor.session).__name__ == "OnnxSession"  # type: ignore[attr-defined]
    path = registry.resolve("finance.fraud").path / "model.onnx"
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(changed))
    with pytest.raises(ArtifactError, match="model.onnx is not what was registered"):
        open_model("finance.fraud")
