"""No version's network states count an event twice or miss one, whoever commits, catches up or dies in between.

A card's state here is the list of its events, so that it shows what it counted.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.verticals.finance.fraud.test_store import CARD, OTHER_CARD, chunks, event, history
from tests.verticals.finance.fraud.test_store_crash import PROCESSES
from verticals.finance.fraud.store import EventStore, Stale
from verticals.finance.fraud.store_embedded import EmbeddedStore
from verticals.finance.fraud.store_redis import RedisStore

CARDS = (CARD, OTHER_CARD, 3)


def truth(store: EventStore, upto: int, after: int = 0) -> dict[int, bytes]:
    """The states that counting each event once gives."""
    states: dict[int, bytes] = {}
    for replay in store.replay(after, ids=True):
        for seq, card, id in zip(replay.seqs.tolist(), replay.events.customer.tolist(), replay.ids or [], strict=True):
            if seq <= upto:
                states[card] = states.get(card, b"") + id.encode() + b" "
    return states


def check(store: EventStore, *versions: str) -> None:
    """Every version holds exactly what its number says."""
    for version in versions:
        held = store.states(version, CARDS)
        counted = truth(store, held.upto)
        assert held.by_customer == {card: counted[card] for card in CARDS if card in counted}, version


Steps = Generator[None, None, None]


def catch_up(store: EventStore, version: str) -> Steps:
    """One attempt, as the predictor does it; stops between all calls and slices."""
    done, upto = store.versions().get(version, 0), store.last
    yield
    if done == upto:
        return
    missed = truth(store, upto, done)
    yield
    held = store.states(version, list(missed))
    yield
    if held.upto != done:
        return
    states = {card: held.by_customer.get(card, b"") + ids for card, ids in missed.items()}
    try:
        yield from sliced(store, version, states, done, upto)
    except Stale:
        yield


def sliced(store: EventStore, version: str, states: Mapping[int, bytes], done: int, upto: int) -> Steps:
    """`catch_up` on a thread of its own that goes on, slice by slice, only while this generator is asked to."""
    go, paused = threading.Semaphore(0), threading.Semaphore(0)

    def slices() -> Iterator[dict[int, bytes]]:
        for card, state in states.items():
            paused.release()
            go.acquire()
            yield {card: state}

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(store.catch_up, version, slices(), after=done, upto=upto)
        future.add_done_callback(lambda _: paused.release())
        paused.acquire()
        while not future.done():
            yield
            go.release()
            paused.acquire()
        future.result()


def score(store: EventStore, version: str | None, id: str, card: int) -> Steps:
    """Commits one event, as often as needed, with its state where there is a version."""
    while True:
        if version is None:
            store.commit([event(id, 60, card=card)])
            return
        held = store.states(version, [card])
        yield
        if held.upto < store.last:
            yield from catch_up(store, version)
            continue
        yield
        try:
            states = {card: held.by_customer.get(card, b"") + id.encode() + b" "}
            store.commit([event(id, 60, card=card)], states=states, version=version, after=held.upto)
            return
        except Stale:
            yield


def worker(store: EventStore, name: str, version: str | None, cards: list[int]) -> Steps:
    for n, card in enumerate(cards):
        yield from score(store, version, f"{name}{n}", CARDS[card])
        yield


WORK = st.lists(st.integers(0, 2), max_size=4)


@pytest.mark.parametrize("kind", ["embedded", "redis"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(work=st.tuples(WORK, WORK, WORK, WORK), turns=st.lists(st.integers(0, 3), max_size=80))
def test_any_order_of_steps_keeps_states_and_number_together(
    kind: str, work: Any, turns: list[int], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two workers of version new, one of version old, one without any: their calls and slices in any order."""
    if kind == "redis":
        store: EventStore = RedisStore(request.getfixturevalue("redis_url"), name=uuid.uuid4().hex)
    else:
        store = EmbeddedStore(tmp_path_factory.mktemp("store") / "events.db", synchronous="normal")
    with closing(store):
        workers = [worker(store, "abcd"[n], ("new", "new", "old", None)[n], cards) for n, cards in enumerate(work)]
        for turn in turns:
            next(workers[turn], None)
            check(store, "new", "old")
        for steps in workers:
            for _ in steps:
                pass
        check(store, "new", "old")
        for version in ("new", "old"):
            for _ in catch_up(store, version):
                pass
        assert set(store.versions().values()) <= {store.last}
        check(store, "new", "old")
        assert store.count() == sum(map(len, work))


def test_threads_of_two_versions_answer_at_once(store: EventStore) -> None:
    """While one version takes over from the other: two threads of each, on the same three cards."""

    def work(thread: int) -> None:
        for _ in worker(store, "abcd"[thread], ("new", "old")[thread % 2], [n % 3 for n in range(8)]):
            pass

    store.load(chunks(history(20)), source="file")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.count() == 20 + 4 * 8
    for version in ("new", "old"):
        for _ in catch_up(store, version):
            pass
    assert store.versions() == {"new": store.last, "old": store.last}
    check(store, "new", "old")


def test_states_by_version(store: EventStore) -> None:
    assert store.states("v1", []) == store.states("v1", [CARD]) == (0, {})
    both = {CARD: b"\0a", OTHER_CARD: b""}
    store.commit([event("a"), event("b", card=OTHER_CARD)], states=both, version="v1", after=0)
    assert store.states("v1", [OTHER_CARD, CARD, 5]) == (2, both)
    assert store.states("v1", []) == (2, {})
    assert store.states("v2", [CARD]) == (0, {})
    with pytest.raises(Stale, match="states of version 'v2' go up to event 0, not 2; catch up"):
        store.commit([event("c", 1, card=5)], states={5: b"c"}, version="v2", after=0)
    store.catch_up("v2", [both], after=0, upto=2)
    store.commit([event("c", 1)], states={CARD: b"c"}, version="v2", after=2)
    assert store.versions() == {"v1": 2, "v2": 3}
    with pytest.raises(Stale, match="'v1' go up to event 2, not 3"):
        store.commit([event("d", 2, card=5)], states={5: b"d"}, version="v1", after=2)
    store.commit([event("d", 2)])
    assert store.versions() == {"v1": 2, "v2": 3}, "an event of no version leaves all behind"
    store.drop_states("v2")
    assert store.versions() == {"v1": 2}
    assert store.states("v2", [CARD]) == (0, {})
    assert store.states("v1", [CARD]) == (2, {CARD: b"\0a"})


def test_a_state_read_before_another_worker_caught_up_is_stale(store: EventStore) -> None:
    store.commit([event("a")], states={CARD: b"a"}, version="v", after=0)
    held = store.states("v", [CARD])
    store.commit([event("b")])
    store.catch_up("v", [{CARD: b"ab"}], after=1, upto=2)
    revision = store.history("customer", CARD, 0).revision
    for version in ("v", None):  # the version is complete again and the past is the newest: only the state is old
        with pytest.raises(Stale, match="'c' has an event that its state, read up to event 1, misses"):
            store.commit(
                [event("c")],
                states={CARD: b"ac"} if version else None,
                version=version,
                after=held.upto,
                expected={("customer", CARD): revision},
            )
    new = event("d", card=5)
    assert store.commit([new], states={5: b"d"}, version="v", after=held.upto)[0].seq == 3, "another card's"
    assert store.states("v", [CARD, 5]) == (3, {CARD: b"ab", 5: b"d"})


def test_an_event_that_was_there_does_not_move_its_cards_state(store: EventStore) -> None:
    store.commit([event("a")], states={CARD: b"a"}, version="v", after=0)
    done = store.commit([event("a"), event("b", card=5)], states={CARD: b"aa", 5: b"b"}, version="v", after=1)
    assert [c.new for c in done] == [False, True]
    assert store.states("v", [CARD, 5]) == (2, {CARD: b"a", 5: b"b"})


def test_catching_up_takes_all_slices_or_none(store: EventStore) -> None:
    store.load(chunks(history(30)), source="file")
    first, second = {n: b"20 %d" % n for n in range(5)}, {n: b"30 %d" % n for n in range(3)}

    def looked_at(states: dict[int, bytes], upto: int) -> Iterator[dict[int, bytes]]:
        for card, state in states.items():
            assert store.versions().get("v", 0) == upto
            yield {card: state}
            yield {}

    def broken(upto: int) -> Iterator[dict[int, bytes]]:
        yield from looked_at({n: b"wrong" for n in range(5)}, upto)
        raise OSError("the replay broke")

    for states, after, upto in ((first, 0, 20), (second, 20, 30)):
        before = store.states("v", range(5))
        with pytest.raises(OSError, match="the replay broke"):
            store.catch_up("v", broken(after), after=after, upto=upto)
        with pytest.raises(Stale, match="newest event is 30, which is before 31"):
            store.catch_up("v", looked_at(states, after), after=after, upto=31)
        assert store.states("v", range(5)) == before
        store.catch_up("v", looked_at(states, after), after=after, upto=upto)
        with pytest.raises(Stale, match=f"go up to event {upto}, not {after}"):
            store.catch_up("v", [{1: b"again"}, {2: b"again"}], after=after, upto=upto)
        assert store.states("v", range(5)) == (upto, {**before.by_customer, **states})
    store.commit([event("last", 60, card=4)])
    store.catch_up("v", [], after=30, upto=31)
    assert store.states("v", range(5)) == (31, {**first, **second})
    assert leftovers(store) == 0


def test_a_step_of_thousands_of_cards(store: EventStore) -> None:
    store.load(chunks(history(20)), source="file")
    right: dict[int, bytes] = {}
    for after, cards in ((0, range(5000)), (10, range(2000, 6000))):
        states = {card: b"%d %d" % (after, card) for card in cards}
        right |= states
        parts = [cards[n : n + 1500] for n in range(0, len(cards), 1500)]
        store.catch_up("v", ({card: states[card] for card in part} for part in parts), after=after, upto=after + 10)
    assert store.states("v", range(7000)) == (20, right)
    assert leftovers(store) == 0


def test_of_two_that_warm_at_once_the_first_wins(store: EventStore) -> None:
    store.load(chunks(history(20)), source="file")
    reached = []

    def slow() -> Iterator[dict[int, bytes]]:
        for n in range(5):
            if n == 3:
                store.catch_up("v", ({m: b"20"} for m in range(5)), after=0, upto=20)
            reached.append(n)
            yield {n: b"10"}

    with pytest.raises(Stale, match="go up to event 20, not 0"):
        store.catch_up("v", slow(), after=0, upto=10)
    assert reached == [0, 1, 2, 3], "told at the next slice, not after all of them"
    assert store.states("v", range(5)) == (20, {n: b"20" for n in range(5)})
    assert leftovers(store) == 0


def leftovers(store: EventStore) -> int:
    """States that belong to no version."""
    if isinstance(store, EmbeddedStore):
        query = "SELECT count(*) FROM states WHERE version NOT IN (SELECT version FROM versions WHERE name IS NOT NULL)"
        return int(store._journal.rows(query)[0][0])
    assert isinstance(store, RedisStore)
    return len(store._redis.keys(store._key("stage:", b"*")))


def die_while_warming(open_store: partial[EventStore], after: int) -> None:
    def slices() -> Iterator[dict[int, bytes]]:
        yield {0: b"wrong"}
        yield {1: b"wrong"}
        yield {2: b"wrong"}
        os._exit(9)

    open_store().catch_up("v", slices(), after=after, upto=20)


@pytest.mark.parametrize("kind", ["embedded", "redis"])
@pytest.mark.parametrize("after", [0, 10])
def test_killed_while_warming(kind: str, after: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    open_store: partial[EventStore] = partial(EmbeddedStore, tmp_path / "events.db")
    if kind == "redis":
        open_store = partial(RedisStore, request.getfixturevalue("redis_url"), name=uuid.uuid4().hex)
    with closing(open_store()) as store:
        store.load(chunks(history(20)), source="file")
        if after:
            store.catch_up("v", [{n: b"right"} for n in range(5)], after=0, upto=after)
        before = store.states("v", range(5))
    child = PROCESSES.Process(target=die_while_warming, args=(open_store, after))
    child.start()
    child.join()
    assert child.exitcode == 9
    with closing(open_store()) as store:
        assert store.states("v", range(5)) == before
        if isinstance(store, RedisStore):
            (stage,) = store._redis.keys(store._key("stage:", b"*"))
            assert 0 < store._redis.ttl(stage) <= 3600, "goes by itself"
        else:
            assert leftovers(store) == 0
        store.catch_up("v", [{n: b"20"} for n in range(5)], after=after, upto=20)
        assert store.states("v", range(5)) == (20, {n: b"20" for n in range(5)})


def test_states_that_the_server_lost_on_their_way_are_missed(redis_url: str) -> None:
    name = uuid.uuid4().hex
    with RedisStore(redis_url, name=name) as store, redis.Redis.from_url(redis_url) as client:
        store.load(chunks(history(20)), source="file")

        def slices() -> Iterator[dict[int, bytes]]:
            for n in range(5):
                if n == 4:
                    client.delete(*client.keys(f"{{{name}}}:stage:*"))
                yield {n: b"s"}

        with pytest.raises(Stale, match="the server lost states"):
            store.catch_up("v", slices(), after=0, upto=20)
        assert store.versions() == {}
        store.catch_up("v", ({n: b"s"} for n in range(5)), after=0, upto=20)
        (key,) = client.keys(f"{{{name}}}:s:*")
        assert client.ttl(key) == -1, "in place it stays"
