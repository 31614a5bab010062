"""Tones with words: pitch, timbre, number and movement, as captions say them. Small data whose answers are known."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from core.errors import ConfigError
from verticals.multimodal.retrieval.audio import RATE, Wave

PITCHES = {"low": (150.0, 260.0), "middle": (500.0, 800.0), "high": (1500.0, 2600.0)}
"""Hertz, from and to."""
TIMBRES = ("pure", "buzzing", "hollow", "noisy")
MOVEMENTS = {"steady": 1.0, "rising": 1.7, "falling": 1 / 1.7}
"""What the pitch is multiplied by until the end of a tone."""
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
LENGTHS = {"short": 0.10, "long": 0.28}
"""Seconds of a tone."""
SECONDS = 2.0


class Tune(NamedTuple):
    """Equal tones one after the other."""

    num: int
    length: str
    pitch: str
    timbre: str
    movement: str

    @property
    def words(self) -> str:
        """`three short high buzzing tones, rising`"""
        return f"{COUNTS[self.num]} {self.length} {self.pitch} {self.timbre} tone{'s' if self.num > 1 else ''}, {self.movement}"


def tunes(count: int, seed: int) -> list[Tune]:
    """All different. Raises ConfigError where there are not so many."""
    every = [Tune(*kinds) for kinds in itertools.product(COUNTS, LENGTHS, PITCHES, TIMBRES, MOVEMENTS)]
    if count > len(every):
        raise ConfigError(f"data.synthetic.num_sounds {count}: there are {len(every)} different ones")
    return [every[place] for place in np.random.default_rng(seed).permutation(len(every))[:count]]


def sound_captions(tune: Tune, count: int, random: np.random.Generator) -> list[str]:
    """All true, each in other words."""
    tones, number = "tone" if tune.num == 1 else "tones", COUNTS[tune.num]
    texts = [
        tune.words,
        f"the sound of {number} {tune.timbre} {tones}, {tune.length}, {tune.pitch} and {tune.movement}",
        f"{number} {tune.movement} {tones}: {tune.pitch}, {tune.length}, {tune.timbre}",
        f"hear {number} {tune.pitch} {tones} that {'is' if tune.num == 1 else 'are'} {tune.timbre}, {tune.length} and {tune.movement}",
        f"a recording of {number} {tune.length} {tune.timbre} {tones}, {tune.pitch}, {tune.movement}",
    ]
    return [texts[place] for place in random.permutation(len(texts))[:count]]


def play(tune: Tune, random: np.random.Generator) -> Wave:
    """Two seconds, with a little noise; no two are alike."""
    whole = random.normal(scale=0.003, size=round(SECONDS * RATE))
    each = round(LENGTHS[tune.length] * random.uniform(0.9, 1.1) * RATE)
    step = each + round(random.uniform(0.12, 0.16) * RATE)
    first = random.integers(0, len(whole) - step * tune.num)
    base = np.exp(random.uniform(*np.log(PITCHES[tune.pitch])))
    loudness = random.uniform(0.2, 0.7)
    for number in range(tune.num):
        start = first + number * step
        whole[start : start + each] += loudness * _tone(each, base, tune, random)
    return np.asarray(np.clip(whole, -1, 1), np.float32)


def _tone(count: int, base: float, tune: Tune, random: np.random.Generator) -> Wave:
    part = np.linspace(0, 1, count)
    phase = 2 * np.pi * np.cumsum(base * MOVEMENTS[tune.movement] ** part) / RATE
    harmonics = {"pure": (1,), "buzzing": (1, 2, 3, 4, 5, 6), "hollow": (1, 3, 5), "noisy": (1,)}[tune.timbre]
    made = sum(np.sin(number * phase) / number for number in harmonics)
    if tune.timbre == "noisy":
        made = 0.6 * made + random.normal(scale=0.35, size=count)
    edge = np.minimum(1, np.minimum(part, 1 - part) * count / (0.01 * RATE))
    return np.asarray(made * edge / 1.6, np.float32)
