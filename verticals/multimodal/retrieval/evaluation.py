"""Figures of a retrieval model on held pictures: recall both ways, through the Predictor, and what a missing side costs."""

from __future__ import annotations

import itertools
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
from verticals.multimodal.retrieval.matching import fitted
from verticals.multimodal.retrieval.predictor import Encoded, Request, RetrievalPredictor, places_of
from verticals.multimodal.retrieval.recall import AMONG, TO_PICTURE, TO_TEXT, Floats, Ranks, figures_of, ranks_of

BATCH = 64
"""Pictures that are held decoded at a time."""
AGAIN = 100
"""The first that the embeddings find; the matching head looks at them again."""
WEIGHTS, CROWDS = np.arange(0, 2.05, 0.1).round(1).tolist(), (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the matching head's word beside the cosine, and of how alike either is to all: of them the best are taken."""
BEFORE = 5.0
"""Added to scores of those that are looked at again: cosines are up to 1, scores above -3."""
DRAWN = 100
"""Captions drawn for each picture, that a chance is fitted on beside its own."""


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
    matches: NDArray[np.float32] | None = field(default=None, repr=False)
    """[N, M] what the matching head says of the first hundred of each; None where there is none."""
    levels: tuple[Floats, Floats] = (np.zeros(1), np.zeros(1))
    """[N] and [M] how alike each picture is to all captions, and each caption to all pictures."""
    weights: tuple[float, float] = (0.0, 0.0)
    """Of the matching head's word beside the cosine, and of levels."""
    heard: Ranks | None = field(default=None, repr=False)
    """Of sounds and their captions, where there are any."""

    @cached_property
    def similarity(self) -> NDArray[np.float32]:
        """[N, M] cosines."""
        return np.asarray(np.clip(self.pictures @ self.texts.T, -1, 1), np.float32)

    @cached_property
    def ranks(self) -> Ranks:
        return self.ranks_by(*self.weights)

    def ranks_by(self, weight: float, crowd: float) -> Ranks:
        """With other weights; with none it is what the embeddings find alone."""
        return ranks_of(self._ordered(weight, crowd, 1), self.owner, self._ordered(weight, crowd, 0))

    @cached_property
    def best_weights(self) -> tuple[float, float]:
        """Those under which right answers stand highest, by the mean of one over their ranks both ways."""

        def height(weights: tuple[float, float]) -> float:
            ranks = self.ranks_by(*weights)
            return float((1 / (1 + ranks.to_text)).mean() + (1 / (1 + ranks.to_picture)).mean())

        return max(itertools.product(WEIGHTS if self.matches is not None else WEIGHTS[:1], CROWDS), key=height)

    @cached_property
    def figures(self) -> Figures:
        figures = dict(figures_of(self.ranks))
        if any(self.weights):
            alone = figures_of(self.ranks_by(0, 0))
            figures |= {
                f"{name}, embeddings alone": alone[name] for name in alone if "R@1 " in name or name == "mean recall"
            }
        if self.heard is not None:
            of_sounds = figures_of(self.heard)
            figures |= {
                name.replace("picture", "sound"): of_sounds[name]
                for name in (f"R@{among} {way}" for way in (TO_TEXT, TO_PICTURE) for among in AMONG)
            }
        return Figures({**figures, **self._of_items()}, counted=("pictures", "captions"))

    def _ordered(self, weight: float, crowd: float, axis: int) -> NDArray[np.float32]:
        """[N, M] scores along an axis: the first hundred by all that is known, before all others by the cosine."""
        if not weight and not crowd:
            return self.similarity
        scores, first = self.similarity.copy(), _first(self.similarity, axis)
        again = scores if self.matches is None else (scores + weight * self.matches) / (1 + weight)
        again = again - crowd * (self.levels[0][:, None] + self.levels[1]) + BEFORE
        np.put_along_axis(scores, first, np.take_along_axis(again, first, axis), axis)
        return scores

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
        """Of each caption the picture that is found, its own's cosine, and what the matching head says of the found one."""
        captions, scores = np.arange(len(self.owner)), self._ordered(*self.weights, 0)
        found = scores.argmax(0)
        said = self.similarity if self.matches is None else self.matches
        return {
            "found": found,
            "cosine": self.similarity[self.owner, captions].astype(np.float64),
            "match": said[found, captions].astype(np.float64),
        }

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
    return _judged(predictor, data, split)[0]


def evaluate_again(
    predictor: RetrievalPredictor, data: RetrievalData, split: str
) -> tuple[Evaluation, dict[str, float]]:
    """Figures before anything is calibrated, and what follows from them: the weight of the matching head, and the curve from a score
    to a chance, by each picture's own captions and a hundred drawn ones. Raises DataError.
    """
    judged, pictures, texts = _judged(predictor, data, split)
    weight, crowd = judged.best_weights
    predictor.match |= {"weight": weight, "crowd": crowd}
    random = np.random.default_rng(0)
    scores, own = [], []
    for row, picture in enumerate(pictures):
        drawn = random.permutation(len(texts))[:DRAWN]
        asked = np.union1d(drawn, np.flatnonzero(judged.owner == row))
        cosines = judged.similarity[row : row + 1, asked]
        scores.append(predictor.scores(cosines, [picture], [texts[place] for place in asked])[0])
        own.append(judged.owner[asked] == row)
    return judged, {"weight": weight, "crowd": crowd, **fitted(np.concatenate(scores), np.concatenate(own))}


def _judged(
    predictor: RetrievalPredictor, data: RetrievalData, split: str
) -> tuple[Evaluation, list[Encoded], list[Encoded]]:
    pairs = data.samples(split)
    pictures: list[Encoded] = []
    for first in range(0, len(pairs), BATCH):
        pictures += predictor([Request(picture=data.read(pair)) for pair in pairs[first : first + BATCH]])
    texts = predictor([Request(text=text) for pair in pairs for text in pair.captions])
    owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
    vectors = [np.array(side, np.float32) for side in ([one.picture for one in pictures], [one.text for one in texts])]
    judged = Evaluation(split, [pair.id for pair in pairs], vectors[0], vectors[1], owner)
    judged.levels = np.array([one.picture_level for one in pictures]), np.array([one.text_level for one in texts])
    judged.weights = predictor.match["weight"] if predictor.places_shape else 0.0, predictor.match["crowd"]
    if predictor.places_shape:
        judged.matches = _matches(predictor, judged, pictures, texts)
    if predictor.hears and data.sounds(split):
        judged.heard = _heard(predictor, data, split)
    return judged, pictures, texts


def _heard(predictor: RetrievalPredictor, data: RetrievalData, split: str) -> Ranks:
    """Of sounds among sounds, by their captions."""
    pairs = data.sounds(split)
    sounds = [predictor([Request(sound=data.hear(pair))])[0].sound for pair in pairs]
    texts = [one.text for one in predictor([Request(text=text) for pair in pairs for text in pair.captions])]
    owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
    return ranks_of(np.array(sounds, np.float32) @ np.array(texts, np.float32).T, owner)


def _matches(
    predictor: RetrievalPredictor, judged: Evaluation, pictures: Sequence[Encoded], texts: Sequence[Encoded]
) -> NDArray[np.float32]:
    """[N, M] of the first hundred captions of each picture, and pictures of each caption; else 0."""
    made, places = np.zeros_like(judged.similarity), places_of(pictures)
    for row, columns in enumerate(_first(judged.similarity, 1)):
        made[row, columns] = predictor.matches(places[row : row + 1], [texts[column] for column in columns])[0]
    for column, rows in enumerate(_first(judged.similarity, 0).T):
        made[rows, column] = predictor.matches(places[rows], [texts[column]])[:, 0]
    return made


def _first(similarity: NDArray[np.float32], axis: int) -> NDArray[np.int64]:
    """The places of the first hundred along an axis, in their own order: alike on every runtime."""
    most = min(AGAIN, similarity.shape[axis])
    found = np.argpartition(-similarity, most - 1, axis=axis)
    return np.sort(found[:, :most] if axis else found[:most], axis=axis)
