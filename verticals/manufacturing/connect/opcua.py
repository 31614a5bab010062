"""An OPC UA server that offers results as OPC 40100-1 (Machine Vision) shapes them: a ResultReady event for each, and the newest
results as variables. N results.

Names of fields are the standard's; the types are made here, in a namespace of our own, since its node set is not ours to ship.
What a client missed while it was away is in `Results`, the newest last; MQTT is the way on which nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

from asyncua import ua
from asyncua.server.server import Server
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.uaerrors import UaError

from core.errors import ConfigError
from verticals.manufacturing.results import MOST_SHOWN

NAMESPACE = "urn:verticals:manufacturing"
START_SECONDS = 20.0
FIELDS: dict[str, tuple[ua.VariantType, Any]] = {
    "ResultId": (ua.VariantType.String, ""),
    "PartId": (ua.VariantType.String, ""),
    "ExternalRecipeId": (ua.VariantType.String, ""),
    "ResultState": (ua.VariantType.Int32, 0),
    "CreationTime": (ua.VariantType.DateTime, None),
    "IsPartial": (ua.VariantType.Boolean, False),
    "IsSimulated": (ua.VariantType.Boolean, False),
    "ResultContent": (ua.VariantType.String, ""),
}
logger = logging.getLogger(__name__)


class ResultServer:
    """Serves from `start` to `stop`, in a thread of its own. Anonymous clients may read; nobody may write."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="opcua", daemon=True)
        self._newest: list[str] = []

    def start(self, newest: Sequence[bytes] = ()) -> None:
        """
        Args:
            newest: results that were written down before, the newest last.

        Raises:
            ConfigError: the port cannot be listened on.
        """
        self._newest = [payload.decode() for payload in newest][-MOST_SHOWN:]
        self._thread.start()
        try:
            self._run(self._open())
        except OSError as error:
            self._end()
            raise ConfigError(
                f"VERTICALS_OPCUA_URL {self._url} cannot be listened on ({error.strerror}); free the port, or name another"
            ) from None

    def stop(self) -> None:
        if self._thread.is_alive():
            self._run(self._server.stop())
            self._end()

    def publish(self, payload: bytes) -> None:
        """A result, as it was written down, to all who listen; where that fails it is logged, and `Results` has it next time."""
        try:
            self._run(self._publish(payload))
        except (TimeoutError, OSError, UaError) as error:
            logger.error("OPC UA: a result was not published (%s)", type(error).__name__)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    async def _open(self) -> None:
        logging.getLogger("asyncua").setLevel(logging.ERROR)
        self._server = Server()
        await self._server.init()
        self._server.set_endpoint(self._url)
        self._server.set_server_name("verticals manufacturing")
        self._server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        place = await self._server.register_namespace(NAMESPACE)
        kind = await self._server.create_custom_event_type(
            place,
            "ResultReadyEventType",
            ObjectIds.BaseEventType,
            [(name, variant) for name, (variant, _) in FIELDS.items()],
        )
        system = await self._server.nodes.objects.add_object(place, "VisionSystem")
        management = await system.add_object(place, "ResultManagement")
        self._results = await management.add_variable(place, "Results", self._newest, ua.VariantType.String)
        self._events = await self._server.get_event_generator(kind.nodeid, management.nodeid)
        await self._server.start()

    async def _publish(self, payload: bytes) -> None:
        record = json.loads(payload)
        event = self._events.event
        event.ResultId, event.PartId = record["ResultId"], record["PartId"]
        event.ExternalRecipeId = record["RecipeId"]
        event.ResultState = ua.Variant(record["ResultState"], ua.VariantType.Int32)
        event.CreationTime = datetime.fromtimestamp(record["CreationTime"], UTC)
        event.IsPartial = event.IsSimulated = False
        event.ResultContent = json.dumps(record["ResultContent"], sort_keys=True)
        self._newest = [*self._newest, payload.decode()][-MOST_SHOWN:]
        await self._results.write_value(ua.Variant(self._newest, ua.VariantType.String))
        await self._events.trigger(message=f"result {record['ResultId']} is ready")
