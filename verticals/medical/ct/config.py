"""The settings of CT segmentation, and its recipes: complete configurations by name."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from core.config import Config
from core.training.loop import FitConfig
from core.training.optim import OptimConfig
from verticals.medical.ct.augment import AugmentConfig
from verticals.medical.ct.synthetic import SyntheticConfig
from verticals.medical.ct.task import LossConfig
from verticals.medical.sliding import Carry


class DataConfig(Config):
    """Which scans, and how they are split."""

    sources: tuple[str, ...] = Field((), max_length=1)
    """Folder of a data set in nnU-Net's layout; none means synthetic scans."""
    fold: int = Field(0, ge=0)
    """Which split of nnU-Net's splits_final.json."""
    split_seed: int = 0
    """Of the split by patient, where the data set has none of its own."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """What is made up where there is no source."""
    cache: str = ""
    """Folder for prepared cases, kept for the next training; empty for a temporary one."""
    codes: dict[str, str] = {}
    """SNOMED CT codes of labels, where the names do not tell them: {"GTV": "SCT:108369006:Neoplasm"}."""


class PlanConfig(Config):
    """What the plan may not choose by itself; the rest follows from the training cases."""

    patch_voxels: int = Field(128 * 128 * 64, ge=16**3)
    """The most voxels that a patch may have: memory and time of a step grow with it."""
    spacing_mm: tuple[float, float, float] | None = None
    """Spacing of the network's voxels to the right, front and head; None takes the median's."""
    patch_size: tuple[int, int, int] | None = None
    """Voxels of a patch; None takes what the budget and the median case give."""
    least_cover: float = Field(0.0, ge=0, lt=1)
    """Share of the median case that a patch holds at least: with a small budget voxels are made coarser for it."""
    windows_hu: tuple[tuple[float, float], ...] = ()
    """Windows of Hounsfield units, lowest and highest, that the network sees the scan in beside the whole range."""
    batch_size: int = Field(0, ge=0)
    """Patches a step; 0 leaves it to the plan."""
    base_width: int = Field(16, ge=1)
    """Channels of the finest level; they double with each coarser one."""
    max_width: int = Field(320, ge=1)
    """Channels that no level exceeds."""
    max_levels: int = Field(5, ge=2)
    """Levels, with the finest."""
    deep_supervision: bool = False
    """Whether coarser levels are trained to answer too."""


class SamplerConfig(Config):
    """How patches are drawn for training."""

    num_batches: int = Field(250, ge=1)
    """Steps of an epoch."""
    overlap_ratio: float = Field(0.3, ge=0, lt=1)
    """Share of a tile that the next one covers too."""
    foreground: float = Field(1 / 3, ge=0, le=1)
    """Share of patches drawn around an organ."""
    augment: AugmentConfig | None = AugmentConfig()
    """How patches are turned, scaled, blurred and so on at random; None leaves them as they are."""
    num_workers: int = Field(0, ge=0)
    """Threads that make patches ahead."""
    seed: int = 0
    """Of what is drawn."""


class PredictConfig(Config):
    """How a scan is cut into windows."""

    overlap: float = Field(0.3, ge=0, lt=1)
    """Share of a window that the next one covers too."""
    carry: Carry = "float32"
    """What windows' sums are held in; float16 halves the memory."""
    air_hu: int | None = -500
    """A window without a voxel of this value or more is air and background; None runs every window."""
    one_piece: bool = True
    """Whether only the largest piece is kept of organs that are one piece in the training cases."""


class CtConfig(Config):
    """Everything that decides a segmentation model."""

    data: DataConfig = DataConfig()
    plan: PlanConfig = PlanConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    fit: FitConfig = FitConfig()
    predict: PredictConfig = PredictConfig()


def debug() -> CtConfig:
    """Seconds on one core: ten small bodies, a narrow network."""
    return CtConfig(
        data=DataConfig(synthetic=SyntheticConfig(num_cases=10, shape=(48, 40, 48), spacing_mm=(5.0, 7.0))),
        plan=PlanConfig(patch_size=(32, 32, 32), batch_size=2, base_width=8, max_levels=3),
        sampler=SamplerConfig(num_batches=20, augment=None),
        fit=FitConfig(epochs=7, optim=OptimConfig(lr=1e-2, weight_decay=1e-4, warmup=0.3)),
    )


def default() -> CtConfig:
    """The shipped model; on synthetic bodies, where no source is given, a minute or two on two cores."""
    return CtConfig(
        data=DataConfig(synthetic=SyntheticConfig(num_cases=16, shape=(72, 64, 72), spacing_mm=(4.0, 6.0))),
        plan=PlanConfig(patch_voxels=48 * 48 * 36),
        sampler=SamplerConfig(num_batches=50),
        fit=FitConfig(epochs=3, optim=OptimConfig(lr=5e-3, weight_decay=1e-4, clip_norm=12.0)),
    )


def two_cores() -> CtConfig:
    """Real scans without a GPU: 40 minutes on two cores with bfloat16 (AMX, AVX512-BF16); elsewhere set
    `fit.precision=float32` and have patience.

    Small patches and many steps: at equal time they learn more than large ones, as long as a patch shows an organ and what
    lies around it; fine voxels are made coarser for that. Windows of soft tissue and brain show what differs by little.
    """
    return CtConfig(
        plan=PlanConfig(
            patch_voxels=48**3,
            least_cover=0.03,
            windows_hu=((-160, 240), (-20, 100)),
            batch_size=1,
            base_width=32,
            deep_supervision=True,
        ),
        sampler=SamplerConfig(num_batches=100, foreground=0.85, augment=AugmentConfig(mirror=0.0)),
        fit=FitConfig(
            epochs=42,
            precision="bf16",
            optim=OptimConfig(optimizer="muon", lr=3e-3, weight_decay=1e-2, warmup=0.03, average=0.99, clip_norm=12.0),
        ),
        predict=PredictConfig(overlap=0.5),
    )


def gpu() -> CtConfig:
    """Real scans on a GPU: larger patches, two a step, and nearly five times the steps of `two_cores`."""
    small = two_cores()
    return small.override(
        [
            "plan.patch_voxels=884736",
            "plan.batch_size=2",
            "sampler.foreground=0.5",
            "sampler.num_workers=4",
            "fit.epochs=200",
        ]
    )


RECIPES: dict[str, Callable[[], CtConfig]] = {"debug": debug, "default": default, "two_cores": two_cores, "gpu": gpu}
