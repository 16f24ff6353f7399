"""How hard unseen classes will be: nearest seen classes against a naive search, verdicts, and what WordNet adds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from zsseg import wordnet
from zsseg.classes import VOC_NAMES
from zsseg.config import SplitConfig
from zsseg.difficulty import FAR, NEAR, prospects, verdict
from zsseg.errors import SettingError
from zsseg.split import choose_unseen


def test_the_nearest_seen_class_is_that_of_a_naive_search() -> None:
    """The cosine is the largest over seen classes with images, background left out; Wu-Palmer likewise."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(21, 6))
    images = rng.integers(0, 3, 21).tolist()
    unseen = choose_unseen(VOC_NAMES, SplitConfig(preset="zs3-6"))
    report = prospects(
        VOC_NAMES, unseen, vectors, images=images, hidden_images=range(21), hidden_pixels=range(0, 42, 2)
    )
    seen = [index for index in range(1, 21) if index not in unseen and images[index]]
    assert len(seen) < 20 - len(unseen)  # so that the rule of images decides something
    for index, each in zip(unseen, report, strict=True):
        cosines = {
            VOC_NAMES[other]: sum(a * b for a, b in zip(vectors[index], vectors[other], strict=True))
            / math.hypot(*vectors[index])
            / math.hypot(*vectors[other])
            for other in seen
        }
        assert each.nearest == max(cosines, key=cosines.__getitem__)
        assert each.cosine == pytest.approx(max(cosines.values()))
        assert each.nearest_images == images[VOC_NAMES.index(each.nearest)]
        assert each.verdict == verdict(each.cosine)
        assert (each.hidden_images, each.hidden_pixels) == (index, 2 * index)
        similar = {VOC_NAMES[other]: wordnet.similarity(VOC_NAMES)[index, other] for other in seen}
        assert each.wu_palmer == pytest.approx(max(similar.values()))
        assert similar[str(each.relative)] == pytest.approx(each.wu_palmer)


def test_the_verdicts() -> None:
    """The bounds belong to the better side, and a class with nothing to compare is far."""
    values = {NEAR: "near", NEAR - 1e-9: "between", FAR: "between", FAR - 1e-9: "far", -1.0: "far", math.nan: "far"}
    assert {verdict(value) for value in (0.9, 1.0)} == {"near"}
    assert [verdict(value) for value in values] == list(values.values())


def test_the_verdicts_on_word2vec(data_root: Path) -> None:
    """On the vectors that the bounds come from, VOC's known loners are far and the two of zs3-2 are near."""
    rows = [line.split() for line in (data_root / "vectors" / "voc21-word2vec-300d.txt").read_text().splitlines()[1:]]
    words = {row[0]: np.array(row[1:], dtype=np.float64) for row in rows}
    vectors = np.stack([words[name] for name in VOC_NAMES])
    found = {}
    for preset in ("zs3-2", "zs3-10"):
        unseen = choose_unseen(VOC_NAMES, SplitConfig(preset=preset))
        ones, zeros = [1] * 21, [0] * 21
        for each in prospects(VOC_NAMES, unseen, vectors, images=ones, hidden_images=zeros, hidden_pixels=zeros):
            found[preset, each.name] = (each.verdict, round(each.cosine, 2))
    assert found["zs3-2", "cow"] == ("near", 0.61)
    assert found["zs3-2", "motorbike"] == ("near", 0.63)
    assert found["zs3-10", "tvmonitor"] == ("far", 0.15)
    assert {found["zs3-10", name][0] for name in ("bottle", "chair", "pottedplant")} == {"far"}


def test_without_wordnet_the_rest_of_the_report_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With no database for a class beyond the table, WordNet's columns are empty; a wrong folder is an error."""
    monkeypatch.setattr(wordnet, "_read_at_hand", lambda _: None)
    names = ["cow", "lawnmower", "sheep"]
    (one,) = prospects(names, [1], np.eye(3), images=[1, 0, 1], hidden_images=[0, 4, 0], hidden_pixels=[0, 9, 0])
    assert one.relative is None
    assert math.isnan(one.wu_palmer)
    assert one.imagenet is None
    assert (one.nearest, one.cosine, one.hidden_images) == ("cow", 0.0, 4)
    monkeypatch.undo()
    with pytest.raises(SettingError, match=r"has no data\.noun"):
        prospects(names, [1], np.eye(3), images=[1] * 3, hidden_images=[0] * 3, hidden_pixels=[0] * 3, folder=tmp_path)
