"""Bring vectors of the joint space to a plane that a person can look at: PCA, t-SNE or UMAP.

Conventions: rows are points, float (N, D); the result is float64 (N, 2). PCA is linear, so that distances in the plane
can be compared; t-SNE and UMAP keep neighbours together, and neither their distances nor their axes mean anything.
All three give the same plane for the same points.

References:
    van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 2008;
    McInnes, Healy, Melville, "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction", 2018.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.config import Plane
from zsseg.errors import SettingError

Floats = NDArray[np.floating[Any]]

PERPLEXITY = 30  # of t-SNE, about how many neighbours of a point count; UMAP's neighbours are half as many
LINEAR_UP_TO = 5  # points; of fewer no neighbourhood can be learned


def in_plane(vectors: Floats, method: Plane, *, seed: int = 0) -> Floats:
    """Project points on a plane, float64 (N, 2); fewer than `LINEAR_UP_TO` always by PCA.

    Args:
        vectors: float (N, D), at least one row.
        method: How.
        seed: Of t-SNE and UMAP.

    Raises:
        SettingError: UMAP is asked for and not installed.
    """
    reducer = None if method == "pca" else _reducer(method, len(vectors), seed)
    if reducer is None or len(vectors) < LINEAR_UP_TO:
        return principal_plane(vectors)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of their own defaults
        return np.asarray(reducer.fit_transform(np.asarray(vectors, dtype=np.float32)), dtype=np.float64)


def _reducer(method: Plane, count: int, seed: int) -> Any:
    if method == "tsne":
        from sklearn.manifold import TSNE  # 1.3 s

        return TSNE(perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=seed)
    try:
        from umap import UMAP  # optional, and slow to load
    except ImportError as error:
        raise SettingError(
            "--space umap: needs the package umap-learn (`pip install umap-learn`); or take pca or tsne"
        ) from error
    return UMAP(n_neighbors=min(PERPLEXITY // 2, count - 1), init="pca", random_state=seed, n_jobs=1)


def principal_plane(vectors: Floats) -> tuple[Floats, tuple[float, float]]:
    """Project on the first two principal axes of the vectors themselves.

    Returns:
        Points (N, 2), zeros along an axis that does not exist, and each axis's share of the variance.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    points[:, : min(2, len(lengths))] = (left * lengths)[:, :2]
    # An SVD leaves the sign of an axis open: the point farthest out is put on the positive side.
    farthest = np.abs(points).argmax(axis=0)
    points *= np.where(points[farthest, [0, 1]] < 0, -1, 1)
    shares = np.zeros(max(2, len(lengths)))
    shares[: len(lengths)] = lengths**2 / max(float((lengths**2).sum()), 1e-30)
    return points, (float(shares[0]), float(shares[1]))
