"""Why a score is what it is: the score is computed again with one thing hidden at a time (occlusion).

Everything goes through the Session, so the reasons hold for whatever runtime answers. A *cause* is a family of features
that say the same in many windows; hiding it puts its features to their usual values. Hiding a past event takes it out
of what the attention can look back to. Effects are differences of the logit: positive ones raised the score.

Legend: F feature, T remembered state, V variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Session

CAUSES = (
    ("terminal_fraud", "known fraud at this terminal"),
    ("customer_fraud", "known fraud on this card"),
    ("customer_amount_count", "pace of this card"),
    ("customer_amount", "amount, against what this card spends"),
    ("customer_gap", "pace of this card"),
    ("customer_new", "terminals new to this card"),
    ("customer_night", "time of day"),
    ("customer_weekend", "time of day"),
    ("terminal_", "what is usual at this terminal"),
    ("pair_", "this card at this terminal"),
    ("amount", "amount, against what this card spends"),
    ("log_amount", "amount, against what this card spends"),
    ("hour_", "time of day"),
    ("night", "time of day"),
    ("weekend", "time of day"),
)
"""Prefix of a feature's name -> the cause it speaks for; the first that fits."""


MOST_MEMBERS = 16
"""Features of a cause that are hidden alone to find the most telling one: of each statistic the window furthest from its
usual value, then of each the second, and so on."""


class Effect(NamedTuple):
    """What hiding one thing does."""

    cause: str
    """The cause in words, or `past event`."""
    place: int
    """Index of the most telling feature of the cause, or how many events back the past event lies (1 is the newest)."""
    effect: float
    """Logit with it minus logit without it."""


def cause_of(name: str) -> str:
    """The cause a feature speaks for; a column of the bank's own is its own cause."""
    return next((cause for prefix, cause in CAUSES if name.startswith(prefix)), name.split("=")[0])


def _family(name: str) -> str:
    """The name without its window: the same statistic in other windows is of the same family."""
    return name.rpartition("_")[0] or name


class Occlusion:
    """Effects of causes and past events on one score."""

    def __init__(self, session: Session, names: Sequence[str], usual: NDArray[np.float32]) -> None:
        """
        Args:
            names: [F] names of the features, in the session's order.
            usual: [F] scaled value that stands for "nothing special".
        """
        self.session, self.usual = session, usual
        self.causes: dict[str, NDArray[np.int64]] = {}
        for cause in dict.fromkeys(cause_of(name) for name in names):
            self.causes[cause] = np.array([i for i, name in enumerate(names) if cause_of(name) == cause])
        families = {family: place for place, family in enumerate(dict.fromkeys(map(_family, names)))}
        self._families = np.array([families[_family(name)] for name in names])
        self._masks = np.zeros((len(self.causes), len(names)), bool)
        for mask, features in zip(self._masks, self.causes.values(), strict=True):
            mask[features] = True

    def __call__(
        self, features: NDArray[np.float32], day: float, state: Arrays, logit: float, most: int
    ) -> list[Effect]:
        """
        Args:
            features: [F] scaled.
            day: time of the event, days.
            state: the session's state inputs with a leading axis of one.
            logit: the score they give.
            most: how many effects to return.

        Returns:
            The largest effects, largest first; none below a hundredth of a logit.
        """
        if not most:
            return []
        past = _without_each(state)
        num_past = len(past["count"]) if past else 0
        hidden = np.where(self._masks, self.usual, features).astype(np.float32)
        variants = np.concatenate([hidden, np.broadcast_to(features, (num_past, len(features)))])
        states = {
            key: np.concatenate([np.repeat(value, len(hidden), axis=0), past[key]])
            if past
            else np.repeat(value, len(hidden), axis=0)
            for key, value in state.items()
        }
        effects = logit - self._logits(variants, day, states)
        found = [Effect(cause, -1, float(effect)) for cause, effect in zip(self.causes, effects, strict=False)]
        found += [Effect("past event", num_past - i, float(effect)) for i, effect in enumerate(effects[len(hidden) :])]
        found = sorted((e for e in found if abs(e.effect) >= 0.01), key=lambda e: -abs(e.effect))[:most]
        return self._telling(found, features, day, state, logit)

    def _telling(
        self, found: list[Effect], features: NDArray[np.float32], day: float, state: Arrays, logit: float
    ) -> list[Effect]:
        """The effects with, for each cause, the feature that does most in the cause's direction when hidden alone."""
        off = np.abs(features - self.usual)
        members = {}
        for effect in found:
            if effect.cause in self.causes:
                members[effect.cause] = self.candidates(effect.cause, off)
        if not members:
            return found
        places = np.concatenate(list(members.values()))
        variants = np.repeat(features[None], len(places), axis=0)
        variants[np.arange(len(places)), places] = self.usual[places]
        states = {key: np.repeat(value, len(places), axis=0) for key, value in state.items()}
        alone = logit - self._logits(variants, day, states)
        starts = dict(zip(members, np.cumsum([0, *map(len, members.values())]).tolist(), strict=False))
        told = []
        for effect in found:
            if effect.cause in members:
                own = members[effect.cause]
                first = starts[effect.cause]
                best = np.argmax(alone[first : first + len(own)] * np.sign(effect.effect))
                effect = effect._replace(place=int(own[best]))
            told.append(effect)
        return told

    def candidates(self, cause: str, off: NDArray[np.float32]) -> NDArray[np.int64]:
        """Features of a cause to hide alone: of each family the furthest off first; `off` is [F], how far each is from usual."""
        own = self.causes[cause]
        order = own[np.lexsort((-off[own], self._families[own]))]
        family = self._families[order]
        rank = np.arange(len(order)) - np.searchsorted(family, family)
        return order[np.lexsort((-off[order], rank))[:MOST_MEMBERS]]

    def _logits(self, variants: NDArray[np.float32], day: float, states: Arrays) -> NDArray[np.float64]:
        results = self.session({"features": variants, "time": np.full(len(variants), day), **states})
        return results["logit"].astype(np.float64)


def _without_each(state: Arrays) -> Arrays | None:
    """The state once for each remembered event, that event forgotten; oldest first. None where nothing is remembered."""
    count = int(state["count"][0]) if "count" in state else 0
    if not count:
        return None
    variants = {key: np.repeat(value, count, axis=0) for key, value in state.items()}
    num_states = state["memory"].shape[1]
    for i in range(count):
        place = num_states - count + i
        for key in ("memory", "times"):
            variants[key][i, 1 : place + 1] = state[key][0, :place]
    variants["count"] = np.full(count, count - 1, state["count"].dtype)
    return variants
