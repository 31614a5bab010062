"""A network's graph as JSON and safetensors: nothing is lost on the way, nothing is run on the way back, refusals say where."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from core.contract import TensorSpec
from core.errors import ArtifactError
from core.inference import program
from core.inference.export import write_network
from tests.core.inference.networks import Attention, Convolution

ROOT = Path(__file__).resolve().parents[3]
MARK = re.compile(r"# (\w+)$")


class Rich(nn.Module):
    """Everything that a network can hold: shared and frozen weights, buffers of each kind, constants of each type."""

    inputs = (TensorSpec("x", ("B", 4)), TensorSpec("day", ("B",), "int64"), TensorSpec("time", ("B",), "float64"))
    outputs = (
        TensorSpec("y", ("B", 4)),
        TensorSpec("late", ("B",), "bool"),
        TensorSpec("hour", ("B",), "float64"),
        TensorSpec("next", ("B",), "int64"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.days = nn.Embedding(8, 4)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 3.0, -1.0]))
        self.register_buffer("start", torch.tensor(1.7e9 + 1 / 3, dtype=torch.float64), persistent=False)
        self.register_buffer("closed", torch.tensor([True, False, False, True]))
        self.big = torch.tensor(2**53 + 1)  # no buffer: a constant of the graph

    def forward(self, x: Tensor, day: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        hidden = self.second(torch.relu(self.first(x))) + self.days(day % 8)
        hidden = torch.where(self.closed, hidden * self.scale, hidden + torch.arange(4))
        return hidden, time > self.start, (time - self.start) / 3600, day + self.big


def arrays_of(size: int) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(size)
    time = 1.7e9 + torch.rand(size, generator=chance, dtype=torch.float64)
    return torch.randn(size, 4, generator=chance), torch.randint(0, 99, (size,), generator=chance), time


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("something was unpickled")


def test_a_network_comes_back_as_it_was_and_nothing_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Rich().eval()
    program.save(program.trace(network), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"program.json", "model.safetensors"}
    for place, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(place, name, refuse)
    again = program.ExportedNetwork(tmp_path, inputs=Rich.inputs, outputs=Rich.outputs)
    for size in (0, 1, 2, 7):
        for found, wanted in zip(again(*arrays_of(size)), network(*arrays_of(size)), strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert again.train() is again


def test_what_is_loaded_does_not_change_with_the_network(tmp_path: Path) -> None:
    network = Convolution().eval()
    program.save(program.trace(network), tmp_path)
    picture = torch.randn(2, 3, 5, 6)
    with torch.no_grad():
        wanted = network(picture)
        network.first.weight.zero_()
        again = program.load(tmp_path).module()
        torch.testing.assert_close(tuple(again(picture)), wanted, rtol=0, atol=0)


def test_one_network_gives_the_same_files_wherever_it_is_made(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        program.save(program.trace(Rich().eval()), tmp_path / name)
    texts = [(tmp_path / name / "program.json").read_text() for name in ("a", "b")]
    assert texts[0] == texts[1]
    assert str(ROOT) not in texts[0]
    assert "site-packages" not in texts[0]


def test_a_traced_network_keeps_its_weights_and_its_warnings_to_itself(capfd: pytest.CaptureFixture[str]) -> None:
    network = Rich().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program.trace(network)
        with pytest.raises(ArtifactError):
            program.trace(Branching())
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# files that would run something


def planted(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    program.save(program.trace(Attention().eval()), folder)
    record = json.loads((folder / "program.json").read_text())
    change(record)
    (folder / "program.json").write_text(json.dumps(record))
    return folder


def nodes(record: dict[str, Any]) -> list[dict[str, Any]]:
    return record["graph_module"]["graph"]["nodes"]  # type: ignore[no-any-return]


CALLED = ["torch.os.system", "torch.load", "torch.ops.load_library.__call__", "torch.ops.aten.add.__class__"]
CALLED += ["_operator.methodcaller", "_operator.attrgetter", "builtins.eval", "#torch.nn.Module", "math.__loader__"]


@pytest.mark.parametrize("target", CALLED)
def test_a_graph_calls_operators_and_nothing_else(tmp_path: Path, target: str) -> None:
    folder = planted(tmp_path, lambda record: nodes(record)[3].update(target=target))
    with pytest.raises(ArtifactError, match=rf"{tmp_path}: the graph calls '{re.escape(target)}', which a network"):
        program.load(folder)


def test_an_axis_length_is_arithmetic_and_is_not_evaluated(tmp_path: Path) -> None:
    evil = f"__import__('pathlib').Path('{tmp_path}/run').touch()"

    def plant(record: dict[str, Any]) -> None:
        text = re.sub(r"Symbol\('s\d+', positive=True, integer=True\)", lambda _: evil, json.dumps(record))
        assert evil in text
        record.clear()
        record.update(json.loads(text))

    with pytest.raises(ArtifactError, match="as the length of an axis; it is not loaded"):
        program.load(planted(tmp_path, plant))
    assert not (tmp_path / "run").exists()


def test_guards_and_notes_of_a_graph_are_not_run(tmp_path: Path) -> None:
    evil = f"__import__('pathlib').Path('{tmp_path}/run').touch()"

    def plant(record: dict[str, Any]) -> None:
        record["guards_code"] = [evil]
        for node in nodes(record):
            node["metadata"] |= {"source_fn_stack": f"x,{evil}", "torch_fn": f"x;{evil}", "custom": evil}

    program.load(planted(tmp_path, plant)).module()(torch.zeros(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.clear(),
        lambda record: record.update(schema_version={"major": 10**6, "minor": 0}),
        lambda record: nodes(record).pop(0),
        lambda record: record["graph_module"].pop("signature"),
    ],
)
def test_a_graph_of_another_torch_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(ArtifactError, match=rf"{tmp_path}: the exported network cannot be loaded .*; export it again"):
        program.load(planted(tmp_path, change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\0"])
def test_a_damaged_graph_is_refused(tmp_path: Path, text: str) -> None:
    planted(tmp_path, lambda _: None)
    (tmp_path / "program.json").write_text(text)
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        program.load(tmp_path)


# refusals


class Narrow(nn.Module):
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", ("B", 4)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", ("B", 4)),)


class Branching(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # branching
            return x
        return -x


class Counting(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x[0, 0].item())]  # counting


class Failing(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such day")  # failing


class Misshapen(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(5, 5)  # misshapen


class Fixing(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4) * 2  # fixing


class Looping(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in x])  # looping


class Leaving(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)  # leaving


class Remembering(Narrow):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum(0)
        return x + self.seen


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linalg.eigvalsh(x.T @ x)  # inner


class Unknown(Narrow):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"last": Inner()})

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body["last"](x)
        return found


class Renamed(Narrow):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)  # renamed


def line_of(mark: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    number = next(k for k, line in enumerate(lines, 1) if line.endswith(f"  # {mark}"))
    return f"test_program.py:{number}: {lines[number - 1].strip()}"


@pytest.mark.parametrize(
    ("kind", "reason", "advice"),
    [
        (Branching, "data-dependent expression", "without control flow that depends on data"),
        (Counting, "data-dependent expression", "without control flow that depends on data"),
        (Failing, "no such day", r"called with zeros of \[2, 4\]"),
        (Misshapen, "shapes cannot be multiplied", r"called with zeros of \[2, 4\]"),
        (Fixing, "axis B is free in its specs, and the code holds it to 2", "for any length"),
        (Looping, "axis B is free in its specs, and the code holds it to 2", "for any length"),
        (Leaving, r"numpy\(\) is not supported", "called with zeros"),
    ],
)
def test_a_network_that_cannot_be_exported_is_told_why_and_where(
    kind: type[Narrow], reason: str, advice: str, tmp_path: Path
) -> None:
    for format in ("torch", "onnx"):
        with pytest.raises(ArtifactError, match=f"{kind.__name__} cannot be exported: .*{reason}.*{advice}") as raised:
            write_network(kind(), tmp_path, format)  # type: ignore[arg-type]
        assert f"At {line_of(kind.__name__.lower())}" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_network_that_remembers_is_refused() -> None:
    with pytest.raises(ArtifactError, match="a call changes its buffer seen, .*as an input and give it back"):
        program.trace(Remembering())


@pytest.mark.parametrize(
    ("kind", "words", "mark"),
    [
        (Unknown, r"aten\._linalg_eigh has no counterpart there\. It is asked for by body\.last", "inner"),
        (Renamed, r"prims\.bessel_j0 has no counterpart there\. It is asked for by the network itself", "renamed"),
    ],
)
def test_an_operation_that_onnx_lacks_is_named_with_its_module_and_line(
    kind: type[Narrow], words: str, mark: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for format in ("onnx", "openvino"):
        with pytest.raises(ArtifactError, match=f"the network cannot become ONNX: {words}") as raised:
            write_network(kind(), tmp_path, format)  # type: ignore[arg-type]
        assert line_of(mark) in str(raised.value)
        assert "export --format torch" in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""
    write_network(kind(), tmp_path, "torch")  # what the message says to do


class Valid(Narrow):
    """Wants at least 5 steps."""

    inputs, outputs = (TensorSpec("x", ("B", 1, "T")),), (TensorSpec("y", ("B", 1, "less")),)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 1, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def test_a_network_says_which_sizes_it_can_take(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Kernel size.*zeros of \[2, 1, 2\]; `sizes` of the network gives"):
        program.trace(Valid())
    network = Valid()
    network.sizes = {"T": 9}  # type: ignore[assignment]
    with pytest.raises(ArtifactError, match=r"does not take every length of axis T: .*5 <= T.*`ranges` of the network"):
        program.trace(network)
    network.ranges = {"T": (6, 9, 99)}  # type: ignore[assignment]
    program.save(program.trace(network), tmp_path)
    assert program.load(tmp_path).module()(torch.zeros(1, 1, 30))[0].shape == (1, 1, 26)


def test_the_place_of_a_node_is_its_module_and_line() -> None:
    graph = program.trace(Unknown()).graph
    place = next(program.place_of(node) for node in graph.nodes if "eigvals" in str(node.target))
    assert place == f"body.last ({line_of('inner')})"


def test_nothing_of_the_graph_is_a_pickle(tmp_path: Path) -> None:
    program.save(program.trace(Rich().eval()), tmp_path)
    for path in tmp_path.iterdir():
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError)):
            pickle.load(io.BytesIO(path.read_bytes()))
