"""Folded layers: the outputs of encoding and layers, for any ramps, values and numbers of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.nn.encoding import PiecewiseLinear
from core.nn.folded import FoldedLinear, Layer


def layers(encoding: PiecewiseLinear, sides: list[list[int]], width: int = 5) -> list[Layer]:
    return [
        Layer(torch.tensor(side), torch.randn(width, len(side) * encoding.num_outputs), torch.randn(width))
        for side in sides
    ]


def plain(encoding: PiecewiseLinear, given: list[Layer], values: torch.Tensor) -> torch.Tensor:
    double = PiecewiseLinear(values.shape[1], encoding.num_bins, num_steps=encoding.num_steps).double()
    double.load_state_dict(encoding.state_dict())
    return torch.stack(
        [
            double(values.double(), one.features).flatten(1) @ one.weight.double().t() + one.bias.double()
            for one in given
        ],
        1,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 4), st.sampled_from([1e-7, 1.0, 300.0]))
def test_it_equals_the_layers(seed: int, num_bins: int, num_steps: int, scale: float) -> None:
    """Also where ramps overlap, leave gaps, are steeper than float32 resolves, or are missing; and at their ends."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    encoding = PiecewiseLinear(4, num_bins, num_steps=num_steps)
    lows = (torch.randn(4, encoding.num_ramps, generator=generator) * scale).round(decimals=seed % 3 + 1)
    widths = torch.rand(4, encoding.num_ramps, generator=generator) * scale
    encoding.lows.copy_(lows)
    encoding.slopes.copy_(torch.where(widths < 0.3 * scale, 0.0, 1 / widths.clamp(min=1e-6)))
    encoding.slopes[1] = 0
    wanted = layers(encoding, [[0, 1, 3], [2, 1]])
    near = torch.cat([lows.t(), (lows + widths).t(), torch.randn(20, 4) * 3 * scale, torch.full((1, 4), 1e4)])
    values = torch.cat([near, torch.nextafter(near, torch.tensor(1e9)), -near])
    folded = FoldedLinear(encoding, wanted)
    expected = plain(encoding, wanted, values)
    torch.testing.assert_close(folded(values).double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(folded.traced(values), 1).double(), expected, atol=2e-5, rtol=1e-5)
    alone = torch.cat([folded(row[None]) for row in values[::5]])
    torch.testing.assert_close(alone.double(), expected[::5], atol=2e-5, rtol=1e-5)
    one = np.stack([folded.one(row.numpy()) for row in values[::5]])
    np.testing.assert_allclose(one, expected[::5], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [0, 3])
def test_it_equals_the_layers_of_a_fitted_encoding(num_steps: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(1000, 6)
    values[:, 0], values[:, 1], values[:, 2] = 1.0, (values[:, 1] > 0).float(), values[:, 2].exp() * 100
    values[:, 3] = 5 + values[:, 3].round() * 5e-7
    encoding = PiecewiseLinear(6, 8, num_steps=num_steps)
    encoding.fit(values, torch.arange(1000) < 90)
    wanted = layers(encoding, [[0, 1, 2, 3, 4, 5], [5, 3]], 16)
    folded = FoldedLinear(encoding, wanted)
    torch.testing.assert_close(folded(values).double(), plain(encoding, wanted, values), atol=2e-5, rtol=1e-5)
    traced = torch.cat(folded.traced(values), 1)
    torch.testing.assert_close(traced.double(), plain(encoding, wanted, values), atol=2e-5, rtol=1e-5)
    assert folded.outputs.shape[0] <= 8 * (encoding.num_ramps + 6), (
        "a ramp's end and the next one's beginning are one bend"
    )


def test_an_encoding_without_ramps_is_a_clamp() -> None:
    encoding = PiecewiseLinear(2, 1)
    wanted = layers(encoding, [[1, 0]])
    values = torch.tensor([[-9.0, 2.0], [0.0, 0.0], [6.0, 7.0]])
    torch.testing.assert_close(
        FoldedLinear(encoding, wanted)(values).double(), plain(encoding, wanted, values), atol=2e-5, rtol=1e-5
    )
