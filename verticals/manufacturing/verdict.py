"""A board's verdict from its findings, by rules for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from core.config import Config
from core.errors import ConfigError
from verticals.manufacturing.boxes import Boxes, overlap

Verdict = Literal["pass", "fail", "unknown"]
"""`unknown` where nobody taught the product: it never passes."""


SAME_PLACE = 0.5
"""Overlap of two findings, of whatever classes, above which they are one defect under two names."""


class Rule(Config):
    """What findings of one class do to a board."""

    threshold: float | None = Field(None, ge=0, le=1)
    """Score from which on a finding counts; the model's own for the class where None."""
    least_pixels: float = Field(0.0, ge=0)
    """Area of the box in square pixels from which on it counts."""
    most: int = Field(0, ge=0)
    """So many that count are allowed."""
    ignored: bool = False
    """Whether findings of the class are shown, and decide nothing."""


def check_rules(rules: Mapping[str, Rule], classes: Sequence[str]) -> None:
    """Raises ConfigError for a rule of no class."""
    if strange := sorted(rules.keys() - set(classes)):
        raise ConfigError(f"rules.classes has {', '.join(map(repr, strange))}; the classes are {', '.join(classes)}")


def counts(
    findings: Boxes, classes: Sequence[str], thresholds: Mapping[str, float], rules: Mapping[str, Rule]
) -> list[bool]:
    """Whether each finding counts against its board: once at a place, under the best of the names that count there.

    Args:
        findings: best first.
    """
    areas = findings.areas
    found = np.zeros(len(areas), bool)
    for number, (kind, score) in enumerate(zip(findings.classes.tolist(), findings.scores.tolist(), strict=True)):
        name = classes[kind]
        rule = rules.get(name, Rule())
        threshold = thresholds[name] if rule.threshold is None else rule.threshold
        if rule.ignored or score < threshold or float(areas[number]) < rule.least_pixels:
            continue
        shared = overlap(findings.corners[number], findings.corners[:number][found[:number]])
        found[number] = not (shared > SAME_PLACE).any()
    return [bool(one) for one in found]


def verdict_of(findings: Boxes, counted: Sequence[bool], classes: Sequence[str], rules: Mapping[str, Rule]) -> Verdict:
    """`fail` where more findings of a class count than its rule allows."""
    totals: dict[str, int] = {}
    for kind, is_counted in zip(findings.classes.tolist(), counted, strict=True):
        totals[classes[kind]] = totals.get(classes[kind], 0) + is_counted
    return "fail" if any(total > rules.get(name, Rule()).most for name, total in totals.items()) else "pass"
