"""Photos side by side in threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from zsseg.threads import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_cores() -> Iterator[None]:
    """Give PyTorch four threads, however many the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items_even_where_the_first_takes_longest() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number * number

    assert list(side_by_side(range(20), slow_first, CPU)) == [number * number for number in range(20)]


def test_items_are_worked_on_at_a_time_and_share_out_pytorchs_threads() -> None:
    together = threading.Barrier(2)

    def meet(_: int) -> int:
        together.wait(timeout=10)  # breaks, and raises, where nobody else works
        return torch.get_num_threads()

    assert list(side_by_side(range(2), meet, CPU)) == [2, 2]
    assert torch.get_num_threads() == 4


def test_the_error_is_that_of_the_first_item_that_fails() -> None:
    def fail(number: int) -> int:
        if number == 3:
            time.sleep(0.05)
        if number >= 3:
            raise ValueError(f"item {number}")
        return number

    done = []
    with pytest.raises(ValueError, match="item 3"):
        done.extend(side_by_side(range(8), fail, CPU))
    assert torch.get_num_threads() == 4


def test_few_results_wait_to_be_taken() -> None:
    started = itertools.count()
    with closing(side_by_side(range(100), lambda _: next(started), CPU)) as results:
        next(results)
        time.sleep(0.1)
        assert next(started) <= 8


def test_who_stops_early_waits_for_nothing_but_what_has_begun() -> None:
    begun = []

    def slow(number: int) -> int:
        begun.append(number)
        time.sleep(0.01)
        return number

    with closing(side_by_side(range(100), slow, CPU)) as results:
        next(results)
    assert len(begun) < 10
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count
    assert torch.get_num_threads() == 4


def test_one_thread_works_in_the_thread_that_asks() -> None:
    torch.set_num_threads(1)
    assert set(side_by_side(range(3), lambda _: threading.current_thread(), CPU)) == {threading.current_thread()}
