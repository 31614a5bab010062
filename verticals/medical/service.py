"""The medical service: CT segmentation over HTTP, and as a node of the DICOM network. Typed endpoints and limits; the work
is done by `jobs.ScanJobs`.

`bentoml serve verticals.medical:svc`. Heavy imports stand inside the class's `__init__`: BentoML imports this module in
the command's own process too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import bentoml
from bentoml.exceptions import BentoMLException
from bentoml.validators import ContentType
from pydantic import BaseModel, BeforeValidator, Field
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from core.durable.jobs import State
from core.errors import CapacityError, ConfigError, VerticalsError
from core.memory import memory_limit
from core.serving.batcher import Overloaded
from core.serving.http import GuardedService
from core.serving.loader import Loader, require
from core.serving.problems import Told, of_code
from core.serving.uploads import Upload
from verticals.medical.formats import MEDIA, NAMES, Format, Wanted
from verticals.medical.settings import from_environment

if TYPE_CHECKING:
    from core.registry import Version
    from verticals.medical.ct.predictor import CtPredictor
    from verticals.medical.jobs import Standing

APPLICATION = "medical.ct"
TIMEOUT_SECONDS = 1800
"""From the first byte of a request to the first of its answer: an upload over a slow line is in it."""
CHUNK_BYTES = 2**18


def _listed(given: Any) -> Any:
    """`seg,nifti`, or the field several times."""
    parts = given if isinstance(given, list) else [given]
    return [word.strip() for part in parts for word in str(part).split(",")]


class Submission(Upload):
    """A scan to segment when its turn comes."""

    scan: Path = Field(description="A NIfTI file (.nii, .nii.gz), or a zip archive of one DICOM series.")
    formats: Annotated[list[Format] | None, BeforeValidator(_listed)] = Field(
        None, description="What to make, with commas between; all that the scan allows where left out."
    )
    key: str | None = Field(
        None, min_length=1, max_length=200, description="Idempotency key: sent again, it names the same job."
    )


class SmallScan(Upload):
    """A small scan to segment now."""

    scan: Path = Field(description="A NIfTI file (.nii, .nii.gz), or a zip archive of one DICOM series.")
    format: Wanted | None = Field(None, description="`nifti` where left out, for a DICOM series `seg`.")


class JobId(BaseModel):
    """Names a job."""

    job: str = Field(description="As `/submit` gave it.")


class ResultOf(JobId):
    """Names a file of a job's answer."""

    format: Wanted = "zip"


class JobStatus(BaseModel):
    """How a job is doing."""

    job: str
    state: State
    position: int | None = Field(description="Place in the queue, 1 is next.")
    progress: float = Field(description="Done part of the work, 0 to 1.")
    promised_gb: float = Field(description="The most memory that the service will hold.")
    promised_seconds: float = Field(description="From submission to the end, with what was ahead of it.")
    submitted: datetime
    started: datetime | None
    ended: datetime | None
    version: str | None = Field(description="Of the model that answered.")
    files: list[str] = Field(description="Of the answer, once it is there.")
    code: str | None = Field(description="Why it failed, in one word.")
    message: str | None = Field(description="What failed and what to do, or what it waits for.")


class MedicalService(GuardedService):
    """Scans may be larger than other requests."""

    def upload_limits(self) -> Mapping[str, int]:
        return dict.fromkeys(("/submit", "/segment"), from_environment().upload_bytes)


class Medical:
    """CT segmentation: a mask of organs in patient space. One scan at a time is computed. Research use only."""

    def __init__(self) -> None:
        import torch

        from verticals.medical.jobs import ScanJobs

        self._settings = from_environment()
        torch.set_num_threads(self._settings.threads)
        self._loader: Loader[CtPredictor] = Loader(APPLICATION, load=self._load, warm=self._warm)
        self._jobs = ScanJobs(self._settings, lambda: self._loader.live.model)
        self._loader.start()
        self._jobs.start()

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuses to start without a model, with settings that are none, or beside another service: one line, exit code 1."""
        from verticals.medical.jobs import check

        require(APPLICATION)
        try:
            check(from_environment())
        except VerticalsError as error:
            raise BentoMLException(str(error)) from None

    @bentoml.on_shutdown
    async def close(self) -> None:
        """The job that runs stops at its next window and is queued again."""
        await asyncio.to_thread(self._jobs.stop)
        self._loader.stop()

    @bentoml.api
    async def submit(self, request: Submission, /, ctx: bentoml.Context) -> JobStatus:
        """Take a scan: headers are checked and the cost is held against the limit before the job is accepted (202).

        A scan that needs more memory than there is gets 413 with both figures. The answer names the job, its place, and what it
        will cost.
        """
        async with self._received(request) as (given, stack):
            folder = given.scan.parent
            accept = asyncio.to_thread(self._accept, stack.pop_all(), folder, given)
            status = await asyncio.shield(accept)  # a client that leaves now has its job all the same
        ctx.response.status_code = 202
        return status

    @bentoml.api
    async def segment(self, request: SmallScan, /) -> Annotated[Path, ContentType("application/octet-stream")]:
        """The answer to a small scan: one whose promised time is within the limit; others belong to `/submit` (413).

        It waits for its turn as long as that limit; while a job runs for longer, the answer is 429.
        """
        limit = self._settings.segment_seconds
        async with self._received(request) as (given, stack):
            folder, wanted = given.scan.parent, given.format
            named = None if wanted in (None, "json", "zip") else [wanted]
            promised = await asyncio.to_thread(self._jobs.check, folder, named)
            if promised.seconds > limit:
                raise CapacityError(
                    f"this scan takes about {promised.seconds:.0f} s here; answered at once is what takes up to {limit:g} s: "
                    "send it to /submit"
                )
            await self._turn(limit)
            work = asyncio.to_thread(self._segment, stack.pop_all(), folder, wanted)
            name, file = await asyncio.shield(work)
        return _sent(name, file)  # type: ignore[return-value]

    @bentoml.api
    async def status(self, request: JobId, /) -> JobStatus:
        """How a job is doing; 404 where there is none, or none any more."""
        return _status(await asyncio.to_thread(self._jobs.standing, request.job))

    @bentoml.api
    async def result(self, request: ResultOf, /) -> Annotated[Path, ContentType("application/octet-stream")]:
        """A file of the answer: 409 with the state while there is none, the job's own error where it failed."""
        standing = await asyncio.to_thread(self._jobs.standing, request.job)
        if standing.state == "failed" and standing.record is None:
            raise Told(of_code(standing.code or "failed", standing.message or ""))
        return _sent(request.format, await asyncio.to_thread(self._answer, request))  # type: ignore[return-value]

    @bentoml.api
    async def cancel(self, request: JobId, /) -> JobStatus:
        """End a job that waits, stop one that runs at its next window; one that has ended stays as it is."""
        return _status(await asyncio.to_thread(self._jobs.cancel, request.job))

    @asynccontextmanager
    async def _received(self, request: Any) -> AsyncIterator[tuple[Any, ExitStack]]:
        """The form, its file in a private folder; the stack removes that unless somebody takes it over."""
        with ExitStack() as stack:
            folder = stack.enter_context(self._jobs.upload(request.num_bytes))
            yield await request.received(folder), stack

    def _accept(self, stack: ExitStack, folder: Path, given: Submission) -> JobStatus:
        with stack:
            id = self._jobs.submit(folder, content=given.sha256["scan"], formats=given.formats, key=given.key)
        return _status(self._jobs.standing(id))

    def _segment(self, stack: ExitStack, folder: Path, wanted: Wanted | None) -> tuple[Wanted, IO[bytes]]:
        """With the turn, which it gives back."""
        with stack:
            try:
                return self._jobs.segment(folder, wanted)
            finally:
                self._jobs.turn.release()

    def _answer(self, request: ResultOf) -> IO[bytes]:
        return self._jobs.answer(request.job, request.format)

    async def _turn(self, seconds: float) -> None:
        """Without a thread: threads are for those who work."""
        end = asyncio.get_running_loop().time() + seconds
        while not self._jobs.turn.acquire(blocking=False):
            if asyncio.get_running_loop().time() > end:
                raise Overloaded("other scans are being worked on; send it to /submit, or again later")
            await asyncio.sleep(0.05)

    def _load(self, version: Version) -> CtPredictor:
        from core.inference.model import build
        from core.inference.session import SessionConfig
        from verticals.medical.ct import APPLICATION as ct

        session = SessionConfig(threads=self._settings.threads)
        with self._jobs.turn:  # what it takes was promised to nobody
            predictor: CtPredictor = build(ct, version.path, version.version, session=session)[1]
        return predictor

    def _warm(self, new: CtPredictor, old: CtPredictor | None) -> None:
        import numpy as np

        from verticals.medical.volume import Grid

        window = Grid(new.plan.patch_size, np.diag([*new.plan.spacing_mm, 1.0]))
        with self._jobs.turn:  # it measures itself, with nothing beside it
            needed, limit = new.estimate([window]).bytes, memory_limit()
        if needed > limit:
            raise ConfigError(
                f"a scan of one window needs {needed / 1e9:.2f} GB of memory here, the process itself included; allowed are "
                f"{limit / 1e9:.2f} GB: raise VERTICALS_MEMORY_GB, or give the container more"
            )


def _status(standing: Standing) -> JobStatus:
    job, record = standing.job, standing.record or {}
    return JobStatus(
        job=job.id,
        state=standing.state,
        position=job.position,
        progress=job.progress,
        promised_gb=job.request["promised_gb"],
        promised_seconds=round(job.promised_seconds, 1),
        submitted=_time(job.submitted_at),
        started=None if job.started_at is None else _time(job.started_at),
        ended=None if job.ended_at is None else _time(job.ended_at),
        version=record.get("version"),
        files=record.get("files", []),
        code=standing.code,
        message=standing.message,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _sent(wanted: Wanted, file: IO[bytes]) -> StreamingResponse:
    """An open file as an answer; closed when it is read."""
    size = file.seek(0, 2)
    file.seek(0)

    async def chunks() -> AsyncIterator[bytes]:
        with file:
            async for chunk in iterate_in_threadpool(iter(lambda: file.read(CHUNK_BYTES), b"")):
                yield chunk

    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{NAMES[wanted]}"'}
    return StreamingResponse(chunks(), media_type=MEDIA[wanted], headers=headers)


svc = bentoml.service(
    service_class=MedicalService,
    name="medical",
    workers=1,
    traffic={"timeout": TIMEOUT_SECONDS, "max_concurrency": 64},
)(Medical)
