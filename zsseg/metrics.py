"""Scores of semantic segmentation, all derived from one confusion matrix. NumPy only.

Conventions:
    A confusion matrix is int64 (C, C): rows are the true class, columns the predicted one; void pixels are
    not in it. Matrices of disjoint pixels add up. Every score is a fraction in [0, 1], or NaN where it is
    undefined: a class with neither truth nor prediction has no IoU and is left out of every mean.

Formulas: n_ij pixels of class i predicted as j, t_i = Σ_j n_ij, p_j = Σ_i n_ij
    pixel accuracy           Σ_i n_ii / Σ_i t_i
    mean accuracy            mean over classes with t_i > 0 of n_ii / t_i
    IoU of class i           n_ii / (t_i + p_i − n_ii)
    mIoU                     mean of the IoU
    frequency-weighted IoU   Σ_i t_i IoU_i / Σ_i t_i
    harmonic mIoU            2 S U / (S + U), S and U the mIoU of seen and unseen classes

References:
    Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (section 5);
    Xian et al., "Semantic Projection Network for Zero- and Few-Label Semantic Segmentation", CVPR 2019
    (harmonic mean of seen and unseen).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsseg.classes import VOID
from zsseg.errors import DataError

Matrix = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """All scores of one evaluation; see the module docstring for the formulas.

    Attributes:
        iou: IoU of each class, (C,), NaN where undefined.
        accuracy: Accuracy of each class, (C,), NaN where the class has no true pixel.
        left_out: Indices of classes kept out of the means because they occur in too few photos.
    """

    pixel_accuracy: float
    mean_accuracy: float
    miou: float
    frequency_weighted_iou: float
    seen_miou: float
    unseen_miou: float
    harmonic_miou: float
    seen_accuracy: float
    unseen_accuracy: float
    iou: Floats
    accuracy: Floats
    left_out: tuple[int, ...]


def confusion(
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    classes: int,
    *,
    bincount: Callable[..., NDArray[np.int64]] = np.bincount,
) -> Matrix:
    """Count pixels by true and predicted class.

    Args:
        truth: Label map of any shape, class ids, 255 = void (not counted).
        predicted: Class ids of the same shape, each below `classes`.
        classes: How many classes, C.
        bincount: NumPy's, or what does the same with the same `minlength`.

    Returns:
        int64 (C, C).

    Raises:
        DataError: The shapes differ or a true label is neither void nor below `classes`.
    """
    if truth.shape != predicted.shape:
        raise DataError(f"truth has shape {truth.shape}, prediction {predicted.shape}; both must be the same")
    # One bincount over 256·C cells, void row and all, is several times quicker than masking first.
    small = np.dtype(np.int16 if 256 * classes <= 2**15 else np.int32).type
    flat = truth.astype(small).ravel() * small(classes) + predicted.ravel()
    counts = bincount(flat, minlength=256 * classes).reshape(256, classes)
    strange = np.flatnonzero(counts[classes:VOID].any(axis=1))
    if strange.size:
        raise DataError(f"label {int(strange[0]) + classes} in a label map, expected below {classes} or 255 (void)")
    matrix: Matrix = counts[:classes].astype(np.int64)
    return matrix


def iou(matrix: Matrix) -> Floats:
    """Return the intersection over union of each class, float64 (C,), NaN with neither truth nor prediction."""
    hits = np.diag(matrix).astype(np.float64)
    return _ratio(hits, matrix.sum(axis=1) + matrix.sum(axis=0) - hits)


def accuracy(matrix: Matrix) -> Floats:
    """Return the share of each class's true pixels that were found, float64 (C,), NaN without truth."""
    return _ratio(np.diag(matrix).astype(np.float64), matrix.sum(axis=1).astype(np.float64))


def harmonic(seen: float, unseen: float) -> float:
    """Return the harmonic mean 2 S U / (S + U); 0 where both are 0, NaN where one is NaN."""
    if math.isnan(seen) or math.isnan(unseen):
        return math.nan
    return 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else 0.0


def score(
    matrix: Matrix,
    *,
    seen: Sequence[int],
    unseen: Sequence[int],
    images_per_class: NDArray[np.int64] | None = None,
    min_images: int = 0,
    absent_zero: bool = False,
) -> Scores:
    """Derive every score from one confusion matrix.

    Args:
        matrix: int64 (C, C), rows = truth.
        seen: Ids of the seen classes.
        unseen: Ids of the unseen classes; with none, unseen and harmonic scores are NaN.
        images_per_class: Photos whose truth holds the class, (C,); needed for `min_images`.
        min_images: Classes that occur in fewer truth photos are left out of the means over classes.
            Their pixels still count in pixel accuracy and frequency-weighted IoU.
        absent_zero: Count a class without truth and prediction as 0 in the means (ZS3's evaluator) instead of
            leaving it out.
    """
    each_iou, each_accuracy = iou(matrix), accuracy(matrix)
    left_out: tuple[int, ...] = ()
    if min_images > 0 and images_per_class is not None:
        left_out = tuple(int(index) for index in np.flatnonzero(images_per_class < min_images))
    truth = matrix.sum(axis=1).astype(np.float64)

    def mean(values: Floats, ids: Sequence[int]) -> float:
        return _mean(np.nan_to_num(values) if absent_zero else values, ids, left_out)

    seen_miou, unseen_miou = mean(each_iou, seen), mean(each_iou, unseen)
    total = truth.sum()
    return Scores(
        pixel_accuracy=float(np.trace(matrix) / total) if total else math.nan,
        mean_accuracy=mean(each_accuracy, range(len(matrix))),
        miou=mean(each_iou, range(len(matrix))),
        frequency_weighted_iou=float(np.nansum(truth * each_iou) / total) if total else math.nan,
        seen_miou=seen_miou,
        unseen_miou=unseen_miou,
        harmonic_miou=harmonic(seen_miou, unseen_miou),
        seen_accuracy=mean(each_accuracy, seen),
        unseen_accuracy=mean(each_accuracy, unseen),
        iou=each_iou,
        accuracy=each_accuracy,
        left_out=left_out,
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _mean(values: Floats, ids: Sequence[int], left_out: Collection[int]) -> float:
    kept = [values[index] for index in ids if index not in left_out and not math.isnan(values[index])]
    return float(np.mean(kept)) if kept else math.nan
