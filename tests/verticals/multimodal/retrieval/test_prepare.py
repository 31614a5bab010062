"""A picture is fitted as its weights' preprocessing says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from verticals.multimodal.retrieval.prepare import WHOLE, View, prepared, random_view
from verticals.multimodal.retrieval.weights import Preprocessing

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


def test_a_picture_of_the_right_size_is_itself() -> None:
    square = PICTURE[:, :60]
    for fit in ("crop", "squash"):
        assert np.array_equal(prepared(square, Preprocessing(size=60, fit=fit)), square.transpose(2, 0, 1))


def test_crop_is_timms_own() -> None:
    """Resize the shorter side, cut the middle: here in one step, so that nothing is resampled twice."""
    from timm.data.transforms_factory import transforms_imagenet_eval

    smooth = np.asarray(Image.fromarray(PICTURE).resize((180, 120), Image.Resampling.BICUBIC))
    theirs = transforms_imagenet_eval(48, crop_pct=0.8, interpolation="bicubic", normalize=False)(
        Image.fromarray(smooth)
    )
    ours = prepared(smooth, Preprocessing(size=48, share=0.8, interpolation="bicubic"))
    assert ours.shape == tuple(theirs.shape)
    assert np.abs(ours.astype(int) - np.asarray(theirs, int)).mean() < 3


def test_squash_shows_all_of_it() -> None:
    marked = np.zeros((60, 90, 3), np.uint8)
    marked[:, :9], marked[:, -9:] = 255, 255
    squashed = prepared(marked, Preprocessing(size=30, fit="squash"))
    assert squashed[0, 15, 0] > 200
    assert squashed[0, 15, -1] > 200
    assert prepared(marked, Preprocessing(size=30))[0, 15].max() < 50


def test_a_view_is_a_part_and_its_mirror_image() -> None:
    how = Preprocessing(size=32, fit="squash")
    left = prepared(PICTURE, how, View((0.0, 0.0, 0.5, 1.0)))
    half = prepared(PICTURE[:, :45], how)
    assert np.abs(left[:, :, :-3].astype(int) - half[:, :, :-3]).max() <= 1  # its edge sees what lies beyond
    assert np.array_equal(prepared(PICTURE, how, View(mirrored=True)), prepared(PICTURE, how)[:, :, ::-1])


@pytest.mark.parametrize("least", [0.3, 0.7, 1.0])
def test_random_views_show_as_much_as_they_should(least: float) -> None:
    random = np.random.default_rng(1)
    mirrored = 0
    for _ in range(200):
        view = random_view(least, True, random)
        left, top, right, bottom = view.box
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        assert (right - left) * (bottom - top) >= least * 0.75 - 1e-9  # long ones are cut at the edge
        mirrored += view.mirrored
    assert 70 < mirrored < 130
    assert random_view(1.0, False, random) == WHOLE
