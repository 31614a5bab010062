"""What the training cases say about spacing, patch, network and intensities: nnU-Net's rules, as a readable plan.

`Fingerprint` measures the training cases, one at a time; `make_plan` decides. Axes are R, A, S throughout.
Source: Isensee et al. 2021, nnU-Net. Deviations: the budget is a number of voxels instead of a GPU's memory, intensities
come from a histogram of all foreground voxels in which each case counts the same, empty borders are not cropped, and there is one
resolution: where a patch would show too little of a case, it is nnU-Net's low one. Whether an organ's largest piece alone is kept
follows from the masks of the training cases instead of from predictions of validation cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from core.config import Config
from core.errors import ConfigError, DataError
from verticals.medical.ct.dataset import NUM_THREADS, Case
from verticals.medical.labels import has_side
from verticals.medical.pieces import largest_share
from verticals.medical.volume import to_ras

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

ANISOTROPY = 3.0
"""Ratio of spacings from which on an axis counts as of low resolution."""
LEAST_EDGE = 4
"""Voxels that the coarsest feature map keeps along each axis that is pooled."""
MAX_SHARE = 0.05
"""Largest share of all training voxels in one batch."""
WHOLE, OFTEN = 0.95, 0.95
"""An organ is one piece where the largest holds such a share of it in such a share of the cases."""
COARSER = 1.03
"""By how much voxels grow at a time where a patch would show too little."""
_LOWEST_HU = -32768


class Fingerprint(Config):
    """What was measured on the training cases."""

    labels: dict[str, int]
    """Number of each class, background 0."""
    spacing_mm: tuple[Spacing, ...]
    """Of each case."""
    shape: tuple[Triple, ...]
    """Voxels of each case."""
    hu_low: float
    """0.5th percentile of the foreground's Hounsfield units."""
    hu_high: float
    """99.5th percentile."""
    hu_mean: float
    """Mean."""
    hu_std: float
    """Standard deviation."""
    foreground_voxels: dict[str, int]
    """Voxels of each organ over all cases."""
    foreground_ml: dict[str, float]
    """Mean volume of each organ over the cases that have it."""
    num_present: dict[str, int]
    """Cases that have the organ."""
    num_whole: dict[str, int] = {}
    """Cases in which one piece holds `WHOLE` of the organ's voxels."""

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Self:
        """Reads each case once.

        Raises:
            DataError: no case, as `Case.read`, or an organ without a voxel.
        """
        if not cases:
            raise DataError("no training case to measure; name some in splits.json")
        names = cases[0].names
        histogram = np.zeros(2**16)
        voxels, present, one_piece = (np.zeros(len(names), np.int64) for _ in range(3))
        ml = np.zeros(len(names))
        spacings, shapes = [], []
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for spacing, shape, counts, voxel_ml, share, largest in pool.map(_measured, cases):
                spacings.append(spacing)
                shapes.append(shape)
                histogram += share
                voxels += counts
                ml += counts * voxel_ml
                present += counts > 0
                one_piece += largest >= WHOLE
        if never := [name for k, name in enumerate(names) if k and not voxels[k]]:
            raise DataError(
                f"no training case has a voxel of {', '.join(never)}, so that nothing could be learned of it; leave it out of "
                "the labels of dataset.json, or give a training case that has it"
            )
        low, high, mean, std = _statistics(histogram)
        return cls(
            labels={name: number for number, name in enumerate(names)},
            spacing_mm=tuple(spacings),
            shape=tuple(shapes),
            hu_low=low,
            hu_high=high,
            hu_mean=mean,
            hu_std=std,
            foreground_voxels={name: int(voxels[k]) for k, name in enumerate(names) if k},
            foreground_ml={name: float(ml[k] / max(1, present[k])) for k, name in enumerate(names) if k},
            num_present={name: int(present[k]) for k, name in enumerate(names) if k},
            num_whole={name: int(one_piece[k]) for k, name in enumerate(names) if k},
        )


class Plan(Config):
    """How scans are prepared and what the network looks like."""

    spacing_mm: Spacing
    """Voxel spacing that scans are resampled to."""
    patch_size: Triple
    """Voxels of a training patch and of a window."""
    strides: tuple[Triple, ...]
    """Pooling before each level; the first is (1, 1, 1)."""
    widths: tuple[int, ...]
    """Channels of each level, fine to coarse."""
    batch_size: int = Field(ge=1)
    """Patches a step, over all ranks."""
    hu_low: float
    """Hounsfield units are clipped from here ..."""
    hu_high: float
    """... to here, ..."""
    hu_mean: float
    """... this is subtracted ..."""
    hu_std: float = Field(gt=0)
    """... and they are divided by this."""
    windows_hu: tuple[tuple[float, float], ...] = ()
    """Lowest and highest Hounsfield unit of windows that the network sees the scan in as well."""
    labels: dict[str, int]
    """Number of each class, background 0."""
    mirror_axes: tuple[int, ...] = ()
    """Axes along which a training patch may be mirrored."""
    one_piece: tuple[str, ...] = ()
    """Organs of which an answer keeps the largest piece alone."""
    why: dict[str, str] = {}
    """What each decision rests on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        whole = [prod(stride[axis] for stride in self.strides) for axis in range(3)]
        if min(self.spacing_mm) <= 0 or self.hu_low >= self.hu_high:
            raise ValueError("spacings have to be above 0, and hu_low below hu_high")
        if len(self.strides) != len(self.widths) or len(self.widths) < 2 or self.strides[0] != (1, 1, 1):
            raise ValueError("each level, two at least, needs one stride and one width, the first stride (1, 1, 1)")
        if any(size < 1 or size % part for size, part in zip(self.patch_size, whole, strict=True)):
            raise ValueError(f"patch_size has to be a multiple of {whole}, the strides' product")
        if sorted(self.labels.values()) != list(range(len(self.labels))) or len(self.labels) < 2:
            raise ValueError("labels have to be numbered from 0 on without a gap, the background first")
        if any(low >= high for low, high in self.windows_hu):
            raise ValueError("each of windows_hu has to be a lower and a higher Hounsfield unit")
        if unknown := [name for name in self.one_piece if not self.labels.get(name)]:
            raise ValueError(f"one_piece names {unknown[0]}, which is no organ of labels")
        return self

    @property
    def num_classes(self) -> int:
        """With the background."""
        return len(self.labels)

    def normalized(self, hu: NDArray[Any]) -> NDArray[np.float32]:
        """Hounsfield units of any shape as the network takes them."""
        scaled: NDArray[np.float32] = np.clip(hu, self.hu_low, self.hu_high).astype(np.float32)
        scaled -= np.float32(self.hu_mean)
        scaled /= np.float32(self.hu_std)
        return scaled

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        """`windows_hu` as `normalized` scales them."""
        return tuple(
            ((low - self.hu_mean) / self.hu_std, (high - self.hu_mean) / self.hu_std) for low, high in self.windows_hu
        )

    @property
    def text(self) -> str:
        """One line a decision, and what it rests on."""
        values = {
            "spacing_mm": " x ".join(f"{mm:.4g}" for mm in self.spacing_mm),
            "patch_size": " x ".join(str(size) for size in self.patch_size),
            "strides": ", ".join("x".join(str(step) for step in stride) for stride in self.strides),
            "widths": ", ".join(str(width) for width in self.widths),
            "batch_size": str(self.batch_size),
            "hu": f"{self.hu_low:.4g} to {self.hu_high:.4g}, mean {self.hu_mean:.4g}, std {self.hu_std:.4g}",
            "windows_hu": ", ".join(f"{low:g} to {high:g}" for low, high in self.windows_hu) or "none",
            "mirror_axes": ", ".join("RAS"[axis] for axis in self.mirror_axes) or "none",
            "one_piece": ", ".join(self.one_piece) or "none",
            "labels": ", ".join(name for name in self.labels if self.labels[name]),
        }
        return "\n".join(f"{name:<12} {value}   ({self.why.get(name, 'given')})" for name, value in values.items())


def make_plan(
    fingerprint: Fingerprint,
    *,
    patch_voxels: int = 128 * 128 * 64,
    batch_voxels: int | None = None,
    spacing_mm: Spacing | None = None,
    patch_size: Triple | None = None,
    least_cover: float = 0.0,
    windows_hu: tuple[tuple[float, float], ...] = (),
    base_width: int = 32,
    max_width: int = 320,
    max_levels: int = 6,
) -> Plan:
    """The plan for these cases.

    Args:
        patch_voxels: the most that a patch may have; memory and time of a step grow with it.
        batch_voxels: of a batch, about; None takes twice `patch_voxels`. A batch has two patches at least.
        spacing_mm: instead of the median's.
        patch_size: instead of the budget's, rounded up to what the poolings divide.
        least_cover: share of the median case that a patch holds at least: where the budget is too small for it, voxels are
            made coarser, unless their spacing or the patch is given.
        windows_hu: that the network sees the scan in as well.
        base_width: channels of the finest level; they double with each level.
        max_width: channels that no level exceeds.
        max_levels: levels with the finest.

    Raises:
        ConfigError: a budget below 16^3 voxels, fewer than two levels, or a patch too small to be pooled.
    """
    if patch_voxels < 16**3 or max_levels < 2 or base_width < 1:
        raise ConfigError(
            f"patch_voxels {patch_voxels}, max_levels {max_levels}, base_width {base_width}; allowed are 4096 voxels, "
            "2 levels and width 1 or more"
        )
    spacings, shapes = np.array(fingerprint.spacing_mm), np.array(fingerprint.shape)
    target, reason = _target_spacing(spacings, shapes) if spacing_mm is None else (np.array(spacing_mm), "given")
    coarser = ""
    median = np.median(shapes * spacings / target, axis=0)
    if patch_size is None:
        size, strides = _patch(median, target, patch_voxels, max_levels)
        while spacing_mm is None and prod(size) < least_cover * median.prod():
            fine = 2 * target < target.max()
            target = target * np.where(fine if fine.any() else True, COARSER, 1.0)
            median = np.median(shapes * spacings / target, axis=0)
            size, strides = _patch(median, target, patch_voxels, max_levels)
            coarser = f", made coarser until a patch holds {least_cover:.0%} of the median case"
    else:
        size, strides = _pooled(patch_size, target, max_levels)
    if len(strides) < 2:
        raise ConfigError(
            f"patch {size} cannot be pooled; allowed are 8 voxels or more along an axis: raise the budget"
        )
    budget = 2 * patch_voxels if batch_voxels is None else batch_voxels
    most = round(MAX_SHARE * float(median.prod()) * len(shapes) / prod(size))
    batch_size = max(2, min(budget // prod(size), most))
    sided = [name for name in fingerprint.labels if has_side(name)]
    why = {
        "spacing_mm": reason + coarser,
        "patch_size": f"at most {patch_voxels} voxels, shaped like the median case of "
        f"{' x '.join(str(round(length)) for length in median)} voxels"
        if patch_size is None
        else "given",
        "strides": f"an axis is pooled while its map keeps {LEAST_EDGE} voxels and its spacing is within twice the finest",
        "widths": f"from {base_width} on, doubled a level, {max_width} at most",
        "batch_size": f"about {budget} voxels, at most {MAX_SHARE:.0%} of the training voxels, at least 2",
        "hu": f"0.5th and 99.5th percentile, mean and standard deviation of the organs' voxels in {len(shapes)} cases",
        "mirror_axes": f"not R-L: {sided[0]} has a side" if sided else "no label names a side",
        "one_piece": f"one piece holds {WHOLE:.0%} of the organ in {OFTEN:.0%} of the training cases that have it",
        "labels": ", ".join(f"{ml:.3g} mL" for ml in fingerprint.foreground_ml.values()),
    }
    one_piece = tuple(
        name
        for name, count in fingerprint.num_whole.items()
        if count and count >= OFTEN * fingerprint.num_present[name]
    )
    return Plan(
        spacing_mm=(float(target[0]), float(target[1]), float(target[2])),
        patch_size=size,
        strides=strides,
        widths=tuple(min(max_width, base_width * 2**level) for level in range(len(strides))),
        batch_size=batch_size,
        hu_low=fingerprint.hu_low,
        hu_high=fingerprint.hu_high,
        hu_mean=fingerprint.hu_mean,
        hu_std=fingerprint.hu_std,
        windows_hu=windows_hu,
        labels=fingerprint.labels,
        mirror_axes=(1, 2) if sided else (0, 1, 2),
        one_piece=one_piece,
        why=why,
    )


def _measured(
    case: Case,
) -> tuple[Spacing, Triple, NDArray[np.int64], float, NDArray[np.float64], NDArray[np.float64]]:
    """Spacing, shape, voxels a class, mL of a voxel, the foreground's histogram with sum 1, and each class' largest piece."""
    scan, mask = case.read()
    axes = to_ras(scan.grid)
    grid = scan.grid.turned(axes)
    counts = np.bincount(mask.array.ravel(), minlength=len(case.names))
    values = scan.array[mask.array > 0].astype(np.int64) - _LOWEST_HU
    histogram = np.bincount(values, minlength=2**16).astype(np.float64)
    spacing = grid.spacing_mm
    return (
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        grid.shape,
        counts,
        grid.voxel_ml,
        histogram / max(1, len(values)),
        largest_share(mask.array, len(case.names)),
    )


def _statistics(histogram: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """0.5th and 99.5th percentile, mean and standard deviation of a histogram over all int16 values."""
    share = histogram / histogram.sum()
    hu = np.arange(len(share)) + float(_LOWEST_HU)
    low, high = (float(value) for value in hu[np.searchsorted(np.cumsum(share), (0.005, 0.995))])
    mean = float(share @ hu)
    std = float(np.sqrt(share @ (hu - mean) ** 2))
    return low, max(high, low + 1), mean, max(std, 1.0)


def _target_spacing(spacings: NDArray[np.float64], shapes: NDArray[np.int64]) -> tuple[NDArray[np.float64], str]:
    """The median, save along one axis of low resolution: there the 10th percentile, so that thin slices lose less."""
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    finest = float(target[others].max())
    if target[worst] <= ANISOTROPY * finest or shape[worst] * ANISOTROPY >= shape[others].min():
        return target, f"median of {len(spacings)} cases"
    target[worst] = max(float(np.percentile(spacings[:, worst], 10)), finest)
    return target, f"median of {len(spacings)} cases, 10th percentile along {'RAS'[worst]}, of low resolution"


def _pooled(size: Sequence[int], spacing: NDArray[np.float64], max_levels: int) -> tuple[Triple, tuple[Triple, ...]]:
    """The size rounded up to what the poolings divide, and the stride before each level."""
    current_size, current = [float(length) for length in size], spacing.astype(float).copy()
    strides: list[Triple] = [(1, 1, 1)]
    while len(strides) < max_levels:
        long = [axis for axis in range(3) if current_size[axis] >= 2 * LEAST_EDGE]
        able = _alike(long, current)
        if len(able) == 1 and current_size[able[0]] < 3 * LEAST_EDGE:  # too short to be pooled by itself
            able = _alike([axis for axis in long if axis not in able], current)
        if not able:
            break
        stride = [2 if axis in able else 1 for axis in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        for axis in able:
            current[axis] *= 2
            current_size[axis] = np.ceil(current_size[axis] / 2)
    whole = [prod(stride[axis] for stride in strides) for axis in range(3)]
    rounded = [-(-int(length) // part) * part for length, part in zip(size, whole, strict=True)]
    return (rounded[0], rounded[1], rounded[2]), tuple(strides)


def _alike(axes: list[int], spacing: NDArray[np.float64]) -> list[int]:
    """Those whose spacing is within twice the finest of them."""
    return [axis for axis in axes if spacing[axis] < 2 * min(spacing[other] for other in axes)]


def _patch(
    median: NDArray[np.float64], spacing: NDArray[np.float64], budget: int, max_levels: int
) -> tuple[Triple, tuple[Triple, ...]]:
    """A cube in millimetres of 256^3 voxels, cut to the median case, then made smaller until it fits the budget: each
    time along the axis that covers most of the median case."""
    cube = 1 / spacing
    cube *= 256 / np.prod(cube) ** (1 / 3)
    wanted = [max(1, round(float(length))) for length in np.minimum(cube, median)]
    size, strides = _pooled(wanted, spacing, max_levels)
    while prod(size) > budget:
        whole = [prod(stride[axis] for stride in strides) for axis in range(3)]
        able = [axis for axis in range(3) if size[axis] > whole[axis]]
        if not able:
            raise ConfigError(
                f"a patch of {size} is the smallest for these spacings; raise patch_voxels to {prod(size)}"
            )
        axis = max(able, key=lambda one: (size[one] / median[one], one))
        wanted = list(size)
        wanted[axis] -= whole[axis]
        size, strides = _pooled(wanted, spacing, max_levels)
    return size, strides
