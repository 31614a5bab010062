"""Brings a version's network states up to the store's newest event: a new version from nothing, one that others left behind.

Legend: N event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from verticals.finance.fraud import store as stores
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.features_event import History
from verticals.finance.fraud.pasts import NONE, joined
from verticals.finance.fraud.scorer import SIDES, Scorer, slices
from verticals.finance.fraud.states import CardStates

FEW, MAX_STEP = 24, 10_000
"""Events that are caught up one by one, each from the histories that it met, and the most in one transaction."""

Progress = Callable[[int, int], None]
"""Called with the events done and the events in all."""


def catch_up(
    scorer: Scorer, store: stores.EventStore, version: str, progress: Progress = lambda done, total: None
) -> int:
    """Moves a version's states over what others have committed by now; returns how many events those were.

    What comes while it works is left: under load one that went after it might never end.

    Raises:
        Stale: another worker moved the version meanwhile.
    """
    last = store.last  # before the version: one that moves along with the events is never behind then
    done, total = store.versions().get(version, 0), 0
    while last > done:
        upto = min(last, done + MAX_STEP) if done else last
        replays = list(_until(store.replay(after=done), upto))
        count = sum(len(chunk.seqs) for chunk in replays)
        states = CardStates(scorer.layout)
        if done and count:
            cards = np.unique(np.concatenate([chunk.events.customer for chunk in replays])).tolist()
            held = store.states(version, cards)
            if held.upto != done:
                raise stores.Stale(f"another worker has moved version {version}")
            states.put(held.by_customer)
        if done and count <= FEW:
            _one_by_one(scorer, store, states, replays)
        elif done:
            _together(scorer, store, states, replays, progress)
        elif count:
            _from_nothing(scorer, states, replays, progress)
        items = list(states.items())
        parts = (dict(items[part]) for part in slices(len(items), 10_000))
        store.catch_up(version, parts, after=done, upto=upto)
        done, total = upto, total + count
    return total


def _one_by_one(scorer: Scorer, store: stores.EventStore, states: CardStates, replays: list[stores.Replay]) -> None:
    for chunk in replays:
        events, rows = chunk.events, []
        for place, seq in enumerate(chunk.seqs.tolist()):
            time, amount = int(events.time[place]), float(events.amount[place])
            card = _history(scorer, store, "customer", int(events.customer[place]), time, before=seq)
            terminal = _history(scorer, store, "terminal", int(events.terminal[place]), time, before=seq)
            raw = scorer.features.event(time, amount, int(events.terminal[place]), card, terminal)
            rows.append(scorer.scaled(raw[:, None], scorer.extra([chunk.extras[place]]))[0])
        states.advance(scorer.session, events.customer, events.time, np.stack(rows))


def _history(
    scorer: Scorer, store: stores.EventStore, side: stores.Side, code: int, time: int, *, before: int
) -> History:
    past = store.history(side, code, time - scorer.features.horizon, until=time, before=before)
    return History(past.time, past.amount, past.other, past.fraud, scorer.features.memory)


def _together(
    scorer: Scorer, store: stores.EventStore, states: CardStates, replays: list[stores.Replay], progress: Progress
) -> None:
    """As a table, among the pasts of its cards and terminals: what a terminal got late counts from its time on."""
    seqs, events, extras = _in_time_order(replays)
    keys: list[stores.Key] = [("customer", code) for code in np.unique(events.customer).tolist()]
    keys += [("terminal", code) for code in np.unique(events.terminal).tolist()]
    found, others = store.pasts(keys, int(events.time[0]) - scorer.features.horizon), {}
    for side in SIDES:
        past, numbers = joined(side, found)
        others[side] = past.rows(numbers < seqs.min())
    features = scorer.scaled(scorer.among(others, events), scorer.extra(extras))
    states.advance(scorer.session, events.customer, events.time, features)
    progress(len(events), len(events))


def _from_nothing(scorer: Scorer, states: CardStates, replays: list[stores.Replay], progress: Progress) -> None:
    _, events, extras = _in_time_order(replays)
    context = NONE
    for part in slices(len(events), scorer.rows_at_once):
        _, context = scorer.advance(states, context, events.rows(part), scorer.extra(extras[part]))
        progress(part.stop, len(events))


def _in_time_order(replays: list[stores.Replay]) -> tuple[NDArray[np.int64], Events, list[bytes | None]]:
    """Numbers, events and further columns; ties in the order of arrival."""
    seqs = np.concatenate([chunk.seqs for chunk in replays])
    events = Events.joined([chunk.events for chunk in replays])
    extras = [extra for chunk in replays for extra in chunk.extras]
    order = np.argsort(events.time, kind="stable")
    return seqs[order], events.rows(order), [extras[row] for row in order.tolist()]


def _until(replays: Iterator[stores.Replay], upto: int) -> Iterator[stores.Replay]:
    """The replayed events up to and with number `upto`."""
    for chunk in replays:
        kept = int(np.searchsorted(chunk.seqs, upto, side="right"))
        if kept == len(chunk.seqs):
            yield chunk
        else:
            if kept:
                events = chunk.events.rows(slice(0, kept))
                yield chunk._replace(seqs=chunk.seqs[:kept], events=events, extras=chunk.extras[:kept])
            return
