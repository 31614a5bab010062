"""Numbers as ramps: what lets a network learn the sharp thresholds that trees find.

Legend: F feature, M ramp, N row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PiecewiseLinear(nn.Module):
    """Each feature becomes its own value and M ramps that rise from 0 to 1 between neighbouring bin edges.

    Edges are quantiles of all rows and of the rare ones together, so that there are thresholds where rare rows are. They
    are buffers: fitted once on training rows, shipped with the weights.

    Source:
        Gorishniy, Rubachev and Babenko, On Embeddings for Numerical Features in Tabular Deep Learning, 2022
        (arXiv:2203.05556). Deviation: edges of the rare class beside those of all rows, in place of a tree's.
    """

    lows: Tensor
    slopes: Tensor

    def __init__(self, num_features: int, num_bins: int, *, limit: float = 6.0) -> None:
        """
        Args:
            num_features: F.
            num_bins: quantile bins, of all rows and again of the rare ones, at least 1.
            limit: bound of the value itself, on both sides.
        """
        super().__init__()
        if num_bins < 1:
            raise ValueError(f"num_bins is {num_bins}; allowed is 1 or more")
        self.num_bins, self.limit = num_bins, limit
        self.num_ramps = 2 * num_bins + 1
        self.num_outputs = 1 + self.num_ramps
        """Width of one feature's encoding."""
        self.register_buffer("lows", torch.zeros(num_features, self.num_ramps))
        self.register_buffer("slopes", torch.zeros(num_features, self.num_ramps))

    @torch.no_grad()
    def fit(self, values: Tensor, rare: Tensor) -> None:
        """Places the edges; a feature with fewer distinct quantiles has fewer ramps.

        Args:
            values: [N, F] training rows.
            rare: [N] bool, at least one of them.
        """
        at = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.float64)
        edges = torch.cat([torch.quantile(part.double(), at, dim=0) for part in (values, values[rare])]).float()
        self.lows.zero_()
        self.slopes.zero_()
        for feature, column in enumerate(edges.T):
            own = torch.unique(column)
            width = own.diff()
            self.lows[feature, : len(width)] = own[:-1]
            self.slopes[feature, : len(width)] = 1 / width.clamp(min=1e-6)

    def forward(self, values: Tensor, features: Tensor) -> Tensor:
        """
        Args:
            values: [..., F].
            features: [G] int64, which of them.

        Returns:
            [..., G, num_outputs].
        """
        chosen = values[..., features]
        ramps = ((chosen[..., None] - self.lows[features]) * self.slopes[features]).clamp(0, 1)
        return torch.cat([chosen[..., None].clamp(-self.limit, self.limit), ramps], dim=-1)
