"""Scores against naive loops and formulas, and against scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zsseg.errors import DataError
from zsseg.metrics import accuracy, confusion, harmonic, iou, score
from zsseg.threads import bincount

UInt8 = NDArray[np.uint8]
MATRIX = np.array([[5, 1, 0, 0], [2, 3, 1, 0], [0, 0, 4, 0], [0, 0, 0, 0]])  # class 3 has neither truth nor prediction


def random_maps(seed: int, classes: int, size: tuple[int, int] = (6, 7)) -> tuple[UInt8, UInt8]:
    """Return a label map with void and a prediction without."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, size).astype(np.uint8)
    truth[rng.random(size) < 0.2] = 255
    return truth, rng.integers(0, classes, size).astype(np.uint8)


def naive_confusion(truth: UInt8, predicted: UInt8, classes: int) -> list[list[int]]:
    """Count pixel by pixel."""
    matrix = [[0] * classes for _ in range(classes)]
    for true, guess in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if true != 255:
            matrix[true][guess] += 1
    return matrix


def naive_iou(truth: UInt8, predicted: UInt8, classes: int) -> list[float]:
    """Return intersection over union from sets of pixels."""
    valid = truth != 255
    values = []
    for index in range(classes):
        true, guess = (truth == index) & valid, (predicted == index) & valid
        union = (true | guess).sum()
        values.append(float((true & guess).sum() / union) if union else math.nan)
    return values


@given(st.integers(0, 2**32 - 1), st.integers(1, 255), st.integers(1, 9), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_confusion(seed: int, classes: int, height: int, width: int) -> None:
    """The matrix counts every pixel that is not void once, for any number of classes and any size."""
    truth, predicted = random_maps(seed, classes, (height, width))
    matrix = confusion(truth, predicted, classes)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, naive_confusion(truth, predicted, classes))
    np.testing.assert_array_equal(matrix, confusion(truth, predicted, classes, bincount=bincount))


@pytest.mark.parametrize("classes", [127, 128, 129, 255])
def test_confusion_of_many_classes_overflows_nowhere(classes: int) -> None:
    """The last class and void keep their cells however small the numbers are that pixels are counted with."""
    truth = np.array([[classes - 1, 255, classes - 1]], np.uint8)
    expected = np.zeros((classes, classes), np.int64)
    expected[classes - 1, classes - 1] = 2
    for count in (np.bincount, bincount):
        found = confusion(truth, np.full((1, 3), classes - 1, np.uint8), classes, bincount=count)
        np.testing.assert_array_equal(found, expected)


def test_confusion_against_sklearn() -> None:
    """scikit-learn counts the same."""
    from sklearn.metrics import confusion_matrix

    truth, predicted = random_maps(3, 6, (30, 30))
    valid = truth != 255
    expected = confusion_matrix(truth[valid], predicted[valid], labels=range(6))
    np.testing.assert_array_equal(confusion(truth, predicted, 6), expected)


def test_confusion_adds_up() -> None:
    """Matrices of the parts of an image add up to that of the whole."""
    truth, predicted = random_maps(1, 5)
    parts = confusion(truth[:2], predicted[:2], 5) + confusion(truth[2:], predicted[2:], 5)
    np.testing.assert_array_equal(parts, confusion(truth, predicted, 5))


@pytest.mark.parametrize("label", [3, 7, 254])
def test_label_out_of_range(label: int) -> None:
    """A label that is neither a class nor void is an error, wherever it lies."""
    truth = np.zeros((4, 4), np.uint8)
    truth[3, 3] = label
    with pytest.raises(DataError, match=rf"label {label} in a label map, expected below 3 or 255"):
        confusion(truth, np.zeros((4, 4), np.uint8), 3)


def test_shapes_differ() -> None:
    """Maps of two sizes are an error, not a broadcast."""
    with pytest.raises(DataError, match=r"shape \(2, 3\), prediction \(3, 2\)"):
        confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 2)


def test_all_void() -> None:
    """An image of void pixels only counts nothing, and every score of it is NaN."""
    matrix = confusion(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8), 4)
    assert not matrix.any()
    check_all_nan(matrix)


def check_all_nan(matrix: NDArray[np.int64]) -> None:
    """Check that no score is defined."""
    scores = score(matrix, seen=[0, 1], unseen=[2, 3])
    values = [value for value in vars(scores).values() if isinstance(value, float)]
    assert len(values) == 9
    assert all(math.isnan(value) for value in values)
    assert np.isnan(scores.iou).all()
    assert np.isnan(scores.accuracy).all()


def test_empty_matrix() -> None:
    """Without a pixel no score is defined."""
    check_all_nan(np.zeros((4, 4), np.int64))


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
@settings(max_examples=50, deadline=None)
def test_scores_against_formulas(seed: int, classes: int) -> None:
    """Every score equals its definition over pixels."""
    truth, predicted = random_maps(seed, classes, (4, 5))
    scores = score(confusion(truth, predicted, classes), seen=range(classes - 1), unseen=[classes - 1])
    valid = truth != 255
    each = naive_iou(truth, predicted, classes)
    np.testing.assert_allclose(scores.iou, each)
    right = (truth == predicted) & valid
    accuracies = [
        float(right[truth == index].mean()) if (truth == index).any() else math.nan for index in range(classes)
    ]
    np.testing.assert_allclose(scores.accuracy, accuracies)
    assert_same(scores.pixel_accuracy, right.sum() / valid.sum() if valid.any() else math.nan)
    assert_same(scores.mean_accuracy, mean(accuracies))
    assert_same(scores.miou, mean(each))
    assert_same(scores.seen_miou, mean(each[:-1]))
    assert_same(scores.unseen_miou, each[-1])
    assert_same(scores.seen_accuracy, mean(accuracies[:-1]))
    assert_same(scores.unseen_accuracy, accuracies[-1])
    shares = [(truth == index).sum() / valid.sum() if valid.any() else math.nan for index in range(classes)]
    weighted = sum(share * value for share, value in zip(shares, each, strict=True) if share > 0)
    assert_same(scores.frequency_weighted_iou, weighted if valid.any() else math.nan)


def mean(values: list[float]) -> float:
    """Return the mean of what is defined."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def assert_same(found: float, expected: Any) -> None:
    """Compare two scores; NaN equals NaN."""
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_iou_against_sklearn() -> None:
    """scikit-learn's Jaccard score and recall are the same numbers."""
    from sklearn.metrics import jaccard_score, recall_score

    truth, predicted = random_maps(4, 6, (40, 40))
    valid = truth != 255
    matrix = confusion(truth, predicted, 6)
    np.testing.assert_allclose(iou(matrix), jaccard_score(truth[valid], predicted[valid], average=None))
    np.testing.assert_allclose(accuracy(matrix), recall_score(truth[valid], predicted[valid], average=None))


def test_absent_class_left_out() -> None:
    """A class with neither truth nor prediction has no IoU and lowers no mean; a predicted one without truth has 0."""
    each = iou(MATRIX)
    np.testing.assert_allclose(each[:3], [5 / 8, 3 / 7, 4 / 5])
    assert math.isnan(each[3])
    scores = score(MATRIX, seen=[0, 1], unseen=[2, 3])
    assert scores.miou == pytest.approx((5 / 8 + 3 / 7 + 4 / 5) / 3)
    assert scores.unseen_miou == pytest.approx(4 / 5)
    invented = MATRIX.copy()
    invented[0, 3] = 2
    assert iou(invented)[3] == 0
    assert score(invented, seen=[0, 1], unseen=[2, 3]).unseen_miou == pytest.approx(2 / 5)
    assert math.isnan(score(invented, seen=[0, 1], unseen=[3]).unseen_accuracy)


def test_min_images() -> None:
    """Rare classes are left out of the means over classes and named; their pixels count in the rest."""
    images = np.array([9, 2, 3, 0])
    scores = score(MATRIX, seen=[0, 1], unseen=[2, 3], images_per_class=images, min_images=3)
    plain = score(MATRIX, seen=[0, 1], unseen=[2, 3])
    assert scores.left_out == (1, 3)
    assert plain.left_out == ()
    assert scores.miou == pytest.approx((5 / 8 + 4 / 5) / 2)
    assert scores.seen_miou == pytest.approx(5 / 8)
    assert scores.mean_accuracy == pytest.approx((5 / 6 + 1) / 2)
    assert scores.pixel_accuracy == plain.pixel_accuracy
    assert scores.frequency_weighted_iou == plain.frequency_weighted_iou
    np.testing.assert_array_equal(scores.iou, plain.iou)


@pytest.mark.parametrize(
    ("seen", "unseen", "expected"),
    [(0.5, 0.5, 0.5), (0.6, 0.2, 0.3), (0.0, 0.0, 0.0), (0.9, 0.0, 0.0), (math.nan, 0.5, math.nan), (1, 1, 1)],
)
def test_harmonic(seen: float, unseen: float, expected: float) -> None:
    """The harmonic mean is 0 where one side is 0, and NaN where one is undefined."""
    assert_same(harmonic(seen, unseen), expected)
    assert_same(harmonic(unseen, seen), expected)


def test_no_unseen_class() -> None:
    """Where all classes are seen, unseen and harmonic scores are NaN and the rest is not."""
    scores = score(MATRIX, seen=[0, 1, 2, 3], unseen=[])
    assert math.isnan(scores.unseen_miou)
    assert math.isnan(scores.harmonic_miou)
    assert scores.seen_miou == scores.miou


def test_perfect() -> None:
    """A perfect prediction scores 1 everywhere."""
    truth = np.arange(40, dtype=np.uint8).reshape(5, 8) % 4
    scores = score(confusion(truth, truth, 4), seen=[0, 1], unseen=[2, 3])
    assert {value for value in vars(scores).values() if isinstance(value, float)} == {1.0}
    assert scores.iou.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("min_images", [0, 2])
def test_absent_classes_as_zero(min_images: int) -> None:
    """With `absent_zero` the means are those of `nan_to_num`, over all classes that are not left out."""
    images = np.array([5, 1, 5, 5])
    found = score(MATRIX, seen=(0, 1), unseen=(2, 3), images_per_class=images, min_images=min_images, absent_zero=True)
    kept = [index for index in range(4) if images[index] >= min_images]
    values = np.nan_to_num(iou(MATRIX))
    assert found.miou == pytest.approx(np.mean([values[index] for index in kept]))
    assert found.unseen_miou == pytest.approx(values[2] / 2)
    assert found.seen_miou == pytest.approx(np.mean([values[index] for index in (0, 1) if index in kept]))
    assert found.mean_accuracy == pytest.approx(np.mean([np.nan_to_num(accuracy(MATRIX))[index] for index in kept]))
    assert math.isnan(found.iou[3])
    assert math.isnan(score(MATRIX, seen=range(4), unseen=(), absent_zero=True).unseen_miou)
