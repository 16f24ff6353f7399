"""What the report shows of each photo: the picture, its label maps, and what the model says of every place.

Conventions:
    A model's scores live on its coarse grid and are brought to full size bilinearly (`zsseg.inference`). Of each cell
    the best `BEST` classes are kept; a reader that interpolates between the four cells round a place as the model does
    gets the model's own score of a class wherever these four hold it, up to the 1/65535 of the photo's range of scores
    to which they are rounded. A place is given as a fraction (u, v) of the picture's width and height; it lies at
    (u · columns − ½, v · rows − ½) of the grid, where rows and columns need not be whole. Cells in the padding that no
    place needs are cut off. Grids of more than `MAX_CELLS` cells are averaged two by two.
    Words are those nearest to the embeddings by which `predict --vocabulary` tells them.
    Label maps are brought to the size of the picture, nearest; IoU and shares are of full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from zsseg.calibration import Calibration
from zsseg.classes import VOID
from zsseg.images import UInt8, resize_image, resize_label_map
from zsseg.inference import NEVER, Model, calibrate, nne_scores, predict_grid, score_image
from zsseg.metrics import confusion, iou
from zsseg.open_vocabulary import embed_image
from zsseg.winners import ScoreGrid

BEST = 8  # classes kept of each cell
MAX_CELLS = 4096
PICTURE_SIDE = 512  # pixels
NEAREST_WORDS = 4  # of a place
SAMPLES = 1500  # pixel embeddings in all
TOP = 65535  # of the scale to which scores are rounded

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cells:
    """The best classes of each cell of one photo.

    Attributes:
        ids: uint8 (h, w, K), best first, 255 = none left.
        scores: uint16 (h, w, K), `low` + value / 65535 · (`high` − `low`).
        low: The lowest score kept.
        high: The highest.
        rows: How many cells the picture is high; not always whole.
        columns: How many it is wide.
    """

    ids: UInt8
    scores: NDArray[np.uint16]
    low: float
    high: float
    rows: float
    columns: float


@dataclass(frozen=True)
class Embedded:
    """The embeddings of one photo by which words are told, on a grid that may be coarser than that of the scores.

    Attributes:
        embeddings: float32 (D, h, w).
        rows: How many of its cells the picture is high.
        columns: How many it is wide.
        words: Numbers of the words nearest to each cell's embedding, nearest first, uint16 (h, w, J).
    """

    embeddings: Floats
    rows: float
    columns: float
    words: NDArray[np.uint16]


@dataclass(frozen=True)
class Samples:
    """Pixel embeddings of one photo at some of its cells, S of them.

    Attributes:
        embeddings: float32 (S, D).
        truth: True class at each cell's centre, 255 where unknown, uint8 (S,).
        predicted: The predicted one, uint8 (S,).
        places: Fractions of the picture's width and height, float64 (S, 2).
        words: As of `Embedded`, uint16 (S, J).
    """

    embeddings: Floats
    truth: UInt8
    predicted: UInt8
    places: NDArray[np.float64]
    words: NDArray[np.uint16]


@dataclass(frozen=True)
class Exhibit:
    """One photo of the gallery.

    Attributes:
        name: The image's id.
        picture: uint8 (h, w, 3), at most `PICTURE_SIDE` a side; None without the photo.
        truth: uint8 (h, w) at the picture's size, or None.
        predicted: uint8 (h, w), or None.
        size: Height and width of the picture.
        full_size: Height and width of the photo itself.
        cells: What the model says of every place, or None.
        embedded: Its embeddings and the words near them, or None.
        ious: IoU of each class in truth or prediction, by its id; empty without both.
        present: Ids of the classes in truth or prediction.
    """

    name: str
    picture: UInt8 | None
    truth: UInt8 | None
    predicted: UInt8 | None
    size: tuple[int, int]
    full_size: tuple[int, int]
    cells: Cells | None
    embedded: Embedded | None
    ious: dict[int, float]
    present: tuple[int, ...]


@dataclass(frozen=True)
class Words:
    """Words of the joint space, V of them.

    Attributes:
        texts: The words.
        vectors: float32 (V, D).
    """

    texts: tuple[str, ...]
    vectors: Floats


def exhibit(
    name: str,
    photo: UInt8 | None,
    truth: UInt8 | None,
    predicted: UInt8 | None,
    *,
    classes: int,
    cells: Cells | None = None,
    embedded: Embedded | None = None,
) -> Exhibit:
    """Bring what is known of a photo to the size of its picture and compare the two label maps.

    Args:
        name: The image's id.
        photo: uint8 (H, W, 3), or None.
        truth: uint8 (H, W), or None.
        predicted: uint8 (H, W), or None. One of the three is there.
        classes: How many classes.
        cells: What the model says, or None.
        embedded: Its embeddings, or None.

    Raises:
        DataError: A label map holds a class that does not exist, or the two differ in size.
    """
    full = next(each.shape[:2] for each in (photo, truth, predicted) if each is not None)
    shrink = min(1.0, PICTURE_SIDE / max(full))
    size = max(1, round(full[0] * shrink)), max(1, round(full[1] * shrink))
    ious: dict[int, float] = {}
    if truth is not None and predicted is not None:
        each = iou(confusion(truth, predicted, classes))
        ious = {int(index): float(each[index]) for index in np.flatnonzero(np.isfinite(each))}
    maps = [each for each in (truth, predicted) if each is not None]
    present = sorted({int(index) for each in maps for index in np.unique(each)} - {VOID})
    return Exhibit(
        name=name,
        picture=None if photo is None else resize_image(photo, size),
        truth=None if truth is None else resize_label_map(truth, size),
        predicted=None if predicted is None else resize_label_map(predicted, size),
        size=size,
        full_size=(int(full[0]), int(full[1])),
        cells=cells,
        embedded=embedded,
        ious=ious,
        present=tuple(present),
    )


@torch.inference_mode()
def look(
    model: Model, photo: UInt8, calibration: Calibration, words: Words | None, *, max_side: int
) -> tuple[UInt8, Cells, Embedded | None]:
    """Run a model on a photo.

    Args:
        model: Any model.
        photo: uint8 (H, W, 3).
        calibration: Applied to its scores.
        words: Words to compare the embeddings with; None of a softmax model.
        max_side: Larger photos are scored at this long side, in pixels.

    Returns:
        The predicted label map, uint8 (H, W); the best classes of each cell; and the embeddings, None without words.
    """
    grid = score_image(model, photo, max_side=max_side)
    predicted = predict_grid(model, grid, calibration).label_map
    cells = best_classes(calibrate(grid, calibration))
    return predicted, cells, None if words is None else embed(embed_image(model, photo, max_side=max_side), words)


def embed(grid: ScoreGrid, words: Words) -> Embedded:
    """Find the words nearest to each cell of a grid that holds embeddings in the place of scores."""
    embeddings, (rows, columns) = _fewer(grid.scores.cpu(), grid)
    scores = nne_scores(embeddings, torch.from_numpy(words.vectors))
    nearest = scores.topk(min(NEAREST_WORDS, len(words.texts)), dim=0).indices
    return Embedded(embeddings.numpy(), rows, columns, nearest.permute(1, 2, 0).numpy().astype(np.uint16))


def best_classes(grid: ScoreGrid) -> Cells:
    """Return the best `BEST` classes of each cell of a grid of calibrated scores."""
    scores, (rows, columns) = _fewer(grid.scores, grid)
    best, ids = scores.cpu().topk(min(BEST, len(scores)), dim=0)
    values, kept = best.permute(1, 2, 0).numpy(), (best > NEVER / 2).permute(1, 2, 0).numpy()
    low, high = (float(values[kept].min()), float(values[kept].max())) if kept.any() else (0.0, 0.0)
    steps = (values - low) / max(high - low, 1e-12) * TOP
    return Cells(
        ids=np.where(kept, ids.permute(1, 2, 0).numpy(), VOID).astype(np.uint8),
        scores=np.where(kept, steps, 0).round().astype(np.uint16),
        low=low, high=high, rows=rows, columns=columns,
    )  # fmt: skip


def _fewer(maps: torch.Tensor, grid: ScoreGrid) -> tuple[torch.Tensor, tuple[float, float]]:
    """Cut off the padding of maps on a photo's grid, (K, h, w), and average them until few enough cells are left.

    Returns:
        The maps, and how many cells the photo itself is high and wide.
    """
    rows, columns = (length / grid.stride for length in grid.input_size)
    maps = maps[:, : int(np.ceil(rows + 0.5)), : int(np.ceil(columns + 0.5))]
    while maps.shape[1] * maps.shape[2] > MAX_CELLS:
        # with all that lies outside left out of the average, aligned centres stay aligned
        maps = F.avg_pool2d(maps[None], 2, ceil_mode=True, count_include_pad=False)[0]
        rows, columns = rows / 2, columns / 2
    return maps, (rows, columns)


def sample(
    embedded: Embedded, truth: UInt8 | None, predicted: UInt8, *, count: int, rng: np.random.Generator
) -> Samples:
    """Choose cells of a photo at random, every class in it as likely as any other.

    Args:
        embedded: Of the photo.
        truth: uint8 (H, W), or None; void cells are not chosen.
        predicted: uint8 (H, W).
        count: How many at most.
        rng: What chooses.
    """
    dims, height, width = embedded.embeddings.shape
    across, down = (np.arange(width) + 0.5) / embedded.columns, (np.arange(height) + 0.5) / embedded.rows
    places = np.stack(np.meshgrid(across, down), axis=-1)
    places = places.reshape(-1, 2).clip(0, 1 - 1e-9)
    at = (places[:, 1] * predicted.shape[0]).astype(int), (places[:, 0] * predicted.shape[1]).astype(int)
    known = np.full(len(places), VOID, dtype=np.uint8) if truth is None else truth[at]
    classes = predicted[at] if truth is None else known
    usable = np.flatnonzero(classes != VOID)
    sizes = np.bincount(classes, minlength=256)
    odds = 1 / sizes[classes[usable]]
    chosen = np.sort(rng.choice(usable, min(count, len(usable)), replace=False, p=odds / odds.sum()))
    return Samples(
        embeddings=embedded.embeddings.reshape(dims, -1).T[chosen],
        truth=known[chosen],
        predicted=predicted[at][chosen],
        places=places[chosen],
        words=embedded.words.reshape(len(places), -1)[chosen],
    )


def joined(samples: Sequence[Samples]) -> dict[str, NDArray[Any]]:
    """Return the samples of several photos one after the other, by field, and `photo`, the number of each one's."""
    fields = ("embeddings", "truth", "predicted", "places", "words")
    together = {field: np.concatenate([getattr(each, field) for each in samples]) for field in fields}
    counts = [len(each.truth) for each in samples]
    return {**together, "photo": np.repeat(np.arange(len(samples)), counts)}
