"""Work that a thread does ahead of the training loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from zsseg.batches import ahead


def test_ahead_keeps_the_order() -> None:
    """All items come, once and in order."""
    assert list(ahead(iter(range(50)), depth=3)) == list(range(50))


def test_ahead_hands_errors_on() -> None:
    """What the items' maker raises arrives after the items before it."""

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no more"):
        next(found)


def test_ahead_runs_no_further_than_its_depth_and_ends_with_its_caller() -> None:
    """An endless source is read a few items ahead, and its thread is gone when the caller stops."""
    made: list[int] = []

    def items() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    found = ahead(items(), depth=3)
    threads = threading.active_count()
    assert next(found) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1
    assert threading.active_count() == threads + 1
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
