"""Predict over any words: a model's classes joined by words, words alone, and regions read out as words.

Added words are classes that no training pixel showed, and are treated as the model's unseen classes are, those of the
split: their gate is the model's (`models.gate`); their calibration is the mean of that of its unseen classes, for
stacking exactly theirs; the anchors (`models.anchors`) learn their names (`kinship`), and ImageNet classes that *are*
such a word are taken out, as those of unseen classes are. A word without a meaning in WordNet, or any word where there
is no WordNet, has the mean of the others' prior. A word that is one of the model's classes, by name or alias, is that
class.

The gate compares with the seen classes, so all of the model's classes are scored, and those not asked for are left out
afterwards.

Reading a photo: cells of the coarse grid are joined to regions by Ward's criterion on their embeddings, neighbours
only; each region's mean embedding is then compared with every word of a vocabulary. Touching regions with the same
nearest word are one.

References:
    J. H. Ward, "Hierarchical Grouping to Optimize an Objective Function", JASA 1963.
"""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from zsseg import kinship
from zsseg.calibration import Calibration
from zsseg.classes import ALIASES, BACKGROUND, VOID
from zsseg.dataset import normalise
from zsseg.errors import SettingError
from zsseg.hardware import autocast
from zsseg.images import UInt8
from zsseg.inference import NEVER, Model, label_map, pixels_for, score_image
from zsseg.models import SegmentationNet
from zsseg.models.anchors import NEVER as TAKEN_OUT
from zsseg.models.anchors import Anchors
from zsseg.winners import ScoreGrid

log = logging.getLogger(__name__)

REGIONS = 8  # at most, of a photo
NEAREST = 5  # words of a region

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class OpenModel:
    """A model and the classes that it is asked for.

    Attributes:
        scorer: Scores the model's own classes and the added ones.
        shown: Has the classes that can be predicted, in the order of their ids, and their calibration.
        rows: For each of them its id in `scorer`; −1 for background where it was not asked for: it keeps id 0, which
            pictures show as no colour, and is never predicted.
    """

    scorer: Model
    shown: Model
    rows: tuple[int, ...]

    def score(self, image: UInt8, *, max_side: int) -> ScoreGrid:
        """Score the shown classes on the coarse grid."""
        grid = score_image(self.scorer, image, max_side=max_side)
        return replace(grid, scores=grid.scores[list(self.rows)] if self.is_whole else self._taken(grid))

    @property
    def is_whole(self) -> bool:
        """Whether every shown class is scored."""
        return -1 not in self.rows

    def _taken(self, grid: ScoreGrid) -> torch.Tensor:
        scores = grid.scores[[max(row, 0) for row in self.rows]]
        scores[[row < 0 for row in self.rows]] = NEVER
        return scores


@dataclass(frozen=True)
class Region:
    """A region of a photo and the words that are nearest to it.

    Attributes:
        share: Of the photo's pixels, 0 to 1.
        box: Top, left, bottom and right in pixels; the latter two are just outside.
        words: Nearest first, with the cosine of their vector and the region's mean embedding.
    """

    share: float
    box: tuple[int, int, int, int]
    words: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reading:
    """A photo read out as words.

    Attributes:
        regions: Largest first, at most 255.
        region_map: Which region each pixel is in, uint8 (H, W).
    """

    regions: tuple[Region, ...]
    region_map: UInt8


def listed(text: str) -> tuple[str, ...]:
    """Return the words of "zebra, grass, television set", each once."""
    return distinct(" ".join(name.split()) for name in text.split(","))


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names once each, however they are spelt; the first spelling counts."""
    found: dict[str, str] = {}
    for name in names:
        if _key(name):
            found.setdefault(_key(name), name)
    return tuple(found.values())


def new_words(model: Model, names: Sequence[str]) -> list[str]:
    """Return those names that none of the model's classes has, by name or alias."""
    known = _known(model)
    return [name for name in distinct(names) if _key(name) not in known]


def with_words(model: Model, names: Sequence[str], vectors: Float32 | None, *, add: bool) -> OpenModel:
    """Return a model that predicts words.

    Args:
        model: A trained one.
        names: What it is asked for; a repeated name counts once.
        vectors: The vectors of `new_words(model, names)`, float32 (M, D); None where there are none.
        add: Whether its own classes can be predicted, too.

    Raises:
        SettingError: No name, or more than a label map can hold; or the model has no class vectors.
    """
    own = model.vectors
    if own is None:
        raise SettingError("--classes: a softmax model has no class vectors, so it knows no other words; train another")
    names, added = distinct(names), new_words(model, names)
    known = _known(model)
    union = (*model.names, *added)
    ids = {_key(name): len(model.names) + index for index, name in enumerate(added)} | known
    wanted = [ids[_key(name)] for name in names]
    if add:
        rows = list(range(len(union)))
    else:
        background = known.get(_key(BACKGROUND), -1)
        rows = [background if background in wanted else -1, *(row for row in wanted if row != background)]
    if not names:
        raise SettingError('--classes: no word, expected some such as --classes "zebra, grass"')
    if len(rows) > VOID:
        raise SettingError(f"--classes: {len(rows)} classes, expected at most {VOID}, the ids of a label map")
    unseen = (*model.unseen, *range(len(model.names), len(union)))
    scorer = replace(
        model,
        net=_extended(model.net, union, unseen, len(added)),
        names=union,
        unseen=unseen,
        vectors=own if vectors is None else torch.cat([own, torch.from_numpy(vectors).to(own)]),
        calibration=_extended_calibration(model, len(added)),
    )
    return OpenModel(scorer, _shown(scorer, rows, list(names), wanted), tuple(rows))


@torch.inference_mode()
def embed_image(model: Model, image: UInt8, *, max_side: int) -> ScoreGrid:
    """Return the embeddings by which words are told, as a grid with D dims in the place of classes.

    They are the gate's where there is one, which generalises better than the head to what was never shown.
    """
    size = image.shape[:2]
    pixels, input_size = pixels_for(model, image, max_side=max_side)
    net = model.net
    with autocast(model.precision, model.device):
        features = net.features(net.pad(normalise(pixels, net.mean, net.std)))
        cells = net.gate_cells(features)
        stride = net.stride if cells is None else net.gate_stride
        embeddings = (net.head(features) if cells is None else cells).float()
    height, width = (-(-side // stride) for side in input_size)
    return ScoreGrid(embeddings[0, :, :height, :width], stride, input_size, (size[0], size[1]))


def read_regions(
    model: Model,
    image: UInt8,
    words: Sequence[str],
    vectors: Float32,
    *,
    max_side: int,
    regions: int = REGIONS,
    nearest: int = NEAREST,
) -> Reading:
    """Read a photo out as words.

    Args:
        model: A trained one.
        image: uint8 RGB (H, W, 3).
        words: V of them, without repetition.
        vectors: Their vectors in the model's joint space, float32 (V, D).
        max_side: Larger images are embedded at this long side, in pixels.
        regions: How many at most.
        nearest: How many words of each.
    """
    grid = embed_image(model, image, max_side=max_side)
    embeddings = grid.scores.cpu().numpy()
    cells = _joined_cells(embeddings, regions)
    means = _means(embeddings, cells)
    scores = means @ vectors.T - (vectors**2).sum(axis=1) / 2  # NNE; (M, V)
    best = scores.argmax(axis=1)
    cells = _merged(cells, best)
    means = _means(embeddings, cells)
    scores = means @ vectors.T - (vectors**2).sum(axis=1) / 2
    found = [_nearest(mean, row, words, vectors, nearest) for mean, row in zip(means, scores, strict=True)]
    return _laid_out(cells, found, grid)


def _key(name: str) -> str:
    """Return a name in the form by which names are compared: "diningtable", "dining table" and "dining_table" alike."""
    return re.sub(r"[\s_-]+", "", name.lower())


def _known(model: Model) -> dict[str, int]:
    """Return the id of each of the model's classes by its name and its aliases; a name goes before an alias."""
    by_alias = {_key(alias): index for index, name in enumerate(model.names) for alias in ALIASES.get(name.lower(), ())}
    return by_alias | {_key(name): index for index, name in enumerate(model.names)}


def _extended(net: SegmentationNet, union: tuple[str, ...], unseen: tuple[int, ...], count: int) -> SegmentationNet:
    """Return a network whose anchors know of the last `count` classes of the union, too.

    It shares all other weights with the one given.
    """
    anchors = getattr(net, "anchors", None)
    if not isinstance(anchors, Anchors) or not count:
        return net
    shared = {id(each): each for each in (*net.parameters(), *net.buffers())}
    twin = copy.deepcopy(net, shared)
    own, offset = anchors.get_buffer("share"), anchors.get_buffer("offset")
    share = _shares(union, unseen)
    if share is None:
        share, out = F.pad(own, (0, count)), torch.zeros(len(own), dtype=torch.bool, device=own.device)
    else:
        share = share.to(own)
        out = share.isnan().all(dim=1)
    twin.anchors.register_buffer("share", share.nan_to_num(0.0))  # type: ignore[union-attr]
    twin.anchors.register_buffer("offset", offset.masked_fill(out, TAKEN_OUT))  # type: ignore[union-attr]
    return twin


def _shares(names: tuple[str, ...], unseen: tuple[int, ...]) -> torch.Tensor | None:
    """Return what each ImageNet class gives to each class, rows of NaN for those taken out; None without WordNet."""
    try:
        return torch.from_numpy(kinship.shares(_kinship(names), unseen))
    except SettingError as error:
        log.info("the anchors know nothing of these words: %s", error)
        return None


@functools.lru_cache(maxsize=8)
def _kinship(names: tuple[str, ...]) -> kinship.Kinship:
    """Return how ImageNet's classes relate to ours; it takes seconds, and every model asks the same."""
    return kinship.imagenet_kinship(names)


def _extended_calibration(model: Model, count: int) -> Calibration | None:
    """Return the calibration with that of unseen classes for `count` more: the mean of theirs."""
    given = model.calibration
    if given is None:
        return None
    unseen = list(model.unseen) or list(range(len(model.names)))
    scale = np.append(given.scale, np.full(count, given.scale[unseen].mean(), np.float32))
    bias = np.append(given.bias, np.full(count, given.bias[unseen].mean(), np.float32))
    return replace(given, scale=scale, bias=bias)


def _shown(scorer: Model, rows: list[int], names: list[str], wanted: list[int]) -> Model:
    """Return the model of the shown classes, which are called as they were asked for."""
    called = dict(zip(wanted, names, strict=True))
    every = [called.get(row, scorer.names[row]) if row >= 0 else BACKGROUND for row in rows]
    given = scorer.calibration
    taken = [max(row, 0) for row in rows]
    return replace(
        scorer,
        names=tuple(every),
        seen=tuple(index for index, row in enumerate(rows) if row in scorer.seen or row < 0),
        unseen=tuple(index for index, row in enumerate(rows) if row in scorer.unseen),
        vectors=None if scorer.vectors is None else scorer.vectors[taken],
        calibration=given and replace(given, scale=given.scale[taken], bias=given.bias[taken]),
    )


def _joined_cells(embeddings: Float32, regions: int) -> NDArray[np.int64]:
    """Join neighbouring cells with like embeddings, (D, h, w) -> region of each cell, int64 (h, w)."""
    from sklearn.cluster import AgglomerativeClustering  # 1.3 s
    from sklearn.feature_extraction.image import grid_to_graph

    dims, height, width = embeddings.shape
    count = min(regions, height * width)
    if count == 1:
        return np.zeros((height, width), dtype=np.int64)
    ward = AgglomerativeClustering(n_clusters=count, linkage="ward", connectivity=grid_to_graph(height, width))
    cells: Any = ward.fit_predict(embeddings.reshape(dims, -1).T.astype(np.float64))
    return np.asarray(cells.reshape(height, width), dtype=np.int64)


def _means(embeddings: Float32, cells: NDArray[np.int64]) -> Float32:
    """Return the mean embedding of each region, float32 (M, D)."""
    sums = np.stack([np.bincount(cells.ravel(), weights=plane.ravel()) for plane in embeddings], axis=1)
    return (sums / np.bincount(cells.ravel())[:, None]).astype(np.float32)


def _merged(cells: NDArray[np.int64], best: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number anew so that touching regions with the same nearest word are one, largest first."""
    from scipy.ndimage import label

    merged = np.zeros_like(cells)
    words = best[cells]
    start = 0
    for word in np.unique(words):
        parts, count = label(words == word)
        merged[parts > 0] = parts[parts > 0] + (start - 1)
        start += count
    order = np.argsort(-np.bincount(merged.ravel()), kind="stable")
    return np.argsort(order)[merged]


def _nearest(
    mean: Float32, scores: Float32, words: Sequence[str], vectors: Float32, count: int
) -> list[tuple[str, float]]:
    """Return the words that score best, and the cosines."""
    count = min(count, len(words))
    some = np.argpartition(-scores, count - 1)[:count]
    order = some[np.lexsort((some, -scores[some]))]
    lengths = np.linalg.norm(vectors[order], axis=1) * np.linalg.norm(mean)
    cosines = vectors[order] @ mean / np.maximum(lengths, np.finfo(np.float32).tiny)
    return [(words[index], float(cosine)) for index, cosine in zip(order, cosines, strict=True)]


def _laid_out(cells: NDArray[np.int64], found: list[list[tuple[str, float]]], grid: ScoreGrid) -> Reading:
    """Bring the regions to the photo's size, with smooth borders, and measure them there."""
    member = F.one_hot(torch.from_numpy(cells)).permute(2, 0, 1).float()
    by_cell = label_map(replace(grid, scores=member))
    areas = np.bincount(by_cell.ravel(), minlength=len(found))
    order = np.argsort(-areas, kind="stable")
    region_map = np.argsort(order).astype(np.uint8)[by_cell]
    regions = []
    for index, region in enumerate(order[areas[order] > 0]):  # one that lies in the padding has no pixel
        rows, columns = np.nonzero(region_map == index)
        box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        regions.append(Region(float(areas[region] / areas.sum()), box, tuple(found[region])))
    return Reading(tuple(regions), region_map)
