"""The settings of retrieval, and its recipes: complete configurations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from core.config import Config
from core.training.loop import FitConfig
from core.training.optim import OptimConfig
from verticals.multimodal.retrieval.heads import HeadConfig
from verticals.multimodal.retrieval.matching import MatchConfig
from verticals.multimodal.retrieval.model import ModelConfig, TextConfig, VisionConfig
from verticals.multimodal.retrieval.synthetic import SyntheticConfig
from verticals.multimodal.retrieval.task import LossConfig
from verticals.multimodal.retrieval.weights import NONE, Preprocessing


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


class SamplerConfig(Config):
    """How pairs are drawn for training."""

    batch_size: int = Field(128, ge=2)
    """Pictures a step."""
    captions: int = Field(2, ge=1)
    """Of each picture, a step; as many as it has where those are fewer."""
    hard: float = Field(0.0, ge=0, le=1)
    """Share of look-alikes in a batch in the last epoch; it rises from none."""
    views: int = Field(1, ge=1)
    """Of each picture, where the vision encoder is frozen: the whole, and random ones. Else each is drawn anew."""
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


def debug() -> RetrievalConfig:
    """A few seconds on one core: small pictures, two small networks that learn from nothing."""
    return RetrievalConfig(
        data=DataConfig(synthetic=SyntheticConfig(num_pictures=160, size=64, two=0.0, captions=2)),
        model=ModelConfig(
            vision=VisionConfig(
                name="test_efficientnet",
                weights=NONE,
                preprocessing=Preprocessing(size=64, fit="squash", mean=(127.5, 127.5, 127.5), deviation=(64, 64, 64)),
                frozen=False,
            ),
            text=TextConfig(
                weights=NONE,
                architecture={**SMALL_TEXT, "hidden_size": 64, "num_hidden_layers": 1},
                vocabulary=120,
                frozen=False,
            ),
            heads=HeadConfig(dropout=0.0, text_dropout=0.0),
            match=MatchConfig(grid=2, num_channels=32, dropout=0.0, text_dropout=0.0),
        ),
        sampler=SamplerConfig(batch_size=16, captions=1),
        fit=FitConfig(epochs=12, optim=OptimConfig(lr=3e-3, warmup=0.1)),
    )


def default() -> RetrievalConfig:
    """Synthetic pictures, where no source is given; both networks learn from nothing in two minutes or three on two cores."""
    return debug().override(
        [
            "data.synthetic.num_pictures=900",
            "data.synthetic.size=96",
            "data.synthetic.two=0.6",
            "data.synthetic.captions=3",
            "model.vision.preprocessing.size=96",
            "model.match.grid=3",
            "sampler.batch_size=32",
            "fit.epochs=25",
        ]
    )


def frozen() -> RetrievalConfig:
    """A user's pictures and captions on a laptop: encoders with the hub's weights stay as they are, heads learn in minutes."""
    return RetrievalConfig(
        model=ModelConfig(
            vision=VisionConfig(name="resnet50", classes="imagenet"),
            text=TextConfig(name="sentence-transformers/all-MiniLM-L6-v2"),
            heads=HeadConfig(num=3),
            match=MatchConfig(grid=4),
        ),
        sampler=SamplerConfig(captions=1, views=4, least_area=0.5),
        fit=FitConfig(epochs=40, optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup=0.1)),
    )


def sound() -> RetrievalConfig:
    """As `default`, and tones with words beside the pictures: a third encoder for the same space."""
    return default().override(["model.audio.name=test_efficientnet", "data.synthetic.num_sounds=240"])


SMALL_TEXT: dict[str, Any] = {
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
"""Of a network that is trained on few captions."""

RECIPES: dict[str, Callable[[], RetrievalConfig]] = {
    "debug": debug,
    "default": default,
    "frozen": frozen,
    "sound": sound,
}
