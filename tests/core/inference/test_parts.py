"""Networks of several parts: exported, opened and called one at a time, and a fault of one is found in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.contract import TensorSpec
from core.inference import artifact as artifacts
from core.inference.departure import first_departure
from core.inference.export import graphs_of, write_network
from core.inference.parts import WHOLE, Parts, PartsSession, parts_of, sessions_of, torch_session
from core.inference.session import TorchSession


class Picture(nn.Module):
    inputs = (TensorSpec("picture", ("N", 3, 8, 8), "uint8"),)
    outputs = (TensorSpec("seen", ("N", 4)), TensorSpec("places", ("N", 9, 4)))

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, 2)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        places = self.convolution(picture.float() / 255).flatten(2).transpose(1, 2)
        return places.mean(1), places


class Text(nn.Module):
    inputs = (TensorSpec("tokens", ("M", "L"), "int64"),)
    outputs = (TensorSpec("read", ("M", 4)),)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        read: Tensor = self.table(tokens).mean(1)
        return read


class Match(nn.Module):
    inputs = (TensorSpec("places", ("K", 9, 4)), TensorSpec("read", ("K", 4)))
    outputs = (TensorSpec("fits", ("K",)),)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, places: Tensor, read: Tensor) -> Tensor:
        return (places @ self.layer(read)[..., None])[..., 0].amax(1)


def network() -> Parts:
    torch.manual_seed(0)
    return Parts({"picture": Picture(), "text": Text(), "match": Match()}).eval()


GIVEN = {
    "picture": {"picture": np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)},
    "text": {"tokens": np.arange(15).reshape(3, 5)},
    "match": {
        "places": np.random.default_rng(1).normal(size=(4, 9, 4)).astype(np.float32),
        "read": np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32),
    },
}


def record_of(made: Parts, format: artifacts.Format) -> artifacts.Record:
    return artifacts.Record(
        application="test",
        source="test",
        form="pair",
        format=format,
        precision="float32",
        runtime=artifacts.runtime_version(format),
        inputs=made.inputs,
        outputs=made.outputs,
        parts=artifacts.parts(parts_of(made)),
    )


def test_what_one_gives_another_may_take_and_each_name_stands_once() -> None:
    made = network()
    assert [spec.name for spec in made.inputs] == ["picture", "tokens", "places", "read"]
    assert [spec.name for spec in made.outputs] == ["seen", "places", "read", "fits"]
    record = record_of(made, "onnx")
    assert [record.part_of(arrays) for arrays in GIVEN.values()] == list(GIVEN)
    assert record.part("match").inputs == Match.inputs
    assert record.part(WHOLE) is record
    assert list(parts_of(Picture())) == [WHOLE]


def test_called_with_all_it_gives_all() -> None:
    made = network()
    tensors = [torch.from_numpy(array) for arrays in GIVEN.values() for array in arrays.values()]
    with torch.no_grad():
        results = made(*tensors)
        assert torch.equal(results[2], made.parts["text"](tensors[1]))
        assert torch.equal(results[3], made.parts["match"](*tensors[2:]))


@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
def test_an_artifact_runs_each_part_alone(format: artifacts.Format, tmp_path: Path) -> None:
    made = network()
    graphs = write_network(made, tmp_path, format)
    record = record_of(made, format)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name for part in GIVEN for name in artifacts.network_files(format, part)
    )
    session = artifacts.open_network(tmp_path, artifacts.Record.model_validate_json(record.model_dump_json()))
    assert list(graphs) == list(sessions_of(session)) == list(GIVEN)
    ours = torch_session(made)
    for arrays in GIVEN.values():
        expected, found = ours(arrays), session(arrays)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)
    more = session({"tokens": np.zeros((7, 2), np.int64)})
    assert more["read"].shape == (7, 4)


def test_a_call_names_all_inputs_of_its_parts() -> None:
    session = torch_session(network())
    both = session(GIVEN["text"] | GIVEN["picture"])
    assert both.keys() == {"seen", "places", "read"}
    for arrays in ({}, {"read": GIVEN["match"]["read"]}, GIVEN["text"] | {"places": GIVEN["match"]["places"]}):
        with pytest.raises(
            ValueError, match="takes all those of one part, or of several: picture; tokens; places, read"
        ):
            session(arrays)
    with pytest.raises(ValueError, match="allowed is int64"):
        session({"tokens": np.zeros((2, 2), np.float32)})


def test_a_network_without_parts_has_a_session_of_its_own() -> None:
    assert isinstance(torch_session(Picture()), TorchSession)
    assert isinstance(torch_session(network()), PartsSession)


@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
def test_a_fault_is_found_in_its_part(format: artifacts.Format, tmp_path: Path) -> None:
    made, other = network(), network()
    with torch.no_grad():
        other.parts["match"].layer.weight[0] += 1  # type: ignore[union-attr,operator]
    write_network(other, tmp_path, format)
    graphs, record = graphs_of(made, format), record_of(made, format)
    words = first_departure(graphs, tmp_path, record, GIVEN["match"], limit=1e-4)
    assert "layer" in words
    assert "first departs" in words
    assert first_departure(graphs, tmp_path, record, GIVEN["text"], limit=1e-4).startswith("none of")
