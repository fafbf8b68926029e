"""Work in threads, a few batches ahead."""

import threading
from collections.abc import Iterator

import pytest

from clipdistill.datasets import ahead as module
from clipdistill.datasets.ahead import ahead


def test_results_come_in_the_order_of_their_batches() -> None:
    assert list(ahead([[3, 1], [], [2]], lambda item: item * 10, workers=3)) == [[30, 10], [], [20]]


def test_no_more_than_a_few_batches_are_taken_before_they_are_needed() -> None:
    taken: list[int] = []

    def batches() -> Iterator[list[int]]:
        for number in range(100):
            taken.append(number)
            yield [number]

    results = ahead(batches(), str, workers=2)
    assert next(results) == ["0"]
    assert len(taken) == module._AHEAD + 1
    results.close()


def test_what_work_raises_is_raised_and_what_waits_is_dropped() -> None:
    begun: list[int] = []
    held = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        held.wait(5)

    results = ahead([[0], [1, 2, 3], [4, 5, 6], [7, 8, 9]], work, workers=1)
    threading.Timer(0.2, held.set).start()
    with pytest.raises(ValueError, match="the first"):
        next(results)
    assert len(begun) < 10
