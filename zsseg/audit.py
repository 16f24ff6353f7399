"""What class vectors promise before any training: hubs, and whether sources agree which classes are alike.

Conventions: likeness is the cosine between class vectors. The *k-occurrence* N_k of a class is how many other classes
have it among their k nearest; a *hub* has a large one, and NNE then gives it pixels of many classes. The skewness of
N_k over the classes, E[(N_k - mean)³] / std³, tells how much of that there is: 0 for none, above 1 for a lot. *Rank
agreement* is Spearman's correlation of two sources' likenesses over all pairs of classes, -1 to 1.

References:
    M. Radovanović et al., "Hubs in Space", JMLR 2010.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

OCCURRENCES = (1, 3)  # the k of N_k

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Audit:
    """The report of `embed-labels --audit`.

    Attributes:
        names: Class names, C of them.
        occurrence: k -> N_k of each class.
        skewness: k -> skewness of N_k; NaN where all are equal.
        agreement: (one, other, Spearman's rank correlation) of every two sources, class vectors and WordNet among them;
            NaN where there are fewer than three pairs or no differences.
    """

    names: tuple[str, ...]
    occurrence: Mapping[int, tuple[int, ...]]
    skewness: Mapping[int, float]
    agreement: tuple[tuple[str, str, float], ...]


def audit(names: Sequence[str], vectors: NDArray[Any], likenesses: Mapping[str, Float64]) -> Audit:
    """Return the report on class vectors.

    Args:
        names: Class names, C of them.
        vectors: Class vectors, (C, D).
        likenesses: Source -> float64 (C, C) likeness of classes, NaN where a source says nothing.
    """
    own = cosines(vectors)
    sources = {"class vectors": own, **likenesses}
    counts = {k: occurrence(own, k) for k in OCCURRENCES}
    return Audit(
        tuple(names),
        {k: tuple(int(each) for each in of_k) for k, of_k in counts.items()},
        {k: skewness(of_k) for k, of_k in counts.items()},
        tuple((one, other, rank_agreement(sources[one], sources[other])) for one, other in combinations(sources, 2)),
    )


def cosines(vectors: NDArray[Any]) -> Float64:
    """Return the cosines of all pairs of rows, float64 (C, C); 0 with a zero row."""
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1.0)
    result: Float64 = unit @ unit.T
    return result


def occurrence(likeness: Float64, k: int) -> NDArray[np.int64]:
    """Return N_k of each class, int64 (C,).

    Args:
        likeness: float64 (C, C), larger is more alike; ties go to the lower index.
        k: How many nearest others of each class count; all of them where there are fewer.
    """
    others = likeness.copy()
    np.fill_diagonal(others, -np.inf)
    nearest = np.argsort(-others, axis=1, kind="stable")[:, : min(k, len(likeness) - 1)]
    return np.bincount(nearest.ravel(), minlength=len(likeness)).astype(np.int64)


def skewness(counts: NDArray[np.int64]) -> float:
    """Return E[(N - mean)³] / std³, or NaN where all are equal."""
    from scipy.stats import skew  # 0.5 s

    return float(skew(counts)) if counts.size and np.ptp(counts) else float("nan")


def rank_agreement(one: Float64, other: Float64) -> float:
    """Return Spearman's correlation of two (C, C) likenesses over the pairs of classes that both know, or NaN."""
    from scipy.stats import spearmanr

    upper = np.triu_indices(len(one), k=1)
    left, right = one[upper], other[upper]
    known = np.isfinite(left) & np.isfinite(right)
    left, right = left[known], right[known]
    if left.size < 3 or not np.ptp(left) or not np.ptp(right):
        return float("nan")
    return float(spearmanr(left, right).statistic)


def as_json(report: Audit) -> dict[str, Any]:
    """Return the report as JSON values, NaN as null."""
    return {
        "occurrence": {str(k): dict(zip(report.names, counts, strict=True)) for k, counts in report.occurrence.items()},
        "skewness": {str(k): _finite(value) for k, value in report.skewness.items()},
        "agreement": [{"of": [one, other], "spearman": _finite(rho)} for one, other, rho in report.agreement],
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
