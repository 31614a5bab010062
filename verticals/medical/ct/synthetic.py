"""Synthetic CT with a known answer: a body of soft tissue in air; spine, liver and two kidneys are labelled, lungs not.

Both kidneys have the same Hounsfield units and texture: only their place tells left from right. Cases differ in size,
position, tilt, spacing and in how their axes are stored, so that a fault in orientation shows in the figures.
The folder is laid out as nnU-Net v2 wants it, with `splits.json` beside `dataset.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from core.config import Config
from core.errors import DataError
from verticals.medical.nifti import write_nifti
from verticals.medical.volume import AIR_HU, Axes, Grid, Volume, rotation

LABELS = {"background": 0, "Spine": 1, "Liver": 2, "RightKidney": 3, "LeftKidney": 4}

_TISSUE_HU, _FAT_HU = 40.0, -100.0
_ORGANS: tuple[tuple[int, float, float, tuple[float, float, float], tuple[float, float, float]], ...] = (
    # label (0 for lungs: there, but not labelled), HU, its texture's HU, centre and half axes as shares of the body's
    (0, -800.0, 30.0, (0.45, 0.05, 0.42), (0.33, 0.62, 0.42)),
    (0, -800.0, 30.0, (-0.45, 0.05, 0.42), (0.33, 0.62, 0.42)),
    (2, 110.0, 15.0, (0.38, 0.15, -0.30), (0.45, 0.50, 0.26)),
    (3, 220.0, 25.0, (0.40, -0.45, -0.56), (0.20, 0.25, 0.25)),
    (4, 220.0, 25.0, (-0.40, -0.45, -0.46), (0.20, 0.25, 0.25)),
)
_SPINE = ((0.0, -0.62), (0.12, 0.17))
"""Centre and half axes of the spine as shares of the body's, across and to the front; it runs from end to end."""


class SyntheticConfig(Config):
    """How many scans are made up, and how far they differ."""

    num_cases: int = Field(10, ge=3)
    """Scans: a fifth is for testing, about a sixth for validation, the rest for training."""
    shape: tuple[int, int, int] = (64, 64, 64)
    """Voxels to the right, front and head at the middle of the spacing range; a case's own follow from its spacing."""
    spacing_mm: tuple[float, float] = (3.0, 5.0)
    """Range that the spacing in a slice, and the distance of slices, are drawn from."""
    tilt_degrees: float = Field(8.0, ge=0, le=45)
    """Largest turn of the body about each axis."""
    variation: float = Field(0.1, ge=0, le=0.2)
    """Largest relative change of organs' sizes, and of their places against the body's size."""
    noise_hu: float = Field(15.0, ge=0)
    """Standard deviation of the noise."""
    seed: int = Field(0, ge=0)
    """Of everything random."""


def phantom(config: SyntheticConfig, seed: int) -> tuple[Volume, Volume]:
    """One scan (int16 HU) and its labels (uint8, numbers of `LABELS`) on the same grid, in one of 48 orientations.

    Raises:
        DataError: the range of spacings is empty, or the shape too small for organs to have voxels.
    """
    low, high = config.spacing_mm
    if not 0 < low <= high or min(config.shape) < 16:
        raise DataError(
            f"shape {config.shape} and spacings from {low:g} to {high:g} mm; allowed are 16 voxels or more along each "
            "axis, and a range of spacings above 0"
        )
    rng = np.random.default_rng([config.seed, seed])
    within, between = rng.uniform(low, high, 2)
    spacing = np.array([within, within, between])
    shape = np.maximum(16, np.round(np.array(config.shape) * (low + high) / 2 / spacing)).astype(int)
    extent = shape * spacing
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(extent - spacing) / 2 + rng.uniform(-50, 50, 3)
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    hu, labels = _body(config, grid, extent, rng)
    order = rng.permutation(3)
    flips = rng.integers(0, 2, 3).astype(bool)
    axes = Axes((int(order[0]), int(order[1]), int(order[2])), (bool(flips[0]), bool(flips[1]), bool(flips[2])))
    scans = (Volume(array, grid).turned(axes) for array in (hu, labels))
    scan, mask = (Volume(np.ascontiguousarray(volume.array), volume.grid) for volume in scans)
    return scan, mask


def write_dataset(config: SyntheticConfig, folder: Path) -> dict[str, Any]:
    """Writes the scans into a new or empty folder, and says what is in it.

    Raises:
        DataError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("the folder for synthetic scans is not empty; name a new one")
    num_test = max(1, round(config.num_cases / 5))
    num_validation = max(1, round(config.num_cases / 6))
    names = [f"phantom_{number:03d}" for number in range(config.num_cases)]
    num_train = config.num_cases - num_test - num_validation
    splits = {
        "train": names[:num_train],
        "validation": names[num_train : num_train + num_validation],
        "test": names[num_train + num_validation :],
    }
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
    for seed, name in enumerate(names):
        scan, mask = phantom(config, seed)
        side = "Ts" if name in splits["test"] else "Tr"
        write_nifti(scan, folder / f"images{side}" / f"{name}_0000.nii.gz")
        write_nifti(mask, folder / f"labels{side}" / f"{name}.nii.gz")
    record = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": config.num_cases - num_test,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(record, indent=1))
    (folder / "splits.json").write_text(json.dumps(splits, indent=1))
    return {"cases": {side: len(cases) for side, cases in splits.items()}, "labels": LABELS}


def _body(
    config: SyntheticConfig, grid: Grid, extent: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """[R, A, S] Hounsfield units and labels of one body in the middle of a RAS grid."""
    half = extent * np.array([0.42, 0.36, 0.52]) * rng.uniform(0.88, 1.0, 3)
    turns = np.radians(rng.uniform(-1, 1, 3) * config.tilt_degrees)
    middle = grid.world((np.array(grid.shape) - 1) / 2) + rng.uniform(-0.03, 0.03, 3) * extent
    right, front, head = _coordinates(grid, middle, rotation(turns), half)
    across = right**2 + front**2
    body = (across < 1) & (np.abs(head) < 1)
    hu = np.where(body, np.where(across < 0.85, _TISSUE_HU, _FAT_HU), AIR_HU).astype(np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    texture = ndimage.gaussian_filter(rng.standard_normal(grid.shape, np.float32), 1.2)
    texture *= 1 / texture.std()

    def fill(inside: NDArray[np.bool_], label: int, value: float, depth: float) -> None:
        hu[inside] = value + depth * texture[inside]
        labels[inside] = label

    vary = config.variation
    for label, value, depth, centre, axes in _ORGANS:
        place = np.array(centre) + rng.uniform(-vary, vary, 3) / 2
        size = np.array(axes) * rng.uniform(1 - vary, 1 + vary, 3)
        inside = ((right - place[0]) / size[0]) ** 2
        inside = inside + ((front - place[1]) / size[1]) ** 2
        inside = inside + ((head - place[2]) / size[2]) ** 2
        fill((inside < 1) & body, label, value + rng.uniform(-5, 5), depth)
    place, size = np.array(_SPINE[0]), np.array(_SPINE[1]) * rng.uniform(1 - vary, 1 + vary, 2)
    spine = ((right - place[0]) / size[0]) ** 2 + ((front - place[1]) / size[1]) ** 2 < 1
    fill(spine & body, LABELS["Spine"], 400.0, 60.0)
    hu += config.noise_hu * rng.standard_normal(grid.shape, np.float32)
    return np.clip(np.rint(hu), AIR_HU, 3071).astype(np.int16), labels


def _coordinates(
    grid: Grid, middle: NDArray[np.float64], rotation: NDArray[np.float64], half: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """Three [R, A, S] coordinates of each voxel along the body's axes, in its half axes."""
    lines = [
        (grid.affine[axis, 3] + grid.spacing_mm[axis] * np.arange(length) - middle[axis])
        for axis, length in enumerate(grid.shape)
    ]
    found = []
    for axis in range(3):
        parts = [(line * rotation[axis, k] / half[axis]).astype(np.float32) for k, line in enumerate(lines)]
        found.append(parts[0][:, None, None] + parts[1][:, None] + parts[2])
    return found
