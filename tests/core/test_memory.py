"""What a process holds, what it may hold, and what it lets go of."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import ConfigError
from core.memory import MEMORY_GB, PeakWatch, give_back, memory_limit, resident_bytes


def test_the_limit_is_what_was_set_else_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MEMORY_GB, raising=False)
    assert memory_limit() > resident_bytes()
    monkeypatch.setenv(MEMORY_GB, "1.5")
    assert memory_limit() == 1_500_000_000


@pytest.mark.parametrize("given", ["", "much", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_GB, given)
    with pytest.raises(ConfigError, match="VERTICALS_MEMORY_GB is .*; allowed is a number above 0"):
        memory_limit()


def test_what_was_freed_between_things_that_live_is_given_back() -> None:
    pieces = [np.ones(2**13, np.uint8) for _ in range(20_000)]  # 160 MB below what malloc maps by itself
    kept = pieces[::50]  # so that the heap cannot shrink from its end
    before = resident_bytes()
    del pieces
    give_back()
    assert resident_bytes() < before - 100 * 10**6
    assert len(kept) == 400


def test_a_watch_sees_what_was_held_for_a_moment() -> None:
    before = resident_bytes()
    with PeakWatch() as watch:
        np.ones(10**8, np.uint8).sum()
    assert watch.bytes > before + 90 * 10**6
