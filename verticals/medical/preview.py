"""One picture of a mask on its scan: an axial, a coronal and a sagittal plane, to be looked at before anything else is.

Radiological convention: the patient's right is on the left, front and head are up; sagittal planes look to the left.
Planes are the scan's own, not resampled: those of an oblique or tilted scan are as oblique as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from core.errors import DataError
from verticals.medical.dicom.source import NOTICE
from verticals.medical.labels import Structure
from verticals.medical.volume import Axes, Volume, to_ras

WINDOW_HU = (-160.0, 240.0)
"""Black and white: soft tissue."""
OPACITY = 0.5
MAX_NAMED = 24
"""Structures in the legend."""

_VIEWS = (("axial", 2, "R", "L", "A", "P"), ("coronal", 1, "R", "L", "H", "F"), ("sagittal", 0, "A", "P", "H", "F"))
"""Name, axis of the patient that the plane cuts, and what lies left, right, up and down."""


def write_preview(volume: Volume, mask: Volume, structures: Sequence[Structure], path: Path) -> None:
    """Writes a PNG of the three planes that cut most of the mask, or the middle of the scan where the mask is empty.

    Args:
        volume: HU; only the three planes are read.
        mask: labels on the same grid.

    Raises:
        DataError: the two are not on one grid.
    """
    if not volume.grid.same_as(mask.grid):
        raise DataError("scan and mask are not on one grid; resample the mask to the scan")
    axes = to_ras(volume.grid)
    scan, labels = volume.turned(axes), mask.turned(axes)
    places = _places(mask, axes)
    spacing = scan.grid.spacing_mm
    named = {structure.number: structure for structure in structures}
    figure = Figure(figsize=(12, 5.4), dpi=100, facecolor="black")
    shown: dict[int, Structure] = {}
    for column, (name, axis, left, right, up, down) in enumerate(_VIEWS):
        across, upward = (other for other in range(3) if other != axis)
        cut = tuple(places[axis] if other == axis else slice(None) for other in range(3))
        picture = _facing(scan.array[cut])
        painted = _facing(labels.array[cut])
        plot = figure.add_axes((0.005 + column / 3, 0.2, 0.323, 0.7))
        plot.set_axis_off()
        low, high = WINDOW_HU
        aspect = float(spacing[upward] / spacing[across])
        plot.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
        plot.imshow(_colored(painted, named), aspect=aspect, interpolation="nearest")
        plot.set_title(name, color="white", fontsize=10)
        for text, x, y in ((left, 0.02, 0.5), (right, 0.98, 0.5), (up, 0.5, 0.97), (down, 0.5, 0.03)):
            plot.text(x, y, text, transform=plot.transAxes, color="yellow", ha="center", va="center", fontsize=11)
        shown |= {int(number): named[int(number)] for number in np.unique(painted) if int(number) in named}
    figure.text(0.5, 0.965, NOTICE, color="red", ha="center", va="center", fontsize=12, weight="bold")
    _legend(figure, [shown[number] for number in sorted(shown)])
    figure.savefig(path, format="png", facecolor="black")


def _places(mask: Volume, axes: Axes) -> tuple[int, int, int]:
    """Where each axis of the patient is cut: the plane with the most labelled voxels, one slice of the mask at a time."""
    shape = mask.array.shape
    counts = [np.zeros(length, np.int64) for length in shape]
    for k in range(shape[2]):
        inside = mask.array[:, :, k] != 0
        by_first = inside.sum(1)
        counts[0] += by_first
        counts[1] += inside.sum(0)
        counts[2][k] = by_first.sum()
    places = []
    for axis, flipped in zip(axes.order, axes.flips, strict=True):
        count = counts[axis][::-1] if flipped else counts[axis]
        best = np.flatnonzero(count == count.max())  # the middle one of equals
        places.append(int(best[len(best) // 2]))
    return places[0], places[1], places[2]


def _facing(plane: NDArray[Any]) -> NDArray[Any]:
    """A plane of axes pointing right (or forward) and up, as rows of a picture from the top, seen by an observer who has
    the patient's right (or front) on the left."""
    return plane.T[::-1, ::-1]


def _colored(labels: NDArray[Any], named: dict[int, Structure]) -> NDArray[np.float32]:
    """[rows, columns, 4] colour and opacity."""
    table = np.zeros((int(labels.max()) + 1, 4), np.float32)
    for number, structure in named.items():
        if number < len(table):
            table[number] = [*(part / 255 for part in structure.color), OPACITY]
    return np.asarray(table[labels])


def _legend(figure: Figure, structures: Sequence[Structure]) -> None:
    """Names as plain text: they may hold what matplotlib would read as formulas."""
    rows = 4
    for place, structure in enumerate(structures[:MAX_NAMED]):
        column, row = divmod(place, rows)
        x, y = 0.02 + column * 0.162, 0.15 - row * 0.036
        red, green, blue = (part / 255 for part in structure.color)
        name = structure.name if len(structure.name) <= 22 else structure.name[:21] + "…"
        figure.text(x, y, "■", color=(red, green, blue), fontsize=11, va="center")
        figure.text(x + 0.015, y, name, color="white", fontsize=9, va="center", parse_math=False)
    if (more := len(structures) - MAX_NAMED) > 0:
        figure.text(0.98, 0.012, f"and {more} more", color="white", fontsize=9, ha="right", va="center")
