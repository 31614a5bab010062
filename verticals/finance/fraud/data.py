"""Raw transactions to what trains, chooses and tests the model.

One table in time order; features as of each event; a pipeline fitted on the training days only. Training days end a label
delay before the validation days, and those a label delay before the test days.

Legend: N event, F feature, C column of the network's input, B lane, L event of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.pipeline import CategoricalEncoder, DataPipeline, FeatureScaler
from core.data.samplers import Chunk, TimeSeriesSampler
from core.errors import DataError
from core.evaluation.splits import DAY, Held, Span, TimeSplit, check_split
from verticals.finance.fraud.config import FraudConfig
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.features import Features
from verticals.finance.fraud.records import ordered, read_events
from verticals.finance.fraud.synthetic import write_synthetic
from verticals.finance.fraud.task import Batch

ENCODING_ROWS = 60_000
"""Training events that the bins of the network's encoding are fitted on, about."""

USUAL_ROWS = 50_000
"""Genuine training events whose median is what counts as usual."""


class FraudData:
    """`core.contract.Data` of card fraud, from the sources of a configuration or from synthetic transactions."""

    def __init__(self, config: FraudConfig, *, sources: Sequence[str] | None = None) -> None:
        """
        Args:
            sources: read instead of the configuration's own.

        Raises:
            DataError: the first fault of the sources.
        """
        self.config = config
        self.ids: NDArray[Any]
        self.events: Events
        self.extra: dict[str, NDArray[Any]]
        self.fingerprint: dict[str, Any]
        given = list(sources or config.data.sources)
        self._read(given) if given else self._make()
        end = int(self.events.time[-1]) // DAY * DAY + DAY
        test = end - round(config.data.test_days * DAY)
        self.split = TimeSplit.before(
            test,
            train_days=config.data.train_days or float("inf"),
            test_days=config.data.test_days,
            delay_days=config.data.label_delay,
            validation_days=config.data.validation_days,
        )
        self.features = Features(config.features)

    def _read(self, sources: Sequence[str]) -> None:
        with ordered(self.config.data, sources) as rows:
            chunks = list(read_events(rows))
            self.fingerprint = rows.fingerprint()
        self.ids = np.concatenate([ids for ids, _, _ in chunks])
        self.events = Events.joined([events for _, events, _ in chunks])
        self.extra = {name: np.concatenate([extra[name] for _, _, extra in chunks]) for name in chunks[0][2]}

    def _make(self) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "synthetic.parquet"
            write_synthetic(self.config.data.synthetic, path)
            self._read([str(path)])
        self.fingerprint["sources"] = ["synthetic"]

    @cached_property
    def train_rows(self) -> NDArray[np.int64]:
        """Events whose labels are targets.

        Raises:
            DataError: no events, or fewer than two frauds, on the training days.
        """
        rows = self.split.rows(self.events.time, self.split.train)
        rows = rows[self.events.fraud[rows] >= 0]
        frauds = int((self.events.fraud[rows] == 1).sum())
        if frauds < 2:
            raise DataError(
                f"{len(rows)} labelled transactions with {frauds} frauds before {np.datetime64(self.split.train.end, 'us')}; training needs at least 2: give more days or labels"
            )
        held = self.held("validation")
        check_split(self.events.time, rows, held.rows, self.config.data.label_delay)
        return rows

    def held(self, split: str) -> Held:
        """Every event of `validation` or `test`, or of the whole table (`all`); never thinned.

        Raises:
            DataError: no such split, or labels missing in it.
        """
        everything = Span(int(self.events.time[0]), int(self.events.time[-1]) + 1)
        spans = {"validation": self.split.validation, "test": self.split.test, "all": everything}
        span = spans.get(split)
        if span is None:
            raise DataError(f"no split {split!r}; there are {', '.join(spans)}")
        return Held(span, time=self.events.time, label=self.events.fraud, group=self.events.customer)

    def samples(self, split: str) -> Held:
        return self.held(split)

    def chunks(self, until: int | None = None) -> Iterator[tuple[NDArray[Any], Events, dict[str, NDArray[Any]]]]:
        """The table as `FraudPredictor.stream` takes it, up to but not at the time `until`."""
        end = len(self.events) if until is None else int(np.searchsorted(self.events.time, until))
        yield (
            self.ids[:end],
            self.events.rows(slice(0, end)),
            {name: values[:end] for name, values in self.extra.items()},
        )

    @cached_property
    def _table(self) -> tuple[DataPipeline, NDArray[np.float32], dict[str, Any]]:
        """The pipeline fitted on the training days, its [n, C] columns up to the end of training, and usual values."""
        end = int(np.searchsorted(self.events.time, self.split.train.end))
        events = self.events.rows(slice(0, end))
        extra = {name: values[:end] for name, values in self.extra.items()}
        raw = self.features.table(events)
        data, rows = self.config.data, self.train_rows
        transforms: list[Any] = [
            FeatureScaler(method=self.config.scaling, columns=(*self.features.names, *data.numeric))
        ]
        if data.categorical:
            transforms.append(
                CategoricalEncoder(
                    columns=data.categorical, handle_unknown="ignore", max_categories=data.max_categories
                )
            )
        pipeline = DataPipeline(transforms=transforms)
        pipeline.fit_block(raw, self.features.names, extra, rows=rows, time=events.time, until=self.split.train.end)
        genuine = rows[events.fraud[rows] == 0]
        genuine = genuine[:: max(1, len(genuine) // USUAL_ROWS)]
        usual_raw = np.median(raw[:, genuine], axis=1)
        columns = pipeline.transform_block(raw, self.features.names, extra)
        usual = {
            "usual_raw": usual_raw.astype(float).tolist(),
            "usual": np.median(columns[genuine], axis=0).astype(float).tolist(),
        }
        return pipeline, columns, usual

    @property
    def pipeline(self) -> DataPipeline:
        """Scaler and encoder, fitted on the training days."""
        return self._table[0]

    @property
    def usual(self) -> dict[str, Any]:
        """Median of genuine training events: `usual_raw` [F] in the features' units, `usual` [C] scaled."""
        return self._table[2]

    def encoding_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, C] columns of training events, all frauds and a share of the others, and [N] which are frauds."""
        rows = self.train_rows
        fraud = self.events.fraud[rows] == 1
        kept = fraud.copy()
        kept[:: max(1, len(rows) // ENCODING_ROWS)] = True
        return torch.from_numpy(self._table[1][rows[kept]]), torch.from_numpy(fraud[kept])

    @cached_property
    def _sampler(self) -> TimeSeriesSampler:
        end, split = int(np.searchsorted(self.events.time, self.split.train.end)), self.split
        events = self.events.rows(slice(0, end))
        return TimeSeriesSampler(
            self.config.sampler,
            time=events.time,
            group=events.customer,
            label=events.fraud,
            cutoff=split.train.end,
            begin=split.train.start,
        )

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        """Steps of one epoch, the same on every rank."""
        return self._sampler.num_steps(epoch)

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Batch]:
        """This rank's chunks of the cards' histories; see `TimeSeriesSampler`."""
        columns, fraud = self._table[1], self.events.fraud == 1
        for chunk in self._sampler.epoch(epoch, rank=rank, world_size=world_size):
            yield batch_of(chunk, columns, self.events.time, fraud)


def batch_of(chunk: Chunk, columns: NDArray[np.float32], time: NDArray[np.int64], fraud: NDArray[Any]) -> Batch:
    """A sampler's chunk as the network takes it; padding has features and times of zero.

    Args:
        columns: [N, C] the network's input.
        time: [N] microseconds.
        fraud: [N] targets: true or false, or probabilities.
    """
    real = np.arange(chunk.rows.shape[1]) < chunk.lengths[:, None]
    return Batch(
        features=torch.from_numpy(columns[chunk.rows] * real[:, :, None]),
        time=torch.from_numpy(time[chunk.rows] / DAY * real),
        target=torch.from_numpy(fraud[chunk.rows].astype(np.float32)),
        weight=torch.from_numpy(chunk.weight),
        lengths=torch.from_numpy(chunk.lengths),
        fresh=torch.from_numpy(chunk.fresh),
        normalizer=torch.tensor(chunk.normalizer, dtype=torch.float32),
    )
