"""Times of ways that are compared: they take turns in one process, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Taken(NamedTuple):
    """Milliseconds of one way, round by round."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64] | None = None
    """Of this thread: what is left of it on a machine that has nothing else to do, waiting for the disk apart."""


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int, *, together: int = 10) -> dict[str, Taken]:
    """Times of each way in each round; the ways take turns of `together` rounds, after one turn to warm up.

    A turn of one round would measure how fast each way gets its own code and data back into the processor's caches.
    """
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for turn in range(1 + rounds // together):
        for name, way in ways.items():
            for _ in range(together):
                cpu, start = time.thread_time(), time.perf_counter()
                way()
                wall, cpu = time.perf_counter() - start, time.thread_time() - cpu
                if turn:
                    taken[name][0].append(wall * 1e3)
                    taken[name][1].append(cpu * 1e3)
    return {name: Taken(np.array(wall), np.array(cpu)) for name, (wall, cpu) in taken.items()}


def quantiles(taken: Taken) -> dict[str, Any]:
    """Median and 99th percentile, the thread's own processor time (median), and how many rounds."""
    found: dict[str, Any] = {"p50_ms": float(np.median(taken.wall)), "p99_ms": float(np.quantile(taken.wall, 0.99))}
    if taken.cpu is not None:
        found |= {"cpu_p50_ms": float(np.median(taken.cpu)), "cpu_p99_ms": float(np.quantile(taken.cpu, 0.99))}
    return {**found, "rounds": len(taken.wall)}
