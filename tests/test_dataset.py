"""Training data: no label of an unseen class gets out; a batch is a function of seed, epoch and number alone."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from zsseg.artifacts import create, open_artifact
from zsseg.batches import FeatureCache, batch_positions, image_batches
from zsseg.classes import VOID
from zsseg.dataset import (
    Position,
    TrainingSet,
    epoch_order,
    hide_unseen,
    normalise,
    sample_labels,
    seen_pixels,
    training_labels,
)
from zsseg.images import UInt8, encode_label_map
from zsseg.losses import frequency_weights
from zsseg.models import SegmentationNet
from zsseg.progress import SILENT

CLASSES = 8
CROP = 32


class StubNet(SegmentationNet):
    """A network whose features are pooled colours at stride 8 and an image-level mean."""

    stride = 8
    feature_strides = (8, None)
    mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    fresh = ("out",)

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(3, 2, 1)

    def features(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(images, 8), images.mean(dim=(2, 3), keepdim=True)]


def write_data(path: Path, label_maps: Sequence[UInt8 | None], *, sizes: Sequence[tuple[int, int]]) -> Path:
    """Write a data artifact of noise photos with these label maps; all are training images."""
    rng = np.random.default_rng(0)
    with create(path, "data", params={}, inputs={}, force=True) as writer:
        writer.put("names", [f"class {index}" for index in range(CLASSES)])
        writer.put("ids", [str(index) for index in range(len(sizes))])
        buffers = []
        for height, width in sizes:
            buffers.append(io.BytesIO())
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffers[-1], format="PNG")
        writer.put("images", [buffer.getvalue() for buffer in buffers])
        writer.put("label_maps", [b"" if each is None else encode_label_map(each) for each in label_maps])
        writer.put("sizes", np.array(sizes))
        writer.put("train", np.arange(len(sizes)))
        writer.put("val", [])
    return path


def random_sizes(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Return some small image sizes."""
    return [(int(height), int(width)) for height, width in rng.integers(1, 70, (count, 2))]


def random_label_map(rng: np.random.Generator, size: tuple[int, int]) -> UInt8:
    """Return blocks of random class ids with void among them."""
    ids = rng.choice(np.array([*range(CLASSES), VOID], np.uint8), (size[0] // 5 + 1, size[1] // 5 + 1))
    return np.ascontiguousarray(ids.repeat(5, axis=0).repeat(5, axis=1)[: size[0], : size[1]])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Return a folder for the examples of a property test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data artifact of five photos, the last without a label map."""
    rng = np.random.default_rng(7)
    sizes = random_sizes(rng, 5)
    maps = [random_label_map(rng, size) for size in sizes[:4]]
    return write_data(tmp_path / "data.h5", [*maps, None], sizes=sizes)


def everything_training_sees(path: Path, unseen: Sequence[int], *, seed: int, count: int) -> dict[str, list[bytes]]:
    """Return as bytes all that training computes from label maps, and check that it holds no unseen id."""
    indices = np.arange(count)
    positions = batch_positions(indices, batch=2, epochs=2, seed=seed)
    batches = list(image_batches(path, positions, unseen=unseen, crop=CROP, seed=seed, workers=0))
    with open_artifact(path, "data") as artifact:
        maps = [training_labels(artifact, index, unseen, (3, 3)) for index in range(count)]
        pixels = list(seen_pixels(artifact, indices.tolist(), unseen, CLASSES))
        cache = FeatureCache(
            StubNet(), artifact, indices, unseen=unseen, folder=path.parent, precision="float32", progress=SILENT
        )
    cached = list(cache.batches(positions, crop=CROP, seed=seed))
    labels = [*maps, *(each[1].numpy() for each in batches), *(each[1].numpy() for each in cached)]
    assert not any(np.isin(each, list(unseen)).any() for each in labels)
    assert not any(each[list(unseen)].any() for each in pixels)
    weights = frequency_weights(sum(pixels, np.zeros(CLASSES, np.int64)))
    assert not weights[list(unseen)].any()
    return {
        "labels": [each.tobytes() for each in labels],
        "images": [each[0].numpy().tobytes() for each in batches],
        "features": [array.numpy().tobytes() for each in cached for array in each[0]],
        "pixels": [each.tobytes() for each in pixels],
        "weights": [weights.tobytes()],
    }


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, CLASSES - 1)), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_no_leak(folder: Path, seed: int, unseen: set[int], count: int) -> None:
    """Nothing that training reads holds an unseen label, or depends on which unseen class a pixel has."""
    rng = np.random.default_rng(seed)
    sizes = random_sizes(rng, count)
    maps = [random_label_map(rng, size) for size in sizes]
    hidden = sorted(unseen)
    variants = {"as it is": maps}
    if hidden:
        swap = np.arange(256, dtype=np.uint8)
        swap[hidden] = np.roll(hidden, 1)
        variants["other unseen classes"] = [swap[each] for each in maps]
        variants["one unseen class"] = [np.where(np.isin(each, hidden), hidden[0], each) for each in maps]
        variants["void"] = [np.where(np.isin(each, hidden), VOID, each) for each in maps]
    seen = {
        name: everything_training_sees(
            write_data(folder / "data.h5", [each.astype(np.uint8) for each in variant], sizes=sizes),
            hidden,
            seed=seed % 1000,
            count=count,
        )
        for name, variant in variants.items()
    }
    for found in seen.values():
        assert found == seen["as it is"]


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, CLASSES - 1)))
@settings(max_examples=30, deadline=None)
def test_hide_unseen(seed: int, unseen: set[int]) -> None:
    """Unseen pixels become void, all others keep their label, and the input is left as it is."""
    label_map = random_label_map(np.random.default_rng(seed), (12, 17))
    before = label_map.copy()
    hidden = hide_unseen(label_map, sorted(unseen))
    np.testing.assert_array_equal(label_map, before)
    assert hidden.dtype == np.uint8
    for old, new in zip(label_map.ravel().tolist(), hidden.ravel().tolist(), strict=True):
        assert new == (VOID if old in unseen else old)


def test_without_label_map(data: Path) -> None:
    """A photo without label map is void all over, and counts no pixel."""
    with open_artifact(data, "data") as artifact:
        np.testing.assert_array_equal(training_labels(artifact, 4, [], (5, 6)), np.full((5, 6), VOID))
        assert not next(iter(seen_pixels(artifact, [4], [], CLASSES))).any()


def test_seen_pixels(data: Path) -> None:
    """The pixels of each seen class are those of the label map at full size."""
    with open_artifact(data, "data") as artifact:
        for index, counts in enumerate(seen_pixels(artifact, range(4), [2, 5], CLASSES)):
            labels = training_labels(artifact, index, [], (0, 0))
            expected = [0 if c in (2, 5) else int((labels == c).sum()) for c in range(CLASSES)]
            assert counts.tolist() == expected


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_sample_labels(height: int, width: int, seed: int) -> None:
    """Every fourth pixel from the second on, ceil(H / 4) × ceil(W / 4) of them, void beyond the border."""
    label_map = np.random.default_rng(seed).integers(0, 9, (height, width), dtype=np.uint8)
    sampled = sample_labels(label_map)
    assert sampled.dtype == np.int64
    assert sampled.shape == (-(-height // 4), -(-width // 4))
    for row in range(sampled.shape[0]):
        for column in range(sampled.shape[1]):
            y, x = 4 * row + 2, 4 * column + 2
            assert sampled[row, column] == (label_map[y, x] if y < height and x < width else VOID)


def test_epoch_order() -> None:
    """Each epoch visits every image once, in an order that seed and epoch fix and that changes with either."""
    indices = np.array([3, 5, 8, 13, 21, 34, 55, 89])
    orders = {(seed, epoch): epoch_order(indices, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)}
    for (seed, epoch), order in orders.items():
        assert sorted(position.index for position in order) == indices.tolist()
        assert {position.epoch for position in order} == {epoch}
        assert order == epoch_order(indices, seed=seed, epoch=epoch)
    assert len({tuple(position.index for position in order) for order in orders.values()}) == 4


@pytest.mark.parametrize("batch", [1, 3, 8, 20])
def test_batch_positions(batch: int) -> None:
    """Batches do not cross epochs, leave nothing out, and a later start is the tail of the same run."""
    indices = np.arange(8)
    whole = batch_positions(indices, batch=batch, epochs=3, seed=4)
    assert len(whole) == 3 * -(-8 // batch)
    for each in whole:
        assert 1 <= len(each) <= batch
        assert len({position.epoch for position in each}) == 1
    flat = [position for each in whole for position in each]
    assert flat == [position for epoch in range(3) for position in epoch_order(indices, seed=4, epoch=epoch)]
    for start in range(len(whole) + 1):
        assert batch_positions(indices, batch=batch, epochs=3, seed=4, start=start) == whole[start:]


def test_items(data: Path) -> None:
    """An item is a crop and its labels; the epoch and the seed change it, asking twice does not."""
    items = TrainingSet(data, unseen=[1], crop=CROP, seed=0)
    image, labels = items[Position(0, 2)]
    assert (image.shape, image.dtype) == ((CROP, CROP, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((CROP // 4, CROP // 4), np.int64)
    again = TrainingSet(data, unseen=[1], crop=CROP, seed=0)
    again[Position(1, 0)]
    np.testing.assert_array_equal(again[Position(0, 2)][0], image)
    assert not np.array_equal(items[Position(1, 2)][0], image)
    assert not np.array_equal(TrainingSet(data, unseen=[1], crop=CROP, seed=1)[Position(0, 2)][0], image)


def test_workers_and_resume(data: Path) -> None:
    """The batches of a run are the same with any number of workers, and from any step on after a resume."""
    indices = np.arange(5)
    state = torch.random.get_rng_state()

    def run(start: int, workers: int) -> list[tuple[bytes, bytes]]:
        positions = batch_positions(indices, batch=2, epochs=2, seed=3, start=start)
        batches = image_batches(data, positions, unseen=[1, 4], crop=CROP, seed=3, workers=workers)
        return [(images.numpy().tobytes(), labels.numpy().tobytes()) for images, labels in batches]

    whole = run(0, workers=0)
    assert len(set(whole)) == 6
    assert run(0, workers=1) == whole
    assert run(4, workers=0) == whole[4:]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_cached_features_and_resume(data: Path) -> None:
    """Windows of cached features have the crop's shape, fit their labels, and go on alike after a resume."""
    with open_artifact(data, "data") as artifact:
        cache = FeatureCache(
            StubNet(),
            artifact,
            np.arange(5),
            unseen=[1],
            folder=data.parent,
            precision="float32",
            progress=SILENT,
        )
    assert list(data.parent.iterdir()) == [data]

    def run(start: int) -> list[tuple[list[Tensor], Tensor]]:
        positions = batch_positions(np.arange(5), batch=2, epochs=2, seed=3, start=start)
        return list(cache.batches(positions, crop=CROP, seed=3))

    whole = run(0)
    for (fine, mean), labels in whole:
        assert fine.shape[1:] == (3, CROP // 8, CROP // 8)
        assert mean.shape[1:] == (3, 1, 1)
        assert labels.shape == (len(fine), CROP // 4, CROP // 4)
    for (first, second), found in zip(run(2), whole[2:], strict=True):
        assert torch.equal(second, found[1])
        assert all(torch.equal(left, right) for left, right in zip(first, found[0], strict=True))


def test_normalise() -> None:
    """uint8 RGB becomes (value / 255 − mean) / std, channels first."""
    images = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    found = normalise(images, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    assert found.shape == (2, 3, 3, 4)
    for channel, (mean, std) in enumerate(zip((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), strict=True)):
        expected = (images[..., channel].double() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel].double(), expected, rtol=1e-5, atol=1e-5)
