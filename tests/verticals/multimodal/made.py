"""Synthetic pictures that the debug model has not seen, as files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from verticals.multimodal.retrieval.config import debug
from verticals.multimodal.retrieval.synthetic import Scene, captions_of, draw, scenes

CONFIG = debug().data.synthetic


def other_scenes(count: int) -> list[Scene]:
    """Of the debug model's kind, with another seed."""
    return scenes(CONFIG.model_copy(update={"num_pictures": count, "seed": 77}))


def png(scene: Scene, seed: int = 0) -> bytes:
    held = io.BytesIO()
    Image.fromarray(draw(scene, 96, np.random.default_rng(seed))).save(held, "PNG")
    return held.getvalue()


def caption(scene: Scene) -> str:
    return captions_of(scene, 1, np.random.default_rng(0))[0]
