"""The recipe of a joint space: how class vectors came from words, so that any other words can follow them there.

A recipe is what labels.h5 records: the sources of vectors by name and digest, what was subtracted, the axes, and the
settings; `train` copies it into model.h5. A word goes the way that the classes went (`words`): its vector in every
source, unit length, concatenated, drawn towards its neighbours in WordNet where the classes were, less the mean, on the
axes, and to unit length where the class vectors have it.

The vectors themselves are not in the model: 400,000 words would be ten times as large as the network. They are found by
their digest: files that were named, the installed wheel, downloads, and files beside the model or in the current folder
that have the recorded name. A second file of words, on which the PCA was fitted, serves for words that the first lacks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import sentences, wordnet
from zsseg.artifacts import Artifact, open_artifact
from zsseg.config import VECTOR_FILES, Normalize, cache_folder
from zsseg.errors import ArtifactError, SettingError
from zsseg.vectors import WHEEL, Vocabulary, joined, read_file, read_vocabulary
from zsseg.words import Float64, choices, choose_tokens, concatenated, known, phrases, project, retrofitted, word_vector

log = logging.getLogger(__name__)

EVERY = 10**9  # more words than any source has
CHUNK = 20_000  # words
MOST_ENCODED = 20_000  # words that a sentence encoder reads for a vocabulary, at some 15 ms each

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How words come into a model's joint space.

    Attributes:
        mean: What is subtracted, float32 (R,).
        components: The axes, float32 (D, R).
        settings: What labels.h5 records of its sources and settings.
        unit: Whether the class vectors have unit length; some losses bring them to it.
        digest: Of labels.h5.
    """

    mean: Float32
    components: Float32
    settings: Mapping[str, Any]
    unit: bool = False
    digest: str = ""

    def project(self, raw: NDArray[Any]) -> Float32:
        """Map word vectors of unit length, (M, R), into the joint space, float32 (M, D)."""
        normalize: Normalize = "unit" if self.unit else self.settings["normalize"]
        projected = np.empty((len(raw), len(self.components)), np.float32)
        for start in range(0, len(raw), CHUNK):  # float64 copies of all words of a language take a second to make
            rows = slice(start, start + CHUNK)
            projected[rows] = project(raw[rows], self.mean, self.components, normalize)
        return projected


@dataclass(frozen=True)
class Places:
    """Where vectors are looked for.

    Attributes:
        files: Files that were named; taken by their digest, whatever they are called.
        folders: Searched for files of the recorded names.
    """

    files: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a named file that is not there."""
        for file in self.files:
            if not file.is_file():
                raise SettingError(f"--vectors {file}: no such file")


@dataclass(frozen=True)
class _Named:
    """A source as a recipe records it."""

    name: str
    sha256: str
    extra: str | None = None
    extra_sha256: str | None = None


def of_labels(labels: Artifact) -> Recipe:
    """Return the recipe that a labels artifact records."""
    return Recipe(labels.array("mean"), labels.array("components"), labels.params, digest=labels.digest)


def read_recipe(model: Path, labels: Path | None = None) -> Recipe:
    """Return the recipe of a model's class vectors.

    Args:
        model: model.h5.
        labels: The labels artifact that it was trained with; only for a model that does not carry its recipe.

    Raises:
        SettingError: A softmax model has no class vectors.
        ArtifactError: The model carries no recipe, and there is no labels artifact or one of other vectors.
    """
    with open_artifact(model, "model", verify=False) as artifact:
        if "vectors" not in artifact:
            raise SettingError(
                f"{model}: a softmax model has no class vectors, so it knows no other words; train another"
            )
        unit = bool(np.allclose(np.linalg.norm(artifact.array("vectors"), axis=1), 1, atol=1e-4))
        if "recipe_mean" in artifact:
            mean, components = artifact.array("recipe_mean"), artifact.array("recipe_components")
            return Recipe(mean, components, artifact.params["recipe"], unit, artifact.inputs["labels"])
        wanted = artifact.inputs.get("labels")
    if labels is None:
        raise ArtifactError(
            f"{model}: was trained by an earlier zsseg and does not record how its class vectors were made; "
            "give the labels artifact that it was trained with, --labels labels.h5"
        )
    with open_artifact(labels, "labels") as found:
        if found.digest != wanted:
            raise ArtifactError(
                f"{labels}: is not the labels artifact that {model} was trained with; name that one with --labels"
            )
        recipe = of_labels(found)
        return Recipe(recipe.mean, recipe.components, recipe.settings, unit, recipe.digest)


def embed_words(names: Sequence[str], recipe: Recipe, places: Places) -> Float32:
    """Return the vectors of words in the joint space, as `embed-labels` would have made them, float32 (M, D).

    Args:
        names: Class names, M of them.
        recipe: How.
        places: Where word vectors are looked for.

    Raises:
        SettingError: A source of the recipe is not there, or knows none of a name's spellings.
        DataError: A source is damaged.
    """
    settings = recipe.settings
    lexicon = wordnet.lexicon(names) if settings.get("retrofit") else None
    blocks = []
    for source in _sources(settings):
        if sentences.is_encoder(source.name):
            blocks.append(_encoded(names, source, settings, places=places, lexicon=lexicon))
        else:
            blocks.append(_looked_up(names, source, places, lexicon))
    return recipe.project(concatenated(blocks))


def frequent_words(count: int | None, recipe: Recipe, places: Places) -> tuple[list[str], Float32]:
    """Return the most frequent words that every source knows, and their vectors in the joint space.

    What is no word (it holds something else than letters, hyphens and underscores) is left out. Words are not
    retrofitted, even where the classes were.

    Args:
        count: How many words, punctuation and numbers counted; None: all.
        recipe: How they come into the joint space.
        places: Where word vectors are looked for.

    Returns:
        The words, V of them, most frequent first, and float32 (V, D).

    Raises:
        SettingError: A source of the recipe is not there; or there are too many words for a sentence encoder.
        DataError: A source is damaged.
    """
    sources = _sources(recipe.settings)
    encoders = [source for source in sources if sentences.is_encoder(source.name)]
    if encoders and (count is None or count > MOST_ENCODED):
        raise SettingError(
            f"--vocabulary {count or 'all'}: {encoders[0].name} reads every word by itself, expected at most "
            f"{MOST_ENCODED:,}; give --vocabulary 2000"
        )
    vocabularies = [_open(each, places, (), count or EVERY) for each in sources if each not in encoders]
    if not vocabularies:
        vocabularies.append(read_vocabulary(WHEEL, wanted=(), frequent=count or EVERY))
    first, *others = (vocabulary.frequent(count or EVERY)[0] for vocabulary in vocabularies)
    shared = set(first).intersection(*others)
    words = [word for word in first if word in shared and _is_word(word)]
    if recipe.settings.get("retrofit"):
        log.info("--vocabulary: its words are not drawn towards their neighbours in WordNet, as the classes were")
    blocks: dict[str, NDArray[Any]]
    blocks = {source.name: _rows(words, each) for source, each in zip(_lexical(sources), vocabularies, strict=False)}
    for source in encoders:
        blocks[source.name] = _encoded(words, source, recipe.settings, places=places, lexicon=None)
    raw = concatenated([blocks[source.name] for source in sources])
    kept = np.atleast_1d(np.isfinite(raw).all(axis=1))
    return [word for word, keep in zip(words, kept, strict=True) if keep], recipe.project(raw[kept])


def _sources(settings: Mapping[str, Any]) -> list[_Named]:
    """Return the sources of a recipe; an early labels.h5 records one source as a text."""
    names, shas, extras, extra_shas = (
        [value] if isinstance(value := settings.get(key) or [], str) else list(value)
        for key in ("vectors", "sha256", "vocabulary", "vocabulary_sha256")
    )
    more = iter(zip(extras, extra_shas, strict=False))
    found = []
    for name, sha256 in zip(names, shas, strict=True):
        extra = (None, None) if sentences.is_encoder(name) else next(more, (None, None))
        found.append(_Named(name, sha256, *extra))
    return found


def _lexical(sources: Sequence[_Named]) -> list[_Named]:
    return [source for source in sources if not sentences.is_encoder(source.name)]


def _looked_up(names: Sequence[str], source: _Named, places: Places, lexicon: wordnet.Lexicon | None) -> Float64:
    """Return names' vectors by a source of word vectors, of unit length, float64 (M, R)."""
    graph = {token for word in (() if lexicon is None else lexicon.words) for token in phrases(word)}
    wanted = {token for name in names for choice in choices(name) for token in choice}
    vocabulary = _open(source, places, wanted | graph, 0)
    raw = np.stack([word_vector(tokens, vocabulary) for tokens in _tokens(names, vocabulary)])
    return raw if lexicon is None else retrofitted(raw, lexicon, known(lexicon, vocabulary), name=source.name)[0]


def _tokens(names: Sequence[str], vocabulary: Vocabulary) -> list[tuple[str, ...]]:
    """Return the tokens of every name; of several that are unknown all are named in one message."""
    found, wrong = [], []
    for name in names:
        try:
            found.append(choose_tokens(name, vocabulary, advice="write it otherwise"))
        except SettingError as error:
            wrong.append(str(error))
    if len(wrong) > 1:
        wrong = [text.removesuffix("; write it otherwise") for text in wrong[:-1]] + wrong[-1:]
    if wrong:
        raise SettingError("; ".join(wrong))
    return found


def _rows(words: Sequence[str], vocabulary: Vocabulary) -> Float32:
    """Return words' vectors at unit length, float32 (V, R); NaN where there is no direction."""
    places = np.fromiter((vocabulary.rows[word] for word in words), dtype=np.int64, count=len(words))
    vectors = np.asarray(vocabulary.vectors[places], dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        rows: Float32 = vectors / lengths
    return rows


def _encoded(
    names: Sequence[str],
    source: _Named,
    settings: Mapping[str, Any],
    *,
    places: Places,
    lexicon: wordnet.Lexicon | None,
) -> Float64:
    """Return names' vectors by a sentence encoder, of unit length, float64 (M, R)."""
    weights = settings.get("text_weights")
    file = None if weights is None else _find(weights, source.sha256, places)
    encoder = sentences.read_encoder(source.name, None if file is None else str(file))
    _check_digest(encoder.name, encoder.sha256, source.sha256)
    raw = sentences.encode_words(encoder, [sentences.phrase(name) for name in names], settings["prompts"])
    if lexicon is None:
        return raw
    spelt = [word.replace("_", " ") for word in lexicon.words]
    around = dict(zip(lexicon.words, sentences.encode_words(encoder, spelt, settings["prompts"]), strict=True))
    return retrofitted(raw, lexicon, around, name=source.name)[0]


def _open(source: _Named, places: Places, wanted: Collection[str], frequent: int) -> Vocabulary:
    """Read a source of word vectors, with the words of its second file where the recipe has one."""
    own = _read(source.name, source.sha256, places, wanted=wanted, frequent=frequent)
    if source.extra is None or source.extra_sha256 is None:
        return own
    return joined(own, _read(source.extra, source.extra_sha256, places, wanted=wanted, frequent=frequent))


def _read(name: str, sha256: str, places: Places, *, wanted: Collection[str], frequent: int) -> Vocabulary:
    if name == WHEEL:
        vocabulary = read_vocabulary(WHEEL, wanted=wanted, frequent=frequent)
    else:
        vocabulary = read_file(_find(name, sha256, places), wanted=wanted, frequent=frequent, name=name)
    _check_digest(name, vocabulary.sha256, sha256)
    return vocabulary


def _check_digest(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise SettingError(
            f"{name}: has digest {found[:12]}…, expected {expected[:12]}… with which the model was trained; "
            "name that file with --vectors FILE, or install that version"
        )


def _find(name: str, sha256: str, places: Places) -> Path:
    """Return the file of a recorded digest that was named, else one of the recorded name.

    Raises:
        SettingError: There is none; the message says which file it is, and how to name it.
    """
    for file in places.files:
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() == sha256:
                return file
    folders = (*places.folders, cache_folder() / "vectors")
    beside = [folder / file for folder in folders for file in (name, VECTOR_FILES.get(name, name))]
    found = next((file for file in beside if file.is_file()), None)
    if found is not None:
        return found
    fetch = f"run `zsseg fetch-data {'glove-6b' if 'glove' in name else name}`, or " if name in VECTOR_FILES else ""
    raise SettingError(
        f"{name}: the model was trained with this file (sha256 {sha256[:12]}…), which is not here; {fetch}name it with "
        "--vectors FILE"
    )


def _is_word(token: str) -> bool:
    return token.replace("-", "").replace("_", "").isalpha()
