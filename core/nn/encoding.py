"""Numbers as ramps: what lets a network learn the sharp thresholds that trees find.

Legend: F feature, M ramp, N row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

STEP_ROWS = 20
"""Training rows on either side of a step, at least."""

STEP_WIDTH = 0.02
"""Width of a step in standard deviations of its feature, at least."""


class PiecewiseLinear(nn.Module):
    """Each feature becomes its own value and M ramps that rise from 0 to 1 between neighbouring bin edges.

    Edges are quantiles of all rows and of the rare ones, so that there are bins where rare rows are, and two close beside
    each threshold of a small decision tree of that feature alone: a ramp that is nearly a step, where the classes part.
    They are buffers: fitted once on training rows, shipped with the weights.

    Source:
        Gorishniy, Rubachev and Babenko, On Embeddings for Numerical Features in Tabular Deep Learning, 2022
        (arXiv:2203.05556): bins by quantiles and by trees. Deviation: both together, quantiles also of the rare class,
        and a step at a tree's threshold in place of a knot.
    """

    lows: Tensor
    slopes: Tensor

    def __init__(self, num_features: int, num_bins: int, *, num_steps: int = 0, limit: float = 6.0) -> None:
        """
        Args:
            num_features: F.
            num_bins: quantile bins, of all rows and again of the rare ones, at least 1.
            num_steps: thresholds of the tree, at most; 0 leaves the tree out.
            limit: bound of the value itself, on both sides.
        """
        super().__init__()
        if num_bins < 1 or num_steps < 0:
            raise ValueError(f"num_bins is {num_bins} and num_steps {num_steps}; allowed are 1 or more and 0 or more")
        self.num_bins, self.num_steps, self.limit = num_bins, num_steps, limit
        self.num_ramps = 2 * (num_bins + num_steps) + 1
        self.num_outputs = 1 + self.num_ramps
        """Width of one feature's encoding."""
        self.register_buffer("lows", torch.zeros(num_features, self.num_ramps))
        self.register_buffer("slopes", torch.zeros(num_features, self.num_ramps))

    @torch.no_grad()
    def fit(self, values: Tensor, rare: Tensor) -> None:
        """Places the edges; a feature with fewer distinct ones has fewer ramps.

        Args:
            values: [N, F] training rows.
            rare: [N] bool, at least one of them.
        """
        at = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.float64)
        quantiles = torch.cat([torch.quantile(part.double(), at, dim=0) for part in (values, values[rare])]).float()
        self.lows.zero_()
        self.slopes.zero_()
        for feature, column in enumerate(values.T):
            edges = torch.unique(quantiles[:, feature])
            if self.num_steps:
                edges = _with_steps(edges, _steps(column, rare, self.num_steps))
            width = edges.diff()
            self.lows[feature, : len(width)] = edges[:-1]
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


def _steps(column: Tensor, rare: Tensor, count: int) -> Tensor:
    """[S, 2] between which values the classes part, at most `count` times, in order."""
    from sklearn.tree import DecisionTreeClassifier  # only training needs it: services stay without

    distinct = torch.unique(column)
    if len(distinct) < 2:
        return column.new_zeros(0, 2)
    tree = DecisionTreeClassifier(criterion="log_loss", max_leaf_nodes=count + 1, min_samples_leaf=STEP_ROWS)
    nodes = tree.fit(column[:, None].numpy(), rare.numpy()).tree_
    thresholds = torch.from_numpy(np.sort(nodes.threshold[nodes.feature >= 0])).to(column.dtype)
    above = torch.searchsorted(distinct, thresholds).clamp(1, len(distinct) - 1)
    half = STEP_WIDTH / 2 * column.std()
    low, high = torch.minimum(distinct[above - 1], thresholds - half), torch.maximum(distinct[above], thresholds + half)
    return torch.stack([low, high], dim=1)


def _with_steps(edges: Tensor, steps: Tensor) -> Tensor:
    """The edges with those of the steps; an edge within a step gives way."""
    for step in steps:
        edges = torch.cat([edges[(edges <= step[0]) | (edges >= step[1])], step])
    apart: Tensor = torch.unique(edges)
    return apart
