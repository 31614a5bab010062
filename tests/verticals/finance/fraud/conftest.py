"""Both event stores."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from verticals.finance.fraud.store import EventStore
from verticals.finance.fraud.store_embedded import EmbeddedStore
from verticals.finance.fraud.store_redis import RedisStore


@pytest.fixture(params=["embedded", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    if request.param == "embedded":
        with EmbeddedStore(tmp_path / "events.db", synchronous="normal") as embedded:
            yield embedded
    else:
        with RedisStore(request.getfixturevalue("redis_url"), name=uuid.uuid4().hex) as shared:
            yield shared
