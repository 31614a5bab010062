"""What stays decoded between calls: what the store would answer, in bounded memory, read once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verticals.finance.fraud import pasts as module
from verticals.finance.fraud.events import DAY
from verticals.finance.fraud.features import FeatureConfig, Features
from verticals.finance.fraud.features_event import History
from verticals.finance.fraud.pasts import Pasts, sides
from verticals.finance.fraud.store import Event, Key
from verticals.finance.fraud.store_embedded import EmbeddedStore

FEATURES = Features(FeatureConfig.of_size("small"))
NOW = 20_000 * DAY
SHOP: Key = ("terminal", 7)


def event(number: int, *, card: int = 1, minutes: float | None = None) -> Event:
    return Event(f"e{number}", NOW + round((number if minutes is None else minutes) * 60e6), card, 7, 10.0 + number)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path / "s.sqlite", synchronous="normal") as opened:
        yield opened


def read(pasts: Pasts, *keys: Key) -> Any:
    return pasts.read(keys, NOW - FEATURES.horizon)


def same(history: History, store: EmbeddedStore, key: Key, until: int) -> None:
    past = store.history(*key, 0, until=until)
    fresh = History(past.time, past.amount, past.other, past.fraud, FEATURES.memory)
    np.testing.assert_array_equal(history.time, fresh.time)
    np.testing.assert_array_equal(history.other, fresh.other)
    np.testing.assert_allclose(history.marks, fresh.marks)


def test_what_a_commit_adds_is_not_read_again(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pasts = Pasts(store, FEATURES)
    asked: list[Key] = []
    original = store.pasts
    monkeypatch.setattr(
        store, "pasts", lambda *given, **more: [asked.extend(found := original(*given, **more)), found][1]
    )
    for number in range(40):
        one = event(number, card=number % 3)
        found = read(pasts, *sides(one))
        same(found[SHOP].history(one.time, FEATURES.memory), store, SHOP, one.time)
        expected = {key: remembered.revision for key, remembered in found.items()}
        pasts.add([one], store.commit([one], expected=expected))
    assert len(asked) == 4
    assert read(pasts, SHOP)[SHOP].past.seq.tolist() == list(range(1, 41))
    store.label("e3", 1, NOW)
    assert read(pasts, SHOP)[SHOP].past.fraud[3] == 1
    assert asked[4:] == [SHOP]


def test_events_out_of_turn_stand_where_they_belong(store: EmbeddedStore) -> None:
    pasts = Pasts(store, FEATURES)
    for number, minutes in enumerate((10, 30, 20, 20, 40, 5)):
        one = event(number, card=number, minutes=minutes)
        found = read(pasts, *sides(one))
        same(found[SHOP].history(one.time, FEATURES.memory), store, SHOP, one.time)
        pasts.add([one], store.commit([one]))
    assert read(pasts, SHOP)[SHOP].past.seq.tolist() == [6, 1, 3, 4, 2, 5]
    same(found[SHOP].history(NOW + DAY, FEATURES.memory), store, SHOP, NOW + DAY)


def test_what_another_commits_is_read(store: EmbeddedStore) -> None:
    pasts = Pasts(store, FEATURES)
    assert len(read(pasts, SHOP)[SHOP]) == 0
    store.commit([event(1)])
    assert len(read(pasts, SHOP)[SHOP]) == 1
    assert read(pasts, SHOP)[SHOP].newest == event(1).time


def test_the_longest_unused_go_where_there_are_many(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 10 + 2 * module.EACH)
    pasts = Pasts(store, FEATURES)
    store.commit([event(number, card=number % 5) for number in range(20)])
    for card in range(5):
        read(pasts, ("customer", card))
    assert list(pasts._kept) == [("customer", 3), ("customer", 4)]
    assert pasts._rows == 8 + 2 * module.EACH
    assert len(read(pasts, SHOP)[SHOP]) == 20, "what a call needs stays"
    assert list(pasts._kept) == [SHOP]


def test_many_cards_of_one_event_are_bounded_too(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 20 * module.EACH)
    pasts = Pasts(store, FEATURES)
    for number in range(40):
        one = event(number, card=number)
        read(pasts, *sides(one))
        pasts.add([one], store.commit([one]))
    assert len(pasts._kept) <= 20
    assert pasts._rows == sum(module.EACH + len(kept) for kept in pasts._kept.values())


def test_a_busy_past_holds_few_events_beside_its_columns(store: EmbeddedStore) -> None:
    pasts = Pasts(store, FEATURES)
    for number in range(4 * module.MOST_ADDED):
        one = event(number)
        found = read(pasts, *sides(one))
        same(found[SHOP].history(one.time, FEATURES.memory), store, SHOP, one.time)
        pasts.add([one], store.commit([one]))
        assert len(found[SHOP]._added) <= 2 * module.MOST_ADDED
    assert len(read(pasts, SHOP)[SHOP]) == 4 * module.MOST_ADDED


def test_a_past_that_reaches_too_far_or_not_far_enough_is_read_anew(store: EmbeddedStore) -> None:
    pasts = Pasts(store, FEATURES)
    store.commit([event(1)])
    later = pasts.read([SHOP], NOW + DAY)[SHOP]
    assert len(later) == 0
    assert len(pasts.read([SHOP], NOW)[SHOP]) == 1
    assert len(pasts.read([SHOP], NOW + DAY)[SHOP]) == 1, "what reaches further serves too"
    assert len(pasts.read([SHOP], NOW + 2 * FEATURES.horizon)[SHOP]) == 0, "but not for ever"
