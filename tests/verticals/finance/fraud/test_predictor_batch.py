"""A batch is answered as its transactions would be one by one, on both stores, and a fault leaves nothing of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.verticals.finance.fraud.model import Trained, trained
from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.explain import Effect
from verticals.finance.fraud.records import key_code, key_codes
from verticals.finance.fraud.requests import Decision, Feedback, Transaction
from verticals.finance.fraud.store import Chunk, Conflict, EventStore
from verticals.finance.fraud.store_embedded import EmbeddedStore

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
LABELLED = 400
"""Transactions of the past whose label is told: the delay of some of them ends within the batch."""


@pytest.fixture(scope="module")
def model() -> Trained:
    return trained()


@pytest.fixture(params=["embedded", "redis"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], EventStore]]:
    """Makes empty stores of one kind."""
    opened: list[EventStore] = []

    def make() -> EventStore:
        if request.param == "embedded":
            opened.append(EmbeddedStore(tmp_path / f"{len(opened)}.sqlite", synchronous="normal"))
        else:
            from verticals.finance.fraud.store_redis import RedisStore

            opened.append(RedisStore(request.getfixturevalue("redis_url"), name=uuid.uuid4().hex))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def past(rng: np.random.Generator, rows: int = 1500) -> Chunk:
    """Twenty days up to `START` in which 25 cards meet 12 terminals, at times that often coincide."""
    origin = round(START.timestamp() * 1e6)
    time = origin - np.sort(rng.integers(0, 20 * 48, rows))[::-1] * DAY // 48
    names = [f"c{k}" for k in rng.integers(0, 25, rows)], [f"t{k}" for k in rng.integers(0, 12, rows)]
    amount, label = np.round(rng.gamma(2, 25, rows), 2), np.full(rows, -1, np.int8)
    return Chunk([f"past-{k}" for k in range(rows)], Events(time, *map(key_codes, names), amount, label))


def batch(rng: np.random.Generator, rows: int = 300) -> list[Transaction]:
    """Four days after `START`, in no order: known and new cards, ties in time, two ids sent twice, three events too old."""
    made = [
        Transaction(
            transaction_id=f"new-{k}",
            time=START + timedelta(minutes=30 * int(rng.integers(0, 4 * 48))),
            customer=f"c{rng.integers(0, 32)}",
            terminal=f"t{rng.integers(0, 14)}",
            amount=float(np.round(rng.gamma(2, 25), 2)),
        )
        for k in range(rows)
    ]
    made.insert(40, made[10])
    made.append(made[20].model_copy(update={"amount": 1e5}))
    made += [
        made[k].model_copy(
            update={"transaction_id": f"late-{k}", "time": START - timedelta(days=19), "customer": f"c{k}"}
        )
        for k in range(3)
    ]
    return made


def told(model: Trained, store: EventStore, chunk: Chunk) -> Any:
    """A predictor on a store with a past, of whose labels some are known."""
    store.load([chunk], source="past")
    predictor = model.predictor(store)
    predictor.warm()
    for k in range(LABELLED):
        predictor.feedback(Feedback(transaction_id=f"past-{2 * k}", fraud=k % 7 == 0))
    return predictor


def test_a_batch_is_what_its_transactions_are_one_by_one(model: Trained, new_store: Callable[[], EventStore]) -> None:
    rng = np.random.default_rng(0)
    chunk, sent = past(rng), batch(rng)
    stores = new_store(), new_store()
    singly, together = (told(model, store, chunk) for store in stores)
    for predictor in (singly, together):  # this model forgets: have past events named all the same
        predictor._effects = lambda rows, *given: {
            row: [Effect("past event", back, given[-1][row]) for back in (1, 2, 5)] for row in rows.tolist()
        }
    order = sorted(range(len(sent)), key=lambda place: sent[place].time)
    one: dict[int, Any] = {place: singly([sent[place]])[0] for place in order}
    many = together(sent)
    refused = [place for place, answer in enumerate(many) if isinstance(answer, Conflict)]
    assert [sent[place].transaction_id for place in refused] == ["new-20", "late-0", "late-1", "late-2"]
    for place, answer in enumerate(many):
        if place in refused:
            assert (str(answer), answer.newest) == (str(one[place]), one[place].newest)
            continue
        assert isinstance(answer, Decision)
        assert answer.score == pytest.approx(one[place].score, rel=1e-5)
        assert answer.model_copy(update={"score": 0, "reasons": []}) == one[place].model_copy(
            update={"score": 0, "reasons": []}
        )
        for reason, other in zip(answer.reasons, one[place].reasons, strict=True):
            assert (reason.time, reason.amount) == (other.time, other.amount)
            assert reason.effect == pytest.approx(other.effect, abs=1e-4)
    times = {reason.time for answer in many if isinstance(answer, Decision) for reason in answer.reasons} - {None}
    assert min(times) < START < max(times)  # past events of the store and of the batch itself
    assert [store.count() for store in stores] == [1800, 1800]
    cards = [key_code(f"c{k}") for k in range(32)]
    held = [store.states("v1", cards).by_customer for store in stores]
    assert held[0].keys() == held[1].keys()
    arrays = [
        together.layout.arrays(np.frombuffer(b"".join(side[card] for card in held[0]), np.uint8).reshape(len(side), -1))
        for side in held
    ]
    for name, array in arrays[0].items():
        np.testing.assert_allclose(array, arrays[1][name], rtol=1e-4, atol=1e-5)


def test_labels_and_late_comers_between_calls_are_seen(model: Trained, new_store: Callable[[], EventStore]) -> None:
    """What stays decoded between calls is what a predictor would read that has never been asked before."""
    rng = np.random.default_rng(1)
    chunk, sent = past(rng), sorted(batch(rng)[:300], key=lambda one: one.time)
    stores = new_store(), new_store()
    kept, anew = told(model, stores[0], chunk), told(model, stores[1], chunk)
    shuffled = sorted(sent, key=lambda one: (int(one.customer[1:]) % 3, one.time))  # terminals get events out of turn
    for first in range(0, len(shuffled), 15):
        size = (1, 2, 15)[first // 15 % 3]
        part = shuffled[first : first + size]
        answers = [answer.score for answer in kept(part, explain="alerts")]
        expected = [answer.score for answer in model.predictor(anew.store)(part, explain="alerts")]
        np.testing.assert_allclose(answers, expected, rtol=1e-6)
        for predictor in (kept, anew):
            predictor.feedback(Feedback(transaction_id=f"past-{first + 1}", fraud=True))


@pytest.mark.parametrize("fault", ["commit", "features", "network"])
def test_a_fault_leaves_nothing_of_a_batch(
    model: Trained, new_store: Callable[[], EventStore], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    rng = np.random.default_rng(2)
    store = new_store()
    predictor = told(model, store, past(rng))
    sent = batch(rng)
    count, last = store.count(), store.last

    def fail(*given: Any, **options: Any) -> Any:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        place: dict[str, tuple[object, str]] = {
            "commit": (store, "commit"),
            "features": (type(predictor.features), "table"),
            "network": (predictor, "session"),
        }
        patch.setattr(*place[fault], fail)
        with pytest.raises(OSError, match="no space"):
            predictor(sent)
    assert (store.count(), store.last, store.answers([one.transaction_id for one in sent])) == (count, last, {})
    assert predictor.warm() == 0
    answers = predictor(sent)
    fresh = new_store()
    expected = told(model, fresh, past(np.random.default_rng(2)))(sent)
    for answer, other in zip(answers, expected, strict=True):
        assert type(answer) is type(other)
        if isinstance(answer, Decision):
            assert answer.score == pytest.approx(other.score, rel=1e-6)
