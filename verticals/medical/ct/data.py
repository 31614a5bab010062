"""The application's data: a data set, the plan that follows from it, and patches for training."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from verticals.medical.ct.augment import PatchAugment
from verticals.medical.ct.cache import CaseCache, PreparedCase
from verticals.medical.ct.config import CtConfig
from verticals.medical.ct.dataset import Case, Dataset
from verticals.medical.ct.loader import Batch, VolumeDataLoader
from verticals.medical.ct.plan import Fingerprint, Plan, make_plan
from verticals.medical.ct.synthetic import write_dataset
from verticals.medical.labels import structures


class CtData:
    """Scans by split, and batches of patches. Nothing is read before it is asked for, except headers."""

    def __init__(self, config: CtConfig, dataset: Dataset | None = None) -> None:
        """
        Args:
            dataset: to judge a model by; where None, the configuration's is opened, to train one.

        Raises:
            DataError: the first fault of the data set's layout, or a label that no answer could hold.
            ConfigError: a code for a label that is not there, or that is none.
            LeakError: a case on two sides of the split.
        """
        self.config = config
        if dataset is not None:
            self.dataset = dataset
            return
        if config.data.sources:
            self.dataset = Dataset.open(config.data.sources[0], fold=config.data.fold, seed=config.data.split_seed)
        else:
            made = tempfile.mkdtemp(prefix="synthetic-")
            weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
            folder = Path(made) / "synthetic"
            write_dataset(config.data.synthetic, folder)
            self.dataset = Dataset.open(folder)
        structures(self.dataset.labels, config.data.codes)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Reads every case once. A plan follows where there are training cases."""
        planned = {"plan": self.plan.model_dump(mode="json")} if self.dataset.sides["train"] else {}
        return self.dataset.fingerprint | planned

    @cached_property
    def plan(self) -> Plan:
        """What the training cases say, where the configuration leaves the choice."""
        given = self.config.plan
        made = make_plan(
            Fingerprint.of(self.dataset.cases("train")),
            patch_voxels=given.patch_voxels,
            spacing_mm=given.spacing_mm,
            patch_size=given.patch_size,
            least_cover=given.least_cover,
            windows_hu=given.windows_hu,
            base_width=given.base_width,
            max_width=given.max_width,
            max_levels=given.max_levels,
        )
        return made.override([f"batch_size={given.batch_size}"]) if given.batch_size else made

    def prepared(self, side: str) -> list[PreparedCase]:
        """The cases of a side as the network meets them, mapped from the cache.

        Raises:
            DataError: no such side, or a damaged scan.
        """
        return self._cache.prepared(self.dataset.cases(side), self.plan)

    @cached_property
    def _cache(self) -> CaseCache:
        return CaseCache(self.config.data.cache or None)

    @cached_property
    def loader(self) -> VolumeDataLoader:
        """Patches of the prepared training cases."""
        sampler = self.config.sampler
        return VolumeDataLoader(
            self.prepared("train"),
            self.plan,
            batch_size=self.plan.batch_size,
            patch_size=self.plan.patch_size,
            overlap_ratio=sampler.overlap_ratio,
            foreground=sampler.foreground,
            num_batches=sampler.num_batches,
            augment=PatchAugment(sampler.augment, self.plan) if sampler.augment else None,
            seed=sampler.seed,
            num_workers=sampler.num_workers,
        )

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        """Raises ConfigError where a batch cannot be shared out evenly."""
        if self.plan.batch_size % world_size:
            raise ConfigError(
                f"a batch of {self.plan.batch_size} patches over {world_size} processes; set plan.batch_size to a multiple"
            )
        return self.config.sampler.num_batches

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Batch]:
        """This rank's batches of an epoch."""
        return self.loader.epoch(epoch, rank=rank, world_size=world_size)

    def samples(self, split: str) -> tuple[Case, ...]:
        """The cases of `train`, `validation` or `test`, to be read one at a time; `all` are those of every side.

        Raises:
            DataError: no such split, or no case in it.
        """
        if split == "all":
            return tuple(case for cases in self.dataset.sides.values() for case in cases)
        return self.dataset.cases(split)
