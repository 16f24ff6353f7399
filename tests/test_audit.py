"""The report on class vectors against naive counts and ranks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from zsseg.audit import as_json, audit, cosines, occurrence, rank_agreement, skewness


def test_occurrence_counts_how_often_a_class_is_near() -> None:
    """A hub: one vector in the middle of others that point apart."""
    vectors = np.array([[1.0, 1.0, 1.0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0.1, 0]])
    likeness = cosines(vectors)
    expected = {1: [0] * 5, 3: [0] * 5}
    for k, counts in expected.items():
        for row in range(5):
            near = sorted((other for other in range(5) if other != row), key=lambda other: -likeness[row, other])
            for other in near[:k]:
                counts[other] += 1
        np.testing.assert_array_equal(occurrence(likeness, k), counts)
    assert occurrence(likeness, 1)[0] == 3
    assert occurrence(likeness, 99).tolist() == [4] * 5


def test_skewness_is_the_third_moment() -> None:
    """Against its definition; equal counts have none to speak of."""
    counts = np.array([0, 0, 1, 1, 8])
    centred = counts - counts.mean()
    assert skewness(counts) == pytest.approx((centred**3).mean() / (centred**2).mean() ** 1.5)
    assert math.isnan(skewness(np.array([2, 2, 2])))


def test_rank_agreement_is_spearmans() -> None:
    """Against the correlation of ranks by hand; pairs that one source does not know are left out."""
    rng = np.random.default_rng(0)
    one, other = (matrix + matrix.T for matrix in rng.normal(size=(2, 6, 6)))
    other[2, :] = other[:, 2] = np.nan
    pairs = [(row, column) for row in range(6) for column in range(row + 1, 6) if 2 not in (row, column)]
    left, right = (np.argsort(np.argsort([matrix[pair] for pair in pairs])) for matrix in (one, other))
    assert rank_agreement(one, other) == pytest.approx(np.corrcoef(left, right)[0, 1])
    assert rank_agreement(one, np.exp(one)) == pytest.approx(1)
    assert rank_agreement(one, -one) == pytest.approx(-1)
    assert math.isnan(rank_agreement(one, np.full((6, 6), np.nan)))
    assert math.isnan(rank_agreement(one, np.ones((6, 6))))


def test_the_report_compares_every_two_sources() -> None:
    """Class vectors come first; JSON holds the same numbers, and null for what is not known."""
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    report = audit(["a", "b", "c", "d", "e"], vectors, {"x": cosines(vectors), "y": np.full((5, 5), np.nan)})
    assert [row[:2] for row in report.agreement] == [("class vectors", "x"), ("class vectors", "y"), ("x", "y")]
    assert report.agreement[0][2] == pytest.approx(1)
    found = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert found["agreement"][1] == {"of": ["class vectors", "y"], "spearman": None}
    assert sum(found["occurrence"]["1"].values()) == 5
    assert sum(found["occurrence"]["3"].values()) == 15
