"""Training images and labels for torch. `hide_unseen` is the one door through which training labels pass.

Everything that training computes from a label map (loss, class weights, validation during training) takes it
from `training_labels`, which calls `hide_unseen`: the labels of unseen classes become void there, always,
whatever the policy of the split. Pseudo-labels, which a model made of photos, fill void pixels after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from zsseg.artifacts import Artifact, open_artifact
from zsseg.classes import VOID
from zsseg.images import UInt8, augment, decode_image, decode_label_map

LABEL_STRIDE = 4  # the loss is taken at every fourth pixel in y and x: measured to cost no accuracy
LABEL_OFFSET = LABEL_STRIDE // 2

NO_PSEUDO: Mapping[int, bytes] = {}  # image index -> PNG of pseudo-labels, 255 where there is none


def hide_unseen(label_map: UInt8, unseen: Sequence[int]) -> UInt8:
    """Return the label map with the pixels of unseen classes set to void.

    Args:
        label_map: uint8 (H, W), class ids, 255 = void; left as it is.
        unseen: Ids of the unseen classes.

    Returns:
        uint8 (H, W) that holds no unseen id.
    """
    table = np.arange(256, dtype=np.uint8)
    table[list(unseen)] = VOID
    hidden: UInt8 = table[label_map]
    return hidden


def training_labels(
    data: Artifact,
    index: int,
    unseen: Sequence[int],
    size: tuple[int, int],
    *,
    pseudo: Mapping[int, bytes] = NO_PSEUDO,
) -> UInt8:
    """Read the label map of one image as training may see it: unseen classes void; all void where there is none.

    Args:
        data: An open data artifact.
        index: Which image.
        unseen: Ids of the unseen classes.
        size: Height and width of the image.
        pseudo: Pseudo-labels by image; they fill void pixels.
    """
    encoded = data.bytes_at("label_maps", index)
    labels = np.full(size, VOID, dtype=np.uint8)
    if encoded:
        labels = hide_unseen(decode_label_map(encoded, f"label map {index} of {data.path}"), unseen)
    return fill_void(labels, decode_label_map(pseudo[index], "pseudo-labels")) if index in pseudo else labels


def fill_void(label_map: UInt8, pseudo: UInt8) -> UInt8:
    """Return the label map, uint8 (H, W), with the pseudo-labels, likewise, where it is void."""
    return np.where(label_map == VOID, pseudo, label_map)


def read_image(data: Artifact, index: int) -> UInt8:
    """Read and decode one image, uint8 (H, W, 3)."""
    return decode_image(data.bytes_at("images", index), f"image {index} of {data.path}")


def seen_pixels(
    data: Artifact,
    indices: Sequence[int],
    unseen: Sequence[int],
    classes: int,
    *,
    pseudo: Mapping[int, bytes] = NO_PSEUDO,
) -> Iterator[NDArray[np.int64]]:
    """Yield for each image the number of training pixels of each class, int64 (C,); unseen ones have pseudo-labels."""
    for index in indices:
        # without a label map one void pixel, which the shape of pseudo-labels widens
        labels = training_labels(data, index, unseen, (1, 1), pseudo=pseudo)
        yield np.bincount(labels.ravel(), minlength=256)[:classes].astype(np.int64)


def sample_labels(label_map: UInt8) -> NDArray[np.int64]:
    """Return the labels at the pixels where the loss is taken, int64 (H / 4, W / 4), rounded up.

    The map is padded with void to a multiple of `LABEL_STRIDE` first.
    """
    height, width = label_map.shape
    padded = np.full((_round_up(height), _round_up(width)), VOID, dtype=np.uint8)
    padded[:height, :width] = label_map
    return padded[LABEL_OFFSET::LABEL_STRIDE, LABEL_OFFSET::LABEL_STRIDE].astype(np.int64)


def _round_up(length: int) -> int:
    return -(-length // LABEL_STRIDE) * LABEL_STRIDE


@dataclass(frozen=True)
class Position:
    """One draw of a training image: the epoch makes its augmentation differ from the last time."""

    epoch: int
    index: int


def epoch_order(indices: NDArray[np.int64], *, seed: int, epoch: int) -> list[Position]:
    """Return the training images of one epoch in their shuffled order, a function of seed and epoch alone."""
    rng = np.random.default_rng([seed, epoch])
    return [Position(epoch, int(index)) for index in rng.permutation(indices)]


class TrainingSet(Dataset[tuple[UInt8, NDArray[np.int64]]]):
    """Augmented crops and their labels, addressed by `Position`.

    Items are uint8 (crop, crop, 3) images and int64 (crop / 4, crop / 4) labels that hold no unseen id but those of
    pseudo-labels. The randomness of an item depends on seed, epoch and index alone, so neither the number of workers
    nor a resume changes it. The HDF5 file is opened on first use, hence once in every worker.
    """

    def __init__(
        self,
        path: Path,
        *,
        unseen: Sequence[int],
        crop: int,
        seed: int,
        pseudo: Mapping[int, bytes] = NO_PSEUDO,
        digest: str | None = None,
    ) -> None:
        self._path = path
        self._digest = digest
        self._pseudo = pseudo
        self._unseen = tuple(unseen)
        self._crop = crop
        self._seed = seed
        self._data: Artifact | None = None

    def __getitem__(self, position: Position) -> tuple[UInt8, NDArray[np.int64]]:
        if self._data is None:
            self._data = open_artifact(self._path, "data", verify=False, digest=self._digest)
        image = read_image(self._data, position.index)
        labels = training_labels(self._data, position.index, self._unseen, image.shape[:2], pseudo=self._pseudo)
        rng = np.random.default_rng([self._seed, position.epoch, position.index])
        image, labels = augment(image, labels, self._crop, rng)
        return image, sample_labels(labels)


def collate(items: Sequence[tuple[UInt8, NDArray[np.int64]]]) -> tuple[Tensor, Tensor]:
    """Stack items to uint8 (N, H, W, 3) images and int64 (N, h, w) labels."""
    images, labels = zip(*items, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 (N, H, W, 3) images into the float32 (N, 3, H, W) channels-last input of a backbone."""
    shift = torch.tensor(mean, device=images.device) * 255
    scale = torch.tensor(std, device=images.device) * 255
    return ((images.float() - shift) / scale).permute(0, 3, 1, 2)
