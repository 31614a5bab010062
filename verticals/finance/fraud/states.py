"""The network's carried state of many cards, and how it moves on.

It serves a file that streams by and, as one row of bytes a card, the store of a service. Which tensors it holds is
read off the Session (an input `x` is state where an output is called `new_x`). Legend: N event, B card, F feature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Session
from verticals.finance.fraud.events import DAY

MAX_BATCH = 4096
"""Cards in one call of the network: bounds its memory."""


class StateLayout:
    """Which tensors a card carries, and where each lies in its row of bytes; zeros are the state of a card never seen."""

    def __init__(self, session: Session) -> None:
        outputs = {spec.name for spec in session.outputs}
        self.specs = [spec for spec in session.inputs if f"new_{spec.name}" in outputs]
        self.shapes = [tuple(int(axis) for axis in spec.shape[1:]) for spec in self.specs]
        types = [np.dtype(spec.dtype) for spec in self.specs]
        self.sizes = [math.prod(shape) * kind.itemsize for shape, kind in zip(self.shapes, types, strict=True)]
        self.nbytes = sum(self.sizes)

    def zeros(self, count: int) -> Arrays:
        """States of so many cards never seen: the session's state inputs."""
        return {
            spec.name: np.zeros((count, *shape), spec.dtype)
            for spec, shape in zip(self.specs, self.shapes, strict=True)
        }

    def arrays(self, rows: NDArray[np.uint8]) -> Arrays:
        """[B, nbytes] rows -> the session's state inputs."""
        arrays, start = {}, 0
        for spec, shape, size in zip(self.specs, self.shapes, self.sizes, strict=True):
            part = np.ascontiguousarray(rows[:, start : start + size])
            arrays[spec.name] = part.view(spec.dtype).reshape(len(rows), *shape)
            start += size
        return arrays

    def rows(self, arrays: Arrays) -> NDArray[np.uint8]:
        """State inputs of B cards -> [B, nbytes] rows."""
        count = len(arrays[self.specs[0].name]) if self.specs else 0
        parts = [np.ascontiguousarray(arrays[spec.name]).view(np.uint8).reshape(count, -1) for spec in self.specs]
        return np.concatenate(parts, axis=1) if parts else np.zeros((count, 0), np.uint8)


class CardStates:
    """The states of the cards seen so far, each tensor in one array; grows by doubling."""

    def __init__(self, layout: StateLayout) -> None:
        self.layout = layout
        self._slots: dict[int, int] = {}
        self._room = 16
        self._arrays = layout.zeros(self._room)

    def __len__(self) -> int:
        return len(self._slots)

    def slots(self, cards: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B] place of each card; a new card gets a state of zeros."""
        found = np.array([self._slots.setdefault(card, len(self._slots)) for card in cards.tolist()], np.int64)
        if len(self._slots) > self._room:
            before, self._room = self._room, max(len(self._slots), 2 * self._room)
            grown = self.layout.zeros(self._room)
            for name, array in grown.items():
                array[:before] = self._arrays[name]
            self._arrays = grown
        return found

    def put(self, states: Mapping[int, bytes]) -> None:
        """States as `items` gave them."""
        if states:
            slots = self.slots(np.fromiter(states, np.int64, len(states)))
            rows = np.frombuffer(b"".join(states.values()), np.uint8).reshape(len(states), self.layout.nbytes)
            for name, array in self.layout.arrays(rows).items():
                self._arrays[name][slots] = array

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Each card's code and its row of bytes."""
        cards = list(self._slots)
        for first in range(0, len(cards), MAX_BATCH):
            last = min(first + MAX_BATCH, len(cards))
            rows = self.layout.rows({name: array[first:last] for name, array in self._arrays.items()})
            yield from zip(cards[first:last], map(bytes, rows), strict=True)

    def advance(
        self,
        session: Session,
        cards: NDArray[np.int64],
        time: NDArray[np.int64],
        features: NDArray[np.float32],
        before: Arrays | None = None,
    ) -> NDArray[np.float64]:
        """Scores events in time order and moves their cards' states on.

        A card's events go one after the other, different cards side by side: round k takes the k-th event of each.

        Args:
            cards: [N] codes.
            time: [N] microseconds, not falling within a card.
            features: [N, F] scaled.
            before: `layout.zeros(N)` to fill with the state that each event met, where somebody wants to know.

        Returns:
            [N] logits.
        """
        days = time / DAY
        if len(cards) == 1:  # a lone event: no sorting, and the state is read in place
            slot = int(self.slots(cards)[0])
            met = {name: array[slot : slot + 1] for name, array in self._arrays.items()}
            for name, array in (before or {}).items():
                array[:] = met[name]
            results = session({"features": features, "time": days, **met})
            for name, array in met.items():
                array[:] = results[f"new_{name}"]
            return results["logit"].astype(np.float64)
        logits = np.empty(len(cards))
        order = np.argsort(cards, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(cards[order]) != 0]) if len(order) else np.zeros(0, np.int64)
        lengths = np.diff(np.r_[starts, len(order)])
        slots = self.slots(cards[order[starts]])
        longest_first = np.argsort(-lengths, kind="stable")
        starts, lengths, slots = starts[longest_first], lengths[longest_first], slots[longest_first]
        for k in range(int(lengths.max(initial=0))):
            active = int(np.searchsorted(-lengths, -k, side="left"))
            for first in range(0, active, MAX_BATCH):
                part = slice(first, min(first + MAX_BATCH, active))
                rows, places = order[starts[part] + k], slots[part]
                met = {name: array[places] for name, array in self._arrays.items()}
                for name, array in (before or {}).items():
                    array[rows] = met[name]
                results = session({"features": features[rows], "time": days[rows], **met})
                logits[rows] = results["logit"]
                for name, array in self._arrays.items():
                    array[places] = results[f"new_{name}"]
        return logits
