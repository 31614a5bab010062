"""Figures of a retrieval model on held pictures: recall both ways, through the Predictor, and what a missing side costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from core.contract import Arrays
from core.evaluation.bootstrap import Figure, Figures
from core.evaluation.report import Record, Section, Text, figures_table
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.predictor import Request, RetrievalPredictor
from verticals.multimodal.retrieval.recall import Ranks, figures_of, ranks_of

BATCH = 64
"""Pictures that are held decoded at a time."""


@dataclass
class Evaluation:
    """Figures with intervals of one model on the pictures of a split."""

    split: str
    names: list[str]
    pictures: NDArray[np.float32] = field(repr=False)
    """[N, D]"""
    texts: NDArray[np.float32] = field(repr=False)
    """[M, D]"""
    owner: NDArray[np.int64] = field(repr=False)
    """[M] each caption's picture."""

    @cached_property
    def similarity(self) -> NDArray[np.float32]:
        """[N, M] cosines."""
        return np.asarray(self.pictures @ self.texts.T, np.float32)

    @cached_property
    def ranks(self) -> Ranks:
        return ranks_of(self.similarity, self.owner)

    @cached_property
    def figures(self) -> Figures:
        return Figures({**figures_of(self.ranks), **self._of_items()}, counted=("pictures", "captions"))

    def _of_items(self) -> dict[str, Figure]:
        """What is lost where an item lacks its picture or its caption: asked by each picture's first caption, items have the second.

        None where a picture has one caption alone.
        """
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        if (np.diff(starts, append=len(self.owner)) < 2).any():
            return {}
        asked, said = self.texts[starts], self.texts[starts + 1]
        both = self.pictures + said
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        own = np.arange(len(starts))
        found = {}
        for name, items in (("picture alone", self.pictures), ("caption alone", said), ("picture and caption", both)):
            ranks = ranks_of(np.asarray(items @ asked.T, np.float32), own)
            found[f"R@1 text to {name}"] = figures_of(ranks)["R@1 text to picture"]
        return found

    @property
    def answers(self) -> Arrays:
        """Of each caption the picture that is most like it, and the cosine with its own."""
        captions = np.arange(len(self.owner))
        return {"found": self.similarity.argmax(0), "cosine": self.similarity[self.owner, captions].astype(np.float64)}

    def record(self) -> dict[str, Any]:
        """JSON-able: `figures` by name with intervals and counts, and each picture's rank among captions."""
        pictures = [
            {"name": name, "rank": int(rank) + 1} for name, rank in zip(self.names, self.ranks.to_text, strict=True)
        ]
        return {"split": self.split, "figures": self.figures.record(), "pictures": pictures}

    @property
    def text(self) -> str:
        """For a terminal."""
        return f"{len(self.names)} {self.split} pictures, {len(self.owner)} captions\n{self.figures.table()}"

    def sections(
        self, *, config: str, data: Mapping[str, Any], code: Mapping[str, Any], steps: Sequence[str]
    ) -> list[Section]:
        """The report. `steps` are the lines of metrics.jsonl; none where nothing was trained."""
        from core.evaluation.plots import training_curves  # matplotlib: a service draws no curves

        losses = [json.loads(line) for line in steps]
        history = {"loss": ([step["step"] for step in losses], [step["loss"] for step in losses])} if losses else None
        return [
            Text(
                "What this is",
                f"Figures of {len(self.names)} {self.split} pictures and their {len(self.owner)} captions, with 95 % intervals "
                "(bootstrap over pictures). R@k is the share of questions whose right answer is among the first k: of a picture "
                "one of its own captions, of a caption its own picture. Equal scores count against the model. mean recall is "
                "the mean of the six.",
            ),
            figures_table(self.figures),
            *([training_curves(history)] if history else []),
            Record("Data", dict(data)),
            Record("Code", dict(code)),
            Record("Configuration", yaml.safe_load(config)),
        ]


def evaluate(predictor: RetrievalPredictor, data: RetrievalData, split: str) -> Evaluation:
    """Figures of every picture and every caption of the split.

    Raises:
        DataError: no such split, or a damaged picture.
    """
    pairs = data.samples(split)
    pictures = []
    for first in range(0, len(pairs), BATCH):
        answers = predictor([Request(picture=data.read(pair)) for pair in pairs[first : first + BATCH]])
        pictures += [answer.picture for answer in answers]
    texts = [answer.text for answer in predictor([Request(text=text) for pair in pairs for text in pair.captions])]
    owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
    return Evaluation(split, [pair.id for pair in pairs], np.stack(pictures), np.stack(texts), owner)  # type: ignore[arg-type]
