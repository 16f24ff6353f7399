"""`zsseg eval`: run a model over labelled photos and write the confusion matrices to scores.h5.

Two matrices come from one pass, a few photos in memory at a time: generalized, where all classes compete on every
pixel, with the model's calibration; and vanilla, where only unseen classes compete on unseen pixels and only seen ones
on seen pixels. Every score derives from them. The same pass fills the histograms of the seen–unseen curve (`curve`).

Protocols, by which published scores differ:
    native  every pixel of the photo at its own size; background is a class like any other; all classes compete; a
            class with neither truth nor prediction is left out of the means
    zs3     photo and label map at a short side of 312 pixels (label map: nearest); background is a class like any
            other; all classes compete; such a class counts as 0 in the means (the `nan_to_num` of ZS3's evaluator)
            Bucher et al., "Zero-Shot Semantic Segmentation", NeurIPS 2019
    spnet   photo and label map warped to 513 × 513 pixels (label map: nearest); background is void in the truth and no
            class of the label space; a class with neither truth nor prediction is left out of the means
            Xian et al., "Semantic Projection Network for Zero- and Few-Label Semantic Segmentation", CVPR 2019
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import distributed
from zsseg.artifacts import Artifact, check_output, claim, create, open_artifact, same_names
from zsseg.calibration import Calibration
from zsseg.classes import BACKGROUND, VOID
from zsseg.config import EvalConfig, Protocol
from zsseg.curve import (
    BINS,
    Curve,
    count_gaps,
    counts_absent_as_zero,
    gap_bins,
    gap_edges,
    gap_unit,
    read_curve,
)
from zsseg.errors import DataError, SettingError
from zsseg.hardware import keep_freed_memory
from zsseg.images import UInt8, decode_image, decode_label_map, resize_image, resize_label_map
from zsseg.inference import Model, chosen_calibration, contest, label_map, load_model, score_image
from zsseg.metrics import Scores, confusion, score
from zsseg.progress import SILENT, Progress
from zsseg.threads import bincount, side_by_side
from zsseg.winners import ScoreGrid

SHORT_SIDE = 312  # pixels, zs3
WARPED_SIDE = 513  # pixels, spnet

# What scores.h5 records of each protocol.
PROTOCOLS: dict[Protocol, dict[str, str]] = {
    "native": {
        "grid": "native",
        "background": "a class like any other",
        "label_space": "all classes",
        "means": "over classes with truth or prediction",
    },
    "zs3": {
        "grid": f"short side {SHORT_SIDE}",
        "background": "a class like any other",
        "label_space": "all classes",
        "means": "over all classes, 0 for one with neither truth nor prediction",
    },
    "spnet": {
        "grid": f"warped to {WARPED_SIDE} × {WARPED_SIDE}",
        "background": "void in the truth",
        "label_space": "all classes but background",
        "means": "over classes with truth or prediction",
    },
}


@dataclass(frozen=True)
class EvalSummary:
    """What `eval` found.

    Attributes:
        generalized: Scores where all classes compete.
        vanilla: Scores where only classes of the pixel's own kind, seen or unseen, compete.
        images_per_class: Photos whose truth holds each class, int64 (C,).
        curve: What a further seen bias would give; None without unseen classes that have scores.
        calibrated_by: Method, parameter and the classes that it was chosen on.
        model: The settings of the model.
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
    curve: Curve | None
    calibrated_by: dict[str, Any]
    model: dict[str, Any]


@dataclass
class Counts:
    """Sums over the photos seen so far."""

    generalized: NDArray[np.int64]
    vanilla: NDArray[np.int64]
    images_per_class: NDArray[np.int64]
    gaps: NDArray[np.int64]
    images: int = 0

    def add(self, other: Counts) -> None:
        """Add the sums over other photos."""
        self.generalized += other.generalized
        self.vanilla += other.vanilla
        self.images_per_class += other.images_per_class
        self.gaps += other.gaps
        self.images += other.images


@dataclass(frozen=True)
class Rules:
    """How photos are scored: what stays the same for all of them.

    Attributes:
        background: Id of the background class where it is out of the label space.
        seen: Ids of the seen classes in the label space.
        unseen: Ids of the unseen classes that have scores.
        unit: Of the curve's bins.
        max_side: Of the native protocol.
    """

    calibration: Calibration
    protocol: Protocol
    background: int | None
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    unit: float
    max_side: int


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
        SettingError: The protocol needs a class named background, and there is none.
    """
    check_output(out, force=force)
    keep_freed_memory()
    loaded = load_model(model, device=config.device, precision=config.precision)
    rules = _rules(loaded, config)
    with (
        open_artifact(data, "data", seal_suffices=True) as images,
        distributed.output(out) as to,
        claim(to, force=force),
    ):
        distributed.check_same("model and data", (loaded.digest, images.digest, loaded.precision))
        same_names(loaded.names, images.strings("names"), f"{model} and {data}")
        chosen = _chosen(images, config)
        counts = _count(loaded, rules, images, chosen, progress)
        if not counts.images_per_class.any():
            raise DataError(f"{data}: its {config.partition} photos have no label maps; eval needs the truth")
        inputs = {"model": loaded.digest, "data": images.digest}
        _write(to, loaded, rules, counts, config=config, inputs=inputs)
        return summarise(to, min_images=config.min_images, config=config, images=counts.images)


def summarise(path: Path, *, min_images: int, config: EvalConfig, images: int) -> EvalSummary:
    """Derive every score from a scores artifact."""
    with open_artifact(path, "scores") as scores:
        seen, unseen = (scores.array(kind).tolist() for kind in ("seen", "unseen"))
        per_class = scores.array("images_per_class")

        def of(matrix: str) -> Scores:
            return score(
                scores.array(matrix),
                seen=seen,
                unseen=unseen,
                images_per_class=per_class,
                min_images=min_images,
                absent_zero=counts_absent_as_zero(scores),
            )

        generalized = of("confusion")
        return EvalSummary(
            path=path,
            names=tuple(scores.strings("names")),
            seen=tuple(seen),
            unseen=tuple(unseen),
            images=images,
            generalized=generalized,
            vanilla=of("confusion_vanilla"),
            images_per_class=per_class,
            config=config,
            curve=read_curve(scores, left_out=generalized.left_out),
            calibrated_by=scores.params["calibrated_by"],
            model=scores.params["model"],
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
        "calibrated_by": summary.calibrated_by,
        "self_training": _self_training(summary.model),
        "imagenet_overlap": summary.model.get("imagenet_overlap"),
        "protocol": {"name": summary.config.protocol, **PROTOCOLS[summary.config.protocol]},
        "curve": None if summary.curve is None else _plain_curve(summary.curve),
    }


def _self_training(model: dict[str, Any]) -> dict[str, Any] | None:
    """Return how a self-trained model came about, null for another one."""
    if "self_training" not in model:
        return None
    return {"self_train": model["self_train"], "rounds": model["rounds"], **model["self_training"]}


def _plain_curve(curve: Curve) -> dict[str, Any]:
    """Return the area under the seen–unseen curve and its best point, marked for what it is."""
    best = curve.oracle
    point = {
        "seen_bias": curve.gamma,
        "seen_miou": curve.seen,
        "unseen_miou": curve.unseen,
        "harmonic_miou": curve.harmonic,
    }
    return {
        "area": _number(curve.area),
        "oracle (chosen on the test photos)": {key: _number(float(values[best])) for key, values in point.items()},
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


def _rules(model: Model, config: EvalConfig) -> Rules:
    if config.protocol != "native" and BACKGROUND not in model.names:
        raise SettingError(
            f"--protocol {config.protocol}: says what becomes of the class {BACKGROUND!r}, and the model has none "
            "of that name; use --protocol native"
        )
    background = model.names.index(BACKGROUND) if config.protocol == "spnet" else None
    calibration = chosen_calibration(model, config.calibration, config.seen_bias)
    unit = 1.0 if model.vectors is None or calibration.on_distances else gap_unit(model.vectors.cpu().numpy())
    return Rules(
        calibration=calibration,
        protocol=config.protocol,
        background=background,
        seen=tuple(index for index in model.seen if index != background),
        # softmax has no score for an unseen class
        unseen=() if model.vectors is None else tuple(index for index in model.unseen if index != background),
        unit=unit,
        max_side=config.max_side,
    )


def _count(model: Model, rules: Rules, images: Artifact, chosen: list[int], progress: Progress) -> Counts:
    ids = images.strings("ids")

    def count(index: int) -> Counts | None:
        encoded = images.bytes_at("label_maps", index)
        if not encoded:
            return None
        image = decode_image(images.bytes_at("images", index), f"photo {ids[index]}")
        image, truth = on_grid(image, decode_label_map(encoded, f"label map of {ids[index]}"), rules.protocol)
        if rules.background is not None:
            truth = np.where(truth == rules.background, np.uint8(VOID), truth)
        side = rules.max_side if rules.protocol == "native" else max(truth.shape)
        return _count_image(model, rules, score_image(model, image, max_side=side), truth)

    total = _no_counts(len(model.names))
    own = distributed.share(chosen)
    with closing(side_by_side(own, count, model.device)) as counted:
        for counts in progress.track(counted, "scoring", len(own)):
            if counts is not None:
                total.add(counts)
    return _over_all_ranks(total)


def _no_counts(classes: int) -> Counts:
    return Counts(
        np.zeros((classes, classes), dtype=np.int64),
        np.zeros((classes, classes), dtype=np.int64),
        np.zeros(classes, dtype=np.int64),
        np.zeros((4, classes, BINS), dtype=np.int64),
    )


def _over_all_ranks(counts: Counts) -> Counts:
    return Counts(
        distributed.sum_counts(counts.generalized),
        distributed.sum_counts(counts.vanilla),
        distributed.sum_counts(counts.images_per_class),
        distributed.sum_counts(counts.gaps),
        int(distributed.sum_counts(np.array(counts.images))),
    )


def on_grid(image: UInt8, truth: UInt8, protocol: Protocol) -> tuple[UInt8, UInt8]:
    """Bring a photo, (H, W, 3), and its label map, (H, W), to the grid that a protocol scores on."""
    height, width = truth.shape
    match protocol:
        case "native":
            return image, truth
        case "zs3":  # the long side cut to a whole number, as ZS3 does
            short = min(height, width)
            size = height * SHORT_SIDE // short, width * SHORT_SIDE // short
        case "spnet":
            size = WARPED_SIDE, WARPED_SIDE
    return resize_image(image, size), resize_label_map(truth, size)


def _count_image(model: Model, rules: Rules, grid: ScoreGrid, truth: UInt8) -> Counts:
    classes = len(model.names)
    counts = _no_counts(classes)
    if rules.unseen:
        found = contest(grid, rules.calibration, rules.seen, rules.unseen)
        counts.generalized = confusion(truth, found.label_map, classes, bincount=bincount)
        counts.vanilla = confusion(truth, found.seen, classes, bincount=bincount)
        unseen_only = confusion(truth, found.unseen, classes, bincount=bincount)
        counts.vanilla[list(rules.unseen)] = unseen_only[list(rules.unseen)]
        bins = gap_bins(found.gap, rules.unit)
        counts.gaps = count_gaps(truth, found.seen, found.unseen, bins, classes=classes, bincount=bincount)
    else:  # one map serves both; the vanilla score of classes that a softmax model cannot predict is undefined
        label = label_map(grid, rules.calibration, excluded=() if rules.background is None else (rules.background,))
        counts.generalized = confusion(truth, label, classes, bincount=bincount)
        counts.vanilla = counts.generalized.copy()
        counts.vanilla[list(model.unseen)] = 0
    counts.images_per_class = (counts.generalized.sum(axis=1) > 0).astype(np.int64)
    counts.images = 1
    return counts


def _write(
    out: Path,
    model: Model,
    rules: Rules,
    counts: Counts,
    *,
    config: EvalConfig,
    inputs: dict[str, str],
) -> None:
    params = {
        **{key: value for key, value in asdict(config).items() if key != "device"},
        "precision": model.precision,
        "protocol": {"name": config.protocol, **PROTOCOLS[config.protocol]},
        "calibrated_by": rules.calibration.record(),
        "model": model.params,
    }
    with create(out, "scores", params=params, inputs=inputs, claimed=True) as writer:
        writer.put("names", model.names)
        writer.put("seen", model.seen)
        writer.put("unseen", model.unseen)
        writer.put("confusion", counts.generalized)
        writer.put("confusion_vanilla", counts.vanilla)
        writer.put("images_per_class", counts.images_per_class)
        if rules.unseen:
            writer.put("gap_edges", gap_edges(rules.unit))
            writer.put("gap_counts", counts.gaps)
