"""Fusion: one vector of a picture and a text together. Either may be missing: a learned vector stands in for it.

Legend: B example, P place, L word, C channel, F fused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verticals.multimodal.retrieval.encoders import pool


class ConcatFusion(nn.Module):
    """Both vectors side by side, and one linear layer: the seeds' `nn.Linear(2048 + 768, 1024)`."""

    def __init__(self, num_picture: int, num_text: int, num_fused: int) -> None:
        super().__init__()
        self.no_picture, self.no_text = nn.Parameter(torch.zeros(num_picture)), nn.Parameter(torch.zeros(num_text))
        self.linear = nn.Linear(num_picture + num_text, num_fused)

    def forward(self, picture: Tensor | None, text: Tensor | None) -> Tensor:
        """
        Args:
            picture: [B, C] or None.
            text: [B, C] or None.

        Returns:
            [B, F]

        Raises:
            ValueError: both are missing.
        """
        given = _given(picture, text)
        picture = self.no_picture.expand(len(given), -1) if picture is None else picture
        text = self.no_text.expand(len(given), -1) if text is None else text
        fused: Tensor = self.linear(torch.cat([picture, text], dim=-1))
        return fused


class CrossAttentionFusion(nn.Module):
    """Words look at places; what they find there, and what they are, is pooled."""

    def __init__(
        self,
        num_picture: int,
        num_text: int,
        num_fused: int,
        *,
        num_heads: int = 4,
        num_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            num_picture: channels of a place.
            num_text: channels of a word.
            num_fused: channels of the result, a multiple of `num_heads`.
        """
        super().__init__()
        self.no_picture, self.no_text = nn.Parameter(torch.zeros(num_picture)), nn.Parameter(torch.zeros(num_text))
        self.of_places = nn.Sequential(nn.LayerNorm(num_picture), nn.Linear(num_picture, num_fused))
        self.of_words = nn.Sequential(nn.LayerNorm(num_text), nn.Linear(num_text, num_fused))
        self.layers = nn.ModuleList(_Look(num_fused, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(num_fused)

    def forward(self, places: Tensor | None, words: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            places: [B, P, C] or None.
            words: [B, L, C] or None.
            mask: [B, L] bool, where there is a word; all are where it is None.

        Returns:
            [B, F]

        Raises:
            ValueError: both are missing.
        """
        given = _given(places, words)
        if places is None:
            places = self.no_picture.expand(len(given), 1, -1)
        if words is None:
            words, mask = self.no_text.expand(len(given), 1, -1), None
        seen, read = self.of_places(places), self.of_words(words)
        for layer in self.layers:
            read = layer(read, seen)
        mask = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device) if mask is None else mask
        return pool(self.norm(read), mask, "mean")


class _Look(nn.Module):
    """A layer of cross attention and a small network, each added to what comes in."""

    def __init__(self, num_channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(num_channels, num_heads, dropout=dropout, batch_first=True)
        self.network = nn.Sequential(
            nn.LayerNorm(num_channels),
            nn.Linear(num_channels, 2 * num_channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * num_channels, num_channels),
        )
        self.norm = nn.LayerNorm(num_channels)

    def forward(self, read: Tensor, seen: Tensor) -> Tensor:
        """Words [B, L, F] and places [B, P, F] -> [B, L, F]."""
        found, _ = self.attention(self.norm(read), seen, seen, need_weights=False)
        read = read + found
        looked: Tensor = read + self.network(read)
        return looked


def _given(picture: Tensor | None, text: Tensor | None) -> Tensor:
    """One that is there. Raises ValueError where none is."""
    given = picture if picture is not None else text
    if given is None:
        raise ValueError("neither a picture nor a text is given; one of them may be missing, not both")
    return given
