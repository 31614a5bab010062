"""Answers requests that arrive together in one call, without making a lone one wait.

While a batch runs, the next one gathers. Only after a batch of several does the batcher wait, `max_wait_ms` at most, for
as many again: a client that is alone pays nothing, and a burst is taken in few calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from core.errors import CapacityError

Request = TypeVar("Request")
Response = TypeVar("Response")


class Overloaded(CapacityError):
    """The service has more to do than it may queue; the same request is welcome later."""


class Batcher(Generic[Request, Response]):
    """`await batcher(request)` from any number of coroutines of one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Sequence[Response | Exception]],
        *,
        max_batch: int = 64,
        max_wait_ms: float = 2.0,
        max_queue: int = 1024,
        name: str = "batcher",
    ) -> None:
        """
        Args:
            run: answers several requests, one answer each in their order; an exception in an answer's place is raised
                for that request alone, one that is raised is raised for all. Called in one thread of its own, never
                twice at a time.
            max_batch: most requests a call takes.
            max_wait_ms: longest wait for company, in milliseconds; 0 never waits.
            max_queue: most requests that wait.
        """
        if max_batch < 1 or max_queue < 1 or max_wait_ms < 0:
            raise ValueError(f"given {max_batch=}, {max_queue=}, {max_wait_ms=}; at least 1, 1 and 0 are allowed")
        self._run = run
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait_ms / 1000, max_queue
        self._queue: deque[tuple[Request, asyncio.Future[Response]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._task: asyncio.Task[None] | None = None
        self._company = 1  # size of the last batch: how many are likely to come together again
        self._gathered = asyncio.Event()
        self._closed = False

    async def __call__(self, request: Request) -> Response:
        """
        Raises:
            Overloaded: the queue is full, or the service is going down.
        """
        if self._closed:
            raise Overloaded("the service is shutting down; send the request again")
        if len(self._queue) >= self._max_queue:
            raise Overloaded(
                f"{self._max_queue} requests are waiting, which is the limit; send the request again later"
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Response] = loop.create_future()
        self._queue.append((request, answer))
        if self._task is None:
            self._task = loop.create_task(self._work(loop))
        elif len(self._queue) >= self._company:
            self._gathered.set()
        return await answer

    async def close(self) -> None:
        """Takes no more requests and returns when every one that was taken has its answer."""
        self._closed = True
        self._gathered.set()
        if self._task is not None:
            await asyncio.shield(self._task)
        self._thread.shutdown()

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        batch: list[tuple[Request, asyncio.Future[Response]]] = []
        try:
            while self._queue:
                await self._gather()
                batch = []
                while self._queue and len(batch) < self._max_batch:
                    request, answer = self._queue.popleft()
                    if not answer.done():  # its client has left: nothing has been done for it yet
                        batch.append((request, answer))
                if batch:
                    self._company = len(batch)
                    outcomes = await loop.run_in_executor(
                        self._thread, self._outcomes, [request for request, _ in batch]
                    )
                    for (_, answer), outcome in zip(batch, outcomes, strict=True):
                        _settle(answer, outcome)
        finally:
            self._task = None
            for _, answer in (*batch, *self._queue):  # left only where the event loop itself is going down
                answer.cancel()
            self._queue.clear()

    async def _gather(self) -> None:
        if len(self._queue) < min(self._company, self._max_batch) and self._max_wait and not self._closed:
            self._gathered.clear()
            try:
                async with asyncio.timeout(self._max_wait):
                    await self._gathered.wait()
            except TimeoutError:
                pass

    def _outcomes(self, requests: list[Request]) -> Sequence[Response | Exception]:
        try:
            outcomes = self._run(requests)
        except Exception as error:
            return [error] * len(requests)
        if len(outcomes) != len(requests):
            return [RuntimeError(f"{len(outcomes)} answers to {len(requests)} requests")] * len(requests)
        return outcomes


def _settle(answer: asyncio.Future[Response], outcome: Response | Exception) -> None:
    if answer.done():  # its client has left; the others get theirs
        return
    if isinstance(outcome, StopIteration):  # a future cannot carry it
        outcome = RuntimeError("StopIteration")
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
