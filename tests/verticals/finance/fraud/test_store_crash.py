"""Killed in the middle of a stream, again and again, the file holds every acknowledged event once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from verticals.finance.fraud.store_embedded import EmbeddedStore

NUM_EVENTS = 1500
STREAM = """
import hashlib, sys
from core.errors import DataError
from verticals.finance.fraud.store import Decision, Event
from verticals.finance.fraud.store_embedded import EmbeddedStore

with EmbeddedStore(sys.argv[1]) as store:
    print("open", flush=True)
    for n in range(int(sys.argv[2])):
        event = Event(f"t{n}", 1_000_000 * n, n % 7, n % 3, n / 9, answer=b"answer %d" % n)
        card = event.customer
        if event.id not in store.answers([event.id]):
            before = store.states("v", [card]).get(card, b"")
            state = hashlib.sha256(before + event.digest).digest()  # holds every event of the card, in order, once
            store.commit([event], states={card: state}, version="v", expected={("customer", card): store.history("customer", card, 0).revision},
                         decisions=[Decision(event.time, "v", 0.5, "allow", b"[]", event.digest)])
        if n % 5 == 0:
            store.label(f"t{n // 2}", n % 2, event.time)
        print(n, flush=True)
"""


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", STREAM, str(path), str(NUM_EVENTS)], stdout=subprocess.PIPE, text=True)


def end_state(store: EmbeddedStore) -> dict[str, Any]:
    (replay,) = store.replay(ids=True)
    return {
        "ids": replay.ids,
        "seqs": replay.seqs.tolist(),
        "labels": replay.events.fraud.tolist(),
        "states": store.states("v", range(7)),
        "versions": store.versions(),
        "decisions": [line for lines in store.decisions() for line in lines],
        "answers": store.answers(replay.ids or []),
        "pasts": [[column.tolist() for column in store.history("terminal", code, 0)[:4]] for code in range(3)],
        "totals": (store.count(), store.span(), store.last),
    }


def test_no_acknowledged_event_is_lost_and_none_counts_twice(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance, path, acknowledged, kills = random.Random(seed), tmp_path / "killed.db", -1, 0
    for _ in range(6):
        with start(path) as child:
            assert child.stdout
            assert child.stdout.readline() == "open\n", f"seed {seed}"
            time.sleep(chance.uniform(0.0, 0.12))
            child.kill()
            said = [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        kills += child.returncode == -9
        acknowledged = max([acknowledged, *said])
        with EmbeddedStore(path) as store:
            store.verify()
            ids = [id for replay in store.replay(ids=True) for id in replay.ids or []]
            assert len(ids) in (acknowledged + 1, acknowledged + 2), f"seed {seed}: at most the one in flight is more"
            assert ids == [f"t{n}" for n in range(len(ids))], f"seed {seed}"
            assert all(answer == b"answer " + id[1:].encode() for id, (_, answer) in store.answers(ids).items())
    assert kills >= 3, f"seed {seed}: the stream must be cut, not finished"
    for name in ("killed.db", "whole.db"):
        with start(tmp_path / name) as child:
            assert child.communicate(timeout=120)[0].endswith(f"{NUM_EVENTS - 1}\n")
            assert child.returncode == 0
    with EmbeddedStore(path) as killed, EmbeddedStore(tmp_path / "whole.db") as whole:
        assert end_state(killed) == end_state(whole)
        assert end_state(whole)["ids"] == [f"t{n}" for n in range(NUM_EVENTS)]
