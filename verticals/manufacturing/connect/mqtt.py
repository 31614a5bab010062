"""Results to an MQTT broker, at least once each and in order, kept on disk while the broker is away.

What is to be sent is a job of a durable queue; it is done when the broker has acknowledged it (QoS 1). A result that was sent and
not acknowledged before a crash is sent again, the same bytes under the same ResultId.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from core.durable.files import written
from core.durable.jobs import Job, Jobs
from core.durable.worker import Worker, pause
from core.errors import ConfigError, Unavailable

RETRY_SECONDS = 1.0
"""Between two tries."""
ACKNOWLEDGE_SECONDS = 10.0
"""For an acknowledgement, until the message is sent again."""
PAYLOAD = "result.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broker:
    """Where results go."""

    host: str
    port: int
    topic: str
    """Results go to `TOPIC/PartId`."""
    username: str | None = None
    password: str | None = None
    tls: bool = False

    @classmethod
    def of(cls, url: str) -> Broker:
        """
        Args:
            url: `mqtt://USER:PASSWORD@HOST:PORT/TOPIC`, or `mqtts` with TLS.

        Raises:
            ConfigError: it is none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ConfigError(
                "the broker's URL is none; allowed is mqtt://USER:PASSWORD@HOST:PORT/TOPIC, or mqtts with TLS"
            )
        topic = unquote(parts.path.strip("/")) or "verticals/pcb"
        if any(mark in topic for mark in "#+\0"):
            raise ConfigError(f"the broker's topic {topic!r} has a wildcard; name one topic")
        tls = parts.scheme == "mqtts"
        user, password = (unquote(text) if text else None for text in (parts.username, parts.password))
        return cls(parts.hostname, port or (8883 if tls else 1883), topic, user, password, tls)


def _level(part_id: str) -> str:
    """The PartId as one level of a topic: what has a meaning there is percent-encoded."""
    return "".join(quote(sign, safe="") if sign in "%#+/\0" else sign for sign in part_id)


class MqttOutbox:
    """Sends from `start` to `stop`."""

    def __init__(self, folder: Path, broker: Broker, *, client_id: str) -> None:
        """
        Args:
            folder: private, of this outbox alone.
            client_id: by which the broker knows this line; no two have the same.

        Raises:
            ArtifactError: the outbox is damaged, or another process works on it.
        """
        self._broker = broker
        self.jobs = Jobs(folder, most_waiting=10**9, most_attempts=10**9)
        self._worker = Worker(self.jobs, self._send)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        if broker.username is not None:
            self._client.username_pw_set(broker.username, broker.password)
        if broker.tls:
            self._client.tls_set()
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_publish = self._acknowledged
        self._is_connected, self._acknowledgements = threading.Event(), threading.Condition()
        self._answers: dict[int, ReasonCode] = {}
        """The broker's, by message."""
        self._is_looping = False

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        stopped = self._worker.stop()
        self._close()
        if stopped:
            self.jobs.close()

    def put(self, result_id: str, part_id: str, payload: bytes) -> None:
        """Has a result sent, once for each ResultId. When this returns it survives a power cut.

        Raises:
            Unavailable: the disk is full.
        """
        with self.jobs.upload() as folder:
            with written():
                (folder / PAYLOAD).write_bytes(payload)
            topic = f"{self._broker.topic}/{_level(part_id)}"
            self.jobs.submit({"result": result_id, "topic": topic}, key=result_id, files=folder)

    def _send(self, job: Job, tell: Callable[[float], None]) -> Mapping[str, Any]:
        payload = (self.jobs.folder(job.id) / "input" / PAYLOAD).read_bytes()
        told = False
        while True:
            try:
                self._publish(job.request["topic"], payload, tell)
            except Unavailable as error:
                if not told:
                    logger.warning("results have to wait: %s", str(error))
                    told = True
                pause(RETRY_SECONDS, tell)
            else:
                if told:
                    logger.info("results go to the broker again")
                return {}

    def _publish(self, topic: str, payload: bytes, tell: Callable[[float], None]) -> None:
        """Returns once the broker has the message. Raises Unavailable."""
        self._connect()
        with self._acknowledgements:
            self._answers.clear()
        sent = self._client.publish(topic, payload, qos=1)
        if sent.rc != paho.MQTT_ERR_SUCCESS:
            self._close()
            raise Unavailable(f"the broker at {self._broker.host}:{self._broker.port} is away")
        waited = 0.0
        while waited < ACKNOWLEDGE_SECONDS:
            tell(0.0)
            with self._acknowledgements:
                if self._acknowledgements.wait_for(lambda: sent.mid in self._answers, 0.2):
                    answer = self._answers[sent.mid]
                    if answer.is_failure:
                        raise Unavailable(
                            f"the broker at {self._broker.host}:{self._broker.port} refuses a result ({answer}): let this line "
                            f"publish to {topic}"
                        )
                    return
            if not self._is_connected.is_set():
                break
            waited += 0.2
        self._close()  # what it may still hold of the message is not sent by itself: we do
        raise Unavailable(f"the broker at {self._broker.host}:{self._broker.port} did not acknowledge a result")

    def _connect(self) -> None:
        if self._is_connected.is_set():
            return
        self._close()
        where = f"the broker at {self._broker.host}:{self._broker.port}"
        try:
            self._client.connect(self._broker.host, self._broker.port, keepalive=15)
        except (OSError, ValueError) as error:
            raise Unavailable(f"{where} is away ({error})") from None
        self._client.loop_start()
        self._is_looping = True
        if not self._is_connected.wait(ACKNOWLEDGE_SECONDS):
            self._close()
            raise Unavailable(f"{where} refuses the connection: check user, password and client id")

    def _close(self) -> None:
        if self._is_looping:
            self._client.disconnect()
            self._client.loop_stop()
        self._is_looping = False
        self._is_connected.clear()

    def _connected(
        self, client: object, data: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if not reason.is_failure:
            self._is_connected.set()

    def _disconnected(
        self, client: object, data: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._is_connected.clear()

    def _acknowledged(
        self, client: object, data: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        with self._acknowledgements:
            self._answers[mid] = reason
            self._acknowledgements.notify_all()
