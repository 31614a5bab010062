"""An encoding and the layers after it folded into one, for inference: what makes a single row cheap.

Legend: B row, F feature, G chosen feature of all layers, R ramp, P bend, S layer, E output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.nn.encoding import PiecewiseLinear

SAME_BEND = 1e-6
"""A ramp that ends this close to the next one's beginning, in its own widths, ends there: the rest is rounding."""


class Layer(NamedTuple):
    """A linear layer over the encodings of some features."""

    features: Tensor
    """[G] int64, at least one."""
    weight: Tensor
    """[E, G * num_outputs]."""
    bias: Tensor
    """[E]."""


class FoldedLinear:
    """`PiecewiseLinear` and the S linear layers after it: the same outputs, from far fewer weights.

    Such a layer's output is a sum over features of functions that are straight between bends, where ramps begin and
    end. Their values at the bends are kept, and a feature adds a mixture of the two on either side of its own value: it
    reads 2 * E weights, however many ramps it has. What is kept is a copy: for other weights, make another one.
    """

    @torch.no_grad()
    def __init__(self, encoding: PiecewiseLinear, layers: Sequence[Layer]) -> None:
        """
        Args:
            layers: of the same number of outputs.
        """
        every = _bends(encoding)
        outputs = []
        for layer in layers:
            at = _at_bends(encoding, every[layer.features], layer)
            at[0] += layer.bias.double()  # the shares of a mixture add up to one
            outputs.append(at.float().flatten(0, 1))
        self.outputs = torch.cat(outputs)
        """[G * P, E]"""
        self.places = torch.cat([layer.features for layer in layers])
        """[G]"""
        device, bends = self.places.device, every[self.places]
        self.inner = bends[:, 1:-1].contiguous()
        """[G, P - 2] float64"""
        slope = 1 / bends.diff(dim=1)
        slope = slope.where(torch.isfinite(slope), 0.0)  # constant before the first bend and behind the last
        fall = bends[:, :-1].nan_to_num(posinf=0.0, neginf=0.0) * slope
        lines = torch.stack([1 + fall, -fall, -slope, slope], 2)
        self.lines = F.pad(lines, (0, 0, 0, 1)).flatten(0, 1)
        """[G * P, 4] float64: the shares of a bend and of the next one for a value of 0, and how they change with it."""
        starts = torch.arange(len(self.places), dtype=torch.int32, device=device) * bends.shape[1]
        self.starts = starts[:, None]
        """[G, 1] each feature's first bend."""
        self.sides = torch.tensor([0, 1], dtype=torch.int32, device=device)
        self.sizes = [2 * len(layer.features) for layer in layers]
        self.size = sum(self.sizes)
        self.firsts = torch.tensor([0, *self.sizes[:-1]], device=device).cumsum(0).int()
        """[S] where each layer's mixtures begin among `size` of them."""
        self._one: tuple[NDArray[Any], ...] | None = None
        # for `traced`, where a value's share of its stretch is (value - low) * rise in float32, as all bends are float32
        self.knots = self.inner.float().t().contiguous()  # [P - 2, G]
        self.ones = torch.ones(1, len(self.knots), device=device)
        self.rise = slope.clamp(max=1e30).float().t().contiguous()  # [P - 1, G]
        self.low = bends[:, :-1].float().t().where(self.rise > 0, 0.0).contiguous()
        self.begins, self.both = starts.long(), self.sides.long()

    def __call__(self, values: Tensor) -> Tensor:
        """[B, F] float32 -> [B, S, E] float32."""
        batch = values.shape[0]
        chosen = values.index_select(1, self.places).double()
        found = torch.searchsorted(self.inner, chosen.t().contiguous(), right=True, out_int32=True)
        bend = (found + self.starts).t()  # [B, G]
        share, slope = torch.embedding(self.lines, bend).view(batch, -1, 2, 2).unbind(2)
        mixture = torch.addcmul(share, chosen.unsqueeze(2), slope).float()
        rows, bags = bend.unsqueeze(2) + self.sides, self.firsts
        if batch != 1:
            each = torch.arange(0, batch * self.size, self.size, dtype=torch.int32, device=values.device)
            bags = (each[:, None] + bags).view(-1)
        summed = torch.embedding_bag(self.outputs, rows.reshape(-1), bags, per_sample_weights=mixture.reshape(-1))[0]
        return summed.view(batch, len(self.firsts), -1)

    def traced(self, values: Tensor) -> list[Tensor]:
        """[B, F] -> S times [B, 1, E]: `__call__` in operations that ONNX has. Bends are counted, not searched."""
        chosen = values.index_select(1, self.places)
        found = (self.ones @ (chosen.unsqueeze(1) >= self.knots).float()).squeeze(1).long()  # [B, G]
        share = ((chosen - self.low.gather(0, found)) * self.rise.gather(0, found)).unsqueeze(2)
        mixture = torch.cat((1 - share, share), 2).view(-1, 1, self.size)
        rows = ((found + self.begins).unsqueeze(2) + self.both).view(-1, self.size)
        parts = zip(torch.split(mixture, self.sizes, 2), torch.split(rows, self.sizes, 1), strict=True)
        return [shares @ torch.embedding(self.outputs, places) for shares, places in parts]

    def one(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[F] -> [S, E], without a batch's detours: numpy, and torch where it has a kernel that numpy lacks."""
        if self._one is None:
            arrays = (
                tensor.numpy() for tensor in (self.places, self.starts[:, 0], self.lines.view(-1, 2, 2), self.sides)
            )
            self._one = tuple(arrays)
        places, starts, lines, sides = self._one
        chosen = values[places].astype(np.float64)
        found = torch.searchsorted(self.inner, torch.from_numpy(chosen[:, None]), right=True, out_int32=True)
        bend = found.numpy()[:, 0] + starts
        line = lines[bend]
        mixture = (line[:, 0] + chosen[:, None] * line[:, 1]).astype(np.float32)
        rows, shares = torch.from_numpy((bend[:, None] + sides).reshape(-1)), torch.from_numpy(mixture.reshape(-1))
        summed: NDArray[np.float32] = torch.embedding_bag(self.outputs, rows, self.firsts, per_sample_weights=shares)[
            0
        ].numpy()
        return summed


def _bends(encoding: PiecewiseLinear) -> Tensor:
    """[F, P] float64: minus infinity, then where a feature's encoding changes its slope, rising, then infinity.

    A bend between two neighbours of float32 stands as both of them: no value lies between.
    """
    low, slope = encoding.lows.double(), encoding.slopes.double()
    used = slope > 0
    low = low.where(used, math.inf)
    width = (1 / slope).where(used, 0.0)
    end = low + width
    nearest = low.gather(1, (end[:, :, None] - low[:, None]).abs().argmin(2))
    end = nearest.where((nearest - end).abs() <= SAME_BEND * width, end)
    limits = low.new_tensor([-encoding.limit, encoding.limit]).expand(len(low), 2)
    bends = torch.cat([low, end, limits], 1)
    nearest = bends.float()
    below = torch.nextafter(nearest, nearest.new_tensor(-math.inf)).where(nearest > bends, nearest)
    above = torch.nextafter(nearest, nearest.new_tensor(math.inf)).where(nearest < bends, nearest)
    bends = torch.cat([below, above], 1).double().sort(1).values
    again = F.pad(bends.diff(dim=1) == 0, (1, 0))
    bends = bends.masked_fill(again, math.inf).sort(1).values
    finite = bends[:, : int(torch.isfinite(bends).sum(1).max())]
    return F.pad(F.pad(finite, (1, 0), value=-math.inf), (0, 1), value=math.inf)


def _at_bends(encoding: PiecewiseLinear, bends: Tensor, layer: Layer) -> Tensor:
    """[G, P] bends of a layer's features -> [G, P, E] float64, what each feature adds there."""
    at = bends.clamp(bends[:, 1:2], None)
    at = at.where(torch.isfinite(at), 0.0)[:, :, None]  # without a meaning: no value lies behind an infinite bend
    low, slope = (part[layer.features].double()[:, None] for part in (encoding.lows, encoding.slopes))
    encoded = torch.cat([at.clamp(-encoding.limit, encoding.limit), ((at - low) * slope).clamp(0, 1)], 2)
    weight = layer.weight.double().view(-1, *encoded.shape[::2])  # [E, G, 1 + R]
    return encoded @ weight.permute(1, 2, 0)
