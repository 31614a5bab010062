"""Series and masks that answers are made of: balls at known places in the patient, on any grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from verticals.medical.dicom.series import Series, read_series
from verticals.medical.dicom.write import write_series
from verticals.medical.volume import Grid, Volume

BALLS = {
    1: ((22.0, 8.0, 14.0), 9.0),  # on the patient's right
    2: ((-20.0, -6.0, 10.0), 13.0),  # left, larger
    3: ((3.0, -15.0, -18.0), 7.0),  # behind, low
}
LABELS = {"background": 0, "kidney_right": 1, "kidney_left": 2, "SpinalCord": 3, "lens_left": 4}
"""The last is in no mask."""


def affine(across: tuple[float, ...], down: tuple[float, ...], step: tuple[float, ...]) -> np.ndarray:
    made = np.eye(4)
    made[:3, 0], made[:3, 1], made[:3, 2] = across, down, step
    return made


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    made = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        one, two = (other for other in range(3) if other != axis)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        made = turn @ made
    return made


def _oblique() -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = rotation((12, -20, 33)) @ np.diag([-2.0, -2.5, 3.0])
    return made


ORIENTATIONS = {
    "axial": affine((-2, 0, 0), (0, -2.5, 0), (0, 0, 3)),
    "feet first": affine((2, 0, 0), (0, -2.5, 0), (0, 0, -3)),
    "coronal": affine((-2, 0, 0), (0, 0, -2.5), (0, 3, 0)),
    "sagittal": affine((0, -2, 0), (0, 0, -2.5), (3, 0, 0)),
    "oblique": _oblique(),
    "tilted": affine((-2, 0, 0), (0, -2.5, 0), (0, 1.1, 3)),
}
"""Columns, rows and slices of 2, 2.5 and 3 mm; 37 x 31 pixels are no whole number of bytes."""
SHAPE = (37, 31, 27)


def grid_of(name: str) -> Grid:
    made = ORIENTATIONS[name].copy()
    made[:3, 3] = -made[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return Grid(SHAPE, made)


def scan_on(grid: Grid) -> Volume:
    array = np.full(grid.shape, -1000, np.int16)
    array[mask_on(grid).array > 0] = 60
    return Volume(array, grid)


def mask_on(grid: Grid, balls: dict[int, tuple[tuple[float, float, float], float]] = BALLS) -> Volume:
    """The balls, by the places of the grid's voxels in the patient."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    world = grid.world(index)
    array = np.zeros(grid.shape, np.uint8 if max(balls) < 256 else np.uint16)
    for number, (centre, radius) in balls.items():
        array[np.linalg.norm(world - np.array(centre), axis=-1) < radius] = number
    return Volume(array, grid)


def series_in(folder: Path, name: str = "axial") -> tuple[Series, Volume]:
    """A series that was written, shuffled and read, and the mask on its grid."""
    write_series(scan_on(grid_of(name)), folder, seed=1)
    series = read_series(folder)
    return series, mask_on(series.volume.grid)
