"""Keeps the production version of a model loaded, and changes it under load without dropping a request.

A thread looks at the registry's alias file every second. Another version is loaded and warmed beside the one that
answers, then takes over by one attribute write; requests in flight keep what they started with. A version that cannot be
loaded changes nothing but a log line and a counter.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from bentoml._internal.context import server_context  # private: tests/core/serving/test_bentoml.py holds it
from bentoml.exceptions import BentoMLException

from core import registry
from core.aliases import alias_file
from core.errors import ArtifactError, VerticalsError
from core.monitoring import metrics
from core.registry import Version
from core.serving.logs import where

Model = TypeVar("Model")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Live(Generic[Model]):
    """What answers now. Take it once for a request, so that model and threshold belong together."""

    version: Version
    model: Model

    @property
    def threshold(self) -> float | None:
        """Override of the model's own threshold, None where there is none."""
        return self.version.threshold


def require(*applications: str) -> None:
    """Refuses to start a service whose models are missing or damaged; call it from the class's `@bentoml.on_deployment`.

    That hook runs once, in the command's own process and before any worker: `bentoml serve` prints the text and exits
    with code 1. A worker that fails would be started again for ever.

    Raises:
        BentoMLException: with the ArtifactError's text, which names the command that makes a model.
    """
    for application in applications:
        try:
            registry.resolve(application)
        except ArtifactError as error:
            raise BentoMLException(str(error)) from None


class Loader(Generic[Model]):
    """`loader.live` is the loaded production version from `start()` on."""

    def __init__(
        self,
        application: str,
        *,
        load: Callable[[Version], Model],
        warm: Callable[[Model, Model | None], None],
        alias: str = "production",
        poll_seconds: float = 1.0,
    ) -> None:
        """
        Args:
            load: makes a model of a version whose files have been checked.
            warm: (new, the one that answers now or None) -> None; answers an example and takes over state, so that the
                first request is as fast as any. Runs beside the requests.
        """
        self.application = application
        self._load, self._warm, self._alias, self._poll_seconds = load, warm, alias, poll_seconds
        self._live: Live[Model] | None = None
        self._seen: tuple[int, int, int] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"loader {application}", daemon=True)
        self._collection = gc.get_threshold()

    @property
    def live(self) -> Live[Model]:
        """Raises ArtifactError before `start`."""
        if self._live is None:
            raise ArtifactError(f"no model of {self.application} is loaded yet")
        return self._live

    def start(self) -> None:
        """Loads, warms and begins to watch. A failure inside a BentoML worker takes the whole service down.

        Raises:
            ArtifactError: no version, or one that is damaged or cannot be loaded; and whatever `warm` raises.
        """
        self._seen = _signature()
        try:
            self._live = self._made(registry.resolve(self.application, self._alias), None)
        except Exception as error:
            logger.error("%s cannot be served: %s", self.application, _reason(error))
            _stop_service()
            raise
        logger.info("%s answers with version %s", self.application, self._live.version.version)
        settle()
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch and gives the garbage collector back its old settings."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        gc.unfreeze()
        gc.set_threshold(*self._collection)

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            signature = _signature()
            if signature == self._seen:
                continue
            self._seen = signature  # a broken state is tried once, not every second
            try:
                self._follow()
            except Exception as error:  # the edge of this thread: what answers keeps answering
                metrics.reloaded(self.application, "failed")
                logger.error(
                    "%s keeps version %s: %s",
                    self.application,
                    self.live.version.version,
                    _reason(error),
                    exc_info=error,
                )

    def _follow(self) -> None:
        """Makes `live` what the alias file says."""
        live = self.live
        version = registry.aliases(self.application).get(self._alias)
        if version == live.version.version:
            threshold = registry.thresholds(self.application).get(version)
            if threshold != live.threshold:
                self._live = replace(live, version=replace(live.version, threshold=threshold))
                logger.info(
                    "%s %s: threshold is now %s",
                    self.application,
                    version,
                    "the model's own" if threshold is None else threshold,
                )
                if threshold is not None:
                    metrics.threshold_set(self.application, version, threshold)
            return
        self._live = self._made(registry.resolve(self.application, self._alias), live)
        metrics.reloaded(self.application, "loaded")
        logger.info("%s answers with version %s, before %s", self.application, version, live.version.version)
        del live
        settle()

    def _made(self, version: Version, before: Live[Model] | None) -> Live[Model]:
        try:
            model = self._load(version)
        except Exception as error:  # whatever a file can cause; it holds a model, no request, so the text may be shown
            raise ArtifactError(
                f"version {version.version} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        self._warm(model, before.model if before else None)
        metrics.model_loaded(self.application, version.version, replaces=before.version.version if before else None)
        if version.threshold is not None:
            metrics.threshold_set(self.application, version.version, version.threshold)
        return Live(version, model)


def settle() -> None:
    """Moves what is loaded out of the garbage collector's sight: full collections of it take up to half a second."""
    gc.unfreeze()  # of an earlier model, which may be garbage by now
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _signature() -> tuple[int, int, int] | None:
    try:
        status = alias_file().stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _reason(error: Exception) -> str:
    """One line: our own errors in their words, which hold no request; of others the type and the place."""
    return str(error) if isinstance(error, VerticalsError) else where(error).rpartition("\n")[2]


def _stop_service() -> None:
    """Inside a worker: asks the command that started it to end, instead of starting it again for ever."""
    if server_context.worker_index is not None:
        os.kill(os.getppid(), signal.SIGTERM)
