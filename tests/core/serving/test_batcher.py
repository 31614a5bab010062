from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from core.errors import CapacityError, DataError
from core.serving.batcher import Batcher, Overloaded


class Doubler:
    """Doubles numbers, refuses 13, and remembers its batches."""

    def __init__(self, seconds: float = 0.005) -> None:
        self.seconds, self.batches, self.threads = seconds, list[list[int]](), set[str]()

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(numbers))
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        return [DataError("13 is refused") if number == 13 else 2 * number for number in numbers]


def test_32_clients_get_their_own_answers_and_errors_in_few_batches() -> None:
    doubler = Doubler()

    async def client(batcher: Batcher[int, int], numbers: range) -> list[int | str]:
        answers: list[int | str] = []
        for number in numbers:
            try:
                answers.append(await batcher(number))
            except DataError as error:
                answers.append(str(error))
        return answers

    async def main() -> list[list[int | str]]:
        batcher = Batcher(doubler, max_batch=16, name="doubling")
        answers = await asyncio.gather(*(client(batcher, range(start, start + 20)) for start in range(32)))
        await batcher.close()
        return answers

    answers = asyncio.run(main())
    want = [[("13 is refused" if n == 13 else 2 * n) for n in range(start, start + 20)] for start in range(32)]
    assert answers == want
    assert sorted(n for batch in doubler.batches for n in batch) == sorted(
        n for s in range(32) for n in range(s, s + 20)
    )
    assert max(map(len, doubler.batches)) == 16
    assert len(doubler.batches) <= 120  # of 640 requests
    assert doubler.threads == {"doubling_0"}


def test_a_lone_client_does_not_wait_even_after_a_burst() -> None:
    async def main() -> float:
        batcher = Batcher(Doubler(0), max_wait_ms=500)
        await asyncio.gather(*(batcher(n) for n in range(20, 70)))
        await batcher(0)  # pays once for the company it had
        begun = time.perf_counter()
        for n in range(20, 40):
            assert await batcher(n) == 2 * n
        await batcher.close()
        return time.perf_counter() - begun

    assert asyncio.run(main()) < 0.5  # less than one wait for 20 requests


def test_a_burst_is_gathered_when_a_batch_of_several_went_before() -> None:
    doubler = Doubler(0)

    async def main() -> None:
        batcher = Batcher(doubler, max_wait_ms=500)
        await asyncio.gather(*(batcher(n) for n in range(8)))
        late = [asyncio.create_task(batcher(n)) for n in range(4)]
        await asyncio.sleep(0.05)
        late += [asyncio.create_task(batcher(n)) for n in range(4, 8)]
        begun = time.perf_counter()
        await asyncio.gather(*late)
        assert time.perf_counter() - begun < 0.4  # goes as soon as the eight are there
        await batcher.close()

    asyncio.run(main())
    assert [len(batch) for batch in doubler.batches] == [8, 8]


def test_a_full_queue_refuses_and_loses_nothing_it_took() -> None:
    async def main() -> tuple[int, int]:
        batcher = Batcher(Doubler(0.05), max_batch=2, max_queue=4)
        results = await asyncio.gather(*(batcher(n) for n in range(40)), return_exceptions=True)
        await batcher.close()
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert all("4 requests are waiting" in str(error) for error in refused)
        return len(refused), sum(isinstance(result, int) for result in results)

    refused, answered = asyncio.run(main())
    assert (refused, answered) == (36, 4)
    assert issubclass(Overloaded, CapacityError)


def test_a_client_that_leaves_takes_nobody_along() -> None:
    doubler = Doubler(0.1)

    async def main() -> list[int]:
        batcher = Batcher(doubler)
        tasks = [asyncio.create_task(batcher(n)) for n in range(4)]
        await asyncio.sleep(0.03)  # the batch runs
        tasks[1].cancel()
        waiting = asyncio.create_task(batcher(9))
        await asyncio.sleep(0)
        waiting.cancel()  # before its batch began: never run
        answers = [await task for task in (tasks[0], tasks[2], tasks[3])]
        await batcher.close()
        return answers

    assert asyncio.run(main()) == [0, 4, 6]
    assert doubler.batches == [[0, 1, 2, 3]]


def test_close_answers_what_was_taken_and_takes_no_more() -> None:
    async def main() -> list[int]:
        batcher = Batcher(Doubler(0.02), max_batch=2)
        tasks = [asyncio.create_task(batcher(n)) for n in range(7)]
        await asyncio.sleep(0)
        await batcher.close()
        with pytest.raises(Overloaded, match="shutting down"):
            await batcher(1)
        return [task.result() for task in tasks]

    assert asyncio.run(main()) == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (lambda numbers: [1], RuntimeError),
        (lambda numbers: 1 / 0, ZeroDivisionError),
        (lambda numbers: [StopIteration()] * 2, RuntimeError),
    ],
)
def test_a_run_that_breaks_its_promise_is_an_error_for_all(run: object, kind: type[Exception]) -> None:
    async def main() -> list[object]:
        batcher: Batcher[int, int] = Batcher(run)  # type: ignore[arg-type]
        results = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
        await batcher.close()
        return list(results)

    assert [type(result) for result in asyncio.run(main())] == [kind, kind]


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_queue": 0}, {"max_wait_ms": -1.0}])
def test_senseless_limits_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="are allowed"):
        Batcher(Doubler(), **options)  # type: ignore[arg-type]
