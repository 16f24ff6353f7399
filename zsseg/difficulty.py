"""How hard each unseen class will be, told before anything is trained: `make-split --audit`.

An unseen class can be found only through what it shares with seen classes, so the first question is how near the
nearest one is. Only those seen classes count that training shows, and no background: a word without a photo teaches
nothing, and background is no object. Likeness is the cosine of class vectors in the joint space, where NNE searches,
and beside it WordNet's Wu-Palmer similarity.

The verdict is the cosine's alone: near from `NEAR` on, far below `FAR`. These bounds come from word2vec, as it is, and
VOC's classes: the loners among the presets' unseen classes have 0.15 (tvmonitor, nearest to diningtable), 0.24 (bottle,
chair) and up to 0.32 (pottedplant), those of zs3-2 have 0.61 (cow) and 0.63 (motorbike), and the mean over a preset
falls from 0.62 (zs3-2) over 0.50 (zs3-6) to 0.43 (spnet). Other vectors have other levels: compare within one file.

References:
    Z. Wu and M. Palmer, "Verbs Semantics and Lexical Selection", ACL 1994.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zsseg import wordnet
from zsseg.audit import cosines
from zsseg.classes import BACKGROUND
from zsseg.errors import SettingError

Verdict = Literal["near", "between", "far"]
NEAR, FAR = 0.50, 0.33

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prospect:
    """What can be expected of one unseen class.

    Attributes:
        name: The class.
        nearest: The seen class with the nearest class vector; None where training shows no seen object.
        cosine: To that, -1 to 1; NaN without one.
        nearest_images: Training images that show `nearest`.
        relative: The seen class that is nearest in WordNet; None where WordNet says nothing.
        wu_palmer: To that, 0 to 1; NaN without one.
        verdict: "near", "between" or "far"; the module docstring has the bounds.
        hidden_images: Training images in which pixels of the class are hidden.
        hidden_pixels: How many those are.
        imagenet: The ImageNet-1k classes that are of this class, which ImageNet weights have seen; None: not known.
    """

    name: str
    nearest: str | None
    cosine: float
    nearest_images: int
    relative: str | None
    wu_palmer: float
    verdict: Verdict
    hidden_images: int
    hidden_pixels: int
    imagenet: tuple[str, ...] | None


def prospects(
    names: Sequence[str],
    unseen: Sequence[int],
    vectors: NDArray[Any],
    *,
    images: Sequence[int],
    hidden_images: Sequence[int],
    hidden_pixels: Sequence[int],
    folder: Path | None = None,
) -> tuple[Prospect, ...]:
    """Return what can be expected of each unseen class.

    Args:
        names: Class names, C of them.
        unseen: Ids of the unseen classes.
        vectors: Class vectors, (C, D).
        images: Training images that show each class to training, (C,).
        hidden_images: Training images in which each class is hidden, (C,).
        hidden_pixels: Training pixels of each class that are hidden, (C,).
        folder: A WordNet database; None: see `wordnet.hierarchy`. With none at hand, WordNet's part is left empty.

    Raises:
        SettingError: The folder is no WordNet database.
        DataError: The database is damaged.
    """
    seen = [
        index
        for index, name in enumerate(names)
        if index not in unseen and images[index] > 0 and name.lower() != BACKGROUND
    ]
    cosine, wu_palmer = cosines(vectors), _wu_palmer(names, folder)
    imagenet = wordnet.imagenet_overlap([names[index] for index in unseen], folder)
    found = []
    for index in unseen:
        nearest, relative = _largest(cosine[index], seen), _largest(wu_palmer[index], seen)
        value = math.nan if nearest is None else float(cosine[index, nearest])
        found.append(
            Prospect(
                name=names[index],
                nearest=None if nearest is None else names[nearest],
                cosine=value,
                nearest_images=0 if nearest is None else int(images[nearest]),
                relative=None if relative is None else names[relative],
                wu_palmer=math.nan if relative is None else float(wu_palmer[index, relative]),
                verdict=verdict(value),
                hidden_images=int(hidden_images[index]),
                hidden_pixels=int(hidden_pixels[index]),
                imagenet=imagenet[names[index]],
            )
        )
    return tuple(found)


def verdict(cosine: float) -> Verdict:
    """Return near from `NEAR` on, far below `FAR` or without a seen class (NaN), else between."""
    if cosine >= NEAR:
        return "near"
    return "between" if cosine >= FAR else "far"


def as_json(report: Sequence[Prospect]) -> list[dict[str, Any]]:
    """Return the report as JSON values, NaN as null."""
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(each).items()}
        for each in report
    ]


def _wu_palmer(names: Sequence[str], folder: Path | None) -> NDArray[np.float64]:
    try:
        return wordnet.similarity(names, folder)
    except SettingError as error:
        if folder is not None:
            raise
        log.info("audit without WordNet's similarity: %s", error)
        return np.full((len(names), len(names)), np.nan)


def _largest(likeness: NDArray[np.float64], candidates: Sequence[int]) -> int | None:
    """Return the candidate with the largest likeness, the first of equals; None where none has one."""
    known = [index for index in candidates if not math.isnan(likeness[index])]
    return max(known, key=lambda index: likeness[index]) if known else None
