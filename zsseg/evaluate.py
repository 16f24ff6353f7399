"""`zsseg eval`: run a model over labelled photos and write the confusion matrices to scores.h5.

Two matrices come from one pass at the photos' native resolution, one photo in memory at a time:
generalized, where all classes compete on every pixel (after `seen_bias`, calibrated stacking); and vanilla, where only
unseen classes compete on unseen pixels and only seen ones on seen pixels. Every score derives from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.artifacts import Artifact, check_output, create, open_artifact, same_names
from zsseg.config import EvalConfig
from zsseg.errors import DataError
from zsseg.images import decode_image, decode_label_map
from zsseg.inference import NEVER, Model, label_maps, load_model, score_image, seen_bias_vector
from zsseg.metrics import Scores, confusion, score
from zsseg.progress import SILENT, Progress


@dataclass(frozen=True)
class EvalSummary:
    """What `eval` found.

    Attributes:
        generalized: Scores where all classes compete.
        vanilla: Scores where only classes of the pixel's own kind, seen or unseen, compete.
        images_per_class: Photos whose truth holds each class, int64 (C,).
    """

    path: Path
    names: tuple[str, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    images: int
    generalized: Scores
    vanilla: Scores
    images_per_class: NDArray[np.int64]
    config: EvalConfig


@dataclass
class Counts:
    """Sums over the photos seen so far."""

    generalized: NDArray[np.int64]
    vanilla: NDArray[np.int64]
    images_per_class: NDArray[np.int64]
    images: int = 0


def evaluate(
    model: Path,
    data: Path,
    out: Path,
    config: EvalConfig,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> EvalSummary:
    """Score a model on the validation photos of a data artifact.

    Args:
        model: model.h5.
        data: data.h5; any with the model's class names in the model's order.
        out: scores.h5.
        config: Settings.
        force: Replace an existing file.
        progress: Told of each photo.

    Raises:
        ArtifactError: An input is missing, damaged, or has other classes; or the output is refused.
        DataError: There is no labelled photo to score.
    """
    check_output(out, force=force)
    loaded = load_model(model, device=config.device, precision=config.precision)
    with open_artifact(data, "data") as images:
        same_names(loaded.names, images.strings("names"), f"{model} and {data}")
        chosen = _chosen(images, config)
        counts = _count(loaded, images, chosen, config, progress)
        inputs = {"model": loaded.digest, "data": images.digest}
    if not counts.images_per_class.any():
        raise DataError(f"{data}: its {config.partition} photos have no label maps; eval needs the truth")
    _write(out, loaded, counts, config, inputs, force=force)
    return summarise(out, min_images=config.min_images, config=config, images=counts.images)


def summarise(path: Path, *, min_images: int, config: EvalConfig, images: int) -> EvalSummary:
    """Derive every score from a scores artifact."""
    with open_artifact(path, "scores") as scores:
        seen, unseen = (scores.array(kind).tolist() for kind in ("seen", "unseen"))
        per_class = scores.array("images_per_class")

        def of(matrix: str) -> Scores:
            return score(
                scores.array(matrix), seen=seen, unseen=unseen, images_per_class=per_class, min_images=min_images
            )

        return EvalSummary(
            path=path,
            names=tuple(scores.strings("names")),
            seen=tuple(seen),
            unseen=tuple(unseen),
            images=images,
            generalized=of("confusion"),
            vanilla=of("confusion_vanilla"),
            images_per_class=per_class,
            config=config,
        )


def as_json(summary: EvalSummary) -> dict[str, Any]:
    """Return the scores as plain JSON values; what is undefined is null."""

    def plain(scores: Scores) -> dict[str, Any]:
        values = asdict(replace(scores, iou=np.array([]), accuracy=np.array([])))
        values = {key: _number(value) for key, value in values.items() if isinstance(value, float)}
        values["iou"] = dict(zip(summary.names, map(_number, scores.iou.tolist()), strict=True))
        values["accuracy"] = dict(zip(summary.names, map(_number, scores.accuracy.tolist()), strict=True))
        values["left_out"] = [summary.names[index] for index in scores.left_out]
        return values

    return {
        "images": summary.images,
        "seen": [summary.names[index] for index in summary.seen],
        "unseen": [summary.names[index] for index in summary.unseen],
        "settings": asdict(summary.config),
        "images_per_class": dict(zip(summary.names, summary.images_per_class.tolist(), strict=True)),
        "generalized": plain(summary.generalized),
        "vanilla": plain(summary.vanilla),
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _chosen(images: Artifact, config: EvalConfig) -> list[int]:
    parts = ("train", "val") if config.partition == "all" else (config.partition,)
    chosen = sorted(int(index) for part in parts for index in images.array(part))
    if not chosen:
        raise DataError(
            f"{images.path}: has no {config.partition} photo; choose others with --partition train or --partition all"
        )
    return chosen


def _count(model: Model, images: Artifact, chosen: list[int], config: EvalConfig, progress: Progress) -> Counts:
    classes = len(model.names)
    counts = Counts(
        np.zeros((classes, classes), dtype=np.int64),
        np.zeros((classes, classes), dtype=np.int64),
        np.zeros(classes, dtype=np.int64),
    )
    ids = images.strings("ids")
    for index in progress.track(chosen, "scoring", len(chosen)):
        encoded = images.bytes_at("label_maps", index)
        if encoded:
            _count_image(model, counts, images.bytes_at("images", index), encoded, ids[index], config=config)
            counts.images += 1
    return counts


def _count_image(
    model: Model, counts: Counts, encoded_image: bytes, encoded_truth: bytes, name: str, *, config: EvalConfig
) -> None:
    image = decode_image(encoded_image, f"photo {name}")
    truth = decode_label_map(encoded_truth, f"label map of {name}")
    grid = score_image(model, image, max_side=config.max_side)
    among_all, among_seen, among_unseen = label_maps(grid, _biases(model, config.seen_bias))
    classes = len(model.names)
    is_unseen = np.isin(np.arange(256), model.unseen)[truth]
    counts.generalized += confusion(truth, among_all, classes)
    if model.unseen and model.vectors is not None:
        counts.vanilla += confusion(truth, np.where(is_unseen, among_unseen, among_seen), classes)
    else:  # softmax has no score for an unseen class: its rows stay empty, its vanilla score undefined
        counts.vanilla += confusion(np.where(is_unseen, np.uint8(255), truth), among_seen, classes)
    counts.images_per_class += np.bincount(truth.ravel(), minlength=256)[:classes] > 0


def _biases(model: Model, seen_bias: float) -> list[NDArray[np.float32]]:
    """Return what is added to the scores for: all classes, seen classes only, unseen classes only."""
    only_seen = np.full(len(model.names), NEVER, dtype=np.float32)
    only_seen[list(model.seen)] = 0
    only_unseen = np.full(len(model.names), NEVER, dtype=np.float32)
    only_unseen[list(model.unseen)] = 0
    return [seen_bias_vector(model, seen_bias), only_seen, only_unseen]


def _write(out: Path, model: Model, counts: Counts, config: EvalConfig, inputs: dict[str, str], *, force: bool) -> None:
    protocol = {"grid": "native", "background": "a class like any other", "label_space": "all classes"}
    settings = {key: value for key, value in asdict(config).items() if key != "device"}
    params = {**settings, "precision": model.precision, "protocol": protocol, "model": model.params}
    with create(out, "scores", params=params, inputs=inputs, force=force) as writer:
        writer.put("names", model.names)
        writer.put("seen", model.seen)
        writer.put("unseen", model.unseen)
        writer.put("confusion", counts.generalized)
        writer.put("confusion_vanilla", counts.vanilla)
        writer.put("images_per_class", counts.images_per_class)
