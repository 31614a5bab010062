"""A picture, a text, or both, to embeddings: the only way from a user's input to the index and to every figure.

A missing side is legal: what is given is answered. N picture, M text, D numbers of an embedding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Estimate, Session
from core.data.pictures import Picture
from core.errors import CapacityError, DataError
from core.memory import memory_limit, resident_bytes
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
    """What is asked about; one of the two may be missing."""

    picture: Picture | None = None
    """[Y, X, 3]"""
    text: str | None = None


class Encoded(NamedTuple):
    """What a request means."""

    picture: Vector | None
    """[D] of length 1."""
    text: Vector | None
    """[D] of length 1."""
    cosine: float | None
    """How alike they are, where both are given."""
    chance: float | None
    """That they belong together, where as many pairs do as do not."""
    cut: bool
    """Whether the text had more tokens than the model reads."""

    @property
    def query(self) -> Vector:
        """[D] of length 1: what is given, or the middle of both."""
        given = [side for side in (self.picture, self.text) if side is not None]
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
        self.match: dict[str, float] = dict(constants.get("match") or {"slope": 1.0, "middle": 0.0})
        self.inputs, self.outputs = session.inputs, session.outputs
        self.width = next(int(spec.shape[1]) for spec in session.outputs if spec.name == "text_embedding")
        self._session, self._limit = session, limit_bytes

    def __call__(self, requests: Sequence[Request]) -> list[Encoded]:
        """
        Raises:
            DataError: a request without a picture and a text, a picture of another shape, or a text that is none.
            CapacityError: it needs more memory than there may be.
        """
        for request in requests:
            _check(request)
        self.admit(requests)
        pictures = self._pictures([request.picture for request in requests if request.picture is not None])
        texts, cut = self._texts([request.text for request in requests if request.text is not None])
        seen, read, cuts = iter(pictures), iter(texts), iter(cut)
        return [
            self._encoded(
                None if request.picture is None else next(seen),
                None if request.text is None else next(read),
                request.text is not None and next(cuts),
            )
            for request in requests
        ]

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
        pixels = max((picture.shape[0] * picture.shape[1] for picture in pictures), default=0)
        of_picture, of_text = self._cost
        seconds = len(pictures) * of_picture.seconds + num_texts * of_text.seconds
        added = max(of_picture.bytes if pictures else 0, of_text.bytes if num_texts else 0)
        return Estimate(resident_bytes() + BYTES_PER_PIXEL * pixels + BATCH * added, seconds)

    def warm(self) -> None:
        """Runs each part once, by which `estimate` promises."""
        _ = self._cost

    def matching(self, cosine: float) -> float:
        """The chance that a picture and a text of this cosine belong together, where as many pairs do as do not."""
        return 1 / (1 + math.exp(-self.match["slope"] * (cosine - self.match["middle"])))

    @cached_property
    def _cost(self) -> tuple[Estimate, Estimate]:
        """Of one picture, and of one text."""
        size = self.preprocessing.size
        blank = np.zeros((1, 3, size, size), np.uint8)
        tokens = np.zeros((1, self.tokenizer.most), np.int64)
        calls: tuple[dict[str, NDArray[Any]], ...] = (
            {"picture": blank},
            {"tokens": tokens, "token_mask": np.ones(tokens.shape, np.bool_)},
        )
        costs = []
        for arrays in calls:
            before, started = resident_bytes(), time.perf_counter()
            self._session(arrays)
            grown, again = max(0, resident_bytes() - before), time.perf_counter()
            self._session(arrays)
            costs.append(Estimate(max(grown, 4 * blank.nbytes), min(time.perf_counter() - again, again - started)))
        return costs[0], costs[1]

    def _pictures(self, pictures: Sequence[Picture]) -> list[Vector]:
        rows: list[Vector] = []
        for first in range(0, len(pictures), BATCH):
            array = np.stack([prepared(picture, self.preprocessing) for picture in pictures[first : first + BATCH]])
            rows += list(self._session({"picture": array})["picture_embedding"])
        return rows

    def _texts(self, texts: Sequence[str]) -> tuple[list[Vector], list[bool]]:
        rows: list[Vector] = []
        cut: list[bool] = []
        for first in range(0, len(texts), BATCH):
            tokens = self.tokenizer(texts[first : first + BATCH])
            rows += list(self._session({"tokens": tokens.ids, "token_mask": tokens.mask})["text_embedding"])
            cut += tokens.cut
        return rows, cut

    def _encoded(self, picture: Vector | None, text: Vector | None, cut: bool) -> Encoded:
        if picture is None or text is None:
            return Encoded(picture, text, None, None, cut)
        cosine = float(picture @ text)
        return Encoded(picture, text, cosine, self.matching(cosine), cut)


def _check(request: Request) -> None:
    picture = request.picture
    if picture is None and request.text is None:
        raise DataError("neither a picture nor a text is given; give one of them, or both")
    if picture is not None and (picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8):
        raise DataError(f"a picture is {picture.dtype}{list(picture.shape)}; needed is uint8[Y, X, 3]")
