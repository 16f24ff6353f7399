"""Several processes at one task, as torchrun starts them: who does what, and sums over all of them.

Without torchrun there is one process, rank 0 of 1: nothing is exchanged, and every result is bit for bit what it was
without this module. All exchange goes through here: numbers, JSON and bytes; nothing is pickled. Gloo carries what lies
in memory, NCCL what lies on GPUs.

Rules:
    Rank 0 speaks, holds the locks and writes the artifacts. The others read the same files, so a job of several
    machines needs folders that all of them see.
    Every rank comes to the same exchanges in the same order. What decides on an exchange is therefore the same on all
    of them: the inputs (`check_same`), a sum, or what rank 0 says (`from_main`).
    Every rank has the same loss. It is made of sums over the whole batch, to each of which `summed` adds the parts of
    the other ranks; its gradient is only that of the own part. Gradients added over all ranks (`sum_gradients`) are
    then those of the whole batch, whatever the loss does with its sums.
    A process that dies takes the job with it: the others find the connection closed (`JobError`), and torchrun stops
    those that still compute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from zsseg.errors import JobError, SettingError

T = TypeVar("T")

AT_ONCE = 4  # items of `in_order` that a rank works on between two exchanges
TIMEOUT = 60.0  # minutes that a rank waits for another one; $ZSSEG_RANK_TIMEOUT is another number


@dataclass(frozen=True)
class Part:
    """The items of a batch that are this rank's: `first` up to but not including `last`, of `whole`."""

    first: int
    last: int
    whole: int

    @property
    def is_empty(self) -> bool:
        """Whether this rank has none; it then computes on one that counts for nothing, as the others wait for it."""
        return self.first == self.last

    @property
    def rows(self) -> slice:
        """The items that this rank computes on, at least one."""
        first = min(self.first, self.whole - 1)
        return slice(first, max(self.last, first + 1))


def join() -> None:
    """Meet the other processes that torchrun started; to be called once, before anything else of this module.

    Raises:
        JobError: They do not come.
        SettingError: What torchrun says in the environment is not there.
    """
    minutes = _timeout_minutes()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(minutes=minutes)
        )
    except ValueError as error:  # no MASTER_ADDR, RANK no number, ...
        raise SettingError(f"WORLD_SIZE asks for several processes, but {error}; start them with torchrun") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise JobError(
            f"the processes of this job did not find each other within {minutes:g} minutes ({reason}); start it again"
        ) from error


def _timeout_minutes() -> float:
    given = os.environ.get("ZSSEG_RANK_TIMEOUT", str(TIMEOUT))
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 60 * 24 * 365:
        raise SettingError(f"ZSSEG_RANK_TIMEOUT={given}: expected a number of minutes above 0")
    return minutes


def leave() -> None:
    """Wait for the others to be done, too."""
    if dist.is_available() and dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def speaks_first() -> bool:
    """Return whether no other process of the failing job has spoken yet: the first one knows the reason."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=timedelta(seconds=5)
        )
        return int(store.add(f"zsseg/failed/{attempt}", 1)) == 1
    except (KeyError, ValueError, RuntimeError):  # whoever kept the count is gone
        return True


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Return whether this process speaks and writes."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


# --- who does what ----------------------------------------------------------------------------------------------------


def part(whole: int) -> Part:
    """Return this rank's part of a batch of so many items."""
    return Part(whole * rank() // world(), whole * (rank() + 1) // world(), whole)


def share(items: Sequence[T]) -> Sequence[T]:
    """Return the items that this rank works on, where their order does not matter."""
    return items if world() == 1 else items[rank() :: world()]


def in_order(items: Sequence[T], work: Callable[[T], tuple[Any, bytes]]) -> Generator[tuple[Any, bytes], None, None]:
    """Share out work, and yield the results in the order of the items on rank 0; on other ranks nothing.

    All ranks must go through it to the end. Of each rank's results no more than `AT_ONCE` are in memory.

    Args:
        items: The same on every rank.
        work: Makes a JSON value and bytes of an item.
    """
    if world() == 1:
        yield from map(work, items)
        return
    for start in range(0, len(items), AT_ONCE * world()):
        first = start + AT_ONCE * rank()
        done = [work(item) for item in items[first : first + AT_ONCE]]
        for packed in _gather(_packed(done)):
            yield from _unpacked(packed)


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 do something before the others do it, too, such as make a file that they then find."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """Yield where this process writes a small output: its place on rank 0, on others a file that vanishes."""
    if is_main():
        yield path
        return
    with TemporaryDirectory() as folder:
        yield Path(folder) / path.name


# --- exchange ---------------------------------------------------------------------------------------------------------


def summed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the sums over all ranks of tensors of one dtype; the gradient of each is that of this rank's part."""
    if world() == 1:
        return tensors
    sums: tuple[Tensor, ...] = _Summed.apply(*tensors)
    return sums


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        return _sums(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        return gradients


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of parameters by their sums over all ranks."""
    if world() == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    for gradient, total in zip(gradients, _sums(gradients), strict=True):
        gradient.copy_(total)


def _sums(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Add tensors over all ranks, in one exchange."""
    flat = torch.cat([each.detach().reshape(-1) for each in tensors])
    with _exchange():
        dist.all_reduce(flat)
    parts = torch.split(flat, [each.numel() for each in tensors])
    return tuple(total.view(each.shape) for total, each in zip(parts, tensors, strict=True))


def sum_counts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of counts over all ranks, exact."""
    if world() == 1:
        return counts
    total = torch.from_numpy(np.array(counts, dtype=np.int64))
    with _exchange():
        dist.all_reduce(total)
    return total.numpy()


def any_of(flag: bool) -> bool:
    """Return whether the flag is set on any rank."""
    return flag if world() == 1 else bool(sum_counts(np.array(int(flag))))


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of rank 0."""
    for tensor in tensors if world() > 1 else ():
        whole = tensor.detach().contiguous()
        with _exchange():
            dist.broadcast(whole, src=0)
        tensor.detach().copy_(whole)


def from_main(value: T) -> T:
    """Return the JSON value that rank 0 has; those of other ranks do not matter."""
    if world() == 1:
        return value
    encoded = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor([encoded.numel()])
    with _exchange():
        dist.broadcast(size, src=0)
        received = encoded if is_main() else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(received, src=0)
    found: T = json.loads(received.numpy().tobytes())
    return found


def merged(parts: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return on every rank what all ranks hold, by ascending key."""
    if world() == 1:
        return dict(sorted(parts.items()))
    packed = _gather(_packed(list(parts.items())), everywhere=True)
    return dict(sorted((int(key), value) for each in packed for key, value in _unpacked(each)))


def check_same(what: str, value: object) -> None:
    """Refuse to go on unless a value, whose text is compared, is the same on all ranks.

    Raises:
        JobError: It is not.
    """
    if world() == 1:
        return
    values = _gather(str(value).encode(), everywhere=True)
    other = next((index for index, each in enumerate(values) if each != values[0]), None)
    if other is not None:
        raise JobError(
            f"{what}: rank {other} has others than rank 0; all machines need the same zsseg, command line and files"
        )


def barrier() -> None:
    """Wait until all ranks are here."""
    sum_counts(np.zeros(1, np.int64))


def _gather(blob: bytes, *, everywhere: bool = False) -> list[bytes]:
    """Return the bytes of all ranks in their order, on rank 0 or everywhere; nothing elsewhere."""
    own = torch.frombuffer(bytearray(blob or b"\0"), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    with _exchange():
        dist.all_gather(sizes, torch.tensor([len(blob)]))
        longest = max(1, *(int(size) for size in sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: own.numel()] = own
        received = [torch.empty(longest, dtype=torch.uint8) for _ in range(world() if everywhere or is_main() else 0)]
        if everywhere:
            dist.all_gather(received, padded)
        else:
            dist.gather(padded, received or None, dst=0)
    return [each[: int(size)].numpy().tobytes() for each, size in zip(received, sizes, strict=False)]


def _packed(pairs: Sequence[tuple[Any, bytes]]) -> bytes:
    """Return JSON values and bytes as one row of bytes: the length of a table, the table, the bytes."""
    table = json.dumps([[value, len(blob)] for value, blob in pairs]).encode()
    return b"".join([len(table).to_bytes(8, "little"), table, *(blob for _, blob in pairs)])


def _unpacked(packed: bytes) -> Iterator[tuple[Any, bytes]]:
    start = 8 + int.from_bytes(packed[:8], "little")
    for value, size in json.loads(packed[8:start]):
        yield value, packed[start : start + size]
        start += size


@contextmanager
def _exchange() -> Iterator[None]:
    """Say what it means that an exchange fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise JobError(
            f"another process of this job of {world()} died, or did not answer in time; all that is written is whole, "
            "`train` goes on with --resume"
        ) from error
