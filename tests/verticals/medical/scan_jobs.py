"""The service's work without a network: a predictor that finds what is bright, and how tests submit to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core.contract import Estimate
from core.errors import CapacityError
from tests.verticals.medical.answers import LABELS
from tests.verticals.medical.uploads import nifti
from verticals.medical.connect.receiver import Peer
from verticals.medical.ct.predictor import Segmentation
from verticals.medical.jobs import ScanJobs
from verticals.medical.labels import structures
from verticals.medical.volume import Grid, Volume

PACS = Peer("PACS", "127.0.0.1", 4242)


class Brightness:
    """A predictor whose organs are what is bright, at the pace that a test wants."""

    version = "1"
    structures = structures(LABELS)

    def __init__(self) -> None:
        self.steps = 1
        self.seen: list[threading.Thread] = []
        self.limit = 10**9
        self.held_bytes: int | None = None
        self.fails: Exception | None = None

    def admit(self, grid: Grid, *, loaded: bool = False, held_bytes: int | None = None) -> Estimate:
        self.held_bytes = held_bytes
        if (needed := 100 * grid.num_voxels) > self.limit:
            raise CapacityError(f"a volume needs {needed} bytes, allowed are {self.limit}")
        return Estimate(needed, 1.5)

    def __call__(self, given: Sequence[Volume], *, progress: Callable[[float], None]) -> list[Segmentation]:
        if self.fails:
            raise self.fails
        for step in range(self.steps):
            time.sleep(0.01)
            progress((step + 1) / self.steps)
        mask = Volume((given[0].array > 0).astype(np.uint8), given[0].grid)
        return [Segmentation(mask, self.steps, 0, 0.0)]


def submitted(work: ScanJobs, *, value: int = 40, key: str | None = None, **options: Any) -> str:
    with work.upload() as folder:
        nifti(np.full((20, 20, 20), value, np.int16), folder / "scan.nii").rename(folder / "scan")
        return work.submit(folder, content=str(value), key=key, **options)


def files(work: ScanJobs) -> list[str]:
    return [path.name for path in (work.jobs.root / "files").iterdir()]


def state(work: ScanJobs, id: str) -> str:
    return work.standing(id).state
