"""What a data set is to `fetch-data`: a `Source`; the tools to list one; and the built-in sample as one.

A `Source` lists image ids by partition and reads one pair of image and label map at a time, from any thread, so that
a data set need not fit in memory. Ids are listed once each. Nothing is decoded here; `fetch.py` checks what was read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from zsseg.errors import DataError
from zsseg.images import IMAGE_SUFFIXES, UInt8
from zsseg.progress import Progress

Bad = tuple[str, str]  # a file that cannot be used: its name, and why


@dataclass(frozen=True)
class Pair:
    """One image and its label map as they came.

    Attributes:
        image_name: File name for messages.
        image: The file's bytes.
        label_name: File name for messages.
        label_map: The file's bytes, or class ids (H, W).
    """

    image_name: str
    image: bytes
    label_name: str
    label_map: bytes | UInt8


def _ready(_: Collection[str]) -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Source:
    """A data set that can be read.

    Attributes:
        names: Class names in index order.
        train: Ids of the training images.
        val: Ids of the validation images, none of them in `train`.
        read: Returns the pair of an id; safe to call from several threads; raises DataError "file: reason".
        bad: What the lists themselves had wrong.
        prepare: To be called once with all ids that will be read.
    """

    names: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]
    read: Callable[[str], Pair]
    bad: tuple[Bad, ...] = ()
    prepare: Callable[[Collection[str]], None] = _ready


def lines(text: str) -> tuple[str, ...]:
    """Return the ids of a list, one a line; image suffixes are taken off, empty lines left out."""
    ids = (line.strip() for line in text.splitlines())
    return tuple(_without_suffix(photo_id) for photo_id in ids if photo_id)


def _without_suffix(photo_id: str) -> str:
    stem, dot, suffix = photo_id.rpartition(".")
    return stem if dot and stem and f".{suffix.lower()}" in IMAGE_SUFFIXES else photo_id


def listed(
    train: Sequence[str], train_name: str, val: Sequence[str], val_name: str
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Bad, ...]]:
    """Take every id once and report the others; an id in both lists stays in val, so that scores stay honest.

    Args:
        train: Ids of the training list.
        train_name: Its file name for messages.
        val: Ids of the validation list.
        val_name: Its file name for messages.

    Returns:
        Ids of the training images, of the validation images, and what was wrong.
    """
    bad: list[Bad] = []
    val_once = _once(val, val_name, bad)
    inside = frozenset(val_once)
    both = [photo_id for photo_id in train if photo_id in inside]
    bad.extend((train_name, f"id {photo_id!r} is also in {val_name}") for photo_id in both)
    train_once = _once([photo_id for photo_id in train if photo_id not in inside], train_name, bad)
    return train_once, val_once, tuple(bad)


def _once(ids: Sequence[str], list_name: str, bad: list[Bad]) -> tuple[str, ...]:
    taken: dict[str, None] = {}
    for photo_id in ids:
        if photo_id in taken:
            bad.append((list_name, f"id {photo_id!r} is listed twice"))
        taken[photo_id] = None
    return tuple(taken)


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text.

    Raises:
        DataError: It is no UTF-8 text or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def sample_source(seed: int, progress: Progress) -> Source:
    """Draw the built-in sample; its few small scenes are held in memory as PNG bytes.

    Args:
        seed: Of the scenes.
        progress: Counts scenes.
    """
    from zsseg import sample

    count = sample.TRAIN_COUNT + sample.VAL_COUNT
    pairs = {
        photo_id: Pair(f"{photo_id}.png", png(image), f"{photo_id}.png", label_map)
        for photo_id, image, label_map in progress.track(sample.scenes(count, seed), "Drawing scenes", count)
    }
    ids = tuple(pairs)
    return Source(sample.names(), ids[: sample.TRAIN_COUNT], ids[sample.TRAIN_COUNT :], pairs.__getitem__)


def png(image: UInt8) -> bytes:
    """Encode an image as PNG; the bytes depend on the input alone."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
