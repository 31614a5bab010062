"""From a transaction to an answer: features as of now, one step of the network, calibration, threshold, reasons.

`FraudPredictor` answers single requests against a store that remembers (`__call__`), and whole files without one
(`stream`): the same features, session and finish, vectorised. The two give the same scores, and a test says so.

Legend: N event, F feature.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Estimate, Session
from core.data.pipeline import DataPipeline
from core.errors import ArtifactError, DataError, VerticalsError
from core.evaluation.calibration import Calibration
from verticals.finance.fraud import store as stores
from verticals.finance.fraud.config import FraudConfig
from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.explain import Effect, Occlusion
from verticals.finance.fraud.features import Features
from verticals.finance.fraud.features_event import History
from verticals.finance.fraud.records import key_code
from verticals.finance.fraud.requests import Decision, Feedback, Reason, Transaction
from verticals.finance.fraud.states import CardStates, StateLayout

MAX_ATTEMPTS = 8
"""Times that a request is scored anew because another worker changed its card or terminal meanwhile."""

FEW, MAX_STEP = 256, 10_000
"""Events that are caught up one by one rather than by a replay of the whole store, and the most in one transaction."""


class Scores(NamedTuple):
    """Answers to a chunk of a file. N event."""

    ids: NDArray[Any]
    events: Events
    logit: NDArray[np.float64]
    score: NDArray[np.float64]
    alert: NDArray[np.bool_]


class _Prepared(NamedTuple):
    """A transaction that is ready for the network."""

    event: stores.Event
    raw: NDArray[np.float64]
    features: NDArray[np.float32]
    earlier: int
    """Events of the card that this call remembers from before it."""
    cold: bool


class FraudPredictor:
    """Scores transactions as of their time. One at a time inside: calls from several threads queue up."""

    def __init__(
        self,
        config: FraudConfig,
        constants: Mapping[str, Any],
        session: Session,
        *,
        version: str = "unregistered",
        store: stores.EventStore | None = None,
    ) -> None:
        """
        Args:
            constants: what `fraud.constants` made: columns, pipeline, usual values, calibration, threshold.
            store: what remembers cards between requests; only `stream` works without one.

        Raises:
            ArtifactError: the constants are not those of this configuration.
        """
        self.config, self.session, self.version, self.store = config, session, version, store
        self.inputs, self.outputs = session.inputs, session.outputs
        self.features = Features(config.features)
        self.layout = StateLayout(session)
        if list(constants.get("features", ())) != list(self.features.names):
            raise ArtifactError(
                f"the model's features are not those that its configuration defines ({len(constants.get('features', ()))} and {len(self.features)}); it was made by other code: train again"
            )
        self.pipeline = DataPipeline.from_record(constants["pipeline"])
        self.columns: list[str] = list(self.pipeline.feature_names)
        self.calibration = Calibration.from_record(constants["calibration"])
        self.threshold = float(constants["threshold"])
        """Score from which on a transaction is alerted, unless a call says otherwise."""
        self.usual = np.asarray(constants["usual"], np.float32)
        self.usual_raw = np.asarray(constants["usual_raw"], np.float64)
        self.occlusion = Occlusion(session, self.columns, self.usual)
        self._lock = threading.Lock()

    def estimate(self, requests: Sequence[Transaction]) -> Estimate:
        """Rough cost of a call, from the width of the features: memory of the batch and time on one core."""
        per_event = 8 * len(self.features) + 4 * len(self.columns) + 2 * self.layout.nbytes
        return Estimate(per_event * len(requests), 2e-3 * len(requests) + 1e-6 * len(self.columns) * len(requests))

    # -- one request -------------------------------------------------------------------------------------------------

    def __call__(
        self,
        requests: Sequence[Transaction],
        *,
        explain: Literal["all", "alerts"] = "all",
        threshold: float | None = None,
    ) -> list[Decision | VerticalsError]:
        """Answers each transaction, in the order given; they are scored in time order.

        An id that was answered before gets its first answer. Every new event is in the store, durably, before this
        returns; where that fails nothing is.

        Returns:
            A Decision each, or the error that this one transaction met (`Conflict`, `DataError`).
        """
        if self.store is None:
            raise ArtifactError("this predictor has no store, which single requests need; give one, or use stream()")
        chosen = self.threshold if threshold is None else threshold
        with self._lock:
            for _ in range(MAX_ATTEMPTS - 1):
                try:
                    self._catch_up(self.store)
                    return self._answer(self.store, requests, explain, chosen)
                except stores.Stale:
                    continue
            return self._answer(self.store, requests, explain, chosen, ahead=False)

    def _answer(
        self,
        store: stores.EventStore,
        requests: Sequence[Transaction],
        explain: str,
        threshold: float,
        *,
        ahead: bool = True,
    ) -> list[Decision | VerticalsError]:
        """One attempt. `ahead` says that this version's states go along; without it, they are caught up later."""
        results: list[Decision | VerticalsError | None] = [None] * len(requests)
        events: list[stores.Event | None] = [None] * len(requests)
        for place, request in enumerate(requests):
            try:
                events[place] = self._event(request)
            except DataError as error:
                results[place] = error
        known = store.answers([event.id for event in events if event])
        first: dict[str, int] = {}
        prepared: dict[int, _Prepared] = {}
        cards = list({event.customer for event in events if event and event.id not in known})
        held = store.states(self.version, cards) if cards else stores.States(0, {})  # before any history is read
        if cards and ahead and held.upto < store.last:
            raise stores.Stale(f"version {self.version} has been left behind")
        pasts = _Pasts(store, self.features)
        for place in sorted((i for i, event in enumerate(events) if event), key=lambda i: (events[i].time, i)):  # type: ignore[union-attr]
            event = events[place]
            assert event is not None
            try:
                if event.id in known:
                    results[place] = self._first_answer(event, *known[event.id])
                elif event.id in first:
                    if events[first[event.id]].digest != event.digest:  # type: ignore[union-attr]
                        raise stores.reused(event.id)
                else:
                    prepared[place] = self._prepare(pasts, event, requests[place].extra)
                    first[event.id] = place
            except DataError as error:
                results[place] = error
        if prepared:
            for place, decision in zip(
                prepared,
                self._score(store, list(prepared.values()), pasts, held, explain, threshold, ahead),
                strict=True,
            ):
                results[place] = decision
        for place, event in enumerate(events):
            if results[place] is None and event is not None:
                results[place] = results[first[event.id]]
        return [result for result in results if result is not None]

    def _event(self, request: Transaction) -> stores.Event:
        wanted = {*self.config.data.numeric, *self.config.data.categorical}
        if set(request.extra) != wanted:
            raise DataError(
                f"transaction {request.transaction_id!r}: extra holds {sorted(request.extra)}; this model needs {sorted(wanted)}"
            )
        for name in self.config.data.numeric:
            if isinstance(request.extra[name], str):
                raise DataError(f"transaction {request.transaction_id!r}: extra.{name} is text; it has to be a number")
        extra = json.dumps(request.extra, sort_keys=True).encode() if request.extra else None
        return stores.Event(
            request.transaction_id,
            request.microseconds,
            key_code(request.customer),
            key_code(request.terminal),
            request.amount,
            extra=extra,
        )

    def _first_answer(self, event: stores.Event, digest: bytes, answer: bytes | None) -> Decision:
        if digest != event.digest:
            raise stores.reused(event.id)
        if answer is None:
            raise stores.Conflict(
                f"transaction {event.id!r} was loaded as history and has no answer; score only new transactions",
                transaction=event.id,
            )
        return Decision.model_validate_json(answer)

    def _prepare(self, pasts: _Pasts, event: stores.Event, extra: Mapping[str, float | str]) -> _Prepared:
        """Features as of the event, which then becomes part of what this call remembers of its card and terminal."""
        card = pasts.of("customer", event.customer, event.time)
        newest = int(card.time[-1]) if card.length else pasts.store.newest(event.customer)
        if newest is not None and event.time < newest:
            raise stores.late(event.id, event.time, newest)
        terminal = pasts.of("terminal", event.terminal, event.time)
        raw = self.features.event(event.time, event.amount, event.terminal, card, terminal)
        features = self._scaled(
            raw[:, None].astype(np.float32), {name: np.array([value]) for name, value in extra.items()}
        )[0]
        earlier = card.length
        card.append(event.time, event.amount, event.terminal, event.fraud, self.features.memory)
        terminal.append(event.time, event.amount, event.customer, event.fraud, self.features.memory)
        return _Prepared(event, raw, features, earlier, newest is None)

    def _scaled(self, raw: NDArray[np.float32], extra: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """[F, N] raw features and the further columns -> [N, C] what the network reads."""
        return self.pipeline.transform_block(raw, self.features.names, extra)

    def _score(
        self,
        store: stores.EventStore,
        prepared: list[_Prepared],
        pasts: _Pasts,
        held: stores.States,
        explain: str,
        threshold: float,
        ahead: bool,
    ) -> list[Decision]:
        """Runs the network, decides, gives reasons, and commits everything at once."""
        cards = np.array([item.event.customer for item in prepared], np.int64)
        time = np.array([item.event.time for item in prepared], np.int64)
        features = np.stack([item.features for item in prepared])
        states = CardStates(self.layout)
        wanted = set(cards.tolist())
        states.put({card: state for card, state in held.by_customer.items() if card in wanted})
        before = self.layout.zeros(len(prepared))
        logits = states.advance(self.session, cards, time, features, before)
        scores = self.calibration.apply(logits)
        decisions = []
        for place, item in enumerate(prepared):
            alert = bool(scores[place] >= threshold)
            effects = []
            if alert or explain == "all":
                met = {name: array[place : place + 1] for name, array in before.items()}
                effects = self.occlusion(
                    item.features, item.event.time / DAY, met, float(logits[place]), self.config.decision.num_reasons
                )
            decisions.append(
                Decision(
                    transaction_id=item.event.id,
                    score=float(scores[place]),
                    decision="alert" if alert else "pass",
                    threshold=threshold,
                    version=self.version,
                    cold_start=item.cold,
                    reasons=[self._reason(effect, item, pasts) for effect in effects],
                )
            )
        return self._commit(store, prepared, decisions, pasts, dict(states.items()) if ahead else None, held.upto)

    def _reason(self, effect: Effect, item: _Prepared, pasts: _Pasts) -> Reason:
        if effect.cause == "past event":
            card = pasts.of("customer", item.event.customer, item.event.time)
            place = item.earlier - effect.place
            if place < 0:  # older than the horizon, yet still in the network's memory
                return Reason(cause=effect.cause, effect=effect.effect)
            when = datetime.fromtimestamp(int(card.time[place]) / 1e6, UTC)
            return Reason(cause=effect.cause, effect=effect.effect, time=when, amount=float(card.mark("amount")[place]))
        name = self.columns[effect.place]
        if effect.place < len(self.features):
            return Reason(
                cause=effect.cause,
                effect=effect.effect,
                feature=name,
                value=float(item.raw[effect.place]),
                usual=float(self.usual_raw[effect.place]),
            )
        return Reason(cause=effect.cause, effect=effect.effect, feature=name)

    def _commit(
        self,
        store: stores.EventStore,
        prepared: list[_Prepared],
        decisions: list[Decision],
        pasts: _Pasts,
        states: dict[int, bytes] | None,
        after: int,
    ) -> list[Decision]:
        events = [
            item.event._replace(answer=decision.model_dump_json().encode())
            for item, decision in zip(prepared, decisions, strict=True)
        ]
        log = [
            stores.Decision(
                event.time,
                self.version,
                decision.score,
                decision.decision,
                json.dumps(
                    [{"cause": reason.cause, "effect": round(reason.effect, 4)} for reason in decision.reasons]
                ).encode(),
                event.digest,
            )
            for event, decision in zip(events, decisions, strict=True)
        ]
        version = None if states is None else self.version
        committed = store.commit(
            events, states=states, version=version, decisions=log, expected=pasts.revisions, after=after
        )
        return [
            decision if done.new or done.answer is None else Decision.model_validate_json(done.answer)
            for decision, done in zip(decisions, committed, strict=True)
        ]

    def feedback(self, given: Feedback) -> bool:
        """Takes a confirmed label or its reversal; False where the label was so already.

        Known now: it counts in features once the label delay is over, and never for events before this moment.

        Raises:
            DataError: the transaction is unknown.
        """
        if self.store is None:
            raise ArtifactError("this predictor has no store to remember labels in")
        span = self.store.span()
        return self.store.label(given.transaction_id, int(given.fraud), span[1] if span else 0)

    def rehearse(self) -> None:
        """Runs an example through everything that remembers nothing, so that the first request is as fast as any."""
        time = 1_500_000_000_000_000
        for _ in range(3):
            empty = History.empty(self.features.memory)
            raw = self.features.event(time, 1.0, 0, empty, empty)
            extra: dict[str, NDArray[Any]] = {name: np.array([0.0]) for name in self.config.data.numeric}
            extra |= {name: np.array([""]) for name in self.config.data.categorical}
            features = self._scaled(raw[:, None].astype(np.float32), extra)
            states, before = CardStates(self.layout), self.layout.zeros(1)
            logit = states.advance(self.session, np.zeros(1, np.int64), np.array([time]), features, before)
            self.occlusion(features[0], time / DAY, before, float(logit[0]), self.config.decision.num_reasons)

    # -- many events -------------------------------------------------------------------------------------------------

    def stream(self, chunks: Iterable[tuple[NDArray[Any], Events, Mapping[str, NDArray[Any]]]]) -> Iterator[Scores]:
        """Scores a file's rows in time order, from nothing remembered; memory holds the horizon's events, never the file.

        Args:
            chunks: (ids, events, further columns), sorted by time over all chunks; labels count from their delay on.
        """
        states = CardStates(self.layout)
        context = _NO_EVENTS
        for ids, events, extra in chunks:
            for part in _slices(len(events), self._rows_at_once):
                piece = events.rows(part)
                logit, context = self._advance(
                    states, context, piece, {name: values[part] for name, values in extra.items()}
                )
                score = self.calibration.apply(logit)
                yield Scores(ids[part], piece, logit, score, score >= self.threshold)

    def warm(self, *, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Brings this version's network states up to the store's newest event; returns how many events were replayed.

        Args:
            progress: called with the events done and the events in all.

        Raises:
            ArtifactError: there is no store.
        """
        if self.store is None:
            raise ArtifactError("this predictor has no store to warm up from")
        replayed = 0
        while True:
            try:
                replayed += self._catch_up(self.store, progress)
                return replayed
            except stores.Stale:  # another worker was faster: go on from where the version is now
                continue

    def _catch_up(
        self, store: stores.EventStore, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> int:
        """Moves this version's states over the events that others have committed; returns how many those were.

        Raises:
            Stale: another worker moved the version meanwhile.
        """
        done, total = store.versions().get(self.version, 0), 0
        while (last := store.last) > done:
            upto = min(last, done + MAX_STEP) if done else last
            replays = list(_until(store.replay(after=done), upto))
            count = sum(len(chunk.seqs) for chunk in replays)
            if done and count <= FEW:
                states = self._step_through(store, replays, done)
            else:
                states = self._replay(store, replays, done, upto, progress)
            items = list(states.items())
            slices = (dict(items[part]) for part in _slices(len(items), 10_000))
            store.catch_up(self.version, slices, after=done, upto=upto)
            done, total = upto, total + count
        return total

    def _step_through(self, store: stores.EventStore, replays: list[stores.Replay], done: int) -> CardStates:
        """States after a few events, each with the histories that it met."""
        states = CardStates(self.layout)
        if replays:
            self._hold(store, states, np.concatenate([chunk.events.customer for chunk in replays]), done)
        for chunk in replays:
            events, rows = chunk.events, []
            for place, seq in enumerate(chunk.seqs.tolist()):
                time, amount = int(events.time[place]), float(events.amount[place])
                card = self._history(store, "customer", int(events.customer[place]), time, before=seq)
                terminal = self._history(store, "terminal", int(events.terminal[place]), time, before=seq)
                raw = self.features.event(time, amount, int(events.terminal[place]), card, terminal)
                rows.append(self._scaled(raw[:, None].astype(np.float32), self._extra([chunk.extras[place]]))[0])
            if rows:
                states.advance(self.session, events.customer, events.time, np.stack(rows))
        return states

    def _replay(
        self,
        store: stores.EventStore,
        replays: list[stores.Replay],
        done: int,
        upto: int,
        progress: Callable[[int, int], None],
    ) -> CardStates:
        """States after many events, vectorised: the events before them are read once more, for their features."""
        if done:
            replays = [*_until(store.replay(), done), *replays]
        states = CardStates(self.layout)
        if not replays:
            return states
        seqs = np.concatenate([chunk.seqs for chunk in replays])
        events = Events.joined([chunk.events for chunk in replays])
        extras = [extra for chunk in replays for extra in chunk.extras]
        if done:
            self._hold(store, states, events.customer[seqs > done], done)
        order = np.lexsort((seqs, events.time))
        context = _NO_EVENTS
        for part in _slices(len(order), self._rows_at_once):
            rows = order[part]
            extra = self._extra([extras[row] for row in rows])
            _, context = self._advance(states, context, events.rows(rows), extra, fresh=seqs[rows] > done)
            progress(part.stop, len(order))
        return states

    def _hold(self, store: stores.EventStore, states: CardStates, cards: NDArray[np.int64], done: int) -> None:
        """Fetches the states that these cards' events go on from."""
        held = store.states(self.version, np.unique(cards).tolist())
        if held.upto != done:
            raise stores.Stale(f"another worker has moved version {self.version}")
        states.put(held.by_customer)

    def _history(
        self, store: stores.EventStore, side: stores.Side, code: int, time: int, *, before: int | None = None
    ) -> History:
        past = store.history(side, code, time - self.features.horizon, until=time, before=before)
        return History(past.time, past.amount, past.other, past.fraud, self.features.memory)

    @property
    def _rows_at_once(self) -> int:
        """Rows whose features fit about 256 MB."""
        return max(1024, 64_000_000 // len(self.columns))

    def _advance(
        self,
        states: CardStates,
        context: Events,
        events: Events,
        extra: Mapping[str, NDArray[Any]],
        *,
        fresh: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float64], Events]:
        """Logits of events that follow `context`, and the context of those that follow them.

        Args:
            fresh: [N] events that move states on; the others have done so before. Logits are of these only.
        """
        joined = Events.joined([context, events])
        kept = joined.rows(joined.time > joined.time[-1] - self.features.horizon)
        rows = slice(None) if fresh is None else fresh
        if fresh is not None and not fresh.any():
            return np.zeros(0), kept
        raw = self.features.table(joined, first=len(context))
        features = self._scaled(raw, extra)[rows]
        return states.advance(self.session, events.customer[rows], events.time[rows], features), kept

    def _extra(self, stored: Sequence[bytes | None]) -> dict[str, NDArray[Any]]:
        """The further columns of stored events."""
        names = (*self.config.data.numeric, *self.config.data.categorical)
        if not names:
            return {}
        records = [json.loads(extra) if extra else {} for extra in stored]
        return {name: np.array([record.get(name, "") for record in records]) for name in names}


_NO_EVENTS = Events(
    np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int8)
)


def _until(replays: Iterator[stores.Replay], upto: int) -> Iterator[stores.Replay]:
    """The replayed events up to and with number `upto`."""
    for chunk in replays:
        kept = int(np.searchsorted(chunk.seqs, upto, side="right"))
        if kept == len(chunk.seqs):
            yield chunk
        else:
            if kept:
                events = chunk.events.rows(slice(0, kept))
                yield chunk._replace(seqs=chunk.seqs[:kept], events=events, extras=chunk.extras[:kept])
            return


def _slices(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


class _Pasts:
    """The histories that one call works from: read once, then grown by the call's own events."""

    def __init__(self, store: stores.EventStore, features: Features) -> None:
        self.store, self.features = store, features
        self.revisions: dict[tuple[stores.Side, int], int] = {}
        """What the store must still be at when the call commits."""
        self._histories: dict[tuple[stores.Side, int], History] = {}

    def of(self, side: stores.Side, code: int, time: int) -> History:
        """The history of a card or terminal up to and including `time`."""
        key: tuple[stores.Side, int] = (side, code)
        if key not in self._histories:
            past = self.store.history(side, code, time - self.features.horizon, until=time)
            self.revisions[key] = past.revision
            self._histories[key] = History(past.time, past.amount, past.other, past.fraud, self.features.memory)
        return self._histories[key]
