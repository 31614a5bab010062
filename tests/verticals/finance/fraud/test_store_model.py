"""Any series of calls leaves a store as it leaves lists and dictionaries."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import DataError
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.store import Chunk, Conflict, Decision, Event, EventStore, Stale
from verticals.finance.fraud.store_embedded import EmbeddedStore
from verticals.finance.fraud.store_redis import RedisStore


@dataclass
class Model:
    """The store as plain lists: (seq, event with its current label)."""

    events: list[tuple[int, Event]] = field(default_factory=list)
    kept: dict[str, Event] = field(default_factory=dict)
    labels: list[tuple[str, int, int, int]] = field(default_factory=list)
    states: dict[int, bytes] = field(default_factory=dict)
    """Of version v: the ids of the card's events, each as often as it was counted."""
    upto: int = 0
    logged: list[str] = field(default_factory=list)
    last: int = 0
    floor: int = -1

    def commit(self, events: list[Event], *, loading: bool) -> str:
        known = [e for e in events if e.id in self.kept]
        if any(self.kept[e.id].digest != e.digest for e in known):
            return "Conflict"
        fresh = [e for e in events if e.id not in self.kept]
        if not loading and {e.customer for e in fresh} & {e.customer for e in known}:
            return "Stale"
        newest = {c: max((e.time for _, e in self.events if e.customer == c), default=-1) for c in (0, 1, 2)}
        for event in fresh:
            if event.time < max(newest[event.customer], self.floor):
                return "Conflict"
            newest[event.customer] = event.time
        if fresh and not loading and self.upto != self.last:
            return "Stale"
        for event in fresh:
            self.last += 1
            self.events.append((self.last, event))
            self.kept[event.id] = event
            if not loading:
                self.states[event.customer] = self.states.get(event.customer, b"") + event.id.encode()
                self.logged.append(event.id)
                self.upto = self.last
        return "done"

    def catch_up(self) -> int:
        """Number of events that version v missed and still can have."""
        missed = [event for seq, event in self.events if seq > self.upto]
        for event in missed:
            self.states[event.customer] = self.states.get(event.customer, b"") + event.id.encode()
        self.upto = self.last
        return len(missed)

    def label(self, id: str, fraud: int, at: int) -> str:
        for place, (seq, event) in enumerate(self.events):
            if event.id == id:
                if event.fraud == fraud:
                    return "same"
                self.events[place] = seq, event._replace(fraud=fraud)
                self.labels.append((id, event.fraud, fraud, at))
                return "changed"
        return "DataError"

    def forget(self, before: int) -> int:
        self.floor = max(self.floor, before)
        gone = [e.id for _, e in self.events if e.time < before]
        self.events = [(seq, e) for seq, e in self.events if e.time >= before]
        self.labels = [change for change in self.labels if change[0] not in gone]
        for id in gone:
            del self.kept[id]
        return len(gone)


EVENT = st.builds(
    Event,
    id=st.sampled_from([f"id{n}" for n in range(12)]),
    time=st.integers(0, 6),
    customer=st.integers(0, 2),
    terminal=st.integers(0, 1),
    amount=st.sampled_from([1.0, 1.0, 2.5]),
    fraud=st.sampled_from([-1, 0, 1]),
    extra=st.sampled_from([None, b"{}"]),
    answer=st.none(),
)
BATCH = st.lists(EVENT, max_size=3, unique_by=lambda e: e.id)
CALL = st.one_of(
    st.tuples(st.just("commit"), BATCH),
    st.tuples(st.just("load"), BATCH.map(lambda events: sorted(events, key=lambda e: e.time))),
    st.tuples(st.just("label"), st.tuples(EVENT.map(lambda e: e.id), st.integers(0, 1), st.integers(0, 9))),
    st.tuples(st.just("forget"), st.integers(0, 3)),
    st.tuples(st.just("catch up"), st.none()),
)


def catch_up(store: EventStore, version: str) -> int:
    """As the predictor does, with a slice for each card; returns how many events were missing."""
    done, upto = store.versions().get(version, 0), store.last
    if done == upto:
        return 0
    missed = [
        (customer, id.encode())
        for replay in store.replay(done, ids=True)
        for customer, id in zip(replay.events.customer.tolist(), replay.ids or [], strict=True)
    ]
    states = store.states(version, sorted({customer for customer, _ in missed})).by_customer
    for customer, id in missed:
        states[customer] = states.get(customer, b"") + id
    changed = {customer for customer, _ in missed}
    store.catch_up(version, ({customer: states[customer]} for customer in changed), after=done, upto=upto)
    return len(missed)


def run(store: EventStore, model: Model, number: int, name: str, given: Any) -> tuple[Any, Any]:
    """(what the store said, what the model said)"""
    try:
        if name == "commit":
            lines = [Decision(e.time, e.id, e.amount, "allow", b"[]", e.digest) for e in given]
            upto, states = store.states("v", sorted({e.customer for e in given}))
            for e in given:  # as a worker that has not looked whether an id is known
                states[e.customer] = states.get(e.customer, b"") + e.id.encode()
            said = model.commit(given, loading=False)
            store.commit(given, states=states, version="v", decisions=lines, after=upto)
            return "done", said
        if name == "catch up":
            return catch_up(store, "v"), model.catch_up()
        if name == "load":
            fine = [e for e in given if e.time >= model.floor]
            said = model.commit(fine, loading=True)
            columns = [
                np.array([getattr(e, name) for e in given], np.int64) for name in ("time", "customer", "terminal")
            ]
            labels = np.array([e.fraud for e in given], np.int8)
            events = Events(*columns, np.array([e.amount for e in given], np.float64), labels)
            chunk = Chunk([e.id for e in given], events, [e.extra for e in given])
            done = store.load([chunk], source=str(number))
            return (done.rows, done.expired), (len(given), len(given) - len(fine)) if said == "done" else said
        if name == "label":
            said = model.label(*given)
            return "changed" if store.label(*given) else "same", said
        count = model.forget(given)
        return store.forget(given), count
    except Conflict:
        return "Conflict", said
    except Stale:
        return "Stale", said
    except DataError:
        return "DataError", said


def check(store: EventStore, model: Model) -> None:
    events = [event for _, event in model.events]
    assert (store.count(), store.last) == (len(events), model.last)
    times = [event.time for event in events]
    assert store.span() == ((min(times), max(times)) if times else None)
    ids, seqs, labels = [], [], []
    for replay in store.replay(size=2, ids=True):
        ids += replay.ids or []
        seqs += replay.seqs.tolist()
        labels += replay.events.fraud.tolist()
    assert list(zip(seqs, ids, labels, strict=True)) == [(seq, e.id, e.fraud) for seq, e in model.events]
    for side, other in (("customer", "terminal"), ("terminal", "customer")):
        for code in (0, 1, 2):
            rows = sorted((e for e in events if getattr(e, side) == code and 1 <= e.time <= 5), key=lambda e: e.time)
            past = store.history(side, code, 1, until=5)  # type: ignore[arg-type]
            early = [(e.time, e.amount) for seq, e in model.events if getattr(e, side) == code and seq < 3]
            first = store.history(side, code, 0, before=3)  # type: ignore[arg-type]
            assert list(zip(first.time.tolist(), first.amount.tolist(), strict=True)) == sorted(
                early, key=lambda e: e[0]
            )
            assert past.time.tolist() == [e.time for e in rows]
            assert past.other.tolist() == [getattr(e, other) for e in rows]
            assert past.amount.tolist() == [e.amount for e in rows]
            assert past.fraud.tolist() == [e.fraud for e in rows]
    assert [(c.id, c.before, c.fraud, c.known_at) for c in store.labels_since(0)] == model.labels
    assert store.answers([f"id{n}" for n in range(12)]) == {id: (e.digest, e.answer) for id, e in model.kept.items()}
    assert store.states("v", [0, 1, 2]) == (model.upto, model.states)
    assert [line.version for lines in store.decisions() for _, line in lines] == model.logged


@pytest.mark.parametrize("kind", ["embedded", "redis"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(CALL, max_size=14))
def test_a_store_equals_its_model(
    kind: str, calls: list[tuple[str, Any]], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = Model()
    if kind == "redis":
        with RedisStore(request.getfixturevalue("redis_url"), name=uuid.uuid4().hex) as store:
            for number, (name, given) in enumerate(calls):
                said, expected = run(store, model, number, name, given)
                assert said == expected
            check(store, model)
        return
    path = tmp_path_factory.mktemp("store") / "events.db"
    for number, (name, given) in enumerate(calls):
        with EmbeddedStore(path, synchronous="normal") as file:  # reopened each time
            said, expected = run(file, model, number, name, given)
            assert said == expected
    with EmbeddedStore(path) as file:
        check(file, model)
