"""The event store that several workers share: packed records in Redis, and one Lua script that commits all or nothing.

How durable an acknowledged commit is, the server decides: `appendonly yes` with `appendfsync always` for every event,
`everysec` where a power cut may lose the last second. Keys below `{name}:`, binary, integers little-endian:

    i:ID        seq, time, customer, terminal, digest, label, answered, answer     one transaction
    c:CODE      revision, newest time, then 33 bytes an event in order of arrival  a card's past; t:CODE a terminal's
    log         stream, id SEQ-0                                                   events in the order of arrival
    fraud       hash seq -> label, where a label changed                           labels: list of changes
    s:VERSION   hash customer -> network state                                     versions: hash name -> upto
    stage:ID    the same, on its way to a version
    decisions   stream, id NUMBER-0                                                sources, totals, clock
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import redis

from verticals.finance.fraud.events import Events
from verticals.finance.fraud.store import (
    Chunk,
    Committed,
    Decision,
    Event,
    Key,
    LabelChange,
    Loaded,
    Past,
    Replay,
    Side,
    Stale,
    States,
    late,
    reused,
    unknown,
)
from verticals.finance.fraud.store_checks import (
    behind,
    check_commit,
    forget_before,
    fresh_events,
    moved,
    pending,
    stateless,
)
from verticals.finance.fraud.store_redis_scripts import COMMIT, DROP, LABEL, TRIM
from verticals.finance.fraud.store_redis_states import VersionStates, answering, code_bytes

HEADER = 16
"""Bytes in front of a past: revision and newest time."""
RECORD = np.dtype([("time", "<i8"), ("other", "<i8"), ("amount", "<f8"), ("seq", "<i8"), ("fraud", "i1")])
"""One event of a past; the label is stored as label + 1."""
KEPT = struct.Struct("<qqqq16sbb")
"""What stands in front of the answer under i:ID."""
LOGGED = np.dtype([("time", "<i8"), ("customer", "<i8"), ("terminal", "<i8"), ("amount", "<f8"), ("fraud", "i1")])
LINE = struct.Struct("<qd16s")
CHANGE = struct.Struct("<qqqbbq")
READ_KEYS = 1_000
"""Pasts read by one command."""
LOAD_ROWS = 2_000
"""Rows loaded by one script: the server answers nobody else meanwhile."""


class RedisStore:
    """`EventStore` in a Redis server (7 or newer) that several workers share."""

    def __init__(self, url: str, retention: int | None = None, *, name: str = "fraud") -> None:
        """
        Args:
            url: `redis://`, `rediss://` or `unix://`, with password and database number where needed.
            retention: microseconds of a card's or terminal's past that are kept; older ones are trimmed as events
                come. Not less than the features' horizon.
            name: keys begin with `{name}:`: another name is another store.

        Raises:
            Unavailable: the server does not answer.
        """
        self.retention = retention
        self._prefix = f"{{{name}}}:".encode()
        self._redis: Any = redis.Redis.from_url(url)
        self._states = VersionStates(self._redis, self._prefix)
        self._commit, self._label, self._trim, self._drop = map(
            self._redis.register_script, (COMMIT, LABEL, TRIM, DROP)
        )
        with answering():
            self._redis.ping()

    def answers(self, ids: Sequence[str]) -> dict[str, tuple[bytes, bytes | None]]:
        with answering():
            values = self._redis.mget([self._key("i:", id.encode()) for id in ids]) if ids else []
        found = {}
        for id, value in zip(ids, values, strict=True):
            if value is not None:
                *_, digest, _, answered = KEPT.unpack_from(value)
                found[id] = digest, value[KEPT.size :] if answered else None
        return found

    def newest(self, customers: Sequence[int]) -> dict[int, int]:
        values = self._each([("customer", customer) for customer in customers], 8, HEADER - 1)
        return {
            int(customer): struct.unpack("<q", value)[0]
            for customer, value in zip(customers, values, strict=True)
            if value
        }

    def history(
        self, side: Side, code: int, since: int, *, until: int | None = None, before: int | None = None
    ) -> Past:
        with answering():
            value = self._redis.get(self._past(side, code))
        return _past(value, since, until=until, before=before)

    def pasts(self, keys: Sequence[Key], since: int, *, known: Mapping[Key, int] | None = None) -> dict[Key, Past]:
        held = [key for key in keys if key in (known or {})]
        revisions = self._each(held, 0, 7)
        same = {
            key
            for key, value in zip(held, revisions, strict=True)
            if (struct.unpack("<q", value)[0] if value else 0) == (known or {})[key]
        }
        found: dict[Key, Past] = {}
        wanted = [key for key in keys if key not in same]
        for start in range(0, len(wanted), READ_KEYS):
            part = wanted[start : start + READ_KEYS]
            with answering():
                values = self._redis.mget([self._past(*key) for key in part])
            found.update((key, _past(value, since)) for key, value in zip(part, values, strict=True))
        return found

    def _each(self, keys: Sequence[Key], first: int, last: int) -> list[bytes]:
        """These bytes of many pasts."""
        if not keys:
            return []
        with answering(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.getrange(self._past(*key), first, last)
            values: list[bytes] = pipe.execute()
        return values

    def commit(
        self,
        events: Sequence[Event],
        *,
        states: Mapping[int, bytes] | None = None,
        version: str | None = None,
        decisions: Sequence[Decision] = (),
        expected: Mapping[Key, int] | None = None,
        after: int | None = None,
    ) -> list[Committed]:
        check_commit(events, states, version, decisions, after)
        arguments: list[Any] = [0, "", 0, _optional(version), "" if after is None else int(after)]
        arguments += [len(events), len(states or {}), len(decisions), len(expected or {})]
        for event in events:
            arguments += _event(event, event.digest)
        for customer, state in (states or {}).items():
            arguments += [code_bytes(customer), state]
        for line in decisions:
            arguments += [LINE.pack(line.time, line.score, line.digest), line.version, line.decision, line.reasons]
        for (side, code), revision in (expected or {}).items():
            arguments += [side[0].encode() + b":" + code_bytes(code), int(revision)]
        word, *results = self._call(arguments)
        if word == b"mixed":  # an id is known: tell a repetition from a conflict, in the words of the embedded store
            fresh_events(events, self.answers([event.id for event in events]))
            raise Stale("a transaction was committed and forgotten meanwhile")
        if word == b"moved":
            raise moved(results[0].decode(), after or 0)
        if word == b"stateless":
            raise stateless(results[0].decode())
        if word == b"behind":
            raise behind(version or "", *results)
        return [
            Committed(result, event.answer, True, results[1])
            if isinstance(result, int)
            else Committed(result[0], result[1][1:] if result[1][0] else None, False)
            for event, result in zip(events, results[0], strict=True)
        ]

    def _call(self, arguments: list[Any]) -> list[Any]:
        """Run the commit script; returns what it says where that is not a refusal which loads meet too."""
        with answering():
            word, *results = self._commit(
                keys=[self._prefix], args=["" if self.retention is None else self.retention, *arguments]
            )
        if word == b"late":
            id, time, newest = results
            raise late(id.decode(), time, newest)
        if word == b"stale":
            raise Stale("a card's or terminal's past has changed since it was read")
        if word == b"reused":
            raise reused(results[0].decode())
        return [word, *results]

    def label(self, id: str, fraud: int, at: int) -> bool:
        with answering():
            word = self._label(keys=[self._prefix], args=[id, bytes([fraud + 1]), code_bytes(at)])
        if word == b"unknown":
            raise unknown(id)
        return bool(word == b"changed")

    def labels_since(self, seq: int) -> list[LabelChange]:
        with answering():
            values = self._redis.lrange(self._key("labels"), seq, -1)
        floor, changes = self._total("floor"), []
        for number, value in enumerate(values, seq + 1):
            time, customer, terminal, before, fraud, known_at = CHANGE.unpack_from(value)
            if floor is None or time >= floor:
                id = value[CHANGE.size :].decode()
                changes.append(LabelChange(number, id, time, customer, terminal, before - 1, fraud - 1, known_at))
        return changes

    def states(self, version: str, customers: Sequence[int]) -> States:
        return self._states.read(version, customers)

    def catch_up(self, version: str, slices: Iterable[Mapping[int, bytes]], *, after: int, upto: int) -> None:
        self._states.catch_up(version, slices, after=after, upto=upto)

    def versions(self) -> dict[str, int]:
        return self._states.versions()

    def drop_states(self, version: str) -> None:
        self._states.drop(version)

    def decisions(self, after: int = 0, *, size: int = 1000) -> Iterator[list[tuple[int, Decision]]]:
        for rows in self._stream("decisions", after, size):
            lines = []
            for number, fields in rows:
                time, score, digest = LINE.unpack(fields[b"l"])
                line = Decision(time, fields[b"v"].decode(), score, fields[b"d"].decode(), fields[b"r"], digest)
                lines.append((number, line))
            yield lines

    def _stream(self, name: str, after: int, size: int) -> Iterator[list[tuple[int, dict[bytes, bytes]]]]:
        while True:
            with answering():
                rows = self._redis.xrange(self._key(name), min=f"({after}-{2**63}", count=size)
            if not rows:
                return
            numbered = [(int(id.split(b"-")[0]), fields) for id, fields in rows]
            yield numbered
            after = numbered[-1][0]

    def replay(self, after: int = 0, *, size: int = 100_000, ids: bool = False) -> Iterator[Replay]:
        for rows in self._stream("log", after, size):
            with answering():
                changed = self._redis.hmget(self._key("fraud"), [seq for seq, _ in rows])
            logged = np.frombuffer(b"".join(fields[b"e"] for _, fields in rows), LOGGED)
            fraud = logged["fraud"] - 1
            for place, label in enumerate(changed):
                if label is not None:
                    fraud[place] = label[0] - 1
            columns = [np.ascontiguousarray(logged[name]) for name in ("time", "customer", "terminal", "amount")]
            yield Replay(
                np.array([seq for seq, _ in rows], np.int64),
                Events(columns[0], columns[1], columns[2], columns[3], fraud.astype(np.int8)),
                [fields.get(b"x") for _, fields in rows],
                [fields[b"i"].decode() for _, fields in rows] if ids else None,
            )

    @property
    def last(self) -> int:
        return self._total("last") or 0

    def count(self) -> int:
        return self._total("count") or 0

    def span(self) -> tuple[int, int] | None:
        with answering():
            oldest, newest = self._redis.hmget(self._key("totals"), ["oldest", "newest"])
        return None if oldest is None else (int(oldest), int(newest))

    def _total(self, name: str) -> int | None:
        with answering():
            value = self._redis.hget(self._key("totals"), name)
        return None if value is None else int(value)

    def load(self, chunks: Iterable[Chunk], *, source: str, first: int = 0) -> Loaded:
        total = Loaded()
        for row, chunk, passed in pending(chunks, first, self.loaded(source)):
            total = total.plus(Loaded(rows=passed, resumed=passed))
            for start in range(0, len(chunk.ids), LOAD_ROWS):
                part = chunk.rows(slice(start, start + LOAD_ROWS))
                done = row - len(chunk.ids) + start + len(part.ids)
                arguments: list[Any] = [1, source, done, "", "", len(part.ids), 0, 0, 0]
                columns = (column.tolist() for column in part.events.columns)
                extras = part.extras or [None] * len(part.ids)
                for *fields, digest in zip(part.ids, *columns, extras, part.digests(), strict=True):
                    arguments += _event(Event(*fields), digest)
                total = total.plus(Loaded(len(part.ids), *self._call(arguments)[1]))
        return total

    def loaded(self, source: str) -> int:
        with answering():
            rows = self._redis.hget(self._key("sources"), source)
        return int(rows or 0)

    def forget(self, before: int | None = None, *, keep_ids: int = 0) -> int:
        before = forget_before(before, self.retention, self.span())
        dropped, oldest = 0, ""
        with answering():
            self._drop(keys=[self._prefix], args=[before, ""])
        for replay in self._stream("log", 0, LOAD_ROWS):
            arguments: list[Any] = []
            for seq, fields in replay:
                time = struct.unpack_from("<q", fields[b"e"])[0]
                if time < before:
                    arguments += [seq, fields[b"i"], max(0, (keep_ids - (before - time)) // 1000)]
                else:
                    oldest = str(min(time, int(oldest or time)))
            with answering():
                dropped += self._drop(keys=[self._prefix], args=[before, oldest, *arguments])
        for side in ("c:", "t:"):
            with answering():
                for key in self._redis.scan_iter(match=self._key(side, b"*"), count=1000):
                    self._trim(keys=[key, self._key("clock")], args=[before])
        return dropped

    def close(self) -> None:
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _key(self, kind: str, name: bytes = b"") -> bytes:
        return self._prefix + kind.encode() + name

    def _past(self, side: Side, code: int) -> bytes:
        return self._key(side[0] + ":", code_bytes(code))


def _past(value: bytes | None, since: int, *, until: int | None = None, before: int | None = None) -> Past:
    """What is written under a card's or terminal's key, from a time on, up to a time, before a number."""
    given = value or bytes(HEADER)
    rows = np.frombuffer(given, RECORD, offset=HEADER)
    wanted = rows["time"] >= since
    for name, bound in (("time", until), ("seq", None if before is None else before - 1)):
        if bound is not None:
            wanted &= rows[name] <= bound
    rows = rows[wanted]
    rows = rows[np.argsort(rows["time"], kind="stable")]
    time, amount, other, seq = (np.ascontiguousarray(rows[name]) for name in ("time", "amount", "other", "seq"))
    return Past(time, amount, other, (rows["fraud"] - 1).astype(np.int8), seq, struct.unpack_from("<q", given)[0])


def _optional(value: str | bytes | None) -> bytes:
    """A byte that says whether there is a value, then the value."""
    return b"\0" if value is None else b"\1" + (value.encode() if isinstance(value, str) else value)


def _event(event: Event, digest: bytes) -> list[Any]:
    content = struct.pack("<qqqd", event.time, event.customer, event.terminal, event.amount)
    return [event.id, content, digest, bytes([event.fraud + 1]), _optional(event.answer), _optional(event.extra)]
