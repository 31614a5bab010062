"""Figures of a segmentation model on held scans: Dice, surface Dice and HD95 of each organ, through the Predictor.

Each scan is judged on its own grid, as a user gets it, not on the network's. Organs that nobody drew in a case are left out.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import surface_distance
import yaml
from numpy.typing import NDArray

from core.contract import Arrays
from core.errors import DataError
from core.evaluation.bootstrap import Figures
from core.evaluation.cases import case_figures
from core.evaluation.report import Record, Section, Table, Text, figures_table
from verticals.medical.ct.data import CtData
from verticals.medical.ct.predictor import CtPredictor
from verticals.medical.sliding import label_dtype
from verticals.medical.volume import Volume

MOST_VOXELS = 2**22
"""Of a case's mask that are kept: all of a data set's would not fit into memory."""
TOLERANCE_MM = 3.0
"""Surfaces nearer than this agree, for the surface Dice."""


MISSING = "nan: neither drawn nor predicted, or drawn by nobody."


@dataclass
class Evaluation:
    """Figures with intervals of one model on the scans of a split."""

    split: str
    cases: list[str]
    scores: dict[str, list[float]]
    """`dice Liver` and so on -> one a case, NaN where it does not exist."""
    masks: list[NDArray[Any]] = field(repr=False)
    """Of each case, thinned to at most `MOST_VOXELS`."""
    volumes_ml: NDArray[np.float64]
    """[N, organs] of the predicted masks."""
    centroids_mm: NDArray[np.float64]
    """[N, organs * 3] in patient space, NaN where a mask is empty."""

    def __post_init__(self) -> None:
        self.figures: Figures = case_figures(self.scores)

    @property
    def answers(self) -> Arrays:
        """Every voxel's label, every organ's volume and centre: a mask that lies elsewhere shows in the last."""
        mask = np.concatenate([mask.ravel() for mask in self.masks])
        return {"centroid_mm": self.centroids_mm, "volume_ml": self.volumes_ml, "mask": mask}

    @property
    def pictures(self) -> dict[str, list[NDArray[Any]]]:
        """The masks: how one was turned shows here."""
        return {"mask": self.masks}

    def record(self) -> dict[str, Any]:
        """JSON-able: `figures` by name with intervals and counts, and every case's scores."""
        clean = {
            name: [None if np.isnan(value) else round(value, 5) for value in row] for name, row in self.scores.items()
        }
        return {"split": self.split, "figures": self.figures.record(), "cases": {"name": self.cases, **clean}}

    @property
    def text(self) -> str:
        """For a terminal."""
        return f"{self.split}, {len(self.cases)} scans\n{self.figures.table()}"

    def sections(
        self, *, config: str, data: Mapping[str, Any], code: Mapping[str, Any], steps: Sequence[str]
    ) -> list[Section]:
        """The report. `steps` are the lines of metrics.jsonl; none where nothing was trained."""
        from core.evaluation.plots import training_curves  # matplotlib: a service draws no curves

        losses = [json.loads(line) for line in steps]
        history = {"loss": ([step["step"] for step in losses], [step["loss"] for step in losses])} if losses else None
        synthetic = (
            "These scans are synthetic: the figures show that the line works, not what it does on patients."
            if data["sources"] == ["synthetic"]
            else ""
        )
        tables = []
        for score, title in zip(SCORES, ("Dice", f"Surface Dice at {TOLERANCE_MM:g} mm", "HD95, mm"), strict=True):
            columns = {name.removeprefix(score).strip() or "mean": row for name, row in self.scores.items() if name.split(" ")[0] == score}  # fmt: skip
            rows = [[name, *(f"{row[place]:.3g}" for row in columns.values())] for place, name in enumerate(self.cases)]
            tables.append(Table(f"{title} of each scan", ["scan", *columns], rows, MISSING))
        return [
            Text(
                "What this is",
                f"Figures of {len(self.cases)} {self.split} scans, each judged on its own voxels, with 95 % intervals "
                f"(bootstrap over scans). Surface Dice at {TOLERANCE_MM:g} mm, distances in mm. {synthetic}",
            ),
            figures_table(self.figures),
            *tables,
            *([training_curves(history)] if history else []),
            Record("Data", dict(data)),
            Record("Code", dict(code)),
            Record("Configuration", yaml.safe_load(config)),
        ]


def evaluate(predictor: CtPredictor, data: CtData, split: str) -> Evaluation:
    """Figures of every scan of the split, read and answered one at a time.

    Organs of another data set are found by their names: it may have more, or fewer, and number them otherwise.

    Raises:
        DataError: no such split, a damaged scan, or not one organ that the model knows.
    """
    organs = [structure.name for structure in predictor.structures]
    numbers = [structure.number for structure in predictor.structures]
    own, theirs = predictor.plan.labels, data.dataset.labels
    as_ours = np.zeros(len(theirs), label_dtype(len(own)))
    as_ours[list(theirs.values())] = [own.get(name, 0) for name in theirs]
    if not as_ours.any():
        raise DataError(
            f"the data set has the labels {', '.join(theirs)}, the model {', '.join(own)}: not one organ in common; name them alike"
        )
    names: list[str] = []
    rows: list[dict[str, float]] = []
    masks, volumes, centroids = [], [], []
    for case in data.samples(split):
        scan, drawn = case.read()
        drawn = Volume(as_ours[drawn.array], drawn.grid)
        (answer,) = predictor([scan])
        names.append(case.name)
        rows.append({})
        for organ, number in zip(organs, numbers, strict=True):
            known = organ in theirs and organ not in case.missing
            judged = compared(answer.mask, drawn, number) if known else dict.fromkeys(SCORES, float("nan"))
            rows[-1] |= {f"{score} {organ}": value for score, value in judged.items()}
        masks.append(_thinned(answer.mask.array))
        counts = np.bincount(answer.mask.array.ravel(), minlength=len(numbers) + 1)
        volumes.append([counts[number] * scan.grid.voxel_ml for number in numbers])
        centroids.append(np.concatenate([answer.mask.centroid_mm(number) for number in numbers]))
    table: dict[str, list[float]] = {}
    for score in SCORES:
        each = {f"{score} {organ}": [row[f"{score} {organ}"] for row in rows] for organ in organs}
        values = np.array(list(each.values()))
        there = ~np.isnan(values)
        sums, counted = np.where(there, values, 0).sum(0), there.sum(0)
        mean = np.divide(sums, counted, out=np.full(len(rows), np.nan), where=counted > 0)
        table |= {score: mean.tolist(), **each}  # the mean of a case's organs first: it is the score
    return Evaluation(split, names, table, masks, np.array(volumes), np.array(centroids))


SCORES = ("dice", "surface_dice", "hd95_mm")


def compared(mask: Volume, drawn: Volume, label: int) -> dict[str, float]:
    """Dice, surface Dice at `TOLERANCE_MM` and 95th percentile of surface distances in mm, of one label in two masks.

    NaN where neither has it. Where only one has it, both Dices are 0, and the distance is the scan's diagonal: as far as
    a mask can be off.

    Source: Nikolov et al. 2021 (surface elements weighted by area), by its authors' library.
    """
    ours, theirs = mask.array == label, drawn.array == label
    if not ours.any() and not theirs.any():
        return dict.fromkeys(SCORES, float("nan"))
    spacing = mask.grid.spacing_mm
    if not ours.any() or not theirs.any():
        return {"dice": 0.0, "surface_dice": 0.0, "hd95_mm": float(np.linalg.norm(spacing * mask.grid.shape))}
    dice = 2 * int((ours & theirs).sum()) / int(ours.sum() + theirs.sum())
    box = _box(ours | theirs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please import", DeprecationWarning)  # it names scipy's filters the old way
        distances = surface_distance.compute_surface_distances(theirs[box], ours[box], spacing)
    return {
        "dice": dice,
        "surface_dice": float(surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)),
        "hd95_mm": float(surface_distance.compute_robust_hausdorff(distances, 95)),
    }


def _thinned(mask: NDArray[Any]) -> NDArray[Any]:
    """Every so many voxels along each axis, about the middle: a mirrored mask is, nearly, the thinned one mirrored."""
    step = max(1, math.ceil((mask.size / MOST_VOXELS) ** (1 / 3)))
    starts = [(length - 1) % step // 2 for length in mask.shape]
    return np.ascontiguousarray(mask[tuple(slice(start, None, step) for start in starts)])


def _box(there: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around what is there, and a voxel more on each side."""
    box = []
    for axis in range(3):
        found = np.flatnonzero(there.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(found[0]) - 1), int(found[-1]) + 2))
    return tuple(box)
