"""Prepared training cases on disk: axes turned to RAS, the plan's spacing, int16 HU and uint8 labels to map into memory.

An entry is known by what it is made of: the bytes of its source files, the spacing, and the version of this layout. It
appears whole or not at all, is checked when it is opened, and made again when it is damaged. No name of a case or file is
written. Without a folder, a temporary one that is gone when the process ends, after an exception too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError, Unavailable
from verticals.medical.ct.dataset import NUM_THREADS, Case
from verticals.medical.ct.plan import Plan
from verticals.medical.volume import Volume, network_grid, resampled, resampled_labels, to_ras

LAYOUT = 1
"""Raised whenever what is written here changes."""
MAX_PLACES = 10_000
"""Voxels of a class that are remembered."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case as the loader reads it; axes R, A, S at the plan's spacing. C class."""

    name: str
    image: NDArray[np.int16]
    """[X, Y, Z] Hounsfield units, mapped from disk."""
    labels: NDArray[np.uint8]
    """[X, Y, Z], mapped from disk."""
    places: tuple[NDArray[np.int32], ...]
    """For each class [n, 3] voxels that have it, at most `MAX_PLACES`; none for the background."""
    known: tuple[bool, ...]
    """[C] which classes are drawn."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.shape[0], self.image.shape[1], self.image.shape[2]


class CaseCache:
    """Prepared cases in a folder; several processes may share it."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """
        Args:
            folder: kept, and made where it is not there; None for a temporary one.

        Raises:
            Unavailable: the folder cannot be made.
        """
        self._remove: Callable[[], object] = lambda: None
        try:
            if folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="prepared-"))
                self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
            else:
                self.folder = Path(folder)
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _unavailable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes a temporary folder; arrays that are mapped from it stay readable."""
        self._remove()

    def prepared(self, cases: Sequence[Case], plan: Plan) -> list[PreparedCase]:
        """All cases, in order; those that are not there yet are made, a few at a time.

        Raises:
            DataError: as `Case.read`.
            Unavailable: the folder cannot be written.
        """
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(pool.map(lambda case: self.case(case, plan), cases))

    def case(self, case: Case, plan: Plan) -> PreparedCase:
        """One case, made where there is no sound entry.

        Raises:
            DataError: as `Case.read`.
            Unavailable: the folder cannot be written.
        """
        folder = self.folder / _key(case, plan)
        found = _opened(folder, case)
        if found is None:
            self._make(folder, case, plan)
            found = _opened(folder, case)
        if found is None:
            raise Unavailable("a prepared case cannot be read back; check the disk of the cache folder and start again")
        return found

    def _make(self, folder: Path, case: Case, plan: Plan) -> None:
        image, labels = _resampled(case, plan)
        places, ends = _places(labels, len(case.names))
        try:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".making-") as place:
                made = Path(place) / "entry"
                made.mkdir()
                checks = {}
                for name, array in (("image", image), ("labels", labels), ("places", places)):
                    np.save(made / f"{name}.npy", array)
                    checks[name] = _checksum(array)
                (made / "entry.json").write_text(json.dumps({"ends": ends, "checks": checks}))
                with _alone(self.folder):
                    if _opened(folder, case) is not None:  # another process was first
                        return
                    if folder.exists():  # damaged: moved aside whole, so that no reader meets half of it
                        folder.rename(Path(place) / "damaged")
                    made.rename(folder)
        except OSError as error:
            raise _unavailable(error) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process or thread at a time is inside."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _key(case: Case, plan: Plan) -> str:
    """What the entry is made of; patch, network and normalization do not matter to it."""
    whole = hashlib.sha256(json.dumps([LAYOUT, list(plan.spacing_mm), len(case.names)]).encode())
    for path in (case.image_path, case.labels_path):
        try:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"case {case.name}: a file cannot be read ({error.strerror}); restore it") from None
    return whole.hexdigest()[:40]


def _opened(folder: Path, case: Case) -> PreparedCase | None:
    """The entry, or None where it is not there or not as it was written."""
    try:
        entry = json.loads((folder / "entry.json").read_text())
        arrays: dict[str, NDArray[Any]] = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in entry["checks"]
        }
        if any(_checksum(arrays[name]) != check for name, check in entry["checks"].items()):
            return None
        ends = entry["ends"]
        places = tuple(arrays["places"][start:end] for start, end in pairwise([0, *ends]))
        return PreparedCase(case.name, arrays["image"], arrays["labels"], places, case.known)
    except (OSError, ValueError, LookupError, TypeError, EOFError):
        return None


def _checksum(array: NDArray[Any]) -> list[Any]:
    return [
        array.dtype.str,
        list(array.shape),
        zlib.crc32(array.data.cast("B")) if array.size else 0,
    ]


def _resampled(case: Case, plan: Plan) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """[X, Y, Z] of scan and labels with axes R, A, S at the plan's spacing."""
    scan, mask = case.read()
    axes = to_ras(scan.grid)
    scan, mask = scan.turned(axes), mask.turned(axes)
    target = network_grid(scan.grid, plan.spacing_mm)
    if target.same_as(scan.grid):
        image, labels = scan.array, mask.array
    else:
        image = resampled(scan, target).array
        labels = resampled_labels(Volume(np.ascontiguousarray(mask.array), mask.grid), target).array
    return np.ascontiguousarray(image, np.int16), np.ascontiguousarray(labels, np.uint8)


def _places(labels: NDArray[np.uint8], num_classes: int) -> tuple[NDArray[np.int32], list[int]]:
    """[n, 3] some voxels of each class, class after class, and where each class ends; always the same for the same mask."""
    rng = np.random.default_rng(0)
    foreground = np.flatnonzero(labels)
    values = labels.reshape(-1)[foreground]
    order = np.argsort(values, kind="stable")
    edges = np.searchsorted(values[order], np.arange(num_classes + 1))
    chosen, ends = [], []
    for start, end in pairwise(edges):
        found = foreground[order[start:end]]
        if len(found) > MAX_PLACES:
            found = np.sort(rng.choice(found, MAX_PLACES, replace=False))
        chosen.append(found)
        ends.append(sum(map(len, chosen)))
    return np.stack(np.unravel_index(np.concatenate(chosen), labels.shape), axis=1).astype(np.int32), ends


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable(f"the cache folder cannot be written ({error.strerror}); free space or name another folder")
