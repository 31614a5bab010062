"""The network's carried state of many cards, one row of bytes each, and how it moves on.

The same rows serve a file that streams by, the store of a service, and training's chunks: which tensors they hold is
read off the Session (an input `x` is state where an output is called `new_x`). Legend: N event, B card, F feature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Session
from verticals.finance.fraud.features import DAY

MAX_BATCH = 4096
"""Cards in one call of the network: bounds its memory."""


class StateLayout:
    """Where each carried tensor lies in a card's row of bytes; zeros are the state of a card never seen."""

    def __init__(self, session: Session) -> None:
        outputs = {spec.name for spec in session.outputs}
        self.specs = [spec for spec in session.inputs if f"new_{spec.name}" in outputs]
        self.shapes = [tuple(int(axis) for axis in spec.shape[1:]) for spec in self.specs]
        types = [np.dtype(spec.dtype) for spec in self.specs]
        self.sizes = [math.prod(shape) * kind.itemsize for shape, kind in zip(self.shapes, types, strict=True)]
        self.nbytes = sum(self.sizes)

    def arrays(self, rows: NDArray[np.uint8]) -> Arrays:
        """[B, nbytes] rows -> the session's state inputs."""
        arrays, start = {}, 0
        for spec, shape, size in zip(self.specs, self.shapes, self.sizes, strict=True):
            part = np.ascontiguousarray(rows[:, start : start + size])
            arrays[spec.name] = part.view(spec.dtype).reshape(len(rows), *shape)
            start += size
        return arrays

    def rows(self, results: Arrays) -> NDArray[np.uint8]:
        """The session's new state -> [B, nbytes] rows."""
        count = len(results[f"new_{self.specs[0].name}"]) if self.specs else 0
        parts = [
            np.ascontiguousarray(results[f"new_{spec.name}"]).view(np.uint8).reshape(count, -1) for spec in self.specs
        ]
        return np.concatenate(parts, axis=1) if parts else np.zeros((count, 0), np.uint8)


class CardStates:
    """The rows of the cards seen so far; grows by doubling."""

    def __init__(self, layout: StateLayout) -> None:
        self.layout = layout
        self._slots: dict[int, int] = {}
        self._rows = np.zeros((64, layout.nbytes), np.uint8)

    def __len__(self) -> int:
        return len(self._slots)

    def slots(self, cards: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B] row of each card; a new card gets a row of zeros."""
        found = np.array([self._slots.setdefault(card, len(self._slots)) for card in cards.tolist()], np.int64)
        if len(self._slots) > len(self._rows):
            grown = np.zeros((max(len(self._slots), 2 * len(self._rows)), self.layout.nbytes), np.uint8)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        return found

    def put(self, card: int, state: bytes) -> None:
        self._rows[self.slots(np.array([card]))[0]] = np.frombuffer(state, np.uint8)

    def items(self) -> Iterator[tuple[int, bytes]]:
        for card, slot in self._slots.items():
            yield card, self._rows[slot].tobytes()

    def advance(
        self,
        session: Session,
        cards: NDArray[np.int64],
        time: NDArray[np.int64],
        features: NDArray[np.float32],
        before: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.float64]:
        """Scores events in time order and moves their cards' states on.

        A card's events go one after the other, different cards side by side: round k takes the k-th event of each.

        Args:
            cards: [N] codes.
            time: [N] microseconds, not falling within a card.
            features: [N, F] scaled.
            before: [N, nbytes] to fill with the state that each event met, where somebody wants to know.

        Returns:
            [N] logits.
        """
        logits = np.empty(len(cards))
        order = np.argsort(cards, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(cards[order]) != 0]) if len(order) else np.zeros(0, np.int64)
        lengths = np.diff(np.r_[starts, len(order)])
        slots = self.slots(cards[order[starts]])
        longest_first = np.argsort(-lengths, kind="stable")
        starts, lengths, slots = starts[longest_first], lengths[longest_first], slots[longest_first]
        days = time / DAY
        for k in range(int(lengths.max(initial=0))):
            active = int(np.searchsorted(-lengths, -k, side="left"))
            for first in range(0, active, MAX_BATCH):
                part = slice(first, min(first + MAX_BATCH, active))
                rows = order[starts[part] + k]
                if before is not None:
                    before[rows] = self._rows[slots[part]]
                results = session(
                    {"features": features[rows], "time": days[rows], **self.layout.arrays(self._rows[slots[part]])}
                )
                logits[rows] = results["logit"]
                self._rows[slots[part]] = self.layout.rows(results)
        return logits
