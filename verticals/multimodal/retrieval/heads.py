"""What is learned above the encoders: the common space of pictures and texts.

The space is the text encoder's own to begin with: a text stays where it is, and is moved by what is learned. A picture begins where
the words for its encoder's classes are. So little has to be learned from few captions.

Legend: B picture, M text, K class, C channel, D numbers of an embedding.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Config
from verticals.multimodal.retrieval.encoders import VisionFeatures

SOFTNESS = 2.0
"""Classes' logits are divided by it before they are chances: a picture shows more than the likeliest."""
PRIOR = 8.0
"""Length of the words' part of a picture's embedding at the start, where the learned part has about 10."""


CROWD, CROWD_SCALE = 512, 10.0
"""Embeddings that another is compared with to know how alike it is to everything, and what their cosines are multiplied by."""


class HeadConfig(Config):
    """The common space."""

    num: int = Field(1, ge=1, le=8)
    """Heads that are trained side by side; an embedding is what all of them say."""
    width: int = Field(0, ge=0)
    """Numbers of a head's embedding; 0 takes the text encoder's channels, so that its space is the start."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Of a picture's features."""
    text_dropout: float = Field(0.1, ge=0, lt=1)
    """Of a text's."""


class PictureHead(nn.Module):
    """A picture's features to its embedding."""

    def __init__(self, num_pooled: int, num_classes: int, width: int, config: HeadConfig) -> None:
        """
        Args:
            num_classes: whose words are known; 0 where the encoder's classes are no features.
        """
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.LayerNorm(num_pooled)
        if num_classes:
            self.norm_classes = nn.LayerNorm(num_classes)
            self.prior = nn.Parameter(torch.full((config.num,), PRIOR))
            self.class_words = nn.Buffer(torch.zeros(num_classes, width))
            self.class_mean = nn.Buffer(torch.zeros(width))
        self.layers = nn.ModuleList(nn.Linear(num_pooled + num_classes, width) for _ in range(config.num))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: VisionFeatures) -> Tensor:
        """-> [B, heads, D], each of length 1."""
        return F.normalize(self.raw(features), dim=-1)

    def raw(self, features: VisionFeatures) -> Tensor:
        """-> [B, heads, D], of any length."""
        parts = [self.norm(spread(features.pooled))]
        words: Tensor | None = None
        if self.num_classes:
            parts.append(self.norm_classes(spread(features.classes)))
            words = F.normalize(self.words(features.classes), dim=-1)
        whole = torch.cat(parts, 1)
        made = [layer(self.dropout(whole)) for layer in self.layers]
        if words is not None:
            made = [one + weight * words for one, weight in zip(made, self.prior, strict=True)]
        return torch.stack(made, 1)

    def words(self, classes: Tensor) -> Tensor:
        """[B, K] logits -> [B, D] the words for what is seen, by their chances, less those for all pictures."""
        chances = (classes / SOFTNESS).softmax(-1)
        found: Tensor = chances @ self.class_words - self.class_mean
        return found


class TextHead(nn.Module):
    """A text's vector to its embedding."""

    def __init__(self, num_channels: int, width: int, config: HeadConfig) -> None:
        super().__init__()
        layers = [nn.Linear(num_channels, width) for _ in range(config.num)]
        self.is_own_space = width == num_channels
        if self.is_own_space:
            for layer in layers:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.mean = nn.Buffer(torch.zeros(num_channels))
        self.dropout = nn.Dropout(config.text_dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """[M, C] -> [M, heads, D], each of length 1."""
        text = pooled - self.mean
        made = [layer(self.dropout(text)) for layer in self.layers]
        if self.is_own_space:
            made = [text + one for one in made]
        return F.normalize(torch.stack(made, 1), dim=-1)


class Crowd(nn.Module):
    """How alike an embedding is to everything: to embeddings of the other kind that were trained on. What is like all says little.

    Source:
        Smith et al., Offline bilingual word vectors, orthogonal transformations and the inverted softmax, 2017 (arXiv:1702.03859), with
        training examples in place of the queries.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.others = nn.Buffer(torch.zeros(CROWD, width))

    @torch.no_grad()
    def gather(self, rows: Tensor) -> None:
        """Takes those of [N, D] as its own, again and again where they are few."""
        self.others.copy_(rows[torch.arange(CROWD) % len(rows)])

    def forward(self, rows: Tensor) -> Tensor:
        """[B, D] -> [B], 0 before there are others."""
        level: Tensor = (rows @ self.others.T * CROWD_SCALE).logsumexp(1) - math.log(CROWD)
        return level / CROWD_SCALE


def embedding(heads: Tensor) -> Tensor:
    """[B, heads, D] -> [B, heads * D] of length 1: its cosine is the mean of the heads' cosines."""
    whole: Tensor = heads.flatten(1) / math.sqrt(heads.shape[1])
    return whole


def spread(features: Tensor) -> Tensor:
    """Large values closer together: networks of pictures have few that are huge."""
    closer: Tensor = features.sign() * features.abs().log1p()
    return closer
