"""The sampler: balance that respects time, every target once, the same plan for every number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.samplers import SamplerConfig, TimeSeriesSampler
from core.errors import ConfigError, LeakError


def made(
    seed: int = 0,
    *,
    rows: int = 400,
    groups: int = 13,
    rare: float = 0.05,
    begin: int | None = None,
    **settings_: object,
) -> tuple[TimeSeriesSampler, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    table = {
        "time": np.sort(rng.integers(0, 1000, rows)),
        "group": rng.integers(0, groups, rows),
        "label": (rng.random(rows) < rare).astype(np.int8),
    }
    table["label"][rng.random(rows) < 0.05] = -1
    config = SamplerConfig(**{"batch_size": 4, "chunk": 8, "context": 6, "span": 10, **settings_})  # type: ignore[arg-type]
    return TimeSeriesSampler(config, cutoff=1000, begin=begin, **table), table


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 40),
    st.sampled_from([None, 0.5, 3.0]),
    st.sampled_from([None, 500]),
    st.integers(0, 3),
)
def test_an_epoch_is_made_of_whole_histories_in_time_order(
    seed: int, chunk: int, ratio: float | None, begin: int | None, epoch: int
) -> None:
    sampler, table = made(seed, chunk=chunk, ratio=ratio, begin=begin)
    steps = list(sampler.epoch(epoch))
    assert len(steps) == sampler.num_steps(epoch)
    lanes: dict[int, list[int]] = {}
    targets: list[int] = []
    for step in steps:
        for lane in range(len(step.fresh)):
            rows = step.rows[lane, : step.lengths[lane]].tolist()
            if step.fresh[lane]:
                lanes[lane] = []
            if not rows:
                continue
            history = lanes[lane]
            history += rows
            assert len({int(table["group"][row]) for row in history}) == 1
            group = np.flatnonzero(table["group"] == table["group"][history[0]])
            first = int(np.searchsorted(group, history[0]))
            assert history == group[first : first + len(history)].tolist()
            targets += [row for row, weight in zip(rows, step.weight[lane], strict=False) if weight > 0]
            assert (step.weight[lane, step.lengths[lane] :] == 0).all()
    assert len(targets) == len(set(targets))
    allowed = (table["label"] >= 0) & (table["time"] >= (begin or 0))
    assert allowed[targets].all()
    rare = set(np.flatnonzero(allowed & (table["label"] == 1)).tolist())
    assert rare <= set(targets)
    if ratio is None:
        assert set(targets) == set(np.flatnonzero(allowed).tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([None, 2.0]))
def test_ranks_walk_the_plan_of_one(seed: int, ratio: float | None) -> None:
    sampler, _ = made(seed, ratio=ratio)
    whole = list(sampler.epoch(1))
    parts = [list(sampler.epoch(1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for step, left, right in zip(whole, *parts, strict=True):
        assert np.array_equal(step.rows[0::2], left.rows)
        assert np.array_equal(step.rows[1::2], right.rows)
        assert left.normalizer == pytest.approx(step.normalizer / 2)


def test_the_balance_is_what_was_asked_for() -> None:
    sampler, table = made(rows=20_000, groups=300, rare=0.01, ratio=3.0, span=4)
    steps = list(sampler.epoch(0))
    labels = np.concatenate([table["label"][step.rows[step.weight > 0]] for step in steps])
    assert (labels == 0).sum() / (labels == 1).sum() == pytest.approx(3.0, rel=0.1)
    weights = np.concatenate([step.weight[step.weight > 0] for step in steps])
    assert weights[labels == 0].sum() == pytest.approx((table["label"] == 0).sum(), rel=0.02)
    assert (weights[labels == 1] == 1).all()


def test_the_same_seed_gives_the_same_epoch_and_another_epoch_another() -> None:
    first, _ = made()
    again, _ = made()
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(first.epoch(0), again.epoch(0), strict=True))
    assert any(not np.array_equal(a.rows, b.rows) for a, b in zip(first.epoch(0), again.epoch(1), strict=False))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 999))
def test_nothing_at_or_after_the_cutoff_is_ever_seen(cutoff: int) -> None:
    time = np.arange(1000)
    group, label = time % 7, (time % 50 == 0).astype(np.int8)
    with pytest.raises(LeakError, match="at or after the cut-off"):
        TimeSeriesSampler(SamplerConfig(), time=time, group=group, label=label, cutoff=cutoff)
    kept = slice(0, cutoff)
    sampler = TimeSeriesSampler(
        SamplerConfig(batch_size=2), time=time[kept], group=group[kept], label=label[kept], cutoff=cutoff
    )
    assert max(int(time[step.rows].max()) for step in sampler.epoch(0)) < cutoff


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"chunk": 0}, {"context": -1}, {"ratio": 0.0}, {"span": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises((ConfigError, ValueError)):
        made(**wrong)  # type: ignore[arg-type]


def test_no_targets_and_uneven_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="can be a target"):
        made(begin=2000)
    sampler, _ = made(batch_size=3)
    with pytest.raises(ConfigError, match="does not divide"):
        next(sampler.epoch(0, world_size=2))
