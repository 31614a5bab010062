"""The handbook's protocol on its file: table, features, folds, and a cache of what was fitted on them."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.fraud_models import Floats, Fold, Recipe
from core.evaluation.scored import Scored
from core.evaluation.splits import DAY, Held, Removal, TimeSplit, prequential
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.features import FeatureConfig, Features

TEST_START = int(np.datetime64("2018-08-08", "us").astype(np.int64))
"""The handbook's single split tests 2018-08-08 to 14; the other folds lie each a week earlier."""
EARLIER_DAYS = 28
"""Validation folds are the test folds, this much earlier."""
WARM_DAYS = 14
"""First days of the table: too little history for features to learn from."""


class Bench:
    """The table, its folds, and a cache of what was fitted."""

    def __init__(self, source: Path, cache: Path, *, quick: bool) -> None:
        self.quick, self.cache = quick, cache
        cache.mkdir(parents=True, exist_ok=True)
        columns = pq.read_table(source).to_pandas()
        self.events = Events(
            columns["TX_DATETIME"].to_numpy().astype("datetime64[us]").astype(np.int64),
            columns["CUSTOMER_ID"].to_numpy().astype(np.int64),
            columns["TERMINAL_ID"].to_numpy().astype(np.int64),
            columns["TX_AMOUNT"].to_numpy().astype(np.float64),
            columns["TX_FRAUD"].to_numpy().astype(np.int8),
        )
        if quick:
            recent = self.events.time >= TEST_START - 60 * DAY
            self.events = self.events.rows(recent & (self.events.time < TEST_START + 7 * DAY))
        features = Features(FeatureConfig.of_size("small" if quick else "default"))
        self.names = features.names
        self.features = self.kept("features", self.names, lambda: np.ascontiguousarray(features.table(self.events).T))
        self.label = self.events.fraud

    def kept(self, name: str, settings: object, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What `make` gives, from the cache where these settings were run before; its seconds are printed."""
        code = hashlib.blake2b(
            repr((self.quick, len(self.events) if name != "features" else 0, settings)).encode(), digest_size=6
        )
        path = self.cache / f"{name.replace(' ', '_').replace('/', '_')}-{code.hexdigest()}.npy"
        if not path.exists():
            start = time.perf_counter()
            made = make()
            partial_path = path.with_suffix(".part.npy")
            np.save(partial_path, made)
            partial_path.replace(path)
            print(f"  {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        return np.asarray(np.load(path, mmap_mode="r" if name == "features" else None))

    def weights(self, name: str, fold: Fold, recipe: Recipe) -> Path:
        """Where a network's weights are kept."""
        code = hashlib.blake2b(repr((self.quick, name, fold.name, recipe)).encode(), digest_size=6).hexdigest()
        return self.cache / f"weights-{code}.pt"

    def folds(self, regime: str, *, earlier: int = 0, count: int = 4) -> list[Fold]:
        """Test folds of a regime, or the validation folds `earlier` days before."""
        splits = prequential(TEST_START - earlier * DAY, folds=count, train_days=7, test_days=7, delay_days=7)
        return [self._fold(split, regime) for split in splits]

    def _fold(self, split: TimeSplit, regime: str) -> Fold:
        time_of = self.events.time
        held = Held(
            split.test,
            time=time_of,
            label=self.label,
            group=self.events.customer,
            removal=Removal(delay_days=7, known_days=7),
        )
        start = split.train.start if regime == "week" else int(time_of[0]) // DAY * DAY + WARM_DAYS * DAY
        rows = np.flatnonzero((time_of >= start) & (time_of < split.train.end))
        if self.quick:
            rows = rows[self.events.customer[rows] % 4 == 0] if regime != "week" else rows
        return Fold(f"{np.datetime64(split.test.start, 'us').astype('datetime64[D]')}", rows, split.train.end, held)


def scored(bench: Bench, folds: list[Fold], logits: list[Floats]) -> list[Scored]:
    """The folds' held rows with probabilities (not calibrated)."""
    return [fold.held.scored(1 / (1 + np.exp(-values))) for fold, values in zip(folds, logits, strict=True)]
