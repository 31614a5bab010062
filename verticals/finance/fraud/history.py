"""The service's store from outside: where it is, and filling it with the past of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.aliases import alias_file
from core.errors import ConfigError
from core.training.log import progress
from verticals.finance.fraud.config import FraudConfig
from verticals.finance.fraud.records import ordered, read_events
from verticals.finance.fraud.store import Chunk, EventStore

STORE = "VERTICALS_FRAUD_STORE"
"""Environment variable: a file, or redis://HOST:PORT/DB where several workers share the store."""


def store_url(url: str | None = None) -> str:
    """Where the store is: as given, else the environment's, else a file beside the model registry."""
    return url or os.environ.get(STORE) or str(alias_file().parent / "finance.fraud.sqlite")


def open_store(url: str | None = None) -> EventStore:
    """Opens the store for writing.

    Raises:
        ConfigError: a URL of an unknown kind, or Redis without its package.
        ArtifactError: the file is damaged, or another process writes to it.
    """
    place = store_url(url)
    if place.startswith(("redis://", "rediss://", "unix://")):
        try:
            from verticals.finance.fraud.store_redis import RedisStore
        except ImportError:
            raise ConfigError(
                f"{place.split('://')[0]}:// needs the package redis; install verticals[finance]"
            ) from None
        return RedisStore(place)
    if "://" in place:
        raise ConfigError(f"store {place.split('://')[0]}://...; allowed are a file path and redis://HOST:PORT/DB")
    from verticals.finance.fraud.store_embedded import EmbeddedStore

    return EmbeddedStore(Path(place).expanduser())


def load_history(config: FraudConfig, source: str, store: str | None = None) -> dict[str, Any]:
    """Puts a file's transactions and labels into the store; started again after a crash, it goes on where it ended.

    Raises:
        DataError: a fault in the file (nothing is loaded), or a row older than its card's newest event.
    """
    opened = open_store(store)
    try:
        with (
            ordered(config.data, source) as rows,
            progress() as bar,
        ):
            task = bar.add_task("loading history", total=rows.rows, note="")

            def chunks() -> Iterator[Chunk]:
                done = 0
                for ids, events, extra in read_events(rows):
                    names = list(extra)
                    extras = (
                        [
                            json.dumps(dict(zip(names, values, strict=True)), sort_keys=True).encode()
                            for values in zip(*(extra[name].tolist() for name in names), strict=True)
                        ]
                        if names
                        else None
                    )
                    yield Chunk(ids.tolist(), events, extras)
                    done += len(events)
                    bar.update(task, completed=done)

            loaded = opened.load(chunks(), source=rows.fingerprint()["sha256"])
    finally:
        opened.close()
    counts = loaded._asdict()
    return {
        **counts,
        "store": store_url(store).split("@")[-1],
        "text": "\n".join(f"{key:<12}{value}" for key, value in counts.items()),
    }
