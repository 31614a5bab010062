"""Recall against a loop, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from verticals.multimodal.retrieval.recall import compare, figures_of, ranks_of


def drawn(
    num_pictures: int, captions: int, signal: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    owner = random.permutation(np.repeat(np.arange(num_pictures), captions))
    similarity = random.normal(size=(num_pictures, len(owner))) + signal * (np.arange(num_pictures)[:, None] == owner)
    return similarity.astype(np.float32), owner


@pytest.mark.parametrize("captions", [1, 5])
def test_recall_is_a_loop_over_sorted_lists(captions: int) -> None:
    similarity, owner = drawn(40, captions, 1.5)
    figures = figures_of(ranks_of(similarity, owner))
    to_text, to_picture = [], []
    for picture in range(40):
        order = sorted(range(len(owner)), key=lambda caption: -similarity[picture, caption])
        to_text.append(next(place for place, caption in enumerate(order) if owner[caption] == picture))
    for caption in range(len(owner)):
        order = sorted(range(40), key=lambda picture: -similarity[picture, caption])
        to_picture.append(order.index(owner[caption]))
    # captions of the own picture before the best own one: none, so the place in the list is the rank
    for way, places in (("picture to text", to_text), ("text to picture", to_picture)):
        for among in (1, 5, 10):
            assert figures[f"R@{among} {way}"].value == pytest.approx(np.mean([place < among for place in places]))
        assert figures[f"median rank {way}"].value == sorted(places)[(len(places) - 1) // 2] + 1
    six = [figure.value for name, figure in figures.items() if name.startswith("R@")]
    assert figures["mean recall"].value == pytest.approx(np.mean(six))


def test_scores_that_are_all_alike_are_no_answer() -> None:
    _, owner = drawn(30, 2, 0.0)
    figures = figures_of(ranks_of(np.zeros((30, 60), np.float32), owner))
    assert figures["R@10 text to picture"].value == 0
    assert figures["median rank picture to text"].value == 59


def test_intervals_hold_the_value_and_captions_are_drawn_with_their_picture() -> None:
    similarity, owner = drawn(100, 5, 1.0)
    figures = figures_of(ranks_of(similarity, owner))
    for figure in figures.values():
        assert figure.low <= figure.value <= figure.high
        assert (figure.n, figure.positives) == (100, 500)
    alike = np.repeat(similarity[:, np.argsort(owner, kind="stable")[::5]], 5, axis=1)  # five captions that are one
    narrow = figures_of(ranks_of(alike, np.repeat(np.arange(100), 5)))["R@1 text to picture"]
    spread = np.sqrt(narrow.value * (1 - narrow.value) / 100)
    assert narrow.high - narrow.low == pytest.approx(4 * spread, rel=0.25)  # of 100 pictures, not of 500 captions


def test_a_comparison_is_paired() -> None:
    similarity, owner = drawn(200, 3, 1.0)
    better = similarity + 0.5 * (np.arange(200)[:, None] == owner)
    ranks = ranks_of(similarity, owner)
    found = compare(ranks_of(better, owner), ranks)
    for name, row in found.items():
        assert (row.difference < 0) if name.startswith("median") else row.low > 0, name
    same = compare(ranks, ranks)["R@1 text to picture"]
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
