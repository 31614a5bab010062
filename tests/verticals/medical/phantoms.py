"""Series of noise anywhere in space, on disk and then spoiled."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from openjpeg.utils import encode_array
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
)
from scipy.spatial.transform import Rotation

from verticals.medical.volume import Axes, Grid, Volume

SHAPE = (7, 5, 4)
TURNS = [
    Axes(order, flips)  # type: ignore[arg-type]
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]
SECRET = "Geheim^Klara"


def placed(
    shape: tuple[int, int, int] = SHAPE,
    *,
    spacing: tuple[float, float, float] = (0.8, 0.9, 2.5),
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    tilt: float = 0.0,
) -> Grid:
    """A grid anywhere: turned by angles in degrees, its slices displaced along y by tan(tilt) of their spacing."""
    affine = np.eye(4)
    local = np.diag(spacing)
    local[1, 2] = np.tan(np.radians(tilt)) * spacing[2]
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ local
    affine[:3, 3] = (-120.5, 33.25, -880.125)
    return Grid(shape, affine)


def noise(grid: Grid, seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).integers(-1024, 3071, grid.shape).astype(np.int16), grid)


def at_same_places(one: Volume, other: Volume) -> bool:
    """Whether every voxel has one of the same value at the same mm in the other, whatever the arrays' axes."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in one.grid.shape), indexing="ij"), -1).reshape(-1, 3)
    found = other.grid.index(one.grid.world(index))
    nearest = np.round(found).astype(int)
    if np.abs(found - nearest).max() > 1e-5 or nearest.min() < 0 or one.array.size != other.array.size:
        return False
    return bool((other.array[tuple(nearest.T)] == one.array[tuple(index.T)]).all())


def edited(folder: Path, change: Callable[[pydicom.Dataset, int], object], *, only: int | None = None) -> None:
    """Changes the headers of all files, or of the one at a place."""
    for number, path in enumerate(sorted(folder.rglob("*.dcm"))):
        if only is None or number == only:
            dataset = pydicom.dcmread(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                change(dataset, number)
                dataset.save_as(path)


def setting(**values: Any) -> Callable[[pydicom.Dataset, int], None]:
    def change(dataset: pydicom.Dataset, _: int) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def recompressed(dataset: pydicom.Dataset, syntax: str) -> None:
    if syntax != JPEG2000Lossless:
        dataset.compress(syntax, generate_instance_uid=False)
        return
    signed = dataset.PixelRepresentation == 1
    pixels = np.frombuffer(dataset.PixelData, "<i2" if signed else "<u2").reshape(dataset.Rows, dataset.Columns)
    dataset.PixelData = encapsulate([encode_array(pixels, photometric_interpretation=2)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax


def jpeg_lossless(folder: Path) -> None:
    for path in folder.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
