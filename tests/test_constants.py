"""The benchmark that chooses constants never sees the classes that results are about."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import NAMES, photo

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch):
    """Import the benchmark, which lies beside the package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import constants

    yield constants
    for name in ("constants", "zero_shot"):
        sys.modules.pop(name, None)


def write_voc(root: Path, count: int) -> Path:
    """Write so many training photos and one of validation, whose label maps show every class and void."""
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    names = [f"p{number:03}" for number in range(count + 1)]
    labels = np.repeat(np.array([*range(len(NAMES)), 255], np.uint8), 8)[:, None].repeat(8, axis=1)
    for number, name in enumerate(names):
        photo(labels, seed=number).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(labels).save(root / "SegmentationClass" / f"{name}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    (lists / "train.txt").write_text("\n".join(names[:-1]) + "\n")
    (lists / "val.txt").write_text(names[-1] + "\n")
    return root


def test_left_out_classes_and_validation_photos_are_nowhere(
    constants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cow and sheep are void and unnamed, others keep their pixels; the originals stay as they were."""
    monkeypatch.setattr("zero_shot.ASIDE", 3)
    source = write_voc(tmp_path / "source", 12)
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    root = constants.without(source, tmp_path / "out", ("cow", "sheep"), apart=True)
    assert (root / "classes.txt").read_text().split() == ["background", "cat", "dog"]
    parts = {part: (root / f"ImageSets/Segmentation/{part}.txt").read_text().split() for part in ("train", "val")}
    assert (len(parts["train"]), len(parts["val"])) == (6, 3)
    for name in (*parts["train"], *parts["val"]):
        old = np.asarray(Image.open(source / "SegmentationClass" / f"{name}.png"))
        new = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))
        assert np.array_equal(new, np.where(old < 3, old, 255))
    assert "p012" not in parts["train"] + parts["val"]  # of val
    assert {file: file.read_bytes() for file in before} == before


def test_no_photo_is_of_two_parts(constants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What constants are chosen by, what is kept aside for the final scores and what is trained on are disjoint."""
    monkeypatch.setattr("zero_shot.ASIDE", 3)
    source = write_voc(tmp_path / "source", 12)
    parts = constants.partition(source)
    assert [len(part) for part in parts] == [6, 3, 3]
    assert len(set().union(*parts)) == 12
    assert constants.partition(source) == parts


def test_the_rule_takes_the_best_that_costs_little(constants) -> None:
    """Means over pairs count; what costs seen mIoU is out, and of equals the smallest bounds are taken."""

    def point(loss: float, share: float, harmonic: float, cost: float) -> dict[str, object]:
        keys = {"seen": 0.5, "unseen": 0.2, "oracle": 0.5, "harmonic": harmonic, "cost": cost}
        return {"variant": "gate", "max_seen_loss": loss, "max_false_share": share, **keys}

    equal = [point(loss, 0.5, harmonic, 0.0) for loss in (0.03, 0.015, math.inf) for harmonic in (0.2, 0.4)]
    costly = [point(0.03, math.inf, 0.9, 0.03)]
    worse = [point(0.005, 0.1, harmonic, 0.0) for harmonic in (0.55, 0.01)]
    best = constants.best_of([*equal, *costly, *worse])
    assert (best["max_seen_loss"], best["max_false_share"]) == (0.015, 0.5)
    assert best["harmonic"] == pytest.approx(0.3)


def test_one_of_so_many_photos_is_trained_on(constants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scored on stays whole."""
    monkeypatch.setattr("zero_shot.ASIDE", 3)
    source = write_voc(tmp_path / "source", 12)
    root = constants.without(source, tmp_path / "out", ("cow", "sheep"), apart=True, every=3)
    parts = [(root / f"ImageSets/Segmentation/{part}.txt").read_text().split() for part in ("train", "val")]
    assert parts == [constants.partition(source)[0][::3], constants.partition(source)[1]]


def test_the_blind_choice_is_by_means(constants, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each data set, and of both together."""
    points = [
        {"pair": "a,b", "trained on": name, "presence": acts, "harmonic": harmonic}
        for name, both in (("voc-animals", (0.1, 0.4)), ("coco-voc20", (0.2, 0.1)))
        for acts, harmonic in zip((False, True), both, strict=True)
    ]
    constants.print_summary("a,b", points, blind=True)
    first, second, both = capsys.readouterr().out.splitlines()
    assert first == "a,b, trained on voc-animals: without 0.100, with presence 0.400"
    assert second == "a,b, trained on coco-voc20: without 0.200, with presence 0.100"
    assert both == "a,b, trained on either: without 0.150, with presence 0.250"
