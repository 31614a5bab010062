"""What every benchmark shares: ways that take turns, quantiles, and tables on the terminal and as records."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]


class Taken(NamedTuple):
    """Milliseconds of one way, round by round."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64] | None = None
    """Of this thread: what is left of it on a machine that has nothing else to do, waiting for the disk apart."""


def interleaved(ways: dict[str, Callable[[], object]], rounds: int, *, together: int = 10) -> dict[str, Taken]:
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


def quantiles(taken: Taken) -> Record:
    """Median and 99th percentile, the thread's own processor time (median), and how many rounds."""
    found: Record = {"p50_ms": float(np.median(taken.wall)), "p99_ms": float(np.quantile(taken.wall, 0.99))}
    if taken.cpu is not None:
        found |= {"cpu_p50_ms": float(np.median(taken.cpu)), "cpu_p99_ms": float(np.quantile(taken.cpu, 0.99))}
    return {**found, "rounds": len(taken.wall)}


def goal(text: str, reached: bool) -> Record:
    print(f"  goal: {text}: {'reached' if reached else 'NOT reached'}")
    return {"goal": text, "reached": reached}


def table(title: str, rows: Sequence[Record], note: str = "") -> None:
    """Prints rows under their keys."""
    print(f"\n{title}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if note:
        print(f"  {note}")


def _cell(value: object) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def keep(path: str | None, **parts: Any) -> None:
    """Writes the records as JSON where a file is named."""
    if path:
        Path(path).write_text(json.dumps(parts, indent=1, default=str) + "\n")
