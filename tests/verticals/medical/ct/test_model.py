"""The network: shapes at every level, uneven poolings, what training sees and what ships."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.errors import ConfigError
from verticals.medical.ct.model import InstanceNorm, UNet3D

STRIDE = st.sampled_from([(2, 2, 2), (1, 2, 2), (2, 2, 1), (2, 1, 1)])


@settings(max_examples=12, deadline=None)
@given(strides=st.lists(STRIDE, min_size=1, max_size=3), deep=st.booleans(), classes=st.integers(2, 6))
def test_logits_have_the_patch_s_shape_whatever_the_poolings(
    strides: list[tuple[int, int, int]], deep: bool, classes: int
) -> None:
    all_strides = [(1, 1, 1), *strides]
    whole = [prod(stride[axis] for stride in all_strides) for axis in range(3)]
    patch = (2 * whole[0], whole[1], 2 * whole[2])
    widths = [4 * 2**level for level in range(len(all_strides))]
    network = UNet3D(classes, patch_size=patch, widths=widths, strides=all_strides, deep_supervision=deep)
    image = torch.randn(2, 1, *patch)
    with torch.no_grad():
        assert network.eval()(image).shape == (2, classes, *patch)
        answers = network.train()(image)
    levels = answers if isinstance(answers, list) else [answers]
    assert len(levels) == 1 + (max(0, len(strides) - 2) if deep else 0)
    size = list(patch)
    for level, logits in enumerate(levels):
        size = [length // step for length, step in zip(size, all_strides[level], strict=True)]
        assert logits.shape == (2, classes, *size)


def test_deep_supervision_answers_at_all_but_the_two_coarsest_levels() -> None:
    options = {"patch_size": (16, 16, 16), "widths": (4, 8, 8, 8), "strides": ((1, 1, 1), *[(2, 2, 2)] * 3)}
    deep = UNet3D(3, deep_supervision=True, **options)  # type: ignore[arg-type]
    image = torch.randn(1, 1, 16, 16, 16)
    assert [tuple(one.shape[2:]) for one in deep.train()(image)] == [(16, 16, 16), (8, 8, 8)]
    shipped = deep.eval()(image)
    assert isinstance(shipped, torch.Tensor)
    plain = UNet3D(3, **options)  # type: ignore[arg-type]
    plain.load_state_dict({key: value for key, value in deep.state_dict().items() if "coarse_heads" not in key})
    torch.testing.assert_close(plain.eval()(image), shipped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_norm_is_torch_s_own(num_samples: int, order: torch.memory_format, dtype: torch.dtype) -> None:
    ours, theirs = InstanceNorm(4, affine=True), nn.InstanceNorm3d(4, affine=True)
    nn.init.uniform_(ours.weight)
    nn.init.uniform_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(num_samples, 4, 5, 6, 7).add_(3).to(dtype).contiguous(memory_format=order).requires_grad_()
    same = image.detach().float().requires_grad_()
    answer, expected, pull = ours(image), theirs(same), torch.randn(image.shape)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(answer.float(), expected, **near)
    if dtype == torch.bfloat16:
        assert answer.dtype == dtype
        assert answer.is_contiguous(memory_format=order)
    (answer.float() * pull).sum().backward()
    (expected * pull).sum().backward()
    torch.testing.assert_close(image.grad.float(), same.grad, **near)  # type: ignore[union-attr]
    for one, other in ((ours.weight.grad, theirs.weight.grad), (ours.bias.grad, theirs.bias.grad)):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=0.2)  # sums of all voxels


def test_the_norm_of_a_large_window_loses_no_digits_in_float32() -> None:
    image = torch.randn(1, 2, 128, 128, 64).contiguous(memory_format=torch.channels_last_3d)
    exact = nn.functional.instance_norm(image.double()).float()
    torch.testing.assert_close(InstanceNorm(2)(image), exact, rtol=0, atol=2e-6)


def test_specs_promise_what_the_network_does() -> None:
    network = UNet3D(5, patch_size=(16, 8, 4), widths=(4, 8), strides=((1, 1, 1), (2, 2, 1)))
    (given_spec,), (answer,) = network.inputs, network.outputs
    assert given_spec.shape == ("window", 1, 16, 8, 4)
    assert answer.shape == ("window", 5, 16, 8, 4)
    with torch.no_grad():
        answer.check(network.eval()(torch.zeros(3, 1, 16, 8, 4)).numpy())


def test_the_image_is_seen_in_windows_beside_itself() -> None:
    shape: dict[str, Any] = {"patch_size": (8, 8, 8), "widths": (4, 8), "strides": ((1, 1, 1), (2, 2, 2))}
    network = UNet3D(3, windows=((-0.5, 0.5), (0.0, 0.1)), **shape).eval()
    seen: list[Tensor] = []
    network.down[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    image = torch.tensor([-3.0, -0.5, -0.25, 0.0, 0.05, 0.1, 0.5, 3.0]).expand(1, 1, 8, 8, 8)
    with torch.no_grad():
        network(image)
    expected = [
        [-3.0, -0.5, -0.25, 0.0, 0.05, 0.1, 0.5, 3.0],
        [-2.0, -2.0, -1.0, 0.0, 0.2, 0.4, 2.0, 2.0],
        [-2.0, -2.0, -2.0, -2.0, 0.0, 2.0, 2.0, 2.0],
    ]
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_each_window_is_answered_by_itself() -> None:
    network = UNet3D(3, patch_size=(8, 8, 8), widths=(4, 8), strides=((1, 1, 1), (2, 2, 2))).eval()
    image = torch.randn(3, 1, 8, 8, 8)
    with torch.no_grad():
        together = network(image)
        alone = torch.cat([network(one[None]) for one in image])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": (4, 8), "strides": ((1, 1, 1),)}, "2 widths and 1 strides"),
        ({"widths": (4,), "strides": ((1, 1, 1),)}, "two at least"),
        ({"widths": (4, 8), "strides": ((2, 2, 2), (2, 2, 2))}, "the first stride is"),
        ({"widths": (4, 8), "strides": ((1, 1, 1), (2, 2, 3))}, r"\(16, 16, 16\) has to be a multiple of \(2, 2, 3\)"),
    ],
)
def test_plans_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        UNet3D(3, patch_size=(16, 16, 16), **options)  # type: ignore[arg-type]
