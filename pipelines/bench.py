"""`verticals bench`: what models cost on this machine, and what they score, side by side."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from core.contract import Arrays, TensorSpec
from core.device import machine
from core.errors import ConfigError
from core.inference.model import config_of, session_of
from core.inference.recording import Recorder
from core.inference.session import SessionConfig
from core.inference.timing import Taken, interleaved
from core.memory import peak_bytes
from core.run import Run
from core.training.log import working
from pipelines.model import Place, find, samples, size_of

ROWS_KEPT = 64
"""Rows of a call whose arrays are repeated to make a batch."""


def bench(
    models: Sequence[str | Place],
    *,
    labels: Sequence[str] | None = None,
    requests: int = 500,
    batches: Sequence[int] = (1, 32, 256),
    threads: Sequence[int] = (1,),
    input: str | None = None,
    split: str = "test",
    form: str | None = None,
    score: bool = True,
) -> dict[str, Any]:
    """Latency and throughput of the networks on real inputs, in turns in one process; load time and peak memory of each
    in a process of its own; the score of each from the same samples.

    Args:
        models: runs, artifacts or `APPLICATION[:VERSION]`, all of one application and with the same tensors.
        labels: their names in the tables; their own where None.
        requests: calls of one item that are timed; larger batches get fewer.
        batches: items a call.
        threads: threads of one call.
        input: a labelled file that the samples are taken from; without it the `split` of the first model's own data.
        form: of networks that are no artifacts; the application's first where None.
        score: False leaves the scores out.

    Raises:
        ArtifactError: no such model, or it is damaged.
        ConfigError: models of several applications, or options out of range.
    """
    _check(requests, batches, threads)
    places = [model if isinstance(model, Place) else find(model) for model in models]
    if len({place.app.name for place in places}) > 1:
        raise ConfigError(
            f"models of {', '.join(sorted({p.app.name for p in places}))}; one bench compares one application's"
        )
    labels = labels or _labels(places)
    with working("samples, and the score of each model"):
        given, scores = _samples(places, labels, input, split, form, score)
    rows: list[dict[str, Any]] = []
    with working("latency, in turns"):
        for count in threads:
            rows += _latency(places, labels, given, requests, batches, count, form)
    one = _batch(given, session_of(places[0].app, places[0].path, form=form).inputs, 1)
    costs = {label: _cost(place, form, one) for label, place in zip(labels, places, strict=True)}
    text = "\n\n".join([_cost_table(costs, scores), _latency_table(rows)])
    return {"models": costs, "scores": scores, "rows": rows, "machine": machine(), "text": text}


def _check(requests: int, batches: Sequence[int], threads: Sequence[int]) -> None:
    if requests < 10:
        raise ConfigError(f"--requests {requests}; allowed is 10 and more")
    if not batches or min(batches) < 1 or not threads or min(threads) < 1:
        raise ConfigError(f"--batches {list(batches)} --threads {list(threads)}; allowed is 1 and more")


def _labels(places: Sequence[Place]) -> list[str]:
    """Names of the models, told apart where two have one name."""
    names = [place.name for place in places]
    return [f"{name} ({k + 1})" if names.count(name) > 1 else name for k, name in enumerate(names)]


def _samples(
    places: Sequence[Place], labels: Sequence[str], input: str | None, split: str, form: str | None, score: bool
) -> tuple[list[Arrays], dict[str, Any]]:
    """What the first model's network gets while samples are answered, and the figures of all models."""
    config = config_of(places[0].app, places[0].path)
    data, split = samples(places[0], config, input=input, split=split)
    given: list[Arrays] = []
    scores = {}
    for place, label in zip(places, labels, strict=True):
        if given and not score:
            break
        config, constants = config_of(place.app, place.path), Run(place.path).read_json("constants.json")
        session = Recorder(session_of(place.app, place.path, form=form), rows=ROWS_KEPT)
        metrics = place.app.evaluate(place.app.predictor(config, constants, session, version=place.name), data, split)
        given = given or [call.inputs for call in session.calls.values()]
        limits = next(iter(place.app.limits.values()))
        scores[label] = {"figure": limits.figure, **metrics.record()["figures"][limits.figure]}
    return given, scores if score else {}


def _latency(
    places: Sequence[Place],
    labels: Sequence[str],
    given: list[Arrays],
    requests: int,
    batches: Sequence[int],
    threads: int,
    form: str | None,
) -> list[dict[str, Any]]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sessions = [
            session_of(place.app, place.path, form=form, config=SessionConfig(threads=threads)) for place in places
        ]
        rows = []
        for batch in batches:
            ways = {}
            for label, session in zip(labels, sessions, strict=True):
                ways[label] = partial(session, _batch(given, session.inputs, batch))
            together = 10 if requests // batch >= 20 else 2
            taken = interleaved(ways, max(2 * together, requests // batch), together=together)
            first = float(np.median(taken[labels[0]].wall))
            rows += [_row(label, threads, batch, taken[label], first) for label in labels]
        return rows
    finally:
        torch.set_num_threads(before)


def _row(label: str, threads: int, batch: int, taken: Taken, first: float) -> dict[str, Any]:
    middle, high, highest = np.quantile(taken.wall, (0.5, 0.95, 0.99))
    return {
        "model": label,
        "threads": threads,
        "batch": batch,
        "p50_ms": float(middle),
        "p95_ms": float(high),
        "p99_ms": float(highest),
        "per_second": float(batch / middle * 1e3),
        "times_faster": first / float(middle),
        "rounds": len(taken.wall),
    }


def _batch(given: list[Arrays], inputs: Sequence[TensorSpec], rows: int) -> Arrays:
    """So many rows of what the network really gets: those of the calls that are shaped as the first, again and again."""
    alike = [call for call in given if all(call[s.name].shape[1:] == given[0][s.name].shape[1:] for s in inputs)]
    arrays = {}
    for spec in inputs:
        parts = [call[spec.name] for call in alike]
        if spec.shape and isinstance(spec.shape[0], str):
            whole = np.concatenate(parts)
            arrays[spec.name] = np.resize(whole, (rows, *whole.shape[1:])) if len(whole) < rows else whole[:rows].copy()
        else:
            arrays[spec.name] = parts[0]
    return arrays


def _cost(place: Place, form: str | None, one: Arrays) -> dict[str, Any]:
    """Size, and load time and memory as a process of its own sees them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured = pool.apply(_load, (place.app.name, str(place.path), form, one))
    return {"path": str(place.path), "bytes": size_of(place.path), **measured}


def _load(application: str, path: str, form: str | None, one: Arrays) -> dict[str, float]:
    """In a fresh process: opens the network and answers once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from pathlib import Path

    from verticals import load

    app = load(application)
    before, start = peak_bytes(), time.perf_counter()
    session = session_of(app, Path(path), form=form)
    seconds = time.perf_counter() - start
    session(one)
    return {"load_seconds": seconds, "peak_bytes": peak_bytes(), "peak_added_bytes": peak_bytes() - before}


def _cost_table(costs: dict[str, Any], scores: dict[str, Any]) -> str:
    width = max(map(len, costs))
    lines = [f"{'model':<{width}}{'MB':>9}{'load s':>9}{'peak GiB':>10}{'of it':>9}  score (95 % interval)"]
    for label, cost in costs.items():
        figure = scores.get(label)
        said = (
            f"  {figure['figure']} {figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f}, n {figure['n']:,})"
            if figure and figure.get("value") is not None
            else ""
        )
        lines.append(
            f"{label:<{width}}{cost['bytes'] / 1e6:>9.2f}{cost['load_seconds']:>9.2f}{cost['peak_bytes'] / 2**30:>10.2f}"
            f"{cost['peak_added_bytes'] / 2**30:>9.2f}{said}"
        )
    return "\n".join(lines)


def _latency_table(rows: Sequence[dict[str, Any]]) -> str:
    width = max(len(row["model"]) for row in rows)
    titles = ("threads", "batch", "p50 ms", "p95 ms", "p99 ms", "per second", "x first")
    lines = [f"{'model':<{width}}" + "".join(f"{title:>11}" for title in titles)]
    for row in rows:
        cells = (
            f"{row['threads']}", f"{row['batch']}", f"{row['p50_ms']:.3f}", f"{row['p95_ms']:.3f}", f"{row['p99_ms']:.3f}",
            f"{row['per_second']:,.0f}", f"{row['times_faster']:.2f}",
        )  # fmt: skip
        lines.append(f"{row['model']:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)
