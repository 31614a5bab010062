"""A picture as a network takes it: fitted into a square, resized with antialiasing. The same for training, figures and answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.data.pictures import Picture
from verticals.multimodal.retrieval.weights import Preprocessing

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class View(NamedTuple):
    """How a picture is changed for training: a part of it, and its mirror image."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Left, top, right and bottom, in parts of the picture."""
    mirrored: bool = False


WHOLE = View()


def prepared(picture: Picture, how: Preprocessing, view: View = WHOLE) -> NDArray[np.uint8]:
    """[Y, X, 3] red, green, blue -> [3, S, S]."""
    image = Image.fromarray(picture)
    width, height = image.size
    left, top, right, bottom = (
        part * side for part, side in zip(view.box, (width, height, width, height), strict=True)
    )
    if how.fit == "crop":
        side = how.share * min(right - left, bottom - top)
        x, y = (left + right - side) / 2, (top + bottom - side) / 2
        left, top, right, bottom = x, y, x + side, y + side
    resized = image.resize((how.size, how.size), RESAMPLING[how.interpolation], box=(left, top, right, bottom))
    array = np.asarray(resized, np.uint8)
    return np.ascontiguousarray((array[:, ::-1] if view.mirrored else array).transpose(2, 0, 1))


def random_view(least_area: float, mirror: bool, random: np.random.Generator) -> View:
    """
    Args:
        least_area: of the picture, that the part has at least.
        mirror: whether every other is mirrored.
    """
    area = random.uniform(least_area, 1.0)
    wide = np.exp(random.uniform(-0.29, 0.29)) if least_area < 1 else 1.0  # sides from 3:4 to 4:3
    width, height = min(1.0, float(np.sqrt(area * wide))), min(1.0, float(np.sqrt(area / wide)))
    left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
    return View((left, top, left + width, top + height), bool(mirror and random.random() < 0.5))
