"""Image -> class scores -> label map, shared by `eval`, `predict`, `train`'s validation and `zsseg.load`.

Nearest neighbouring embedding (NNE): a pixel takes the class whose vector w_c is nearest to its embedding f,
    argmin_c ‖f − w_c‖² = argmax_c (w_c·f − ½‖w_c‖²),
since ‖f‖² is the same for every class. The score w_c·f − ½‖w_c‖² is affine in f and bilinear weights sum to 1, so
scoring on the coarse h × w grid and upsampling the C scores gives exactly what upsampling the D-dim embeddings
and searching at full size gives, at a fraction of the cost; no D × H × W tensor is ever made. Where the
class vectors have unit length (the default) the ranking is that of the dot product, hence of the cosine, too: ‖f‖ does
not matter.
A calibration (`zsseg.calibration`) that a model carries applies to all that it predicts. It is affine in each class's
score, so it is done on the coarse grid, too; its gate, if it has one, at full size.
Large images go through in tiles of rows, so that C × H × W scores never exist at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zsseg import calibration as calibrations
from zsseg.artifacts import Artifact, open_artifact
from zsseg.calibration import Calibration
from zsseg.config import Calibrated, Device, ModelName, Precision, PredictConfig
from zsseg.dataset import normalise
from zsseg.errors import ArtifactError, DataError, SettingError
from zsseg.hardware import autocast, choose_device, choose_precision
from zsseg.images import UInt8, decode_image, resize_image, upright_rgb
from zsseg.models import SegmentationNet, build
from zsseg.models.gate import gated_scores
from zsseg.models.rounding import to_bfloat16
from zsseg.presence import UNRECORDED, with_presence
from zsseg.winners import Found, ScoreGrid, best_tiles, highest, score_tiles

log = logging.getLogger(__name__)

GROUP = 64  # classes whose best score is kept, of many
CELLS, BLOCK = 256, 128 * GROUP  # so many embeddings are compared with so many classes at a time
DISTANCE_FLOOR = 1e-12  # a distance of 0 has no ratio to others
NEVER = -1e9  # the score of a class that cannot be predicted; finite, so that interpolation stays finite


@dataclass(frozen=True)
class Contest:
    """The best seen and the best unseen class of each pixel of one image.

    Attributes:
        label_map: The better of the two, uint8 (H, W).
        seen: The best seen class, of those that pass a gate where one does, uint8 (H, W).
        unseen: The best unseen class, likewise, uint8 (H, W).
        gap: How much better the seen one scores, float32 (H, W); log(d_unseen² / d_seen²) under a calibration that
            compares distances; ±inf where its gate keeps one of the two out.
    """

    label_map: UInt8
    seen: UInt8
    unseen: UInt8
    gap: NDArray[np.float32]


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
        net: The network, in evaluation mode; with weights for prediction alone: rounded (`models.rounding`)
            and folded (`models.folding`).
        names: Class names, C of them.
        seen: Ids of the seen classes.
        unseen: Ids of the unseen classes.
        vectors: Class vectors, float32 (C, D), or None for a softmax model, which knows the seen classes only.
        device: Where the network is.
        precision: "float32" or "bfloat16".
        params: The settings that the artifact records.
        digest: The artifact's digest.
        calibration: What is done to the scores; None: nothing.
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
    calibration: Calibration | None = None

    def predict(
        self,
        image: UInt8 | Image.Image | str | Path,
        *,
        calibration: Calibrated = PredictConfig.calibration,
        seen_bias: float | None = PredictConfig.seen_bias,
        max_side: int = PredictConfig.max_side,
    ) -> Prediction:
        """Label every pixel of an image, over all classes, seen and unseen.

        Args:
            image: A path, a PIL image, or uint8 RGB (H, W, 3).
            calibration: "none" leaves out the calibration that the model carries.
            seen_bias: Subtracted from the score of every seen class (calibrated stacking, Chao et al., ECCV 2016),
                instead of the model's calibration.
            max_side: Larger images are scored at this long side, in pixels; the label map keeps the image's size.

        Raises:
            DataError: It is no image.
        """
        grid = score_image(self, as_rgb(image), max_side=max_side)
        return predict_grid(self, grid, chosen_calibration(self, calibration, seen_bias))


def load_model(path: Path, *, device: Device | str = "auto", precision: Precision = "auto") -> Model:
    """Rebuild a model from its artifact alone.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
        SettingError: The device is not there.
    """
    chosen = choose_device(device)  # type: ignore[arg-type]  # an unknown name fails in torch.device
    taken = choose_precision(precision, chosen)
    with open_artifact(path, "model") as artifact:
        net = restore_net(artifact).eval().folded(taken, chosen)
        if taken == "bfloat16":
            to_bfloat16(net)
        return Model(
            net=net.to(chosen),
            names=tuple(artifact.strings("names")),
            seen=tuple(int(index) for index in artifact.array("seen")),
            unseen=tuple(int(index) for index in artifact.array("unseen")),
            vectors=torch.from_numpy(artifact.array("vectors")).to(chosen) if "vectors" in artifact else None,
            device=chosen,
            precision=taken,
            params=artifact.params,
            digest=artifact.digest,
            calibration=_calibration(artifact),
        )


def _calibration(artifact: Artifact) -> Calibration | None:
    if "calibration_scale" not in artifact:
        return None
    choice = artifact.params["calibration_choice"]
    return Calibration(
        method=artifact.params["calibration"],
        scale=artifact.array("calibration_scale"),
        bias=artifact.array("calibration_bias"),
        parameter=choice["parameter"],
        top2=choice["top2"],
        chosen_on=tuple(choice["validation_classes"]),
    )


class _Undrawn(TorchFunctionMode):
    """Leave parameters as they are: on the meta device, too, drawing them takes as long as building the network."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch unless it is one of `torch.nn.init`; those return the tensor that they fill."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def restore_net(artifact: Artifact) -> SegmentationNet:
    """Build the network that a model artifact describes and load its weights.

    Raises:
        ArtifactError: Its settings and its weights do not fit each other.
    """
    name: Any = artifact.params.get("model")
    dim = artifact.params.get("out_dim")
    if name not in get_args(ModelName) or not isinstance(dim, int):
        raise ArtifactError(f"{artifact.path}: model {name!r} with {dim!r} outputs is not one that this zsseg knows")
    options: dict[str, Any] = {key: artifact.params.get(key) for key in ("backbone", "stacks", "dense_features")}
    options["gate"] = bool(artifact.params.get("gate"))
    options["anchors"] = len(artifact.strings("names")) if artifact.params.get("anchors") == "imagenet" else 0
    state = {key: torch.from_numpy(value) for key, value in artifact.arrays("weights").items()}
    try:
        with torch.device("meta"), _Undrawn():  # no time spent on random parameters that are overwritten at once
            net = build(name, dim, **options)
        if any(buffer.is_meta for key, buffer in net.named_buffers() if key not in state):
            with torch.random.fork_rng(devices=[]):  # computed when it is built, and not among the weights
                net = build(name, dim, **options)
        net.load_state_dict(state, assign=True)
    except (SettingError, TypeError) as error:
        raise ArtifactError(f"{artifact.path}: cannot be rebuilt: {error}") from error
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


def nearest_classes(embeddings: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest of many class vectors, exactly, in blocks that stay in the processor's cache.

    Only the best score of every `GROUP` classes is kept at first; the nearest `count` classes lie in the `count` groups
    of the largest of these.

    Args:
        embeddings: float32 (P, D).
        vectors: Class vectors, float32 (C, D).
        count: How many, at most C.

    Returns:
        Scores w_c·f − ½‖w_c‖², float32 (P, count), largest first, and the classes' ids, int64 (P, count).
    """
    padding = -len(vectors) % GROUP
    half = F.pad(vectors.square().sum(dim=1) / 2, (0, padding), value=torch.inf)
    padded = F.pad(vectors, (0, 0, 0, padding))
    groups = min(count, len(half) // GROUP)
    found = []
    # one memory for all blocks: a new one each time would leave holes between results, too small for the next
    all_scores = embeddings.new_empty(min(CELLS, len(embeddings)), min(BLOCK, len(half)))
    for cells in torch.split(embeddings, CELLS):
        best = []
        for block, h in zip(torch.split(padded, BLOCK), torch.split(half, BLOCK), strict=True):
            scores = torch.addmm(-h, cells, block.T, out=all_scores[: len(cells), : len(block)])
            best.append(scores.view(len(cells), -1, GROUP).amax(dim=2))
        chosen = torch.cat(best, dim=1).topk(groups, dim=1).indices  # (P, groups)
        ids = (chosen[..., None] * GROUP + torch.arange(GROUP, device=chosen.device)).flatten(1)
        scores = (padded[ids] @ cells[..., None])[..., 0] - half[ids]
        top = scores.topk(count, dim=1)
        found.append((top.values, ids.gather(1, top.indices)))
    return torch.cat([values for values, _ in found]), torch.cat([ids for _, ids in found])


def pixels_for(model: Model, image: UInt8, *, max_side: int) -> tuple[Tensor, tuple[int, int]]:
    """Return what the network sees of an image, uint8 (1, h, w, 3) on the model's device, and its size (h, w)."""
    height, width = image.shape[:2]
    shrink = min(1.0, max_side / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    return torch.from_numpy(resize_image(image, size))[None].to(model.device), size


@dataclass(frozen=True)
class ImageFeatures:
    """What a backbone made of one image.

    Attributes:
        maps: As `SegmentationNet.features` gives, of a batch of one.
        input_size: Height and width of what the network saw of the image, without padding.
        size: Height and width of the image.
    """

    maps: list[Tensor]
    input_size: tuple[int, int]
    size: tuple[int, int]


def score_image(model: Model, image: UInt8, *, max_side: int) -> ScoreGrid:
    """Run the network on one image and score every class on the coarse grid."""
    return score_features(model, image_features(model, image, max_side=max_side))


@torch.inference_mode()
def image_features(model: Model, image: UInt8, *, max_side: int) -> ImageFeatures:
    """Run the backbone on one image, of which no side is longer than `max_side` for it."""
    height, width = image.shape[:2]
    pixels, input_size = pixels_for(model, image, max_side=max_side)
    net = model.net
    with autocast(model.precision, model.device):
        maps = net.features(net.pad(normalise(pixels, net.mean, net.std)))
    return ImageFeatures(maps, input_size, (height, width))


@torch.inference_mode()
def score_features(model: Model, image: ImageFeatures) -> ScoreGrid:
    """Score every class on the coarse grid from what the backbone made of an image."""
    net, features = model.net, image.maps
    with autocast(model.precision, model.device):
        outputs = net.head(features)[0].float()
        gate, prior = finer(net.gate_cells(features), net), finer(net.prior(features), net)
    scores = joint_scores(model, outputs, gate, prior)
    # no distance to a class vector stands behind the scores of head and gate together
    squares = outputs.square().sum(dim=0) if model.vectors is not None and gate is None else None
    return ScoreGrid(scores, net.stride, image.input_size, image.size, squares)


def joint_scores(model: Model, outputs: Tensor, gate: Tensor | None, prior: Tensor | None) -> Tensor:
    """Return the scores by which a photo's classes compete, before any calibration, float32 (C, h, w).

    Args:
        model: Whose gate and presence take part where it has them and a class is unseen.
        outputs: Of the head, (D, h, w) embeddings or (S, h, w) logits.
        gate: Embeddings of the gate, (D, h, w).
        prior: Of the anchors, (C, h, w).
    """
    scores = class_scores(model, outputs)
    if model.vectors is None or not model.unseen:
        return scores
    if gate is not None:
        by_gate = nne_scores(gate, model.vectors)
        scores = gated_scores(scores, by_gate if prior is None else by_gate + prior, model.seen)
    if not model.params.get("presence"):
        return scores
    unit = float(model.vectors.square().sum(dim=1).mean())
    sharpness = model.params.get("presence_sharpness") or UNRECORDED
    return with_presence(scores, model.seen, model.unseen, unit=unit, sharpness=sharpness)


def finer(maps: Tensor | None, net: SegmentationNet) -> Tensor | None:
    """Bring one image's maps from the gate's stride to the outputs', (1, K, h', w') -> float32 (K, h, w)."""
    if maps is None:
        return None
    factor = net.gate_stride / net.stride
    return F.interpolate(maps.float(), scale_factor=factor, mode="bilinear", align_corners=False)[0]


def class_scores(model: Model, outputs: Tensor) -> Tensor:
    """Turn one image's outputs, (D, h, w), into scores of all classes, float32 (C, h, w).

    A softmax model's logits cover the seen classes; its unseen classes score `NEVER`.
    """
    if model.vectors is not None:
        return nne_scores(outputs, model.vectors)
    scores = outputs.new_full((len(model.names), *outputs.shape[1:]), NEVER)
    scores[list(model.seen)] = outputs
    return scores


def chosen_calibration(model: Model, use: Calibrated, seen_bias: float | None) -> Calibration:
    """Return what a command's options ask for: a seen bias replaces the calibration that the model carries."""
    if seen_bias is not None:
        if model.calibration is not None and use == "model":
            log.info("--seen-bias %g stands in for the model's calibration, %s", seen_bias, model.calibration.method)
        return calibrations.stacking(len(model.names), model.seen, seen_bias)
    if use == "none" or model.calibration is None:
        return calibrations.none(len(model.names))
    return model.calibration


@torch.inference_mode()
def calibrate(grid: ScoreGrid, calibration: Calibration, *, excluded: Sequence[int] = ()) -> ScoreGrid:
    """Calibrate all scores of an image, all but the gate; classes left out of the label space score `NEVER`.

    Raises:
        SettingError: It compares distances, and a softmax model has none.
    """
    scores = grid.scores
    if calibration.on_distances:
        if grid.squares is None:
            raise SettingError(
                f"{calibration.method} compares distances to class vectors, a softmax model or one with a gate has none"
            )
        scores = (scores - grid.squares / 2).clamp(max=-DISTANCE_FLOOR)
    if (calibration.scale != 1).any():
        scores = scores * _column(calibration.scale, scores)
    if calibration.bias.any():
        scores = scores + _column(calibration.bias, scores)
    if excluded:
        scores = scores.clone()
        scores[list(excluded)] = NEVER
    return replace(grid, scores=scores)


@torch.inference_mode()
def label_map(grid: ScoreGrid, calibration: Calibration | None = None, *, excluded: Sequence[int] = ()) -> UInt8:
    """Give each pixel its best class, uint8 (H, W); never an excluded one."""
    chosen = calibration or calibrations.none(grid.scores.shape[0])
    labels = np.empty(grid.size, dtype=np.uint8)
    for rows, ((_, ids),) in _decided(calibrate(grid, chosen, excluded=excluded), chosen):
        labels[rows] = ids
    return labels


@torch.inference_mode()
def contest(grid: ScoreGrid, calibration: Calibration, seen: Sequence[int], unseen: Sequence[int]) -> Contest:
    """Let the seen classes compete among themselves, the unseen ones likewise, and then the two winners.

    Args:
        grid: Scores of one image, not calibrated.
        calibration: Applied to them.
        seen: Ids of the seen classes, at least one.
        unseen: Ids of the unseen classes, at least one. A class in neither list is out of the label space.
    """
    excluded = sorted(set(range(grid.scores.shape[0])) - {*seen, *unseen})
    won, best_seen, best_unseen = (np.empty(grid.size, dtype=np.uint8) for _ in range(3))
    gaps = np.empty(grid.size, dtype=np.float32)
    decided = _decided(calibrate(grid, calibration, excluded=excluded), calibration, seen, unseen)
    for rows, ((seen_score, seen_id), (unseen_score, unseen_id)) in decided:
        # of equals the one of the lower id, as argmax has it
        seen_wins = (seen_score > unseen_score) | ((seen_score == unseen_score) & (seen_id < unseen_id))
        best_seen[rows], best_unseen[rows] = seen_id, unseen_id
        won[rows] = np.where(seen_wins, seen_id, unseen_id)
        if calibration.on_distances:
            with np.errstate(divide="ignore"):  # where the gate keeps the seen one out, its score is −inf
                gaps[rows] = np.log(unseen_score / seen_score)
        else:
            gaps[rows] = seen_score - unseen_score
    return Contest(won, best_seen, best_unseen, gaps)


def _decided(
    grid: ScoreGrid, calibration: Calibration, *groups: Sequence[int]
) -> Iterator[tuple[slice, Sequence[Found]]]:
    """Yield what `best_tiles` does for some groups of classes, by default one of all, after the gate.

    Args:
        grid: Calibrated scores of one image.
        calibration: By which they are.
        groups: Ids of the classes of each.
    """
    competing = groups or (range(grid.scores.shape[0]),)
    if not calibration.top2:
        yield from best_tiles(grid, competing)
        return
    for rows, scores in score_tiles(grid):
        yield rows, [_best_that_passes(scores, ids, calibration) for ids in competing]


def _best_that_passes(scores: Tensor, ids: Sequence[int], calibration: Calibration) -> Found:
    """Return the best of those of some classes' scores that pass the gate, and which class it is, (rows, W) each.

    Where none passes, the score is −inf and the class the one that is best without a gate.
    """
    _, otherwise = highest(scores, ids)
    two = _two_best(_before(scores, calibration))
    known = torch.zeros(scores.shape[0], dtype=torch.bool, device=scores.device)
    known[list(ids)] = True
    passing = torch.where(known[two], scores.gather(0, two), -torch.inf).max(dim=0)
    winner = two.gather(0, passing.indices[None])[0].to(torch.uint8)
    best = passing.values.cpu().numpy()
    return best, np.where(np.isneginf(best), otherwise, winner.cpu().numpy())


def _two_best(scores: Tensor) -> Tensor:
    """Return the two classes that score best at each pixel, int64 (2, rows, W); quicker than `topk`."""
    first = scores.max(dim=0, keepdim=True).indices
    return torch.cat([first, scores.scatter(0, first, -torch.inf).max(dim=0, keepdim=True).indices])


def _before(scores: Tensor, calibration: Calibration) -> Tensor:
    """Return the scores as they were before calibration."""
    return (scores - _column(calibration.bias, scores)) / _column(calibration.scale, scores)


def _column(values: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)[:, None, None]


@torch.inference_mode()
def predict_grid(model: Model, grid: ScoreGrid, calibration: Calibration | None = None) -> Prediction:
    """Label every pixel and sum up each class's area and mean score, by default with the model's calibration."""
    classes = len(model.names)
    chosen = calibration or model.calibration or calibrations.none(classes)
    label_map = np.empty(grid.size, dtype=np.uint8)
    areas = np.zeros(classes, dtype=np.int64)
    sums = np.zeros(classes, dtype=np.float64)
    for rows, ((best, ids),) in _decided(calibrate(grid, chosen), chosen):
        label_map[rows] = ids
        areas += np.bincount(ids.ravel(), minlength=classes)
        sums += np.bincount(ids.ravel(), weights=best.ravel(), minlength=classes)
    means = np.divide(sums, areas, out=np.full(classes, np.nan), where=areas > 0).astype(np.float32)
    return Prediction(label_map, areas, means, model.names)
