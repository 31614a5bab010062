"""The OPC UA server as a client of the plant sees it: an event for each result, and the newest in a variable."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from asyncua import Client
from asyncua.ua import UaStatusCodeError

from core.errors import ConfigError
from verticals.manufacturing.connect.opcua import NAMESPACE, ResultServer
from verticals.manufacturing.results import COMPLETED, MOST_SHOWN, payload_of
from verticals.manufacturing.settings import check_port, from_environment


@pytest.fixture
def url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"opc.tcp://127.0.0.1:{free.getsockname()[1]}"


def payload(number: int) -> bytes:
    return payload_of(
        {
            "ResultId": f"r{number}",
            "PartId": "A1",
            "RecipeId": "v1/abc",
            "ResultState": COMPLETED,
            "CreationTime": 1_700_000_000.5 + number,
            "Name": f"{number}.png",
            "ResultContent": {"verdict": "fail", "findings": [{"class": "öffen", "box": [1, 2, 3, 4]}]},
        }
    )


class Events:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def event_notification(self, event: Any) -> None:
        self.seen.append(event)


async def listened(url: str, publish: Any, count: int) -> tuple[list[Any], list[str]]:
    async with Client(url) as client:
        place = await client.get_namespace_index(NAMESPACE)
        management = await client.nodes.objects.get_child([f"{place}:VisionSystem", f"{place}:ResultManagement"])
        kind = await client.nodes.base_event_type.get_child(f"{place}:ResultReadyEventType")
        events = Events()
        subscription = await client.create_subscription(50, events)
        await subscription.subscribe_events(management, kind)
        await asyncio.to_thread(publish)
        for _ in range(200):
            if len(events.seen) >= count:
                break
            await asyncio.sleep(0.05)
        variable = await management.get_child(f"{place}:Results")
        with pytest.raises(UaStatusCodeError):  # nobody but the line writes
            await variable.write_value(["mine"])
        return events.seen, await variable.read_value()


def test_a_client_gets_every_result_as_an_event_and_reads_the_newest(url: str) -> None:
    server = ResultServer(url)
    server.start()
    try:
        events, newest = asyncio.run(listened(url, lambda: [server.publish(payload(n)) for n in range(3)], 3))
    finally:
        server.stop()
    assert [event.ResultId for event in events] == ["r0", "r1", "r2"]
    first = events[0]
    assert (first.PartId, first.ExternalRecipeId, first.ResultState) == ("A1", "v1/abc", COMPLETED)
    assert (first.IsPartial, first.IsSimulated) == (False, False)
    assert first.CreationTime.timestamp() == pytest.approx(1_700_000_000.5)
    assert json.loads(first.ResultContent)["findings"][0]["class"] == "öffen"
    assert newest == [payload(n).decode() for n in range(3)]


def test_what_was_written_down_before_the_start_is_shown(url: str) -> None:
    server = ResultServer(url)
    server.start([payload(0), payload(1)])
    try:
        _, newest = asyncio.run(listened(url, lambda: server.publish(payload(2)), 1))
    finally:
        server.stop()
    assert newest == [payload(n).decode() for n in range(3)]


def test_only_so_many_results_are_kept(url: str) -> None:
    server = ResultServer(url)
    server.start()
    try:
        _, newest = asyncio.run(
            listened(url, lambda: [server.publish(payload(n)) for n in range(MOST_SHOWN + 5)], MOST_SHOWN + 5)
        )
    finally:
        server.stop()
    assert len(newest) == MOST_SHOWN
    assert json.loads(newest[-1])["ResultId"] == f"r{MOST_SHOWN + 4}"


def test_a_port_that_is_taken_is_said(url: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(url.rpartition(":")[2])))
        taken.listen()
        with pytest.raises(ConfigError, match="VERTICALS_OPCUA_URL .* cannot be listened on"):
            ResultServer(url).start()


@pytest.mark.parametrize(
    "url", ["opc.tcp://", "opc.tcp://127.0.0.1:99999", "http://127.0.0.1:4840", "opc.tcp://host:no"]
)
def test_a_url_that_is_none_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTICALS_OPCUA_URL", url)
    with pytest.raises(ConfigError, match=r"allowed is opc.tcp://HOST:PORT"):
        from_environment()


def test_a_taken_port_is_told_before_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTICALS_OPCUA_URL", url)
    check_port(from_environment())
    port = int(url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError, match="free the port"):
        check_port(from_environment())
