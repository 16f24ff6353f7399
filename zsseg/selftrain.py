"""Self-training: pseudo-labels of unseen classes on training photos, from what a first model says of them.

This is **transductive**: the training photos show unseen classes, unlabelled, and the method looks at them. No label of
an unseen pixel is read: label maps come through `dataset.training_labels`, where unseen classes are void. A result
of it is not comparable to an inductive one, so every record names it.

Two rules say where a pseudo-label may be put:
    void      The usual protocol. Pixels that are void in training are either unlabelled or of an unseen class, so
              label maps tell *where* unseen objects are. Thin void borders, which VOC draws round every object,
              are taken away: a pixel counts as inside if it is further than `MARGIN` pixels from every labelled one.
              The inside pixels take the best of the *unseen* classes alone. A pixel's own score and the mean score
              of its connected region count half each: mostly a region is one object, yet neighbours may touch.
              Bucher et al., "Zero-Shot Semantic Segmentation" (ZS5Net), NeurIPS 2019;
              Pastore et al., "A Closer Look at Self-training for Zero-Label Semantic Segmentation" (STRICT), CVPRW 2021
    anywhere  Blind. What is proposed does not depend on any label map: all classes, seen and unseen, compete on every
              pixel of a photo, under the first model's calibration, and a pixel that an unseen class wins proposes it.
              A proposal on a pixel with a seen label is dropped: that label is given and right.
Under both, a pseudo-label is kept only where all views of the photo, `SCALES` × mirrored or not, agree on the class
(STRICT). A pixel without a pseudo-label stays as it was.

What remains of label maps in `anywhere` is that last step: since seen labels win, what is kept lies on void pixels, and
wrong proposals on seen objects vanish. A method that had no seen labels for these photos would keep these as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from zsseg import calibration as calibrations
from zsseg import distributed
from zsseg.artifacts import Artifact
from zsseg.calibration import Calibration
from zsseg.classes import VOID
from zsseg.config import PredictConfig, SelfTrain
from zsseg.dataset import read_image, training_labels
from zsseg.images import UInt8, encode_label_map, resize_image, resize_label_map
from zsseg.inference import Model, calibrate, label_map, score_image
from zsseg.progress import Progress
from zsseg.winners import ScoreGrid, score_tiles

SCALES = (1.0, 0.75, 1.25)  # the plain view first: where it proposes nothing, no other is needed
MARGIN = 3  # pixels; VOC's borders are about five wide
REGION_SHARE = 0.5  # of a region's mean score beside the pixel's own
PHOTOS = 2000  # that are looked at, at most


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of training photos.

    Attributes:
        maps: Image index -> PNG of unseen class ids, 255 where there is none; only photos that have any, ascending.
        record: How they came about, as the model artifact states it: plain JSON values.
    """

    maps: Mapping[int, bytes]
    record: dict[str, Any]

    def labelled(self, names: Sequence[str]) -> list[int]:
        """Return the ids of the unseen classes that any pixel was given, ascending."""
        return sorted(names.index(name) for name, count in self.record["pixels"].items() if count)


def pseudo_labels(
    rule: SelfTrain, model: Model, data: Artifact, photos: NDArray[np.int64], *, seed: int, progress: Progress
) -> PseudoLabels:
    """Look at training photos in random order, at most `PHOTOS` of them, and give pixels unseen classes.

    Args:
        rule: Where pseudo-labels may be put. By `void`, photos without inside pixels or label map are passed over.
        model: What proposes them; in evaluation mode.
        data: An open data artifact.
        photos: Indices of the training photos, int64 (T,).
        seed: Of the order.
        progress: Told of each photo.
    """
    order = np.random.default_rng([seed, len(photos)]).permutation(photos)
    sizes = data.array("sizes").tolist()
    looked = 0
    pixels = np.zeros(256, dtype=np.int64)
    maps: dict[int, bytes] = {}
    for index in progress.track(order.tolist(), "pseudo-labels", len(order)):
        if looked == PHOTOS:
            break
        labels = training_labels(data, index, model.unseen, tuple(sizes[index]))
        inside = inner_void(labels) & bool(data.bytes_at("label_maps", index)) if rule == "void" else None
        if inside is not None and not inside.any():
            continue
        looked += 1
        if looked % distributed.world() != distributed.rank():
            continue  # another process looks at it
        image = read_image(data, index)
        # `propose` is given no label
        proposed = propose(model, image) if inside is None else propose_inside(model, image, inside)
        kept = yield_to_seen(proposed, labels)
        if (kept != VOID).any():
            maps[index] = encode_label_map(kept)
            pixels += np.bincount(kept.ravel(), minlength=256)
    maps, pixels = distributed.merged(maps), distributed.sum_counts(pixels)
    counts = {model.names[index]: int(pixels[index]) for index in model.unseen}
    return PseudoLabels(maps, _record(rule, looked=looked, labelled=len(maps), pixels=counts))


def inner_void(label_map: UInt8, margin: int = MARGIN) -> NDArray[np.bool_]:
    """Return the void pixels that have no labelled pixel within `margin` rows and columns, bool (H, W).

    Strips of void up to 2 · margin wide vanish. What lies outside of the photo does not count as labelled.
    """
    labelled = torch.from_numpy(label_map != VOID).float()[None, None]
    near = F.max_pool2d(labelled, (2 * margin + 1, 1), stride=1, padding=(margin, 0))
    near = F.max_pool2d(near, (1, 2 * margin + 1), stride=1, padding=(0, margin))
    inside: NDArray[np.bool_] = (near == 0)[0, 0].numpy()
    return inside


def propose(model: Model, image: UInt8) -> UInt8:
    """Return the unseen classes that win against all others in every view, uint8 (H, W), 255 elsewhere.

    Args:
        model: What scores; its calibration applies.
        image: uint8 (H, W, 3).
    """
    known = np.isin(np.arange(256), model.unseen)

    def vote(grid: ScoreGrid, mirrored: bool) -> UInt8:
        winner = label_map(grid, _calibration(model))
        found = np.where(known[winner], winner, np.uint8(VOID))
        return found[:, ::-1] if mirrored else found

    return _agreed_in_views(model, image, vote)


def propose_inside(model: Model, image: UInt8, inside: NDArray[np.bool_]) -> UInt8:
    """Return the unseen class on which all views agree at each inside pixel, uint8 (H, W), 255 elsewhere.

    Args:
        model: What scores; its calibration applies, but for a gate.
        image: uint8 (H, W, 3).
        inside: Where the choice is among the unseen classes alone, bool (H, W).
    """
    from scipy.ndimage import label as connected  # here: others do without it

    inside = resize_label_map(inside.astype(np.uint8), _working_size(image)) > 0
    regions = connected(inside)[0][inside]
    unseen = np.array(model.unseen, dtype=np.uint8)

    def vote(grid: ScoreGrid, mirrored: bool) -> UInt8:
        scores = _unseen_scores(model, grid)
        scores = scores[:, :, ::-1] if mirrored else scores
        votes = np.full(grid.size, VOID, dtype=np.uint8)
        votes[inside] = unseen[with_region_means(scores[:, inside], regions).argmax(axis=0)]
        return votes

    return _agreed_in_views(model, image, vote)


def with_region_means(
    scores: NDArray[np.float32], regions: NDArray[np.int32], share: float = REGION_SHARE
) -> NDArray[np.float64]:
    """Mix the scores of pixels with the means of their regions: (1 − share) · s_c(p) + share · mean_q s_c(q).

    Args:
        scores: float32 (U, X), of X pixels.
        regions: The number of each pixel's region, (X,), at least 0.
        share: From 0 to 1.

    Returns:
        float64 (U, X).
    """
    sizes = np.bincount(regions).clip(min=1)
    means = np.stack([np.bincount(regions, weights=row) / sizes for row in scores])
    mixed: NDArray[np.float64] = (1 - share) * scores + share * means[:, regions]
    return mixed


def agreed(votes: Sequence[UInt8]) -> UInt8:
    """Return the class where all votes, uint8 (H, W) each, are the same, and 255 elsewhere."""
    same = np.all([vote == votes[0] for vote in votes], axis=0)
    return np.where(same, votes[0], np.uint8(VOID))


def yield_to_seen(proposed: UInt8, label_map: UInt8) -> UInt8:
    """Return the proposals, 255 where the label map, uint8 (H, W), has a seen label."""
    return np.where(label_map == VOID, proposed, np.uint8(VOID))


def _agreed_in_views(model: Model, image: UInt8, vote: Callable[[ScoreGrid, bool], UInt8]) -> UInt8:
    """Return what the votes of all views agree on, uint8 (H, W); stops early where nothing is left."""
    left: UInt8 | None = None
    for scale in SCALES:
        for mirrored in (False, True):
            found = vote(_score_view(model, image, scale=scale, mirrored=mirrored), mirrored)
            left = found if left is None else agreed([left, found])
            if (left == VOID).all():
                return np.full(image.shape[:2], VOID, dtype=np.uint8)
    assert left is not None
    return resize_label_map(np.ascontiguousarray(left), (image.shape[0], image.shape[1]))


def _score_view(model: Model, image: UInt8, *, scale: float, mirrored: bool) -> ScoreGrid:
    """Score a photo at a scale; the grid stands for the photo, mirrored or not, at its working size."""
    size = _working_size(image)
    seen_at = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    view = resize_image(np.ascontiguousarray(image[:, ::-1]) if mirrored else image, seen_at)
    return replace(score_image(model, view, max_side=max(seen_at)), size=size)


def _unseen_scores(model: Model, grid: ScoreGrid) -> NDArray[np.float32]:
    """Return the calibrated scores of the unseen classes at full size, float32 (U, H, W)."""
    scores = calibrate(grid, _calibration(model)).scores[list(model.unseen)]
    tiles = [tile for _, tile in score_tiles(replace(grid, scores=scores))]
    found: NDArray[np.float32] = torch.cat(tiles, dim=1).cpu().numpy()
    return found


def _calibration(model: Model) -> Calibration:
    return model.calibration or calibrations.none(len(model.names))


def _working_size(image: UInt8) -> tuple[int, int]:
    """Return the size at which views are compared: the photo's own, or smaller for large photos, as in `predict`."""
    shrink = min(1.0, PredictConfig.max_side / max(image.shape[:2]))
    return max(1, round(image.shape[0] * shrink)), max(1, round(image.shape[1] * shrink))


def _record(rule: SelfTrain, *, looked: int, labelled: int, pixels: dict[str, int]) -> dict[str, Any]:
    """Return what the model artifact says of the pseudo-labels."""
    inside = {"margin": MARGIN, "region_share": REGION_SHARE} if rule == "void" else {}
    return {
        "setting": "transductive",
        "scales": list(SCALES),
        "mirrored": [False, True],
        **inside,
        "photos": looked,
        "photos_labelled": labelled,
        "pixels": pixels,
    }
