"""The line: boards come, are inspected one after the other, and their results go out, whatever ends in between.

A board is a job of a durable queue from the moment its picture is complete. Its ResultId is the job's; the result is written down
before it is sent, so that who gets it twice gets the same bytes. What cannot be inspected has a result too, with the verdict
`unknown` and the reason: the line never stops. No web package is imported here.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.pictures import Picture, read_picture
from core.durable.files import flush_tree, remove, written
from core.durable.jobs import Job, Jobs
from core.durable.worker import Worker, log_withheld, pause
from core.errors import DataError, Unavailable, VerticalsError
from core.monitoring import metrics
from verticals.manufacturing.connect.watch import Arrival, FolderWatch, State
from verticals.manufacturing.drawing import annotated, as_png
from verticals.manufacturing.judged import write_judged
from verticals.manufacturing.pcb.answers import record_of
from verticals.manufacturing.pcb.predictor import Inspection, PcbPredictor, Request
from verticals.manufacturing.products import Product, Products, UnknownPart
from verticals.manufacturing.results import (
    ABORTED,
    COMPLETED,
    MOST_SHOWN,
    Judgement,
    Results,
    UnknownResult,
    payload_of,
)
from verticals.manufacturing.settings import Settings

if TYPE_CHECKING:
    from verticals.manufacturing.connect.mqtt import MqttOutbox
    from verticals.manufacturing.connect.opcua import ResultServer

BOARD, ANNOTATED = "board", "annotated.png"
"""In a result's folder: the picture as it came, and with its findings."""
KEEPER_SECONDS = 60.0
LEAST_FREE_BYTES = 10**9
"""Of the disk, left to others."""
RETRY_SECONDS = 2.0
"""Between two tries of a board while the disk is full."""
TRIES = 4
"""So often a board may end the process; then it is not looked at again, and its verdict is `unknown`."""
logger = logging.getLogger(__name__)


class Line:
    """Opened by `start`, closed by `stop`."""

    def __init__(self, settings: Settings, predictor: Callable[[], PcbPredictor]) -> None:
        """
        Args:
            predictor: the one that answers now; taken once for each board.

        Raises:
            ArtifactError: a database is damaged, or another process works on it.
        """
        self._settings, self._predictor = settings, predictor
        self.turn = threading.Lock()
        self.products = Products(settings.folder / "products")
        self.pictures, self.spare = settings.folder / "pictures", settings.folder / "spare"
        remove(self.spare)  # of requests that a crash ended
        for folder in (self.pictures, self.spare):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.results = Results(settings.folder / "results.db")
        self.jobs = Jobs(settings.folder / "boards", most_waiting=10_000, most_attempts=TRIES + 1)
        self._worker = Worker(self.jobs, self._run)
        self._watch: FolderWatch | None = None
        if settings.watched is not None:
            self._watch = FolderWatch(settings.watched, self.receive, settle_seconds=settings.settle_seconds)
        self._mqtt: MqttOutbox | None = None
        if settings.broker is not None:
            from verticals.manufacturing.connect.mqtt import MqttOutbox

            self._mqtt = MqttOutbox(settings.folder / "mqtt", settings.broker, client_id=settings.line_id)
        self._opcua: ResultServer | None = None
        if settings.opcua is not None:
            from verticals.manufacturing.connect.opcua import ResultServer

            self._opcua = ResultServer(settings.opcua)
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        self._keeper.start()
        if self._opcua is not None:
            self._opcua.start([kept.payload for kept in reversed(self.results.newest(MOST_SHOWN))])
        if self._mqtt is not None:
            self._mqtt.start()
        self._worker.start()
        if self._watch is not None:
            self._watch.start()

    def stop(self) -> None:
        """The board that is inspected now is queued again, for the next start."""
        self._stopping.set()
        if self._watch is not None:
            self._watch.stop()
        stopped = self._worker.stop()
        if self._mqtt is not None:
            self._mqtt.stop()
        if self._opcua is not None:
            self._opcua.stop()
        if self._keeper.is_alive():
            self._keeper.join()
        if stopped:
            self.jobs.close()
            self.results.close()

    def receive(self, arrival: Arrival) -> None:
        """Queues a picture and removes it from its folder: once, wherever a crash comes between.

        Raises:
            Unavailable: the queue or the disk is full; the picture stays where it is.
            OSError: it cannot be read or removed.
        """
        self._check_room()
        request = {"part_id": arrival.part_id, "name": arrival.name}
        with self.jobs.upload() as folder:
            with arrival.path.open("rb") as source:
                for chunk in chain([b""], iter(partial(source.read, 2**20), b"")):
                    with written(), (folder / BOARD).open("ab") as target:
                        target.write(chunk)
            if State.of(arrival.path) != arrival.state:  # still being written: it comes again
                return
            self.jobs.submit(request, key=arrival.key, files=folder)
        arrival.path.unlink(missing_ok=True)

    def inspect(
        self, source: Path, part_id: str | None, *, golden: Path | None = None
    ) -> tuple[Inspection, Picture, Product | None]:
        """A board, now. Without a PartId and a golden board of its own it is inspected without one, where the model can.

        Raises:
            DataError: no usable picture, one that does not fit its golden board, or a PartId and a golden board.
            UnknownPart: nobody taught the PartId.
            CapacityError: it needs more memory than there is.
        """
        if part_id is not None and golden is not None:
            raise DataError("there are a PartId and a golden board; give one of them")
        predictor = self._predictor()
        product = self.products.get(part_id) if part_id is not None else None
        channels, white = predictor.num_channels, predictor.config.data.white
        with self.turn:
            picture = read_picture(source, num_channels=channels, white=white, name="the picture")
            twin: Picture | None = None
            if product is not None:
                twin = self.products.golden(product, channels)
            elif golden is not None:
                twin = read_picture(golden, num_channels=channels, white=white, name="the golden board")
            (answer,) = predictor([Request(picture, twin)])
        return answer, picture, product

    def picture(self, result_id: str, shown: str) -> bytes:
        """A result's picture. Raises UnknownResult where it is kept no longer, or was never made."""
        self.results.get(result_id)
        try:
            return (self.pictures / result_id / (ANNOTATED if shown == "annotated" else BOARD)).read_bytes()
        except FileNotFoundError:
            raise UnknownResult from None

    def judge(self, result_id: str, finding: int, verdict: Judgement, kind: str | None) -> None:
        """Keeps an operator's word on a finding. Raises UnknownResult; DataError: no such finding or class."""
        classes = self._predictor().classes
        if kind is not None and kind not in classes:
            raise DataError(f"there is no class {kind!r}; there are {', '.join(classes)}")
        self.results.judge(result_id, finding, verdict, kind=kind, at=time.time())

    def training_data(self, target: Path) -> int:
        """Packs the boards whose findings operators judged as a data set into a zip archive; how many. See `judged`."""
        return write_judged(self.results, self.products, self.pictures, self._predictor().classes, target)

    def _run(self, job: Job, tell: Callable[[float], None]) -> Mapping[str, Any]:
        """A board's work; while the disk is full it waits."""
        while True:
            try:
                self._report(job, tell)
                return {}
            except Unavailable as error:
                logger.warning("board %s waits: %s", job.id[:8], str(error))
                pause(RETRY_SECONDS, tell)

    def _report(self, job: Job, tell: Callable[[float], None]) -> None:
        """Result written down, then sent."""
        tell(0.0)
        payload = self.results.add(self._result(job, self.jobs.folder(job.id) / "input" / BOARD))
        tell(0.5)
        if self._mqtt is not None:
            self._mqtt.put(job.id, str(job.request["part_id"] or "unknown"), payload)
        if self._opcua is not None:
            self._opcua.publish(payload)

    def _result(self, job: Job, source: Path) -> dict[str, Any]:
        """What is reported of a board; its pictures are kept."""
        part_id, started = job.request["part_id"], time.time()
        predictor = self._predictor()
        product: Product | None = None
        shown: bytes | None = None
        state = ABORTED
        content: dict[str, Any] = {"verdict": "unknown", "findings": []}
        try:
            if part_id is None:
                raise UnknownPart("")
            product = self.products.get(part_id)
            if job.attempts > TRIES:
                raise DataError(f"the process ended {TRIES} times while it worked on this board; look at it yourself")
            answer, picture, _ = self.inspect(source, part_id)
            record = record_of(answer, predictor, mm_per_pixel=product.mm_per_pixel)
            payload_of(record)  # here, where what JSON cannot hold is this board's fault
            shown = as_png(annotated(picture, answer.findings, answer.counted, predictor.classes))
            content, state = record, COMPLETED
        except Unavailable:
            raise
        except VerticalsError as error:
            content["reason"] = str(error)
            logger.warning("board %s cannot be inspected: %s", job.id[:8], str(error))
        except (
            Exception
        ) as error:  # the line's edge: whatever it is, the board has its result and the next one its turn
            content["reason"] = (
                "the inspection failed; the log has the place under the first 8 characters of the ResultId"
            )
            log_withheld(job, error)
        self._keep_pictures(job.id, source, shown)
        metrics.predicted("manufacturing.pcb", predictor.version, content["verdict"], seconds=time.time() - started)
        return {
            "ResultId": job.id,
            "PartId": part_id or "",
            "RecipeId": f"{predictor.version}/{product.revision if product else ''}",
            "ResultState": state,
            "CreationTime": started,
            "Name": job.request["name"],
            "ResultContent": content,
        }

    def _keep_pictures(self, id: str, source: Path, shown: bytes | None) -> None:
        with written():
            place, made = self.pictures / id, self.pictures / f".{id}"
            remove(made)
            made.mkdir(mode=0o700)
            shutil.copyfile(source, made / BOARD)
            if shown is not None:
                (made / ANNOTATED).write_bytes(shown)
            flush_tree(made)
            remove(place)
            made.rename(place)

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._settings.folder).free
        if free < LEAST_FREE_BYTES:
            raise Unavailable(
                f"the disk has {free / 1e9:.1f} GB free, which is too little; free space: boards wait in their folder"
            )

    def _keep(self) -> None:
        """Forgets what is older than is kept."""
        while not self._stopping.is_set():
            try:
                self._forget()
            except (OSError, VerticalsError) as error:
                logger.warning("what is older than is kept cannot be removed now: %s", str(error))
            self._stopping.wait(KEEPER_SECONDS)

    def _forget(self) -> None:
        for id in self.results.forget(time.time() - self._settings.keep_seconds):
            remove(self.pictures / id)
        self.jobs.forget(3600.0)
        if self._mqtt is not None:
            self._mqtt.jobs.forget(3600.0)
