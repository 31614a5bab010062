"""Slices of one series in order, and the grid that they span; whatever does not span one is refused.

`normal` is the slices' own, cross(across, down); LPS in mm until the grid, which is RAS+.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from verticals.medical.dicom.headers import UNIT_TOLERANCE, Slice
from verticals.medical.volume import Grid

MAX_SLICES = 1200
"""Slices of a series: a whole body at 1.5 mm."""
MAX_VOXELS = 2**29
"""Of a volume: 1,200 slices of 512 x 512, or 512 of 1,024 x 1,024; as int16 it takes 1 GiB."""
MAX_UNEVENNESS = 0.01
"""How far the step between neighbours may depart from the common one, as a share of it."""
MAX_DRIFT = 0.1
"""How far a slice may lie off its place on the even line through the first and last, in steps."""
MIN_GAP_MM = 0.01
"""Slices that are nearer to each other count as lying at the same place."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def arranged(slices: Sequence[Slice]) -> tuple[list[Slice], Grid]:
    """Slices sorted along their normal, and the grid whose index is (column, row, slice).

    Raises:
        DataError: more than one series, slices that differ or repeat, a step that is not even, too many of them, a slice
            that lies half a voxel or more from its place on the grid.
    """
    _check_one_series(slices)
    if len(slices) > MAX_SLICES:
        raise DataError(f"the series has {len(slices):,} slices; allowed are up to {MAX_SLICES:,}: read a part of it")
    voxels = len(slices) * slices[0].shape[0] * slices[0].shape[1]
    if voxels > MAX_VOXELS:
        raise DataError(
            f"the series has {voxels:,} voxels; allowed are up to {MAX_VOXELS:,}: read a part of it, or resample"
        )
    if len(slices) == 1:
        raise DataError("the series has a single slice; a volume takes at least 2")
    _check_alike(slices)
    first = slices[0]
    normal = np.cross(first.across, first.down)
    slices = sorted(slices, key=lambda piece: float(piece.position_mm @ normal))
    step = _step(slices, normal)
    affine = np.eye(4)
    affine[:3, 0] = _LPS_TO_RAS @ first.across * first.spacing_mm[0]
    affine[:3, 1] = _LPS_TO_RAS @ first.down * first.spacing_mm[1]
    affine[:3, 2] = _LPS_TO_RAS @ step
    affine[:3, 3] = _LPS_TO_RAS @ slices[0].position_mm
    grid = Grid((*first.shape, len(slices)), affine)
    _check_places(slices, grid)
    return slices, grid


def _check_places(slices: Sequence[Slice], grid: Grid) -> None:
    """Raises DataError for a slice whose corners are off the grid's: slices that creep sideways are, and directions that differ a
    little, far from the first pixel."""
    columns, rows = (length - 1 for length in grid.shape[:2])
    corners = np.array([(0, 0), (columns, 0), (0, rows), (columns, rows)])
    for k, piece in enumerate(slices):
        steps = np.stack([piece.across * piece.spacing_mm[0], piece.down * piece.spacing_mm[1]])
        found = grid.index((corners @ steps + piece.position_mm) @ _LPS_TO_RAS)
        off = np.abs(found - np.column_stack([corners, np.full(4, k)])).max(1)
        if off.max() >= 0.5:
            how = "has moved sideways from" if off[0] >= 0.5 else "is turned against"
            raise DataError(
                f"{piece.name} {how} the others: a corner lies {off.max():.2g} voxels from where an even stack has it; "
                "allowed is less than half: give the files of one stack, or resample it"
            )


def _check_one_series(slices: Sequence[Slice]) -> None:
    sizes = Counter(str(piece.header.SeriesInstanceUID) for piece in slices)
    if len(sizes) > 1:
        listed = sorted(sizes.values(), reverse=True)
        shown = ", ".join(str(size) for size in listed[:10]) + (", ..." if len(listed) > 10 else "")
        raise DataError(
            f"{len(sizes)} series in one place, of {shown} images; allowed is one: give the files of one series"
        )


def _check_alike(slices: Sequence[Slice]) -> None:
    """Raises DataError where slices do not belong to one patient and one stack, or are stored twice."""
    for keyword, called in (
        ("PatientID", "patient IDs"),
        ("StudyInstanceUID", "studies"),
        ("FrameOfReferenceUID", "frames of reference"),
    ):
        found = len({str(piece.header.get(keyword) or "") for piece in slices})
        if found > 1:
            raise DataError(f"the slices belong to {found} {called}; a series has one: give the files of one series")
    for called, value, alike, shown in _PROPERTIES:
        for piece in slices[1:]:
            one, other = value(slices[0]), value(piece)
            if not alike(one, other):
                raise DataError(
                    f"slices of different {called}: {slices[0].name} has {shown(one)}, {piece.name} {shown(other)}; "
                    "a series has one: give the files of one stack"
                )
    seen: dict[str, str] = {}
    for piece in slices:
        before = seen.setdefault(str(piece.header.SOPInstanceUID), piece.name)
        if before != piece.name:
            raise DataError(f"duplicate slice: {before} and {piece.name} are the same image; leave one of them out")


def _near(tolerance: float) -> Callable[[Any, Any], bool]:
    return lambda one, other: bool(np.abs(np.asarray(one) - np.asarray(other)).max() <= tolerance)


def _listed(values: Any) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


_PROPERTIES: tuple[tuple[str, Callable[[Slice], Any], Callable[[Any, Any], bool], Callable[[Any], str]], ...] = (
    ("matrix size (columns x rows)", lambda piece: piece.shape, _near(0), _listed),
    ("pixel spacing (mm)", lambda piece: piece.spacing_mm, _near(1e-4), _listed),
    ("orientation", lambda piece: np.concatenate([piece.across, piece.down]), _near(UNIT_TOLERANCE), _listed),
)


def _step(slices: Sequence[Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3] mean displacement from slice to slice, in mm."""
    places = np.array([piece.position_mm for piece in slices])
    heights = places @ normal
    gaps = np.diff(heights)
    if (gaps < MIN_GAP_MM).any():
        k = int(np.argmax(gaps < MIN_GAP_MM))
        raise DataError(
            f"duplicate slices: {int((gaps < MIN_GAP_MM).sum())} lie at the same place as another, first {slices[k].name} and "
            f"{slices[k + 1].name}, both at {heights[k]:.2f} mm along the slice normal; leave one stack of images: "
            "phases and reconstructions go in separate folders"
        )
    steps = np.diff(places, axis=0)
    common = np.median(steps, axis=0)
    spacing = float(common @ normal)
    off = np.linalg.norm(steps - common, axis=1)
    if (off > MAX_UNEVENNESS * spacing + 1e-9).any():
        raise DataError(_unevenness(slices, heights, steps, normal))
    mean = (places[-1] - places[0]) / (len(slices) - 1)
    drift = np.linalg.norm(places - places[0] - np.arange(len(slices))[:, None] * mean, axis=1)
    if drift.max() > MAX_DRIFT * spacing:
        raise DataError(
            f"the spacing of slices changes along the scan: slice {int(np.argmax(drift)) + 1} of {len(slices)} lies "
            f"{drift.max():.2f} mm off an even spacing of {spacing:.4g} mm; allowed is {MAX_DRIFT:.0%} of it: resample the scan"
        )
    return np.asarray(mean)


def _unevenness(
    slices: Sequence[Slice], heights: NDArray[np.float64], steps: NDArray[np.float64], normal: NDArray[np.float64]
) -> str:
    """What is wrong with steps that are not all alike: slices missing, moved sideways, or simply uneven."""
    gaps, total = np.diff(heights), len(slices)
    smallest = float(gaps.min())
    multiples = np.round(gaps / smallest)
    if (multiples > 1).any() and (np.abs(gaps / smallest - multiples) <= 2 * MAX_UNEVENNESS * multiples).all():
        holes = [
            f"{int(multiples[k]) - 1} between slice {k + 1} and {k + 2} (at {heights[k]:.2f} and {heights[k + 1]:.2f} mm)"
            for k in np.flatnonzero(multiples > 1)
        ]
        shown = "; ".join(holes[:5]) + ("; ..." if len(holes) > 5 else "")
        return (
            f"{int((multiples - 1).sum())} slice(s) missing: {shown}, counted along the slice normal of the {total} "
            f"that are there, {smallest:.4g} mm apart; send the whole series"
        )
    if gaps.max() - smallest <= MAX_UNEVENNESS * smallest:
        sideways = steps - gaps[:, None] * normal
        off = np.linalg.norm(sideways - np.median(sideways, axis=0), axis=1)
        k = int(np.argmax(off))
        return (
            f"slices are not on one line: from slice {k + 1} to {k + 2} of {total} they move {off[k]:.2f} mm sideways, unlike "
            "the others; allowed is one displacement (a tilted gantry) within 1 % of the spacing: use another reconstruction"
        )
    k = int(np.argmax(np.abs(gaps - np.median(gaps))))
    return (
        f"slices lie {smallest:.4g} to {gaps.max():.4g} mm apart, from slice {k + 1} to {k + 2} of {total} {gaps[k]:.4g} mm; "
        "allowed is one spacing within 1 %: send the whole series, or resample it to even spacing"
    )
