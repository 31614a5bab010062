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


def test_a_step_lies_where_the_classes_part() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(20_000, 2, generator=generator) * 300
    rare = values[:, 0] > 220
    coarse, fine = PiecewiseLinear(2, 4), PiecewiseLinear(2, 4, num_steps=3)
    coarse.fit(values, rare)
    fine.fit(values, rare)

    def rise(encoding: PiecewiseLinear, low: float, high: float) -> float:
        """How much of the steepest ramp lies between two values."""
        ramps = [encoding(torch.tensor([[at, 0.0]]), torch.tensor([0]))[0, 0, 1:] for at in (low, high)]
        return float((ramps[1] - ramps[0]).max())

    assert rise(fine, 218, 222) > 0.99
    assert rise(coarse, 218, 222) < 0.5
    lows, highs = fine.lows[0], fine.lows[0] + 1 / fine.slopes[0]
    used = fine.slopes[0] > 0
    assert (lows[used][1:] >= highs[used][:-1] - 1e-3).all(), "ramps overlap"
    assert values[:, 0].min() == lows[0]


def test_a_tree_that_finds_nothing_adds_no_step() -> None:
    values = torch.arange(2000).float()[:, None] % 7
    rare = torch.arange(2000) % 100 == 0
    with_steps, without = PiecewiseLinear(1, 3, num_steps=5), PiecewiseLinear(1, 3)
    with_steps.fit(torch.ones(2000, 1), rare)
    assert (with_steps.slopes == 0).all()
    without.fit(values, rare)
    assert (without.slopes > 0).any()
