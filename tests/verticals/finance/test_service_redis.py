"""Two workers of the service on one Redis: no event is lost, none counted twice, a card's order holds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from core import registry
from core.inference.model import build
from pipelines.train import train
from tests.bento import Server, start, stop, wait_until_ready
from verticals.finance.fraud import APPLICATION
from verticals.finance.fraud.history import open_store
from verticals.finance.fraud.records import key_codes
from verticals.finance.fraud.requests import Transaction
from verticals.finance.fraud.store_embedded import EmbeddedStore

NAME = "finance.fraud"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def server(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(home))
        train(NAME, recipe="debug", settings=["fit.max_steps=8"], runs=str(home / "runs"), alias="production")
        environment = {"VERTICALS_FRAUD_STORE": redis_url, "VERTICALS_WORKERS": "2"}
        running = start("verticals.finance:svc", tmp_path_factory.mktemp("server"), home, environment=environment)
        try:
            wait_until_ready(running)
            yield running
        finally:
            stop(running)


def transactions(card: int, count: int) -> list[dict[str, Any]]:
    """One card's events; cards share terminals, so that workers meet there."""
    return [
        {
            "transaction_id": f"{card}-{k}",
            "time": (START + timedelta(minutes=60 * k + card)).isoformat(),
            "customer": f"card-{card}",
            "terminal": f"terminal-{(card + k) % 3}",
            "amount": 10.0 + card + k,
        }
        for k in range(count)
    ]


def test_two_workers_lose_nothing_and_count_nothing_twice(server: Server, redis_url: str, tmp_path: Path) -> None:
    """Every card is sent by two clients at once, in its order: each id must get one answer, and each event must count once."""
    cards, count = 8, 12

    def send(job: int) -> list[dict[str, Any]]:
        answers = []
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for row in transactions(job % cards, count):
                response = client.post("/score", json=row)
                assert response.status_code in (200, 409), response.text
                if response.status_code == 200:
                    answers.append(response.json())
        return answers

    with ThreadPoolExecutor(2 * cards) as threads:
        answers = [answer for many in threads.map(send, range(2 * cards)) for answer in many]
    first: dict[str, dict[str, Any]] = {}
    for answer in answers:
        assert first.setdefault(answer["transaction_id"], answer) == answer
    store = open_store(redis_url)
    assert store.count() == len(first) == cards * count
    version = registry.resolve(NAME)
    codes = [int(code) for code in key_codes([f"card-{card}" for card in range(cards)])]
    held = store.states(version.version, codes).by_customer
    store.close()
    alone = EmbeddedStore(tmp_path / "alone.sqlite", synchronous="normal")
    _, predictor = build(APPLICATION, version.path, version.version, store=alone)
    for k in range(count):
        predictor([Transaction(**transactions(card, count)[k]) for card in range(cards)])
    states = alone.states(version.version, codes).by_customer
    alone.close()
    for code in codes:
        one, other = (predictor.layout.arrays(np.frombuffer(side[code], np.uint8)[None]) for side in (held, states))
        assert one["count"] == other["count"]
        np.testing.assert_array_equal(one["times"], other["times"])
