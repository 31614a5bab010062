"""The settings of PCB inspection, and its recipes: complete configurations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from core.config import Config
from core.training.loop import FitConfig
from core.training.optim import OptimConfig
from verticals.manufacturing.golden import GateConfig
from verticals.manufacturing.pcb.augment import AugmentConfig
from verticals.manufacturing.pcb.synthetic import SyntheticConfig
from verticals.manufacturing.pcb.task import LossConfig
from verticals.manufacturing.verdict import Rule


class DataConfig(Config):
    """Which boards, and how they are split."""

    sources: tuple[str, ...] = Field((), max_length=1)
    """Folder of a data set: COCO, YOLO, Pascal VOC or DeepPCB; none means synthetic boards."""
    split: Literal["board", "published"] = "board"
    """`board` refuses lists that have one board on several sides; `published` takes them, and every table says so."""
    split_seed: int = 0
    """Of the split by board, where the data set lists none."""
    num_channels: Literal[1, 3] = 1
    """1 sees boards in grey, 3 in colour."""
    template: bool = True
    """Whether the network sees the golden board beside the board."""
    white: int = Field(65535, ge=256, le=65535)
    """Value of 16-bit pictures that is white: 4095 for a camera of 12 bits."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """What is made up where there is no source."""


class ModelConfig(Config):
    """The network."""

    width: float = Field(0.25, gt=0)
    """Channels, in parts of YOLOv5's large: nano has .25, small .5."""
    depth: float = Field(0.33, gt=0)
    """Bottlenecks, in parts of the large."""
    num_distances: int = Field(16, ge=2)
    """A box reaches up to one less than that many strides to each side."""
    backbone: str = ""
    """A network of timm by name in place of the CSP backbone."""
    pretrained: bool = False
    """Whether timm fetches that network's weights."""


class SamplerConfig(Config):
    """How tiles are drawn for training."""

    tile: int = Field(640, ge=64, multiple_of=32)
    """Pixels of a side; smaller ones are faster steps, as long as a tile shows a defect and what lies around it."""
    batch_size: int = Field(8, ge=1)
    """Tiles a step."""
    num_batches: int = Field(100, ge=1)
    """Steps of an epoch."""
    foreground: float = Field(0.75, ge=0, le=1)
    """Share of tiles drawn around a defect."""
    tiles_per_board: int = Field(1, ge=1)
    """Tiles in a row from one board; more where boards are large and slow to decode."""
    cache_gb: float = Field(1.0, ge=0)
    """Decoded boards that are kept."""
    least_visible: float = Field(0.25, gt=0, le=1)
    """Share of a box's area from which on what a tile's border left of it is to be found."""
    augment: AugmentConfig | None = AugmentConfig()
    """How tiles are changed at random; None leaves them as they are."""
    num_workers: int = Field(0, ge=0)
    """Threads that make batches ahead."""
    seed: int = 0
    """Of what is drawn."""


class PredictConfig(Config):
    """How a board is cut into tiles, and what is found in them put together."""

    tile: int = Field(640, ge=64, multiple_of=32)
    """Pixels of a side."""
    overlap: float = Field(0.2, ge=0, lt=1)
    """Share of a tile that the next one covers too: more than the largest defect."""
    batch: int = Field(1, ge=1)
    """Tiles of one call."""
    least_score: float = Field(0.05, ge=0, le=1)
    """Boxes below are no findings at all."""
    most_overlap: float = Field(0.6, ge=0, le=1)
    """Of two boxes of a class in one tile, above which the lesser is a double."""
    mm_per_pixel: float | None = Field(None, gt=0, le=100)
    """Scale of the pictures, for answers in mm; None gives pixels only."""
    golden: str = ""
    """The golden board of every picture that `verticals predict` is given; empty looks for each one's own in `templates`."""
    most_findings: int = Field(1000, ge=1)
    """Of a board, the best first."""
    gate: GateConfig | None = None
    """What tiles are skipped by, that equal the golden board; None runs every tile."""
    search: int = Field(32, ge=0)
    """Pixels that a board may be shifted by from its golden one, in each direction."""


class RulesConfig(Config):
    """What becomes of findings."""

    escape: float = Field(0.02, gt=0, lt=1)
    """Share of the validation boards' defects that may be missed: each class's threshold is the highest that keeps it."""
    classes: dict[str, Rule] = {}
    """Rules by class, where they are others than: one finding at the threshold fails the board."""


class PcbConfig(Config):
    """Everything that decides an inspection model."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    fit: FitConfig = FitConfig()
    predict: PredictConfig = PredictConfig()
    rules: RulesConfig = RulesConfig()


def debug() -> PcbConfig:
    """Half a minute on one core: two dozen small boards, half of the nano network."""
    return PcbConfig(
        data=DataConfig(synthetic=SyntheticConfig(num_boards=24, shape=(256, 256), pitch=(28, 36))),
        model=ModelConfig(width=0.125, num_distances=8),
        sampler=SamplerConfig(tile=128, batch_size=8, num_batches=60),
        fit=FitConfig(epochs=4, optim=OptimConfig(lr=4e-3, warmup=0.1, clip_norm=10.0)),
        predict=PredictConfig(tile=256),
    )


def default() -> PcbConfig:
    """The shipped model, nano; on synthetic boards, where no source is given, two minutes or three on two cores."""
    return PcbConfig(
        data=DataConfig(synthetic=SyntheticConfig(num_boards=60, pitch=(28, 40))),
        sampler=SamplerConfig(tile=192, batch_size=8, num_batches=150),
        fit=FitConfig(epochs=4, optim=OptimConfig(lr=4e-3, warmup=0.1, clip_norm=10.0)),
    )


def two_cores() -> PcbConfig:
    """Real boards without a GPU."""
    return PcbConfig(
        sampler=SamplerConfig(tile=320, batch_size=8, num_batches=200),
        fit=FitConfig(
            epochs=10,
            precision="bf16",
            optim=OptimConfig(optimizer="muon", lr=4e-3, weight_decay=1e-2, warmup=0.03, average=0.998, clip_norm=10.0),
        ),
    )


def small() -> PcbConfig:
    """The small network with the settings of `two_cores`: the teacher, and what smaller ones are compared with."""
    return two_cores().override(["model.width=0.5"])


def gpu() -> PcbConfig:
    """Real boards on a GPU: the small network, whole tiles, and ten times the pictures."""
    return two_cores().override(
        ["model.width=0.5", "sampler.tile=640", "sampler.batch_size=32", "sampler.num_workers=8", "fit.epochs=50"]
    )


RECIPES: dict[str, Callable[[], PcbConfig]] = {
    "debug": debug,
    "default": default,
    "two_cores": two_cores,
    "small": small,
    "gpu": gpu,
}
