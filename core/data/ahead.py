"""Work done ahead of whoever takes it, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def ahead(tasks: Iterable[Callable[[], Made]], *, num_workers: int) -> Iterator[Made]:
    """What the tasks return, in their order; up to `num_workers` threads work, one result more than that waits.

    Args:
        tasks: called once each; taken from one thread.
        num_workers: 0 calls each when its result is asked for.
    """
    if not num_workers:
        for task in tasks:
            yield task()
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="ahead")
    try:
        waiting: deque[Future[Made]] = deque()
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
