"""The multimodal service: pictures are indexed, and found by words and by pictures. Typed endpoints and limits; `collection` does it.

`bentoml serve verticals.multimodal:svc`; `/ui` is a page to search with. Heavy imports stand inside the class's `__init__`: BentoML
imports this module in the command's own process too.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
from bentoml.validators import ContentType
from starlette.responses import Response

from core.errors import DataError
from core.monitoring import metrics
from core.serving.http import GuardedService
from core.serving.loader import Loader, require
from verticals.multimodal.requests import (
    Answer,
    Archive,
    ArchiveIndexed,
    Classified,
    Deleted,
    Found,
    Ids,
    Indexed,
    ItemOf,
    ItemTold,
    LabelledPicture,
    Listing,
    Matched,
    NewPicture,
    Page,
    Pair,
    PictureQuery,
    Refused,
    Share,
    SoundQuery,
    TextQuery,
)
from verticals.multimodal.settings import from_environment

if TYPE_CHECKING:
    from core.registry import Version
    from verticals.multimodal.index import Hit
    from verticals.multimodal.retrieval.predictor import Encoded, RetrievalPredictor

APPLICATION = "multimodal.retrieval"
TIMEOUT_SECONDS = 300
MOST_TOLD = 100
"""Pictures of an archive that were refused, and are named."""


class MultimodalService(GuardedService):
    """Pictures may be larger than other requests; `/ui` is a page of ours."""

    def upload_limits(self) -> Mapping[str, int]:
        paths = ("/index", "/index_archive", "/search_by_image", "/search_by_sound", "/match", "/classify")
        return dict.fromkeys(paths, from_environment().upload_bytes)

    def pages(self) -> Mapping[str, str]:
        return {"/ui": (files("verticals.multimodal") / "ui.html").read_text(encoding="utf-8")}


class Multimodal:
    """Find the picture by its words, the words by their picture."""

    def __init__(self) -> None:
        import torch

        from verticals.multimodal.collection import Collection

        self._settings = from_environment()
        torch.set_num_threads(self._settings.threads)
        self._loader: Loader[RetrievalPredictor] = Loader(APPLICATION, load=self._load, warm=self._warm)
        self._collection = Collection(
            self._settings.folder,
            lambda: self._loader.live.model,
            most_pixels=self._settings.most_pixels,
            kept_pixels=self._settings.kept_pixels,
            exact_up_to=self._settings.exact_up_to,
        )
        self._loader.start()

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuses to start without a model: one line, exit code 1."""
        require(APPLICATION)
        from_environment()

    @bentoml.on_shutdown
    async def close(self) -> None:
        self._loader.stop()
        await asyncio.to_thread(self._collection.close)

    @bentoml.api
    async def index(self, request: NewPicture, /) -> Indexed:
        """Index a picture; when this answers it survives a power cut."""
        from verticals.multimodal.collection import Entry

        with tempfile.TemporaryDirectory() as folder:
            given = await request.received(Path(folder))
            entry = Entry(given.picture, given.id, given.caption, _object(given.metadata))
            (made,) = await asyncio.to_thread(self._collection.add, [entry], replace=given.replace)
        return Indexed(
            id=made.id, replaced=made.replaced, caption_cut=made.cut, items=len(self._collection), version=self._version
        )

    @bentoml.api
    async def index_archive(self, request: Archive, /) -> ArchiveIndexed:
        """Index many pictures from a tar; those that cannot be indexed are named, the others are in."""
        with tempfile.TemporaryDirectory() as folder:
            given = await request.received(Path(folder))
            return await asyncio.to_thread(self._index_archive, given.archive, given.replace)

    @bentoml.api
    async def search_by_text(self, request: TextQuery, /) -> Answer:
        """The pictures most like a sentence."""
        started = time.perf_counter()
        found = await asyncio.to_thread(self._collection.search, text=request.text, count=request.count)
        return self._answer(*found, started)

    @bentoml.api
    async def search_by_image(self, request: PictureQuery, /) -> Answer:
        """The items most like a picture: other pictures, and those whose captions say what it shows."""
        with tempfile.TemporaryDirectory() as folder:
            given = await request.received(Path(folder))
            started = time.perf_counter()
            found = await asyncio.to_thread(self._collection.search, picture=given.picture, count=given.count)
        return self._answer(*found, started)

    @bentoml.api
    async def search_by_sound(self, request: SoundQuery, /) -> Answer:
        """The pictures whose words are those of a sound, where the model has learned sounds."""
        with tempfile.TemporaryDirectory() as folder:
            given = await request.received(Path(folder))
            started = time.perf_counter()
            found = await asyncio.to_thread(self._collection.search, sound=given.sound, count=given.count)
        return self._answer(*found, started)

    @bentoml.api
    async def match(self, request: Pair, /) -> Matched:
        """Do a picture and a sentence belong together?"""
        with tempfile.TemporaryDirectory() as folder:
            given = await request.received(Path(folder))
            answer, version = await asyncio.to_thread(self._collection.match, given.picture, given.text)
        chance = float(answer.chance or 0)
        return Matched(
            score=float(answer.score or 0), chance=chance, belongs=chance > 0.5, text_cut=answer.cut, version=version
        )

    @bentoml.api
    async def classify(self, request: LabelledPicture, /) -> Classified:
        """Which of some labels a picture shows, without any training on them."""
        with tempfile.TemporaryDirectory() as folder:
            given = await request.received(Path(folder))
            labels = _labels(given.labels)
            found, version = await asyncio.to_thread(
                self._collection.classify, given.picture, labels, template=given.template
            )
        return Classified(
            labels=[Share(label=one.label, chance=one.chance, score=one.score) for one in found], version=version
        )

    @bentoml.api
    async def delete(self, request: Ids, /) -> Deleted:
        """Delete items, all or none."""
        await asyncio.to_thread(self._collection.delete, request.ids)
        return Deleted(items=len(self._collection))

    @bentoml.api
    async def item(self, request: ItemOf, /) -> ItemTold:
        """What is kept of an item."""
        kept = await asyncio.to_thread(self._collection.get, request.id)
        return ItemTold(id=kept.id, metadata=dict(kept.metadata), has_picture=kept.thumbnail is not None)

    @bentoml.api
    async def picture(self, request: ItemOf, /) -> Annotated[Path, ContentType("image/jpeg")]:
        """An item's picture, as it is kept."""
        kept = await asyncio.to_thread(self._collection.get, request.id)
        if kept.thumbnail is None:
            raise DataError(f"nothing is kept of the picture {request.id!r}: VERTICALS_KEPT_PIXELS is 0")
        return Response(kept.thumbnail, media_type="image/jpeg")  # type: ignore[return-value]

    @bentoml.api
    async def items(self, request: Page, /) -> Listing:
        """What is in the index."""
        ids = await asyncio.to_thread(self._collection.ids, request.count, after=request.after)
        return Listing(ids=ids, items=len(self._collection), version=self._version)

    @property
    def _version(self) -> str:
        return self._loader.live.model.version

    def _index_archive(self, archive: Path, replace: bool) -> ArchiveIndexed:
        from verticals.multimodal.collection import BATCH, Entry, Refusal
        from verticals.multimodal.retrieval.formats import samples

        found = list(samples([archive]))
        indexed = replaced = 0
        reasons: list[Refused] = []
        for first in range(0, len(found), BATCH):
            entries = []
            for sample in found[first : first + BATCH]:
                try:
                    pair = sample.pair(needs_caption=False)
                except DataError as error:
                    reasons.append(Refused(id=sample.key, reason=str(error)))
                else:
                    caption = pair.captions[0] if pair.captions else None
                    entries.append(Entry(pair.file.read(), pair.id, caption, pair.metadata))
            for made in self._collection.add_each(entries, replace=replace):
                if isinstance(made, Refusal):
                    reasons.append(Refused(id=made.id, reason=made.reason))
                else:
                    indexed, replaced = indexed + 1, replaced + made.replaced
        return ArchiveIndexed(
            indexed=indexed,
            replaced=replaced,
            refused=len(reasons),
            reasons=reasons[:MOST_TOLD],
            items=len(self._collection),
            version=self._version,
        )

    def _answer(self, hits: list[Hit], understood: Encoded, version: str, started: float) -> Answer:
        seconds = time.perf_counter() - started
        metrics.predicted(APPLICATION, version, "found" if hits else "nothing", seconds=seconds)
        return Answer(
            hits=[Found(id=hit.id, score=hit.score, metadata=hit.metadata) for hit in hits],
            items=len(self._collection),
            version=version,
            text_cut=understood.cut,
            seconds=round(seconds, 4),
        )

    def _load(self, version: Version) -> RetrievalPredictor:
        from core.inference.model import build
        from core.inference.session import SessionConfig
        from verticals.multimodal.retrieval import APPLICATION as retrieval

        session = SessionConfig(threads=self._settings.threads)
        predictor: RetrievalPredictor = build(retrieval, version.path, version.version, session=session)[1]
        return predictor

    def _warm(self, new: RetrievalPredictor, old: RetrievalPredictor | None) -> None:
        new.warm()
        self._collection.open(new)


def _object(text: str | None) -> dict[str, Any]:
    """Raises DataError for what is no JSON object."""
    if not text:
        return {}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"metadata is no JSON ({error}); send an object, as {{}}") from None
    if not isinstance(record, dict):
        raise DataError(f"metadata is a JSON {type(record).__name__}; send an object, as {{}}")
    return record


def _labels(text: str) -> list[str]:
    """Raises DataError for a JSON list of other things than texts."""
    if not text.lstrip().startswith("["):
        return [label.strip() for label in text.split(",") if label.strip()]
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"labels are no JSON list ({error}); send a list of texts, or texts with commas between"
        ) from None
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise DataError("labels are a JSON list of other things than texts; send texts that are not empty")
    return [label.strip() for label in labels]


svc = bentoml.service(
    service_class=MultimodalService,
    name="multimodal",
    workers=1,
    traffic={"timeout": TIMEOUT_SECONDS, "max_concurrency": 64},
)(Multimodal)
