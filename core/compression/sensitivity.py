"""Which layers int8 costs most, and leaving those in float until a limit on the score holds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.compression.graphs import REST, Samples, layers, run
from core.compression.quantization import static
from core.errors import ConfigError, ScoreError

Candidate = TypeVar("Candidate")


class Held(NamedTuple, Generic[Candidate]):
    """A quantized model that keeps the limit."""

    candidate: Candidate
    keep: tuple[str, ...]
    """Layers that stay in float, most costly first."""
    score: float
    scores: tuple[float, ...]
    """Of every try, with no layer in float at first and one more each time."""


def sensitivity(source: Path, samples: Samples, *, only: Sequence[str] | None = None) -> dict[str, float]:
    """How far the model's outputs depart when one layer alone is int8, for each layer, the costliest first.

    One quantization and one pass over the samples a layer, all else in float: some dozen samples are enough. Cheaper than a score, and no
    labels are wanted; interplay between layers is not seen, which `hold` measures at the end.

    Args:
        source: `.onnx` or `.xml`.
        samples: calibrates and compares.
        only: layers to ask; None for all of `layers(source)`.

    Returns:
        Root mean square difference of the outputs as a share of their root mean square, the worst output's.

    Raises:
        As `static`; ConfigError also for a layer in `only` that is none.
    """
    names = layers(source)
    asked = list(names if only is None else only)
    if unknown := [name for name in asked if name not in names]:
        raise ConfigError(f"{unknown[0]!r} is no layer of {source.name}; there are {', '.join(names[:12])}")
    costs: dict[str, float] = {}
    expected = run(source, samples)
    with tempfile.TemporaryDirectory() as folder:
        for name in asked:
            target = Path(folder) / source.name
            static(source, target, samples, keep=[other for other in [*names, REST] if other != name])
            costs[name] = max(_share(have, want) for have, want in zip(run(target, samples), expected, strict=True))
    return dict(sorted(costs.items(), key=lambda cost: -cost[1]))


def hold(
    quantize: Callable[[Sequence[str]], Candidate],
    score: Callable[[Candidate], float],
    limit: float,
    layers: Sequence[str],
) -> Held[Candidate]:
    """Quantizes with ever more layers in float, the costliest first, until the score is at least `limit`.

    Args:
        quantize: from the layers that stay in float to a model, as `lambda keep: static(source, target, samples, keep=keep)`.
        score: of such a model on validation data, more is better.
        layers: costliest first, as `sensitivity` gives them; `*`, all that is no layer, may be put before them. The last
            is never left in float: nothing would be int8.

    Raises:
        ScoreError: the limit does not hold with all layers but one in float.
        ConfigError: no layers.
    """
    if not layers:
        raise ConfigError("no layers to leave in float; give those of sensitivity(source, samples)")
    scores: list[float] = []
    for count in range(len(layers)):
        keep = tuple(layers[:count])
        candidate = quantize(keep)
        scores.append(float(score(candidate)))
        if scores[-1] >= limit:
            return Held(candidate, keep, scores[-1], tuple(scores))
    raise ScoreError(
        f"int8 does not keep the limit of {limit:g}: the best of {len(scores)} tries is {max(scores):g}, with up to "
        f"{len(layers) - 1} of {len(layers)} layers in float; train quantization-aware, or lower the limit"
    )


def _share(have: NDArray[Any], want: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean((have - want) ** 2)) / max(float(np.sqrt(np.mean(want**2))), 1e-12))
