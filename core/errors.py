"""What can go wrong at a door: configuration, data, artifacts, capacity, what is away. Every message says what was given, what is
allowed and what to do."""

from __future__ import annotations

import re
from typing import Any

LONG_NUMBER = re.compile(r"\d(?:[ -]?\d){11,}")
"""What could be a card number."""


def masked(text: str) -> str:
    """The text with every long number replaced by its length: no message shows a card number."""
    return LONG_NUMBER.sub(lambda found: f"<{len(found[0])} digits>", text)


class VerticalsError(Exception):
    """Any error whose message is meant for the user: the command prints it without a trace."""


class ConfigError(VerticalsError):
    """A configuration that names an unknown key, a value out of range, or settings that contradict each other."""


class DataError(VerticalsError):
    """Input that cannot be used: names the file, row, column or field."""


class Conflict(DataError):
    """A request that contradicts what is known already. `details` go into a service's answer, as `newest_time=...`."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class LeakError(DataError):
    """A split or a fitted transform that would let the future into the past."""


class ArtifactError(VerticalsError):
    """A model that is missing, damaged, of another application, or of a layout this code does not read."""


class ParityError(ArtifactError):
    """An artifact that does not answer as the network that it was made of; the message says where it departs."""


class CapacityError(VerticalsError):
    """A request that would exceed a stated limit of memory, time or size."""


class Unavailable(VerticalsError):
    """What is needed cannot be had now: a store that does not answer, is full, or is held by others. Nothing was written,
    and the same request is welcome later."""


class ScoreError(VerticalsError):
    """A model that scores less than the limit it was held to."""
