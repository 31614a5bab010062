"""Requests to a running service, endpoints in turns: a real one beside one that does nothing."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.tables import Record
from core.inference.timing import Taken, quantiles

CLIENTS = (1, 8, 32)
"""That ask at a time, each over a connection that it keeps."""
Body = Callable[[str, int], bytes]
"""A client's name and the number of its request -> JSON."""
Times = Mapping[tuple[int, str], tuple[Any, float]]
"""(clients, endpoint) -> milliseconds of every request, and the seconds they took together."""


def loaded(port: int, endpoints: Sequence[str], body: Body, *, requests: int, rounds: int) -> Times:
    """
    Args:
        requests: of each endpoint and number of clients, in all rounds; a round before them warms up.
    """
    times: dict[tuple[int, str], list[float]] = {}
    spent: dict[tuple[int, str], float] = {}
    for turn in range(rounds + 1):
        for clients in CLIENTS:
            for endpoint in endpoints:
                each = max(4, requests // rounds // clients)
                found: list[list[float]] = [[] for _ in range(clients)]
                names = [f"{turn}-{clients}-{client}" for client in range(clients)]
                threads = [
                    threading.Thread(target=_client, args=(port, endpoint, body, name, each, mine))
                    for name, mine in zip(names, found, strict=True)
                ]
                begun = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                seconds = time.perf_counter() - begun
                if missing := [name for name, mine in zip(names, found, strict=True) if len(mine) < each]:
                    raise SystemExit(f"{endpoint}: requests of {len(missing)} of {clients} clients failed")
                if turn:
                    times.setdefault((clients, endpoint), []).extend(value for mine in found for value in mine)
                    spent[clients, endpoint] = spent.get((clients, endpoint), 0.0) + seconds
    return {key: (np.array(values), spent[key]) for key, values in times.items()}


def compared(taken: Times, idle: str = "noop") -> list[Record]:
    """A table's rows: each endpoint beside the idle one."""
    rows: list[Record] = []
    for (clients, endpoint), (times, seconds) in taken.items():
        rows.append(
            {
                "clients": clients,
                "endpoint": endpoint,
                **quantiles(Taken(times)),
                "requests_per_second": len(times) / seconds,
                "times_noop": float(np.median(times) / np.median(taken[clients, idle][0])),
            }
        )
    return rows


def _client(port: int, endpoint: str, body: Body, name: str, count: int, found: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in range(count):
        content = body(name, number)
        start = time.perf_counter()
        connection.request("POST", f"/{endpoint}", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{endpoint} answered {answer.status}: {text[:300]!r}")
        found.append((time.perf_counter() - start) * 1e3)
    connection.close()
