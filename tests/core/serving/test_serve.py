"""The same through a real `bentoml serve`: its processes, its logs, its timing."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from core import registry
from tests.core.serving import echo
from tests.core.serving.conftest import Server, start, stop, wait_until_ready

CARD = "4111111111111111"


@pytest.fixture
def at_home(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, with this process looking at the same registry."""
    monkeypatch.setenv("BENTOML_HOME", str(server.home))
    return server


def item(amount: float, note: str = "") -> dict[str, object]:
    return {"item": {"card": CARD, "amount": amount, "note": note}}


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_32_clients_get_their_own_answers_and_errors(server: Server) -> None:
    def run(number: int) -> list[tuple[float, int, float | str]]:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            answers: list[tuple[float, int, float | str]] = []
            for step in range(20):
                amount = 13.0 if (number + step) % 10 == 0 else 100.0 + number + step
                response = client.post("/echo", json=item(amount))
                body = response.json()
                answers.append((amount, response.status_code, body.get("amount") or body["error"]["code"]))
            return answers

    with ThreadPoolExecutor(32) as clients:
        answers = [answer for many in clients.map(run, range(32)) for answer in many]
    assert len(answers) == 640
    for amount, status, got in answers:
        assert (status, got) == ((422, "unusable_data") if amount == 13 else (200, 2 * amount))
    sizes = httpx.get(f"{server.url}/metrics").text
    count = _sample(sizes, 'verticals_batch_size_count{application="test.echo"}')
    assert _sample(sizes, 'verticals_batch_size_sum{application="test.echo"}') >= 1.5 * count  # they were gathered


def _sample(text: str, name: str) -> float:
    return next(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


def test_more_than_the_service_may_do_at_once_is_refused_in_the_envelope(server: Server) -> None:
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(64) as threads:
        calls = [threads.submit(client.post, f"{server.url}/slow", json={"seconds": 2.0}) for _ in range(64)]
        responses = [call.result() for call in calls]
    codes = Counter(response.status_code for response in responses)
    assert set(codes) == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-request-id"] == refused.json()["error"]["request_id"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload_gets_its_413(server: Server, chunked: bool) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(24):
            yield b"4" * 2**20

    response = httpx.post(f"{server.url}/echo", content=stream() if chunked else b"".join(stream()), timeout=30)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "too_large"


def test_versions_and_thresholds_change_under_load_and_no_request_is_lost(at_home: Server, tmp_path: Path) -> None:
    first = registry.resolve(echo.NAME)
    done = threading.Event()

    def run(_: int) -> list[tuple[int, float, float | None]]:
        answers = []
        with httpx.Client(base_url=at_home.url, timeout=30) as client:
            while not done.is_set():
                response = client.post("/echo", json=item(1.0))
                answers.append((response.status_code, response.json().get("amount"), response.json().get("threshold")))
        return answers

    def answered() -> dict[str, object]:
        return dict(httpx.post(f"{at_home.url}/echo", json=item(1.0)).json())

    with ThreadPoolExecutor(8) as clients:
        loads = [clients.submit(run, number) for number in range(8)]
        try:
            for scale in (3.0, 4.0, None, 5.0):  # None cannot be loaded: 4 goes on
                version = registry.register(echo.write_run(tmp_path / f"run-{scale}", scale=scale), echo.NAME)
                registry.set_alias(echo.NAME, "production", version)
                if scale is None:
                    _until(lambda version=version: f"version {version} cannot be loaded" in at_home.log.read_text())  # type: ignore[misc]
                    assert answered()["amount"] == 4.0
                else:
                    _until(lambda version=version: answered()["version"] == version)  # type: ignore[misc]
            registry.set_threshold(echo.NAME, "production", 0.125)
            _until(lambda: answered()["threshold"] == 0.125)
            registry.set_alias(echo.NAME, "production", first.version)
            _until(lambda: answered()["version"] == first.version)
        finally:
            done.set()
        answers = [answer for load in loads for answer in load.result()]
    assert len(answers) > 200
    assert {status for status, _, _ in answers} == {200}
    assert {amount for _, amount, _ in answers} == {2.0, 3.0, 4.0, 5.0}
    assert {(amount, threshold) for _, amount, threshold in answers if threshold is not None} == {(5.0, 0.125)}
    metrics = httpx.get(f"{at_home.url}/metrics").text
    assert _sample(metrics, 'verticals_model_reload_total{application="test.echo",outcome="failed"}') == 1
    assert _sample(metrics, 'verticals_model_reload_total{application="test.echo",outcome="loaded"}') == 4
    assert _sample(metrics, f'verticals_model_info{{application="test.echo",version="{first.version}"}}') == 1


def test_no_value_that_was_sent_is_in_any_log_or_file(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert client.post("/echo", json=item(1.0)).status_code == 200
        for note in ("data", "conflict", "artifact", "bug", "chain", "config", "bentoml", "output", "warn"):
            client.post("/fail", json=item(1.0, note))
        client.post(f"/{CARD}?rude", json=item(1.0), headers={"X-Card": CARD})
        client.post(f"/{CARD}?card={CARD}", json=item(1.0))
        client.post("/echo", json={"item": {"card": CARD, "amount": CARD + "x", CARD: CARD}})
        client.post("/echo", content=f'{{"item": {{"card": "{CARD}')
        client.post("/echo", content=CARD, headers={"Content-Type": "multipart/form-data; boundary=x"})
        client.post("/echo", json=item(1.0), headers={"X-Request-ID": CARD, "X-Card": CARD})
        with pytest.raises(httpx.ReadTimeout):
            client.post("/slow", json={"seconds": 2.0}, timeout=0.2)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 5) as raw:
        raw.sendall(f"{CARD} is no HTTP\r\n\r\n".encode())
        raw.recv(1000)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 5) as raw:  # leaves in its body
        raw.sendall(f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{CARD}".encode())
    time.sleep(0.5)
    log = server.log.read_text()
    assert "failed in endpoint fail:" in log
    assert "failed in a layer around the endpoints:" in log
    assert "UserWarning (text withheld)" in log
    assert [line for line in log.splitlines() if CARD in line] == []
    files = [server.log, *(path for path in server.home.rglob("*") if path.is_file())]
    assert [path for path in files if CARD.encode() in path.read_bytes()] == []
    assert CARD not in httpx.get(f"{server.url}/metrics").text


def test_there_is_no_access_log(server: Server) -> None:
    httpx.post(f"{server.url}/echo", json=item(1.0))
    assert "path=/echo" not in server.log.read_text()


def test_a_service_without_a_model_exits_at_once_with_the_command(tmp_path: Path) -> None:
    server = start(tmp_path, tmp_path / "home")
    begun = time.monotonic()
    try:
        assert server.process.wait(60) == 1
    finally:
        stop(server)
    assert time.monotonic() - begun < 30
    lines = server.log.read_text().strip().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("make one with: verticals train test.echo")


def test_a_service_that_cannot_load_its_model_says_why_and_ends(
    release: Callable[[float | None], str], home: Path, tmp_path: Path
) -> None:
    version = release(None)
    server = start(tmp_path / "server", home)
    try:
        server.process.wait(60)
    finally:
        stop(server)
    log = server.log.read_text()
    assert f"test.echo cannot be served: version {version} cannot be loaded: KeyError: 'scale'" in log
    assert log.count("cannot be served") <= 2  # not started again and again
    assert log.count("Traceback") == 0


def test_going_down_answers_what_was_taken(release: Callable[[float | None], str], home: Path, tmp_path: Path) -> None:
    release(2.0)
    server = start(tmp_path / "server", home)
    try:
        wait_until_ready(server)
        with ThreadPoolExecutor(4) as clients:
            slow = [
                clients.submit(httpx.post, f"{server.url}/slow", json={"seconds": 2.0}, timeout=30) for _ in range(4)
            ]
            running = 'bentoml_service_request_in_progress{endpoint="/slow"'
            while not any(
                line.startswith(running) and line.endswith(" 4.0")
                for line in httpx.get(f"{server.url}/metrics").text.splitlines()
            ):
                assert not any(answer.done() for answer in slow)  # all four are taken before the first is answered
                time.sleep(0.05)
            server.process.terminate()
            assert [answer.result().status_code for answer in slow] == [200] * 4
        assert server.process.wait(20) == 0
    finally:
        stop(server)
