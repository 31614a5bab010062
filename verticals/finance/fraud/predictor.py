"""From a transaction to an answer: features as of now, one step of the network, calibration, threshold, reasons.

`FraudPredictor` answers single requests against a store that remembers (`__call__`), and whole files without one
(`stream`): the same features, session and finish, vectorised. The two give the same scores, and a test says so.

Legend: N event, F feature.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Estimate, Session
from core.data.pipeline import DataPipeline
from core.errors import ArtifactError, DataError, Unavailable, VerticalsError
from core.evaluation.calibration import Calibration
from verticals.finance.fraud import store as stores
from verticals.finance.fraud.config import FraudConfig
from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.explain import Effect, Occlusion
from verticals.finance.fraud.features import Features
from verticals.finance.fraud.features_event import History
from verticals.finance.fraud.pasts import NONE, Pasts, Remembered, sides
from verticals.finance.fraud.records import key_code
from verticals.finance.fraud.replay import catch_up
from verticals.finance.fraud.requests import Decision, Feedback, Reason, Transaction
from verticals.finance.fraud.scorer import Scorer, columns, slices
from verticals.finance.fraud.states import CardStates

MAX_ATTEMPTS, MAX_AHEAD = 64, 7
"""Times that requests are scored because other workers change their cards or terminals meanwhile, and how many of them move
this version's states along."""

MAX_PAUSE = 0.02
"""Seconds; between later attempts, of random length, so that workers do not go on meeting."""


class Scores(NamedTuple):
    """Answers to a chunk of a file."""

    ids: NDArray[Any]
    events: Events
    logit: NDArray[np.float64]
    score: NDArray[np.float64]
    alert: NDArray[np.bool_]


class _Fresh(NamedTuple):
    """A transaction that has to be scored."""

    place: int
    """Among the requests."""
    event: stores.Event
    extra: Mapping[str, float | str]
    cold: bool
    earlier: list[stores.Event]
    """Events of the card in this call, oldest first, this one and later ones too."""
    rank: int
    """Its place among them."""


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
        threshold: float | None = None,
    ) -> None:
        """
        Args:
            constants: what `fraud.constants` made: columns, pipeline, usual values, calibration, threshold.
            store: what remembers cards between requests; only `stream` works without one.
            threshold: in place of the constants' own.

        Raises:
            ArtifactError: the constants are not those of this configuration.
        """
        self.config, self.session, self.version, self.store = config, session, version, store
        self.inputs, self.outputs = session.inputs, session.outputs
        self.features = Features(config.features)
        if list(constants.get("features", ())) != list(self.features.names):
            raise ArtifactError(
                f"the model's features are not those that its configuration defines ({len(constants.get('features', ()))} and {len(self.features)}); it was made by other code: train again"
            )
        self.pipeline = DataPipeline.from_record(constants["pipeline"])
        self.columns: list[str] = list(self.pipeline.feature_names)
        self.calibration = Calibration.from_record(constants["calibration"])
        self.threshold = float(constants["threshold"] if threshold is None else threshold)
        """Score from which on a transaction is alerted, unless a call says otherwise."""
        self.usual = np.asarray(constants["usual"], np.float32)
        self.usual_raw = np.asarray(constants["usual_raw"], np.float64)
        self.occlusion = Occlusion(session, self.columns, self.usual)
        self.scorer = Scorer(config.data, self.features, self.pipeline, session)
        self.layout = self.scorer.layout
        self._pasts = Pasts(store, self.features) if store else None
        self._lock = threading.Lock()

    def estimate(self, requests: Sequence[Transaction]) -> Estimate:
        """Rough cost of a call, from the width of the features: memory of the batch and time on one core."""
        per_event = 8 * len(self.features) + 4 * len(self.columns) + 2 * self.layout.nbytes
        return Estimate(per_event * len(requests), 2e-3 * len(requests) + 1e-6 * len(self.columns) * len(requests))

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

        Raises:
            Unavailable: the store cannot be reached or written, or other workers were always faster; nothing was written.
        """
        if self.store is None:
            raise ArtifactError("this predictor has no store, which single requests need; give one, or use stream()")
        chosen = self.threshold if threshold is None else threshold
        with self._lock:
            for attempt in range(MAX_ATTEMPTS):
                try:
                    return self._answer(self.store, requests, explain, chosen, ahead=attempt < MAX_AHEAD)
                except stores.Stale:
                    if attempt < MAX_AHEAD:
                        with suppress(stores.Stale):  # another worker was faster at that too
                            catch_up(self.scorer, self.store, self.version)
                    else:
                        time.sleep(random.uniform(0, MAX_PAUSE))
        raise Unavailable(
            "other workers go on changing the same cards and terminals; nothing was written: send it again"
        )

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
        events: dict[int, stores.Event] = {}
        for place, request in enumerate(requests):
            try:
                events[place] = self._event(request)
            except DataError as error:
                results[place] = error
        known = store.answers([event.id for event in events.values()])
        unknown = [event for event in events.values() if event.id not in known]
        cards = list({event.customer for event in unknown})
        held = store.states(self.version, cards) if cards else stores.States(0, {})  # before any past is read
        if cards and ahead and held.upto < store.last:
            raise stores.Stale(f"version {self.version} has been left behind")
        pasts = self._read(unknown)
        newest = {card: pasts["customer", card].newest for card in cards}
        if empty := [card for card, time in newest.items() if time is None]:
            newest |= store.newest(empty)
        first: dict[str, int] = {}
        fresh: list[_Fresh] = []
        of_card: dict[int, list[stores.Event]] = defaultdict(list)
        for place, event in sorted(events.items(), key=lambda item: (item[1].time, item[0])):
            try:
                if event.id in known:
                    results[place] = self._first_answer(event, *known[event.id])
                elif event.id in first:
                    if events[first[event.id]].digest != event.digest:
                        raise stores.reused(event.id)
                else:
                    time, own = newest[event.customer], of_card[event.customer]
                    if time is not None and event.time < time:
                        raise stores.late(event.id, event.time, time)
                    own.append(event)
                    cold = time is None and len(own) == 1
                    fresh.append(_Fresh(place, event, requests[place].extra, cold, own, len(own) - 1))
                    first[event.id] = place
            except DataError as error:
                results[place] = error
        if fresh:
            decisions = self._score(store, fresh, pasts, held, explain, threshold, ahead)
            for item, decision in zip(fresh, decisions, strict=True):
                results[item.place] = decision
        return [results[first[events[place].id]] if result is None else result for place, result in enumerate(results)]  # type: ignore[misc]

    def _read(self, events: Sequence[stores.Event]) -> dict[stores.Key, Remembered]:
        """What is remembered of these events' cards and terminals, as far back as their features reach."""
        if not events or self._pasts is None:
            return {}
        since = min(event.time for event in events) - self.features.horizon
        return self._pasts.read([key for event in events for key in sides(event)], since)

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

    def _score(
        self,
        store: stores.EventStore,
        fresh: list[_Fresh],
        pasts: Mapping[stores.Key, Remembered],
        held: stores.States,
        explain: str,
        threshold: float,
        ahead: bool,
    ) -> list[Decision]:
        """Computes features, runs the network, decides, gives reasons, and commits everything at once."""
        raw = self.scorer.raw([item.event for item in fresh], pasts)
        features = self.scorer.scaled(raw, self.scorer.named([item.extra for item in fresh]))
        events = columns([item.event for item in fresh])
        states, before = CardStates(self.layout), self.layout.zeros(len(fresh))
        wanted = set(events.customer.tolist())
        states.put({card: state for card, state in held.by_customer.items() if card in wanted})
        logits = states.advance(self.session, events.customer, events.time, features, before)
        scores = self.calibration.apply(logits)
        alerts = scores >= threshold
        effects = self._effects(np.flatnonzero(alerts | (explain == "all")), features, events.time, before, logits)
        decisions = [
            Decision(
                transaction_id=item.event.id,
                score=float(scores[row]),
                decision="alert" if alerts[row] else "pass",
                threshold=threshold,
                version=self.version,
                cold_start=item.cold,
                reasons=[self._reason(effect, item, raw[:, row], pasts) for effect in effects.get(row, ())],
            )
            for row, item in enumerate(fresh)
        ]
        return self._commit(store, fresh, decisions, pasts, dict(states.items()) if ahead else None, held.upto)

    def _effects(
        self,
        rows: NDArray[np.int64],
        features: NDArray[np.float32],
        time: NDArray[np.int64],
        before: Arrays,
        logits: NDArray[np.float64],
    ) -> dict[int, list[Effect]]:
        """What moved the scores of these rows."""
        most, met = self.config.decision.num_reasons, {name: array[rows] for name, array in before.items()}
        found = self.occlusion(features[rows], time[rows] / DAY, met, logits[rows], most)
        return dict(zip(rows.tolist(), found, strict=True))

    def _reason(
        self, effect: Effect, item: _Fresh, raw: NDArray[np.float64], pasts: Mapping[stores.Key, Remembered]
    ) -> Reason:
        if effect.cause == "past event":
            reason = Reason(cause=effect.cause, effect=effect.effect)
            if effect.place <= item.rank:
                event = item.earlier[item.rank - effect.place]
                time, amount = event.time, event.amount
            else:
                past, back = pasts["customer", item.event.customer].past, effect.place - item.rank
                if back > len(past.time):
                    return reason  # older than the horizon, yet still in the network's memory
                time, amount = int(past.time[-back]), float(past.amount[-back])
            return reason.model_copy(update={"time": datetime.fromtimestamp(time / 1e6, UTC), "amount": amount})
        name = self.columns[effect.place]
        value, usual = (
            (float(column[effect.place]) for column in (raw, self.usual_raw))
            if effect.place < len(self.features)
            else (None, None)
        )
        return Reason(cause=effect.cause, effect=effect.effect, feature=name, value=value, usual=usual)

    def _commit(
        self,
        store: stores.EventStore,
        fresh: list[_Fresh],
        decisions: list[Decision],
        pasts: Mapping[stores.Key, Remembered],
        states: dict[int, bytes] | None,
        after: int,
    ) -> list[Decision]:
        events = [
            item.event._replace(answer=decision.model_dump_json().encode())
            for item, decision in zip(fresh, decisions, strict=True)
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
        expected = {key: pasts[key].revision for event in events for key in sides(event)}
        committed = store.commit(events, states=states, version=version, decisions=log, expected=expected, after=after)
        if self._pasts is not None:
            self._pasts.add(events, committed)
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
            features = self.scorer.scaled(raw[:, None], extra)
            states, before = CardStates(self.layout), self.layout.zeros(1)
            logit = states.advance(self.session, np.zeros(1, np.int64), np.array([time]), features, before)
            self.occlusion(features, np.array([time / DAY]), before, logit, self.config.decision.num_reasons)

    def stream(self, chunks: Iterable[tuple[NDArray[Any], Events, Mapping[str, NDArray[Any]]]]) -> Iterator[Scores]:
        """Scores a file's rows in time order, from nothing remembered; memory holds the horizon's events, never the file.

        Args:
            chunks: (ids, events, further columns), sorted by time over all chunks; labels count from their delay on.
        """
        states = CardStates(self.layout)
        context = NONE
        for ids, events, extra in chunks:
            for part in slices(len(events), self.scorer.rows_at_once):
                piece = events.rows(part)
                logit, context = self.scorer.advance(
                    states, context, piece, {name: values[part] for name, values in extra.items()}
                )
                score = self.calibration.apply(logit)
                yield Scores(ids[part], piece, logit, score, score >= self.threshold)

    def warm(self, *, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Brings this version's network states up to the store; returns how many events were replayed.

        Events may go on coming: it ends when a pass met no fewer than the pass before, and what is left then, as much
        as comes within one pass, is caught up by the first request.

        Args:
            progress: called with the events done and the events in all.

        Raises:
            ArtifactError: there is no store.
        """
        if self.store is None:
            raise ArtifactError("this predictor has no store to warm up from")
        total, met = 0, math.inf
        while met:
            try:
                count = catch_up(self.scorer, self.store, self.version, progress)
            except stores.Stale:  # another worker was faster: go on from where the version is now
                continue
            total, met = total + count, count if count < met else 0
        return total
