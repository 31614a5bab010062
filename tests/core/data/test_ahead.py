"""Work done ahead comes in order, tells its faults where its result is asked for, and ends when nobody takes it."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from core.data.ahead import ahead


def made(number: int, seconds: float, done: list[int]) -> int:
    time.sleep(seconds)
    done.append(number)
    return number


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_tasks(num_workers: int) -> None:
    done: list[int] = []
    tasks = (partial(made, number, 0.02 * (number % 3), done) for number in range(12))
    assert list(ahead(tasks, num_workers=num_workers)) == list(range(12))
    assert sorted(done) == list(range(12))


def test_no_more_is_begun_than_was_asked_for() -> None:
    done: list[int] = []
    results = ahead((partial(made, number, 0.0, done) for number in range(100)), num_workers=2)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(done) <= 3  # two workers, and one that waits
    results.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert len(done) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_is_raised_at_its_place(num_workers: int) -> None:
    def fail() -> int:
        raise ZeroDivisionError("third")

    results = ahead([lambda: 1, lambda: 2, fail, lambda: 4], num_workers=num_workers)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match="third"):
        next(results)
