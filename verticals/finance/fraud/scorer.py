"""From events to logits: features, their scaling, one step of the network for each. Requests, files and replays share it.

Legend: N event, F feature, C column that the network reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import Session
from core.data.pipeline import DataPipeline
from core.errors import ArtifactError
from verticals.finance.fraud.config import DataConfig
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.features import Features
from verticals.finance.fraud.pasts import Remembered, joined, sides
from verticals.finance.fraud.states import CardStates, StateLayout
from verticals.finance.fraud.store import Event, Key, Side

SIDES: tuple[Side, Side] = ("customer", "terminal")


class Scorer:
    """What a model version does with events in time order."""

    def __init__(self, data: DataConfig, features: Features, pipeline: DataPipeline, session: Session) -> None:
        self.features, self.pipeline, self.session = features, pipeline, session
        self.extra_names, self._numbers = (*data.numeric, *data.categorical), data.numeric
        self.layout = StateLayout(session)
        self.few = 4 + len(features) // 100
        """Events whose features are computed one by one: a table costs what its columns cost, however few its rows."""
        self._sides: list[tuple[Side, Features, NDArray[np.int64]]] = []
        """Of cards and of terminals: the features that need no others' events, and their places among all."""
        for side in SIDES:
            blocks = [block for block in features.blocks if (block.entity == "terminal") == (side == "terminal")]
            part = Features(features.config, blocks)
            self._sides.append((side, part, np.array([features.names.index(name) for name in part.names])))
        self.rows_at_once = max(1024, 64_000_000 // len(pipeline.feature_names))
        """Events whose features fit about 256 MB."""

    def scaled(self, raw: NDArray[np.floating], extra: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """[F, N] raw features and the further columns -> [N, C] what the network reads."""
        return self.pipeline.transform_block(raw.astype(np.float32, copy=False), self.features.names, extra)

    def extra(self, stored: Sequence[bytes | None]) -> dict[str, NDArray[Any]]:
        """The further columns of N events, as they are stored.

        Raises:
            ArtifactError: an event without one of this version's numbers, kept when nobody asked for it.
        """
        if not self.extra_names:
            return {}
        records = [json.loads(extra) if extra else {} for extra in stored]
        for name in self._numbers:
            if lacking := sum(name not in record for record in records):
                raise ArtifactError(
                    f"{lacking} of {len(records)} events in the store have no {name}, a number that this version reads; "
                    "give it a store of its own, filled by --load from a file that has the column"
                )
        return self.named(records)

    def named(self, records: Sequence[Mapping[str, float | str]]) -> dict[str, NDArray[Any]]:
        """The further columns of N records; a category is what it is alone, whatever the others hold."""
        return {name: np.array([record.get(name, "") for record in records], object) for name in self.extra_names}

    def raw(self, events: Sequence[Event], pasts: Mapping[Key, Remembered]) -> NDArray[np.float64]:
        """[F, N] raw features of N new events in time order, from the pasts of their cards and terminals."""
        keys = [key for event in events for key in sides(event)]
        if len(events) == 1 or (len(events) <= self.few and len(set(keys)) == len(keys)):
            rows = []
            for event in events:
                card, terminal = (pasts[key].history(event.time, self.features.memory) for key in sides(event))
                rows.append(self.features.event(event.time, event.amount, event.terminal, card, terminal))
            return np.stack(rows, axis=1)
        found = {key: pasts[key].past for key in keys}
        return self.among({side: joined(side, found)[0] for side in SIDES}, columns(events))

    def among(self, others: Mapping[Side, Events], events: Events) -> NDArray[np.float64]:
        """[F, N] raw features of N events in time order that stand among others.

        Args:
            others: all further events of their cards, and of their terminals, in time order; of the same time, they come
                first.
        """
        raw = np.empty((len(self.features), len(events)))
        since, until = events.time[0] - self.features.horizon, events.time[-1]
        for side, features, places in self._sides:
            given = others[side]
            near = given.rows(slice(*np.searchsorted(given.time, [since, until], side="right").tolist()))
            everything = Events.joined([near, events])
            order = np.argsort(everything.time, kind="stable")
            wanted = order >= len(near)
            first = int(np.argmax(wanted))
            raw[places] = features.table(everything.rows(order), dtype=np.float64, first=first)[:, wanted[first:]]
        return raw

    def advance(
        self, states: CardStates, context: Events, events: Events, extra: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float64], Events]:
        """[N] logits of events that follow `context`, and the context of those that follow them; moves `states` on."""
        joined = Events.joined([context, events])
        kept = joined.rows(joined.time > joined.time[-1] - self.features.horizon)
        features = self.scaled(self.features.table(joined, first=len(context)), extra)
        return states.advance(self.session, events.customer, events.time, features), kept


def slices(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `count`."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def columns(events: Sequence[Event]) -> Events:
    """Events of the store as columns."""
    return Events(
        np.array([event.time for event in events], np.int64),
        np.array([event.customer for event in events], np.int64),
        np.array([event.terminal for event in events], np.int64),
        np.array([event.amount for event in events], np.float64),
        np.array([event.fraud for event in events], np.int8),
    )
