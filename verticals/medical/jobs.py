"""The service's work: scans are checked and admitted when they come, segmented one at a time, answers kept for a while.

Whatever comes with a scan lies in the folder of its job, and goes with it. One lock, `turn`, is held by whoever computes: a
job, a scan that is answered at once, a model that measures itself; so the memory that was promised to one is not another's.
No web package is imported here.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, cast

from core.contract import Estimate
from core.durable.files import remove, written
from core.durable.jobs import Job, Jobs, State, UnknownJob
from core.durable.journal import KeyConflict
from core.durable.worker import Worker
from core.errors import ArtifactError, CapacityError, ConfigError, Conflict, DataError, Unavailable, VerticalsError
from core.memory import resident_bytes
from core.monitoring import metrics
from verticals.medical.answer import write_answer
from verticals.medical.connect import silence
from verticals.medical.formats import NAMES, Format, Wanted, chosen
from verticals.medical.node import Node, check_port, linked
from verticals.medical.scan import opened, volume_of
from verticals.medical.settings import Settings

if TYPE_CHECKING:
    from verticals.medical.connect.receiver import Peer
    from verticals.medical.ct.predictor import CtPredictor

APPLICATION = "medical.ct"
SCAN, SERIES, ANSWER = "scan", "series", "answer"
"""In a job's folder: what was sent, what an archive held, and what is given back."""
KEEPER_SECONDS = 15.0
LEAST_FREE_BYTES = 10**9
"""Of the disk, left to others."""
_LOOK_SECONDS = 0.2
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """How a job is doing, the way back of its result included."""

    job: Job
    state: State
    """`running` until its result has gone back to where the scan came from."""
    code: str | None
    message: str | None
    record: Mapping[str, Any] | None
    """What is known of the answer, once there is one; its files may be fetched then."""


class ScanJobs:
    """Opened by `start`, closed by `stop`."""

    def __init__(self, settings: Settings, predictor: Callable[[], CtPredictor]) -> None:
        """
        Args:
            predictor: the one that answers now; taken once for each scan.

        Raises:
            ArtifactError: the jobs' database is damaged, or another process works on it.
        """
        silence("pydicom", "pynetdicom", "highdicom", "nibabel", "nibabel.global", "PIL", "python_multipart")
        self._settings, self._predictor = settings, predictor
        self.turn = threading.Lock()
        self._door = threading.Lock()  # headers of one scan at a time: a slice's take 0.1 MB
        self._idle_bytes = resident_bytes()
        self.jobs = Jobs(settings.folder / "jobs", most_waiting=settings.most_waiting, most_bytes=settings.queue_bytes)
        self._worker = Worker(self.jobs, self._run)
        self._node: Node | None = None
        if settings.node is not None:
            self._node = Node(settings.node, settings.folder / "node", on_series=self.receive)
        elif (settings.folder / "node").exists():
            logger.warning("this service is no node of the DICOM network any more: what lay there was removed")
            remove(settings.folder / "node")
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        self._worker.start()
        self._keeper.start()
        if self._node is not None:
            self._node.start()

    def stop(self) -> None:
        """The job that runs is queued again, for the next start."""
        self._stopping.set()
        if self._node is not None:
            self._node.stop_receiving()
        stopped = self._worker.stop()
        if self._node is not None:
            self._node.stop()
        if self._keeper.is_alive():
            self._keeper.join()
        if stopped:
            self.jobs.close()

    def upload(self, num_bytes: int = 0) -> AbstractContextManager[Path]:
        """A private folder for a scan, removed at the end unless a job took it.

        Raises:
            Unavailable: as much waits as may, or the disk has no room for so many bytes.
        """
        self._check_room(num_bytes)
        return self.jobs.upload()

    def check(self, folder: Path, formats: Sequence[Format] | None) -> Estimate:
        """Reads the headers of the scan in an upload's folder and says what it will cost; an archive is unpacked.

        Raises:
            DataError: what is wrong with the scan, or with the formats for it.
            CapacityError: it needs more memory than there is.
        """
        with self._door, opened(_scan_in(folder), unpack_to=folder / SERIES) as scan:
            try:
                chosen(formats, of_dicom=scan.is_dicom)
            except ConfigError as error:
                raise DataError(str(error)) from None
            estimate = self._predictor().admit(scan.grid, held_bytes=self._held_bytes())
        if (folder / SERIES).is_dir():
            (folder / SCAN).unlink(missing_ok=True)
        return estimate

    def submit(
        self,
        folder: Path,
        *,
        content: str,
        formats: Sequence[Format] | None = None,
        key: str | None = None,
        peer: str | None = None,
    ) -> str:
        """Queues the scan in an upload's folder; the job's id.

        Args:
            content: sha256 of what was sent: the same key with another content is a mistake.
            key: idempotency key; its hash is kept.
            peer: where the segmentation goes back to.

        Raises:
            DataError, CapacityError: as `check`.
            Unavailable: as much waits as may.
            Conflict: the key was used with another scan or other formats.
        """
        estimate = self.check(folder, formats)
        request = {
            "content": content,
            "formats": None if formats is None else sorted(formats),
            "peer": peer,
        }
        if key is not None:
            key = hashlib.sha256(key.encode()).hexdigest()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        notes = {"promised_gb": round(estimate.bytes / 1e9, 3)}
        try:
            job = self.jobs.submit(
                request, key=key, cost_bytes=size, cost_seconds=estimate.seconds, files=folder, notes=notes
            )
        except KeyConflict:  # it names the key's hash, which nobody sent
            raise Conflict("the key was used before, for another scan or other formats; use a new key") from None
        self._count()
        return job.id

    def receive(self, folder: Path, peer: Peer) -> None:
        """A series that came by C-STORE; one that is no usable scan, or too large, is said in the log."""
        with self.jobs.upload() as own:
            (own / SERIES).mkdir(mode=0o700)
            names = sorted(path.name for path in folder.iterdir())
            with written():
                for name in names:
                    linked(folder / name, own / SERIES / name)
            content = hashlib.sha256(folder.name.encode()).hexdigest()  # a round of a series never changes
            try:
                id = self.submit(own, content=content, key=folder.name, peer=peer.name)
            except (DataError, CapacityError) as error:
                metrics.refused("medical", "unusable_series")
                logger.warning("a series of %d instances from %s is refused: %s", len(names), peer.name, str(error))
            else:
                logger.info("a series of %d instances from %s is job %s", len(names), peer.name, id)

    def segment(self, folder: Path, wanted: Wanted | None) -> tuple[Wanted, IO[bytes]]:
        """Answers the scan in an upload's folder, which was checked; for whoever holds the turn."""
        wanted = wanted or ("seg" if (folder / SERIES).is_dir() else "nifti")
        formats = () if wanted == "json" else None if wanted == "zip" else (wanted,)
        self._answered(folder, folder / ANSWER, formats, lambda share: None)
        return wanted, self.file(folder / ANSWER, wanted)

    def standing(self, id: str) -> Standing:
        """
        Raises:
            UnknownJob: there is none, or none any more.
        """
        job = self.jobs.status(id)
        if job.state != "done":
            return Standing(job, job.state, job.code, job.message, None)
        record = self.jobs.result(id)
        sending = self._sending(job, record)
        if sending is None:
            lost = f"it is not known whether the result went to {job.request['peer']}: the node's settings have changed since"
            return Standing(job, "done", None, lost if record["sending"] else None, record)
        if sending.state == "done":
            return Standing(job, "done", None, None, record)
        if sending.state in ("queued", "running"):
            return Standing(job, "running", None, f"the result is on its way to {job.request['peer']}", record)
        if sending.state == "cancelled":
            return Standing(job, "done", None, "the sending of the result was cancelled", record)
        return Standing(job, "failed", "undelivered", f"the result could not be sent: {sending.message}", record)

    def answer(self, id: str, wanted: Wanted) -> IO[bytes]:
        """A file of a job's answer.

        Raises:
            UnknownJob: there is none, or none any more.
            Conflict: the job has no result yet, or was cancelled.
            NotInAnswer: the answer has no such file.
        """
        self.jobs.result(id)
        return self.file(self.jobs.folder(id) / "output" / ANSWER, wanted)

    def file(self, answer: Path, wanted: Wanted) -> IO[bytes]:
        """Open, so that it may be read to its end whatever becomes of its folder."""
        if wanted == "zip":
            return self._packed(answer)
        try:
            return open(answer / NAMES[wanted], "rb")
        except FileNotFoundError:
            if not answer.exists():
                raise UnknownJob from None
            there = [name for name, file in NAMES.items() if (answer / file).exists()]
            raise NotInAnswer(
                f"the answer has no {wanted}: it was not asked for, the scan does not allow it, no structure was found, or "
                f"it was left out (answer.json says why); there are {', '.join([*there, 'zip'])}"
            ) from None

    def _packed(self, answer: Path) -> IO[bytes]:
        """All of an answer, in a file without a name: it ends with its reader.

        Raises:
            UnknownJob: it is kept no longer.
            Unavailable: the disk has no room for it.
        """
        with written(), ExitStack() as stack:
            try:
                paths = sorted(answer.iterdir())
                self._check_room(sum(path.stat().st_size for path in paths))
                packed = stack.enter_context(TemporaryFile(dir=self.jobs.root))
                with zipfile.ZipFile(packed, "w") as archive:
                    for path in paths:
                        archive.write(path, path.name, zipfile.ZIP_DEFLATED if path.suffix == ".dcm" else None)
            except FileNotFoundError:
                raise UnknownJob from None
            packed.seek(0)
            stack.pop_all()
        return cast(IO[bytes], packed)

    def _check_room(self, num_bytes: int) -> None:
        """Raises Unavailable where the disk would be left with less than others may need."""
        free = shutil.disk_usage(self.jobs.root).free
        if free - num_bytes < LEAST_FREE_BYTES:
            raise Unavailable(
                f"the disk has {free / 1e9:.1f} GB free, which is too little; free space, or send it later"
            )

    def cancel(self, id: str) -> Standing:
        """Ends a job that waits, stops one that runs at its next window, or the sending of its result."""
        job = self.jobs.cancel(id)
        if self._node is not None and job.state == "done" and (sending := self.jobs.result(id)["sending"]):
            self._node.cancel(job.request["peer"], sending)
        self._count()
        return self.standing(id)

    def _held_bytes(self) -> int:
        """What the process holds while nothing is computed: what runs now will be gone when the next one has its turn."""
        if self.turn.acquire(blocking=False):
            try:
                self._idle_bytes = resident_bytes()
            finally:
                self.turn.release()
        return self._idle_bytes

    def _sending(self, job: Job, record: Mapping[str, Any]) -> Job | None:
        if self._node is None or record["sending"] is None:
            return None
        return self._node.sending(job.request["peer"], record["sending"])

    def _run(self, job: Job, tell: Callable[[float], None]) -> Mapping[str, Any]:
        """A job's work; `tell` ends it where it is to stop."""
        while not self.turn.acquire(timeout=_LOOK_SECONDS):
            tell(0.0)
        folder = self.jobs.folder(job.id)
        answer = folder / "output" / ANSWER
        try:
            try:
                record = self._answered(folder / "input", answer, job.request["formats"], tell)
            finally:
                self.turn.release()
            sending, segmentation = None, answer / NAMES["seg"]
            if self._node is not None and job.request["peer"] is not None and segmentation.exists():
                sending = self._node.put(job.request["peer"], job.id, segmentation, tell)
            return {**record, "sending": sending}
        except ArtifactError as error:  # its text is about our files, and a job's text is shown to clients
            logger.error("job %s: %s", job.id[:8], str(error))
            raise ArtifactError("the service cannot answer now; its log says why") from None

    def _answered(
        self, folder: Path, answer: Path, formats: Sequence[Format] | None, tell: Callable[[float], None]
    ) -> dict[str, Any]:
        """Segments the scan in a folder, by the model that answers now, to its end."""
        started = time.perf_counter()
        self._idle_bytes = resident_bytes()
        predictor = self._predictor()
        with opened(_scan_in(folder)) as scan:
            predictor.admit(scan.grid)
            given = scan.read()
        tell(0.0)
        (found,) = predictor([volume_of(given)], progress=tell)
        made = write_answer(
            given,
            found.mask,
            predictor.structures,
            answer,
            algorithm=f"verticals {APPLICATION}",
            version=predictor.version,
            formats=formats,
            tell=lambda: tell(1.0),
        )
        outcome = "segmented" if made.findings else "nothing found"
        metrics.predicted(APPLICATION, predictor.version, outcome, seconds=time.perf_counter() - started)
        return {
            "version": predictor.version,
            "files": list(made.files),
            "windows": found.num_windows,
            "windows_of_air": found.num_skipped,
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _keep(self) -> None:
        """Forgets what was kept for long enough."""
        while not self._stopping.wait(min(KEEPER_SECONDS, self._settings.keep_seconds / 4)):
            try:
                self.jobs.forget(self._settings.keep_seconds)
                if self._node is not None:
                    self._node.forget(self._settings.keep_seconds)
                self._count()
            except VerticalsError as error:
                logger.error("ended jobs could not be forgotten: %s", str(error))

    def _count(self) -> None:
        metrics.queued(APPLICATION, {str(state): count for state, count in self.jobs.counts().items()})


def check(settings: Settings) -> None:
    """Whether a service could start with these settings now.

    Raises:
        ConfigError: the node's port is taken, or the jobs' folder cannot be written to.
        ArtifactError: the jobs' database is damaged, or another process works on it.
    """
    try:
        Jobs(settings.folder / "jobs").close()
    except OSError as error:
        raise ConfigError(
            f"jobs cannot be kept in {settings.folder} ({error.strerror}); set VERTICALS_JOBS to a folder that can be written to"
        ) from None
    if settings.node is not None:
        check_port(settings.node)


class NotInAnswer(DataError):
    """An answer without the file that was asked for."""


def _scan_in(folder: Path) -> Path:
    return folder / SERIES if (folder / SERIES).is_dir() else folder / SCAN
