"""The outermost layer of every service: API key, request id, body limit, one envelope for every error.

BentoML answers 429 and 504 before it runs a user's middleware, and reports errors in five shapes; so this layer enters by
`service_class=` and wraps the whole application. Endpoints raise the errors of `core.errors`:

    pydantic ValidationError 400   DataError 422   Conflict 409   UnknownJob 404   Overloaded 429   CapacityError 413
    ArtifactError 503   Unavailable 503

and anything else is a 500. Every error body is

    {"error": {"code": ..., "message": ..., "fields": [{"field": ..., "message": ...}], "request_id": ...}}

It names fields and what they allow. What it repeats of a request (ids, times, names of fields) has its long numbers
masked, and other values are not repeated. /livez, /readyz and /healthz are open; all else, /metrics too,
wants the key where VERTICALS_API_KEY is set (several are separated by commas), as `X-API-Key` or as a bearer token.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from types import MappingProxyType
from typing import Any

# private names of BentoML: tests/core/serving/test_bentoml.py holds them
from _bentoml_impl.server.app import ServiceAppFactory
from _bentoml_sdk.service import Service
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml.exceptions import BentoMLConfigException
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import ArtifactError, CapacityError
from core.monitoring import metrics
from core.registry import keep_private
from core.serving.logs import discreet, where
from core.serving.problems import Problem, of_error, of_input, of_status

API_KEY = "VERTICALS_API_KEY"
OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz"})
_REQUEST_ID = re.compile(r"(?!\d{12,19}$)[A-Za-z0-9._-]{1,64}")  # no number that could be a card's
_EXCHANGE = "verticals.exchange"
_AROUND = "a layer around the endpoints"
logger = logging.getLogger(__name__)


@dataclass
class _Exchange:
    """What the layers know of one request."""

    request_id: str
    received: int = 0
    """Bytes of the body so far."""
    started: bool = False
    """The answer's head is out."""
    replaced: bool = False
    """The answer was an error; the envelope has gone out in its place."""
    problem: Problem | None = None
    """What went wrong, where more is known than the status code."""


class _BodyTooLarge(CapacityError):
    pass


class Door:
    """ASGI: the whole of a service behind the key, the limit and the envelope."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: str,
        keys: tuple[bytes, ...],
        body_limit_bytes: int,
        upload_limits: Mapping[str, int] = MappingProxyType({}),
        pages: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            keys: sha256 of each allowed API key; none leaves the door open.
            pages: HTML by path, shown to everybody; `/` is one of them: BentoML's own page calls a tracker.
            upload_limits: bytes of a body by path, where another limit holds.
        """
        self._app, self._service, self._keys = app, service, keys
        self._body_limit, self._upload_limits = body_limit_bytes, upload_limits
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":

            async def brief(message: Message) -> None:
                message.pop("message", None)  # the trace of a failed start, with values; the log has it without
                await send(message)

            with discreet():
                await self._app(scope, receive, brief)
            return
        headers = Headers(scope=scope)
        page = (
            self._pages.get(scope["path"]) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        )
        allowed = scope["path"] in OPEN_PATHS or (page is not None and scope["path"] != "/") or self._has_key(headers)
        if scope["type"] == "websocket":
            await (self._app(scope, receive, send) if allowed else send({"type": "websocket.close", "code": 1008}))
            return
        given = headers.get("x-request-id", "")
        exchange = _Exchange(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope[_EXCHANGE] = exchange
        limit = self._upload_limits.get(scope["path"], self._body_limit)

        async def limited() -> Message:
            message = await receive()
            exchange.received += len(message.get("body", b""))
            if exchange.received > limit:
                raise _BodyTooLarge(_limit_text(limit))
            return message

        async def enveloped(message: Message) -> None:
            if exchange.replaced:
                return
            if message["type"] == "http.response.start":
                exchange.started = True
                head = MutableHeaders(raw=message.setdefault("headers", []))
                if message["status"] >= 400:
                    exchange.replaced = True
                    problem = exchange.problem or of_status(message["status"])
                    kept = {name: value for name, value in head.items() if not name.startswith("content-")}
                    await self._refuse(problem, exchange, scope, receive, send, kept=kept)
                    return
                head["X-Request-ID"] = exchange.request_id
            await send(message)

        length = headers.get("content-length", "")
        if not allowed:
            refusal = replace(of_status(401), headers={"WWW-Authenticate": "Bearer"})
            await self._refuse(refusal, exchange, scope, receive, send)
        elif page is not None:
            await HTMLResponse(page, headers={"X-Request-ID": exchange.request_id})(scope, receive, send)
        elif length.isdecimal() and int(length) > limit:
            await self._refuse(Problem(413, "too_large", _limit_text(limit)), exchange, scope, receive, send)
        else:
            try:
                await self._app(scope, limited, enveloped)
            except Exception as error:  # the process's edge; the head may be out already: then the connection is cut
                problem = _recorded(error, exchange, _AROUND)
                if not exchange.started:
                    await self._refuse(problem, exchange, scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        if not self._keys:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token if scheme.lower() == "bearer" else "")
        digest = hashlib.sha256(given.encode()).digest()
        return any([hmac.compare_digest(digest, key) for key in self._keys])  # a list: every key is compared

    async def _refuse(
        self,
        problem: Problem,
        exchange: _Exchange,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        kept: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Sends the envelope; `kept` are headers of the answer that it takes the place of."""
        metrics.refused(self._service, problem.code)
        response = problem.response(exchange.request_id)
        for name, value in kept.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)


def _limit_text(limit: int) -> str:
    return f"the body is larger than the {limit} bytes that are taken here; send less at a time"


def _recorded(error: Exception, exchange: _Exchange, place: str) -> Problem:
    """The problem of an exception, kept for the answer; failures of ours are logged, without any value."""
    problem = exchange.problem = of_error(error)
    if problem.status >= 500:
        reason = str(error) if isinstance(error, ArtifactError) else where(error)
        logger.error("request %s failed in %s:\n%s", exchange.request_id, place, reason)  # its path may hold a value
    return problem


class _Caught:
    """ASGI: answers 500 to an exception inside; BentoML's timeout would leave the client waiting for all of its time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            exchange = scope.get(_EXCHANGE)
            if exchange is None or exchange.started:
                raise
            await Response(status_code=_recorded(error, exchange, _AROUND).status)(scope, receive, send)


class _KnownPathsMetrics(RunnerTrafficMetricsMiddleware):
    """BentoML's request metrics, for the service's own paths only: they are labels, and a scan would make them endless."""

    def __init__(self, app: ASGIApp, *, known: frozenset[str], **options: Any) -> None:
        super().__init__(app, **options)
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (super().__call__ if scope.get("path") in self._known else self.app)(scope, receive, send)


class _AppFactory(ServiceAppFactory):  # type: ignore[misc]  # BentoML's private packages are untyped
    """BentoML's application, with its errors left to the Door."""

    async def api_endpoint(self, name: str, request: Request) -> Response:
        spec = self.service.apis[name].input_spec
        exchange = request.scope.get(_EXCHANGE) or _Exchange(uuid.uuid4().hex)
        try:
            response: Response = await super().api_endpoint(name, request)
            return response
        except ValidationError as error:
            if error.title == (spec.model_config.get("title") or spec.__name__):
                exchange.problem = of_input(error)
            else:  # of an answer, or of the endpoint's own making: not the client's fault
                _recorded(error, exchange, f"endpoint {name}")
        except Exception as error:
            _recorded(error, exchange, f"endpoint {name}")
        return exchange.problem.response(exchange.request_id)  # type: ignore[union-attr]

    @property
    def middlewares(self) -> list[Middleware]:
        known = frozenset(route.path for route in self.routes if isinstance(route, Route))
        traced = BentoMLContainer.tracing.exporter_type.get() is not None
        metered: Any = _KnownPathsMetrics
        layers: list[Middleware] = []
        for layer in super().middlewares:
            if layer.cls is RunnerTrafficMetricsMiddleware:
                layers.append(Middleware(metered, known=known, **layer.kwargs))
            elif layer.cls is not OpenTelemetryMiddleware or traced:
                layers.append(layer)
            if layer.cls is TimeoutMiddleware:
                layers.append(Middleware(_Caught))
        return layers


class GuardedService(Service[Any]):  # type: ignore[misc]
    """`bentoml.service(service_class=GuardedService, ...)(Class)`: a BentoML service behind the Door.

    The access log is off unless the service's own configuration turns it on. A subclass may set another body limit.
    """

    body_limit_bytes = 16 * 2**20

    def upload_limits(self) -> Mapping[str, int]:
        """Bytes of a body by path, for endpoints that stream it (`uploads.py`)."""
        return {}

    def pages(self) -> Mapping[str, str]:
        """HTML by path, for everybody: a page holds nothing, and asks for the key where it calls an endpoint."""
        return {}

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        keep_private()
        self.config.setdefault("logging", {"access": {"enabled": False}})
        _keys()

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        self.inject_config()
        app = _AppFactory(self, is_main=is_main)()
        return Door(
            app,
            service=self.name,
            keys=_keys(),
            body_limit_bytes=self.body_limit_bytes,
            upload_limits=self.upload_limits(),
            pages={"/": self._index(), **self.pages()},
        )

    def _index(self) -> str:
        """A page of the endpoints, without a script or anything from elsewhere."""
        rows = "".join(
            f"<tr><td><code>POST {escape(api.route)}</code></td><td>{escape((api.doc or '').strip().partition(chr(10))[0])}</td></tr>"
            for api in self.apis.values()
        )
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(self.name)}</title>"
            "<style>body{font:16px sans-serif;margin:3em;max-width:60em}td{padding:.4em 1em .4em 0;vertical-align:top}</style>"
            f"<h1>{escape(self.name)}</h1><table>{rows}</table>"
            "<p>Also <a href=/readyz>/readyz</a>, <a href=/livez>/livez</a>, <a href=/metrics>/metrics</a>; "
            "the full description of requests and answers is <a href=/docs.json>/docs.json</a> (OpenAPI).</p>"
        )


def _keys() -> tuple[bytes, ...]:
    """The sha256 of each configured API key. Raises BentoMLConfigException where the variable is there and holds none."""
    given = os.environ.get(API_KEY)
    if given is None:
        return ()
    keys = [key.strip() for key in given.split(",") if key.strip()]
    if not keys or any(len(key) < 16 for key in keys):
        raise BentoMLConfigException(
            f"{API_KEY} holds no key, or one of less than 16 characters; give longer ones or unset it"
        )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)
