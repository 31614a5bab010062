"""The settings of retrieval, and its recipes: complete configurations by name."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from core.config import Config
from core.training.loop import FitConfig
from verticals.multimodal.retrieval.encoders import Pooling
from verticals.multimodal.retrieval.heads import HeadConfig
from verticals.multimodal.retrieval.synthetic import SyntheticConfig
from verticals.multimodal.retrieval.task import LossConfig
from verticals.multimodal.retrieval.weights import HUB, Preprocessing


class DataConfig(Config):
    """Which pictures and captions, and how they are split."""

    sources: tuple[str, ...] = Field((), max_length=1)
    """A table, a folder or a tar of captioned pictures; none means synthetic ones."""
    split_seed: int = 0
    """Of the split, where the data set lists none."""
    most_pixels: int = Field(100_000_000, ge=1)
    """Of a picture; larger ones are refused."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """What is made up where there is no source."""


class VisionConfig(Config):
    """The encoder of pictures."""

    name: str = "resnet50"
    """A network of timm or torchvision."""
    weights: str = HUB
    """`hub`, `none`, or a local path."""
    preprocessing: Preprocessing | None = None
    """How pictures are prepared, where the weights do not say it."""
    classes: str = ""
    """Names of the network's own classes: `imagenet`, or a text file with a name a line; empty leaves its classes out."""
    frozen: bool = True
    """Whether it stays as it is: then its features are made once."""


class TextConfig(Config):
    """The encoder of texts."""

    name: str = "bert-base"
    """A network of transformers."""
    weights: str = HUB
    """`hub`, `none`, or a local folder."""
    architecture: dict[str, Any] = {}
    """With `none`: settings of the network that differ from its kind's defaults."""
    pooling: Pooling | None = None
    """How words become a text, where the weights do not say it."""
    most_tokens: int = Field(64, ge=4)
    """That are read of a text."""
    vocabulary: int = Field(2000, ge=16)
    """With `none`: words of the tokenizer that is trained on the captions."""
    frozen: bool = True
    """Whether it stays as it is."""


class ModelConfig(Config):
    """The network."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    heads: HeadConfig = HeadConfig()


class SamplerConfig(Config):
    """How pairs are drawn for training."""

    batch_size: int = Field(128, ge=2)
    """Pictures a step."""
    captions: int = Field(2, ge=1)
    """Of each picture, a step; as many as it has where those are fewer."""
    hard: float = Field(0.0, ge=0, le=1)
    """Share of look-alikes in a batch in the last epoch; it rises from none."""
    views: int = Field(1, ge=1)
    """Random views of each picture, where the vision encoder is frozen; else each is drawn anew."""
    least_area: float = Field(1.0, gt=0, le=1)
    """Part of a picture that a view shows at least."""
    mirror: bool = False
    """Whether every other view is mirrored: not where captions tell left from right."""
    cache: str = ""
    """Folder where features of frozen encoders are kept; empty makes them at every start."""
    num_workers: int = Field(0, ge=0)
    """Threads that make batches ahead."""
    seed: int = 0
    """Of what is drawn."""


class RetrievalConfig(Config):
    """Everything that decides a retrieval model."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    fit: FitConfig = FitConfig()
