"""The gate names what an artifact does otherwise: a wrong tokenizer, a wrong image normalisation, a part that is another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from core.inference import artifact as artifacts
from core.inference.departure import first_departure
from core.inference.export import graphs_of, write_network
from core.inference.model import config_of, network_of
from core.inference.parity import Report, Side, compare
from core.inference.parts import parts_of, torch_session
from core.run import Run
from pipelines.export import export
from verticals.multimodal.retrieval import APPLICATION
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.model import RetrievalNet, pair_form
from verticals.multimodal.retrieval.tokens import Tokenizer


@pytest.fixture(scope="module")
def run(trained: tuple[Path, dict[str, Any]]) -> Path:
    return Path(trained[1]["run"])


@pytest.fixture(scope="module")
def data(run: Path) -> RetrievalData:
    return RetrievalData(config_of(APPLICATION, run))


def compared(
    run: Path,
    data: RetrievalData,
    folder: Path,
    *,
    change: Callable[[RetrievalNet], None] = lambda network: None,
    constants: Mapping[str, Any] | None = None,
) -> Report:
    """The gate's report on ONNX files of the network, changed, with constants changed."""
    config, own = config_of(APPLICATION, run), Run(run).read_json("constants.json")
    true, changed = (network_of(APPLICATION, run) for _ in range(2))
    change(changed)
    forms = pair_form(true), pair_form(changed)
    write_network(forms[1], folder, "onnx")
    record = artifacts.Record(
        application=APPLICATION.name,
        source=run.name,
        form="pair",
        format="onnx",
        precision="float32",
        runtime=artifacts.runtime_version("onnx"),
        inputs=forms[0].inputs,
        outputs=forms[0].outputs,
        parts=artifacts.parts(parts_of(forms[0])),
    )
    graphs = graphs_of(forms[0], "onnx")
    limit = APPLICATION.limits["float32"].tensor
    return compare(
        APPLICATION,
        Side("original", config, own, torch_session(forms[0])),
        Side("artifact", config, {**own, **(constants or {})}, artifacts.open_network(folder, record)),
        data,
        "test",
        precision="float32",
        locate=lambda arrays: first_departure(graphs, folder, record, arrays, limit=limit),
    ).report


def said(report: Report, stage: str) -> list[str]:
    assert not report.passed
    return [line.partition(": ")[2] for line in report.findings if line.startswith(f"{stage}: ")]


def test_what_agrees_passes(run: Path, data: RetrievalData, tmp_path: Path) -> None:
    report = compared(run, data, tmp_path)
    assert report.findings == []
    assert report.score["original"] > 0.5  # the network has learned something: agreement means something
    assert set(report.tensors) == {
        *("picture_embedding", "picture_level", "places", "text_embedding", "text_level", "words", "match")
    }


def test_a_wrong_tokenizer(run: Path, data: RetrievalData, tmp_path: Path) -> None:
    """Of the same size, made of the same captions backwards: nothing fails, every token is another word."""
    captions = [caption[::-1] for pair in data.samples("train") for caption in pair.captions]
    own = Run(run).read_json("constants.json")
    wrong = Tokenizer.train(captions, size=data.config.model.text.vocabulary, most=int(own["most_tokens"]))
    report = compared(run, data, tmp_path, constants={"tokenizer": wrong.json})
    (line,) = said(report, "constants")
    assert line.startswith("tokenizer ")
    assert len(line) < 500
    assert any(line.startswith("tokens ") for line in said(report, "prepare"))
    assert not said(report, "network")
    assert "mean recall falls" in said(report, "score")[0]


def without_deviation(network: RetrievalNet) -> None:
    """Pixels less the mean, not divided: every weight is right."""
    network.vision.deviation.fill_(1.0)


def blue_first(network: RetrievalNet) -> None:
    network.vision._is_bgr = True


@pytest.mark.parametrize("change", [without_deviation, blue_first])
def test_a_wrong_image_normalisation(
    run: Path, data: RetrievalData, tmp_path: Path, change: Callable[[RetrievalNet], None]
) -> None:
    report = compared(run, data, tmp_path, change=change)
    assert not said(report, "constants")
    assert not said(report, "prepare")
    line, *others = said(report, "network")
    assert line.startswith("output picture_embedding")
    assert all(other.startswith(("output picture_level", "output places")) for other in others)
    assert "first departs at" in line
    assert " in part.vision" in line or " in vision" in line
    assert "mean recall falls" in said(report, "score")[0]


def test_a_preprocessing_that_crops(run: Path, data: RetrievalData, tmp_path: Path) -> None:
    own = Run(run).read_json("constants.json")
    cropped = {**own["preprocessing"], "fit": "crop", "share": 0.8}
    report = compared(run, data, tmp_path, constants={"preprocessing": cropped})
    assert len(said(report, "constants")) == 2
    assert any(line.startswith("picture ") for line in said(report, "prepare"))


@pytest.mark.parametrize(("format", "precision"), [("torch", "float32"), ("onnx", "float32"), ("openvino", "float32")])
def test_an_artifact_answers_as_its_run(run: Path, tmp_path: Path, format: str, precision: str) -> None:
    said = export(str(run), format=format, precision=precision, output=str(tmp_path / "artifact"))
    assert said["parity"]["passed"]
    names = {path.name for path in (tmp_path / "artifact").iterdir()}
    assert {name for part in ("picture", "text") for name in artifacts.network_files(format, part)} <= names  # type: ignore[arg-type]
    again = export(str(run), check=str(tmp_path / "artifact"))
    assert again["parity"]["passed"]
