"""Epochs of batches: every picture once, and look-alikes beside each other more and more often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verticals.multimodal.retrieval.sampler import PairSampler, nearest


@given(
    num=st.integers(1, 60),
    size=st.integers(1, 20),
    hard=st.floats(0, 1),
    epoch=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_no_picture_comes_twice_in_an_epoch(num: int, size: int, hard: float, epoch: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    neighbours = nearest(random.normal(size=(num, 4)).astype(np.float32), 5)
    sampler = PairSampler(neighbours, batch_size=size, hard=hard, seed=seed)
    batches = sampler.batches(epoch, 5)
    assert batches.shape == (num // size, size)
    assert len(set(batches.ravel().tolist())) == batches.size
    assert np.array_equal(batches, sampler.batches(epoch, 5))
    if num >= 10 and size <= num:
        assert not np.array_equal(batches, sampler.batches(epoch + 1, 5))


def test_the_share_of_neighbours_rises() -> None:
    groups = np.repeat(np.arange(100), 8)  # eight that are alike, of each of a hundred kinds
    vectors = np.eye(100, dtype=np.float32)[groups] + np.random.default_rng(0).normal(0, 0.01, (800, 100)).astype(
        np.float32
    )
    sampler = PairSampler(nearest(vectors, 7), batch_size=40, hard=0.5)
    alike = []
    for epoch in range(6):
        kinds = groups[sampler.batches(epoch, 6)]
        alike.append(float(np.mean([(row[:, None] == row[None]).sum() - len(row) for row in kinds])))
    assert alike == sorted(alike)
    assert alike[0] < 20 < 2 * alike[0] < alike[-1]
    assert [round(sampler.share(epoch, 6), 3) for epoch in (0, 3, 5)] == [0.0, 0.3, 0.5]
    assert PairSampler(nearest(vectors, 7), batch_size=40, hard=0.5).share(0, 1) == 0.0


def test_nearest_is_the_order_of_cosines() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    found = nearest(vectors, 10)
    for row in range(50):
        cosines = [
            -np.inf
            if other == row
            else float(vectors[row] @ vectors[other] / np.linalg.norm(vectors[row]) / np.linalg.norm(vectors[other]))
            for other in range(50)
        ]
        assert found[row].tolist() == np.argsort(-np.array(cosines), kind="stable")[:10].tolist()


@pytest.mark.parametrize("num", [1, 2, 3])
def test_nearest_of_few(num: int) -> None:
    assert nearest(np.ones((num, 3), np.float32), 5).shape == (num, num - 1)
