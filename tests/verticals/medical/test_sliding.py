"""Streamed windows give the labels that the whole logits would, and hold no more than was said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from verticals.medical.sliding import Blend, Carry, Windows, carry_bytes


def network(num_classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 5, padding=2), torch.nn.Tanh(), torch.nn.Conv3d(8, num_classes, 3, padding=1)
    )
    return layers.eval()


def scan(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def blended(
    windows: Windows, image: NDArray[np.float32], net: torch.nn.Module, num_classes: int, carry: Carry
) -> Blend:
    blend = Blend(windows, num_classes=num_classes, carry=carry)
    with torch.inference_mode():
        for tile in windows.tiles:
            blend.add(net(torch.from_numpy(np.ascontiguousarray(image[tile]))[None, None])[0].numpy())
    return blend


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [((40, 33, 29), (16, 16, 8), 0.3), ((20, 16, 50), (16, 16, 16), 0.5), ((16, 16, 16), (16, 16, 16), 0.25)],
)
def test_labels_are_monais(shape: tuple[int, ...], window: tuple[int, ...], overlap: float) -> None:
    net, image = network(7), scan(shape)
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(image)[None, None], window, 1, net, overlap=overlap, mode="gaussian"
        )
    theirs = logits.argmax(1)[0].numpy()  # type: ignore[union-attr]
    ours = blended(Windows(shape, window, overlap), image, net, 7, "float32").labels
    assert len(np.unique(theirs)) == 7
    assert (ours == theirs).mean() > 0.9999
    half = blended(Windows(shape, window, overlap), image, net, 7, "float16").labels
    assert (half == theirs).mean() > 0.995


@given(
    shape=st.tuples(*[st.integers(4, 24)] * 3), window=st.tuples(*[st.integers(4, 9)] * 3), overlap=st.floats(0, 0.7)
)
@settings(max_examples=15, deadline=None)
def test_all_windows_agree_on_what_they_all_say(
    shape: tuple[int, ...], window: tuple[int, ...], overlap: float
) -> None:
    shape = tuple(max(a, b) for a, b in zip(shape, window, strict=True))
    truth = np.random.default_rng(0).integers(0, 5, shape)
    windows = Windows(shape, window, overlap)
    assert len(windows.tiles) == len({tuple(part.start for part in tile) for tile in windows.tiles})
    blend = Blend(windows, num_classes=5)
    held, most = 0, 0
    for tile in windows.tiles:
        blend.add(np.eye(5, dtype=np.float32)[truth[tile]].transpose(3, 0, 1, 2).copy())
        held = sum(cell.numel() for cell in blend._held.values())
        most = max(most, held)
    assert (blend.labels == truth).all()
    assert held == 0
    assert most <= windows.most_held * 5


def test_the_whole_is_never_held() -> None:
    """105 classes on a chest CT: the logits would take 33 GB."""
    windows = Windows((512, 512, 300), (128, 128, 64), 0.3)
    assert len(windows.tiles) == 6 * 6 * 7
    assert carry_bytes(windows, num_classes=105, carry="float32") < 2.8e9
    assert carry_bytes(windows, num_classes=105, carry="float16") < 1.4e9


def test_windows_left_out_are_background_where_no_other_says_anything() -> None:
    windows = Windows((8, 8, 24), (8, 8, 8), 0.0)
    blend = Blend(windows, num_classes=3)
    logits = np.zeros((3, 8, 8, 8), np.float32)
    logits[2] = 1
    for tile in windows.tiles:
        blend.add(None if tile[2].start == 8 else logits)
    assert (blend.labels[:, :, 8:16] == 0).all()
    assert (blend.labels[:, :, :8] == 2).all()
    assert (blend.labels[:, :, 16:] == 2).all()


def test_more_than_256_classes_have_labels_of_two_bytes() -> None:
    logits = np.zeros((300, 2, 2, 2), np.float32)
    logits[299] = 1
    blend = Blend(Windows((2, 2, 2), (2, 2, 2), 0.0), num_classes=300)
    blend.add(logits)
    assert blend.labels.dtype == np.uint16
    assert (blend.labels == 299).all()
