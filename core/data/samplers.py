"""Which events a training step sees. Rows only: what the events are is the application's matter.

`TimeSeriesSampler` walks through groups (cards, machines) in time, balances rare targets against common ones, and
refuses to see anything at or after a cut-off. Legend: N row, B lane, L event.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.config import Config
from core.errors import ConfigError, LeakError

Ints = NDArray[np.int64]


class SamplerConfig(Config):
    """How chunks of histories are drawn."""

    batch_size: int = 128
    """Lanes walked at the same time, over all ranks."""
    chunk: int = 64
    """Events of a lane in one step."""
    context: int = 64
    """Events before a span's first target that are read to build up state, at most."""
    span: int = 64
    """Consecutive events of a group that are drawn or left out together; only they can be targets."""
    ratio: float | None = None
    """Common targets drawn for each rare one in an epoch; None draws them all."""
    unbiased: bool = True
    """Common targets weigh what the drawing left out, so that the loss keeps the data's own balance."""
    seed: int = 0
    """Of the order and the drawing, together with the epoch."""


class Chunk(NamedTuple):
    """The next piece of each lane, as rows of the table."""

    rows: Ints
    """[B, L] row of each event, 0 in the padding."""
    lengths: Ints
    """[B] real events; the rest of the lane is padding, at the end."""
    weight: NDArray[np.float32]
    """[B, L] weight as a target, 0 for context and padding."""
    fresh: NDArray[np.bool_]
    """[B] true where the lane takes up another span: its state starts from nothing."""
    normalizer: float
    """What the sum of this rank's weighted losses is divided by; see `TimeSeriesSampler`."""


class _Spans(NamedTuple):
    """Pieces of the groups' histories, as places in the rows sorted by group and time."""

    begin: Ints
    """First event that is read: context."""
    first: Ints
    """First event that can be a target."""
    end: Ints
    """After the last."""
    rare: NDArray[np.bool_]
    """True where one of them is a rare target."""


class TimeSeriesSampler:
    """Chunks of histories for one training set: rows before a cut-off, of which some are targets.

    A *span* is up to `span` consecutive target events of one group, led by up to `context` earlier events. An epoch
    keeps every rare target and draws common ones at one rate: whole spans where a span has no rare target, single
    events where it has. Spans are dealt to lanes in random order; each step gives every lane its next `chunk` events.
    The plan is made for all ranks at once: every rank walks the same number of steps, and owns the lanes rank, rank +
    world_size, ...

    The normalizer is the same for every step of an epoch: the mean weight of a step over all lanes, by world size. So
    the mean over steps and ranks of (sum of weighted losses / normalizer) is the weighted mean over the epoch's
    targets, and a step with few targets counts for no more than its share.
    """

    def __init__(
        self,
        config: SamplerConfig,
        *,
        time: Ints,
        group: Ints,
        label: NDArray[np.integer],
        cutoff: int,
        begin: int | None = None,
    ) -> None:
        """
        Args:
            config: how chunks are drawn.
            time: [N] when each row happened, not falling, in any unit that `cutoff` and `begin` share.
            group: [N] whose row it is.
            label: [N] 1 rare, 0 common, -1 not known: read as context, never a target.
            cutoff: every row must be older than this.
            begin: rows older than this are context only; None allows all rows as targets.

        Raises:
            LeakError: a row is not older than the cut-off.
            ConfigError: settings out of range, or no row is left as a target.
        """
        if config.batch_size < 1 or config.chunk < 1 or config.context < 0 or config.span < 1:
            raise ConfigError(f"batch_size, chunk and span must be 1 or more and context 0 or more, given is {config}")
        if config.ratio is not None and not config.ratio > 0:
            raise ConfigError(f"ratio is {config.ratio}; allowed is a number above 0, or None for every common target")
        if not len(time) == len(group) == len(label):
            raise ValueError(f"{len(time)} times, {len(group)} groups and {len(label)} labels: they must be as many")
        late = np.flatnonzero(time >= cutoff)
        if len(late):
            raise LeakError(
                f"{len(late)} of {len(time)} rows are at or after the cut-off, the first is row {late[0]}; drop them"
            )
        if (np.diff(time) < 0).any():
            raise ValueError("rows must be in time order: sort them by time first")
        self.config = config
        self.order = np.argsort(group, kind="stable")
        sorted_group = group[self.order]
        self.label = label[self.order]
        self.target = self.label >= 0
        if begin is not None:
            self.target &= time[self.order] >= begin
        if not self.target.any():
            raise ConfigError(f"none of {len(time)} rows can be a target: begin is {begin}, cutoff {cutoff}")
        self._spans = self._cut(sorted_group)

    def _cut(self, group: Ints) -> _Spans:
        """Cut the places that can be targets into spans."""
        config, places = self.config, np.flatnonzero(self.target)
        edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        own = np.searchsorted(edges, places, side="right") - 1  # whose
        new = np.r_[True, own[1:] != own[:-1]]
        within = np.arange(len(places)) - np.maximum.accumulate(np.where(new, np.arange(len(places)), 0))
        starts = np.flatnonzero(within % config.span == 0)
        first, end = places[starts], places[np.r_[starts[1:], len(places)] - 1] + 1
        rare = np.add.reduceat(self.label[places] == 1, starts) > 0
        return _Spans(np.maximum(first - config.context, edges[own[starts]]), first, end, rare)

    def _draw(self, generator: np.random.Generator) -> tuple[Ints, NDArray[np.float32]]:
        """The spans of an epoch in random order, and the weight of every place as a target."""
        spans, config = self._spans, self.config
        weight = self.target.astype(np.float32)
        order = generator.permutation(len(spans.first))
        if config.ratio is None:
            return order, weight
        common = self.target & (self.label != 1)
        rate = config.ratio * int((self.target & (self.label == 1)).sum()) / max(int(common.sum()), 1)
        if rate >= 1:
            return order, weight
        owner = np.zeros(len(weight), np.int64)  # span of each target
        owner[self.target] = (
            np.repeat(np.arange(len(spans.first)), np.add.reduceat(self.target, spans.first)) if len(spans.first) else 0
        )
        beside = np.flatnonzero(common & spans.rare[owner])
        left_out = generator.permutation(beside)[round(rate * len(beside)) :]
        kept = len(beside) - len(left_out)
        if config.unbiased and kept:
            weight[beside] = len(beside) / kept
        weight[left_out] = 0
        sizes = np.bincount(owner[common], minlength=len(spans.first))
        others = order[~spans.rare[order]]
        drawn = others[: int(np.searchsorted(np.cumsum(sizes[others]), round(rate * sizes[others].sum()))) + 1]
        if config.unbiased and len(drawn):
            weight[common & ~spans.rare[owner]] = sizes[others].sum() / sizes[drawn].sum()
        keep = spans.rare.copy()
        keep[drawn] = True
        return order[keep[order]], weight

    def num_steps(self, epoch: int) -> int:
        """Steps of one epoch, the same on every rank."""
        drawn, _ = self._draw(np.random.default_rng([self.config.seed, epoch]))
        length = (self._spans.end - self._spans.begin)[drawn]
        return _deal(-(-length // self.config.chunk), self.config.batch_size)[2]

    def epoch(self, epoch: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Chunk]:
        """This rank's steps of one epoch, the same for the same seed and epoch.

        Raises:
            ConfigError: the lanes cannot be shared out evenly.
        """
        config, spans = self.config, self._spans
        if config.batch_size % world_size:
            raise ConfigError(
                f"batch_size {config.batch_size} does not divide by {world_size} ranks; change batch_size"
            )
        drawn, weight = self._draw(np.random.default_rng([config.seed, epoch]))
        length = (spans.end - spans.begin)[drawn]
        lane, start, num_steps = _deal(-(-length // config.chunk), config.batch_size)
        shape = (num_steps, config.batch_size, config.chunk)
        rows, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        lengths, fresh = np.zeros(shape[:2], np.int64), np.zeros(shape[:2], np.bool_)
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        place = np.repeat(spans.begin[drawn], length) + within
        step, lanes = np.repeat(start, length) + within // config.chunk, np.repeat(lane, length)
        rows[step, lanes, within % config.chunk] = self.order[place]
        weights[step, lanes, within % config.chunk] = np.where(
            place >= np.repeat(spans.first[drawn], length), weight[place], 0
        )
        np.add.at(lengths, (step, lanes), 1)
        fresh[start, lane] = True
        mine = slice(rank, None, world_size)
        normalizer = float(weights.sum(dtype=np.float64)) / num_steps / world_size
        for turn in range(num_steps):
            yield Chunk(rows[turn, mine], lengths[turn, mine], weights[turn, mine], fresh[turn, mine], normalizer)


def _deal(steps: Ints, num_lanes: int) -> tuple[Ints, Ints, int]:
    """Give each span, in order, to the lane that is free first: its lane and first step, and the steps of them all."""
    free = [(0, lane) for lane in range(num_lanes)]
    lane, start = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64)
    for span, count in enumerate(steps.tolist()):
        turn, which = free[0]
        lane[span], start[span] = which, turn
        heapq.heapreplace(free, (turn + count, which))
    return lane, start, max(turn for turn, _ in free)
