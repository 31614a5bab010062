"""A collection of pictures under one model: what is indexed, what is found, and how it moves to the next model.

Each version of the model has an index of its own, in a folder of its name. Before another version answers, every picture is encoded by
it from what is kept of it: searches and changes go on meanwhile, and none is lost.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.data.pictures import Picture, read_picture
from core.durable.files import flush, remove, written
from core.errors import CapacityError, DataError, Unavailable
from verticals.multimodal.index import EXACT_UP_TO, Hit, Index, Item, UnknownItem
from verticals.multimodal.retrieval.audio import read_sound
from verticals.multimodal.retrieval.evaluation import AGAIN
from verticals.multimodal.retrieval.predictor import Encoded, Request, RetrievalPredictor

BATCH = 64
"""Pictures that are encoded and added together."""
QUALITY = 90
"""Of kept pictures, as JPEG counts it."""
MOST_LABELS = 1000
PLACEHOLDER = "{}"
SUPERSEDED = "superseded"
"""File in the folder of an index that another has taken the place of."""
SETTLE_SECONDS = 30.0
"""For the next model to answer, once its index is whole."""


class Entry(NamedTuple):
    """A picture to index."""

    picture: Path | bytes
    id: str | None = None
    """The first digits of the picture's sha256 where None."""
    caption: str | None = None
    """What is said of it: then its embedding is the middle of both."""
    metadata: Mapping[str, Any] = {}


class Indexed(NamedTuple):
    """What became of an entry."""

    id: str
    replaced: bool
    cut: bool
    """Whether the caption had more tokens than the model reads."""


class Refusal(NamedTuple):
    """An entry that was not indexed."""

    id: str
    reason: str


class Labelled(NamedTuple):
    """A label and its share of the picture."""

    label: str
    chance: float
    score: float


class Collection:
    """Any thread may call."""

    def __init__(
        self,
        folder: Path,
        live: Callable[[], RetrievalPredictor],
        *,
        most_pixels: int,
        kept_pixels: int,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        """
        Args:
            live: the model that answers now.
            most_pixels: of a picture.
            kept_pixels: longest side of what is kept of it; 0 keeps nothing.
            exact_up_to: items that are all compared.
        """
        self._folder, self._live = folder, live
        self._most_pixels, self._kept_pixels, self._exact_up_to = most_pixels, kept_pixels, exact_up_to
        self._indexes: dict[str, Index] = {}
        self._changes = threading.Lock()
        """Held by whoever changes the index: a move to the next model ends between two changes."""
        self._moved: str | None = None
        """Version whose index is whole elsewhere: nothing is changed in it any more."""

    def open(self, model: RetrievalPredictor) -> None:
        """The index of a version; where the current one is another's, all that it holds is encoded anew.

        Raises:
            ArtifactError: an index is damaged, or another process writes it.
            DataError: pictures of which nothing is kept, so that this version cannot encode them.
            Unavailable: the disk is full.
        """
        current = self._current()
        place = self._folder / model.version
        if model.version not in current:
            if former := self._indexes.pop(model.version, None):  # released before, and again now
                former.close()
            remove(place)
        try:
            if current and model.version not in current:
                self._move(self._opened(current[-1]), model)
            self._indexes[model.version] = self._new(place, model)
            for name in current:
                if name != model.version:
                    _mark(self._folder / name)
        except BaseException:
            self._moved = None  # the old one goes on
            raise

    def close(self) -> None:
        while self._indexes:
            self._indexes.popitem()[1].close()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def _index(self) -> Index:
        return self._indexes[self._live().version]

    def add(self, entries: Sequence[Entry], *, replace: bool = False) -> list[Indexed]:
        """Indexes pictures, all or none.

        Raises:
            DataError: a picture, id, caption or metadata that is none.
            Conflict: an id that is in the index.
            CapacityError: a picture has too many pixels.
            Unavailable: the disk is full.
        """
        made = [self._read(entry) for entry in entries]
        with self._changing() as (model, index):
            items, cuts = [], []
            for first in range(0, len(made), BATCH):
                part = made[first : first + BATCH]
                answers = model([Request(picture, entry.caption) for entry, _, picture in part])
                for (entry, id, picture), answer in zip(part, answers, strict=True):
                    items.append(self._item(entry, id, picture, answer))
                    cuts.append(answer.cut)
            known = index.add(items, model=model.version, replace=replace)
        return [Indexed(item.id, item.id in known, cut) for item, cut in zip(items, cuts, strict=True)]

    def add_each(self, entries: Sequence[Entry], *, replace: bool = False) -> list[Indexed | Refusal]:
        """Indexes pictures, and says of each that is refused why. Raises Unavailable."""
        try:
            return [*self.add(entries, replace=replace)]
        except (DataError, CapacityError):
            told: list[Indexed | Refusal] = []
            for entry in entries:
                try:
                    told += self.add([entry], replace=replace)
                except (DataError, CapacityError) as error:
                    told.append(Refusal(entry.id or "", str(error)))
            return told

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes items, all or none. Raises UnknownItem, Unavailable."""
        with self._changing() as (_, index):
            index.delete(ids)

    def search(
        self,
        *,
        text: str | None = None,
        picture: Path | bytes | None = None,
        sound: Path | bytes | None = None,
        count: int,
    ) -> tuple[list[Hit], Encoded, str]:
        """The items most like what is given, the best first; and how it was understood, and by which version.

        Raises:
            DataError: nothing is given, or what is none.
            CapacityError: the picture has too many pixels.
        """
        model = self._live()
        shown = None if picture is None else self._picture(picture, "the picture")
        heard = None if sound is None else read_sound(sound)
        (answer,) = model([Request(shown, text, heard)])
        is_again = shown is None and heard is None and model.looks_again
        wanted = max(count, AGAIN) if is_again or shown is not None else count
        (hits,) = self._indexes[model.version].search(answer.query[None], wanted, model=model.version)
        if shown is not None:
            hits = _alike(hits, answer.query)
        elif is_again:
            hits = _again(model, hits, answer)
        return hits[:count], answer, model.version

    def match(self, picture: Path | bytes, text: str) -> tuple[Encoded, str]:
        """Whether they belong together, and by which version. Raises DataError, CapacityError."""
        model = self._live()
        return model([Request(self._picture(picture, "the picture"), text)])[0], model.version

    def classify(self, picture: Path | bytes, labels: Sequence[str], *, template: str) -> tuple[list[Labelled], str]:
        """Labels by their share of the picture, the largest first, and by which version.

        Raises:
            DataError: no labels, one twice or none, a template without its place, or more words than the model reads.
            CapacityError: the picture has too many pixels.
        """
        if not 2 <= len(labels) <= MOST_LABELS:
            raise DataError(f"{len(labels)} labels are given; allowed are 2 to {MOST_LABELS}")
        if len(set(labels)) < len(labels):
            raise DataError("a label is given twice; give each once")
        if PLACEHOLDER not in template:
            raise DataError(f"the template {template[:60]!r} has no {PLACEHOLDER}, where a label goes")
        model = self._live()
        (shown,) = model([Request(self._picture(picture, "the picture"))])
        said = model([Request(text=template.replace(PLACEHOLDER, label)) for label in labels])
        if cut := next((label for label, answer in zip(labels, said, strict=True) if answer.cut), None):
            raise DataError(
                f"the template with the label {cut[:60]!r} has more tokens than the model reads; give a shorter template or label"
            )
        cosines = np.array([[float(shown.picture @ answer.text) for answer in said]], np.float32)  # type: ignore[operator]
        (scores,) = model.scores(cosines.clip(-1, 1), [shown], said)
        logits = model.match["slope"] * (scores - scores.max())
        chances = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-scores, kind="stable")
        found = [Labelled(labels[place], float(chances[place]), float(scores[place])) for place in order]
        return found, model.version

    def get(self, id: str) -> Item:
        """Raises UnknownItem."""
        return self._index.get(id)

    def has(self, id: str) -> bool:
        """Whether an item has this id."""
        return id in self._index

    def ids(self, count: int, *, after: str) -> list[str]:
        """In alphabetical order."""
        return self._index.ids(count, after=after)

    @contextmanager
    def _changing(self) -> Iterator[tuple[RetrievalPredictor, Index]]:
        """The model that answers and its index, that none else changes."""
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            with self._changes:
                model = self._live()
                if model.version != self._moved:
                    yield model, self._indexes[model.version]
                    return
            if time.monotonic() > end:
                raise Unavailable("the model is being changed; send it again")
            time.sleep(0.02)

    def _read(self, entry: Entry) -> tuple[Entry, str, Picture]:
        data = entry.picture.read_bytes() if isinstance(entry.picture, Path) else entry.picture
        id = entry.id or hashlib.sha256(data).hexdigest()[:16]
        return entry, id, self._picture(data, f"the picture {id[:60]!r}" if entry.id else "the picture")

    def _picture(self, source: Path | bytes, name: str) -> Picture:
        return read_picture(source, num_channels=3, name=name, most_pixels=self._most_pixels)

    def _item(self, entry: Entry, id: str, picture: Picture, answer: Encoded) -> Item:
        metadata = {**entry.metadata, **({"caption": entry.caption} if entry.caption else {})}
        return Item(id, answer.query, metadata, _detail(answer), self._kept(picture))

    def _kept(self, picture: Picture) -> bytes | None:
        if not self._kept_pixels:
            return None
        image = Image.fromarray(picture)
        image.thumbnail((self._kept_pixels, self._kept_pixels))
        held = io.BytesIO()
        image.save(held, "JPEG", quality=QUALITY)
        return held.getvalue()

    def _current(self) -> list[str]:
        """Versions whose index is whole and holds all changes, the oldest first. There is one; two after a crash while it moved."""
        return sorted(
            path.name for path in self._folder.glob("[!.]*") if path.is_dir() and not (path / SUPERSEDED).exists()
        )

    def _opened(self, version: str) -> Index:
        if version not in self._indexes:
            self._indexes[version] = Index(self._folder / version)
        return self._indexes[version]

    def _new(self, folder: Path, model: RetrievalPredictor) -> Index:
        """An index of this model, begun where there is none."""
        return Index(
            folder,
            model=model.version,
            width=model.width,
            detail_width=1 + math.prod(model.places_shape or (0,)) + model.width,
            exact_up_to=self._exact_up_to,
        )

    def _move(self, old: Index, model: RetrievalPredictor) -> None:
        """Encodes what the old index holds, and at last what was changed in it meanwhile."""
        made = self._folder / f".{model.version}"
        remove(made)
        new = self._new(made, model)
        try:
            copied = self._copy(old, new, model, {})
            with self._changes:
                self._copy(old, new, model, copied)
                self._moved = old.model
        except BaseException:
            new.close()
            remove(made)
            raise
        new.close()
        made.rename(self._folder / model.version)
        flush(self._folder)

    def _copy(self, old: Index, new: Index, model: RetrievalPredictor, copied: Mapping[int, str]) -> dict[int, str]:
        """Brings the new index to what the old one holds now, but for what changes meanwhile.

        Args:
            copied: ids by key that were brought before.

        Returns:
            Those that are there now.
        """
        there = old.keys()
        if gone := [id for key, id in copied.items() if key not in there]:
            new.delete(gone)
        made = {key: id for key, id in copied.items() if key in there}
        lacking = [(key, id) for key, id in there.items() if key not in copied]
        for first in range(0, len(lacking), BATCH):
            part = lacking[first : first + BATCH]
            items = [item for _, id in part if (item := self._again(old, id, model)) is not None]
            new.add(items, model=model.version, replace=True)
            ids = {item.id for item in items}
            made |= {key: id for key, id in part if id in ids}
        return made

    def _again(self, old: Index, id: str, model: RetrievalPredictor) -> Item | None:
        """An item as another model sees it; None where it was deleted meanwhile."""
        try:
            item = old.get(id)
        except UnknownItem:
            return None
        if item.thumbnail is None:
            raise DataError(
                f"nothing is kept of the picture {id!r}, so that version {model.version} cannot encode it: index it again, or delete it"
            )
        caption = item.metadata.get("caption")
        picture = read_picture(item.thumbnail, num_channels=3, name=id)
        (answer,) = model([Request(picture, str(caption) if caption else None)])
        return item._replace(vector=answer.query, detail=_detail(answer))


def _detail(answer: Encoded) -> NDArray[np.float16]:
    """What is looked at again, as the index keeps it: how alike the picture is to all, its places, and where it has a caption, itself."""
    places = np.zeros(0, np.float32) if answer.places is None else answer.places.ravel()
    own = np.zeros_like(answer.query) if answer.text is None or answer.picture is None else answer.picture
    return np.concatenate([[answer.picture_level], places, own]).astype(np.float16)


def _of_detail(detail: NDArray[np.float16], shape: tuple[int, ...]) -> Encoded:
    places = np.asarray(detail[1 : 1 + math.prod(shape)], np.float32).reshape(shape) if shape else None
    return Encoded(None, None, None, None, False, picture_level=float(detail[0]), places=places)


def _alike(hits: Sequence[Hit], picture: NDArray[np.float32]) -> list[Hit]:
    """What a picture [D] found, by the item as it is indexed or by its picture alone, whichever is more like it."""
    scores = np.array([hit.score for hit in hits], np.float32)
    if hits and hits[0].detail is not None:
        own = np.array([hit.detail[-len(picture) :] for hit in hits if hit.detail is not None], np.float32)
        scores = np.maximum(scores, own @ picture / np.linalg.norm(own, axis=1).clip(1e-6))
    order = np.argsort(-scores, kind="stable")
    return [hits[place]._replace(score=float(scores[place])) for place in order]


def _again(model: RetrievalPredictor, hits: Sequence[Hit], asked: Encoded) -> list[Hit]:
    """What a text found, looked at again."""
    found = [_of_detail(hit.detail, model.places_shape) for hit in hits if hit.detail is not None]
    if not found:
        return list(hits)
    scores = model.scores(np.array([[hit.score] for hit in hits], np.float32), found, [asked])[:, 0]
    order = np.argsort(-scores, kind="stable")
    return [hits[place]._replace(score=float(scores[place])) for place in order]


def _mark(folder: Path) -> None:
    """Says that an index no longer gets changes."""
    with written():
        (folder / SUPERSEDED).touch()
        flush(folder)
