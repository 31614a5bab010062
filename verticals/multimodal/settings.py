"""The service's settings, from environment variables: read whole and checked before anything starts. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.aliases import alias_file
from core.environment import cores, positive, whole
from core.errors import ConfigError
from core.memory import memory_limit

LEAST_KEPT = 64
"""Pixels: what is smaller would show nothing to the next model."""


@dataclass(frozen=True)
class Settings:
    """All of them."""

    folder: Path
    """Of the index."""
    threads: int
    """Of the network."""
    upload_bytes: int
    """Of one request."""
    most_pixels: int
    """Of a picture."""
    exact_up_to: int
    """Items that are all compared; with more the search is approximate."""
    kept_pixels: int
    """Longest side of the pictures that are kept, for the page and for the next model's embeddings; 0 keeps none."""


def from_environment() -> Settings:
    """
    Raises:
        ConfigError: a variable that is not what it may be.
    """
    memory_limit()
    folder = os.environ.get("VERTICALS_INDEX")
    kept = os.environ.get("VERTICALS_KEPT_PIXELS", "384")
    if kept != "0" and (not kept.isdecimal() or int(kept) < LEAST_KEPT):
        raise ConfigError(f"VERTICALS_KEPT_PIXELS is {kept!r}; allowed is 0, or a whole number from {LEAST_KEPT} on")
    return Settings(
        folder=Path(folder).expanduser() if folder else alias_file().parent / "multimodal",
        threads=whole("VERTICALS_THREADS", cores()),
        upload_bytes=int(1e9 * positive("VERTICALS_UPLOAD_GB", 0.5)),
        most_pixels=int(1e6 * positive("VERTICALS_PICTURE_MEGAPIXELS", 100)),
        exact_up_to=whole("VERTICALS_EXACT_UP_TO", 200_000),
        kept_pixels=int(kept),
    )
