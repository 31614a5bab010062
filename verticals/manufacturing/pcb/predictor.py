"""A board to its findings and its verdict: tiles, network, doubles, one merge over the whole board, rules. A anchor, K class."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Estimate, Session
from core.data.pictures import Picture
from core.data.tiling import Tile, tiles
from core.errors import CapacityError, DataError
from core.inference.session import stream
from core.memory import memory_limit, resident_bytes
from verticals.manufacturing.boxes import NONE, Boxes, suppressed
from verticals.manufacturing.golden import align, differences, showing
from verticals.manufacturing.merge import merge
from verticals.manufacturing.pcb.config import PcbConfig
from verticals.manufacturing.verdict import Verdict, check_rules, counts, verdict_of

MOST_PER_TILE = 300
"""Boxes of one tile, the best first."""
SPARE_BYTES = 2**27
"""What allocators and runtimes keep."""
BYTES_PER_PIXEL = 30
"""Held of each pixel while a board is aligned and compared: grey values, floats of parts, masks."""


class Request(NamedTuple):
    """A board to inspect."""

    picture: Picture
    """[Y, X, C] uint8."""
    golden: Picture | None = None
    """Its product's golden board, as it was taught; None where there is none."""


class Inspection(NamedTuple):
    """What was found on a board."""

    findings: Boxes
    """In pixels of the board, best first."""
    counted: list[bool]
    """Whether each counts against the board, by the rules."""
    verdict: Verdict
    shift: tuple[int, int] | None
    """Pixels that the board lies to the right and down of its golden one."""
    num_tiles: int
    num_skipped: int
    """Tiles that equal the golden board, and that the network did not see."""
    seconds: float


class PcbPredictor:
    """`predictor([Request]) -> [Inspection]`."""

    def __init__(
        self,
        config: PcbConfig,
        constants: Mapping[str, Any],
        session: Session,
        *,
        version: str = "",
        streams: int = 1,
        limit_bytes: int | None = None,
    ) -> None:
        """
        Args:
            streams: calls of the session under way at the same time.
            limit_bytes: what this process may hold; the container's or the machine's where None.

        Raises:
            ConfigError: a rule of a class that the model does not know.
        """
        self.config, self.version, self.streams = config, version, streams
        self.classes: tuple[str, ...] = tuple(constants["classes"])
        check_rules(config.rules.classes, self.classes)
        self.thresholds: dict[str, float] = dict(constants["thresholds"])
        self.inputs, self.outputs = session.inputs, session.outputs
        self._session, self._limit = session, limit_bytes
        self.num_channels, self.sees_golden = config.data.num_channels, config.data.template
        self._tile = int(session.inputs[0].shape[-1])

    def __call__(self, requests: Sequence[Request]) -> list[Inspection]:
        """
        Raises:
            DataError: a picture of other channels than the model's, or without a golden board that it needs, or that does not fit.
            CapacityError: a board needs more memory than there may be.
        """
        self.admit(requests)
        return [self._inspect(request) for request in requests]

    def admit(self, requests: Sequence[Request]) -> Estimate:
        """Raises CapacityError where memory would not do; returns the estimate."""
        estimate = self.estimate(requests)
        limit = self._limit or memory_limit()
        if estimate.bytes > limit:
            raise CapacityError(
                f"these boards need {estimate.bytes / 1e9:.2f} GB of memory, the process itself included; allowed are "
                f"{limit / 1e9:.2f} GB: cut them into parts, or give more"
            )
        return estimate

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """The most memory that this process will hold, and seconds: as if no tile were skipped."""
        each = [self.estimate_of((request.picture.shape[0], request.picture.shape[1])) for request in requests]
        return Estimate(max(one.bytes for one in each), sum(one.seconds for one in each))

    def estimate_of(self, shape: tuple[int, int]) -> Estimate:
        """Of a board that has been read, by its height and width."""
        count = len(self._tiles(shape))
        added = BYTES_PER_PIXEL * shape[0] * shape[1] + self._window.bytes * (self.streams + 1) + SPARE_BYTES
        return Estimate(resident_bytes() + added, count * self._window.seconds / self.streams)

    def warm(self) -> None:
        """Runs one tile, by which `estimate` promises."""
        _ = self._window

    @cached_property
    def _window(self) -> Estimate:
        shape = [self.config.predict.batch, *self.inputs[0].shape[1:]]
        tile = np.zeros([int(length) for length in shape], np.uint8)
        before = resident_bytes()
        started = time.perf_counter()
        self._session({"picture": tile})
        grown = max(0, resident_bytes() - before)
        again = time.perf_counter()
        self._session({"picture": tile})
        seconds = min(time.perf_counter() - again, again - started) / self.config.predict.batch
        return Estimate(max(grown, 4 * tile.nbytes), seconds)

    def _tiles(self, shape: tuple[int, int]) -> list[Tile]:
        whole = tuple(max(length, self._tile) for length in shape)
        return tiles(whole, (self._tile, self._tile), self.config.predict.overlap)

    def _inspect(self, request: Request) -> Inspection:
        started = time.perf_counter()
        picture, golden, shift = self._registered(request)
        height, width = picture.shape[:2]
        every = self._tiles((height, width))
        chosen = every
        if self.config.predict.gate is not None and golden is not None:
            chosen = showing(differences(picture, golden, self.config.predict.gate), every)
        findings = merge(self._found(picture, golden, chosen), chosen, (height, width)) if chosen else NONE
        findings = findings.take(np.arange(min(len(findings.scores), self.config.predict.most_findings)))
        counted = counts(findings, self.classes, self.thresholds, self.config.rules.classes)
        verdict = verdict_of(findings, counted, self.classes, self.config.rules.classes)
        seconds = time.perf_counter() - started
        return Inspection(findings, counted, verdict, shift, len(every), len(every) - len(chosen), seconds)

    def _registered(self, request: Request) -> tuple[Picture, Picture | None, tuple[int, int] | None]:
        """The picture, and the golden board where it lies."""
        picture, golden = request.picture, request.golden
        if picture.ndim != 3 or picture.shape[2] != self.num_channels or picture.dtype != np.uint8:
            raise DataError(
                f"a picture is {picture.dtype}{list(picture.shape)}; needed is uint8[Y, X, {self.num_channels}]"
            )
        if golden is None:
            if self.sees_golden:
                raise DataError(
                    "this model compares a board with its golden board, and there is none: teach the product first"
                )
            return picture, None, None
        predict = self.config.predict
        if not self.sees_golden and predict.gate is None:
            return picture, None, None
        aligned = align(picture, golden, search=predict.search)
        return picture, aligned.golden, (aligned.right, aligned.down)

    def _found(self, picture: Picture, golden: Picture | None, chosen: Sequence[Tile]) -> list[Boxes]:
        """Of each tile, in pixels of the board."""
        height, width = picture.shape[:2]
        answers = stream(self._session, self._batches(picture, golden, chosen), streams=self.streams)
        raw: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for answer in answers:
            raw += list(zip(answer["logits"], answer["boxes"], strict=True))
        parts = [self._decoded(logits, boxes) for logits, boxes in raw[: len(chosen)]]
        shown = [
            part.within(width - tile[1].start, height - tile[0].start) for part, tile in zip(parts, chosen, strict=True)
        ]
        return [part.shifted(tile[1].start, tile[0].start) for part, tile in zip(shown, chosen, strict=True)]

    def _batches(self, picture: Picture, golden: Picture | None, chosen: Sequence[Tile]) -> Iterator[Arrays]:
        """Tiles of one size, zeros beyond a small board's edge; a batch that is not full has zeros at its end."""
        size, batch = self._tile, self.config.predict.batch
        parts = [picture] if golden is None or not self.sees_golden else [picture, golden]
        channels = sum(part.shape[2] for part in parts)
        for first in range(0, len(chosen), batch):
            array = np.zeros((batch, channels, size, size), np.uint8)
            for place, tile in enumerate(chosen[first : first + batch]):
                channel = 0
                for part in parts:
                    cut = part[tile].transpose(2, 0, 1)
                    array[place, channel : channel + cut.shape[0], : cut.shape[1], : cut.shape[2]] = cut
                    channel += cut.shape[0]
            yield {"picture": array}

    def _decoded(self, logits: NDArray[np.float32], boxes: NDArray[np.float32]) -> Boxes:
        """Boxes of one tile, in its pixels, without doubles."""
        predict = self.config.predict
        least = math.log(predict.least_score / (1 - predict.least_score)) if 0 < predict.least_score < 1 else -np.inf
        anchors, kinds = np.nonzero(logits >= least)
        scores = 1 / (1 + np.exp(-logits[anchors, kinds]))
        found = Boxes(boxes[anchors], kinds.astype(np.int64), scores.astype(np.float32)).within(self._tile, self._tile)
        if len(found.scores) > 10 * MOST_PER_TILE:
            found = found.take(np.argsort(-found.scores, kind="stable")[: 10 * MOST_PER_TILE])
        return found.take(suppressed(found, most_overlap=predict.most_overlap)[:MOST_PER_TILE])
