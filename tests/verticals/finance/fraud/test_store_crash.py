"""Killed in the middle of a stream, again and again, the file holds every acknowledged event once."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from verticals.finance.fraud.store import Decision, Event
from verticals.finance.fraud.store_embedded import EmbeddedStore

NUM_EVENTS, NUM_KILLS = 300, 8
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["verticals.finance.fraud.store_embedded"])


def stream(path: Path, acknowledge: Connection) -> None:
    """Commit all events that are not there yet, as the service would, and say each number once it is durable."""
    with EmbeddedStore(path) as store:
        acknowledge.send(-1)
        for n in range(NUM_EVENTS):
            event = Event(f"t{n}", 1_000_000 * n, n % 7, n % 3, n / 9, answer=b"answer %d" % n)
            card = event.customer
            if event.id not in store.answers([event.id]):
                held = store.states("v", [card])
                before = held.by_customer.get(card, b"")
                store.commit(
                    [event],  # its state depends on every event of the card, in order: one too many would show
                    states={card: hashlib.sha256(before + event.digest).digest()},
                    version="v",
                    after=held.upto,
                    decisions=[Decision(event.time, "v", 0.5, "allow", b"[]", event.digest)],
                    expected={("customer", card): store.history("customer", card, 0).revision},
                )
            if n % 5 == 0:
                store.label(f"t{n // 2}", 1, event.time)
            acknowledge.send(n)


def start(path: Path) -> tuple[ForkServerProcess, Connection]:
    here, there = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=stream, args=(path, there))
    child.start()
    there.close()
    assert here.recv() == -1
    return child, here


def rest(acknowledged: Connection) -> list[int]:
    said = []
    try:
        while True:
            said.append(acknowledged.recv())
    except (EOFError, OSError):  # the end, or a message cut short
        return said


def end_state(path: Path) -> dict[str, Any]:
    with EmbeddedStore(path) as store:
        store.verify()
        (replay,) = store.replay(ids=True)
        return {
            "ids": replay.ids,
            "seqs": replay.seqs.tolist(),
            "labels": replay.events.fraud.tolist(),
            "changes": store.labels_since(0),
            "states": store.states("v", range(7)),
            "versions": store.versions(),
            "decisions": [line for lines in store.decisions() for line in lines],
            "answers": store.answers(replay.ids or []),
            "pasts": [[column.tolist() for column in store.history("terminal", code, 0)[:4]] for code in range(3)],
            "totals": (store.count(), store.span(), store.last),
        }


def test_no_acknowledged_event_is_lost_and_none_counts_twice(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance, path, acknowledged = random.Random(seed), tmp_path / "killed.db", -1
    for _ in range(NUM_KILLS):
        child, heard = start(path)
        further = acknowledged + chance.randrange(1, NUM_EVENTS // NUM_KILLS - 2)
        while heard.recv() < further:
            pass
        time.sleep(chance.uniform(0.0, 0.004))
        child.kill()
        child.join()
        assert child.exitcode == -9, f"seed {seed}: killed in the middle"
        acknowledged = max([further, *rest(heard)])
        with EmbeddedStore(path) as store:
            store.verify()
            ids = [id for replay in store.replay(ids=True) for id in replay.ids or []]
            assert len(ids) in (acknowledged + 1, acknowledged + 2), f"seed {seed}: at most the one in flight is more"
            assert ids == [f"t{n}" for n in range(len(ids))], f"seed {seed}"
            assert all(answer == b"answer " + id[1:].encode() for id, (_, answer) in store.answers(ids).items())
    for whole in (path, tmp_path / "whole.db"):
        child, heard = start(whole)
        assert rest(heard)[-1] == NUM_EVENTS - 1
        child.join()
        assert child.exitcode == 0
    assert end_state(path) == end_state(tmp_path / "whole.db"), f"seed {seed}"
    assert end_state(path)["ids"] == [f"t{n}" for n in range(NUM_EVENTS)]
