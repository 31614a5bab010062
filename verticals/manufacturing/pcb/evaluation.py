"""Figures of an inspection model on held boards: average precision, escapes and false alarms, through the Predictor.

Intervals are bootstraps over boards. Boards whose group was trained on are told apart from the others where a published list
shares groups.
"""

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
from core.errors import DataError
from core.evaluation.bootstrap import Figure, Figures, counts, interval
from core.evaluation.report import Record, Section, Text, figures_table
from verticals.manufacturing.boxes import Boxes, overlap
from verticals.manufacturing.pcb.boards import Board
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.predictor import PcbPredictor, Request
from verticals.manufacturing.precision import AUTHORS, Matches, average_precision, matched, mean_figures

DRAWS = 1000


@dataclass
class Evaluation:
    """Figures with intervals of one model on the boards of a split."""

    split: str
    classes: tuple[str, ...]
    names: list[str]
    seen: NDArray[np.bool_]
    """[N] whether a board's group was trained on."""
    notes: tuple[str, ...]
    """What every table has to say."""
    found: list[Boxes] = field(repr=False)
    counted: list[NDArray[np.bool_]] = field(repr=False)
    drawn: list[Boxes] = field(repr=False)

    @cached_property
    def matches(self) -> Matches:
        return matched(self.found, self.drawn, num_classes=len(self.classes))

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """[1 + DRAWS, boards] how often each counts: once, then by draw."""
        return counts(len(self.names), draws=DRAWS)

    @cached_property
    def figures(self) -> Figures:
        made = _figures(self, np.ones(len(self.names), bool), "")
        if self.seen.any() and not self.seen.all():
            made |= _figures(self, ~self.seen, " of unseen groups")
            made |= _figures(self, self.seen, " of seen groups")
        return Figures(made, counted=("boards", "defects"))

    @property
    def answers(self) -> Arrays:
        """Of each class on each board: how many findings there are, how many of them count, and the best score."""
        shape = len(self.names), len(self.classes)
        every, counts, best = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
        for place, (boxes, counted) in enumerate(zip(self.found, self.counted, strict=True)):
            np.add.at(every[place], boxes.classes, 1)
            np.add.at(counts[place], boxes.classes[counted], 1)
            np.maximum.at(best[place], boxes.classes, boxes.scores)
        return {"findings": every, "counting": counts, "score": best}

    def record(self) -> dict[str, Any]:
        """JSON-able: `figures` by name with intervals and counts, and every board's findings."""
        boards = [
            {"name": name, "found": len(boxes.scores), "counted": int(counted.sum()), "drawn": len(drawn.scores)}
            for name, boxes, counted, drawn in zip(self.names, self.found, self.counted, self.drawn, strict=True)
        ]
        return {"split": self.split, "notes": list(self.notes), "figures": self.figures.record(), "boards": boards}

    @property
    def text(self) -> str:
        """For a terminal."""
        return "\n".join([f"{self.split}, {len(self.names)} boards", *self.notes, self.figures.table()])

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
                f"Figures of {len(self.names)} {self.split} boards, each inspected whole, with 95 % intervals (bootstrap over "
                "boards). map50 is the mean average precision at an overlap of .5, map33 at .33, map50_95 the mean of .5 to "
                ".95. escape is the share of drawn defects that no finding at its class's threshold overlaps by .33, "
                "false_alarms the findings at it, a board, that no drawn defect of the class explains. "
                + " ".join(self.notes),
            ),
            figures_table(self.figures),
            *([training_curves(history)] if history else []),
            Record("Data", dict(data)),
            Record("Code", dict(code)),
            Record("Configuration", yaml.safe_load(config)),
        ]


def _figures(self: Evaluation, chosen: NDArray[np.bool_], suffix: str) -> dict[str, Figure]:
    weights = self.weights * chosen
    values = average_precision(self.matches, weights)
    rows = mean_figures(values, self.matches.overlaps)
    half = self.matches.overlaps.index(0.5)
    if not suffix:
        rows |= {f"ap50 {name}": values[:, kind, half] for kind, name in enumerate(self.classes)}
    rows |= _decided(self, weights)
    defects = self.matches.drawn[chosen]
    total = {f"ap50 {name}": int(defects[:, kind].sum()) for kind, name in enumerate(self.classes)}
    return {
        f"{name}{suffix}": Figure(
            float(row[0]), *interval(row[1:]), int(chosen.sum()), total.get(name, int(defects.sum()))
        )
        for name, row in rows.items()
    }


def _decided(self: Evaluation, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """What the thresholds do: F, missed defects, false alarms a board, and clean boards that fail."""
    table = np.array(
        [
            _right_and_wrong(boxes.take(counted), drawn)
            for boxes, counted, drawn in zip(self.found, self.counted, self.drawn, strict=True)
        ],
        np.float64,
    )  # [boards, 3] right, wrong, drawn
    right, wrong, drawn = (weights @ table[:, place] for place in range(3))
    clean = np.array([not len(boxes.scores) for boxes in self.drawn])
    fails = np.array([bool(counted.any()) for counted in self.counted])
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "f_score": 2 * right / (right + wrong + drawn),
            "escape": 1 - right / drawn,
            "false_alarms": wrong / weights.sum(1),
            "failing_clean_boards": weights[:, clean & fails].sum(1) / weights[:, clean].sum(1),
        }


def _right_and_wrong(found: Boxes, drawn: Boxes) -> tuple[int, int, int]:
    matches = matched(
        [found], [drawn], num_classes=int(max([0, *found.classes, *drawn.classes])) + 1, overlaps=(AUTHORS,)
    )
    right = int(matches.right.sum())
    return right, len(found.scores) - right, len(drawn.scores)


def evaluate(predictor: PcbPredictor, data: PcbData, split: str) -> Evaluation:
    """Figures of every board of the split, inspected one at a time.

    Raises:
        DataError: no such split, a damaged picture, or other classes than the model's.
    """
    boards = data.samples(split)
    places = class_places(predictor.classes, data.dataset.classes)
    is_own = split != "all"  # else it is another data set, whose sides nobody trained on
    trained = {board.group for board in data.dataset.sides.get("train", ())} if is_own else set()
    found, counted, drawn = [], [], []
    for board in boards:
        (answer,) = predictor([request_of(data, board)])
        found.append(answer.findings)
        counted.append(np.array(answer.counted, bool))
        drawn.append(board.boxes._replace(classes=places[board.boxes.classes]))
    seen = np.array([board.group in trained for board in boards])
    shared = data.dataset.split == "published" and bool(seen.any())
    notes = (
        ("The published list shares board groups between training and test (data.split=published).",) if shared else ()
    )
    return Evaluation(split, predictor.classes, [board.name for board in boards], seen, notes, found, counted, drawn)


def request_of(data: PcbData, board: Board) -> Request:
    """The board, and its template where the network sees one."""
    array, channels = data.read(board), data.config.data.num_channels
    golden = array[..., channels:] if array.shape[2] > channels else None
    return Request(
        np.ascontiguousarray(array[..., :channels]), None if golden is None else np.ascontiguousarray(golden)
    )


def class_places(ours: Sequence[str], theirs: Sequence[str]) -> NDArray[np.int64]:
    """Place in the model's classes of each of a data set's. Raises DataError where one is none of them."""
    if strange := [name for name in theirs if name not in ours]:
        raise DataError(
            f"the data set has the classes {', '.join(theirs)}, the model {', '.join(ours)}: {', '.join(strange)} is none of "
            "its; name them alike, or leave those boxes out"
        )
    return np.array([ours.index(name) for name in theirs], np.int64)


def thresholds_of(
    found: Sequence[Boxes], drawn: Sequence[Boxes], classes: Sequence[str], *, escape: float
) -> dict[str, float]:
    """By class the highest score at which no more than so large a share of the drawn defects is missed.

    Half-way down to the next lower score, so that the last bit decides nothing; the lowest score there is where even that misses
    more, and .5 for a class that nobody drew.
    """
    thresholds = {}
    for kind, name in enumerate(classes):
        best = [
            _best_scores(ours.take(ours.classes == kind), theirs.take(theirs.classes == kind))
            for ours, theirs in zip(found, drawn, strict=True)
        ]
        scores = np.sort(np.concatenate([np.zeros(0), *best]))
        if not len(scores):
            thresholds[name] = 0.5
            continue
        allowed = int(escape * len(scores))
        at, below = float(scores[allowed]), float(scores[allowed - 1]) if allowed else 0.0
        thresholds[name] = (at + below) / 2 if at > 0 else 0.0
    return thresholds


def _best_scores(found: Boxes, drawn: Boxes) -> NDArray[np.float64]:
    """[G] score of the best finding that overlaps each drawn box by .33, 0 where there is none."""
    if not len(found.scores) or not len(drawn.scores):
        return np.zeros(len(drawn.scores))
    fits = overlap(found.corners[:, None], drawn.corners[None]) >= AUTHORS
    best: NDArray[np.float64] = np.where(fits, found.scores[:, None].astype(np.float64), 0.0).max(axis=0)
    return best
