"""The manufacturing service: PCB inspection over HTTP, and for a line. Typed endpoints and limits; the work is done by `line.Line`.

`bentoml serve verticals.manufacturing:svc`; `/ui` shows boards with their findings. Heavy imports stand inside the class's
`__init__`: BentoML imports this module in the command's own process too.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import bentoml
from bentoml.exceptions import BentoMLException
from bentoml.validators import ContentType
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from core.errors import VerticalsError
from core.monitoring import metrics
from core.serving.http import GuardedService
from core.serving.loader import Loader, require
from core.serving.uploads import Upload
from verticals.manufacturing.settings import check_port, from_environment

if TYPE_CHECKING:
    from core.data.pictures import Picture
    from core.registry import Version
    from verticals.manufacturing.pcb.predictor import Inspection, PcbPredictor
    from verticals.manufacturing.products import Product
    from verticals.manufacturing.results import Kept

APPLICATION = "manufacturing.pcb"
TIMEOUT_SECONDS = 300
PartId = Annotated[str, Field(min_length=1, max_length=100, description="Names the product, as it was taught.")]


class BoardPicture(Upload):
    """A board to inspect now."""

    picture: Path = Field(description="PNG, JPEG, TIFF, BMP or WebP; 8 or 16 bit, grey or colour.")
    part_id: PartId | None = Field(None, description="The product; without one no golden board is compared.")
    golden: Path | None = Field(None, description="A golden board for this request alone, in place of a PartId.")


class Lesson(Upload):
    """A product and its golden board."""

    part_id: PartId
    picture: Path = Field(description="Of a board without a defect.")
    mm_per_pixel: float | None = Field(
        None, gt=0, le=100, description="Scale of this product's pictures, for answers in mm."
    )


class Taught(BaseModel):
    """A product that is known."""

    part_id: str
    revision: str = Field(description="Of its golden board.")
    width: int
    height: int
    mm_per_pixel: float | None


class Finding(BaseModel):
    """What was found at a place of a board."""

    model_config = ConfigDict(serialize_by_alias=True)

    kind: str = Field(alias="class")
    score: float
    counts: bool = Field(description="Whether it counts against the board, by the rules.")
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the board.")
    box_mm: list[float] | None = Field(None, description="The same in mm, where the scale is known.")


class Inspected(BaseModel):
    """What a board's inspection gave."""

    verdict: Literal["pass", "fail", "unknown"]
    version: str
    findings: list[Finding]
    shift: list[int] | None = Field(description="Pixels to the right and down of the golden board.")
    tiles: int
    tiles_skipped: int = Field(description="Tiles that equal the golden board.")
    seconds: float


class Asked(BaseModel):
    """Which results."""

    count: int = Field(20, ge=1, le=200)
    before: int | None = Field(None, description="Go on from this place: `next` of the answer before.")


class Listing(BaseModel):
    """Results, the newest first, as they were sent."""

    results: list[dict[str, Any]]
    next: int | None


class ResultOf(BaseModel):
    """Names a result."""

    result_id: str = Field(min_length=1, max_length=64)


class PictureOf(ResultOf):
    """Names a picture of a result."""

    shown: Literal["annotated", "board"] = "annotated"


class Judged(ResultOf):
    """What an operator says of a finding."""

    finding: int = Field(ge=0, description="Its number in the result, from 0.")
    verdict: Literal["defect", "no defect"]
    kind: str | None = Field(None, alias="class", description="The class that it really is, where it is another.")


class Known(BaseModel):
    """The products, and the model's classes."""

    products: list[Taught]
    classes: list[str]
    version: str


class ManufacturingService(GuardedService):
    """Pictures may be larger than other requests; `/ui` is a page of ours."""

    def upload_limits(self) -> Mapping[str, int]:
        return dict.fromkeys(("/inspect", "/annotate", "/teach"), from_environment().upload_bytes)

    def pages(self) -> Mapping[str, str]:
        return {"/ui": (files("verticals.manufacturing") / "ui.html").read_text(encoding="utf-8")}


class Manufacturing:
    """PCB inspection: boxes, classes and a verdict for a board; results of a line, and operators' words on them."""

    def __init__(self) -> None:
        import torch

        from verticals.manufacturing.line import Line

        self._settings = from_environment()
        torch.set_num_threads(self._settings.threads)
        self._loader: Loader[PcbPredictor] = Loader(APPLICATION, load=self._load, warm=self._warm)
        self._line = Line(self._settings, lambda: self._loader.live.model)
        self._loader.start()
        self._line.start()

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuses to start without a model or with settings that are none: one line, exit code 1."""
        require(APPLICATION)
        try:
            check_port(from_environment())
        except VerticalsError as error:
            raise BentoMLException(str(error)) from None

    @bentoml.on_shutdown
    async def close(self) -> None:
        """The board that is inspected now is queued again."""
        await asyncio.to_thread(self._line.stop)
        self._loader.stop()

    @bentoml.api
    async def inspect(self, request: BoardPicture, /) -> Inspected:
        """Find a board's defects: boxes in pixels, classes, scores, and the verdict by the rules."""
        answer, _, product = await self._inspected(request)
        return self._told(answer, product)

    @bentoml.api
    async def annotate(self, request: BoardPicture, /) -> Annotated[Path, ContentType("image/png")]:
        """The board as a picture, a frame around each finding."""
        from verticals.manufacturing.drawing import annotated, as_png

        answer, picture, _ = await self._inspected(request)
        classes = self._loader.live.model.classes
        png = await asyncio.to_thread(lambda: as_png(annotated(picture, answer.findings, answer.counted, classes)))
        return Response(png, media_type="image/png")  # type: ignore[return-value]

    @bentoml.api
    async def teach(self, request: Lesson, /) -> Taught:
        """Register a product by its golden board; taught again, the new golden board takes the old one's place."""
        with tempfile.TemporaryDirectory(dir=self._line.spare) as folder:
            given = await request.received(Path(folder))
            product = await asyncio.to_thread(
                self._line.products.teach,
                given.part_id,
                given.picture,
                white=self._loader.live.model.config.data.white,
                mm_per_pixel=given.mm_per_pixel,
            )
        return _taught(product)

    @bentoml.api
    async def products(self) -> Known:
        """What was taught, and what the model tells apart."""
        model = self._loader.live.model
        known = await asyncio.to_thread(self._line.products.all)
        return Known(
            products=[_taught(product) for product in known], classes=list(model.classes), version=model.version
        )

    @bentoml.api
    async def results(self, request: Asked, /) -> Listing:
        """The line's results, the newest first, with what operators said of them."""
        kept = await asyncio.to_thread(self._line.results.newest, request.count, before=request.before)
        rows = [self._row(one) for one in kept]
        return Listing(results=rows, next=kept[-1].seq if len(kept) == request.count else None)

    @bentoml.api
    async def picture(self, request: PictureOf, /) -> Annotated[Path, ContentType("application/octet-stream")]:
        """A result's picture: with its findings, or as it came."""
        data = await asyncio.to_thread(self._line.picture, request.result_id, request.shown)
        return Response(data, media_type="image/png" if request.shown == "annotated" else "application/octet-stream")  # type: ignore[return-value]

    @bentoml.api
    async def judge(self, request: Judged, /) -> Listing:
        """Keep an operator's word on a finding; the result's row as it is then."""
        await asyncio.to_thread(self._line.judge, request.result_id, request.finding, request.verdict, request.kind)
        return Listing(results=[self._row(self._line.results.get(request.result_id))], next=None)

    @bentoml.api
    async def training_data(self) -> Annotated[Path, ContentType("application/zip")]:
        """The boards whose findings operators judged, as a COCO data set with golden boards: unpack it, and train from it."""
        with tempfile.TemporaryDirectory(dir=self._line.spare) as folder:
            target = Path(folder) / "judged.zip"
            await asyncio.to_thread(self._line.training_data, target)
            size, packed = target.stat().st_size, target.open("rb")  # goes when it is closed, whoever hangs up
        return StreamingResponse(  # type: ignore[return-value]
            iter(partial(packed.read, 1 << 20), b""),
            media_type="application/zip",
            headers={"content-length": str(size), "content-disposition": 'attachment; filename="judged.zip"'},
        )

    def _row(self, kept: Kept) -> dict[str, Any]:
        """A result with what operators said of its findings."""
        judged = self._line.results.judgements(kept.id)
        return {**kept.record, "judgements": {str(finding): list(words) for finding, words in judged.items()}}

    async def _inspected(self, request: BoardPicture) -> tuple[Inspection, Picture, Product | None]:
        with tempfile.TemporaryDirectory(dir=self._line.spare) as folder:
            given = await request.received(Path(folder))
            started = time.perf_counter()
            answer, picture, product = await asyncio.to_thread(
                self._line.inspect, given.picture, given.part_id, golden=given.golden
            )
        version = self._loader.live.model.version
        metrics.predicted(APPLICATION, version, answer.verdict, seconds=time.perf_counter() - started)
        return answer, picture, product

    def _told(self, answer: Inspection, product: Product | None) -> Inspected:
        from verticals.manufacturing.pcb.answers import record_of

        record = record_of(answer, self._loader.live.model, mm_per_pixel=product.mm_per_pixel if product else None)
        return Inspected.model_validate(record)

    def _load(self, version: Version) -> PcbPredictor:
        from core.inference.model import build
        from core.inference.session import SessionConfig
        from verticals.manufacturing.pcb import APPLICATION as pcb

        session = SessionConfig(threads=self._settings.threads, streams=self._settings.streams)
        predictor: PcbPredictor = build(
            pcb, version.path, version.version, session=session, streams=self._settings.streams
        )[1]
        return predictor

    def _warm(self, new: PcbPredictor, old: PcbPredictor | None) -> None:
        new.warm()


def _taught(product: Product) -> Taught:
    return Taught(
        part_id=product.part_id,
        revision=product.revision,
        width=product.width,
        height=product.height,
        mm_per_pixel=product.mm_per_pixel,
    )


svc = bentoml.service(
    service_class=ManufacturingService,
    name="manufacturing",
    workers=1,
    traffic={"timeout": TIMEOUT_SECONDS, "max_concurrency": 16},
)(Manufacturing)
