"""A data set of captioned pictures, split so that no picture is learned from and judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.data.pictures import read_picture
from core.errors import DataError, LeakError
from verticals.multimodal.retrieval.audio import read_sound
from verticals.multimodal.retrieval.formats import read_pairs
from verticals.multimodal.retrieval.pairs import Pair

SHARES = {"test": 0.2, "validation": 0.1}
"""Of pictures, where a data set lists no such side."""


@dataclass(frozen=True)
class Dataset:
    """Captioned pictures by side."""

    root: Path
    format: str
    sides: Mapping[str, tuple[Pair, ...]]

    @classmethod
    def open(cls, root: Path | str, *, seed: int = 0) -> Dataset:
        """
        Args:
            seed: of the split, where the data set has none.

        Raises:
            DataError: no data set, or its first fault.
            LeakError: a picture on two sides, under whatever name.
        """
        root = Path(root)
        listed = read_pairs(root)
        sides = _sides(listed.sides, seed)
        _refuse_leaks(sides)
        return cls(root, listed.format, sides)

    def pairs(self, side: str) -> tuple[Pair, ...]:
        """
        Raises:
            DataError: no such side, or nothing on it.
        """
        if not self.sides.get(side):
            there = ", ".join(f"{name} ({len(pairs)})" for name, pairs in self.sides.items())
            raise DataError(f"the data set has no pictures on the side {side!r}; there are {there}: list some for it")
        return self.sides[side]

    def for_training(self) -> Dataset:
        """Itself. Raises DataError where it is too small to train, to choose and to judge by."""
        for side in ("train", "validation", "test"):
            self.pairs(side)
        return self

    def refuse_saved_anew(self, most_pixels: int) -> None:
        """Sees that no two sides have one picture in two files, by its pixels: all are read.

        Raises:
            DataError, CapacityError: a picture that cannot be read.
            LeakError: a picture on two sides.
        """
        _refuse_leaks(self.sides, lambda pair: _pixels(pair, most_pixels))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Sources, counts and a hash of all that was read. Reads every picture once."""
        total = hashlib.sha256()
        for side in sorted(self.sides):
            for pair in self.sides[side]:
                total.update(f"{side} {pair.id}\n".encode())
                total.update(hashlib.sha256(pair.file.read()).digest())
                total.update("\n".join(pair.captions).encode())
        every = [pair for pairs in self.sides.values() for pair in pairs]
        return {
            "sources": [str(self.root)],
            "format": self.format,
            "pictures": {side: sum(not pair.is_sound for pair in pairs) for side, pairs in self.sides.items()},
            "sounds": {side: sum(pair.is_sound for pair in pairs) for side, pairs in self.sides.items()},
            "captions": {side: sum(len(pair.captions) for pair in pairs) for side, pairs in self.sides.items()},
            "words": sum(len(caption.split()) for pair in every for caption in pair.captions),
            "sha256": total.hexdigest(),
        }


def _sides(listed: Mapping[str, Sequence[Pair]], seed: int) -> dict[str, tuple[Pair, ...]]:
    """Train, validation and test: as listed, and by chance where the list lacks one. What its lists judge by is the test."""
    sides = {name: tuple(pairs) for name, pairs in listed.items()}
    rest = sides.pop("all", None) or sides.get("train", ())
    if "test" not in sides and "validation" in sides:
        sides["test"] = sides.pop("validation")
    for number, name in enumerate(("test", "validation")):
        if name not in sides:
            rest, sides[name] = _parted(rest, SHARES[name], seed + number)
    return {"train": tuple(rest), "validation": sides["validation"], "test": sides["test"]}


def _parted(pairs: Sequence[Pair], share: float, seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The rest, and so many of them; copies of one picture stay together."""
    groups: dict[bytes, list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault(_digest(pair), []).append(place)
    keys = sorted(groups)
    wanted, chosen = share * len(pairs), set[int]()
    for number in np.random.default_rng(seed).permutation(len(keys)):
        if len(chosen) + len(groups[keys[number]]) / 2 > wanted:
            break
        chosen.update(groups[keys[number]])
    return (
        tuple(pair for place, pair in enumerate(pairs) if place not in chosen),
        tuple(pair for place, pair in enumerate(pairs) if place in chosen),
    )


def _digest(pair: Pair) -> bytes:
    return hashlib.sha256(pair.file.read()).digest()


def _pixels(pair: Pair, most: int) -> bytes:
    """A hash of the picture as it is decoded; of a sound, of its file. Raises DataError, CapacityError."""
    if pair.is_sound:
        read_sound(pair.file.read(), name=pair.id)
        return _digest(pair)
    picture = read_picture(pair.file.read(), num_channels=3, name=pair.id, most_pixels=most)
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()


def _refuse_leaks(sides: Mapping[str, Sequence[Pair]], digest: Callable[[Pair], bytes] = _digest) -> None:
    seen: dict[bytes, tuple[str, Pair]] = {}
    for side, pairs in sides.items():
        for pair in pairs:
            known, other = seen.setdefault(digest(pair), (side, pair))
            if known != side:
                raise LeakError(
                    f"{pair.id} on {side} and {other.id} on {known} are one picture: figures would be too good; remove one of them"
                )
