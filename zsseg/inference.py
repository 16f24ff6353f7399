"""Image -> class scores -> label map, shared by `eval`, `predict`, `train`'s validation and `zsseg.load`.

Nearest neighbouring embedding (NNE): a pixel takes the class whose vector w_c is nearest to its embedding f,
    argmin_c ‖f − w_c‖² = argmax_c (w_c·f − ½‖w_c‖²),
since ‖f‖² is the same for every class. The score w_c·f − ½‖w_c‖² is affine in f and bilinear weights sum to 1, so
scoring on the coarse h × w grid and upsampling the C scores gives exactly what upsampling the D-dim embeddings
and searching at full size gives, at a fraction of the cost; no D × H × W tensor is ever made. Where the
class vectors have unit length (the default) the ranking is that of the dot product, hence of the cosine, too: ‖f‖ does
not matter.
Large images go through in tiles of rows, so that C × H × W scores never exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zsseg.artifacts import Artifact, open_artifact
from zsseg.config import Device, ModelName, Precision, PredictConfig
from zsseg.dataset import normalise
from zsseg.errors import ArtifactError, DataError
from zsseg.hardware import autocast, choose_device, choose_precision
from zsseg.images import UInt8, decode_image, resize_image, upright_rgb
from zsseg.models import SegmentationNet, build

TILE = 2**21  # scores in one tile: C × rows × W; 8 MB stay in cache
NEVER = -1e9  # the score of a class that cannot be predicted; finite, so that interpolation stays finite


@dataclass(frozen=True)
class ScoreGrid:
    """Class scores of one image on the model's coarse grid.

    Attributes:
        scores: float32 (C, h, w).
        stride: Pixels of the network's input between neighbouring cells.
        input_size: Height and width of what the network saw; padding lies beyond.
        size: Height and width of the image itself.
    """

    scores: Tensor
    stride: int
    input_size: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label_map: uint8 (H, W), class ids.
        areas: Pixels given to each class, int64 (C,).
        mean_scores: Mean score of those pixels, float32 (C,); NaN where there are none.
        names: Class names.
    """

    label_map: UInt8
    areas: NDArray[np.int64]
    mean_scores: NDArray[np.float32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A trained model, ready to predict. Made by `load_model` (`zsseg.load`).

    Attributes:
        net: The network, in evaluation mode.
        names: Class names, C of them.
        seen: Ids of the seen classes.
        unseen: Ids of the unseen classes.
        vectors: Class vectors, float32 (C, D), or None for a softmax model, which knows the seen classes only.
        device: Where the network is.
        precision: "float32" or "bfloat16".
        params: The settings that the artifact records.
        digest: The artifact's digest.
    """

    net: SegmentationNet
    names: tuple[str, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    vectors: Tensor | None
    device: torch.device
    precision: Precision
    params: dict[str, Any]
    digest: str = ""

    def predict(
        self,
        image: UInt8 | Image.Image | str | Path,
        *,
        seen_bias: float = PredictConfig.seen_bias,
        max_side: int = PredictConfig.max_side,
    ) -> Prediction:
        """Label every pixel of an image, over all classes, seen and unseen.

        Args:
            image: A path, a PIL image, or uint8 RGB (H, W, 3).
            seen_bias: Subtracted from the score of every seen class (calibrated stacking, Chao et al., ECCV 2016).
            max_side: Larger images are scored at this long side, in pixels; the label map keeps the image's size.

        Raises:
            DataError: It is no image.
        """
        grid = score_image(self, as_rgb(image), max_side=max_side)
        return predict_grid(self, grid, seen_bias=seen_bias)


def load_model(path: Path, *, device: Device | str = "auto", precision: Precision = "auto") -> Model:
    """Rebuild a model from its artifact alone.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
        SettingError: The device is not there.
    """
    chosen = choose_device(device)  # type: ignore[arg-type]  # an unknown name fails in torch.device
    with open_artifact(path, "model") as artifact:
        net = restore_net(artifact)
        return Model(
            net=net.to(chosen).eval(),
            names=tuple(artifact.strings("names")),
            seen=tuple(int(index) for index in artifact.array("seen")),
            unseen=tuple(int(index) for index in artifact.array("unseen")),
            vectors=torch.from_numpy(artifact.array("vectors")).to(chosen) if "vectors" in artifact else None,
            device=chosen,
            precision=choose_precision(precision, chosen),
            params=artifact.params,
            digest=artifact.digest,
        )


def restore_net(artifact: Artifact) -> SegmentationNet:
    """Build the network that a model artifact describes and load its weights.

    Raises:
        ArtifactError: Its settings and its weights do not fit each other.
    """
    name: Any = artifact.params.get("model")
    dim = artifact.params.get("out_dim")
    if name not in get_args(ModelName) or not isinstance(dim, int):
        raise ArtifactError(f"{artifact.path}: model {name!r} with {dim!r} outputs is not one that this zsseg knows")
    with torch.device("meta"):  # no time spent on random parameters that are overwritten at once
        net = build(name, dim)
    state = {key: torch.from_numpy(value) for key, value in artifact.arrays("weights").items()}
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ArtifactError(f"{artifact.path}: its weights do not fit {name}; train again with --force") from error
    return net.to(memory_format=torch.channels_last)


def as_rgb(image: UInt8 | Image.Image | str | Path) -> UInt8:
    """Return any accepted kind of image as uint8 RGB (H, W, 3)."""
    if isinstance(image, str | Path):
        return decode_image(Path(image), str(image))
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(f"an image array has dtype {array.dtype} and shape {array.shape}, expected uint8 (H, W, 3)")
    return np.require(array, requirements=["C", "W"])  # torch takes neither mirrored nor read-only arrays


def nne_scores(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Score every class at every cell: w_c·f − ½‖w_c‖²; the largest is the nearest class vector.

    Args:
        embeddings: float32 (D, h, w).
        vectors: Class vectors, float32 (C, D).

    Returns:
        float32 (C, h, w).
    """
    dims, height, width = embeddings.shape
    products = vectors @ embeddings.reshape(dims, height * width)
    return (products - vectors.square().sum(dim=1, keepdim=True) / 2).reshape(-1, height, width)


@torch.inference_mode()
def score_image(model: Model, image: UInt8, *, max_side: int) -> ScoreGrid:
    """Run the network on one image and score every class on the coarse grid."""
    size = image.shape[:2]
    shrink = min(1.0, max_side / max(size))
    input_size = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
    pixels = torch.from_numpy(resize_image(image, input_size))[None].to(model.device)
    with autocast(model.precision, model.device):
        outputs = model.net(normalise(pixels, model.net.mean, model.net.std))[0].float()
    return ScoreGrid(class_scores(model, outputs), model.net.stride, input_size, (size[0], size[1]))


def class_scores(model: Model, outputs: Tensor) -> Tensor:
    """Turn one image's outputs, (D, h, w), into scores of all classes, float32 (C, h, w).

    A softmax model's logits cover the seen classes; its unseen classes score `NEVER`.
    """
    if model.vectors is not None:
        return nne_scores(outputs, model.vectors)
    scores = outputs.new_full((len(model.names), *outputs.shape[1:]), NEVER)
    scores[list(model.seen)] = outputs
    return scores


def score_tiles(grid: ScoreGrid) -> Iterator[tuple[slice, Tensor]]:
    """Upsample the scores to the image's size, some rows at a time.

    Bilinear with aligned cell centres: `F.interpolate(..., mode="bilinear", align_corners=False)` of the whole grid
    by the stride, cut to the input's size, where input and image have one size.

    Yields:
        The rows of the image, and their scores, float32 (C, rows, W).
    """
    classes = grid.scores.shape[0]
    height, width = grid.size
    left, right, x = _neighbours(width, grid.input_size[1], grid.stride, grid.scores.shape[2], grid.scores)
    wide = torch.lerp(grid.scores[:, :, left], grid.scores[:, :, right], x)  # (C, h, W)
    top, bottom, y = _neighbours(height, grid.input_size[0], grid.stride, grid.scores.shape[1], grid.scores)
    step = max(1, TILE // (classes * width))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        yield rows, torch.lerp(wide[:, top[rows]], wide[:, bottom[rows]], y[rows, None])


def _neighbours(length: int, input_length: int, stride: int, cells: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pixel the two cells that it lies between and the weight of the second."""
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) * (input_length / length) / stride - 0.5
    position = centres.clamp(0, cells - 1)
    first = position.floor().long()
    second = (first + 1).clamp(max=cells - 1)
    weight = (position - first).to(like.dtype)
    return first.to(like.device), second.to(like.device), weight.to(like.device)


@torch.inference_mode()
def label_maps(grid: ScoreGrid, biases: Sequence[NDArray[np.float32]]) -> list[UInt8]:
    """Give each pixel its best class, once for every bias, from one pass over the scores.

    Args:
        grid: Scores of one image.
        biases: Vectors (C,) that are added to the scores; `NEVER` keeps a class out.

    Returns:
        uint8 (H, W) class ids, one for each bias.
    """
    maps = [np.empty(grid.size, dtype=np.uint8) for _ in biases]
    added = [torch.from_numpy(bias).to(grid.scores.device)[:, None, None] for bias in biases]
    for rows, scores in score_tiles(grid):
        for label_map, bias in zip(maps, added, strict=True):
            best = (scores + bias).argmax(dim=0) if bias.any() else scores.argmax(dim=0)
            label_map[rows] = best.to(torch.uint8).cpu().numpy()
    return maps


def seen_bias_vector(model: Model, seen_bias: float) -> NDArray[np.float32]:
    """Return what calibrated stacking adds to the scores: −seen_bias for seen classes, 0 for unseen, (C,)."""
    bias = np.zeros(len(model.names), dtype=np.float32)
    bias[list(model.seen)] = -seen_bias
    return bias


@torch.inference_mode()
def predict_grid(model: Model, grid: ScoreGrid, *, seen_bias: float) -> Prediction:
    """Label every pixel and sum up each class's area and mean score."""
    classes = len(model.names)
    bias = torch.from_numpy(seen_bias_vector(model, seen_bias)).to(grid.scores.device)[:, None, None]
    label_map = np.empty(grid.size, dtype=np.uint8)
    areas = np.zeros(classes, dtype=np.int64)
    sums = np.zeros(classes, dtype=np.float64)
    for rows, scores in score_tiles(grid):
        best, ids = (scores + bias).max(dim=0)
        labels = ids.to(torch.uint8).cpu().numpy()
        label_map[rows] = labels
        areas += np.bincount(labels.ravel(), minlength=classes)
        sums += np.bincount(labels.ravel(), weights=best.cpu().numpy().ravel().astype(np.float64), minlength=classes)
    means = np.divide(sums, areas, out=np.full(classes, np.nan), where=areas > 0).astype(np.float32)
    return Prediction(label_map, areas, means, model.names)
