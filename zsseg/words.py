"""From a name to its word vector, and from word vectors into the joint space: `embed-labels` and open vocabulary.

From a name to its word vector. Tried in this order:
    1. the name as one token of the vocabulary: as typed, lower-case, and for a name of several words (split at space,
       "_" and "-"; nothing is stripped) also with its words joined by "_", by a space, by "-" and by nothing;
    2. the mean of the vectors of its words, every one of which must be known, recorded as "dining+table";
    3. the same two steps for each of the name's aliases (`classes.ALIASES`), in their order.
Rare tokens are often typos or glued words with a meaningless vector ("hotdog" in GloVe is near "falafel" and
"brawler"), so a choice that needs a word beyond the vocabulary's `vectors.COMMON` most frequent ones is passed over
while any later choice is left; a phrase token, joined by "_", " " or "-", was put there on purpose and is exempt.
No vocabulary word at all is an error.

References:
    M. Faruqui et al., "Retrofitting Word Vectors to Semantic Lexicons", NAACL 2015.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import wordnet
from zsseg.classes import ALIASES
from zsseg.config import Normalize
from zsseg.errors import DataError, SettingError
from zsseg.vectors import COMMON, Vocabulary

logger = logging.getLogger(__name__)

Float64 = NDArray[np.float64]


def choose_tokens(
    name: str, vocabulary: Vocabulary, *, advice: str = "rename the class in classes.txt, or pass other --vectors"
) -> tuple[str, ...]:
    """Return the vocabulary tokens that stand for a class name; the module docstring states the rule.

    Args:
        name: A class name.
        vocabulary: Where its words are looked up.
        advice: What a message for an unknown name says to do.

    Raises:
        SettingError: None is known; the message names close spellings.
    """
    known = [choice for choice in choices(name) if all(token in vocabulary for token in choice)]
    if not known:
        raise _unknown(name, vocabulary, advice)
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


def concatenated(blocks: Sequence[Float64]) -> Float64:
    """Return blocks of unit rows, (M, R_1), (M, R_2), ..., side by side, at unit length."""
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1) / np.sqrt(len(blocks))


def choices(name: str) -> Iterator[tuple[str, ...]]:
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


def phrases(word: str) -> Iterator[str]:
    """Yield the single tokens that may stand for a word of WordNet, such as motor_vehicle."""
    parts = _split(word)
    for glue in ("_", " ", "-", "") if len(parts) > 1 else ("",):
        yield from dict.fromkeys((glue.join(parts), glue.join(parts).lower()))


def _split(name: str) -> list[str]:
    return [part for part in re.split(r"[\s_-]+", name) if part]


def _is_doubtful(token: str, vocabulary: Vocabulary) -> bool:
    return vocabulary.rank(token) >= COMMON and len(_split(token)) == 1


def _unknown(name: str, vocabulary: Vocabulary, advice: str) -> SettingError:
    missing = next((part for part in _split(name.lower()) if part not in vocabulary), name)
    return SettingError(
        f"class {name!r}: the word {missing!r} is not among the {vocabulary.size:,} of {vocabulary.name}"
        f"{vocabulary.close_spellings(missing)}; {advice}"
    )


def word_vector(tokens: Sequence[str], vocabulary: Vocabulary) -> Float64:
    """Return the mean of the tokens' unit vectors, scaled to unit length, float64 (R,)."""
    mean = np.mean([vocabulary.unit(token) for token in tokens], axis=0)
    length = float(np.linalg.norm(mean))
    if length == 0:
        raise DataError(f"{vocabulary.name}: the vectors of {' and '.join(tokens)} cancel out; use other --vectors")
    unit: Float64 = mean / length
    return unit


def known(lexicon: wordnet.Lexicon, *vocabularies: Vocabulary | None) -> dict[str, Float64]:
    """Return the unit vectors of the graph's words that a vocabulary has, the first ones first."""
    found: dict[str, Float64] = {}
    for vocabulary in filter(None, vocabularies):
        spelt = {word: next((token for token in phrases(word) if token in vocabulary), None) for word in lexicon.words}
        for word, token in spelt.items():
            if token is not None and word not in found:
                found[word] = vocabulary.unit(token)
    return found


def retrofitted(
    raw: Float64, lexicon: wordnet.Lexicon, known: Mapping[str, Float64], *, name: str
) -> tuple[Float64, dict[str, int]]:
    """Return class vectors retrofitted to the part of the graph whose words are known, and the size of that part."""
    places = [place for place, word in enumerate(lexicon.words) if word in known]
    node = {len(raw) + place: len(raw) + row for row, place in enumerate(places)}
    node |= {index: index for index in range(len(raw))}
    edges = [(node[one], node[two]) for one, two in lexicon.edges if one in node and two in node]
    rows = [known[lexicon.words[place]] for place in places]
    logger.info("%s knows %d of WordNet's %d words around the classes", name, len(places), len(lexicon.words))
    moved = wordnet.retrofit(np.concatenate([raw, rows]) if rows else raw, edges)[: len(raw)]
    return normalise(moved, "unit"), {"retrofit_words": len(places), "retrofit_edges": len(edges)}
