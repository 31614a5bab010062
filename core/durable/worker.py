"""The thread that works off a queue of jobs, one at a time."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

from core.durable.jobs import Job, Jobs, as_json
from core.errors import ArtifactError, CapacityError, ConfigError, Conflict, DataError, Unavailable, VerticalsError

RETRY_SECONDS = 1.0
"""Between two tries to write down how a job ended, while the disk is full."""
UNFORESEEN = "the job failed; the service's log has the place of the failure under the first 8 characters of its id"

logger = logging.getLogger(__name__)


class Cancelled(BaseException):
    """Raised out of a progress callback: the work is to stop. Not an Exception, so that no library swallows it."""


def pause(seconds: float, tell: Callable[[float], None], *, done: float = 0.0, look_seconds: float = 0.2) -> None:
    """Waits in a job, and ends where `tell` ends the job.

    Args:
        tell: the callback that the job was given; called with `done` every `look_seconds`.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        tell(done)
        time.sleep(min(left, look_seconds))


class Worker:
    """`with Worker(jobs, run):` works until the block ends; a job that runs then is queued again for the next start."""

    def __init__(
        self,
        jobs: Jobs,
        run: Callable[[Job, Callable[[float], None]], Mapping[str, Any]],
        *,
        on_error: Callable[[Job | None, Exception], None] | None = None,
        stop_seconds: float = 10.0,
    ) -> None:
        """
        Args:
            run: does a job in this thread and returns what its `result` is to be. It calls the callback with the done
                part, 0 to 1, as often as it can stop: there `Cancelled` is raised. Errors of `core.errors` are shown to
                the client with their text, others never.
            on_error: told of every exception that is not meant for the client, and with None of a disk that cannot be
                written to; without it the log gets its type and place. Texts and values of exceptions are not logged.
            stop_seconds: how long the end waits for the work to stop; past it the thread is left to end with the
                process, and the next start counts that job as an attempt.
        """
        self._jobs, self._run, self._on_error, self._stop_seconds = jobs, run, on_error or log_withheld, stop_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """Whether the work stopped in time: only then may the queue be closed."""
        self._stopping.set()
        self._jobs.wake()
        if self._thread.is_alive():
            self._thread.join(self._stop_seconds)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            job: Job | None = None
            try:
                job = self._jobs.claim(wait_seconds=60.0)
            except VerticalsError as error:  # the disk is full: nothing can be claimed now
                self._on_error(None, error)
                self._stopping.wait(RETRY_SECONDS)
            if job is not None:
                self._settle(self._work(job))

    def _work(self, job: Job) -> Callable[[], None]:
        """Does the job; returns what is to be written down of its end."""

        def progress(fraction: float) -> None:
            if self._jobs.progress(job.id, fraction) or self._stopping.is_set():
                raise Cancelled

        try:
            result = self._run(job, progress)
            as_json(result)  # here, where a value that JSON cannot hold is the work's fault
            return partial(self._jobs.finish, job.id, result)
        except Cancelled:
            return partial(self._jobs.release, job.id)
        except VerticalsError as error:
            return partial(self._jobs.fail, job.id, code=_code(error), message=str(error))
        except Exception as error:  # the thread's edge: whatever it is, the next job has its turn
            if self._stopping.is_set():  # what the work needs is being closed
                return partial(self._jobs.release, job.id)
            self._on_error(job, error)
            return partial(self._jobs.fail, job.id, code="internal", message=UNFORESEEN)

    def _settle(self, write: Callable[[], None]) -> None:
        """Writes until it is written; a job left unsettled at the end of the process is queued again by the next."""
        while True:
            try:
                return write()
            except VerticalsError as error:
                self._on_error(None, error)
            if self._stopping.wait(RETRY_SECONDS):
                return


def _code(error: VerticalsError) -> str:
    match error:
        case Conflict():
            return "conflict"
        case DataError():
            return "unusable_data"
        case CapacityError():
            return "too_large"
        case Unavailable():
            return "unavailable"
        case ArtifactError():
            return "model_unavailable"
        case ConfigError():
            return "configuration"
    return "failed"


def log_withheld(job: Job | None, error: Exception) -> None:
    """The type and place of an exception, not its text: that may hold what a job was given."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    about = f"job {job.id[:8]}" if job is not None else "the queue"
    logger.error("%s: %s at %s:%d (text withheld)", about, kind, frame.filename, frame.lineno)
