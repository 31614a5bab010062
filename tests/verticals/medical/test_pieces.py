"""The pieces of an organ, told apart as a flood fill by hand does it."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from verticals.medical.pieces import keep_largest, largest_share

MASKS = arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 3))


def flooded(labels: NDArray[np.uint8], number: int) -> list[set[tuple[int, ...]]]:
    """The pieces in the order of their first voxels."""
    left = {tuple(int(place) for place in found) for found in np.argwhere(labels == number)}
    pieces = []
    while left:
        piece, ahead = set(), [min(left)]
        while ahead:
            here = ahead.pop()
            if here in left:
                left.remove(here)
                piece.add(here)
                ahead += [
                    tuple(a + b for a, b in zip(here, step, strict=True)) for step in product((-1, 0, 1), repeat=3)
                ]
        pieces.append(piece)
    return pieces


@settings(max_examples=60, deadline=None)
@given(labels=MASKS, turned=st.booleans())
def test_the_largest_piece_stays_and_other_classes_are_not_touched(labels: NDArray[np.uint8], turned: bool) -> None:
    labels = labels.T if turned else labels
    expected = labels.copy()
    shares = largest_share(labels, 5)
    for number in (1, 2, 3):
        pieces = flooded(labels, number)
        if pieces:
            largest = max(pieces, key=len)  # the first of several of one size
            assert shares[number] == len(largest) / sum(map(len, pieces))
            for place in set().union(*pieces) - largest:
                expected[place] = 0 if number != 2 else 2
        else:
            assert np.isnan(shares[number])
    assert np.isnan(shares[[0, 4]]).all()
    keep_largest(labels, [1, 3])
    np.testing.assert_array_equal(labels, expected)


def test_nothing_is_done_where_nothing_is_named() -> None:
    labels = np.array([[[1, 0, 1]]], np.uint8)
    keep_largest(labels, [])
    keep_largest(labels, [3])
    np.testing.assert_array_equal(labels, [[[1, 0, 1]]])
