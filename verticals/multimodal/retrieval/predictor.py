"""A picture, a text, a sound, or several of them, to embeddings: the only way from a user's input to the index and to every figure.

A missing side is legal: what is given is answered. N picture, M text, T sample, P place, L word, C channel, D numbers of an embedding.
"""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Estimate, Session
from core.data.pictures import Picture
from core.errors import CapacityError, DataError
from core.memory import memory_limit, resident_bytes
from verticals.multimodal.retrieval.audio import Wave, parts_of_sound
from verticals.multimodal.retrieval.config import RetrievalConfig
from verticals.multimodal.retrieval.prepare import prepared
from verticals.multimodal.retrieval.tokens import Tokenizer
from verticals.multimodal.retrieval.weights import Preprocessing

BATCH = 16
"""Pictures or texts of one call."""
BYTES_PER_PIXEL = 12
"""Held while a picture is fitted and resized."""
Vector = NDArray[np.float32]


class Request(NamedTuple):
    """What is asked about; one of the three is enough."""

    picture: Picture | None = None
    """[Y, X, 3]"""
    text: str | None = None
    sound: Wave | None = None
    """[T] at `audio.RATE`."""


class Encoded(NamedTuple):
    """What a request means."""

    picture: Vector | None
    """[D] of length 1."""
    text: Vector | None
    """[D] of length 1."""
    score: float | None
    """How alike the text is to the picture, or else to the sound, where both are given: see `scores`."""
    chance: float | None
    """That picture and text belong together, where as many pairs do as do not."""
    cut: bool
    """Whether the text had more tokens than the model reads."""
    picture_level: float = 0.0
    """How alike the picture is to all captions."""
    text_level: float = 0.0
    """How alike the text is to all pictures."""
    places: Vector | None = None
    """[P, C] of the picture, for the matching head."""
    words: Vector | None = None
    """[L, C] of the text."""
    sound: Vector | None = None
    """[D] of length 1."""

    @property
    def query(self) -> Vector:
        """[D] of length 1: what is given, or the middle of all."""
        given = [side for side in (self.picture, self.text, self.sound) if side is not None]
        whole = np.sum(given, axis=0)
        return np.asarray(whole / np.linalg.norm(whole), np.float32)


class RetrievalPredictor:
    """`predictor([Request]) -> [Encoded]`."""

    def __init__(
        self,
        config: RetrievalConfig,
        constants: Mapping[str, Any],
        session: Session,
        *,
        version: str = "",
        limit_bytes: int | None = None,
    ) -> None:
        """
        Args:
            limit_bytes: what this process may hold; the container's or the machine's where None.

        Raises:
            ArtifactError: the tokenizer is damaged.
        """
        self.config, self.version = config, version
        self.preprocessing = Preprocessing.from_record(constants["preprocessing"])
        self.tokenizer = Tokenizer(constants["tokenizer"], most=int(constants["most_tokens"]))
        self.match: dict[str, float] = {
            "slope": 1.0,
            "middle": 0.0,
            "weight": 1.0,
            "crowd": 0.0,
            **constants.get("match", {}),
        }
        self.inputs, self.outputs = session.inputs, session.outputs
        shapes = {spec.name: spec.shape[1:] for spec in session.outputs}
        self.width = int(shapes["text_embedding"][0])
        self.places_shape = tuple(map(int, shapes["places"])) if "match" in shapes and self.match["weight"] else ()
        """[P, C] of what the matching head looks at; empty where there is none, or its word counts for nothing."""
        self.hears = "sound_embedding" in shapes
        """Whether sounds may be given."""
        self._session, self._limit = session, limit_bytes

    @property
    def looks_again(self) -> bool:
        """Whether scores are more than cosines."""
        return bool(self.places_shape) or self.match["crowd"] > 0

    def __call__(self, requests: Sequence[Request]) -> list[Encoded]:
        """
        Raises:
            DataError: a request without a picture and a text, a picture of another shape, or a text that is none.
            CapacityError: it needs more memory than there may be.
        """
        for request in requests:
            _check(request, hears=self.hears)
        self.admit(requests)
        seen = self._pictures([request.picture for request in requests if request.picture is not None])
        read = self._texts([request.text for request in requests if request.text is not None])
        heard = self._sounds([request.sound for request in requests if request.sound is not None])
        return [
            self._whole(
                ([] if request.picture is None else [next(seen)])
                + ([] if request.sound is None else [next(heard)])
                + ([] if request.text is None else [next(read)])
            )
            for request in requests
        ]

    def scores(self, cosines: Vector, pictures: Sequence[Encoded], texts: Sequence[Encoded]) -> Vector:
        """Looks again at pairs, each picture with each text: the cosine and the matching head's word, less how alike both are to all.

        Args:
            cosines: [N, M] of their embeddings.

        Returns:
            [N, M], at most 1; the cosines where neither counts.
        """
        if not self.looks_again or not cosines.size:
            return cosines
        weight, crowd = self.match["weight"], self.match["crowd"]
        if self.places_shape:
            said = self.matches(places_of(pictures), texts)
            cosines = np.asarray((cosines + weight * said) / (1 + weight), np.float32)
        levels = np.array([[one.picture_level] for one in pictures]) + np.array([one.text_level for one in texts])
        return np.asarray(cosines - crowd * levels, np.float32)

    def matches(self, places: Vector, texts: Sequence[Encoded]) -> Vector:
        """What the matching head alone says of each picture [N, P, C] with each text -> [N, M]."""
        words = [text.words for text in texts if text.words is not None]
        padded = np.zeros((len(words), max(map(len, words)), words[0].shape[1]), np.float32)
        for row, one in zip(padded, words, strict=True):
            row[: len(one)] = one
        return self._session({"places": np.asarray(places, np.float32), "words": padded})["match"]

    def admit(self, requests: Sequence[Request]) -> Estimate:
        """Raises CapacityError where memory would not do; returns the estimate."""
        estimate = self.estimate(requests)
        limit = self._limit or memory_limit()
        if estimate.bytes > limit:
            raise CapacityError(
                f"these pictures need {estimate.bytes / 1e9:.2f} GB of memory, the process itself included; allowed are "
                f"{limit / 1e9:.2f} GB: make them smaller, or give more"
            )
        return estimate

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """The most memory that this process will hold, and seconds."""
        pictures = [request.picture for request in requests if request.picture is not None]
        num_texts = sum(request.text is not None for request in requests)
        parts = sum(len(one.sound) / self.config.model.audio.num_samples for one in requests if one.sound is not None)
        pixels = max((picture.shape[0] * picture.shape[1] for picture in pictures), default=0)
        of_picture, of_text, of_sound = self._cost
        seconds = len(pictures) * of_picture.seconds + num_texts * of_text.seconds + parts * of_sound.seconds
        added = max(
            of_picture.bytes if pictures else 0, of_text.bytes if num_texts else 0, of_sound.bytes if parts else 0
        )
        return Estimate(resident_bytes() + BYTES_PER_PIXEL * pixels + BATCH * added, seconds)

    def warm(self) -> None:
        """Runs each part once, by which `estimate` promises."""
        _ = self._cost

    def chance(self, score: float) -> float:
        """That a picture and a text of this score belong together, where as many pairs do as do not."""
        return 1 / (1 + math.exp(-self.match["slope"] * (score - self.match["middle"])))

    @cached_property
    def _cost(self) -> tuple[Estimate, Estimate, Estimate]:
        """Of one picture, of one text, and of one part of a sound."""
        size = self.preprocessing.size
        blank = np.zeros((1, 3, size, size), np.uint8)
        tokens = np.zeros((1, self.tokenizer.most), np.int64)
        calls: list[dict[str, NDArray[Any]]] = [
            {"picture": blank},
            {"tokens": tokens, "token_mask": np.ones(tokens.shape, np.bool_)},
        ]
        if self.hears:
            calls.append({"sound": np.zeros((1, self.config.model.audio.num_samples), np.float32)})
        costs = []
        for arrays in calls:
            before, started = resident_bytes(), time.perf_counter()
            self._session(arrays)
            grown, again = max(0, resident_bytes() - before), time.perf_counter()
            self._session(arrays)
            costs.append(Estimate(max(grown, 4 * blank.nbytes), min(time.perf_counter() - again, again - started)))
        return costs[0], costs[1], costs[2] if self.hears else Estimate(0, 0.0)

    def _pictures(self, pictures: Sequence[Picture]) -> Iterator[Encoded]:
        for first in range(0, len(pictures), BATCH):
            array = np.stack([prepared(picture, self.preprocessing) for picture in pictures[first : first + BATCH]])
            made = self._session({"picture": array})
            for row, vector in enumerate(made["picture_embedding"]):
                places = made["places"][row] if self.places_shape else None
                level = float(made["picture_level"][row])
                yield Encoded(vector, None, None, None, False, picture_level=level, places=places)

    def _texts(self, texts: Sequence[str]) -> Iterator[Encoded]:
        for first in range(0, len(texts), BATCH):
            tokens = self.tokenizer(texts[first : first + BATCH])
            made = self._session({"tokens": tokens.ids, "token_mask": tokens.mask})
            for row, (vector, cut) in enumerate(zip(made["text_embedding"], tokens.cut, strict=True)):
                words = made["words"][row, tokens.mask[row]] if self.places_shape else None
                level = float(made["text_level"][row])
                yield Encoded(None, vector, None, None, cut, text_level=level, words=words)

    def _sounds(self, sounds: Sequence[Wave]) -> Iterator[Encoded]:
        for sound in sounds:
            parts, made = parts_of_sound(sound, self.config.model.audio.num_samples), []
            for first in range(0, len(parts), BATCH):
                made.append(self._session({"sound": parts[first : first + BATCH]})["sound_embedding"])
            whole = np.concatenate(made).mean(0)
            yield Encoded(None, None, None, None, False, sound=whole / np.linalg.norm(whole))

    def _whole(self, sides: Sequence[Encoded]) -> Encoded:
        """All that is given as one: what another side has not is empty, None or 0."""
        values: list[dict[str, Any]] = [
            {name: value for name, value in side._asdict().items() if value is not None and value is not False}
            for side in sides
        ]
        levels = {name: sum(getattr(side, name) for side in sides) for name in ("picture_level", "text_level")}
        made = Encoded(None, None, None, None, False)._replace(**{**ChainMap(*values), **levels})
        shown = made.sound if made.picture is None else made.picture
        if shown is None or made.text is None:
            return made
        cosines = np.clip(np.atleast_2d(shown @ made.text), -1, 1).astype(np.float32)
        if made.picture is None:
            return made._replace(score=float(cosines[0, 0]))
        score = float(self.scores(cosines, [made], [made])[0, 0])
        return made._replace(score=score, chance=self.chance(score))


def places_of(pictures: Sequence[Encoded]) -> Vector:
    """[N, P, C]; N x 0 x 0 where no head looks at them."""
    blank = np.zeros((0, 0), np.float32)
    return np.stack([blank if one.places is None else one.places for one in pictures])


def _check(request: Request, *, hears: bool) -> None:
    picture, sound = request.picture, request.sound
    if picture is None and request.text is None and sound is None:
        raise DataError("neither a picture nor a text is given; give one of them, or both")
    if sound is not None and not hears:
        raise DataError("a sound is given, and this model has not learned any; train one with model.audio.name")
    if sound is not None and (sound.ndim != 1 or not len(sound) or sound.dtype != np.float32):
        raise DataError(f"a sound is {sound.dtype}{list(sound.shape)}; needed is float32[T], and not none")
    if picture is not None and (picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8):
        raise DataError(f"a picture is {picture.dtype}{list(picture.shape)}; needed is uint8[Y, X, 3]")
