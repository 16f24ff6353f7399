"""Words follow the classes into the joint space, from vectors that are found by their digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from zsseg.artifacts import open_artifact
from zsseg.config import EmbedConfig
from zsseg.embed import embed_labels
from zsseg.errors import SettingError
from zsseg.recipe import Places, Recipe, embed_words, frequent_words, of_labels

NAMES = ("cow", "dining table", "potted plant", "sheep")
HERE = Places()


def recipe_of(config: EmbedConfig, folder: Path) -> tuple[Recipe, np.ndarray]:
    """Return the recipe of class vectors, and the vectors."""
    embed_labels(NAMES, folder / "labels.h5", config, force=True)
    with open_artifact(folder / "labels.h5", "labels") as labels:
        return of_labels(labels), labels.array("vectors")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return two small word-vector files of different words and lengths, and a second file for the first."""
    rng = np.random.default_rng(0)
    words = ("the", ",", "42", "cow", "dining", "table", "potted", "plant", "sheep", "zebra", "grass", "television")
    for name, dims, some in (("one.txt", 8, words), ("two.txt", 5, words[3:]), ("more.txt", 8, ("zebra", "piano"))):
        rows = [f"{word} {' '.join(f'{value:.4f}' for value in rng.normal(size=dims))}" for word in some]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    return [tmp_path / name for name in ("one.txt", "two.txt", "more.txt")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"center": False, "normalize": "none"},
        {"remove_top": 2, "dim": 20},
        {"reduce": "none", "remove_top": 1},
        {"retrofit": True},
    ],
)
def test_the_classes_come_out_as_they_were(options: dict[str, object], tmp_path: Path) -> None:
    """The recipe maps the names of the classes to the very vectors that embed-labels wrote, whatever the settings."""
    recipe, vectors = recipe_of(EmbedConfig(fit_words=300, **options), tmp_path)  # type: ignore[arg-type]
    np.testing.assert_allclose(embed_words(NAMES, recipe, HERE), vectors, atol=1e-5)


def test_concatenated_sources(files: list[Path], tmp_path: Path) -> None:
    """Of several sources, found by name in a folder, the classes come out as they were, too."""
    config = EmbedConfig(vectors=(str(files[0]), str(files[1])), dim=4)
    recipe, vectors = recipe_of(config, tmp_path)
    np.testing.assert_allclose(embed_words(NAMES, recipe, Places(folders=(tmp_path,))), vectors, atol=1e-5)


def test_a_word_of_the_second_file(files: list[Path], tmp_path: Path) -> None:
    """A word that only the second file has is known, and one that both have is taken from the first."""
    recipe, _ = recipe_of(EmbedConfig(vectors=(str(files[0]),), vocabulary=(str(files[2]),), dim=4), tmp_path)
    places = Places(folders=(tmp_path,))
    both = embed_words(["piano", "zebra"], recipe, places)
    words, vectors = frequent_words(None, recipe, places)
    np.testing.assert_allclose(both, vectors[[words.index("piano"), words.index("zebra")]], atol=1e-5)
    first = next(line for line in files[0].read_text().splitlines() if line.startswith("zebra "))
    raw = np.array([float(number) for number in first.split()[1:]])
    np.testing.assert_allclose(both[1], recipe.project((raw / np.linalg.norm(raw))[None])[0], atol=1e-5)


def test_vectors_are_found_by_digest_under_any_name(files: list[Path], tmp_path: Path) -> None:
    """A named file serves whatever it is called; without it the message names file, digest and option."""
    recipe, vectors = recipe_of(EmbedConfig(vectors=(str(files[0]),), dim=4), tmp_path)
    moved = files[0].rename(tmp_path / "elsewhere.vec")
    found = embed_words(NAMES, recipe, Places(files=(files[1], moved)))
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    sha256 = hashlib.sha256(moved.read_bytes()).hexdigest()
    with pytest.raises(SettingError, match=rf"one\.txt.*{sha256[:12]}.*--vectors FILE"):
        embed_words(NAMES, recipe, Places(files=(files[1],)))


def test_another_file_of_the_same_name_is_refused(files: list[Path], tmp_path: Path) -> None:
    """Vectors that changed since would give words that do not fit the classes."""
    recipe, _ = recipe_of(EmbedConfig(vectors=(str(files[0]),), dim=4), tmp_path)
    files[0].write_text(files[0].read_text().replace("zebra", "horse"))
    with pytest.raises(SettingError, match=r"one\.txt: has digest .*expected .*--vectors FILE"):
        embed_words(NAMES, recipe, Places(folders=(tmp_path,)))


def test_all_unknown_words_are_named_at_once(tmp_path: Path) -> None:
    """One message gives close spellings of every unknown word."""
    recipe, _ = recipe_of(EmbedConfig(fit_words=300), tmp_path)
    with pytest.raises(
        SettingError, match=r"'zebbra'.*did you mean zebra.*'telvision'.*television.*write it otherwise"
    ):
        embed_words(["zebbra", "grass", "telvision"], recipe, HERE)


def test_frequent_words_are_words(files: list[Path], tmp_path: Path) -> None:
    """Punctuation and numbers are left out but counted; the rest is in order of frequency, known to all sources."""
    recipe, _ = recipe_of(EmbedConfig(vectors=(str(files[0]),), dim=4), tmp_path)
    assert frequent_words(5, recipe, Places(folders=(tmp_path,)))[0] == ["the", "cow", "dining"]
    recipe, _ = recipe_of(EmbedConfig(vectors=(str(files[0]), str(files[1])), dim=4), tmp_path)
    words, vectors = frequent_words(None, recipe, Places(folders=(tmp_path,)))
    assert words[0] == "cow"
    assert vectors.shape == (len(words), 4)
    np.testing.assert_allclose(vectors, embed_words(words, recipe, Places(folders=(tmp_path,))), atol=1e-5)


def test_frequent_words_equal_single_words(tmp_path: Path) -> None:
    """The quick way for a whole vocabulary gives what the way of a single name gives."""
    recipe, _ = recipe_of(EmbedConfig(fit_words=300), tmp_path)
    words, vectors = frequent_words(200, recipe, HERE)
    some = [words.index(word) for word in ("people", "said", "city") if word in words]
    assert some
    np.testing.assert_allclose(vectors[some], embed_words([words[index] for index in some], recipe, HERE), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_sentence_encoder_does_not_read_a_whole_language(tmp_path: Path) -> None:
    """What would take hours is refused before it starts, with a number that works."""
    settings = {"vectors": ["all-minilm-l6-v2"], "sha256": ["00"], "normalize": "unit", "prompts": ["{}"]}
    recipe = Recipe(np.zeros(384, np.float32), np.eye(384, dtype=np.float32), settings)
    with pytest.raises(SettingError, match=r"--vocabulary all: .*--vocabulary 2000"):
        frequent_words(None, recipe, HERE)
