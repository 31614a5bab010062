"""The line's promise: whatever dies, each board has one ResultId, and whoever gets it twice gets the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import paho.mqtt.client as paho
import pytest
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.servers import Mosquitto
from verticals.manufacturing.products import Products

BOARDS = 200


class Subscriber:
    """Keeps every message of the line, with a session that the broker remembers."""

    def __init__(self, port: int) -> None:
        self.received: list[bytes] = []
        self._lock = threading.Lock()
        self._port = port
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="test", protocol=paho.MQTTv5)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe("line/#", qos=1)
        self._client.reconnect_delay_set(1, 1)

    def start(self) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", self._port, clean_start=False, properties=properties)
        self._client.loop_start()

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, client: object, data: object, message: paho.MQTTMessage) -> None:
        with self._lock:
            self.received.append(bytes(message.payload))

    def by_id(self) -> dict[str, set[bytes]]:
        with self._lock:
            found: dict[str, set[bytes]] = {}
            for payload in self.received:
                found.setdefault(json.loads(payload)["ResultId"], set()).add(payload)
            return found


@contextmanager
def process(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    made = subprocess.Popen(
        [sys.executable, "-m", "tests.verticals.manufacturing.line_process"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert made.stdout is not None
    try:
        assert made.stdout.readline() == "ready\n"
        yield made
    finally:
        made.kill()
        made.wait()
        made.stdout.close()


def until(count: int, subscriber: Subscriber, *, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while len(subscriber.by_id()) < count:
        assert time.monotonic() < end, f"{len(subscriber.by_id())} of {count} results after {seconds} s"
        time.sleep(0.1)


@pytest.fixture
def environment(tmp_path: Path, mosquitto: Mosquitto) -> dict[str, str]:
    for name in ("in", "store"):
        (tmp_path / name).mkdir()
    return {
        "VERTICALS_LINE_FOLDER": str(tmp_path / "in"),
        "VERTICALS_LINE_STORE": str(tmp_path / "store"),
        "VERTICALS_LINE_SETTLE_SECONDS": "0.2",
        "VERTICALS_LINE_ID": "line-1",
        "VERTICALS_MQTT_URL": f"mqtt://127.0.0.1:{mosquitto.port}/line",
    }


def drop(folder: Path, numbers: range, part_id: str) -> None:
    """Pictures as a camera leaves them: one after the other, in the product's folder."""
    (folder / part_id).mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    golden = random.integers(0, 256, (64, 64), np.uint8)
    for number in numbers:
        board = golden.copy()
        board[number % 64, :8] = number % 256
        cv2.imwrite(str(folder / part_id / f".{number}.png"), board)
        (folder / part_id / f".{number}.png").rename(folder / part_id / f"{number:03d}.png")


def begun(folder: Path, mosquitto: Mosquitto) -> tuple[NDArray[np.uint8], Subscriber]:
    """The golden board of a product that is taught, and somebody who listens."""
    golden = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    Products(folder / "store" / "products").teach("A1", cv2.imencode(".png", golden)[1].tobytes())
    subscriber = Subscriber(mosquitto.port)
    subscriber.start()
    return golden, subscriber


def test_no_board_is_lost_or_doubled_whatever_dies(
    environment: dict[str, str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    folder = tmp_path / "in"
    _, subscriber = begun(tmp_path, mosquitto)
    with process(environment):
        drop(folder, range(80), "A1")
        until(20, subscriber)
    # killed, in the middle of its work
    mosquitto.end()
    drop(folder, range(80, 140), "A1")
    with process(environment):
        time.sleep(3)  # boards are inspected, results wait for the broker
    mosquitto.start()
    with process(environment) as line:
        drop(folder, range(140, BOARDS), "A1")
        until(BOARDS, subscriber)
        time.sleep(1)
        line.terminate()
        assert line.wait(30) == 0
    subscriber.stop()
    found = subscriber.by_id()
    assert len(found) == BOARDS
    assert all(len(payloads) == 1 for payloads in found.values())  # delivered again, it was the same bytes
    names = [json.loads(next(iter(payloads)))["Name"] for payloads in found.values()]
    assert sorted(names) == [f"{number:03d}.png" for number in range(BOARDS)]
    assert not list((folder / "A1").iterdir())


def test_an_unknown_part_and_a_broken_picture_are_unknown_and_the_line_goes_on(
    environment: dict[str, str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    folder = tmp_path / "in"
    golden, subscriber = begun(tmp_path, mosquitto)
    (folder / "A1").mkdir()
    (folder / "A1" / "a_empty.png").write_bytes(b"")
    (folder / "A1" / "b_cut.png").write_bytes(cv2.imencode(".png", golden)[1].tobytes()[:-900])
    cv2.imwrite(str(folder / "A1" / "c_other_size.png"), golden[:32])
    cv2.imwrite(str(folder / "d_no_part.png"), golden)
    drop(folder, range(1), "B9")
    with process(environment):
        until(5, subscriber)
        drop(folder, range(1, 2), "A1")
        until(6, subscriber)
    subscriber.stop()
    results = [json.loads(next(iter(payloads))) for payloads in subscriber.by_id().values()]
    told = {
        result["Name"]: (
            result["ResultState"],
            result["ResultContent"]["verdict"],
            result["ResultContent"].get("reason", ""),
        )
        for result in results
    }
    assert told.pop("001.png") == (1, "pass", "")
    assert all(state == 3 and verdict == "unknown" for state, verdict, _ in told.values())
    for name, words in {
        "a_empty.png": "0 bytes",
        "b_cut.png": "cut off",
        "c_other_size.png": "64 x 32 pixels and its golden board 64 x 64",
        "d_no_part.png": "never taught",
        "000.png": "'B9' was never taught",
    }.items():
        assert words in told[name][2]


def test_what_the_broker_refuses_is_kept_and_sent_again(
    environment: dict[str, str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    mosquitto.end()
    mosquitto.start(rights="topic read #\n")
    _, subscriber = begun(tmp_path, mosquitto)
    drop(tmp_path / "in", range(2), "A1")
    drop(tmp_path / "in", range(2, 3), "P#1+")  # signs that have a meaning in a topic
    with process(environment):
        while list((tmp_path / "in").glob("*/*.png")):
            time.sleep(0.1)
        time.sleep(2)
        assert not subscriber.received
        mosquitto.end()
        mosquitto.start()
        until(3, subscriber)
    subscriber.stop()
    assert sorted(json.loads(payload)["Name"] for payload in set(subscriber.received)) == [
        "000.png",
        "001.png",
        "002.png",
    ]
