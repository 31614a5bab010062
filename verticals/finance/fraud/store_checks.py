"""What both event stores refuse, in the same words, and how both go through a source's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from core.errors import DataError
from verticals.finance.fraud.store import Chunk, Decision, Event, Stale, reused


def behind(version: str, upto: int, place: int) -> Stale:
    return Stale(
        f"the states of version {version!r} go up to event {upto}, not {place}; catch up, then read and score again"
    )


def moved(id: str, after: int) -> Stale:
    return Stale(
        f"the card of transaction {id!r} has an event that its state, read up to event {after}, misses; read and score again"
    )


def stateless(id: str) -> ValueError:
    return ValueError(f"no state for the card of transaction {id!r}; a version's commit holds one for every card")


def beyond(upto: int, last: int) -> Stale:
    return Stale(f"the store's newest event is {last}, which is before {upto}; replay it again")


def check_catch_up(after: int, upto: int) -> None:
    """Raises ValueError where a version would not move forward."""
    if not 0 <= after < upto:
        raise ValueError(f"a version moves forward, not from event {after} to {upto}")


def check_commit(
    events: Sequence[Event],
    states: Mapping[int, bytes] | None,
    version: str | None,
    decisions: Sequence[Decision],
    after: int | None,
) -> None:
    """Raises ValueError where the arguments of a commit contradict each other."""
    if decisions and len(decisions) != len(events):
        raise ValueError(f"{len(decisions)} decisions for {len(events)} events; give none, or one for each")
    if states and version is None:
        raise ValueError("states without a version")
    if version is not None and after is None:
        raise ValueError("a version without `after`; give the number up to which its states were read")
    if not (states or {}).keys() <= {event.customer for event in events}:
        raise ValueError("states of cards without an event; to bring a version forward there is catch_up")
    if len({event.id for event in events}) != len(events):
        raise ValueError("a transaction id comes twice in one commit; answer the second like the first")


def fresh_events(events: Sequence[Event], known: Mapping[str, tuple[bytes, bytes | None]]) -> list[Event]:
    """Those that are not known.

    Raises:
        Conflict: an id is known with another content.
        Stale: one of a card's events is known and another is not: the others were computed without it.
    """
    seen: set[int] = set()
    fresh = []
    for event in events:
        if event.id not in known:
            fresh.append(event)
        elif known[event.id][0] != event.digest:
            raise reused(event.id)
        else:
            seen.add(event.customer)
    for event in fresh:
        if event.customer in seen:
            raise Stale(f"another request committed events of the card of transaction {event.id!r}")
    return fresh


def forget_before(before: int | None, retention: int | None, span: tuple[int, int] | None) -> int:
    """Microseconds before which `forget` drops: what it was told, else the newest event's time less the retention.

    Raises:
        ValueError: neither is given.
    """
    if before is not None:
        return before
    if retention is None:
        raise ValueError("say before which time to forget, or make the store with a retention")
    return span[1] - retention if span else 0


def pending(chunks: Iterable[Chunk], first: int, done: int) -> Iterator[tuple[int, Chunk, int]]:
    """(number of the row after the chunk, the rows not yet committed, rows passed over) for each chunk.

    Raises:
        DataError: times fall.
    """
    if first > done:
        raise ValueError(f"rows from {first} on, but only {done} are committed; start at {done} or earlier")
    row, newest = first, None
    for chunk in chunks:
        time = chunk.events.time
        fall = np.flatnonzero(np.diff(time) < 0)
        if len(fall) or (newest is not None and len(time) and time[0] < newest):
            place = int(fall[0]) + 1 if len(fall) else 0
            raise DataError(
                f"row {row + place} (transaction {chunk.ids[place]!r}) is older than the row before; sort by time"
            )
        skip = min(max(done - row, 0), len(time))
        row += len(time)
        newest = int(time[-1]) if len(time) else newest
        yield row, chunk.rows(slice(skip, None)), skip
