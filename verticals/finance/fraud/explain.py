"""Why a score is what it is: the score is computed again with one thing hidden at a time (occlusion).

Everything goes through the Session, so the reasons hold for whatever runtime answers. A *cause* is a family of features
that say the same in many windows; hiding it puts its features to their usual values. Hiding a past event takes it out
of what the attention can look back to, or out of the window. Effects are differences of the logit: positive ones raised the score.

Legend: N event, C cause, F feature, T remembered state, V variant.
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

MOST_VARIANTS = 2048
"""Variants of about so many events go through the Session together: bounds its memory."""


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
    """Effects of causes and past events on scores, of many events in two calls of the Session."""

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
        self,
        features: NDArray[np.float32],
        days: NDArray[np.float64],
        state: Arrays,
        logits: NDArray[np.float64],
        most: int,
    ) -> list[list[Effect]]:
        """
        Args:
            features: [N, F] scaled.
            days: [N] times of the events.
            state: the session's state inputs, [N, ..]: what each event met.
            logits: [N] the scores they give.
            most: how many effects to return of each.

        Returns:
            The largest effects of each event, largest first; none below a hundredth of a logit.
        """
        size = max(1, MOST_VARIANTS // (len(self.causes) + most * MOST_MEMBERS))
        found: list[list[Effect]] = []
        for first in range(0, len(features) if most else 0, size):
            part = slice(first, first + size)
            given = {key: value[part] for key, value in state.items()}
            found += self._effects(features[part], days[part], given, logits[part], most)
        return found or [[] for _ in features]

    def _effects(
        self,
        features: NDArray[np.float32],
        days: NDArray[np.float64],
        state: Arrays,
        logits: NDArray[np.float64],
        most: int,
    ) -> list[list[Effect]]:
        num_events, num_causes = len(features), len(self.causes)
        owners, past = _without_each(state)
        hidden = np.where(self._masks, self.usual, features[:, None]).reshape(-1, features.shape[1])
        rows = np.repeat(np.arange(num_events), num_causes)
        states = {key: np.concatenate([value[rows], past[key]]) for key, value in state.items()}
        rows = np.concatenate([rows, owners])
        effects = logits[rows] - self._logits(np.concatenate([hidden, features[owners]]), days[rows], states)
        of_causes = effects[: num_events * num_causes].reshape(num_events, num_causes)
        of_past = np.split(effects[num_events * num_causes :], np.searchsorted(owners, np.arange(1, num_events)))
        found = []
        for own, before in zip(of_causes.tolist(), of_past, strict=True):
            every = [Effect(cause, -1, effect) for cause, effect in zip(self.causes, own, strict=True)]
            every += [Effect("past event", len(before) - i, effect) for i, effect in enumerate(before.tolist())]
            found.append(sorted((e for e in every if abs(e.effect) >= 0.01), key=lambda e: -abs(e.effect))[:most])
        return self._telling(found, features, days, state, logits)

    def _telling(
        self,
        found: list[list[Effect]],
        features: NDArray[np.float32],
        days: NDArray[np.float64],
        state: Arrays,
        logits: NDArray[np.float64],
    ) -> list[list[Effect]]:
        """The effects with, for each cause, the feature that does most in the cause's direction when hidden alone."""
        off = np.abs(features - self.usual)
        wanted = [
            (event, place, self.candidates(effect.cause, off[event]))
            for event, effects in enumerate(found)
            for place, effect in enumerate(effects)
            if effect.cause in self.causes
        ]
        if not wanted:
            return found
        sizes = [len(members) for _, _, members in wanted]
        rows = np.repeat([event for event, _, _ in wanted], sizes)
        members = np.concatenate([members for _, _, members in wanted])
        variants = features[rows]
        variants[np.arange(len(rows)), members] = self.usual[members]
        states = {key: value[rows] for key, value in state.items()}
        alone = np.split(logits[rows] - self._logits(variants, days[rows], states), np.cumsum(sizes)[:-1])
        for (event, place, own), effects in zip(wanted, alone, strict=True):
            effect = found[event][place]
            found[event][place] = effect._replace(place=int(own[np.argmax(effects * np.sign(effect.effect))]))
        return found

    def candidates(self, cause: str, off: NDArray[np.float32]) -> NDArray[np.int64]:
        """Features of a cause to hide alone: of each family the furthest off first; `off` is [F], how far each is from usual."""
        own = self.causes[cause]
        order = own[np.lexsort((-off[own], self._families[own]))]
        family = self._families[order]
        rank = np.arange(len(order)) - np.searchsorted(family, family)
        return order[np.lexsort((-off[order], rank))[:MOST_MEMBERS]]

    def _logits(self, variants: NDArray[np.float32], days: NDArray[np.float64], states: Arrays) -> NDArray[np.float64]:
        given: Arrays = {"features": variants.astype(np.float32, copy=False), "time": days, **states}
        return self.session(given)["logit"].astype(np.float64)


def _without_each(state: Arrays) -> tuple[NDArray[np.int64], Arrays]:
    """Each event's state once for each event that it remembers, that one forgotten, oldest first; and whose it is, [V]."""
    if "count" not in state:
        return np.zeros(0, np.int64), {key: value[:0] for key, value in state.items()}
    count = state["count"]
    owners = np.repeat(np.arange(len(count)), count)
    variants = {key: value[owners] for key, value in state.items()}
    places = np.arange(state["times"].shape[1])
    newest_of = np.repeat(np.cumsum(count), count)
    forgotten = len(places) - (newest_of - np.arange(len(owners)))
    moved = places - ((places >= 1) & (places <= forgotten[:, None]))
    for key in {"memory", "window", "times"} & set(state):  # what holds an event in each place, the newest last
        variants[key] = state[key][owners[:, None], moved]
    variants["count"] = (count[owners] - 1).astype(count.dtype)
    return owners, variants
