"""The record of a training: one JSON line a step or epoch in `metrics.jsonl`, a progress bar on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(*, quiet: bool = False) -> Progress:
    """The one look of all progress bars: on stderr, gone when done, silent where nobody watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


def working(text: str) -> AbstractContextManager[object]:
    """Says on stderr what goes on, where somebody watches and no share of it can be told."""
    console = Console(stderr=True)
    return console.status(text) if console.is_terminal else nullcontext()


class Log:
    """Writes metrics of rank 0 to a file and keeps them in `records`; other ranks pass `path=None, quiet=True`."""

    def __init__(self, path: Path | None, *, quiet: bool = False) -> None:
        self.records: list[dict[str, Any]] = []
        self._file = path.open("a", encoding="utf-8") if path else None
        self._progress = progress(quiet=quiet)
        self._bar = self._progress.add_task("training", total=None, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._file:
            self._file.close()

    def step(self, step: int, loss: float, values: Mapping[str, float], *, total: int) -> None:
        """Records one step; a loss that is not finite is recorded as null."""
        record = {**values, "step": step, "loss": loss}
        self.records.append(record)
        self._progress.update(self._bar, completed=step, total=total, note=f"loss {loss:.4f}")
        if self._file:
            clean = {key: value if math.isfinite(value) else None for key, value in record.items()}
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
