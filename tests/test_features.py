"""Backbone features kept between runs: what they are keyed by, and what becomes of stale and damaged files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import write_folder
from torch import Tensor, nn

from zsseg import features
from zsseg.artifacts import Artifact, create, open_artifact
from zsseg.config import FetchConfig, feature_folder
from zsseg.features import StoredFeatures, feature_key, kept_features
from zsseg.fetch import fetch_data
from zsseg.models import SegmentationNet
from zsseg.progress import SILENT


class CountingNet(SegmentationNet):
    """A backbone of one convolution that counts how often it runs."""

    stride = 8
    feature_strides = (8, None)
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    fresh = ("out",)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Conv2d(3, 4, 8, stride=8)
        self.runs = 0

    def features(self, images: Tensor) -> list[Tensor]:
        self.runs += 1
        maps = self.backbone(images)
        return [maps, maps.mean(dim=(2, 3), keepdim=True)]

    def backbone_modules(self) -> list[nn.Module]:
        return [self.backbone]


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    """Return six generated photos."""
    fetch_data(tmp_path / "data.h5", FetchConfig("folder"), root=write_folder(tmp_path / "root"))
    return open_artifact(tmp_path / "data.h5", "data")


def kept(folder: Path, net: SegmentationNet, data: Artifact, indices: list[int]) -> StoredFeatures:
    chosen: NDArray[np.int64] = np.array(indices)
    return kept_features(folder, net, data, chosen, settings=(), precision="float32", progress=SILENT)


def test_the_backbone_runs_once_in_all(data: Artifact, tmp_path: Path) -> None:
    """A second run, and one on fewer photos, compute nothing; one on more photos computes those alone."""
    net = CountingNet()
    for indices, runs in (([0, 2], 2), ([0, 2], 2), ([2], 2), ([0, 1, 3], 4), ([0, 1, 2, 3], 4)):
        stored = kept(tmp_path / "kept", net, data, indices)
        assert net.runs == runs
        assert set(indices) <= set(stored.images)
    assert len(list((tmp_path / "kept").glob("*.h5"))) == 1


def test_the_maps_are_those_of_the_backbone(data: Artifact, tmp_path: Path) -> None:
    """What comes back is what `features` gave, channels last, rounded to float16, also of photos taken over."""
    net = CountingNet()
    kept(tmp_path, net, data, [1])
    stored = kept(tmp_path, net, data, [0, 1])
    fresh = kept(tmp_path / "other", CountingNet(), data, [0, 1])
    for index in (0, 1):
        fine, mean = stored.maps(index)
        assert fine.dtype == np.float16
        assert (fine.shape, mean.shape) == ((8, 8, 4), (1, 1, 4))
        np.testing.assert_allclose(mean[0, 0], fine.mean(axis=(0, 1), dtype=np.float32), atol=1e-3)
        assert all(np.array_equal(a, b) for a, b in zip(stored.maps(index), fresh.maps(index), strict=True))


def test_other_inputs_have_another_key(data: Artifact) -> None:
    """Backbone weights, settings and precision each change the key; the head's do not."""
    net = CountingNet()
    key = feature_key(net, data, ("a", None), "float32")
    head = CountingNet()
    head.out = nn.Conv2d(4, 2, 1)
    assert feature_key(head, data, ("a", None), "float32") == key
    others = {
        feature_key(CountingNet(1), data, ("a", None), "float32"),
        feature_key(net, data, ("b", None), "float32"),
        feature_key(net, data, ("a", None), "bfloat16"),
    }
    assert len(others | {key}) == 4


def test_a_damaged_file_is_computed_again(data: Artifact, tmp_path: Path) -> None:
    """A flipped byte, and a file cut short, are noticed when the file is taken up."""
    net = CountingNet()
    kept(tmp_path / "kept", net, data, [0, 1])
    (path,) = (tmp_path / "kept").glob("*.h5")
    whole = path.read_bytes()
    numbers = kept(tmp_path / "kept", net, data, [0]).maps(0)[0].tobytes()
    place = whole.index(numbers[:64])
    for broken in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[: len(whole) // 2]):
        path.unlink()
        path.write_bytes(broken)
        before = net.runs
        assert kept(tmp_path / "kept", net, data, [0, 1]).maps(0)[0].tobytes() == numbers
        assert net.runs == before + 2


def test_maps_of_other_sizes_than_the_file_says_are_computed_again(data: Artifact, tmp_path: Path) -> None:
    """A file with a number too few for its shapes is no features, though its digest holds."""
    net = CountingNet()
    kept(tmp_path / "kept", net, data, [0, 1])
    (path,) = (tmp_path / "kept").glob("*.h5")
    with open_artifact(path, "features") as whole, create(tmp_path / "short", "features", params={}, inputs={}) as out:
        out.put("names", whole.strings("names"))
        out.put("images", whole.array("images"))
        out.put("shapes", whole.array("shapes"))
        out.put("maps", whole.array("maps")[:-1])
    (tmp_path / "short").replace(path)
    assert len(kept(tmp_path / "kept", net, data, [0, 1]).maps(1)) == 2
    assert net.runs == 4


def test_the_folder_stays_within_its_limit(data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used longest ago goes first, never what was just made."""
    nets = [CountingNet(seed) for seed in range(3)]
    for age, net in enumerate(nets[:2]):
        before = set(tmp_path.glob("*.h5"))
        kept(tmp_path, net, data, [0])
        (new,) = set(tmp_path.glob("*.h5")) - before
        os.utime(new, (1000 + age, 1000 + age))
    kept(tmp_path, nets[0], data, [0])  # used again, so the second is the oldest now
    size = new.stat().st_size
    monkeypatch.setattr(features, "LIMIT", 2 * size)
    kept(tmp_path, nets[2], data, [0])
    assert len(list(tmp_path.glob("*.h5"))) == 2
    assert not new.exists()
    monkeypatch.setattr(features, "LIMIT", 0)
    kept(tmp_path, nets[1], data, [0])
    assert list(tmp_path.glob("*.h5")) == [new]


def test_where_features_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the cache folder, or where ZSSEG_FEATURES says, or nowhere."""
    monkeypatch.setenv("ZSSEG_CACHE", str(tmp_path))
    monkeypatch.delenv("ZSSEG_FEATURES")
    assert feature_folder() == tmp_path / "features"
    monkeypatch.setenv("ZSSEG_FEATURES", str(tmp_path / "elsewhere"))
    assert feature_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("ZSSEG_FEATURES", "none")
    assert feature_folder() is None
