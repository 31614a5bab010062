"""A CT volume to a mask on the same voxels: turned to RAS, resampled, cut into windows, blended, and brought back.

Memory and time are promised before anything starts (`estimate`), from the sizes alone and from one window that is run when
the model is loaded. The network sees windows of one size; what is smaller is padded with air.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.contract import Estimate, Session
from core.errors import CapacityError
from core.memory import PeakWatch, give_back, memory_limit, resident_bytes
from verticals.medical.answer import answer_bytes
from verticals.medical.ct.config import CtConfig
from verticals.medical.ct.plan import Plan
from verticals.medical.labels import Structure, structures
from verticals.medical.pieces import PIECES_BYTES, keep_largest
from verticals.medical.sliding import Blend, Windows, carry_bytes, label_dtype, windows_of
from verticals.medical.volume import (
    AIR_HU,
    SLAB_VOXELS,
    Grid,
    Volume,
    network_grid,
    resampled,
    resampled_labels,
    to_ras,
)

SECONDS_PER_VOXEL = 2e-7
"""Of turning, resampling and bringing back one voxel, on one core of a slow machine."""
SECONDS_PER_LABELLED = 3e-8
"""Of telling apart the pieces of one organ, a voxel of a box around them that is as large as the volume."""
SECONDS_PER_FRAME = 4e-3
"""Of writing and reading back one structure in one slice, as DICOM SEG and RTSTRUCT."""
MAX_WINDOWS = 20_000
"""Of one volume: more are a matter of days, or of a wrong voxel spacing, and their order would take minutes to find."""
SLAB_BYTES = 120
"""What resampling holds beside its input and output for each voxel of a slab: coordinates, corners, weights, candidates."""

HEADER_BYTES = 100_000
"""Of a DICOM slice's header, while the scan is worked on."""
WINDOW_BYTES = 28
"""Of each voxel of a window, beside image and logits: weights, clipped and scaled values, the largest class and its value."""
SPARE_BYTES = 2**26
"""What allocators keep, and code that is loaded when it is first used."""


class Segmentation(NamedTuple):
    """The answer to one volume."""

    mask: Volume
    """Labels on the volume's own grid."""
    num_windows: int
    num_skipped: int
    """Windows of air that the network did not see."""
    seconds: float


class _Cost(NamedTuple):
    """What one window takes, measured."""

    bytes: int
    seconds: float


class CtPredictor:
    """`predictor([volume]) -> [Segmentation]`."""

    def __init__(
        self,
        config: CtConfig,
        constants: Mapping[str, Any],
        session: Session,
        *,
        version: str = "",
        limit_bytes: int | None = None,
    ) -> None:
        """
        Args:
            limit_bytes: what this process may hold; the container's or the machine's where None.
        """
        self.config, self.version = config, version
        self.plan = Plan.from_record(constants["plan"])
        self.structures: tuple[Structure, ...] = structures(self.plan.labels, config.data.codes)
        self.inputs, self.outputs = session.inputs, session.outputs
        self._session, self._limit = session, limit_bytes
        self._patch = self.plan.patch_size
        self._num_classes = len(self.plan.labels)
        self._one_piece = [self.plan.labels[name] for name in self.plan.one_piece if config.predict.one_piece]

    def __call__(
        self, requests: Sequence[Volume], *, progress: Callable[[float], None] | None = None
    ) -> list[Segmentation]:
        """
        Args:
            requests: scans in Hounsfield units.
            progress: called with the share that is done after each window; what it raises ends the work.

        Raises:
            CapacityError: a volume needs more memory than there may be; nothing was started.
        """
        for volume in requests:
            self.admit(volume.grid, loaded=True)
        return [self._segment(volume, progress or (lambda share: None)) for volume in requests]

    def estimate(self, requests: Sequence[Volume | Grid]) -> Estimate:
        """The most memory that this process will hold, and the seconds until all are answered and written down: upper bounds,
        as if no window were air, every structure in every slice, and each scan a DICOM series. A Grid stands for a volume
        that has not been read yet.

        Raises:
            CapacityError: a volume of more windows than are ever taken.
        """
        peak, seconds = 0, 0.0
        for request in requests:
            loaded = isinstance(request, Volume)
            cost = self._cost(request.grid if isinstance(request, Volume) else request, loaded=loaded)
            peak, seconds = max(peak, cost.bytes), seconds + cost.seconds
        return Estimate(peak, seconds)

    def admit(self, grid: Grid, *, loaded: bool = False, held_bytes: int | None = None) -> Estimate:
        """The estimate of one volume.

        Args:
            held_bytes: what the process will hold beside it; None takes what it holds now.

        Raises:
            CapacityError: it is over the limit, of memory or of windows.
        """
        promised = self._cost(grid, loaded=loaded, held_bytes=held_bytes)
        limit = memory_limit() if self._limit is None else self._limit
        if promised.bytes > limit:
            size = " x ".join(map(str, grid.shape))
            raise CapacityError(
                f"a volume of {size} voxels needs {promised.bytes / 1e9:.2f} GB of memory here and {promised.seconds:.0f} s; "
                f"allowed are {limit / 1e9:.2f} GB: crop the volume, or give the service more memory"
            )
        return promised

    def warm(self) -> None:
        """Runs a window, so that the first request is as fast as any and costs are known."""
        _ = self._window_cost

    @cached_property
    def _window_cost(self) -> _Cost:
        image = self.plan.normalized(np.full((1, 1, *self._patch), AIR_HU, np.int16))
        self._session({"image": image})  # what is made at the first call stays: it is no cost of a window
        give_back()
        before = resident_bytes()
        with PeakWatch() as watch:
            started = time.perf_counter()
            logits = self._session({"image": image})["logits"]
            seconds = time.perf_counter() - started
        started = time.perf_counter()
        Blend(windows_of(self._patch, self._patch, 0.0), num_classes=self._num_classes).add(logits[0])
        return _Cost(max(watch.bytes - before, logits.nbytes), seconds + 2 * (time.perf_counter() - started))

    def _cost(self, grid: Grid, *, loaded: bool, held_bytes: int | None = None) -> Estimate:
        window = self._window_cost
        net = network_grid(grid, self.plan.spacing_mm)
        turned_grid = grid.turned(to_ras(grid))
        is_resampled = not net.same_as(turned_grid)
        windows = self._windows(net.shape)
        carried = carry_bytes(windows, num_classes=self._num_classes, carry=self.config.predict.carry)
        given, label = grid.num_voxels, np.dtype(label_dtype(self._num_classes)).itemsize
        scan = 0 if loaded else 2 * given + HEADER_BYTES * grid.shape[2]
        turned = 2 * net.num_voxels if is_resampled else 0
        whole = int(np.prod(windows.shape))
        padded = 2 * whole if windows.shape != net.shape else 0
        blending = padded + label * whole + carried + window.bytes + WINDOW_BYTES * int(np.prod(self._patch))
        plane = max(one.shape[0] * one.shape[1] for one in (net, turned_grid))
        resampling = SLAB_BYTES * max(SLAB_VOXELS, plane) if is_resampled else 0
        telling = (label * whole + PIECES_BYTES * net.num_voxels) if self._one_piece else 0
        returning = max(label * whole + label * given + resampling, 2 * label * given)
        steps = (
            turned + max(blending, resampling),
            telling,
            returning,
            label * given + answer_bytes(grid, self._num_classes - 1),
        )
        held = resident_bytes() if held_bytes is None else held_bytes
        peak = held + SPARE_BYTES + scan + max(steps)
        seconds = len(windows.tiles) * window.seconds + SECONDS_PER_VOXEL * (given + net.num_voxels)
        seconds += SECONDS_PER_LABELLED * len(self._one_piece) * net.num_voxels
        seconds += SECONDS_PER_FRAME * (self._num_classes - 1) * grid.shape[2]
        return Estimate(peak, seconds)

    def _segment(self, volume: Volume, progress: Callable[[float], None]) -> Segmentation:
        started = time.perf_counter()
        axes = to_ras(volume.grid)
        scan = volume.turned(axes)
        net = network_grid(volume.grid, self.plan.spacing_mm)
        is_resampled = not net.same_as(scan.grid)
        labels, num_windows, num_skipped = self._blended(
            resampled(scan, net).array if is_resampled else scan.array, progress
        )
        keep_largest(labels, self._one_piece)
        if is_resampled:
            labels = resampled_labels(Volume(labels, net), scan.grid).array
        own = np.ascontiguousarray(axes.back(labels))
        return Segmentation(Volume(own, volume.grid), num_windows, num_skipped, time.perf_counter() - started)

    def _blended(self, array: NDArray[np.int16], progress: Callable[[float], None]) -> tuple[NDArray[Any], int, int]:
        """Labels of an array of HU on the network's grid, the number of windows, and how many were air."""
        shape = array.shape
        windows = self._windows(shape)
        if windows.shape != shape:
            ends = [(0, whole - size) for whole, size in zip(windows.shape, shape, strict=True)]
            array = np.pad(array, ends, constant_values=AIR_HU)
        predict = self.config.predict
        carried = carry_bytes(windows, num_classes=self._num_classes, carry=predict.carry)
        before = resident_bytes()
        blend = Blend(windows, num_classes=self._num_classes, carry=predict.carry)
        most_between = before + SPARE_BYTES + carried + blend.labels.nbytes
        skipped = 0
        for number, tile in enumerate(windows.tiles):
            window = array[tile]
            if predict.air_hu is not None and int(window.max()) < predict.air_hu:
                blend.add(None)
                skipped += 1
            else:
                blend.add(self._logits(window))
            if resident_bytes() > most_between:  # more than is alive: what windows left behind, in pieces
                give_back()
            progress((number + 1) / len(windows.tiles))
        return blend.labels[tuple(slice(size) for size in shape)], len(windows.tiles), skipped

    def _logits(self, window: NDArray[np.int16]) -> NDArray[np.float32]:
        """[K, X, Y, Z]; nobody else holds them, so that they are gone before the next window's are made."""
        logits: NDArray[np.float32] = self._session({"image": self.plan.normalized(window)[None, None]})["logits"][0]
        return logits

    def _windows(self, shape: Sequence[int]) -> Windows:
        """Those of a volume on the network's grid, made as large as a window where it is smaller.

        Raises:
            CapacityError: more than `MAX_WINDOWS`.
        """
        whole = tuple(max(size, patch) for size, patch in zip(shape, self._patch, strict=True))
        overlap = self.config.predict.overlap
        steps = [max(1, int(patch * (1 - overlap))) for patch in self._patch]
        count = math.prod(
            1 + -(-(size - patch) // step) for size, patch, step in zip(whole, self._patch, steps, strict=True)
        )
        if count > MAX_WINDOWS:
            extent = " x ".join(f"{size * mm:,.0f}" for size, mm in zip(shape, self.plan.spacing_mm, strict=True))
            raise CapacityError(
                f"a scan of {extent} mm takes {count:,} windows of the network; allowed are {MAX_WINDOWS:,}: "
                "correct its voxel spacing, or crop it"
            )
        return windows_of(whole, self._patch, overlap)
