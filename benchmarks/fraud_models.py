"""The models that the handbook benchmark compares: peers on single events, the network on histories.

Every model is a function of one fold that gives a logit for each held row. Legend: N row, F feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from core.data.samplers import SamplerConfig, TimeSeriesSampler
from core.data.transforms import FeatureScaler
from core.distributed.strategy import Strategy
from core.evaluation.splits import DAY, Held
from core.training.log import Log
from core.training.loop import FitConfig, fit
from core.training.optim import OptimConfig
from verticals.finance.fraud.config import default
from verticals.finance.fraud.data import batch_of
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.model import FraudNet, ModelConfig, pooled
from verticals.finance.fraud.task import Batch, FraudTask, LossConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Fold:
    """One test span with what may be learned for it."""

    name: str
    train: Ints
    """Rows whose labels are targets, in time order."""
    cutoff: int
    """Microseconds: training sees nothing at or after it."""
    held: Held


SHIPPED = default()


@dataclass(frozen=True)
class Recipe:
    """How the network is trained; as the shipped recipe `default` where nothing else is said."""

    model: ModelConfig = SHIPPED.model
    loss: LossConfig = SHIPPED.loss
    sampler: SamplerConfig = SHIPPED.sampler
    epochs: int = SHIPPED.fit.epochs
    taught_days: int = 0
    """Days before the training days on which a forest speaks, see `network`; 0 is without."""
    optim: OptimConfig = SHIPPED.fit.optim
    seed: int = SHIPPED.fit.seed


HISTORY_DAYS = 28
"""Days before the test in which a card's state is built up."""

RARE = 0.5
"""A target above this counts as rare for the sampler: a label is 0 or 1, a forest's a probability."""

SCALER_ROWS = 100_000
"""Training rows that scaler and encoding are fitted on, at most; every fraud among them."""


def logit(probability: NDArray[Any]) -> Floats:
    """Log odds, finite."""
    inside = np.clip(probability.astype(np.float64), 1e-9, 1 - 1e-9)
    return np.asarray(np.log(inside / (1 - inside)))


def peer(model: Any, table: NDArray[Any], label: NDArray[np.int8], fold: Fold) -> Floats:
    """Fits a scikit-learn classifier on the training rows -> [n] logits of the held ones."""
    model.fit(table[fold.train], label[fold.train])
    return logit(model.predict_proba(table[fold.held.rows])[:, 1])


class _Chunks:
    """`core.contract.Data` of one fold: what `fit` asks for."""

    def __init__(
        self,
        events: Events,
        scaled: NDArray[np.float32],
        first: int,
        fold: Fold,
        begin: int,
        target: NDArray[np.float32],
        recipe: Recipe,
    ) -> None:
        end = int(np.searchsorted(events.time, fold.cutoff))
        self.scaled, self.time, self.target = scaled, events.time[first:end], target[first:end]
        self.sampler = TimeSeriesSampler(
            recipe.sampler,
            time=self.time,
            group=events.customer[first:end],
            label=(self.target > RARE).astype(np.int8),
            cutoff=fold.cutoff,
            begin=begin,
        )
        self.fingerprint: dict[str, Any] = {"fold": fold.name}

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        return self.sampler.num_steps(epoch)

    def samples(self, split: str) -> Any:
        raise ValueError(f"the benchmark scores its own held rows, not {split}")

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Batch]:
        for chunk in self.sampler.epoch(epoch, rank=rank, world_size=world_size):
            yield batch_of(chunk, self.scaled, self.time, self.target)


def network(
    recipe: Recipe,
    names: tuple[str, ...],
    table: NDArray[np.float32],
    events: Events,
    fold: Fold,
) -> tuple[Floats, FraudNet, FeatureScaler]:
    """Trains the network -> [n] logits of the held rows, the network and its scaler.

    With `taught_days` its targets are the probabilities of a random forest that was fitted on the same training labels:
    out of bag on the training days, and on so many days before them, whose own labels neither ever sees.
    """
    generator = np.random.default_rng(recipe.seed)
    rows = fold.train
    if len(rows) > SCALER_ROWS:
        kept = generator.random(len(rows)) < SCALER_ROWS / len(rows)
        rows = rows[kept | (events.fraud[rows] == 1)]
    scaler = FeatureScaler("log_standard").fit(table[rows].T, names)
    begin = int(events.time[fold.train[0]]) - recipe.taught_days * DAY
    context = begin - HISTORY_DAYS * DAY
    first, end = (int(np.searchsorted(events.time, at)) for at in (context, fold.cutoff))
    scaled = _scaled(scaler, table[first:end])
    torch.manual_seed(recipe.seed)
    net = FraudNet(recipe.model, names)
    net.encoding.fit(torch.from_numpy(scaled[rows - first]), torch.from_numpy(events.fraud[rows] == 1))
    task = FraudTask(net, recipe.loss)
    target = (events.fraud == 1).astype(np.float32)
    if recipe.taught_days:
        forest = RandomForestClassifier(200, max_depth=12, oob_score=True, random_state=recipe.seed)
        forest.fit(table[fold.train], events.fraud[fold.train])
        target[fold.train] = np.nan_to_num(forest.oob_decision_function_[:, 1])
        taught = np.flatnonzero((events.time >= begin) & (events.time < events.time[fold.train[0]]))
        target[taught] = forest.predict_proba(table[taught])[:, 1]
    data = _Chunks(events, scaled, first, fold, begin, target, recipe)
    with Log(None) as log:
        fit(
            task,
            data,
            FitConfig(epochs=recipe.epochs, optim=recipe.optim, seed=recipe.seed),
            strategy=Strategy(torch.device("cpu")),
            log=log,
        )
    return read(net, scaler, table, events, fold.held.rows)[0], net, scaler


def read(
    net: FraudNet,
    scaler: FeatureScaler,
    table: NDArray[np.float32],
    events: Events,
    wanted: Ints,
    *,
    logits_too: bool = True,
    cards: int = 256,
    chunk: int = 64,
) -> tuple[Floats, NDArray[np.float32]]:
    """[n] logits (zeros unless `logits_too`) and [n, H] hidden states of the wanted rows, in their order.

    Each card's events are read in order from `HISTORY_DAYS` before the first wanted row, the state carried.
    """
    net.eval()
    first = int(np.searchsorted(events.time, events.time[wanted[0]] - HISTORY_DAYS * DAY))
    rows = np.arange(first, int(wanted[-1]) + 1)
    rows = rows[np.isin(events.customer[rows], events.customer[wanted])]
    rows = rows[np.argsort(events.customer[rows], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(events.customer[rows]) != 0])
    length = np.diff(np.r_[starts, len(rows)])
    order = np.argsort(-length, kind="stable")
    place_of = np.full(len(events), -1, np.int64)
    place_of[wanted] = np.arange(len(wanted))
    logits, hidden = np.zeros(len(wanted)), np.empty((len(wanted), net.config.num_hidden), np.float32)
    with torch.inference_mode():
        for batch in (order[start : start + cards] for start in range(0, len(order), cards)):
            state = net.initial(len(batch))
            for start in range(0, int(length[batch].max()), chunk):
                size = np.clip(length[batch] - start, 0, chunk)
                at = starts[batch][:, None] + start + np.minimum(np.arange(chunk), np.maximum(size, 1)[:, None] - 1)
                here = rows[np.minimum(at, len(rows) - 1)]
                features = _scaled(scaler, table[here.ravel()]).reshape(*here.shape, -1)
                times = torch.from_numpy(events.time[here] / DAY)
                recalled, state = net.recall(torch.from_numpy(features), times, state, torch.from_numpy(size))
                real = (np.arange(chunk) < size[:, None]) & (place_of[here] >= 0)
                chosen = recalled[torch.from_numpy(real)]
                places = place_of[here[real]]
                if logits_too:
                    logits[places] = pooled(net.weigh(torch.from_numpy(features[real]), chosen)).numpy()
                hidden[places] = chosen[:, : net.config.num_hidden].numpy()
    return logits, hidden


def stacked(
    model: Any,
    net: FraudNet,
    scaler: FeatureScaler,
    table: NDArray[np.float32],
    events: Events,
    fold: Fold,
    weight: Weights | None = None,
) -> Floats:
    """Trees on the features and the network's hidden state -> [n] logits of the held rows.

    Not on its logit: that has learned the training labels, and trees would trust it too much.

    Args:
        weight: [N] of the training rows; those of weight 0 are left out.
    """
    used = slice(None) if weight is None else weight > 0
    train = np.c_[table[fold.train], read(net, scaler, table, events, fold.train, logits_too=False)[1]][used]
    model.fit(train, events.fraud[fold.train][used], sample_weight=None if weight is None else weight[used])
    held = np.c_[table[fold.held.rows], read(net, scaler, table, events, fold.held.rows, logits_too=False)[1]]
    return logit(model.predict_proba(held)[:, 1])


def _scaled(scaler: FeatureScaler, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, F] -> [N, F] scaled copy."""
    out = np.empty_like(table)
    for start in range(0, len(table), 50_000):
        block = np.ascontiguousarray(table[start : start + 50_000].T)
        out[start : start + 50_000] = scaler.apply_(block).T
    return out
