"""Batches for training: augmented crops of images, or windows of backbone features computed once.

Both kinds are a pure function of (seed, epoch, batch number), so that a run can go on from any step exactly.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Full, Queue
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from zsseg import distributed
from zsseg.artifacts import Artifact
from zsseg.classes import VOID
from zsseg.config import Precision
from zsseg.dataset import (
    LABEL_STRIDE,
    NO_PSEUDO,
    Position,
    TrainingSet,
    collate,
    epoch_order,
    fill_void,
    hide_unseen,
    sample_labels,
    training_labels,
)
from zsseg.errors import ArtifactError, DataError, TrainingError, ZssegError
from zsseg.features import StoredFeatures, kept_features, open_features, store_features
from zsseg.images import UInt8, decode_label_map
from zsseg.models import SegmentationNet
from zsseg.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")


def batch_positions(
    indices: NDArray[np.int64], *, batch: int, epochs: int, seed: int, start: int = 0
) -> list[list[Position]]:
    """Return the images of every batch of a run from step `start` on; batches do not cross epochs."""
    batches: list[list[Position]] = []
    for epoch in range(epochs):
        order = epoch_order(indices, seed=seed, epoch=epoch)
        batches += [order[first : first + batch] for first in range(0, len(order), batch)]
    return batches[start:]


def image_batches(
    path: Path,
    positions: list[list[Position]],
    *,
    unseen: Sequence[int],
    crop: int,
    seed: int,
    workers: int,
    pseudo: Mapping[int, bytes] = NO_PSEUDO,
    digest: str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 (N, crop, crop, 3) images and int64 labels, decoded by worker processes."""
    loader = DataLoader(
        TrainingSet(path, unseen=unseen, crop=crop, seed=seed, pseudo=pseudo, digest=digest),
        batch_sampler=positions,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # or the loader would draw from the global one
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from loader
    except ZssegError as error:  # torch wraps the worker's traceback round the message
        raise type(error)(str(error).strip().splitlines()[-1].split(": ", 1)[-1]) from error
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise TrainingError(
            "a process that decodes images died (out of memory, or of shared memory in a container); "
            "try --workers 0 or a smaller --batch"
        ) from error


def _leave_interrupts_to_the_parent(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class FeatureCache:
    """Backbone features of the training images and their labels, which windows are cut from.

    The features are kept between runs, for whatever split, head, loss and class vectors (`zsseg.features`); where that
    is not wanted or not possible, they lie in a file that vanishes with the process. The labels, at every fourth pixel,
    are read anew, for they depend on the split.

    Args:
        net: The model; only `features` runs.
        data: An open data artifact.
        indices: Which images.
        unseen: Ids of the unseen classes, hidden from the labels that are kept.
        folder: Where the file lies that vanishes; needs about 0.6 MB for a photo of 400 × 300 pixels with lite0.
        precision: Of the backbone's computation.
        progress: Told of each image.
        kept: Where features are kept; None: nowhere.
        settings: What the model's features depend on besides its parameters; JSON values.

    Raises:
        DataError: The folder's disk is full.
    """

    def __init__(
        self,
        net: SegmentationNet,
        data: Artifact,
        indices: NDArray[np.int64],
        *,
        unseen: Sequence[int],
        folder: Path,
        precision: Precision,
        progress: Progress,
        kept: Path | None = None,
        settings: Sequence[object] = (),
    ) -> None:
        self._strides = net.feature_strides
        self._pad_to = net.pad_to
        computing: dict[str, Any] = {"precision": precision, "progress": progress}
        stored = None
        # labels are decoded while kept features are checked
        with _beside(lambda stopped: _sampled_labels(data, indices, unseen, stopped)) as labels:
            if kept is not None:
                try:
                    stored = kept_features(kept, net, data, indices, settings=settings, **computing)
                except ArtifactError as error:
                    if distributed.world() > 1:  # where the others are by now, nobody knows
                        raise
                    log.info("backbone features: cannot be kept: %s", error)
            self._features = stored or _vanishing(folder, net, data, indices, **computing)
            self._labels = labels()

    def batches(
        self,
        positions: list[list[Position]],
        *,
        crop: int,
        seed: int,
        hidden: Sequence[int] = (),
        pseudo: Mapping[int, bytes] = NO_PSEUDO,
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield lists of float16 feature maps and int64 labels, windows of `crop` pixels, mirrored half the time.

        Labels of `hidden` classes are void, too; then `pseudo`, a PNG by image, fills void pixels.
        """
        crop = -(-crop // self._pad_to) * self._pad_to
        labels = {index: hide_unseen(each, hidden) for index, each in self._labels.items()}
        for index, encoded in pseudo.items():
            made = sample_labels(decode_label_map(encoded, "pseudo-labels")).astype(np.uint8)
            labels[index] = fill_void(labels[index], made)
        yield from ahead(self._batch(labels, batch, crop, seed) for batch in positions)

    def _batch(
        self, all_labels: Mapping[int, UInt8], batch: list[Position], crop: int, seed: int
    ) -> tuple[list[Tensor], Tensor]:
        windows = [self._window(all_labels[position.index], position, crop, seed) for position in batch]
        maps = zip(*(window[0] for window in windows), strict=True)
        # Stacked with channels last, as they lie in the file and as the network computes. torch computes nothing here:
        # it would do so in threads of its own beside those of the step, which then wait for each other.
        features = [torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) for arrays in maps]
        labels = np.stack([window[1] for window in windows])
        return features, torch.from_numpy(labels.astype(np.int64))

    def _window(
        self, labels: UInt8, position: Position, crop: int, seed: int
    ) -> tuple[list[NDArray[np.float16]], UInt8]:
        rng = np.random.default_rng([seed, position.epoch, position.index])
        step = self._pad_to  # windows start on cells of every map and on labels
        height, width = (-(-n * LABEL_STRIDE // step) * step for n in labels.shape)
        top, left = (step * int(rng.integers(0, max(n - crop, 0) // step + 1)) for n in (height, width))
        mirror = rng.random() < 0.5
        arrays = []
        for array, stride in zip(self._features.maps(position.index), self._strides, strict=True):
            if stride is not None:
                array = _cut(array, top // stride, left // stride, crop // stride, fill=0)
            arrays.append(array[:, ::-1] if mirror else array)
        labels = _cut(labels, top // LABEL_STRIDE, left // LABEL_STRIDE, crop // LABEL_STRIDE, fill=VOID)
        return arrays, labels[:, ::-1] if mirror else labels


@contextlib.contextmanager
def _beside(work: Callable[[threading.Event], T]) -> Iterator[Callable[[], T]]:
    """Do some work in a thread of its own; it is told to stop where the block ends without asking for the result."""
    stopped = threading.Event()
    # `images` mutes warnings while it decodes; two threads that do so can leave them muted
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as threads:
        future = threads.submit(work, stopped)
        try:
            yield future.result
        finally:
            stopped.set()


def _sampled_labels(
    data: Artifact, indices: NDArray[np.int64], unseen: Sequence[int], stopped: threading.Event
) -> dict[int, UInt8]:
    """Return the labels of images at every fourth pixel, those of unseen classes void; some of them where stopped."""
    sizes = data.array("sizes").tolist()
    labels: dict[int, UInt8] = {}
    for index in indices.tolist():
        if stopped.is_set():
            break
        labels[index] = sample_labels(training_labels(data, index, unseen, tuple(sizes[index]))).astype(np.uint8)
    return labels


def _vanishing(
    folder: Path, net: SegmentationNet, data: Artifact, indices: NDArray[np.int64], **computing: Any
) -> StoredFeatures:
    """Compute features into a file without a name, that is gone when nobody reads it any more."""
    with TemporaryDirectory(dir=folder if distributed.is_main() else None, prefix=".features-") as temporary:
        path = Path(distributed.from_main(str(Path(temporary, "features.h5").absolute())))
        try:
            store_features(path, net, data, indices, **computing)
        except ArtifactError as error:
            raise DataError(
                f"{folder}: the backbone features of --frozen could not be written; free some space, choose another "
                "--workspace, or train without --frozen"
            ) from error
        features = open_features(path)
        distributed.barrier()  # before it goes, every process has it open
        return features


def _cut(array: NDArray, top: int, left: int, side: int, *, fill: float) -> NDArray:  # type: ignore[type-arg]
    """Cut a square window from the first two axes, filled where it reaches beyond them."""
    window = array[top : top + side, left : left + side]
    if window.shape[:2] == (side, side):
        return window
    out = np.full((side, side, *array.shape[2:]), fill, dtype=array.dtype)
    out[: window.shape[0], : window.shape[1]] = window
    return out


def ahead(items: Iterator[T], *, depth: int = 4) -> Iterator[T]:
    """Yield the items, made by a thread so many ahead; what they raise comes when their turn comes."""
    queue: Queue[tuple[T | None, BaseException | None]] = Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(Full):
                queue.put((item, error), timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            if all(put(item) for item in items):
                put(None, StopIteration())
        except BaseException as error:  # whatever it is, the caller's thread is the one to raise it
            put(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only beside an error
    finally:
        stopped.set()
        thread.join()
