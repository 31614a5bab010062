"""Piecewise-linear encoding: edges at quantiles of all and of the rare, ramps from 0 to 1, nothing for constants."""

import pytest
import torch

from core.nn.encoding import PiecewiseLinear


def fitted() -> tuple[PiecewiseLinear, torch.Tensor]:
    torch.manual_seed(0)
    values = torch.stack([torch.randn(2000), torch.ones(2000), torch.randint(0, 2, (2000,)).float()], 1)
    rare = torch.zeros(2000, dtype=torch.bool)
    rare[:50] = True
    values[:50, 0] += 5
    encoding = PiecewiseLinear(3, 4)
    encoding.fit(values, rare)
    return encoding, values


def test_ramps_rise_one_after_the_other() -> None:
    encoding, _ = fitted()
    line = torch.linspace(-10, 12, 500)[:, None].expand(-1, 3)
    ramps = encoding(line, torch.tensor([0]))[:, 0, 1:]
    assert ramps.min() == 0
    assert ramps.max() == 1
    assert (ramps.diff(dim=0) >= 0).all()
    rising = (ramps > 0) & (ramps < 1)
    assert (rising.sum(1) <= 1).all()
    assert (ramps[-1][encoding.slopes[0] > 0] == 1).all()


def test_rare_rows_have_edges_of_their_own() -> None:
    encoding, _ = fitted()
    lows = encoding.lows[0][encoding.slopes[0] > 0]
    assert (lows > 4).sum() >= 2


def test_a_constant_has_no_ramps_and_two_values_have_one() -> None:
    encoding, _ = fitted()
    assert (encoding.slopes[1] == 0).all()
    assert (encoding.slopes[2] > 0).sum() == 1


def test_shapes_and_limits() -> None:
    encoding, values = fitted()
    out = encoding(values.view(4, 500, 3) * 100, torch.tensor([2, 0]))
    assert out.shape == (4, 500, 2, encoding.num_outputs)
    assert out.abs().max() <= encoding.limit
    with pytest.raises(ValueError, match="1 or more"):
        PiecewiseLinear(3, 0)
