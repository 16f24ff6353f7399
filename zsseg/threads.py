"""Photos side by side in threads of this process: much of what is done to one photo keeps one core busy at most."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")
R = TypeVar("R")

AT_MOST = 4  # photos at once, each with its own maps and scores in memory


def side_by_side(items: Sequence[T], work: Callable[[T], R], device: torch.device) -> Generator[R, None, None]:
    """Yield what becomes of each item, in their order; on a CPU of several cores some are worked on at a time.

    PyTorch's threads are shared out among them. On a GPU, and where PyTorch has one thread, as under torchrun, one
    item comes after the other. No more than twice as many results as threads are in memory.

    Args:
        items: Inputs of `work`.
        work: Must not change what another item's work reads.
        device: Where `work` computes.

    Raises:
        Exception: What `work` raises for the first item, in their order, that it fails on; later ones are given up.
    """
    cores = torch.get_num_threads()
    threads = min(cores, AT_MOST, len(items)) if device.type == "cpu" else 1
    if threads <= 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores // threads,))
    pending: deque[Future[R]] = deque()
    # `images` mutes warnings while it decodes; two threads that do so can leave them muted
    with warnings.catch_warnings():
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) == 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)  # some of the settings of a thread hold for the whole process


def bincount(keys: NDArray[np.int16] | NDArray[np.int32], *, minlength: int) -> NDArray[np.int64]:
    """Do what NumPy's `bincount` does, twice as quick for small numbers, and without stopping all other threads."""
    counts: NDArray[np.int64] = torch.bincount(torch.from_numpy(keys), minlength=minlength).numpy()
    return counts
