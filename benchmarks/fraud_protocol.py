"""The handbook's protocol on its file: table, features, folds, and a cache of what was fitted on them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.fraud_models import Floats, Fold
from core.evaluation.scored import Scored
from core.evaluation.splits import DAY, Held, Removal, prequential
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.features import FeatureConfig, Features

TEST_START = int(np.datetime64("2018-08-08", "us").astype(np.int64))
"""The handbook's single split tests 2018-08-08 to 14; the other folds lie each a week earlier."""
EARLIER_DAYS = 28
"""Validation folds are the test folds, this much earlier."""
WARM_DAYS = 14
"""First days of the table: too little history for features to learn from."""


class Week(NamedTuple):
    """Which fold: its regime, which one counted back from the newest, and how much earlier it lies."""

    regime: str
    """`week` trains on the protocol's 7 days, `all` on all earlier ones."""
    back: int = 0
    """Weeks before the handbook's single split."""
    earlier: int = 0
    """Days before the test weeks: `EARLIER_DAYS` for validation."""


class Job(NamedTuple):
    """What is fitted once and kept: `run(bench, *arguments)` gives an array, the arguments decide it."""

    run: Callable[..., NDArray[Any]]
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        return f"{self.run.__name__} {' '.join(str(part) for part in self.arguments)}"[:100]


class Bench:
    """The table, its folds, and a cache of what was fitted."""

    def __init__(self, source: Path, cache: Path, *, quick: bool) -> None:
        self.source, self.quick, self.cache = source, quick, cache
        self.seconds = 0.0
        """Processor time of fitting, of every job asked for, this time or an earlier one; a job has one core."""
        self.spent = 0.0
        """Those of this time."""
        cache.mkdir(parents=True, exist_ok=True)
        columns = pq.read_table(
            source, columns=["TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"]
        ).to_pandas()
        self.events = Events(
            columns["TX_DATETIME"].to_numpy().astype("datetime64[us]").astype(np.int64),
            columns["CUSTOMER_ID"].to_numpy().astype(np.int64),
            columns["TERMINAL_ID"].to_numpy().astype(np.int64),
            columns["TX_AMOUNT"].to_numpy().astype(np.float64),
            columns["TX_FRAUD"].to_numpy().astype(np.int8),
        )
        if quick:
            recent = self.events.time >= TEST_START - 45 * DAY
            self.events = self.events.rows(recent & (self.events.time < TEST_START + 7 * DAY))
        self.label = self.events.fraud
        features = Features(FeatureConfig.of_size("small" if quick else "default"))
        self.names = features.names
        path = self._path("features", self.names)
        if not path.exists():
            start = time.perf_counter()
            _write(path, np.ascontiguousarray(features.table(self.events).T))
            print(f"  features: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        self.features: NDArray[np.float32] = np.load(path, mmap_mode="r")

    def run(self, jobs: Sequence[Job]) -> list[NDArray[Any]]:
        """What the jobs give, in their order, from the cache where they ran before; the others side by side."""
        missing = [job for job in dict.fromkeys(jobs, None) if not self.path(job).exists()] if jobs else []
        if missing:
            with ProcessPoolExecutor(
                max_workers=os.cpu_count(),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_open,
                initargs=(self.source, self.cache, self.quick),
            ) as pool:
                running = {pool.submit(_work, job): job for job in missing}
                for done in as_completed(running):
                    self.spent += done.result()
                    print(f"  {running[done].name}: {done.result():.0f} s", file=sys.stderr, flush=True)
        self.seconds += sum(float(self.path(job).with_suffix(".seconds").read_text()) for job in dict.fromkeys(jobs))
        return [np.load(self.path(job)) for job in jobs]

    def path(self, job: Job) -> Path:
        """Where a job's array is kept."""
        return self._path(job.run.__name__, job.arguments)

    def _path(self, name: str, settings: object) -> Path:
        code = hashlib.blake2b(repr((self.quick, len(self.events), settings)).encode(), digest_size=8)
        return self.cache / f"{name}-{code.hexdigest()}.npy"

    def fold(self, week: Week) -> Fold:
        """Training rows and held rows of a fold."""
        splits = prequential(
            TEST_START - week.earlier * DAY, folds=week.back + 1, train_days=7, test_days=7, delay_days=7
        )
        split = min(splits, key=lambda one: one.test.start)
        time_of = self.events.time
        held = Held(
            split.test,
            time=time_of,
            label=self.label,
            group=self.events.customer,
            removal=Removal(delay_days=7, known_days=7),
        )
        start = split.train.start if week.regime == "week" else int(time_of[0]) // DAY * DAY + WARM_DAYS * DAY
        rows = np.flatnonzero((time_of >= start) & (time_of < split.train.end))
        name = f"{np.datetime64(split.test.start, 'us').astype('datetime64[D]')}"
        return Fold(name, rows, split.train.end, held)

    def scored(self, weeks: Sequence[Week], logits: Sequence[Floats]) -> list[Scored]:
        """The folds' held rows with probabilities (not calibrated)."""
        return [
            self.fold(week).held.scored(1 / (1 + np.exp(-values))) for week, values in zip(weeks, logits, strict=True)
        ]


_BENCH: Bench | None = None
"""A worker's own."""


def _open(source: Path, cache: Path, quick: bool) -> None:
    import torch

    global _BENCH
    torch.set_num_threads(1)
    _BENCH = Bench(source, cache, quick=quick)


def _work(job: Job) -> float:
    """Runs a job and keeps what it gives; returns its seconds of processor time."""
    assert _BENCH is not None
    start = time.process_time()
    made = job.run(_BENCH, *job.arguments)
    seconds, path = time.process_time() - start, _BENCH.path(job)
    path.with_suffix(".seconds").write_text(f"{seconds:.3f}")
    _write(path, made)
    return seconds


def _write(path: Path, made: NDArray[Any]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part.npy")
    np.save(part, made)
    part.replace(path)
