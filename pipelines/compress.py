"""`verticals compress`: a smaller, faster model, and a table of what was paid for what was won.

The steps, each of which may be left out: prune and recover (gradually), learn from a teacher, export, quantize. After
each one the score of the validation days is held against the run's own; the step that loses too much ends the chain. The
table at the end is of the test days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from core.errors import ConfigError
from core.inference import artifact as artifacts
from core.inference.model import config_of, network_of
from core.inference.session import Precision
from pipelines.chain import Chain, Importance
from pipelines.model import find
from pipelines.parts import Method


def compress(
    model: str,
    *,
    prune: float = 0.0,
    bits: int = 8,
    method: str | None = None,
    teacher: str | None = None,
    max_score_drop: float = 0.01,
    importance: str = "group",
    format: str | None = None,
    form: str | None = None,
    precision: str = "float32",
    settings: Sequence[str] = (),
    output: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """
    Args:
        model: run directory or `APPLICATION[:VERSION]`; or a model file, which is quantized without an application.
        prune: share of the channels that goes, in (0, 1); 0 prunes nothing.
        bits: 8 quantizes, 32 does not.
        method: dynamic (ranges as they come), static (ranges fitted on samples) or weights (activations stay in float);
            static where the network has convolutions, else dynamic, if None.
        teacher: run whose answers the network learns from while it recovers.
        max_score_drop: how much of the score on the validation days may be lost.
        importance: which channels go first: l1 or group.
        format: onnx or openvino; what the method runs best in, if None.
        form: of the network; the application's first where None.
        precision: float32 or bfloat16, what is not int8.
        settings: overrides of the recovery's training, as `fit.epochs=2`.
        output: the new directory (default: compressed/APPLICATION/NAME).

    Raises:
        ScoreError: a step loses too much; says which, and where what was made lies.
        ConfigError: options out of range, or a teacher of another task.
        ArtifactError: no such model.
    """
    if not 0 <= prune < 1:
        raise ConfigError(f"--prune {prune}; allowed is a share of the channels above 0 and below 1, as 0.3")
    if not 0 <= max_score_drop < 1:
        raise ConfigError(f"--max-score-drop {max_score_drop}; allowed is 0 and above, below 1, in units of the score")
    if bits not in (8, 32):
        raise ConfigError(f"--bits {bits}; allowed are 8 (int8) and 32 (float, nothing is quantized)")
    if method not in (None, "dynamic", "static", "weights"):
        raise ConfigError(f"--method {method}; allowed are dynamic, static and weights")
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"--precision {precision}; allowed are float32 and bfloat16")
    if importance not in ("l1", "group"):
        raise ConfigError(f"--importance {importance}; allowed are l1 and group")
    if Path(model).is_file():
        given = {
            "--prune": prune, "--teacher": teacher, "--format": format, "--form": form, "--set": settings,
            "--precision": precision != "float32",
        }  # fmt: skip
        if unused := [option for option, value in given.items() if value]:
            raise ConfigError(f"{', '.join(unused)} with a model file: it is quantized, and nothing else; give a run")
        return _file(Path(model), output, cast(Method, method or "dynamic"), bits)
    if Path(model).suffix in (".onnx", ".xml") and not Path(model).exists():
        raise ConfigError(f"{model}: no such file")
    place = find(model)
    if artifacts.is_artifact(place.path):
        source = artifacts.read(place.path).source
        raise ConfigError(f"{model} is an artifact; compress the run or version that it was made of, {source}")
    learned = find(teacher) if teacher else None
    if learned and artifacts.is_artifact(learned.path):
        source = artifacts.read(learned.path).source
        raise ConfigError(f"--teacher {teacher} is an artifact; give the run or version that it was made of, {source}")
    if settings and not (prune or learned):
        raise ConfigError(f"--set {settings[0]}, but without --prune or --teacher nothing is trained; leave it out")
    config_of(place.app, place.path).override(settings)  # refused now, and not after the first export
    layers = network_of(place.app, place.path).modules()
    convolves = any(isinstance(layer, torch.nn.modules.conv._ConvNd) for layer in layers)
    chosen = cast(Method, method or ("static" if convolves else "dynamic"))
    runtime = artifacts.check_format(format or ("onnx" if chosen == "dynamic" else "openvino"))
    if runtime not in FORMATS[chosen]:
        raise ConfigError(f"--method {chosen} --format {runtime}; it goes with {' or '.join(FORMATS[chosen])}")
    if precision == "bfloat16" and runtime != "openvino":
        raise ConfigError(f"--precision bfloat16 --format {runtime}; only openvino has bfloat16 here")
    chain = Chain(
        place,
        Path(output or f"compressed/{place.app.name}/{place.name}"),
        limit=max_score_drop,
        form=form,
        format=runtime,
        precision=cast(Precision, precision),
        device=device,
    )
    with chain.tidy():
        chain.export()  # first: what no runtime takes is known before hours of training
        if prune or learned:
            chain.recover(prune, cast(Importance, importance), learned, settings)
            chain.export()
        if bits == 8:
            chain.quantize(chosen)
    return chain.table()


FORMATS: Mapping[Method, tuple[artifacts.Format, ...]] = {
    "dynamic": ("onnx",),
    "static": ("openvino", "onnx"),
    "weights": ("openvino",),
}
"""What each way to quantize goes with."""


def _file(path: Path, output: str | None, method: Method, bits: int) -> dict[str, Any]:
    """Any model file, without an application."""
    from core.compression.quantization import quantize_file

    if bits != 8:
        raise ConfigError(f"--bits {bits}; a model file is quantized to 8 bits, and nothing else is done to it")
    made = quantize_file(path, Path(output or f"{path.stem}-int8"), method=method, bitwidth=bits)
    before, after = path.stat().st_size, made.stat().st_size
    text = f"{made}: {after / 1e6:.2f} MB, {before / after:.2f} times smaller; its answers were compared with nothing: that needs an application's samples"
    return {"file": str(made), "bytes": after, "times_smaller": before / after, "text": text}
