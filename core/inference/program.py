"""A network as a graph: what every other format is made of, and what says where in the source an operation stands.

The graph is torch.export's, kept as JSON beside the weights as safetensors: nothing is pickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from core.contract import TensorSpec
from core.errors import ArtifactError

FILES = ("model.safetensors", "program.json")
"""Of the weights, and of the graph."""

PARAMETER, BUFFER, CONSTANT = "parameter:", "buffer:", "constant:"
"""What names in the weights' file begin with; constants are the graph's own tensors."""

KEPT = ("nn_module_stack",)
"""What `program.json` tells of a node. Its stack has paths of a machine, and torch looks functions up by the others."""

TARGET = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.\w+\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.[a-z]\w*|torch\.sym_(float|int|max|min|not|ite|sum|sqrt)|torch\._sym_sqrt"
)
"""What a graph may call. torch itself would call whatever a file names, `torch.os.system` too."""

WORDS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|Max|Min|Abs|And|Or|Not|Equality|Unequality|(Strict)?(Less|Greater)Than"
    r"|(Floor|Clean|Ceil)Div|PythonMod|(Ceil|Floor|Trunc|Round)ToInt|(Trunc)?ToFloat|PowByNatural|(Int|Float)TrueDiv"
    r"|[tT]rue|[fF]alse|positive|nonnegative|negative|integer|real|[suz][a-z]*\d+|\d+"
)
"""What the length of a free axis may hold. torch has sympy evaluate it as Python."""


class _Positional(nn.Module):
    """A network called with its tensors in order, whatever its own signature is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = self.network(*tensors)
        return (results,) if isinstance(results, Tensor) else tuple(results)


def example(inputs: Sequence[TensorSpec], sizes: Mapping[str, int] | None = None) -> tuple[Tensor, ...]:
    """Zeros of the specs' shapes; a free axis is 2 long where `sizes` does not say otherwise."""
    return tuple(
        torch.zeros(
            [axis if isinstance(axis, int) else (sizes or {}).get(axis, 2) for axis in spec.shape],
            dtype=getattr(torch, spec.dtype),
        )
        for spec in inputs
    )


def trace(network: nn.Module) -> ExportedProgram:
    """The network's graph, its free axes left free.

    Args:
        network: with `inputs` and `outputs`; `sizes`, where it has that, gives lengths of free axes that it can take,
            `ranges` the smallest, usual and largest, `longest` those that it cannot exceed.

    Raises:
        ArtifactError: it cannot be exported; says why, and the line.
    """
    inputs: tuple[TensorSpec, ...] = network.inputs  # type: ignore[assignment]
    least = {axis: low for axis, (low, *_) in getattr(network, "ranges", {}).items() if low > 1}
    most: Mapping[str, int] = getattr(network, "longest", {})
    axes = {
        axis: Dim(axis, min=least.get(axis), max=most.get(axis))
        for spec in inputs
        for axis in spec.shape
        if isinstance(axis, str)
    }
    dynamic = tuple(
        {place: axes[axis] for place, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in inputs
    )
    tensors = example(inputs, getattr(network, "sizes", None))
    positional = _Positional(network.eval())
    with torch.no_grad(), _quiet() as fixed:
        try:
            positional(*tensors)  # what a network prepares at its first call is no part of the graph
            before = [(name, buffer, buffer._version) for name, buffer in network.named_buffers()]
            positional(*tensors)
            program = torch.export.export(positional, tensors, dynamic_shapes=(dynamic,))
        except Exception as error:  # torch raises some twenty kinds, its users' code any
            raise _refused(network, error, tensors, fixed) from error
    if changed := [name for name, buffer, version in before if buffer._version != version]:
        raise ArtifactError(
            f"{type(network).__name__} cannot be exported: a call changes its buffer {changed[0]}, which a graph keeps from "
            "nobody. Take the state as an input and give it back as an output"
        )
    return program


class _Fixed(logging.Handler):
    """Lines of code at which torch found that a free axis has one length: it logs each, and says it at the end without."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("set_replacement"):
            self.lines += _own(traceback.extract_stack())[-1:]


@contextmanager
def _quiet() -> Iterator[_Fixed]:
    """Without torch's own warnings and pages of graph: what matters is raised."""
    shapes, export, fixed = (
        logging.getLogger("torch.fx.experimental.symbolic_shapes"),
        logging.getLogger("torch.export"),
        _Fixed(),
    )
    before = [(logger, logger.level, logger.propagate, logger.handlers) for logger in (shapes, export)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for logger, level in ((shapes, logging.INFO), (export, logging.CRITICAL)):
                logger.setLevel(level)
                logger.propagate, logger.handlers = False, [fixed]
            yield fixed
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers


def save(program: ExportedProgram, folder: Path, files: Sequence[str] = FILES) -> None:
    """Weights and graph.

    Raises:
        ArtifactError: the graph calls what `load` would not let it call.
    """
    from torch._export.serde.serialize import serialize  # private; tests/core/inference/test_program.py holds it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = serialize(program).exported_program
    text = json.dumps(_trusted(json.loads(graph)), sort_keys=True)
    weights, graph_file = files
    (folder / graph_file).write_text(text, encoding="utf-8")
    tensors = {
        (PARAMETER if isinstance(tensor, nn.Parameter) else BUFFER) + name: tensor
        for name, tensor in program.state_dict.items()
    }
    tensors |= {CONSTANT + name: tensor for name, tensor in program.constants.items() if isinstance(tensor, Tensor)}
    try:
        save_file(
            {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
            folder / weights,
        )
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"{folder / weights} cannot be written: {error}") from None


def load(folder: Path, files: Sequence[str] = FILES) -> ExportedProgram:
    """
    Raises:
        ArtifactError: a file is missing or damaged, or was made by a torch whose graphs this one does not read.
    """
    from torch._export.serde.serialize import SerializedArtifact, deserialize

    try:
        tensors = load_file(folder / files[0])
        named: dict[str, dict[str, Tensor]] = {PARAMETER: {}, BUFFER: {}, CONSTANT: {}}
        for name, tensor in tensors.items():
            kind, colon, rest = name.partition(":")
            named[kind + colon][rest] = nn.Parameter(tensor, False) if kind + colon == PARAMETER else tensor
        state = named[PARAMETER] | named[BUFFER]
        graph = json.dumps(_trusted(json.loads((folder / files[1]).read_bytes()))).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: ExportedProgram = deserialize(SerializedArtifact(graph, state, named[CONSTANT], None))  # type: ignore[arg-type]
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error}") from None
    except Exception as error:  # damage shows in many ways
        raise ArtifactError(
            f"{folder}: the exported network cannot be loaded ({type(error).__name__}: {str(error)[:200]}); export it again"
        ) from error
    return made


def _trusted(graph: Any) -> Any:
    """The graph's record without what torch would run as Python, and without paths of the machine that made it.

    Raises:
        ArtifactError: it calls, or has evaluated, what is no arithmetic.
    """
    if isinstance(graph, list):
        return [_trusted(part) for part in graph]
    if not isinstance(graph, dict):
        return graph
    called, text = graph.get("target"), graph.get("expr_str")
    if called is not None and not (isinstance(called, str) and TARGET.fullmatch(called)):
        raise ArtifactError(f"the graph calls {str(called)[:80]!r}, which a network has no need of; it is not loaded")
    if text is not None and not all(WORDS.fullmatch(word) for word in re.findall(r"\w+", text)):
        raise ArtifactError(f"the graph holds {text[:80]!r} as the length of an axis; it is not loaded")
    kept = {"guards_code": [], "metadata": {k: v for k, v in (graph.get("metadata") or {}).items() if k in KEPT}}
    return {key: kept.get(key, value) if key in kept else _trusted(value) for key, value in graph.items()}


class ExportedNetwork(nn.Module):
    """The graph of a directory as a network that a TorchSession runs."""

    def __init__(
        self,
        folder: Path,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        files: Sequence[str] = FILES,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.graph = load(folder, files).module()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = self.graph(*tensors)
        return results

    def train(self, mode: bool = True) -> ExportedNetwork:
        """An exported graph has one mode, evaluation: asked for training it stays as it is."""
        return self


def place_of(node: torch.fx.Node) -> str:
    """Module path and source line of a graph's node: `net.of_card.first (model.py:71: hidden = ...)`."""
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = modules[-1] if modules else ""
    path = re.sub(r"^(L\['self'\]\.)?network\.?", "", path) or "the network itself"
    lines = _told(node.meta.get("stack_trace") or "")
    return f"{path} ({lines[-1]})" if lines else path


def _line(file: str, number: str | int | None, code: str | None) -> str:
    return f"{Path(file).name}:{number}: {(code or '').strip()}"


def _own(stack: Iterable[traceback.FrameSummary]) -> list[str]:
    """The lines of a stack that are neither torch's nor of this file."""
    others = (*(str(Path(file).parent) for file in (torch.__file__, logging.__file__)), "<", __file__)
    return [_line(frame.filename, frame.lineno, frame.line) for frame in stack if not frame.filename.startswith(others)]


def _told(text: str) -> list[str]:
    """The same of a stack that is told in a text."""
    found = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(.*)', text)
    return _own(traceback.FrameSummary(file, int(number), "", line=line) for file, number, line in found)


def _refused(network: nn.Module, error: Exception, tensors: Sequence[Tensor], fixed: _Fixed) -> ArtifactError:
    """Why torch.export refuses a network, in its first line, and the last line of code that is not torch's."""
    text = str(error)
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    lines = _told(text) or _own(traceback.extract_tb(error.__traceback__))
    if held := re.search(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text):
        reason, lines = f"axis {held[1]} is free in its specs, and the code holds it to {held[2]}.", fixed.lines
        advice = f"Write that line for any length, or give axis {held[1]} a length in the specs"
    elif limits := re.findall(r"values of (\w+) = (\S+) in the specified range satisfy the generated guard (.*)", text):
        rules = dict.fromkeys(rule.replace(source, axis).partition(" and ")[0] for axis, source, rule in limits)
        reason, axis = f"it does not take every length of axis {limits[0][0]}: {'; '.join(rules)}.", limits[0][0]
        lines, advice = lines or fixed.lines, f"`ranges` of the network gives the smallest length of {axis}"
    elif "data-dependent" in text:
        advice = "Write that line without control flow that depends on data, or leave the part to the Predictor"
    else:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        advice = f"It was called with zeros of {shapes}; `sizes` of the network gives free axes other lengths"
    return ArtifactError(
        f"{type(network).__name__} cannot be exported: {reason[:300]} At {lines[-1] if lines else 'no line known'}. {advice}"
    )
