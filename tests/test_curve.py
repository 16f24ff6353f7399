"""The seen–unseen curve from histograms against scoring anew for every bias."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zsseg.curve import BINS, Curve, count_gaps, gap_bins, gap_edges, gap_unit, seen_unseen_curve
from zsseg.metrics import confusion, score
from zsseg.threads import bincount

CLASSES = 6
SEEN, UNSEEN = (0, 2, 3), (1, 5)  # class 4 is in neither


def scene(seed: int, pixels: int = 4000) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return a truth with void and scores on a grid of 1/64, so that adding a bias on it rounds nothing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, pixels).astype(np.uint8)
    truth[rng.random(pixels) < 0.2] = 255
    scores = rng.normal(0, 1, (CLASSES, pixels))
    hit = truth != 255
    scores[truth[hit], np.flatnonzero(hit)] += 1
    scores[list(SEEN)] += 0.5
    return truth, (np.round(scores * 64) / 64).astype(np.float32)


def winners(scores: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Return best seen class, best unseen class and gap of each pixel."""
    best = [np.array(ids)[scores[list(ids)].argmax(axis=0)].astype(np.uint8) for ids in (SEEN, UNSEEN)]
    gap = scores[list(SEEN)].max(axis=0) - scores[list(UNSEEN)].max(axis=0)
    return best[0], best[1], gap


@pytest.mark.parametrize("absent_zero", [False, True])
@pytest.mark.parametrize("left_out", [(), (3,)])
def test_curve_is_that_of_scoring_anew(absent_zero: bool, left_out: tuple[int, ...]) -> None:
    """On every edge the curve equals, exactly, the scores after subtracting that bias; counts add up over photos."""
    edges = np.arange(-300, 301, 5) / 64  # gaps lie on edges, too
    counts = np.zeros((4, CLASSES, len(edges) + 1), np.int64)
    scenes = [scene(seed) for seed in range(3)]
    for truth, scores in scenes:
        seen, unseen, gap = winners(scores)
        bins = np.searchsorted(edges, gap).astype(np.int32)  # in (edge k−1, edge k]
        counts += count_gaps(truth, seen, unseen, bins, classes=CLASSES, size=len(edges) + 1)
    true = np.bincount(np.concatenate([truth for truth, _ in scenes]), minlength=256)[:CLASSES]
    curve = seen_unseen_curve(counts, edges, true, seen=SEEN, unseen=UNSEEN, left_out=left_out, absent_zero=absent_zero)
    photos = np.array([0 if index in left_out else 1 for index in range(CLASSES)])
    for place, gamma in enumerate(edges):
        matrix = np.zeros((CLASSES, CLASSES), np.int64)
        for truth, scores in scenes:
            seen, unseen, gap = winners(scores)
            matrix += confusion(truth, np.where(gap > gamma, seen, unseen), CLASSES)
        naive = score(matrix, seen=SEEN, unseen=UNSEEN, images_per_class=photos, min_images=1, absent_zero=absent_zero)
        expected = (naive.seen_miou, naive.unseen_miou, naive.harmonic_miou)
        np.testing.assert_allclose(
            (curve.seen[place], curve.unseen[place], curve.harmonic[place]), expected, rtol=1e-12
        )
    assert curve.zero == 60
    assert curve.harmonic[curve.oracle] == max(curve.harmonic)
    assert 0 < curve.unseen[curve.zero] < curve.unseen.max()


@pytest.mark.parametrize("unit", [0.37, 1.0, 20.0])
def test_bins_hold_what_the_edges_say(unit: float) -> None:
    """A gap above an edge has a bin above it and no other; 0 is an edge, infinities lie outside all."""
    edges = gap_edges(unit)
    rng = np.random.default_rng(0)
    gaps = (rng.normal(0, unit, 5000) * 10.0 ** rng.uniform(-3, 2, 5000)).astype(np.float32)
    bins = gap_bins(gaps, unit)
    expected = np.searchsorted(edges, gaps)
    near = np.abs(edges[np.clip(expected, 0, BINS - 2)] - gaps) < 1e-4 * np.abs(gaps)
    near |= np.abs(edges[np.clip(expected - 1, 0, BINS - 2)] - gaps) < 1e-4 * np.abs(gaps)
    np.testing.assert_array_equal(bins[~near], expected[~near])
    assert near.mean() < 0.05
    assert (edges == 0).sum() == 1
    zero = int(np.flatnonzero(edges == 0)[0])
    tiny = np.array([-np.inf, -1e-30, 0.0, 1e-30, np.inf], np.float32)
    assert gap_bins(tiny, unit).tolist() == [0, zero, zero, zero + 1, BINS - 1]
    np.testing.assert_allclose(edges, -edges[::-1])
    assert np.diff(edges).min() < 0.005 * unit
    assert edges[-1] == pytest.approx(64 * unit)


def test_histogram_counts_every_pixel_once() -> None:
    """Hits and pixels by best class are those of a naive loop; void counts nowhere."""
    truth, scores = scene(7, 300)
    seen, unseen, gap = winners(scores)
    bins = gap_bins(gap, 1.0)
    expected = np.zeros((4, CLASSES, BINS), np.int64)
    for true, first, second, place in zip(truth, seen, unseen, bins, strict=True):
        if true != 255:
            for plane, best in ((0, first), (2, second)):
                expected[plane, best, place] += int(true == best)
                expected[plane + 1, best, place] += 1
    np.testing.assert_array_equal(count_gaps(truth, seen, unseen, bins, classes=CLASSES), expected)
    np.testing.assert_array_equal(count_gaps(truth, seen, unseen, bins, classes=CLASSES, bincount=bincount), expected)


@pytest.mark.parametrize("classes", [31, 32, 255])
def test_histogram_of_many_classes_overflows_nowhere(classes: int) -> None:
    """The last class in the last bin, a hit and not, and void, keep their cells in numbers of either size."""
    last = np.uint8(classes - 1)
    truth = np.array([last, last, 0, 255], np.uint8)
    seen, unseen = np.array([0, 0, 0, 0], np.uint8), np.array([last] * 4, np.uint8)
    expected = np.zeros((4, classes, BINS), np.int64)
    expected[0, 0, -1], expected[1, 0, -1] = 1, 3
    expected[2, last, -1], expected[3, last, -1] = 2, 3
    bins = np.full(4, BINS - 1, np.int16)
    for count in (np.bincount, bincount):
        found = count_gaps(truth, seen, unseen, bins, classes=classes, bincount=count)
        np.testing.assert_array_equal(found, expected)


def test_unit_is_the_gap_of_the_farthest_vectors() -> None:
    """The unit is half the largest squared distance of two class vectors, 1 where there is none."""
    vectors = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    expected = max(float(((a - b) ** 2).sum()) / 2 for a in vectors for b in vectors)
    assert gap_unit(vectors) == pytest.approx(expected, rel=1e-5)
    assert gap_unit(np.ones((3, 2), np.float32)) == 1.0


def curve_of(*points: tuple[float, float]) -> Curve:
    """Return a curve through points (unseen, seen)."""
    unseen, seen = np.array(points).T
    return Curve(np.arange(len(points), dtype=float), seen, unseen, np.zeros(len(points)))


def test_area() -> None:
    """The area counts trapezoids between the points that none beats in both, from 0 unseen mIoU on."""
    assert curve_of((0, 0.8), (0.4, 0)).area == pytest.approx(0.16)
    assert curve_of((0, 0.8), (0.3, 0.6), (0.5, 0.1)).area == pytest.approx(0.3 * 0.7 + 0.2 * 0.35)
    assert curve_of((0, 0.8), (0.3, 0.6), (0.5, 0.1), (0.2, 0.0)).area == pytest.approx(0.28)  # it falls back
    assert curve_of((0.2, 0.5)).area == pytest.approx(0.1)
    assert np.isnan(curve_of((np.nan, 0.5), (np.nan, 0.1)).area)


def test_a_curve_without_unseen_pixels() -> None:
    """Where no photo shows an unseen class and none is predicted there is no oracle, no area, and no failure."""
    truth = np.array([10, 0])
    counts = np.zeros((4, 2, 3), np.int64)
    counts[:2, 0, 2] = 10
    curve = seen_unseen_curve(counts, np.array([-1.0, 0.0]), truth, seen=(0,), unseen=(1,))
    assert np.isnan(curve.area)
    assert curve.oracle == curve.zero == 1
    assert curve.seen.tolist() == [1.0, 1.0]
