"""What the service remembers: transactions with their answers, labels, network states, and the log of decisions.

`EventStore` is the protocol; `store_embedded.EmbeddedStore` keeps it in one file of one process, `store_redis.RedisStore`
where several workers share it. Customers and terminals are int64 codes, times int64 microseconds since 1970 UTC, labels 1 fraud,
0 genuine, -1 unknown. Events and labels are the truth; network states are a cache that replaying events rebuilds.

A transaction is scored from what was read earlier. `Past.revision` goes into `commit(expected=...)` and `States.upto` into
`commit(after=...)`, which raises `Stale` where another request was faster: read again and score again.

A version's `upto` is its place in the log of events: its states hold every event up to this number once, and none after.
It moves only in the transaction that writes the states, and only from where the writer believed it to be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from core import errors
from core.errors import DataError, VerticalsError
from verticals.finance.fraud.events import Events, Floats, Ints

Side = Literal["customer", "terminal"]
Key = tuple[Side, int]
"""A card or a terminal."""


class Conflict(errors.Conflict):
    """A transaction that contradicts what the store holds: an id with another content, or a time before the newest."""

    def __init__(self, message: str, *, transaction: str, newest: int | None = None) -> None:
        super().__init__(message, **({} if newest is None else {"newest_time": moment(newest)}))
        self.transaction = transaction
        self.newest = newest
        """Microseconds: the time of the card's newest event, where the transaction came too late; else None."""


class Stale(VerticalsError):
    """What a commit was computed from has changed, or its version is behind: catch up, read, score and commit again."""


class Event(NamedTuple):
    """A transaction as the store takes it."""

    id: str
    time: int
    customer: int
    terminal: int
    amount: float
    fraud: int = -1
    extra: bytes | None = None
    """JSON of the columns beyond these."""
    answer: bytes | None = None
    """JSON of the first answer; None in loaded history."""

    @property
    def digest(self) -> bytes:
        """[16 bytes] hash of the transaction's content: not of its id, label or answer."""
        packed = np.array((self.time, self.customer, self.terminal, self.amount + 0.0), CONTENT).tobytes()
        return hashlib.blake2b(packed + (self.extra or b""), digest_size=16).digest()


CONTENT = np.dtype([("time", "<i8"), ("customer", "<i8"), ("terminal", "<i8"), ("amount", "<f8")])


class Chunk(NamedTuple):
    """Rows of a history file, in time order."""

    ids: Sequence[str]
    events: Events
    extras: Sequence[bytes | None] | None = None

    def rows(self, index: slice | NDArray[np.integer]) -> Chunk:
        """The rows at these places."""
        places = range(len(self.ids))[index] if isinstance(index, slice) else index.tolist()
        extras = None if self.extras is None else [self.extras[place] for place in places]
        return Chunk([self.ids[place] for place in places], self.events.rows(index), extras)

    def digests(self) -> list[bytes]:
        """`Event.digest` of every row."""
        packed = np.empty(len(self.ids), CONTENT)
        for name in ("time", "customer", "terminal"):
            packed[name] = getattr(self.events, name)
        packed["amount"] = self.events.amount + 0.0
        content, width = packed.tobytes(), CONTENT.itemsize
        extras = self.extras or [None] * len(self.ids)
        blake2b = hashlib.blake2b
        return [
            blake2b(content[start : start + width] + (extra or b""), digest_size=16).digest()
            for start, extra in zip(range(0, len(content), width), extras, strict=True)
        ]


class Past(NamedTuple):
    """What is remembered of a card or a terminal, oldest first; ties in the order of arrival."""

    time: Ints
    amount: Floats
    other: Ints
    """Code of the terminal (a card's past) or of the card (a terminal's)."""
    fraud: NDArray[np.int8]
    """Labels as known now."""
    seq: Ints
    """Number of each event in the order of arrival."""
    revision: int
    """Changes with every event and label of this card or terminal: give it back to `commit(expected=...)`."""


class States(NamedTuple):
    """Network states of a version, all of one moment."""

    upto: int
    """Number of the newest event in them, 0 for a version without any: give it back as `after`."""
    by_customer: dict[int, bytes]
    """Of those customers that have one."""


class Decision(NamedTuple):
    """A line of the decision log: nothing in it names the card."""

    time: int
    version: str
    score: float
    decision: str
    reasons: bytes
    """JSON."""
    digest: bytes
    """Hash of the input."""


class Committed(NamedTuple):
    """What became of one event of a commit."""

    seq: int
    answer: bytes | None
    """The first answer this id was given; None where it came as loaded history."""
    new: bool
    """False where the id was there before: nothing was changed."""
    revision: int = 0
    """Of the card's and the terminal's past with this event; 0 where nothing was changed."""


class LabelChange(NamedTuple):
    """A confirmed label, or its reversal."""

    seq: int
    """Number of the change."""
    id: str
    """The transaction."""
    time: int
    """The transaction's time."""
    customer: int
    terminal: int
    before: int
    fraud: int
    known_at: int
    """Event time at which the change became known."""


class Replay(NamedTuple):
    """A chunk of events in the order of arrival."""

    seqs: Ints
    events: Events
    """With labels as known now. Sorted by arrival: each card's times do not fall, the chunk's may."""
    extras: list[bytes | None]
    ids: list[str] | None
    """Where asked for."""


class Loaded(NamedTuple):
    """What `load` did with the rows of a source."""

    rows: int = 0
    """Rows given."""
    inserted: int = 0
    resumed: int = 0
    """Rows passed over because an earlier run of the same source had committed them."""
    known: int = 0
    """Rows whose id was there with the same content."""
    relabelled: int = 0
    """Of those known, how many bring a label other than the store's. They are not changed: send them as feedback."""
    expired: int = 0
    """Rows older than what `forget` dropped."""

    def plus(self, other: Loaded) -> Loaded:
        """The counts of both together."""
        return Loaded(*(own + more for own, more in zip(self, other, strict=True)))


class EventStore(Protocol):
    """Memory of the fraud service. All methods may be called from several threads.

    To answer: `held = states(version, cards)`; where `held.upto < last`, `catch_up` and begin again; read the histories,
    score, `commit(events, states=..., version=version, after=held.upto, expected=...)`; where it is `Stale`, begin again.
    """

    def answers(self, ids: Sequence[str]) -> dict[str, tuple[bytes, bytes | None]]:
        """(digest, answer) of those transactions that are known."""

    def newest(self, customers: Sequence[int]) -> dict[int, int]:
        """Time of each card's newest event, of those that have one."""

    def history(
        self, side: Side, code: int, since: int, *, until: int | None = None, before: int | None = None
    ) -> Past:
        """Events of one card or terminal with since <= time (<= until), and number < before."""

    def pasts(self, keys: Sequence[Key], since: int, *, known: Mapping[Key, int] | None = None) -> dict[Key, Past]:
        """Events with since <= time of many cards and terminals at once.

        Args:
            known: revisions of pasts that the caller still has: those that have not changed are left out.
        """

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
        """Durably append events, network states and decisions: all of them, or nothing.

        Events that were there before change nothing. Events committed without a version leave every version behind.

        Args:
            events: each id once; a card's events in time order.
            states: by customer, the state of every card of these events after them, of `version`.
            version: its states must be complete, and remain so.
            decisions: none, or one for each event; those of events that were there before are not logged again.
            expected: revision by (side, code) of the pasts this was computed from.
            after: `States.upto` of the states that this was computed from; needed with a version.

        Raises:
            Conflict: an id was there with another content, or an event is older than its card's newest.
            Stale: a past has changed since it was read, one of a card's events was there before and another not, a card
                has an event numbered above `after`, or the version's `upto` is not the newest event's number.
            ValueError: the arguments contradict each other, or the state of a new event's card is missing.
        """

    def label(self, id: str, fraud: int, at: int) -> bool:
        """Take a confirmed label (1, 0) or its reversal, known at event time `at`; False where it was so already.

        Raises:
            DataError: the transaction is unknown, or forgotten.
        """

    def labels_since(self, seq: int) -> list[LabelChange]:
        """Label changes whose number is greater than `seq`, in order."""

    def states(self, version: str, customers: Sequence[int]) -> States:
        """Network states of a version, and up to which event they go."""

    def catch_up(self, version: str, slices: Iterable[Mapping[int, bytes]], *, after: int, upto: int) -> None:
        """Move a version from one event number to a later one; nobody sees, and no crash leaves, a part of it.

        Args:
            slices: states by customer, of every card with an event numbered above `after` and up to `upto`; made from
                `states` whose `upto` was `after` too. At most about 10,000 in a slice.
            after: where the version is; 0 for one that has to be warmed from nothing. Above 0 the slices are put in
                place by one transaction that others wait for: take steps of at most about 10,000 events.

        Raises:
            Stale: the version is not at `after` any more, so another worker has moved it: look where it is now.
            ValueError: `upto` is not above `after`.
        """

    def versions(self) -> dict[str, int]:
        """Model versions that have states, and each one's `upto`."""

    def drop_states(self, version: str) -> None:
        """Forget a version's states."""

    def decisions(self, after: int = 0, *, size: int = 1000) -> Iterator[list[tuple[int, Decision]]]:
        """The decision log in order, numbered, from after a number on, in chunks."""

    def replay(self, after: int = 0, *, size: int = 100_000, ids: bool = False) -> Iterator[Replay]:
        """Events whose number is greater than `after`, in the order of arrival, in chunks."""

    @property
    def last(self) -> int:
        """Number of the newest event, 0 if there never was one."""

    def count(self) -> int:
        """Events remembered."""

    def span(self) -> tuple[int, int] | None:
        """Times of the oldest and the newest event remembered."""

    def load(self, chunks: Iterable[Chunk], *, source: str, first: int = 0) -> Loaded:
        """Fill the store with history. Started again after a crash, it goes on where the last commit ended.

        Args:
            chunks: the source's rows from row `first` on, sorted by time.
            source: fingerprint of the source (file and mapping): rows committed are remembered under it.

        Raises:
            Conflict: an id is there with another content, or a row is older than its card's newest event. The chunks
                before stay loaded.
            DataError: rows that are not sorted by time.
        """

    def loaded(self, source: str) -> int:
        """Rows of this source that are committed: `load` may be given `first` up to this number."""

    def forget(self, before: int | None = None, *, keep_ids: int = 0) -> int:
        """Drop events older than `before`; returns how many. Older events are refused from then on.

        Args:
            before: microseconds; left out, the newest event's time less the store's retention.
            keep_ids: microseconds before `before` for which ids still get their first answer.

        Raises:
            ValueError: neither a time nor a retention is given.
        """

    def close(self) -> None: ...


def moment(time: int) -> str:
    """A time for a message: ISO 8601, UTC."""
    return datetime.fromtimestamp(time / 1e6, UTC).isoformat(timespec="milliseconds")


def reused(id: str) -> Conflict:
    return Conflict(
        f"transaction {id!r} was sent before with another content; use a new id, or send the same", transaction=id
    )


def late(id: str, time: int, newest: int) -> Conflict:
    return Conflict(
        f"transaction {id!r} is of {moment(time)}, older than its card's newest event at {moment(newest)}; "
        "send a card's transactions in time order (sort files by time), and load history before live events",
        transaction=id,
        newest=newest,
    )


def unknown(id: str) -> DataError:
    return DataError(
        f"transaction {id!r} is not known, or forgotten; send feedback for transactions that were scored or loaded"
    )
