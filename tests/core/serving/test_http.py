from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel, ValidationError, model_validator
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from core.durable.jobs import UnknownJob
from core.errors import Conflict
from core.serving.http import Door
from core.serving.problems import MAX_FIELDS, Told, of_code, of_error, of_input
from tests.core.serving import echo

CARD = "4111111111111111"
KEY = "a-key-of-enough-letters"


@pytest.fixture
def client(release: Callable[[float | None], str]) -> Iterator[TestClient]:
    release(2.0)
    with TestClient(echo.service(middleware=True).to_asgi()) as client:
        yield client


@pytest.fixture
def keyed(release: Callable[[float | None], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    release(2.0)
    monkeypatch.setenv("VERTICALS_API_KEY", f"another-key-of-old-times, {KEY}")
    with TestClient(echo.service().to_asgi()) as client:
        yield client


def item(**fields: Any) -> dict[str, Any]:
    return {"item": {"card": CARD, "amount": 1.0, **fields}}


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The envelope, checked for what every error has in common."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert {"code", "message", "fields", "request_id"} <= set(error)
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    assert CARD not in response.text
    return error


def test_a_good_request_is_answered(client: TestClient) -> None:
    response = client.post("/echo", json=item(amount=21))
    assert response.status_code == 200
    assert response.json()["amount"] == 42.0


@pytest.mark.parametrize(
    ("note", "status", "code", "text"),
    [
        ("data", 422, "unusable_data", "up to now is allowed"),
        ("conflict", 409, "conflict", "older than the newest"),
        ("overloaded", 429, "overloaded", "7 requests"),
        ("capacity", 413, "too_large", "up to 10000"),
        ("unavailable", 503, "unavailable", "nothing was written"),
        ("artifact", 503, "model_unavailable", "service's log"),
        ("config", 500, "internal", "log"),
        ("bentoml", 400, "bad_request", "schema"),
        ("bug", 500, "internal", "log"),
        ("chain", 500, "internal", "log"),
        ("output", 500, "internal", "log"),
    ],
)
def test_what_an_endpoint_raises_has_one_shape(
    client: TestClient, note: str, status: int, code: str, text: str
) -> None:
    response = client.post("/fail", json=item(note=note))
    error = error_of(response, status, code)
    assert text in error["message"]
    assert error["fields"] == []
    assert ("newest_time" in error) == (note == "conflict")
    assert (response.headers.get("retry-after") == "1") == (status in (429, 503) and note != "artifact")


def test_an_error_of_one_item_is_that_item_s_alone(client: TestClient) -> None:
    assert (
        error_of(client.post("/echo", json=item(amount=13)), 422, "unusable_data")["message"]
        == "an amount of 13 is not taken"
    )
    assert client.post("/echo", json=item(amount=14)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"amount": -4111111111111111}, {"item.amount": "greater than or equal to 0"}),
        ({"amount": CARD + "x"}, {"item.amount": "valid number"}),
        ({"kind": CARD}, {"item.kind": "'chip' or 'online'"}),
        ({"card": 4111111111111111}, {"item.card": "valid string"}),
        ({"card": "411", "extra": CARD}, {"item.card": "at least 4", "item.extra": "not permitted"}),
        ({"note": CARD + " is a long note"}, {"item.note": "this value is not allowed"}),  # its validator quotes it
    ],
)
def test_a_refused_body_names_fields_and_what_they_allow(
    client: TestClient, fields: dict[str, Any], named: dict[str, str]
) -> None:
    error = error_of(client.post("/echo", json=item(**fields)), 400, "invalid_request")
    assert {fault["field"] for fault in error["fields"]} == set(named)
    for fault in error["fields"]:
        assert named[fault["field"]] in fault["message"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (f'{{"item": {{"card": "{CARD}"', "application/json"),
        (CARD, "application/json"),
        ("", "application/json"),
        (f'["{CARD}"]', "application/json"),
        (CARD, "text/plain"),
        (b"\xff\xfe" + CARD.encode(), "application/json"),
        (CARD, "multipart/form-data; boundary=x"),
        (CARD, "multipart/form-data"),
    ],
)
def test_a_body_that_is_no_request_is_a_400(client: TestClient, body: str | bytes, content_type: str) -> None:
    response = client.post("/echo", content=body, headers={"Content-Type": content_type})
    error_of(response, 400, response.json()["error"]["code"])


def test_pickles_are_refused(client: TestClient) -> None:
    response = client.post("/echo", content=b"", headers={"Content-Type": "application/vnd.bentoml+pickle"})
    error_of(response, 415, "unsupported_media_type")


def test_paths_and_methods_that_are_not_there(client: TestClient) -> None:
    error_of(client.post(f"/{CARD}", json={}), 404, "not_found")
    response = client.get("/echo")
    error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert client.head("/nothing").status_code == 404


def test_an_answer_that_takes_too_long_is_a_504(client: TestClient) -> None:
    begun = time.perf_counter()
    error_of(client.post("/slow", json={"seconds": 30}), 504, "timeout")
    assert 2.5 < time.perf_counter() - begun < 10


def test_a_raising_middleware_does_not_hang_its_client(client: TestClient) -> None:
    begun = time.perf_counter()
    error_of(client.post("/echo?rude", json=item()), 500, "internal")
    assert time.perf_counter() - begun < 2  # the service's timeout is 3 s


def test_long_numbers_are_masked_in_all_that_an_error_repeats() -> None:
    spaced = " ".join(CARD[k : k + 4] for k in range(0, 16, 4))
    error = Conflict(
        f"id {CARD} of {spaced} is newer", newest_time="2018-04-01T00:00:00.123456Z", seen=[CARD, int(CARD)]
    )
    problem = of_error(error)
    assert problem.message == "id <16 digits> of <19 digits> is newer"
    assert problem.details == {
        "newest_time": "2018-04-01T00:00:00.123456Z",
        "seen": ("<16 digits>", "<16 digits>"),
    }
    text = problem.response("7").body.decode()
    assert CARD not in text
    assert spaced not in text


def test_a_name_of_a_field_is_masked(client: TestClient) -> None:
    error = error_of(client.post("/echo", json=item(**{f"x{CARD}": 1})), 400, "invalid_request")
    assert [fault["field"] for fault in error["fields"]] == ["item.x<16 digits>"]


def test_many_faults_are_counted_and_the_first_are_listed() -> None:
    class Rows(BaseModel):
        rows: list[int]

    with pytest.raises(ValidationError) as caught:
        Rows.model_validate({"rows": ["x"] * 500})
    problem = of_input(caught.value)
    assert len(problem.fields) == MAX_FIELDS
    assert problem.message.startswith("500 field(s)")
    assert problem.fields[3][0] == "rows.3"


def test_a_validator_of_a_whole_row_cannot_quote_its_values() -> None:
    class Row(BaseModel):
        card: str
        amount: float

        @model_validator(mode="after")
        def _fits(self) -> Row:
            raise ValueError(f"amount {self.amount:g} is not allowed for this card")

    with pytest.raises(ValidationError) as caught:
        Row.model_validate({"card": CARD, "amount": 250.0})
    assert of_input(caught.value).fields == (("body", "this value is not allowed"),)


# request id


@pytest.mark.parametrize("given", ["abc-123_4.5", "x" * 64])
def test_a_sane_request_id_is_kept(client: TestClient, given: str) -> None:
    assert client.post("/echo", json=item(), headers={"X-Request-ID": given}).headers["x-request-id"] == given
    assert error_of(client.get("/no", headers={"X-Request-ID": given}), 404, "not_found")["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "<script>", "4111111111111112"])
def test_any_other_request_id_is_replaced(client: TestClient, given: str) -> None:
    made = client.post("/echo", json=item(), headers={"X-Request-ID": given}).headers["x-request-id"]
    assert made != given
    assert len(made) == 32


# API key


@pytest.mark.parametrize(
    "headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"X-API-Key": "another-key-of-old-times"}]
)
def test_a_key_opens_everything(keyed: TestClient, headers: dict[str, str]) -> None:
    assert keyed.post("/echo", json=item(), headers=headers).status_code == 200
    assert keyed.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": ""}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": "é" * 16}],
)
def test_without_it_only_the_probes_answer(keyed: TestClient, headers: dict[str, str]) -> None:
    raw = [(name, value.encode()) for name, value in headers.items()]
    for path in ("/echo", "/metrics", "/docs.json", "/", "/nothing", "/livez/", "//readyz"):
        response = keyed.post(path, json=item(), headers=raw)  # type: ignore[arg-type]
        error_of(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    for probe in ("/livez", "/readyz", "/healthz"):
        assert keyed.get(probe, headers=raw).status_code == 200  # type: ignore[arg-type]


def test_the_first_page_names_the_endpoints_and_fetches_nothing(keyed: TestClient) -> None:
    response = keyed.get("/", headers={"X-API-Key": KEY})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "POST /echo" in response.text
    assert not any(word in response.text for word in ("<script", "http:", "https:", "src=", "google"))
    assert keyed.head("/", headers={"X-API-Key": KEY}).status_code == 200
    error_of(keyed.get("/"), 401, "unauthorized")


def test_an_unauthorised_body_is_never_read(keyed: TestClient) -> None:
    app = keyed.app

    async def receive() -> Message:
        raise AssertionError("read")

    sent = asyncio.run(_messages(app, _scope(), receive))  # type: ignore[arg-type]
    assert sent[0]["status"] == 401


@pytest.mark.parametrize("value", ["", " , ", "short", f"{KEY},short"])
def test_a_key_that_guards_nothing_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VERTICALS_API_KEY", value)
    with pytest.raises(BentoMLException, match="VERTICALS_API_KEY") as caught:
        echo.service()
    assert "short," not in str(caught.value)


# the Door alone


def _scope(**headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/x", "headers": raw, "query_string": b""}


async def _messages(app: Any, scope: Scope, receive: Receive) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def _reader(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the whole body and answers its length."""
    total, more = 0, True
    while more:
        message = await receive()
        total, more = total + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(total).encode()})


def _chunks(sizes: list[int]) -> tuple[Receive, list[int]]:
    left = list(sizes)

    async def receive() -> Message:
        size = left.pop(0)
        return {"type": "http.request", "body": b"4" * size, "more_body": bool(left)}

    return receive, left


@pytest.mark.parametrize(
    ("sizes", "status", "unread"), [([60, 40], 200, 0), ([60, 41], 413, 0), ([101, 10, 10], 413, 2), ([], 413, 0)]
)
def test_a_body_over_the_limit_is_refused_at_the_first_byte_too_many(
    sizes: list[int], status: int, unread: int
) -> None:
    door = Door(_reader, service="x", keys=(), body_limit_bytes=100)
    receive, left = _chunks(sizes)
    scope = _scope() if sizes else _scope(content_length="101")  # said beforehand: nothing is read at all
    sent = asyncio.run(_messages(door, scope, receive))
    assert sent[0]["status"] == status
    assert len(left) == unread
    assert sum(message["type"] == "http.response.start" for message in sent) == 1


def test_a_path_that_takes_uploads_has_a_limit_of_its_own() -> None:
    door = Door(_reader, service="x", keys=(), body_limit_bytes=100, upload_limits={_scope()["path"]: 200})
    for sizes, status in (([150, 50], 200), ([150, 51], 413)):
        sent = asyncio.run(_messages(door, _scope(), _chunks(sizes)[0]))
        assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("code", "status"),
    [("unusable_data", 422), ("too_large", 413), ("unavailable", 503), ("crashed", 500), ("internal", 500)],
)
def test_what_ended_a_job_is_told_with_its_own_status(code: str, status: int) -> None:
    problem = of_error(Told(of_code(code, f"file 3 of {CARD}")))
    assert (problem.status, problem.code, problem.message) == (status, code, "file 3 of <16 digits>")
    unknown = of_error(UnknownJob())
    assert (unknown.status, unknown.code) == (404, "unknown_job")


def test_an_application_that_fails_after_its_head_is_cut_and_not_answered_twice() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(CARD)

    door = Door(broken, service="x", keys=(), body_limit_bytes=100)
    sent = asyncio.run(_messages(door, _scope(), _chunks([])[0]))
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_a_websocket_wants_the_key_too() -> None:
    door = Door(_reader, service="x", keys=(b"0" * 32,), body_limit_bytes=100)
    scope = {**_scope(), "type": "websocket"}
    assert asyncio.run(_messages(door, scope, _chunks([])[0])) == [{"type": "websocket.close", "code": 1008}]


def test_a_large_body_reaches_no_endpoint(client: TestClient) -> None:
    error_of(client.post("/echo", content=b"4" * (16 * 2**20 + 1)), 413, "too_large")

    def stream() -> Iterator[bytes]:
        for _ in range(17):
            yield b"4" * 2**20

    error_of(client.post("/echo", content=stream()), 413, "too_large")


# metrics


def test_a_scan_makes_no_series(client: TestClient) -> None:
    for n in range(20):
        assert client.get(f"/scan-{n}").status_code == 404
        assert client.get(f"/assets/scan-{n}").status_code == 404
    client.post("/echo", json=item())
    text = client.get("/metrics").text
    assert "scan-" not in text
    assert 'endpoint="/echo"' in text
    assert 'verticals_prediction_total{application="test.echo",decision="accept"' in text
    assert 'verticals_error_total{code="not_found",service="echo"}' in text
