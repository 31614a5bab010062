"""Numbers from environment variables, refused by name. No torch: settings are read before it is there."""

from __future__ import annotations

import math
import os

from core.errors import ConfigError


def whole(name: str, default: int) -> int:
    """Raises ConfigError for what is no whole number from 1 on."""
    given = os.environ.get(name, str(default))
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"{name} is {given!r}; allowed is a whole number from 1 on")
    return int(given)


def positive(name: str, default: float) -> float:
    """Raises ConfigError for what is no number above 0."""
    given = os.environ.get(name, str(default))
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {given!r}; allowed is a number above 0")
    return value


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
