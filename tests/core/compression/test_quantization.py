"""Int8 files: calibrated on every class, close to float, smaller, whole or not there; float where the score asks for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino as ov
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.compression.aware import aware, stripped
from core.compression.calibration import calibration_rows
from core.compression.graphs import layers, of_kinds
from core.compression.quantization import dynamic, quantize_file, static, weights
from core.compression.sensitivity import hold, sensitivity
from core.errors import ArtifactError, ConfigError, DataError, ScoreError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.second(self.norm(self.first(images)).relu()).relu()
        answer: Tensor = self.head(inner.mean((2, 3)))
        return answer


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 2)

    def forward(self, events: Tensor) -> Tensor:
        answer: Tensor = self.head(self.cell(events)[0][:, -1])
        return answer


SHAPE = {"images": (1, 3, 12, 12), "events": (1, 7, 16)}


def arrays(name: str, count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{name: generator.normal(size=SHAPE[name]).astype(np.float32)} for _ in range(count)]


def export(model: nn.Module, path: Path, name: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.zeros(SHAPE[name])
        torch.onnx.export(
            model.eval(), (example,), path, dynamo=True, external_data=False, verbose=False, input_names=[name]
        )
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("float")
    made = {
        "onnx": export(Small(), folder / "small.onnx", "images"),
        "lstm": export(Recurrent(), folder / "recurrent.onnx", "events"),
        "xml": folder / "small.xml",
    }
    ov.save_model(ov.Core().read_model(made["onnx"]), made["xml"], compress_to_fp16=False)
    return made


def answers(path: Path, samples: list[dict[str, Any]]) -> np.ndarray:
    if path.suffix == ".xml":
        model = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.concatenate([model(sample)[0] for sample in samples])
    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run(None, sample)[0] for sample in samples])


def departure(have: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(((have - want) ** 2).mean() / (want**2).mean()))


def test_calibration_draws_every_class_and_the_same_rows_again() -> None:
    labels = np.zeros(10_000, np.int64)
    labels[[5, 700, 9000]] = 1
    rows = calibration_rows(labels, 100, seed=3)
    assert len(rows) == len(set(rows)) == 100
    assert {5, 700, 9000} <= set(rows.tolist())
    assert np.array_equal(rows, calibration_rows(labels, 100, seed=3))
    assert not np.array_equal(rows, calibration_rows(labels, 100, seed=4))
    assert np.bincount(labels[calibration_rows(labels % 2 + (np.arange(10_000) % 3), 90)]).sum() == 90


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.sampled_from("aabbc"), min_size=2, max_size=60), count=st.integers(3, 40))
def test_no_class_has_more_rows_than_one_that_could_give_more(labels: list[str], count: int) -> None:
    if len(set(labels)) == 1:
        with pytest.raises(DataError, match="of class"):
            calibration_rows(labels, count)
        return
    rows = calibration_rows(labels, count)
    assert len(rows) == min(count, len(labels))
    drawn = {name: sum(labels[row] == name for row in rows) for name in set(labels)}
    for name, number in drawn.items():
        assert number == labels.count(name) or number >= max(drawn.values()) - 1


def test_calibration_without_samples_or_with_too_few_is_refused() -> None:
    with pytest.raises(DataError, match="no samples to calibrate on"):
        calibration_rows([], 10)
    with pytest.raises(DataError, match="all 4 samples are of class 1"):
        calibration_rows([1, 1, 1, 1], 2)
    with pytest.raises(ConfigError, match="2 calibration samples of 3 classes"):
        calibration_rows([0, 1, 2], 2)


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_static_is_close_to_float_and_a_quarter_of_its_weights(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    source, samples = files[kind], arrays("images")
    target = static(source, tmp_path / f"int8{source.suffix}", samples)
    fresh = arrays("images", seed=1)
    far = departure(answers(target, fresh), answers(source, fresh))
    assert 0 < far < 0.05
    held = (".bin",) if kind == "xml" else (".onnx",)
    sizes = [sum(path.with_suffix(end).stat().st_size for end in held) for path in (target, source)]
    assert sizes[0] < (0.4 if kind == "xml" else 0.8) * sizes[1]
    narrow = [{"images": 0.01 * sample["images"]} for sample in samples]
    wrong = static(source, tmp_path / f"wrong{source.suffix}", narrow)
    assert departure(answers(wrong, fresh), answers(source, fresh)) > 5 * far
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted(
        [source.suffix, *held] * 2 if kind == "xml" else held * 2
    )


def test_what_is_kept_stays_in_float(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, samples = files["onnx"], arrays("images")
    names = layers(source)
    assert len(names) == 3
    target = static(source, tmp_path / "int8.onnx", samples, keep=names[:2], preset="performance")
    nodes = {node.name: node for node in onnx.load(target).graph.node}
    made = {output: node.op_type for node in nodes.values() for output in node.output}
    reads = {name: made.get(nodes[name].input[1]) == "DequantizeLinear" for name in names}
    assert reads == {names[0]: False, names[1]: False, names[2]: True}
    with pytest.raises(ConfigError, match="no layer is left"):
        static(source, tmp_path / "none.onnx", samples, keep=names)
    with pytest.raises(ConfigError, match="keep names 'nose', which is no layer of small.xml"):
        static(files["xml"], tmp_path / "none.xml", samples, keep=["nose"])
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    assert capsys.readouterr().out == ""


def test_what_is_no_layer_can_be_left_in_float_too(files: dict[str, Path], tmp_path: Path) -> None:
    samples, names = arrays("images"), layers(files["onnx"])
    counts = []
    for keep in ([], ["*"], ["*", *names[:2]]):
        graph = onnx.load(static(files["onnx"], tmp_path / f"{len(keep)}.onnx", samples, keep=keep)).graph
        made = {output: node.op_type for node in graph.node for output in node.output}
        readers = {node.op_type for node in graph.node for name in node.input if made.get(name) == "DequantizeLinear"}
        counts.append((sum(node.op_type == "DequantizeLinear" for node in graph.node), readers))
    assert "ReduceMean" in counts[0][1]
    assert "ReduceMean" not in counts[1][1]
    assert counts[0][0] > counts[1][0] > counts[2][0] == 2


def test_a_gemm_with_a_computed_addend_and_float64_at_the_end_run(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.third = nn.Linear(16, 8), nn.Linear(16, 8, bias=False), nn.Linear(8, 2)

        def forward(self, events: Tensor) -> Tensor:
            row = events[:, 0]
            both = torch.addmm(self.first(row), row, self.second.weight.t())
            return self.third(both.relu()).double().sigmoid().log().float()

    source = export(Odd(), tmp_path / "odd.onnx", "events")
    target = static(source, tmp_path / "int8.onnx", arrays("events", 48))
    fresh = arrays("events", seed=1)
    assert 0 < departure(answers(target, fresh), answers(source, fresh)) < 0.05


def test_dynamic_wants_no_samples_and_has_the_recurrent_layer_too(files: dict[str, Path], tmp_path: Path) -> None:
    source, samples = files["lstm"], arrays("events")
    target = dynamic(source, tmp_path / "int8.onnx")
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert "DynamicQuantizeLSTM" in kinds
    assert target.stat().st_size < 0.6 * source.stat().st_size
    assert 0 < departure(answers(target, samples), answers(source, samples)) < 0.05
    recurrent = next(node.name for node in onnx.load(source).graph.node if node.op_type == "LSTM")
    kept = dynamic(source, tmp_path / "kept.onnx", keep=[recurrent])
    assert "LSTM" in [node.op_type for node in onnx.load(kept).graph.node]


def test_weights_alone_keep_the_answers_nearer_than_static(files: dict[str, Path], tmp_path: Path) -> None:
    samples = arrays("images")
    want = answers(files["xml"], samples)
    light = weights(files["xml"], tmp_path / "light.xml")
    both = static(files["xml"], tmp_path / "static.xml", samples)
    assert 0 < departure(answers(light, samples), want) < departure(answers(both, samples), want)
    sizes = [path.with_suffix(".bin").stat().st_size for path in (files["xml"], light)]
    assert sizes[1] < 0.4 * sizes[0]
    kept = weights(files["xml"], tmp_path / "kept.xml", keep=layers(files["xml"]))
    np.testing.assert_array_equal(answers(kept, samples), want)
    with pytest.raises(ConfigError, match="no layer of"):
        weights(files["xml"], tmp_path / "none.xml", keep=["nothing"])
    with pytest.raises(ConfigError, match=r"allowed here are \.xml"):
        weights(files["onnx"], tmp_path / "none.onnx")


def test_layers_are_named_by_their_kind(files: dict[str, Path]) -> None:
    assert len(of_kinds(files["xml"], ["Convolution"])) == 2
    assert len(of_kinds(files["onnx"], ["Conv"])) == 2
    assert of_kinds(files["lstm"], ["LSTM", "Softmax"]) == [
        node.name for node in onnx.load(files["lstm"]).graph.node if node.op_type == "LSTM"
    ]


def test_samples_that_are_none_or_wrong_leave_nothing_behind(files: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("onnx", "xml"):
        source, target = files[kind], tmp_path / f"int8.{kind}"
        with pytest.raises(DataError, match="no calibration samples"):
            static(source, target, [])
        with pytest.raises(DataError, match=r"sample 1 has \['image'\]; small.* takes \['images'\]"):
            static(source, target, [*arrays("images", 1), {"image": np.zeros(1)}])
        with pytest.raises(ConfigError, match="preset is 'fast'"):
            static(source, target, arrays("images"), preset="fast")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_files_of_other_kinds_are_refused_by_name(files: dict[str, Path], tmp_path: Path) -> None:
    for suffix, why in (
        (".pt", "pickle"),
        (".pth", "pickle"),
        (".bin", "pickle"),
        (".pt2", "pickles"),
        (".safetensors", "no arch"),
    ):
        with pytest.raises(ConfigError, match=why):
            quantize_file(tmp_path / f"model{suffix}", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"ends in '\.tflite'; allowed here are \.onnx and \.xml"):
        quantize_file("model.tflite", tmp_path / "out")
    with pytest.raises(ConfigError, match="bitwidth is 4; allowed is 8"):
        quantize_file(files["onnx"], tmp_path / "out", bitwidth=4)
    with pytest.raises(ConfigError, match="method is 'both'"):
        quantize_file(files["onnx"], tmp_path / "out", method="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no dynamic int8"):
        quantize_file(files["xml"], tmp_path / "out")
    with pytest.raises(ArtifactError, match="is missing"):
        quantize_file(tmp_path / "none.onnx", tmp_path / "out")
    with pytest.raises(DataError, match="no calibration samples"):
        quantize_file(files["onnx"], tmp_path / "out", method="static")
    for name in ("broken.onnx", "broken.xml"):
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ArtifactError, match="is no (ONNX|OpenVINO) model"):
            quantize_file(tmp_path / name, tmp_path / "out", method="static", samples=arrays("images"))
    with pytest.raises(ConfigError, match="another file that ends in"):
        dynamic(files["onnx"], files["onnx"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.onnx", "broken.xml"]


def test_a_file_is_quantized_into_a_directory_that_is_new(files: dict[str, Path], tmp_path: Path) -> None:
    for method, kind in (("dynamic", "onnx"), ("static", "xml")):
        folder = tmp_path / method
        made = quantize_file(str(files[kind]), str(folder), method, samples=arrays("images"))  # type: ignore[arg-type]
        assert made == folder / files[kind].name
        far = departure(answers(made, arrays("images")), answers(files[kind], arrays("images")))
        assert 0 < far < 0.05
        with pytest.raises(ConfigError, match="is there already"):
            quantize_file(files[kind], folder, method, samples=arrays("images"))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dynamic", "static"]


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_the_layer_that_int8_hurts_is_found(kind: str, tmp_path: Path) -> None:
    """One channel of the second layer's input is a thousand times the others: per tensor, they vanish in its rounding."""
    model = Small()
    with torch.no_grad():
        model.norm.weight[0] = 2000.0
        model.second.weight[:, 0] /= 2000.0
    source = export(model, tmp_path / "model.onnx", "images")
    if kind == "xml":
        ov.save_model(ov.Core().read_model(source), tmp_path / "model.xml", compress_to_fp16=False)
        source = tmp_path / "model.xml"
    costs = sensitivity(source, arrays("images", 4))
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    worst, other, *_ = costs
    assert "conv2d_1" in worst
    assert costs[worst] > 5 * costs[other]
    samples = arrays("images", 4)
    held = hold(
        lambda keep: static(source, tmp_path / f"held{len(keep)}{source.suffix}", samples, keep=keep),
        lambda path: 1 - departure(answers(path, samples), answers(source, samples)),
        0.97,
        list(costs),
    )
    assert held.keep == (worst,)
    assert len(held.scores) == 2
    assert held.scores[0] < 0.97 <= held.score == held.scores[1]
    assert sensitivity(source, samples, only=[other]) == {other: pytest.approx(costs[other])}
    with pytest.raises(ConfigError, match="'nose' is no layer"):
        sensitivity(source, samples, only=["nose"])


def test_a_limit_that_cannot_be_held_is_an_error() -> None:
    with pytest.raises(
        ScoreError, match=r"limit of 0\.9: the best of 3 tries is 0\.5, with up to 2 of 3 layers in float"
    ):
        hold(lambda keep: len(keep), lambda kept: 0.3 + 0.1 * kept, 0.9, ["a", "b", "c"])
    with pytest.raises(ConfigError, match="no layers"):
        hold(lambda keep: 0, lambda _: 0.0, 0.5, [])


def training() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(64, 3, 12, 12, generator=generator), torch.arange(64) % 2
    images[:, 0] += target[:, None, None]
    return images, target


def descend(model: nn.Module, images: Tensor, target: Tensor, *, steps: int) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model.train()(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_an_aware_network_trains_and_exports_as_it_computed(tmp_path: Path) -> None:
    images, target = training()
    model = Small()
    first = descend(model, images, target, steps=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner = aware(model, [image[None] for image in images[:8]])
    assert learner.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    losses = descend(learner, images, target, steps=25)
    assert losses[0] < first[0]
    assert losses[-1] < 0.5 * losses[0]
    ready = stripped(learner, images[:1])
    with torch.no_grad():
        expected = learner.eval()(images[:1]).numpy()
        torch.testing.assert_close(ready(images[:1]).numpy(), expected, rtol=1e-4, atol=1e-4)
    path = export(ready, tmp_path / "aware.onnx", "images")
    sample = [{"images": images[:1].numpy()}]
    np.testing.assert_allclose(answers(path, sample), expected, rtol=1e-3, atol=1e-2)
    graph = onnx.load(path).graph
    int8 = [
        tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(int8) == 3
    ov.save_model(ov.Core().read_model(path), tmp_path / "aware.xml", compress_to_fp16=False)
    np.testing.assert_allclose(answers(tmp_path / "aware.xml", sample), expected, rtol=1e-3, atol=1e-2)


def test_a_sequential_is_wrapped_and_a_part_may_stay_in_float() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    inputs = torch.randn(16, 4)
    whole = aware(model, list(inputs.split(1)))
    part = aware(model, list(inputs.split(1)), keep=["0", "2"])
    assert not whole.training
    with torch.no_grad():
        far = [float((one(inputs) - model(inputs)).norm() / model(inputs).norm()) for one in (whole, part)]
    assert 0 < far[1] < far[0] < 0.1


def test_aware_refuses_what_it_cannot_do() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        aware(Small(), [])
    with pytest.raises(ConfigError, match="keep names 'nose', which is no module"):
        aware(Small(), [torch.zeros(SHAPE["images"])], keep=["nose"])
    with pytest.raises(ConfigError, match="has no quantizers"):
        stripped(Small(), torch.zeros(SHAPE["images"]))
