"""Backbone features of photos, computed once and kept on the disk, so that a frozen backbone runs once in all.

A features artifact holds the maps as float16 numbers, one photo after the other: what one window of a batch is cut
from is one read. It depends on the photos, the backbone's own parameters, how it is computed and on what machine, all
of which `feature_key` digests into its name; not on split, labels, head, loss, class vectors or seed. No label is
in it.

Files are written and checked like every artifact: a killed command leaves none, and one that is damaged is computed
again. They are for the machine: whoever deletes them loses nothing but time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zsseg import __version__, distributed
from zsseg.artifacts import Artifact, create, open_artifact
from zsseg.config import Precision
from zsseg.dataset import normalise, read_image
from zsseg.errors import ArtifactError, DataError
from zsseg.hardware import autocast
from zsseg.models import SegmentationNet
from zsseg.progress import Progress

log = logging.getLogger(__name__)

LIMIT = 10 * 2**30  # bytes of all files that are kept; the ones that were used longest ago go first

Maps = list[NDArray[np.float16]]


class StoredFeatures:
    """The features of some photos in an open features artifact.

    Args:
        artifact: Of the kind "features".
    """

    def __init__(self, artifact: Artifact) -> None:
        self._shapes = artifact.array("shapes").tolist()
        self._numbers = artifact.runs("maps")
        self._rows = {index: row for row, index in enumerate(artifact.array("images").tolist())}
        self._ends = list(itertools.accumulate(sum(map(math.prod, shapes)) for shapes in self._shapes))
        if artifact.shape("maps")[1] != (self._ends[-1] if self._ends else 0,):
            raise ArtifactError(f"{artifact.path}: damaged (its maps have other sizes than it says); remove the file")

    @property
    def images(self) -> list[int]:
        """Indices of the photos in their data artifact, ascending."""
        return list(self._rows)

    def raw(self, index: int) -> tuple[list[list[int]], bytes]:
        """Return shapes and bytes of one photo's maps."""
        return self._shapes[self._rows[index]], self._photo(index).tobytes()

    def maps(self, index: int) -> Maps:
        """Return the feature maps of one photo, float16 (h, w, K) each, finest first."""
        shapes = self._shapes[self._rows[index]]
        ends = list(itertools.accumulate(map(math.prod, shapes)))
        parts = np.split(self._photo(index), ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _photo(self, index: int) -> NDArray[np.float16]:
        row = self._rows[index]
        return self._numbers(self._ends[row - 1] if row else 0, self._ends[row])


def feature_key(net: SegmentationNet, data: Artifact, settings: Sequence[object], precision: Precision) -> str:
    """Return the digest of all that the features of a data artifact's photos depend on.

    Args:
        net: The model; only its backbone counts.
        data: The photos.
        settings: What the model was built with, as far as its `features` depend on it; JSON values.
        precision: Of the backbone's computation.
    """
    sha = hashlib.sha256()
    for module in net.backbone_modules():
        for name, value in module.state_dict().items():
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(value.cpu().contiguous().numpy().tobytes())
    device = next(net.parameters()).device.type
    machine = (device, torch.get_num_threads(), torch.__version__, __version__)  # rounding may differ
    described = [data.digest, type(net).__name__, *settings, net.mean, net.std, net.pad_to, precision, *machine]
    sha.update(json.dumps(described).encode())
    return sha.hexdigest()


def store_features(
    path: Path,
    net: SegmentationNet,
    data: Artifact,
    indices: NDArray[np.int64],
    *,
    precision: Precision,
    progress: Progress,
) -> None:
    """Compute the features of photos and write them; those that the file holds already are taken over.

    Args:
        path: The features artifact.
        net: The model; only `features` runs.
        data: The photos.
        indices: Which photos.
        precision: Of the backbone's computation.
        progress: Told of each photo.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with contextlib.ExitStack() as opened:
        old = _opened(path, opened) if distributed.is_main() else None
        had = set(distributed.from_main(old.images if old else []))
        wanted = sorted(had | {int(index) for index in indices})
        missing = [index for index in wanted if index not in had]
        folded = net.folded(precision, next(net.parameters()).device)
        computed = distributed.in_order(missing, lambda index: _computed(folded, data, index, precision))
        if not distributed.is_main():
            deque(computed, maxlen=0)
            distributed.barrier()  # until rank 0 has written them
            return
        inputs = {"data": data.digest}
        with create(path, "features", params={"precision": precision}, inputs=inputs, force=True) as writer:
            shapes = []
            for index in progress.track(wanted, "backbone features", len(wanted)):
                shape, encoded = old.raw(index) if old and index in had else next(computed)
                writer.extend("maps", np.frombuffer(encoded, dtype=np.float16))
                shapes.append(shape)
            writer.put("names", data.strings("names"))
            writer.put("images", wanted)
            writer.put("shapes", shapes)
        distributed.barrier()


def open_features(path: Path) -> StoredFeatures:
    """Open features that were written by this process.

    Raises:
        ArtifactError: They are gone or damaged.
        DataError: Another process wrote them, where this one does not see them.
    """
    if not distributed.is_main() and not path.exists():
        raise DataError(
            f"{path}: rank 0 wrote backbone features that this process does not see; "
            "set ZSSEG_FEATURES, or --workspace with ZSSEG_FEATURES=none, to a folder that all machines share"
        )
    return StoredFeatures(open_artifact(path, "features", verify=False))


def kept_features(
    folder: Path,
    net: SegmentationNet,
    data: Artifact,
    indices: NDArray[np.int64],
    *,
    settings: Sequence[object],
    precision: Precision,
    progress: Progress,
) -> StoredFeatures:
    """Return the features of photos from the folder where they are kept; what it lacks is computed and added.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    path = folder / f"{feature_key(net, data, settings, precision)[:32]}.h5"
    stored = _complete(path, indices) if distributed.is_main() else None
    path, found = Path(distributed.from_main(str(path))), distributed.from_main(stored is not None)
    if found:
        return stored or open_features(path)
    store_features(path, net, data, indices, precision=precision, progress=progress)
    log.info("backbone features: kept in %s (%.1f GB), which may be deleted at will", folder, path.stat().st_size / 1e9)
    stored = open_features(path)
    if distributed.is_main():
        _make_room(folder, keep=path)
    return stored


def _complete(path: Path, indices: NDArray[np.int64]) -> StoredFeatures | None:
    """Return the features that a file holds; None where it is missing or damaged, or lacks one of the photos."""
    with contextlib.suppress(ArtifactError):
        stored = StoredFeatures(open_artifact(path, "features", seal_suffices=True))
        if set(indices.tolist()) <= set(stored.images):
            log.info("backbone features: taken from %s", path.name)
            os.utime(path)
            return stored
    return None


def _opened(path: Path, opened: contextlib.ExitStack) -> StoredFeatures | None:
    """Return the features that a file holds, None where it is missing or damaged."""
    with contextlib.suppress(ArtifactError):
        return StoredFeatures(opened.enter_context(open_artifact(path, "features", seal_suffices=True)))
    return None


def _computed(net: SegmentationNet, data: Artifact, index: int, precision: Precision) -> tuple[list[list[int]], bytes]:
    """Return shapes and bytes of one photo's maps."""
    device = next(net.parameters()).device
    with torch.inference_mode(), autocast(precision, device):
        pixels = torch.from_numpy(read_image(data, index))[None].to(device)
        maps = net.features(net.pad(normalise(pixels, net.mean, net.std)))
    arrays = [each[0].permute(1, 2, 0).to("cpu", torch.float16).contiguous().numpy() for each in maps]
    return [list(each.shape) for each in arrays], b"".join(each.tobytes() for each in arrays)


def _make_room(folder: Path, *, keep: Path) -> None:
    """Remove the files that were used longest ago, until all of them together are within `LIMIT`."""
    files = sorted(_sizes(folder), key=lambda each: each[1])
    total = sum(size for _, _, size in files)
    for path, _, size in files:
        if total <= LIMIT:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size
            log.info("backbone features: removed %s to stay within %.0f GB", path.name, LIMIT / 1e9)


def _sizes(folder: Path) -> Iterator[tuple[Path, float, int]]:
    for path in folder.glob("*.h5"):
        with contextlib.suppress(OSError):  # another command may remove it at the same time
            found = path.stat()
            yield path, found.st_mtime, found.st_size
