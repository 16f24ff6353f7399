"""embed-labels: map class names into the joint space, by word vectors and PCA.

From a name to its word vector. Tried in this order:
    1. the name as one token of the vocabulary: as typed, lower-case, and for a name of several words (split at space,
       "_" and "-"; nothing is stripped) also with its words joined by "_", by a space, by "-" and by nothing;
    2. the mean of the vectors of its words, every one of which must be known, recorded as "dining+table";
    3. the same two steps for each of the name's aliases (`classes.ALIASES`), in their order.
Rare tokens are often typos or glued words with a meaningless vector ("hotdog" in GloVe is near "falafel" and
"brawler"), so a choice that needs a word beyond the vocabulary's `vectors.COMMON` most frequent ones is passed over
while any later choice is left; a phrase token, joined by "_", " " or "-", was put there on purpose and is exempt.
No vocabulary word at all is an error.

From word vectors to class vectors. Every vector is first scaled to unit length (a word's length tells its frequency
rather than its meaning), a mean of several words again after averaging. The PCA is fitted on the *population*: the
source's `fit_words` most frequent words, and with `vocabulary` those of a second source besides, each word once.
These are words of a language, not labels of images: the population depends on neither the classes nor which of them
are unseen. Then

    vectors = normalise((raw - mean) @ components.T)

where `mean` is the population's mean, or zeros with `center=False` (the axes are those of the centred population either
way), and `normalise` scales rows to unit length or, with "none", leaves them.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import artifacts
from zsseg.classes import ALIASES
from zsseg.config import EmbedConfig, Normalize
from zsseg.errors import DataError, SettingError
from zsseg.vectors import COMMON, Vocabulary, read_vocabulary

logger = logging.getLogger(__name__)

_NEAREST = 3  # how many neighbours of each class the summary names
_SAME = 1e-6  # class vectors that differ by less in every dimension are the same to NNE
_FLAT = 1e-6  # PCA axes whose singular value is below this share of the first only hold rounding errors

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class EmbedSummary:
    """What `embed_labels` wrote.

    Attributes:
        path: The artifact.
        names: Class names in index order.
        words: The vocabulary tokens behind each name, joined by "+".
        nearest: For each class the closest other classes, closest first, with their cosine in the joint space.
        dim: Number of dimensions D of the joint space.
        source: Name of the word-vector source.
        population: What the PCA was fitted on, in words.
        explained: Share of the population's variance that the D axes keep, 0 to 1.
    """

    path: Path
    names: tuple[str, ...]
    words: tuple[str, ...]
    nearest: tuple[tuple[tuple[str, float], ...], ...]
    dim: int
    source: str
    population: str
    explained: float


@dataclass(frozen=True)
class _Population:
    """Unit word vectors, float64 (M, R), and where they are from; `digests` is what the artifact records."""

    vectors: Float64
    text: str
    digests: dict[str, str]


def embed_labels(names: Sequence[str], out: Path, config: EmbedConfig, *, force: bool = False) -> EmbedSummary:
    """Write the `labels` artifact: each class's vector in a joint space of `config.dim` dimensions.

    Args:
        names: Class names in index order.
        out: The artifact to write.
        config: Where the word vectors come from, and how they are reduced.
        force: Whether an existing artifact may be replaced.

    Raises:
        SettingError: A name has no known word, or a setting cannot be met.
        DataError: A word-vector file cannot be used.
        ArtifactError: The output is refused or cannot be written.
    """
    _check(names, config)
    artifacts.check_output(out, force=force)
    wanted = {token for name in names for choice in _choices(name) for token in choice}
    source = read_vocabulary(config.vectors, wanted=wanted, frequent=config.fit_words)
    tokens = [choose_tokens(name, source) for name in names]
    raw = np.stack([_word_vector(choice, source) for choice in tokens])
    population = _population(source, config)
    mean, components, explained = _fit(population, config)
    vectors = project(raw, mean, components, normalize="none")
    _check_directions(names, vectors, config)
    vectors = normalise(vectors, config.normalize)
    words = ["+".join(choice) for choice in tokens]
    _warn_of_twins(names, words, vectors)
    with artifacts.create(out, "labels", params=_params(config, source, population), inputs={}, force=force) as writer:
        fields = {
            "names": list(names), "words": words, "vectors": vectors, "raw": raw,
            "mean": mean, "components": components, "explained_variance": explained,
        }  # fmt: skip
        for field, values in fields.items():
            writer.put(field, values)
    return EmbedSummary(
        out, tuple(names), tuple(words), nearest_classes(names, vectors), config.dim,
        source.name, population.text, float(explained.sum()),
    )  # fmt: skip


def choose_tokens(name: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the vocabulary tokens that stand for a class name; the module docstring states the rule.

    Raises:
        SettingError: None is known; the message names close spellings.
    """
    known = [choice for choice in _choices(name) if all(token in vocabulary for token in choice)]
    if not known:
        raise _unknown(name, vocabulary)
    return next((choice for choice in known if not any(_is_doubtful(token, vocabulary) for token in choice)), known[0])


def project(raw: NDArray[Any], mean: NDArray[Any], components: NDArray[Any], normalize: Normalize) -> Float64:
    """Map word vectors into the joint space: normalise((raw - mean) @ components.T).

    Args:
        raw: Word vectors of unit length, (C, R).
        mean: What is subtracted, (R,).
        components: PCA axes, (D, R), rows of unit length.
        normalize: "unit" scales each row to unit length, a zero row stays; "none" leaves the rows.

    Returns:
        float64 (C, D).
    """
    centred = np.asarray(raw, dtype=np.float64) - np.asarray(mean, dtype=np.float64)
    return normalise(centred @ np.asarray(components, dtype=np.float64).T, normalize)


def normalise(vectors: Float64, normalize: Normalize) -> Float64:
    """Return (C, D) rows at unit length, or as they are with "none"; a zero row stays zero."""
    if normalize == "none":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Float64 = vectors / np.where(lengths > 0, lengths, 1.0)
    return scaled


def nearest_classes(names: Sequence[str], vectors: NDArray[Any]) -> tuple[tuple[tuple[str, float], ...], ...]:
    """Return each class's three closest other classes and their cosine, closest first, ties in index order.

    Args:
        names: Class names, C of them.
        vectors: Class vectors, (C, D).
    """
    unit = normalise(np.asarray(vectors, dtype=np.float64), "unit")
    cosines = unit @ unit.T
    nearest = []
    for index, row in enumerate(cosines):
        others = [other for other in np.argsort(-row, kind="stable") if other != index][:_NEAREST]
        nearest.append(tuple((names[other], float(row[other])) for other in others))
    return tuple(nearest)


def _check(names: Sequence[str], config: EmbedConfig) -> None:
    if not names:
        raise SettingError("no class names, expected at least one; give the data's classes.txt one name a line")
    if config.dim < 1:
        raise SettingError(f"--dim {config.dim}: expected 1 or more; 50 is the default")
    if config.fit_words < 2:
        raise SettingError(f"--fit-words {config.fit_words}: expected 2 or more, a PCA needs several words; try 20000")


def _choices(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the token combinations that may stand for a name, preferred ones first."""
    key = " ".join(_split(name.lower()))
    aliases = ALIASES.get(name.lower()) or ALIASES.get(key) or ALIASES.get(key.replace(" ", "")) or ()
    for spelling in (name, *aliases):
        variants = tuple(dict.fromkeys((spelling, spelling.lower())))
        for variant in variants:
            parts = _split(variant)
            yield (variant,)
            yield from ((glue.join(parts),) for glue in ("_", " ", "-", "") if len(parts) > 1)
        for variant in variants:
            if len(parts := _split(variant)) > 1:
                yield tuple(parts)


def _split(name: str) -> list[str]:
    return [part for part in re.split(r"[\s_-]+", name) if part]


def _is_doubtful(token: str, vocabulary: Vocabulary) -> bool:
    return vocabulary.rank(token) >= COMMON and len(_split(token)) == 1


def _unknown(name: str, vocabulary: Vocabulary) -> SettingError:
    missing = next((part for part in _split(name.lower()) if part not in vocabulary), name)
    return SettingError(
        f"class {name!r}: the word {missing!r} is not among the {vocabulary.size:,} of {vocabulary.name}"
        f"{vocabulary.close_spellings(missing)}; rename the class in classes.txt, or pass other --vectors"
    )


def _word_vector(tokens: Sequence[str], vocabulary: Vocabulary) -> Float64:
    """Return the mean of the tokens' unit vectors, scaled to unit length, float64 (R,)."""
    mean = np.mean([vocabulary.unit(token) for token in tokens], axis=0)
    length = float(np.linalg.norm(mean))
    if length == 0:
        raise DataError(f"{vocabulary.name}: the vectors of {' and '.join(tokens)} cancel out; use other --vectors")
    unit: Float64 = mean / length
    return unit


def _population(source: Vocabulary, config: EmbedConfig) -> _Population:
    """Return the unit vectors of the words that the PCA is fitted on, each word once."""
    words, vectors = source.frequent(config.fit_words)
    text = _describe(source, len(words))
    digests = {"sha256": source.sha256}
    if config.vocabulary is not None:
        extra = read_vocabulary(config.vocabulary, wanted=(), frequent=config.fit_words)
        if extra.vectors.shape[1] != vectors.shape[1]:
            raise SettingError(
                f"--vocabulary {extra.name}: {extra.vectors.shape[1]} numbers a word, expected {vectors.shape[1]} "
                f"as in {source.name}; give one that was made by the same model"
            )
        extra_words, extra_vectors = extra.frequent(config.fit_words)
        known = set(words)
        new = [row for row, word in enumerate(extra_words) if word not in known]
        vectors = np.concatenate([vectors, extra_vectors[new]])
        text += f" and {_describe(extra, len(extra_words))}"
        digests["vocabulary_sha256"] = extra.sha256
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    kept = lengths > 0
    return _Population(vectors[kept] / lengths[kept, None], text, digests)


def _describe(vocabulary: Vocabulary, count: int) -> str:
    which = f"the {count:,} most frequent" if count < vocabulary.size else f"all {count:,}"
    return f"{which} words of {vocabulary.name}"


def _fit(population: _Population, config: EmbedConfig) -> tuple[Float64, Float64, Float64]:
    """Return the mean to subtract (R,), the axes (D, R), and the share of the variance on each (D,)."""
    from sklearn.decomposition import PCA  # 1.3 s

    words, size = population.vectors.shape
    # the full decomposition is exact and the same every time; scikit-learn settles the axes' signs
    pca = PCA(n_components=min(words, size), svd_solver="full")
    if words > 1:
        pca.fit(population.vectors)
    rank = int((pca.singular_values_ > _FLAT * pca.singular_values_[0]).sum()) if words > 1 else 0
    if config.dim > rank:
        raise SettingError(_too_many_dims(population, config, rank))
    mean = pca.mean_ if config.center else np.zeros(size)
    return mean, pca.components_[: config.dim], pca.explained_variance_ratio_[: config.dim]


def _too_many_dims(population: _Population, config: EmbedConfig, rank: int) -> str:
    words, size = population.vectors.shape
    if rank < size:
        why = f"a PCA fitted on {population.text} ({words:,} words in all) has at most {rank} axes"
        more = "add words of the same model with --vocabulary FILE"
        if words == config.fit_words:
            more = "raise --fit-words"
    else:
        why, more = f"the word vectors have {size} dimensions", "pass longer --vectors"
    largest = f"; use --dim {rank} or less, or {more}" if rank else f"; {more}"
    return f"--dim {config.dim}: {why}{largest}"


def _check_directions(names: Sequence[str], vectors: Float64, config: EmbedConfig) -> None:
    if config.normalize == "none":
        return
    for name, length in zip(names, np.linalg.norm(vectors, axis=1), strict=True):
        if length < _SAME:
            raise SettingError(
                f"class {name!r}: a zero vector after PCA to {config.dim} dimensions, which has no direction; "
                "raise --dim, or use --normalize none"
            )


def _warn_of_twins(names: Sequence[str], words: Sequence[str], vectors: Float64) -> None:
    """Log one warning that names classes which NNE cannot tell apart."""
    twins = [
        f"{names[left]} and {names[right]} ({words[right]})"
        for left in range(len(names))
        for right in range(left + 1, len(names))
        if np.abs(vectors[left] - vectors[right]).max() < _SAME
    ]
    if twins:
        rest = f" and {len(twins) - 3} more pairs" if len(twins) > 3 else ""
        logger.warning("same class vector, nothing can tell them apart: %s%s", "; ".join(twins[:3]), rest)


def _params(config: EmbedConfig, source: Vocabulary, population: _Population) -> dict[str, Any]:
    return {
        **dataclasses.asdict(config),
        "vectors": source.name,
        "vocabulary": None if config.vocabulary is None else Path(config.vocabulary).name,
        "unit_words": True,  # word vectors are scaled to unit length before everything else
        "source_words": source.size,
        "population": population.text,
        "population_words": len(population.vectors),
        **population.digests,
    }
