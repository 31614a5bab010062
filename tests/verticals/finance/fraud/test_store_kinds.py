"""What only the embedded store does, and only the shared one."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import redis

from core.durable.journal import Journal
from core.errors import ArtifactError, Unavailable
from tests.servers import free_port, running_redis
from tests.verticals.finance.fraud.test_store import CARD, SHOP, START, chunks, event, history
from verticals.finance.fraud.store import Event, Stale
from verticals.finance.fraud.store_embedded import EmbeddedStore
from verticals.finance.fraud.store_embedded_pasts import HISTORY, PASTS
from verticals.finance.fraud.store_redis import RedisStore


def test_a_file_has_one_owner_and_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with EmbeddedStore(path) as store:
        store.commit([event("a")], states={CARD: b"s"}, version="v1", after=0)
        store.label("a", 1, START)
        with pytest.raises(ArtifactError, match="written by process"):
            EmbeddedStore(path)
    with EmbeddedStore(path) as store:
        assert store.answers(["a"]) == {"a": (event("a").digest, event("a").answer)}
        assert store.states("v1", [CARD]) == (1, {CARD: b"s"})
        assert store.history("terminal", SHOP, 0).fraud.tolist() == [1]
        store.verify()
    with pytest.raises(ArtifactError, match=r"finance\.fraud\.store"):
        Journal(path)


def test_numbers_of_numpy_are_stored_as_numbers(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "events.db") as store:
        store.commit([Event("a", np.int64(START), np.int64(CARD), np.int64(SHOP), np.float32(2.5))])  # type: ignore[arg-type]
        past = store.history("customer", np.int64(CARD), np.int64(0))  # type: ignore[arg-type]
        assert (past.time.tolist(), past.other.tolist(), past.amount.tolist()) == ([START], [SHOP], [2.5])


def test_retention_decides_what_is_forgotten(tmp_path: Path) -> None:
    events = history(40)
    with EmbeddedStore(tmp_path / "events.db", retention=5 * 60_000_000) as store:
        store.load(chunks(events), source="file")
        kept = [e for e in events if e.time >= events[-1].time - 5 * 60_000_000]
        assert store.forget() == len(events) - len(kept)
        assert store.span() == (kept[0].time, kept[-1].time)


def test_a_past_is_read_from_its_index_alone(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "events.db") as store:
        store.load(chunks(history()), source="file")
        asked = [
            *((query, (1, 0, START, 9)) for query in HISTORY.values()),
            *((query, ("[1]", 0)) for query in PASTS.values()),
        ]
        for query, parameters in asked:
            plan = " ".join(str(row) for row in store._journal.rows(f"EXPLAIN QUERY PLAN {query}", parameters))
            assert "USING COVERING INDEX" in plan
            assert "TEMP B-TREE" not in plan


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


def test_workers_share_one_memory(redis_url: str, name: str) -> None:
    """Two clients count the same card's events in its state: none is lost and each sees the other's."""
    with (
        RedisStore(redis_url, name=name) as one,
        RedisStore(redis_url, name=name) as two,
        RedisStore(redis_url) as other,
    ):

        def work(store: RedisStore) -> None:
            for n in range(30):
                while True:
                    past = store.history("customer", CARD, 0)
                    held = store.states("v", [CARD])
                    try:
                        new = event(f"{id(store)} {n}")
                        store.commit(
                            [new],
                            states={CARD: b"%d" % (int(held.by_customer.get(CARD, b"0")) + 1)},
                            version="v",
                            after=held.upto,
                            expected={("customer", CARD): past.revision},
                        )
                        break
                    except Stale:
                        continue

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, (one, two)))
        assert one.states("v", [CARD]) == (60, {CARD: b"60"})
        assert len(two.history("customer", CARD, 0).time) == 60
        assert other.count() == 0, "another name is another store"


def test_pasts_are_trimmed_to_the_retention(redis_url: str, name: str) -> None:
    minute = 60_000_000
    with RedisStore(redis_url, retention=100 * minute, name=name) as store:
        for n in range(400):
            store.commit([event(str(n), n, shop=n % 2)])
        card = store.history("customer", CARD, 0)
        assert 101 <= len(card.time) <= 101 + 16
        assert card.time.tolist() == [event("", n).time for n in range(400 - len(card.time), 400)]
        assert store.label("399", 1, START)
        assert store.label("0", 1, START), "trimmed from the past, but remembered"
        assert np.flatnonzero(store.history("customer", CARD, 0).fraud == 1).tolist() == [len(card.time) - 1]
        assert next(iter(store.replay())).events.fraud[[0, 1, 399]].tolist() == [1, -1, 1]


def test_a_batch_of_the_services_limit_commits_at_once(redis_url: str, name: str) -> None:
    with RedisStore(redis_url, name=name) as store:
        events = [event(str(n), n // 60, card=n % 500, shop=n % 100) for n in range(10_000)]
        assert [c.seq for c in store.commit(events)] == list(range(1, 10_001))
        assert len(store.history("terminal", 5, 0).time) == 100


def test_scripts_that_the_server_forgot_are_sent_again(redis_url: str, name: str) -> None:
    with RedisStore(redis_url, name=name) as store, redis.Redis.from_url(redis_url) as client:
        store.commit([event("a")])
        client.script_flush()
        assert store.commit([event("b", 1)])[0].seq == 2


def test_a_server_without_memory_writes_nothing(tmp_path: Path, name: str) -> None:
    with running_redis(tmp_path) as url, RedisStore(url, name=name) as store, redis.Redis.from_url(url) as client:
        store.commit([event("a")])
        client.config_set("maxmemory", "1mb")
        with pytest.raises(Unavailable, match="out of memory, nothing was written"):
            store.commit([event("b", 1)])
        client.config_set("maxmemory", "0")
        assert store.commit([event("c", 1)])[0].seq == 2
        assert store.count() == 2


def test_a_server_that_went_and_came_back(tmp_path: Path, name: str) -> None:
    port = free_port()
    with running_redis(tmp_path, port) as url:
        store = RedisStore(url, name=name)
        store.commit([event("a")], states={CARD: b"s"}, version="v", after=0)
    with pytest.raises(Unavailable, match="does not answer"):
        store.commit([event("b", 1)])
    with running_redis(tmp_path, port):
        assert store.commit([event("a")])[0].new is False
        assert store.commit([event("b", 1)])[0].seq == 2
        assert store.states("v", [CARD]) == (1, {CARD: b"s"})
        store.close()
    with pytest.raises(Unavailable, match="does not answer"):
        RedisStore(url, name=name)
