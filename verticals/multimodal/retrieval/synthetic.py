"""Coloured shapes on textures, with captions of colour, shape, count and place: small data whose answers are known. Tones beside them.

A scene is one group of equal shapes, or two at different places. No two pictures of a data set show the same scene, so that a
caption that says all of it has one answer.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field
from scipy.io import wavfile

from core.config import Config
from core.errors import ConfigError, DataError
from verticals.multimodal.retrieval.audio import RATE
from verticals.multimodal.retrieval.synthetic_sounds import play, sound_captions, tunes

Picture = NDArray[np.uint8]

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 140, 60),
    "blue": (38, 84, 200),
    "yellow": (240, 205, 40),
    "purple": (128, 50, 160),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COUNTS = {1: "a", 2: "two", 3: "three", 4: "four"}
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
"""Quarters of the picture: across and down."""
TEXTURES = ("plain", "stripes", "checks", "noise")
SMOOTH = 3
"""Pixels are drawn so many times finer, and made smaller."""


class SyntheticConfig(Config):
    """What is made up."""

    num_pictures: int = Field(600, ge=8, le=20_000)
    """Pictures, each of another scene."""
    size: int = Field(96, ge=32, le=512)
    """Pixels of a side."""
    captions: int = Field(3, ge=1, le=5)
    """Captions a picture, in other words each."""
    num_sounds: int = Field(0, ge=0, le=288)
    """Sounds, each of another tune."""
    two: float = Field(0.7, ge=0, le=1)
    """Share of scenes with two groups."""
    seed: int = 0
    """Of all that is drawn."""


class Group(NamedTuple):
    """Equal shapes at one place."""

    colour: str
    shape: str
    num: int
    place: str

    @property
    def words(self) -> str:
        """`two red circles`"""
        article = "an" if self.num == 1 and self.colour == "orange" else COUNTS[self.num]
        return f"{article} {self.colour} {self.plural}"

    @property
    def plural(self) -> str:
        if self.num == 1:
            return self.shape
        return f"{self.shape}es" if self.shape == "cross" else f"{self.shape}s"


Scene = tuple[Group, ...]


def scenes(config: SyntheticConfig) -> list[Scene]:
    """All different. Raises ConfigError where there are not so many."""
    random = np.random.default_rng(config.seed)
    found: dict[frozenset[Group], Scene] = {}
    for _ in range(50 * config.num_pictures):
        num = 2 if random.random() < config.two else 1
        places = random.permutation(list(PLACES))[:num]
        scene = tuple(_group(str(place), random) for place in places)
        if len({(group.colour, group.shape) for group in scene}) == num:
            found.setdefault(frozenset(scene), scene)
        if len(found) == config.num_pictures:
            return list(found.values())
    raise ConfigError(
        f"there are not {config.num_pictures} different scenes; lower data.synthetic.num_pictures, or raise two"
    )


def _group(place: str, random: np.random.Generator) -> Group:
    colour, shape = str(random.choice(list(COLOURS))), str(random.choice(SHAPES))
    return Group(colour, shape, int(random.integers(1, len(COUNTS) + 1)), place)


def captions_of(scene: Scene, count: int, random: np.random.Generator) -> list[str]:
    """All true, each in other words."""
    parts = [f"{group.words} at the {group.place}" for group in scene]
    turned = parts[::-1]
    texts = [
        f"{' and '.join(parts)}",
        f"there {'is' if scene[-1].num == 1 else 'are'} {' and '.join(turned)}",
        f"a picture of {' with '.join(parts)}",
        f"at the {scene[0].place} {scene[0].words}"
        + (f", at the {scene[1].place} {scene[1].words}" if len(scene) > 1 else ""),
        f"{' next to '.join(turned)}" + ("" if len(scene) > 1 else " and nothing else"),
    ]
    return [texts[place] for place in random.permutation(len(texts))[:count]]


def draw(scene: Scene, size: int, random: np.random.Generator) -> Picture:
    """[size, size, 3]"""
    fine = size * SMOOTH
    image = Image.fromarray(_texture(fine, scene, random))
    pen = ImageDraw.Draw(image)
    for group in scene:
        across, down = PLACES[group.place]
        for x, y, radius in _spots(group.num, fine / 2, random):
            _shape(pen, group.shape, (across * fine / 2 + x, down * fine / 2 + y), radius, COLOURS[group.colour])
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), np.uint8)


def write_dataset(config: SyntheticConfig, path: Path) -> dict[str, Any]:
    """Writes a folder in Flickr8k's layout, and says what is in it; sounds lie beside pictures, in `files`.

    Raises:
        DataError: the folder exists.
    """
    if path.exists():
        raise DataError(f"{path} exists; name a new folder")
    made, heard = scenes(config), tunes(config.num_sounds, config.seed)
    folder = path / ("files" if heard else "images")
    folder.mkdir(parents=True)
    random = np.random.default_rng([config.seed, 1])
    names = [f"{place:05d}.png" for place in range(len(made))]
    sounds = [f"{place:05d}.wav" for place in range(len(heard))]
    with (path / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "caption"))
        for name, scene in zip(names, made, strict=True):
            Image.fromarray(draw(scene, config.size, random)).save(folder / name)
            rows.writerows((name, caption) for caption in captions_of(scene, config.captions, random))
        for name, tune in zip(sounds, heard, strict=True):
            wavfile.write(folder / name, RATE, np.round(play(tune, random) * 32767).astype(np.int16))
            rows.writerows((name, caption) for caption in sound_captions(tune, config.captions, random))
    parts = [_sides(names), *([_sides(sounds)] if sounds else [])]
    for side in parts[0]:
        listed = [name for part in parts for name in part[side]]
        (path / f"{side}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    counts = [{side: len(listed) for side, listed in part.items()} for part in parts]
    return {
        "pictures": counts[0],
        **({"sounds": counts[1]} if sounds else {}),
        "captions": config.captions * (len(names) + len(sounds)),
    }


def _sides(names: list[str]) -> dict[str, list[str]]:
    held = max(2, len(names) // 6)
    return {"test": names[:held], "dev": names[held : 2 * held], "train": names[2 * held :]}


def _texture(size: int, scene: Scene, random: np.random.Generator) -> Picture:
    """Grey in two shades that no group is lost in."""
    level = 90 if any(group.colour in ("white", "yellow") for group in scene) else 190
    level = 140 if {group.colour for group in scene} & {"black"} and level == 90 else level
    kind = TEXTURES[random.integers(len(TEXTURES))]
    y, x = np.mgrid[:size, :size]
    step = int(random.integers(size // 16, size // 6))
    wave = {
        "plain": np.zeros((size, size)),
        "stripes": (x + y) // step % 2 * 2 - 1,
        "checks": (x // step + y // step) % 2 * 2 - 1,
        "noise": random.normal(size=(size, size)),
    }[kind]
    grey = np.clip(level + random.integers(-10, 11) + 10 * wave, 0, 255)
    tint = random.integers(-6, 7, 3)
    return np.asarray(np.clip(grey[..., None] + tint, 0, 255), np.uint8)


def _spots(count: int, size: float, random: np.random.Generator) -> list[tuple[float, float, float]]:
    """Middles and radii of shapes in a quarter, that do not touch."""
    radius = size * {1: 0.3, 2: 0.2, 3: 0.17, 4: 0.16}[count] * random.uniform(0.85, 1.1)
    cells = [(0.5, 0.5)] if count == 1 else [(0.27, 0.27), (0.73, 0.73), (0.73, 0.27), (0.27, 0.73)]
    if count == 2 and random.random() < 0.5:
        cells = cells[2:]
    chosen = cells[:count] if count != 3 else [cells[place] for place in random.permutation(4)[:3]]
    shake = 0.04 * size
    return [
        (x * size + random.uniform(-shake, shake), y * size + random.uniform(-shake, shake), radius) for x, y in chosen
    ]


def _shape(
    pen: ImageDraw.ImageDraw, kind: str, middle: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    x, y = middle
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == "circle":
        pen.ellipse(box, fill=colour)
    elif kind == "ring":
        pen.ellipse(box, outline=colour, width=max(2, round(radius * 0.38)))
    elif kind == "square":
        pen.rectangle((x - 0.85 * radius, y - 0.85 * radius, x + 0.85 * radius, y + 0.85 * radius), fill=colour)
    elif kind == "cross":
        arm = 0.32 * radius
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)
    else:
        points = 3 if kind == "triangle" else 10
        lengths = [radius if kind == "triangle" or not place % 2 else 0.42 * radius for place in range(points)]
        angles = [2 * math.pi * place / points - math.pi / 2 for place in range(points)]
        corners = [
            (x + length * math.cos(angle), y + length * math.sin(angle))
            for length, angle in zip(lengths, angles, strict=True)
        ]
        pen.polygon(corners, fill=colour)
