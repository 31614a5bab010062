"""The finance service as a bank runs it: a real `bentoml serve`, requests over HTTP, kills in the middle of a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from core import registry
from pipelines.export import export
from pipelines.train import train
from tests.bento import Server, kill, start, stop, wait_until_ready
from verticals.finance.fraud.requests import Transaction
from verticals.finance.fraud.store_embedded import EmbeddedStore

NAME = "finance.fraud"
CARD = "4111111111111111"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def transaction(
    number: int, *, customer: str = CARD, amount: float = 20.0, minutes: float | None = None
) -> dict[str, Any]:
    when = START + timedelta(minutes=number if minutes is None else minutes)
    return {
        "transaction_id": f"{customer[-4:]}-{number}",
        "time": when.isoformat(),
        "customer": customer,
        "terminal": "t1",
        "amount": amount,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry with one debug model in production."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        train(NAME, recipe="debug", settings=["fit.max_steps=20"], runs=str(folder / "runs"), alias="production")
        yield folder


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start("verticals.finance:svc", tmp_path_factory.mktemp("server"), home)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop(running)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


def test_it_answers_its_own_example(client: httpx.Client) -> None:
    example = Transaction.model_config["json_schema_extra"]["example"]  # type: ignore[index,call-overload]
    answer = client.post("/score", json=example)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert 0 <= body["score"] <= 1
    assert body["decision"] == ("alert" if body["score"] >= body["threshold"] else "pass")
    assert body["version"] == registry.aliases(NAME)["production"]
    assert body["cold_start"] is True
    assert client.post("/score", json=example).json() == body


def test_its_description_names_every_endpoint(client: httpx.Client) -> None:
    paths = client.get("/docs.json").json()["paths"]
    assert {"/score", "/score_batch", "/feedback"} <= set(paths)


def test_an_event_older_than_its_card_gets_409_with_the_newest_time(client: httpx.Client) -> None:
    assert client.post("/score", json=transaction(10, customer="late-card")).status_code == 200
    refused = client.post("/score", json=transaction(9, customer="late-card"))
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["newest_time"] == (START + timedelta(minutes=10)).isoformat(timespec="milliseconds")
    assert error["code"] == "conflict"
    changed = client.post("/score", json=transaction(10, customer="late-card", amount=21))
    assert changed.status_code == 409


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": -1}, "amount"),
        ({"amount": "much"}, "amount"),
        ({"amount": None}, "amount"),
        ({"amount": True}, "amount"),
        ({"extra": {"mcc": True}}, "extra.mcc"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2999-01-01T00:00:00Z"}, "time"),
        ({"colour": "red"}, "colour"),
        ({"customer": ""}, "customer"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_kept(client: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = client.post("/score", json={**transaction(1, customer="bad-card"), **change})
    assert answer.status_code == 400
    assert field in [fault["field"] for fault in answer.json()["error"]["fields"]]
    unknown = client.post("/feedback", json={"transaction_id": "card-1", "fraud": True})
    assert unknown.status_code == 422


def test_a_missing_field_is_named(client: httpx.Client) -> None:
    body = transaction(1)
    del body["terminal"]
    answer = client.post("/score", json=body)
    assert [fault["field"] for fault in answer.json()["error"]["fields"]] == ["terminal"]


def test_a_batch_answers_each_and_refuses_each_by_itself(client: httpx.Client) -> None:
    rows = [transaction(k, customer=f"batch-{k % 7}") for k in range(40)]
    rows.append(transaction(3, customer="batch-3", amount=77.0))
    answer = client.post("/score_batch", json={"transactions": rows[::-1]})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["refused"] == 1
    assert [result["transaction_id"] for result in body["results"]] == [row["transaction_id"] for row in rows[::-1]]
    (refused,) = [result for result in body["results"] if "error" in result]
    assert (refused["transaction_id"], refused["code"]) == (
        transaction(3, customer="batch-3")["transaction_id"],
        "conflict",
    )
    assert all(0 <= result["score"] <= 1 for result in body["results"] if result is not refused)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"explian": "all"}, "explian"),
        ({"explain": "some"}, "explain"),
        ({"transactions": []}, "transactions"),
        ({"transactions": [{**transaction(1, customer="strict"), "amount": True}]}, "transactions.0.amount"),
    ],
)
def test_a_bad_field_of_a_batch_is_named(client: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = client.post("/score_batch", json={"transactions": [transaction(1, customer="strict")], **change})
    assert answer.status_code == 400, answer.text
    assert [fault["field"] for fault in answer.json()["error"]["fields"]] == [field]


def test_a_batch_over_the_limit_is_refused_whole(client: httpx.Client) -> None:
    rows = [transaction(k, customer="over") for k in range(10_001)]
    answer = client.post("/score_batch", json={"transactions": rows})
    assert answer.status_code == 400
    assert "10000" in answer.text
    assert client.post("/feedback", json={"transaction_id": "over-0", "fraud": True}).status_code == 422


def test_feedback_is_taken_once_and_can_be_reversed(client: httpx.Client) -> None:
    client.post("/score", json=transaction(1, customer="told"))
    for fraud, changed in ((True, True), (True, False), (False, True)):
        answer = client.post("/feedback", json={"transaction_id": "told-1", "fraud": fraud})
        assert answer.json() == {"transaction_id": "told-1", "changed": changed}


def test_thresholds_change_without_a_redeploy(client: httpx.Client) -> None:
    def now(number: int) -> dict[str, Any]:
        return dict(client.post("/score", json=transaction(number, customer="threshold")).json())

    assert now(0)["threshold"] != 0.0
    registry.set_threshold(NAME, "production", 0.0)
    try:
        for number in range(1, 100):
            if (answer := now(number))["threshold"] == 0.0:
                break
            time.sleep(0.1)
        assert answer["decision"] == "alert"
    finally:
        registry.set_threshold(NAME, "production", None)
        time.sleep(1.5)


def test_a_refusal_repeats_no_long_number(client: httpx.Client) -> None:
    number = "5500005555555559"  # an id is kept as it is: not the card that the logs are searched for
    row = {**transaction(50, customer="masked"), "transaction_id": f"id-{number}"}
    assert client.post("/score", json=row).status_code == 200
    for path, body in [
        ("/score", {**row, "amount": 21.0}),
        ("/score", {**transaction(51, customer="masked"), "extra": {number: 1.0}}),
        ("/score", {**transaction(51, customer="masked"), number: 1.0}),
        ("/feedback", {"transaction_id": f"no-{number}", "fraud": True}),
    ]:
        refused = client.post(path, json=body)
        assert 400 <= refused.status_code < 500
        assert number not in refused.text
    (result,) = client.post("/score_batch", json={"transactions": [{**row, "amount": 21.0}]}).json()["results"]
    assert result["transaction_id"] == row["transaction_id"]
    assert number not in result["error"]


def test_metrics_are_our_own(client: httpx.Client) -> None:
    client.post("/score", json=transaction(1, customer="metric"))
    text = client.get("/metrics").text
    version = registry.aliases(NAME)["production"]
    assert f'verticals_prediction_total{{application="{NAME}",decision="' in text
    assert f'version="{version}"' in text
    assert "verticals_prediction_duration_seconds_bucket" in text
    assert "verticals_score_bucket" in text


def test_no_card_number_is_in_any_log_or_file(server: Server, client: httpx.Client) -> None:
    client.post("/score", json=transaction(200))
    client.post("/score", json=transaction(100))
    client.post("/score", json={**transaction(300), "amount": "x"})
    client.post("/score_batch", json={"transactions": [transaction(301), transaction(299)]})
    client.post("/score", content=b'{"customer": "4111111111111111"')
    time.sleep(0.5)
    written = [server.log, *(path for path in server.home.rglob("*") if path.is_file())]
    assert any(path.suffix == ".sqlite" for path in written)
    assert [path for path in written if CARD.encode() in path.read_bytes()] == []


def test_many_clients_with_cards_of_their_own_are_all_answered(server: Server) -> None:
    def run(number: int) -> list[int]:
        with httpx.Client(base_url=server.url, timeout=60) as own:
            return [own.post("/score", json=transaction(k, customer=f"client-{number}")).status_code for k in range(8)]

    with ThreadPoolExecutor(16) as threads:
        codes = [code for many in threads.map(run, range(16)) for code in many]
    assert codes == [200] * 128


@pytest.mark.parametrize("how", ["trained", "exported"])
def test_a_new_version_takes_over_under_load_and_no_request_is_lost(
    server: Server, home: Path, tmp_path: Path, how: str
) -> None:
    before = registry.aliases(NAME)["production"]
    statuses: list[int] = []
    versions: set[str] = set()
    stopped = threading.Event()

    def load(client: int) -> None:
        number = 0
        with httpx.Client(base_url=server.url, timeout=60) as own:
            while not stopped.is_set():
                answer = own.post("/score", json=transaction(number, customer=f"{how[:2]}-{client}"))
                statuses.append(answer.status_code)
                versions.add(answer.json().get("version", answer.text))
                number += 1

    clients = [threading.Thread(target=load, args=(client,)) for client in range(4)]
    for client in clients:
        client.start()
    if how == "trained":
        made = train(NAME, recipe="debug", settings=["fit.max_steps=15"], runs=str(home / "runs"), alias="production")
    else:
        run = train(NAME, recipe="debug", runs=str(home / "runs"), alias="none")["run"]
        made = export(run, format="onnx", output=str(tmp_path / "onnx"), alias="production")
    deadline = time.monotonic() + 60
    while made["version"] not in versions and time.monotonic() < deadline:
        time.sleep(0.1)
    stopped.set()
    for client in clients:
        client.join()
    assert versions == {before, made["version"]}
    assert set(statuses) == {200}


def test_kill_9_in_the_middle_of_a_stream_loses_nothing_and_counts_nothing_twice(home: Path, tmp_path: Path) -> None:
    """Both processes are killed while a client streams; it sends again what was not answered; the end is as without a kill."""
    place = str(tmp_path / "killed.sqlite")
    rows = [transaction(k, customer=f"kill-{k % 5}", amount=10.0 + k) for k in range(120)]
    acknowledged: dict[str, dict[str, Any]] = {}
    for kill_at in (15, 60, None):
        running = start(
            "verticals.finance:svc", tmp_path / f"server-{kill_at}", home, environment={"VERTICALS_FRAUD_STORE": place}
        )
        try:
            wait_until_ready(running)
            with httpx.Client(base_url=running.url, timeout=30) as own:
                for row in rows:
                    if kill_at is not None and len(acknowledged) >= kill_at:
                        threading.Timer(0.003, kill, [running]).start()
                        kill_at = 10**9
                    try:
                        answer = own.post("/score", json=row)
                    except httpx.TransportError:
                        break
                    assert answer.status_code == 200, answer.text
                    first = acknowledged.setdefault(row["transaction_id"], answer.json())
                    assert first == answer.json()
        finally:
            kill(running)
            running.process.wait()
    assert len(acknowledged) == len(rows)
    store = EmbeddedStore(place)
    never = EmbeddedStore(tmp_path / "never.sqlite")
    try:
        assert store.count() == len(rows)
        assert sum(len(chunk) for chunk in store.decisions()) == len(rows)
        from core.inference.model import build
        from verticals.finance.fraud import APPLICATION

        version = registry.resolve(NAME)
        _, predictor = build(APPLICATION, version.path, version.version, store=never)
        for row in rows:
            (decision,) = predictor([Transaction(**row)])
            assert decision.score == pytest.approx(acknowledged[row["transaction_id"]]["score"], rel=1e-5)
    finally:
        store.close()
        never.close()


def test_without_a_model_it_says_which_command_makes_one_and_ends(tmp_path: Path) -> None:
    running = start("verticals.finance:svc", tmp_path, tmp_path / "empty")
    try:
        assert running.process.wait(60) == 1
    finally:
        stop(running)
    assert "make one with: verticals train finance.fraud" in running.log.read_text()


def test_a_second_service_on_the_same_store_says_so_and_ends(server: Server, tmp_path: Path) -> None:
    running = start("verticals.finance:svc", tmp_path, server.home)
    try:
        assert running.process.wait(60) == 1
    finally:
        stop(running)
    assert "is being written by process" in running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def test_a_key_is_wanted_where_one_is_configured(home: Path, tmp_path: Path) -> None:
    key = "a-key-of-enough-characters"
    running = start(
        "verticals.finance:svc",
        tmp_path,
        home,
        environment={"VERTICALS_API_KEY": key, "VERTICALS_FRAUD_STORE": str(tmp_path / "s.sqlite")},
    )
    try:
        wait_until_ready(running)
        with httpx.Client(base_url=running.url, timeout=30) as own:
            assert own.post("/score", json=transaction(1)).status_code == 401
            assert own.post("/score", json=transaction(1), headers={"X-API-Key": key}).status_code == 200
    finally:
        stop(running)


def test_a_number_of_threads_that_is_none_is_refused(home: Path, tmp_path: Path) -> None:
    running = start("verticals.finance:svc", tmp_path, home, environment={"VERTICALS_THREADS": "many"})
    try:
        assert running.process.wait(60) == 1
    finally:
        stop(running)
    assert "VERTICALS_THREADS is 'many'; allowed is a whole number" in running.log.read_text()
