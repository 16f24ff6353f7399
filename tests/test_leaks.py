"""The leak guard: over random label maps, splits and policies no unseen label reaches anything that training makes.

Two data sets differ in one thing: which unseen class an unseen pixel shows. Everything that training computes must come
out the same: losses, class weights, the probe and the calibration it chooses, pseudo-labels, the validation curve, and
the weights themselves. Where photos with unseen classes are dropped, it is read that a photo shows one, not which.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tiny import NAMES, SIDE, photo

from zsseg.artifacts import create, open_artifact
from zsseg.config import FetchConfig, SplitConfig, TrainConfig
from zsseg.fetch import fetch_data
from zsseg.split import make_split
from zsseg.train import train

ALL = TrainConfig(
    epochs=1, batch=2, crop=64, workers=0, device="cpu", anchors="none", gate=True, weighting="frequency",
    calibration="logit-adjustment", val_classes=("cat",),
)  # fmt: skip
CONFIGS = {
    "calibrated": ALL,
    "void": TrainConfig(**{**vars(ALL), "self_train": "void"}),
    "anywhere": TrainConfig(**{**vars(ALL), "self_train": "anywhere"}),
}
KEPT = (0, 1, 2)  # background, cat and dog are always seen: cat is hidden from the probe, and two have to be left
PHOTOS = 8


def draw_maps(seed: int, unseen: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    """Draw label maps of large patches of all classes, the seen ones in every photo, and a void line."""
    rng = np.random.default_rng(seed)
    maps = []
    for place in range(PHOTOS):
        cells = rng.integers(0, len(NAMES), (4, 4)).astype(np.uint8)
        cells[0, :3] = KEPT
        if place % 2:  # half of the photos show no unseen class, so that the policy drop leaves some
            cells[np.isin(cells, unseen)] = 0
        labels = np.kron(cells, np.ones((SIDE // 4, SIDE // 4), dtype=np.uint8))
        labels[SIDE // 2] = 255
        maps.append(labels)
    return maps


def write(root: Path, maps: list[NDArray[np.uint8]], pictures: list[Image.Image], config: SplitConfig) -> None:
    """Write data.h5, split.h5 and labels.h5 of these photos."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for place, (labels, picture) in enumerate(zip(maps, pictures, strict=True)):
        picture.save(root / "images" / f"{place}.png")
        Image.fromarray(labels).save(root / "masks" / f"{place}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    (root / "train.txt").write_text("\n".join(map(str, range(PHOTOS - 1))))
    (root / "val.txt").write_text(str(PHOTOS - 1))
    fetch_data(root / "data.h5", FetchConfig("folder"), root=root)
    make_split(root / "data.h5", root / "split.h5", config)
    vectors = np.random.default_rng(3).normal(size=(len(NAMES), 6))
    with create(root / "labels.h5", "labels", params={}, inputs={}, force=True) as writer:
        writer.put("names", NAMES)
        writer.put("words", NAMES)
        writer.put("vectors", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        writer.put("raw", vectors)
        writer.put("mean", np.zeros(6))
        writer.put("components", np.eye(6))
        writer.put("explained_variance", np.full(6, 1 / 6))


def outcome(root: Path, config: TrainConfig) -> dict[str, object]:
    """Train, and return everything that the model holds but the digests of its inputs."""
    train(root / "data.h5", root / "split.h5", root / "labels.h5", root / "model.h5", config)
    with open_artifact(root / "model.h5", "model") as model:
        found: dict[str, object] = {name: value.tobytes() for name, value in model.arrays("weights").items()}
        for name in ("loss", "val_seen_miou", "calibration_scale", "calibration_bias"):
            found[name] = model.array(name).tobytes() if name in model else None
        return {**found, "params": model.params}


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**20),
    unseen=st.sampled_from([(3, 4), (3,), (4,)]),
    policy=st.sampled_from(["ignore", "drop"]),
    swap=st.booleans(),
)
def test_no_unseen_label_reaches_what_training_makes(
    name: str, seed: int, unseen: tuple[int, ...], policy: str, swap: bool
) -> None:
    """Two data sets that differ in unseen labels alone give the same model, bit for bit, whatever is switched on."""
    config = SplitConfig(
        unseen=tuple(NAMES[index] for index in unseen), policy=policy if name == "calibrated" else "ignore"
    )  # type: ignore[arg-type]
    maps = draw_maps(seed, unseen)
    pictures = [photo(labels, seed=place) for place, labels in enumerate(maps)]
    table = np.arange(256, dtype=np.uint8)
    if len(unseen) == 2 and swap:
        table[[3, 4]] = 4, 3
    elif config.policy == "ignore":
        table[list(unseen)] = 255  # as if nobody had ever labelled them
    changed = [table[labels] for labels in maps]
    with TemporaryDirectory() as folder:
        write(Path(folder) / "a", maps, pictures, config)
        write(Path(folder) / "b", changed, pictures, config)
        one, two = (outcome(Path(folder) / each, CONFIGS[name]) for each in "ab")
    assert one == two


def test_the_guard_notices_a_leak(tmp_path: Path) -> None:
    """A change of a seen label does change the model, so the guard compares what it should."""
    maps = draw_maps(0, (3, 4))
    pictures = [photo(labels, seed=place) for place, labels in enumerate(maps)]
    table = np.arange(256, dtype=np.uint8)
    table[[1, 2]] = 2, 1
    config = SplitConfig(unseen=("cow", "sheep"))
    write(tmp_path / "a", maps, pictures, config)
    write(tmp_path / "b", [table[labels] for labels in maps], pictures, config)
    assert outcome(tmp_path / "a", ALL) != outcome(tmp_path / "b", ALL)
