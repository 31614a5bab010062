"""Recall and median rank both ways, with intervals by a bootstrap over pictures: a picture's captions are drawn together.

Legend: N picture, M caption, D draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.evaluation.bootstrap import Comparison, Figure, Figures, compared, counts, interval

Floats = NDArray[np.float64]
AMONG = (1, 5, 10)
TO_TEXT, TO_PICTURE = "picture to text", "text to picture"
BLOCK = 1_000
"""Rows that are ranked at a time."""


class Ranks(NamedTuple):
    """What stands before the right answer; 0 is the best."""

    to_text: NDArray[np.int64]
    """[N] captions of others at least as like the picture as its best own one."""
    to_picture: NDArray[np.int64]
    """[M] other pictures at least as like the caption as its own."""
    owner: NDArray[np.int64]
    """[M] the caption's picture."""


def ranks_of(
    similarity: NDArray[np.float32], owner: NDArray[np.int64], to_picture: NDArray[np.float32] | None = None
) -> Ranks:
    """
    Args:
        similarity: [N, M]
        owner: [M] place of each caption's picture; each picture has one caption at least.
        to_picture: [N, M] by which a caption's pictures are ordered, where that is not what orders a picture's captions.
    """
    to_picture = similarity if to_picture is None else to_picture
    num_pictures, num_captions = similarity.shape
    to_text = np.empty(num_pictures, np.int64)
    for picture in range(num_pictures):
        own = owner == picture
        to_text[picture] = int((similarity[picture, ~own] >= similarity[picture, own].max()).sum())
    before = np.empty(num_captions, np.int64)
    for first in range(0, num_captions, BLOCK):
        part = to_picture[:, first : first + BLOCK]
        right = part[owner[first : first + BLOCK], np.arange(part.shape[1])]
        before[first : first + BLOCK] = (part >= right).sum(0) - 1
    return Ranks(to_text, before, owner)


def rows(ranks: Ranks, weights: Floats) -> dict[str, Floats]:
    """Each figure as it is, and in each draw.

    Args:
        weights: [1 + D, N] how often each picture counts.

    Returns:
        [1 + D] by name: `R@1 picture to text` and so on, `median rank ...` (1 is the best), and `mean recall`, of the six.
    """
    of_captions = weights[:, ranks.owner]
    made: dict[str, Floats] = {}
    for way, found, weight in ((TO_TEXT, ranks.to_text, weights), (TO_PICTURE, ranks.to_picture, of_captions)):
        total = weight.sum(1)
        for among in AMONG:
            made[f"R@{among} {way}"] = weight @ (found < among) / total
        order = np.argsort(found, kind="stable")
        passed = np.cumsum(weight[:, order], axis=1) >= total[:, None] / 2
        made[f"median rank {way}"] = found[order][passed.argmax(1)] + 1.0
    made["mean recall"] = np.mean([values for name, values in made.items() if name.startswith("R@")], axis=0)
    return made


def figures_of(ranks: Ranks, *, draws: int = 1000) -> Figures:
    """With 95 % intervals."""
    made = rows(ranks, counts(len(ranks.to_text), draws=draws))
    num_pictures, num_captions = len(ranks.to_text), len(ranks.to_picture)
    return Figures(
        {
            name: Figure(float(values[0]), *interval(values[1:]), num_pictures, num_captions)
            for name, values in made.items()
        },
        counted=("pictures", "captions"),
    )


def compare(first: Ranks, second: Ranks, *, draws: int = 1000) -> Mapping[str, Comparison]:
    """First minus second on the same pictures, under the same draws."""
    weights = counts(len(first.to_text), draws=draws)
    ours, theirs = rows(first, weights), rows(second, weights)
    return {name: compared(float(ours[name][0] - theirs[name][0]), ours[name][1:] - theirs[name][1:]) for name in ours}
