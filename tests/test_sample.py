"""The built-in sample: reproducible, well formed, and drawn from the words alone."""

from __future__ import annotations

import numpy as np
import pytest

from zsseg import sample
from zsseg.classes import VOID

COUNT = 60


@pytest.fixture(scope="module")
def scenes() -> list[tuple[str, sample.UInt8, sample.UInt8]]:
    return list(sample.scenes(COUNT, 0))


@pytest.fixture(scope="module")
def vectors() -> sample.Floats:
    return sample.word_vectors()


def family_means(vectors: sample.Floats) -> sample.Floats:
    """Return the mean class vector of each family's seen classes, in the order of UNSEEN."""
    return np.stack(
        [np.mean([vectors[sample.NAMES.index(word)] for word in family], axis=0) for family in sample.FAMILIES.values()]
    )


def test_same_seed_draws_the_same_scenes(scenes: list[tuple[str, sample.UInt8, sample.UInt8]]) -> None:
    """The same seed gives the same bytes, and fewer scenes are the first of more."""
    for (name, image, label_map), (again, image_again, label_map_again) in zip(
        scenes, sample.scenes(5, 0), strict=False
    ):
        assert name == again
        assert image.tobytes() == image_again.tobytes()
        assert label_map.tobytes() == label_map_again.tobytes()


def test_another_seed_draws_other_scenes(scenes: list[tuple[str, sample.UInt8, sample.UInt8]]) -> None:
    """Seeds differ in what they draw."""
    _, image, _ = next(sample.scenes(1, 1))
    assert image.shape != scenes[0][1].shape or not np.array_equal(image, scenes[0][1])


def test_images_and_label_maps_fit(scenes: list[tuple[str, sample.UInt8, sample.UInt8]]) -> None:
    """Images are RGB bytes of varying size, label maps of the same size hold class ids and a little void."""
    for _, image, label_map in scenes:
        assert image.dtype == label_map.dtype == np.uint8
        assert image.shape == (*label_map.shape, 3)
        assert set(np.unique(label_map)) <= {*range(len(sample.names())), VOID}
        assert 0 < (label_map == VOID).mean() < 0.2
    assert len({image.shape for _, image, _ in scenes}) > 5
    assert len({name for name, _, _ in scenes}) == COUNT


def test_every_class_occurs(scenes: list[tuple[str, sample.UInt8, sample.UInt8]]) -> None:
    """Every class, unseen ones too, occurs in any run of 40 scenes, so in train and in val."""
    assert sample.TRAIN_COUNT >= 40
    assert sample.VAL_COUNT >= 40
    for part in (scenes[:40], scenes[20:]):
        found = set(np.concatenate([np.unique(label_map) for _, _, label_map in part]))
        assert found >= set(range(len(sample.names())))


def test_look_is_a_function_of_the_vector(vectors: sample.Floats) -> None:
    """Equal vectors look equal, near ones nearly, and shuffled vectors take their looks along."""
    order = np.random.default_rng(0).permutation(len(vectors))
    anchors = vectors[[sample.NAMES.index(word) for word in sample.ANCHORS]]
    look = sample.looks(vectors, anchors)
    np.testing.assert_allclose(sample.looks(vectors[order], anchors), look[order])
    near = vectors + 1e-4 * np.random.default_rng(1).standard_normal(vectors.shape)
    assert np.abs(sample.looks(near, anchors) - look).max() < 0.02


def test_cloth_shows_its_look(vectors: sample.Floats) -> None:
    """The mean colour of many drawn patches lies along the colour of the look."""
    look = sample.class_looks(vectors)[sample.NAMES.index("canoe")]
    rng = np.random.default_rng(0)
    mean = np.mean([sample.draw_cloth(look, (48, 48), rng).mean(axis=(0, 1)) for _ in range(60)], axis=0) - 0.5
    assert mean @ look[:3] / np.linalg.norm(mean) / np.linalg.norm(look[:3]) > 0.98


def test_unseen_words_lie_amid_their_family(vectors: sample.Floats) -> None:
    """NNE over all classes finds the unseen word from the mean of its family's vectors, with a margin."""
    scores = family_means(vectors) @ vectors.T
    for row, word in zip(scores, sample.UNSEEN, strict=True):
        own = sample.NAMES.index(word)
        assert row[own] > np.delete(row, own).max() + 0.1


def test_unseen_words_look_like_a_muted_mix_of_their_family(vectors: sample.Floats) -> None:
    """An unseen word has the pattern of its family and next to no colour of its own."""
    looks = sample.class_looks(vectors)
    for family, word in enumerate(sample.UNSEEN):
        look = looks[sample.NAMES.index(word)]
        assert np.abs(look[:3]).max() < 0.02
        assert look[3 + family] > 0.9


def test_shuffled_vectors_hide_the_unseen(vectors: sample.Floats) -> None:
    """With class vectors shuffled among classes, the mean of the family's vectors is hardly ever the unseen word's."""
    rng = np.random.default_rng(0)
    unseen = [sample.NAMES.index(word) for word in sample.UNSEEN]
    found = []
    for _ in range(200):
        shuffled = vectors[rng.permutation(len(vectors))]
        found.extend((family_means(shuffled) @ shuffled.T).argmax(axis=1) == unseen)
    assert np.mean(found) < 0.1
