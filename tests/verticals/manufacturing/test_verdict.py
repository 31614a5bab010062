"""Rules: what counts, once at a place, and what becomes of the board."""

from __future__ import annotations

import pytest

from verticals.manufacturing.boxes import NONE, Boxes, boxes_of
from verticals.manufacturing.verdict import Rule, counts, verdict_of

CLASSES = ("open", "short", "spur")
THRESHOLDS = {"open": 0.5, "short": 0.6, "spur": 0.2}


def found(*rows: tuple[int, int, float]) -> Boxes:
    """Boxes of 10 x 10 pixels, at x, of a class and a score."""
    return boxes_of(
        [[x, 0, x + 10, 10] for x, _, _ in rows], [kind for _, kind, _ in rows], [score for *_, score in rows]
    )


def decided(boxes: Boxes, **rules: Rule) -> tuple[list[bool], str]:
    counted = counts(boxes, CLASSES, THRESHOLDS, rules)
    return counted, verdict_of(boxes, counted, CLASSES, rules)


def test_nothing_found_passes() -> None:
    assert decided(NONE) == ([], "pass")


def test_each_class_has_its_threshold_and_the_rule_has_the_last_word() -> None:
    boxes = found((0, 0, 0.55), (20, 1, 0.55), (40, 2, 0.2))
    assert decided(boxes) == ([True, False, True], "fail")
    assert decided(boxes, open=Rule(threshold=0.56), spur=Rule(threshold=0.9)) == ([False] * 3, "pass")
    assert decided(boxes, open=Rule(threshold=0.55), short=Rule(threshold=0.0))[0] == [True, True, True]


def test_small_ones_and_ignored_classes_do_not_count() -> None:
    boxes = found((0, 0, 0.9), (20, 2, 0.9))
    assert decided(boxes, open=Rule(least_pixels=100.5), spur=Rule(ignored=True)) == ([False, False], "pass")
    assert decided(boxes, open=Rule(least_pixels=100.0))[0][0]


@pytest.mark.parametrize(("most", "verdict"), [(0, "fail"), (1, "fail"), (2, "pass")])
def test_so_many_of_a_class_are_allowed(most: int, verdict: str) -> None:
    boxes = found((0, 2, 0.9), (20, 2, 0.8), (40, 2, 0.1))
    assert decided(boxes, spur=Rule(most=most)) == ([True, True, False], verdict)


def test_one_place_counts_once_under_the_best_name_that_counts_there() -> None:
    boxes = found((0, 0, 0.9), (1, 2, 0.8), (50, 1, 0.55), (50, 2, 0.5), (56, 2, 0.4))
    counted, _ = decided(boxes)
    assert counted == [
        True,
        False,
        False,
        True,
        True,
    ]  # the short lies below its threshold; the last overlaps by a quarter
    assert decided(boxes, open=Rule(ignored=True))[0][:2] == [False, True]
