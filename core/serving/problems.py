"""What a client is told of an error: status, code, text, fields. Texts of our own errors are shown, of others never."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from bentoml.exceptions import BentoMLException
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from core.durable.jobs import UnknownJob
from core.errors import ArtifactError, CapacityError, Conflict, DataError, Unavailable, VerticalsError, masked
from core.serving.batcher import Overloaded

MAX_FIELDS = 50
"""Most faults of a request that an answer lists."""


@dataclass(frozen=True)
class Problem:
    """An error as a client sees it: long numbers are masked in all that it says."""

    status: int
    code: str
    message: str
    fields: tuple[tuple[str, str], ...] = ()
    """(name, what is allowed)."""
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("message", "fields", "details"):
            object.__setattr__(self, name, _masked(getattr(self, name)))

    def response(self, request_id: str) -> Response:
        named = [{"field": name, "message": message} for name, message in self.fields]
        error = {"code": self.code, "message": self.message, "fields": named, "request_id": request_id}
        return JSONResponse(
            {"error": {**self.details, **error}}, self.status, {**self.headers, "X-Request-ID": request_id}
        )


class Told(VerticalsError):
    """Raised by an endpoint that knows its error answer whole: what ended a job, told to who asks for its result."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


_BY_STATUS = {
    400: ("bad_request", "the request cannot be read: its body has to be what the endpoint's schema says"),
    401: ("unauthorized", "the API key is missing or wrong; send it as X-API-Key or as a bearer token"),
    404: ("not_found", "there is nothing at this path; / shows what there is"),
    405: ("method_not_allowed", "this path does not take this method; endpoints take POST"),
    413: ("too_large", "the request is larger than this service takes"),
    415: ("unsupported_media_type", "this content type is not taken; send application/json"),
    429: ("overloaded", "the service has as much to do as it may; send the request again later"),
    500: ("internal", "the service failed at this request; its log has the trace under the request id"),
    503: ("unavailable", "the service cannot answer now; send the request again later"),
    504: ("timeout", "the answer took longer than this service allows; the work may have been done all the same"),
}


def of_status(status: int) -> Problem:
    """The problem of a bare status code."""
    code, message = _BY_STATUS.get(status) or (
        HTTPStatus(status).phrase.lower().replace(" ", "_"),
        HTTPStatus(status).phrase,
    )
    return Problem(status, code, message, headers={"Retry-After": "1"} if status in (429, 503) else {})


def of_error(error: Exception) -> Problem:
    """The problem that an exception stands for. Texts of our own errors are shown, of others never."""
    match error:
        case Told():
            return error.problem
        case UnknownJob():
            return Problem(404, "unknown_job", str(error))
        case Conflict():
            return Problem(409, "conflict", str(error), details=error.details)
        case DataError():
            return Problem(422, "unusable_data", str(error))
        case Overloaded():
            return Problem(429, "overloaded", str(error), headers={"Retry-After": "1"})
        case CapacityError():
            return Problem(413, "too_large", str(error))
        case Unavailable():
            return Problem(503, "unavailable", str(error), headers={"Retry-After": "1"})
        case ArtifactError():
            return Problem(503, "model_unavailable", "the model cannot answer now; the service's log says why")
        case HTTPException():
            return of_status(error.status_code)
        case BentoMLException():
            return of_status(int(error.error_code))
        case ClientDisconnect():
            return of_status(400)
    return of_status(500)


def of_code(code: str, message: str) -> Problem:
    """The problem that a job of `core.durable` ended with."""
    status = {
        "conflict": 409,
        "unusable_data": 422,
        "configuration": 422,
        "too_large": 413,
        "unavailable": 503,
        "model_unavailable": 503,
    }
    return Problem(status.get(code, 500), code, message)


def of_input(error: ValidationError) -> Problem:
    """The problem of a body that its schema refuses: names of fields and what they allow."""
    faults = error.errors(include_url=False, include_context=False)
    named = tuple((".".join(map(str, fault["loc"])) or "body", _allowed(fault)) for fault in faults[:MAX_FIELDS])
    more = f", the first {MAX_FIELDS} are listed" if len(faults) > MAX_FIELDS else ""
    return Problem(400, "invalid_request", f"{len(faults)} field(s) of the request are not allowed{more}", named)


def _masked(given: Any) -> Any:
    """Every text of a nest of texts, masked; so are numbers as long as a card's."""
    match given:
        case str():
            return masked(given)
        case Mapping():
            return {_masked(name): _masked(value) for name, value in given.items()}
        case list() | tuple():
            return tuple(_masked(value) for value in given)
        case bool() | None:
            return given
        case int() | float() if (text := masked(str(given))) != str(given):
            return text
    return given


def _allowed(fault: Mapping[str, Any]) -> str:
    """pydantic's message; where it repeats a value that was sent, as a validator's own may, only the kind of fault."""
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    own = fault["type"] in ("value_error", "assertion_error", "union_tag_invalid")
    given = fault.get("input")
    if own and any(value in message for value in _values(given)):
        return "this value is not allowed"
    return message


def _values(given: Any) -> Iterator[str]:
    if isinstance(given, Mapping):
        for value in given.values():
            yield from _values(value)
    elif isinstance(given, list | tuple | set):
        for value in given:
            yield from _values(value)
    elif given is not None and not isinstance(given, bool) and given != "":
        yield f"{given:g}" if isinstance(given, float) else str(given)
