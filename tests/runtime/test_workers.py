"""Work spread over processes: in order, and never far ahead of who takes the results."""

import os
from collections.abc import Iterator

import pytest

from medclip_oc.errors import WorkError
from medclip_oc.runtime import workers as parallel


def double(number: int) -> int:
    return 2 * number


def die(number: int) -> int:
    os._exit(number)


@pytest.mark.parametrize(("workers", "threads"), [(1, False), (2, False), (2, True)])
def test_results_come_in_order_and_items_only_as_they_are_taken(
    workers: int, threads: bool
) -> None:
    """What keeps memory flat."""
    fetched = 0

    def items() -> Iterator[int]:
        nonlocal fetched
        for number in range(1000):
            fetched += 1
            yield number

    for taken, result in enumerate(
        parallel.ordered_map(double, items(), workers, threads=threads), start=1
    ):
        assert result == 2 * (taken - 1)
        assert fetched <= taken + 2 * workers * parallel.BATCH
    assert taken == 1000


def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(WorkError, match="a worker process died"):
        list(parallel.ordered_map(die, range(1, 5), 2))
