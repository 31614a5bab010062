"""Network states by model version in Redis, and what it takes to speak with the server: `answering`, `code_bytes`.

States on their way to a version wait under a stage of their own, which goes by itself where a crash leaves it.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis

from core.errors import Unavailable
from verticals.finance.fraud.store import Stale, States
from verticals.finance.fraud.store_checks import behind, beyond, check_catch_up
from verticals.finance.fraud.store_redis_scripts import CATCH_UP

STAGE_SECONDS = 3600
"""How long a slice of states waits for the next one."""


class VersionStates:
    """The keys `versions`, `s:VERSION` and `stage:ID` of a store."""

    def __init__(self, server: Any, prefix: bytes) -> None:
        """
        Args:
            server: `redis.Redis`.
            prefix: what every key of the store begins with.
        """
        self._redis, self._prefix = server, prefix
        self._catch_up = server.register_script(CATCH_UP)

    def versions(self) -> dict[str, int]:
        with answering():
            return {name.decode(): int(upto) for name, upto in self._redis.hgetall(self._key("versions")).items()}

    def read(self, version: str, customers: Sequence[int]) -> States:
        with answering(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(self._key("versions"), version)
            if customers:
                pipe.hmget(self._key("s:", version), [code_bytes(customer) for customer in customers])
            upto, *values = pipe.execute()
        found = zip(customers, values[0] if customers else (), strict=True)
        return States(int(upto or 0), {int(code): state for code, state in found if state is not None})

    def catch_up(self, version: str, slices: Iterable[Mapping[int, bytes]], *, after: int, upto: int) -> None:
        check_catch_up(after, upto)
        stage, staged = uuid.uuid4().hex, 0
        states: Mapping[int, bytes] = {}
        try:
            for following in slices:
                if states:
                    staged = self._write(version, states, after, upto, stage, staged, complete=False)
                states = following
            self._write(version, states, after, upto, stage, staged, complete=True)
        except BaseException:
            if staged:
                with suppress(redis.RedisError):
                    self._redis.unlink(self._key("stage:", stage))
            raise

    def _write(
        self,
        version: str,
        states: Mapping[int, bytes],
        after: int,
        upto: int,
        stage: str,
        staged: int,
        *,
        complete: bool,
    ) -> int:
        """Run the script that catches up; returns how many states are on the stage."""
        arguments: list[Any] = [version, int(after), int(upto), stage, staged, STAGE_SECONDS, int(complete)]
        for customer, state in states.items():
            arguments += [code_bytes(customer), state]
        with answering():
            word, *said = self._catch_up(keys=[self._prefix], args=arguments)
        if word == b"behind":
            raise behind(version, *said)
        if word == b"beyond":
            raise beyond(upto, *said)
        if word == b"lost":
            raise Stale("the server lost states that were on their way to a version; catch up again")
        return int(said[0])

    def drop(self, version: str) -> None:
        with answering(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._key("versions"), version).unlink(self._key("s:", version)).execute()

    def _key(self, kind: str, name: str = "") -> bytes:
        return self._prefix + kind.encode() + name.encode()


@contextmanager
def answering() -> Iterator[None]:
    """Raises Unavailable where the server does not answer, or is full."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise Unavailable(
            f"the Redis server does not answer ({error}); start it or correct the URL, then send again"
        ) from error
    except redis.OutOfMemoryError as error:
        raise Unavailable(
            "the Redis server is out of memory, nothing was written; raise maxmemory or shorten the retention"
        ) from error


def code_bytes(value: int) -> bytes:
    """[8 bytes] a card or a terminal, or a time, as keys and scripts hold it."""
    return struct.pack("<q", int(value))
