"""The seen–unseen curve from one pass over the photos. NumPy only.

Whatever is subtracted from the scores of all seen classes, a pixel's winner is either its best seen or its best unseen
class, and which of the two depends on one number, the gap: best seen score − best unseen score. With γ subtracted the
seen one wins where gap > γ. So histograms over the gap, filled once, hold the result of every γ:
an IoU needs hits, predictions and true pixels, and the first two are sums over the bins above γ for a seen class,
over the bins up to γ for an unseen one.

Conventions:
    γ = 0 is the model as it was scored, with its calibration. Bin k holds gaps in (edge k−1, edge k]; the outermost
    bins are open. The edges are unit/8 · sinh(k · step), symmetric and with 0 among them: 0.4 % of the unit apart near
    0, 3 % at one unit, and they reach 64 units. The unit is the largest ½‖w_i − w_j‖² between two class vectors, the
    gap of a pixel embedding that sits on one of them; where distances are compared by their ratio, it is 1.
    The counts are additive over pixels, and their size does not grow with the number of photos.

References:
    Chao et al., "An Empirical Study and Analysis of Generalized Zero-Shot Learning for Object Recognition in the
    Wild", ECCV 2016: calibrated stacking, the seen–unseen curve and the area under it (AUSUC). Here its axes are mIoU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsseg.artifacts import Artifact
from zsseg.classes import VOID

BINS = 512
REACH = 64  # units
LINEAR = 8  # the edges are nearly evenly spaced up to a LINEAR-th of the unit
_MIDDLE = BINS // 2 - 1  # index of the edge 0
_STEP = float(np.arcsinh(REACH * LINEAR)) / _MIDDLE

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Seen, unseen and harmonic mIoU against what is subtracted from the scores of seen classes.

    Attributes:
        gamma: Float64 (G,), ascending.
        seen: mIoU over seen classes, float64 (G,).
        unseen: mIoU over unseen classes, float64 (G,).
        harmonic: Their harmonic mean, float64 (G,).
    """

    gamma: Floats
    seen: Floats
    unseen: Floats
    harmonic: Floats

    @property
    def zero(self) -> int:
        """Index of the γ that is nearest to 0: the model as it was scored."""
        return int(np.abs(self.gamma).argmin())

    @property
    def oracle(self) -> int:
        """Index of the best harmonic mIoU, chosen with the labels that are scored: no result, but a bound."""
        return int(np.nanargmax(self.harmonic)) if np.isfinite(self.harmonic).any() else self.zero

    @property
    def area(self) -> float:
        """Area under seen against unseen mIoU, 0 to 1; NaN where there is no curve.

        Trapezoids between the points that no other γ beats in both: for a γ so large that unseen classes flood the
        seen ones the unseen mIoU falls again, and that part encloses nothing. Left of the first point the seen
        mIoU stays what it is there.
        """
        if not (np.isfinite(self.seen) & np.isfinite(self.unseen)).all():
            return float("nan")
        order = np.lexsort((self.seen, self.unseen))
        seen, unseen = self.seen[order], self.unseen[order]
        best_beyond = np.append(np.maximum.accumulate(seen[::-1])[::-1][1:], -1.0)
        seen, unseen = seen[seen > best_beyond], unseen[seen > best_beyond]
        return float(seen[0] * unseen[0] + (np.diff(unseen) * (seen[1:] + seen[:-1]) / 2).sum())


def gap_unit(vectors: NDArray[np.float32]) -> float:
    """Return the largest ½‖w_i − w_j‖² between two class vectors, (C, D); 1 where all are the same."""
    squares = np.square(vectors, dtype=np.float64).sum(axis=1)
    distances = squares[:, None] + squares - 2 * vectors.astype(np.float64) @ vectors.T
    return float(distances.max() / 2) if distances.max() > 0 else 1.0


def gap_edges(unit: float) -> Floats:
    """Return the edges between the bins, float64 (BINS − 1,), ascending."""
    edges: Floats = unit / LINEAR * np.sinh((np.arange(BINS - 1) - _MIDDLE) * _STEP)
    return edges


def gap_bins(gaps: NDArray[np.float32], unit: float) -> NDArray[np.int16]:
    """Return the bin of each gap, of the same shape, 0 to BINS − 1; ±inf fall into the outermost ones."""
    places = np.ceil(np.arcsinh(gaps * np.float32(LINEAR / unit)) * np.float32(1 / _STEP)) + np.float32(_MIDDLE)
    bins: NDArray[np.int16] = np.clip(places, 0, BINS - 1).astype(np.int16)
    return bins


def count_gaps(
    truth: NDArray[np.uint8],
    best_seen: NDArray[np.uint8],
    best_unseen: NDArray[np.uint8],
    bins: NDArray[np.int16],
    *,
    classes: int,
    size: int = BINS,
    bincount: Callable[..., NDArray[np.int64]] = np.bincount,
) -> Counts:
    """Count pixels by their best class and their gap.

    Args:
        truth: Label map of any shape, class ids, 255 = void (not counted).
        best_seen: The best seen class of each pixel, of the same shape.
        best_unseen: The best unseen class, likewise.
        bins: The bin of each pixel's gap, likewise.
        classes: How many classes, C.
        size: How many bins, B.
        bincount: NumPy's, or what does the same with the same `minlength`.

    Returns:
        int64 (4, C, B): hits by best seen class, pixels by best seen class, and the same two by best unseen class.
    """
    counts = np.empty((4, classes, size), dtype=np.int64)
    cells = 2 * classes * (size + 1)  # void pixels get a bin of their own, the last
    small = np.dtype(np.int16 if cells <= 2**15 else np.int32).type
    places = np.where(truth == VOID, small(size), bins)
    for plane, best in ((0, best_seen), (2, best_unseen)):
        keys = best.astype(small)
        keys += (truth == best) * small(classes)
        keys *= small(size + 1)
        keys += places
        missed, hit = bincount(keys.ravel(), minlength=cells).reshape(2, classes, size + 1)[:, :, :size]
        counts[plane], counts[plane + 1] = hit, missed + hit
    return counts


def seen_unseen_curve(
    counts: Counts,
    edges: Floats,
    truth: Counts,
    *,
    seen: Sequence[int],
    unseen: Sequence[int],
    left_out: Collection[int] = (),
    absent_zero: bool = False,
) -> Curve:
    """Derive the curve, one point for each edge.

    Args:
        counts: What `count_gaps` gives, summed over photos, int64 (4, C, B).
        edges: Float64 (B − 1,), ascending.
        truth: True pixels of each class, int64 (C,).
        seen: Ids of the seen classes.
        unseen: Ids of the unseen classes.
        left_out: Ids of classes kept out of the means.
        absent_zero: As of `metrics.score`.
    """
    below = counts.cumsum(axis=2)[:, :, :-1]  # of the bins up to each edge
    above = counts.sum(axis=2, keepdims=True) - below
    hits = np.where(np.isin(np.arange(len(truth)), list(unseen))[:, None], below[2], above[0]).astype(np.float64)
    predicted = np.where(np.isin(np.arange(len(truth)), list(unseen))[:, None], below[3], above[1])
    union = truth[:, None] + predicted - hits
    empty = np.full(union.shape, 0.0 if absent_zero else np.nan)
    iou = np.divide(hits, union, out=empty, where=union > 0)
    means = [_means(iou[[index for index in ids if index not in left_out]]) for ids in (seen, unseen)]
    total = means[0] + means[1]
    twice = 2 * means[0] * means[1]
    harmonic = np.divide(twice, total, out=np.where(np.isnan(total), np.nan, 0.0), where=total > 0)
    return Curve(np.asarray(edges, dtype=np.float64), means[0], means[1], harmonic)


def read_curve(scores: Artifact, *, left_out: Collection[int] = ()) -> Curve | None:
    """Derive the curve of an open scores artifact; None where it holds none."""
    if "gap_counts" not in scores:
        return None
    return seen_unseen_curve(
        scores.array("gap_counts"),
        scores.array("gap_edges"),
        scores.array("confusion").sum(axis=1),
        seen=scores.array("seen").tolist(),
        unseen=scores.array("unseen").tolist(),
        left_out=left_out,
        absent_zero=counts_absent_as_zero(scores),
    )


def counts_absent_as_zero(scores: Artifact) -> bool:
    """Return whether the protocol of a scores artifact counts a class without truth and prediction as 0."""
    protocol = scores.params.get("protocol")
    return isinstance(protocol, dict) and protocol.get("name") == "zs3"


def _means(iou: Floats) -> Floats:
    """Return the mean over classes of each column without its NaN, NaN where it has nothing else."""
    known = ~np.isnan(iou)
    total, count = np.where(known, iou, 0.0).sum(axis=0), known.sum(axis=0)
    means: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means
