"""A service as small as one can be that uses every part of core.serving: it answers what it is given, scaled."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import bentoml
from bentoml.exceptions import InvalidArgument
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import ArtifactError, CapacityError, ConfigError, Conflict, DataError, Unavailable
from core.monitoring import metrics
from core.registry import Version
from core.serving.batcher import Batcher, Overloaded
from core.serving.http import GuardedService
from core.serving.loader import Loader, require

NAME = "test.echo"


def write_run(path: Path, *, scale: float | None, application: str = NAME) -> Path:
    """A finished run of the application; without a scale its model cannot be loaded."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("{}\n")
    (path / "constants.json").write_text(json.dumps({} if scale is None else {"scale": scale}))
    (path / "data.json").write_text("{}")
    (path / "code.json").write_text(json.dumps({"application": application, "commit": "0" * 40}))
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    (path / "report.json").write_text(json.dumps({"scores": {"exactness": 1.0}}))
    (path / "report.html").write_text("<p>exact</p>")
    return path


def load(version: Version) -> float:
    return float(json.loads((version.path / "constants.json").read_text())["scale"])


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    card: str = Field(min_length=4)
    amount: float = Field(ge=0, allow_inf_nan=False)
    kind: Literal["chip", "online"] = "chip"
    note: str = ""

    @field_validator("note")
    @classmethod
    def _short(cls, note: str) -> str:
        if len(note) > 20:
            raise ValueError(f"a note of at most 20 letters is allowed, not {note}")
        return note


class Answer(BaseModel):
    amount: float
    version: str
    threshold: float | None


class Rude:
    """A middleware that raises, when it is asked to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("query_string") == b"rude":
            raise RuntimeError(f"with {scope['headers']}")
        await self._app(scope, receive, send)


class Echo:
    def __init__(self) -> None:
        self._loader = Loader(NAME, load=load, warm=lambda new, old: None, poll_seconds=0.1)
        self._loader.start()
        self._batcher: Batcher[Item, Answer] = Batcher(self._answers, max_batch=32, name="echo")

    def _answers(self, items: Sequence[Item]) -> list[Answer | Exception]:
        metrics.batched(NAME, len(items))
        live = self._loader.live
        time.sleep(0.001)
        return [
            DataError("an amount of 13 is not taken")
            if item.amount == 13
            else Answer(amount=item.amount * live.model, version=live.version.version, threshold=live.threshold)
            for item in items
        ]

    @bentoml.on_deployment
    def models_exist() -> None:  # type: ignore[misc]  # a static method, by the decorator
        require(NAME)

    @bentoml.on_shutdown
    async def finish(self) -> None:
        await self._batcher.close()
        self._loader.stop()

    @bentoml.api
    async def echo(self, item: Item) -> Answer:
        begun = time.perf_counter()
        answer = await self._batcher(item)
        decision = "refuse" if answer.amount > 100 else "accept"
        metrics.predicted(NAME, answer.version, decision, score=0.5, seconds=time.perf_counter() - begun)
        return answer

    @bentoml.api
    async def plain(self, item: Item) -> Answer:
        return Answer(amount=item.amount, version="", threshold=None)

    @bentoml.api
    async def slow(self, seconds: float) -> Answer:
        await asyncio.sleep(seconds)
        return Answer(amount=seconds, version="", threshold=None)

    @bentoml.api
    def fail(self, item: Item) -> Answer:
        """Raises the error that the note names, with the card number in its text wherever the text is not ours."""
        card = item.card
        logging.getLogger("verticals.echo").warning("about to fail: %s", ValueError(card))
        if item.note == "warn":
            warnings.warn(card, stacklevel=1)
            return Answer.model_construct(amount=card, version="", threshold=None)  # which warns of its value again
        errors: dict[str, Exception] = {
            "data": DataError("time lies in the future; up to now is allowed"),
            "conflict": Conflict("older than the newest event", newest_time="2018-04-01T00:00:00Z"),
            "overloaded": Overloaded("7 requests are waiting"),
            "capacity": CapacityError("20000 rows; up to 10000 are allowed"),
            "unavailable": Unavailable("the disk is full, nothing was written"),
            "artifact": ArtifactError("the weights are damaged"),
            "config": ConfigError(card),
            "bentoml": InvalidArgument(card),
            "bug": KeyError(card),
        }
        if item.note == "output":
            return Answer(amount=f"{card}x", version="", threshold=None)  # type: ignore[arg-type]
        if item.note == "chain":
            try:
                float(card + "x")
            except ValueError as error:
                raise RuntimeError(card) from error
        if item.note == "exit":
            os._exit(1)
        raise errors[item.note]


def service(*, middleware: bool = False, **options: Any) -> GuardedService:
    """A fresh service of the class."""
    config = {"traffic": {"timeout": 3, "max_concurrency": 40}, **options}
    made: GuardedService = bentoml.service(name="echo", service_class=GuardedService, **config)(Echo)
    if middleware:
        made.add_asgi_middleware(Rude)
    return made


svc = service(middleware=True)
