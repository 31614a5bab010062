"""Reasons of many scores at once: the numbers of `Occlusion`, with what is hidden of all events in two calls of the Session.

Legend: N event, C cause, F feature, T remembered state, V variant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays
from verticals.finance.fraud.explain import MOST_MEMBERS, Effect, Occlusion

MOST_VARIANTS = 2048
"""Variants of about so many events go through the Session together: bounds its memory."""


def effects_of_many(
    occlusion: Occlusion,
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
        N times what `Occlusion` gives for the event alone.
    """
    size = max(1, MOST_VARIANTS // (len(occlusion.causes) + most * MOST_MEMBERS))
    found: list[list[Effect]] = []
    for first in range(0, len(features) if most else 0, size):
        part = slice(first, first + size)
        given = {key: value[part] for key, value in state.items()}
        found += _effects(occlusion, features[part], days[part], given, logits[part], most)
    return found or [[] for _ in features]


def _effects(
    occlusion: Occlusion,
    features: NDArray[np.float32],
    days: NDArray[np.float64],
    state: Arrays,
    logits: NDArray[np.float64],
    most: int,
) -> list[list[Effect]]:
    causes, usual = list(occlusion.causes), occlusion.usual
    num_events, num_causes = len(features), len(causes)
    owners, past = _without_each(state)
    masks = np.zeros((num_causes, features.shape[1]), bool)
    for mask, members in zip(masks, occlusion.causes.values(), strict=True):
        mask[members] = True
    hidden = np.where(masks, usual, features[:, None]).reshape(-1, features.shape[1])
    rows = np.repeat(np.arange(num_events), num_causes)
    states = {key: np.concatenate([value[rows], past[key]]) for key, value in state.items()}
    rows = np.concatenate([rows, owners])
    effects = logits[rows] - _logits(occlusion, np.concatenate([hidden, features[owners]]), days[rows], states)
    of_causes = effects[: num_events * num_causes].reshape(num_events, num_causes)
    of_past = np.split(effects[num_events * num_causes :], np.searchsorted(owners, np.arange(1, num_events)))
    found = []
    for own, before in zip(of_causes.tolist(), of_past, strict=True):
        every = [Effect(cause, -1, effect) for cause, effect in zip(causes, own, strict=True)]
        every += [Effect("past event", len(before) - i, effect) for i, effect in enumerate(before.tolist())]
        found.append(sorted((e for e in every if abs(e.effect) >= 0.01), key=lambda e: -abs(e.effect))[:most])
    return _telling(occlusion, found, features, days, state, logits)


def _telling(
    occlusion: Occlusion,
    found: list[list[Effect]],
    features: NDArray[np.float32],
    days: NDArray[np.float64],
    state: Arrays,
    logits: NDArray[np.float64],
) -> list[list[Effect]]:
    """The effects with, for each cause, the feature that does most in the cause's direction when hidden alone."""
    off = np.abs(features - occlusion.usual)
    wanted = [
        (event, place, occlusion.candidates(effect.cause, off[event]))
        for event, effects in enumerate(found)
        for place, effect in enumerate(effects)
        if effect.cause in occlusion.causes
    ]
    if not wanted:
        return found
    sizes = [len(members) for _, _, members in wanted]
    rows = np.repeat([event for event, _, _ in wanted], sizes)
    members = np.concatenate([members for _, _, members in wanted])
    variants = features[rows]
    variants[np.arange(len(rows)), members] = occlusion.usual[members]
    states = {key: value[rows] for key, value in state.items()}
    alone = np.split(logits[rows] - _logits(occlusion, variants, days[rows], states), np.cumsum(sizes)[:-1])
    for (event, place, own), effects in zip(wanted, alone, strict=True):
        effect = found[event][place]
        found[event][place] = effect._replace(place=int(own[np.argmax(effects * np.sign(effect.effect))]))
    return found


def _without_each(state: Arrays) -> tuple[NDArray[np.int64], Arrays]:
    """Each event's state once for each event that it remembers, that one forgotten, oldest first; and whose it is, [V]."""
    if "count" not in state:
        return np.zeros(0, np.int64), {key: value[:0] for key, value in state.items()}
    count = state["count"]
    owners = np.repeat(np.arange(len(count)), count)
    variants = {key: value[owners] for key, value in state.items()}
    places = np.arange(state["memory"].shape[1])
    newest_of = np.repeat(np.cumsum(count), count)
    forgotten = len(places) - (newest_of - np.arange(len(owners)))
    moved = places - ((places >= 1) & (places <= forgotten[:, None]))
    for key in ("memory", "times"):
        variants[key] = state[key][owners[:, None], moved]
    variants["count"] = (count[owners] - 1).astype(count.dtype)
    return owners, variants


def _logits(
    occlusion: Occlusion, variants: NDArray[np.float32], days: NDArray[np.float64], states: Arrays
) -> NDArray[np.float64]:
    given: Arrays = {"features": variants.astype(np.float32, copy=False), "time": days, **states}
    return occlusion.session(given)["logit"].astype(np.float64)
