"""Do a picture and a text belong together? A head that compares words with places, and a chance from what is alike.

Legend: N picture, M text, P place, L word, C channel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Config
from verticals.multimodal.retrieval.encoders import VisionFeatures
from verticals.multimodal.retrieval.heads import PictureHead, spread

SHARPNESS = 20.0
"""Cosines are multiplied by it before they are chances that a student is to share."""
ATTENTION = 10.0
"""Likenesses of words and places are multiplied by it at the start, before they are shares of attention; it is learned."""


class MatchConfig(Config):
    """The head that looks again at what the embeddings found."""

    grid: int = Field(0, ge=0, le=16)
    """Places a side that a picture is divided into; 0 leaves the head out."""
    num_channels: int = Field(256, ge=8)
    """By which a word chooses the places it looks at."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Of a picture's features."""
    text_dropout: float = Field(0.1, ge=0, lt=1)
    """Of a text's."""


class MatchHead(nn.Module):
    """Each word looks at a picture's places, and is compared with what it finds there: a cosine for each, and their weighed mean.

    Places are made of a picture alone, so that an index keeps them. The head has an embedding of the whole picture of its own, that
    each place departs from: with one place it is the dual encoder.

    Source:
        Lee et al., Stacked Cross Attention for Image-Text Matching, 2018 (arXiv:1803.08024), text to image, whose regions are a
        detector's; here they are the squares of a grid, and words are weighed.
    """

    def __init__(self, num_side: int, num_places: int, picture: PictureHead, width: int, config: MatchConfig) -> None:
        """
        Args:
            num_side: places a side of the encoder's own grid.
            num_places: channels of one of its places.
            picture: a head of its own, with one embedding of `width` numbers.
            width: channels of a word.
        """
        super().__init__()
        self.picture = picture
        self.squares = nn.Buffer(_squares(num_side, config.grid), persistent=False)
        self.norm, self.of_places = nn.LayerNorm(num_places), nn.Linear(num_places, width)
        self.norm_key, self.key = nn.LayerNorm(width), nn.Linear(width, config.num_channels)
        self.query, self.weight, self.moved = (
            nn.Linear(width, config.num_channels),
            nn.Linear(width, 1),
            nn.Linear(width, width),
        )
        for layer in (self.weight, self.moved):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.attention = nn.Parameter(torch.tensor(math.log(ATTENTION)))
        self.mean = nn.Buffer(torch.zeros(width))
        self.dropout, self.text_dropout = nn.Dropout(config.dropout), nn.Dropout(config.text_dropout)
        self.num_places = config.grid**2

    def places(self, features: VisionFeatures) -> Tensor:
        """-> [N, P, C]"""
        squares = self.norm(self.squares @ spread(features.places))
        made: Tensor = self.of_places(self.dropout(squares)) + self.picture.raw(features)
        return made

    def forward(self, places: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            places: [N, P, C]
            words: [M, L, C] as their encoder has them.
            mask: [M, L] bool, where there is a word.

        Returns:
            [N, M] from -1 to 1.
        """
        num, num_words = places.shape[0], words.shape[:2]
        words = words - self.mean
        words = (words + self.moved(self.text_dropout(words))).flatten(0, 1)
        weights = self.weight(words).view(num_words).masked_fill(~mask, -math.inf).softmax(1)
        asked = F.normalize(self.query(words), dim=-1) * self.attention.exp()
        shown = F.normalize(self.key(self.norm_key(places)), dim=-1)
        looks = (shown.flatten(0, 1) @ asked.T).view(num, self.num_places, -1).softmax(1)  # [N, P, M * L]
        along = (looks * (places.flatten(0, 1) @ words.T).view(num, self.num_places, -1)).sum(1)
        square = (looks * (places @ places.transpose(1, 2) @ looks)).sum(1)
        cosines = along * square.clamp(min=1e-6).rsqrt() * words.square().sum(-1).clamp(min=1e-6).rsqrt()
        alike: Tensor = (cosines.view(num, *num_words) * weights).sum(-1)
        return alike


def _squares(num_side: int, grid: int) -> Tensor:
    """[P, places] what each place of the encoder adds to each square: the mean of those that it covers."""
    edges = [(square * num_side // grid, -(-(square + 1) * num_side // grid)) for square in range(grid)]
    lines = torch.zeros(grid, num_side)
    for row, (first, last) in enumerate(edges):
        lines[row, first:last] = 1 / (last - first)
    return torch.kron(lines, lines)


def fitted(scores: NDArray[np.float32], own: NDArray[np.bool_]) -> dict[str, float]:
    """`slope` and `middle` of the logistic curve from a score to a chance, own pairs and others weighed alike.

    Args:
        scores: [pairs] of pictures that nothing was trained on.
        own: [pairs]
    """
    from sklearn.linear_model import LogisticRegression

    curve = LogisticRegression(C=1e4, class_weight="balanced").fit(scores.reshape(-1, 1), own)
    slope = float(curve.coef_[0, 0])
    return {"slope": slope, "middle": float(-curve.intercept_[0] / slope) if slope else 0.0}


class SimilarityDistillation(nn.Module):
    """A student's pictures and texts are as like each other, each way, as the teacher's."""

    def forward(self, student: Any, teacher: Any) -> Tensor:
        """Both begin with pictures [N, heads, D] and texts [M, heads, D] -> scalar."""
        ours, theirs = (
            SHARPNESS * torch.einsum("nhd,mhd->nm", *pair[:2]) / pair[0].shape[1] for pair in (student, teacher)
        )
        return _divergence(ours, theirs) + _divergence(ours.T, theirs.T)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
