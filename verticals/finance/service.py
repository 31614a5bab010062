"""The finance service: card fraud over HTTP. Typed endpoints and limits; the work is done by `fraud.FraudPredictor`.

`bentoml serve verticals.finance:svc`. Heavy imports stand inside the class's `__init__`: BentoML imports this module in
the command's own process too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel, Field

from core.environment import whole
from core.errors import DataError, VerticalsError
from core.monitoring import metrics
from core.serving.batcher import Batcher
from core.serving.http import GuardedService
from core.serving.loader import Loader, require
from core.serving.problems import of_error
from verticals.finance.fraud.requests import Batch, Decision, Feedback, Transaction

if TYPE_CHECKING:
    from core.registry import Version
    from verticals.finance.fraud.predictor import FraudPredictor
    from verticals.finance.fraud.store import EventStore

APPLICATION = "finance.fraud"
SLICE = 512
"""Transactions of a large batch that are answered before single ones get their turn."""

Outcome = Decision | DataError


class Refusal(BaseModel):
    """What stands in a batch's answer for a transaction that could not be scored; the others are scored."""

    transaction_id: str
    error: str = Field(description="What is wrong, and what to do.")
    code: str = Field(description="`conflict` or `unusable_data`, as in the error of a single request.")


class BatchAnswer(BaseModel):
    """The answers in the order of the transactions."""

    results: list[Decision | Refusal]
    refused: int = Field(description="How many were refused.")


class Noted(BaseModel):
    """What became of a label."""

    transaction_id: str
    changed: bool = Field(description="False where the label was so already.")


def threads() -> int:
    """`VERTICALS_THREADS`: threads of one call of the network.

    Raises:
        ConfigError: not a whole number from 1 on.
    """
    return whole("VERTICALS_THREADS", 1)


class Finance:
    """Card fraud: score a transaction before anything later of the same card, and tell what became of it."""

    def __init__(self) -> None:
        import torch

        import core.inference.session_onnx  # noqa: F401  # now, and not beside requests

        self._threads = threads()
        torch.set_num_threads(self._threads)
        self._store: EventStore | None = None
        self._loader: Loader[FraudPredictor] = Loader(APPLICATION, load=self._load, warm=self._warm)
        self._loader.start()
        self._batcher: Batcher[Transaction, Outcome] = Batcher(self._score, name="score")

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuses to start without a model, or where the store cannot be opened: one line, exit code 1."""
        from verticals.finance.fraud.history import open_store

        require(APPLICATION)
        try:
            threads()
            open_store().close()
        except VerticalsError as error:
            raise BentoMLException(str(error)) from None

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Answers what was taken, then lets go of the store."""
        await self._batcher.close()
        self._loader.stop()
        if self._store is not None:
            self._store.close()

    @bentoml.api
    async def score(self, transaction: Transaction, /) -> Decision:
        """Score one transaction: probability of fraud, decision, reasons.

        An id that was sent before gets its first answer and changes nothing; with another content it is refused (409),
        and so is a transaction older than its card's newest.
        """
        started = time.perf_counter()
        decision = await self._batcher(transaction)
        assert isinstance(decision, Decision)
        metrics.predicted(
            APPLICATION,
            decision.version,
            decision.decision,
            score=decision.score,
            seconds=time.perf_counter() - started,
        )
        return decision

    @bentoml.api
    async def score_batch(self, batch: Batch, /) -> BatchAnswer:
        """Score up to 10,000 transactions, in time order; those that are refused do not keep the others from being scored."""
        transactions = batch.transactions
        order = sorted(range(len(transactions)), key=lambda place: transactions[place].time)
        results: list[Any] = [None] * len(transactions)
        for start in range(0, len(order), SLICE):
            places = order[start : start + SLICE]
            given = [transactions[place] for place in places]
            outcomes = await asyncio.to_thread(self._score, given, batch.explain)
            for place, outcome in zip(places, outcomes, strict=True):
                if isinstance(outcome, Decision):
                    metrics.predicted(APPLICATION, outcome.version, outcome.decision, score=outcome.score)
                    results[place] = outcome
                else:
                    problem = of_error(outcome)
                    results[place] = Refusal(
                        transaction_id=transactions[place].transaction_id, error=problem.message, code=problem.code
                    )
        return BatchAnswer(results=results, refused=sum(isinstance(result, Refusal) for result in results))

    @bentoml.api
    async def feedback(self, label: Feedback, /) -> Noted:
        """A confirmed label of an earlier transaction, or its reversal; it counts from the end of the label delay on."""
        changed = await asyncio.to_thread(self._loader.live.model.feedback, label)
        return Noted(transaction_id=label.transaction_id, changed=changed)

    def _score(self, transactions: Sequence[Transaction], explain: Literal["alerts", "all"] = "all") -> Sequence[Any]:
        live = self._loader.live
        metrics.batched(APPLICATION, len(transactions))
        return live.model(transactions, explain=explain, threshold=live.threshold)

    def _load(self, version: Version) -> FraudPredictor:
        from core.inference.model import build
        from core.inference.session import SessionConfig
        from verticals.finance.fraud import APPLICATION as fraud
        from verticals.finance.fraud.history import open_store

        self._store = self._store or open_store()  # here, where a failure ends the service with one line
        session = SessionConfig(threads=self._threads)
        predictor: FraudPredictor = build(fraud, version.path, version.version, session=session, store=self._store)[1]
        return predictor

    def _warm(self, new: FraudPredictor, old: FraudPredictor | None) -> None:
        new.warm()
        new.rehearse()


svc = bentoml.service(
    service_class=GuardedService,
    name="finance",
    workers=int(os.environ.get("VERTICALS_WORKERS", "1")),
    traffic={"timeout": 120, "max_concurrency": 512},
)(Finance)
