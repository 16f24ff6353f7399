"""What is trained on what: the inputs of a run, checked against each other, and its settings, none left open.

Whatever can be refused is refused here, before any work is done.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zsseg import calibration, losses, probe, wordnet
from zsseg.artifacts import Artifact, open_artifact, same_names
from zsseg.config import CalibrationName, Precision, TrainConfig
from zsseg.dataset import NO_PSEUDO
from zsseg.errors import ArtifactError, SettingError, TrainingError
from zsseg.hardware import choose_device, choose_precision
from zsseg.models import default_lr, gate, out_dim, resolve
from zsseg.recipe import Recipe, of_labels
from zsseg.selftrain import PseudoLabels

log = logging.getLogger(__name__)

DEFAULT_CROP = 320


@dataclass(frozen=True)
class Task:
    """What is trained on what: everything that the loop reads and never changes."""

    data: Path
    names: tuple[str, ...]
    seen: NDArray[np.int64]
    unseen: NDArray[np.int64]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    vectors: NDArray[np.float32] | None
    config: TrainConfig
    lr: float
    crop: int
    precision: Precision
    device: torch.device
    inputs: dict[str, str]
    plan: probe.Plan | None = None  # what the probe of the calibration does without
    pseudo: PseudoLabels | None = None  # what a former model said of the training photos
    recipe: Recipe | None = None  # how other words come to the class vectors' space

    @property
    def calibration(self) -> CalibrationName:
        """The calibration, no longer "auto"."""
        assert self.config.calibration != "auto"
        return self.config.calibration

    def open_data(self) -> Artifact:
        """Open the data artifact once more; it must be the one that was checked."""
        return open_artifact(self.data, "data", verify=False, digest=self.inputs["data"])

    @property
    def gate_steps(self) -> int:
        """Steps that train the gate, from the first on."""
        wanted = max(gate.LEAST_STEPS, math.ceil(self.total_steps * gate.SHARE))
        return min(wanted, self.total_steps) if self.config.gate else 0

    @property
    def pseudo_maps(self) -> Mapping[int, bytes]:
        """Pseudo-labels by image."""
        return NO_PSEUDO if self.pseudo is None else self.pseudo.maps

    @property
    def trained(self) -> NDArray[np.int64]:
        """Ids of the classes that the loss knows, ascending: the seen ones, and unseen ones with pseudo-labels."""
        extra = [] if self.pseudo is None else self.pseudo.labelled(self.names)
        return np.union1d(self.seen, np.array(extra, dtype=np.int64))

    @property
    def out_dim(self) -> int:
        """Output channels of the network."""
        return out_dim(self.config.loss, dim=0 if self.vectors is None else self.vectors.shape[1], seen=len(self.seen))

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images; the last may be smaller."""
        return math.ceil(len(self.train) / self.config.batch)


def read_task(data: Path, split: Path, labels: Path | None, config: TrainConfig) -> Task:
    """Open the inputs, check that they fit each other, and resolve the settings."""
    config = resolve(config)
    if config.loss != "softmax" and labels is None:
        raise SettingError(f"--loss {config.loss} needs class vectors; make them with `zsseg embed-labels`")
    with open_artifact(data, "data") as images, open_artifact(split, "split") as parts:
        names = images.strings("names")
        if parts.inputs.get("data") != images.digest:
            raise ArtifactError(
                f"{split}: was made from another data artifact than {data}; "
                "make it again with `zsseg make-split --force`"
            )
        same_names(parts.strings("names"), names, f"{split} and {data}")
        inputs = {"data": images.digest, "split": parts.digest}
        vectors, recipe = None, None
        if labels is not None and config.loss != "softmax":
            with open_artifact(labels, "labels") as words:
                same_names(words.strings("names"), names, f"{labels} and {data}")
                vectors = _class_vectors(words, config)
                inputs["labels"] = words.digest
                recipe = of_labels(words)
        indices = parts.array("train")
        if len(indices) == 0:
            raise TrainingError(f"{split}: leaves no training image; choose other unseen classes or --policy ignore")
        unseen = parts.array("unseen")
        config = _needed_calibration(config, vectors, unseen)
        zero_shot = vectors is not None and len(unseen) > 0
        config = _needed_gate(config, zero_shot=zero_shot, photographs=images.params.get("source") != "sample")
        _check_self_training(config, parts)
        config, plan = _plan(config, images, indices, vectors, unseen)
        device = choose_device(config.device)
        return Task(
            data=data,
            names=tuple(names),
            seen=parts.array("seen"),
            unseen=unseen,
            train=indices,
            val=parts.array("val"),
            vectors=vectors,
            config=config,
            lr=default_lr(config.model) if config.lr is None else config.lr,
            crop=config.crop or _default_crop(images, indices),
            precision=choose_precision(config.precision, device),
            device=device,
            inputs=inputs,
            plan=plan,
            recipe=recipe,
        )


def _needed_gate(config: TrainConfig, *, zero_shot: bool, photographs: bool) -> TrainConfig:
    """Decide on the gate and the anchors where the settings leave that open.

    Args:
        config: Settings.
        zero_shot: Whether an unseen class can be predicted at all.
        photographs: Whether ImageNet's classifier can recognise anything: it cannot in the sample's drawn scenes.

    Raises:
        SettingError: They are asked for and cannot be had.
    """
    if not zero_shot:
        if config.gate or config.anchors == "imagenet":
            log.info("--gate, --anchors: left out, no unseen class can be predicted")
        return replace(config, gate=False, anchors="none", presence=False)
    by_distance = config.calibration == "apollonius"
    if config.gate and by_distance:
        raise SettingError(
            "--calibration apollonius compares distances to class vectors, which --gate leaves; drop one"
        )
    has_gate = config.model == "lite0" and not by_distance if config.gate is None else config.gate
    anchors = config.anchors
    if anchors == "auto":
        at_hand = photographs and has_gate and config.frozen and config.weights is None and wordnet.at_hand()
        anchors = "imagenet" if at_hand else "none"
    if anchors == "imagenet" and not has_gate:
        raise SettingError("--anchors imagenet adds to the scores of the gate, and --no-gate leaves that out; drop one")
    if config.presence and by_distance:
        raise SettingError("--calibration apollonius compares distances to class vectors, --presence scores; drop one")
    # without anchors, and there, it costs: docs/calibration.md, docs/self-training.md
    by_default = anchors != "none" and config.self_train != "anywhere"
    presence = by_default if config.presence is None else config.presence
    return replace(config, gate=has_gate, anchors=anchors, presence=presence)


def _plan(
    config: TrainConfig,
    data: Artifact,
    train: NDArray[np.int64],
    vectors: NDArray[np.float32] | None,
    unseen: NDArray[np.int64],
) -> tuple[TrainConfig, probe.Plan | None]:
    """Return the settings with a calibration that is no longer "auto", and what the probe does without, if any.

    Raises:
        SettingError: The method cannot be chosen on seen classes alone, or an option serves the other way to choose.
        TrainingError: No class can be hidden.
    """
    if config.calibration == "none" or vectors is None:
        return config, None
    wanted: CalibrationName = "stacking" if config.calibration == "auto" else config.calibration
    chosen_on = config.calibrate_on
    if chosen_on == "auto":
        chosen_on = "val-classes" if config.val_classes or wanted in calibration.GRIDS else "seen"
    if config.calibration == "auto" and chosen_on == "seen" and len(train) < probe.PHOTOS:
        # so few are learned by heart: what a bias costs on them says little of others
        log.info("no calibration by itself: %d training photos are fewer than %d", len(train), probe.PHOTOS)
        return replace(config, calibration="none", max_false_share=None), None
    config = replace(config, calibration=wanted, calibrate_on=chosen_on)
    if chosen_on == "val-classes":
        if config.max_false_share is not None:
            raise SettingError(
                "--max-false-share: serves --calibrate-on seen, not val-classes; leave out one of the two"
            )
        return config, probe.make_plan(
            data, train, vectors, unseen.tolist(), wanted=config.val_classes, seed=config.seed
        )
    if config.val_classes:
        raise SettingError("--val-classes: serve --calibrate-on val-classes; leave out one of the two options")
    if wanted in calibration.GRIDS:
        raise SettingError(
            f"--calibrate-on seen: chooses how much is taken off the seen scores, and {wanted} takes off nothing; "
            "use --calibrate-on val-classes"
        )
    bounded = config.anchors != "none" and config.max_false_share is None
    return replace(config, max_false_share=probe.FALSE_SHARE) if bounded else config, None


def _needed_calibration(
    config: TrainConfig, vectors: NDArray[np.float32] | None, unseen: NDArray[np.int64]
) -> TrainConfig:
    """Return the settings without a calibration where no unseen class can be predicted anyway."""
    if config.calibration == "none":
        if config.val_classes:
            raise SettingError("--val-classes: serve to choose a calibration's parameter; name one with --calibration")
        if config.max_false_share is not None:
            log.info("--max-false-share: left out, there is no calibration that it could bound")
        return replace(config, max_false_share=None)
    if config.calibration == "auto" and config.self_train == "void":
        # with unseen pixels labelled, no class has to be favoured
        return replace(config, calibration="none", max_false_share=None)
    if vectors is not None and len(unseen):
        return config
    reason = "no class is unseen" if vectors is not None else "a softmax model predicts no unseen class"
    if config.calibration != "auto":
        log.info("--calibration %s: left out, %s", config.calibration, reason)
    return replace(config, calibration="none", val_classes=(), max_false_share=None)


def _check_self_training(config: TrainConfig, split: Artifact) -> None:
    """Refuse self-training where no pixel of an unseen class can be found."""
    if config.self_train == "none":
        return
    if config.loss == "softmax":
        reason = "--loss softmax has no class vectors, so it predicts no unseen class; take another loss"
    elif not len(split.array("unseen")):
        reason = "no class is unseen, so there is nothing to find; leave it out"
    elif split.params["policy"] == "drop":
        reason = "the split's policy drops every photo with an unseen class; make it with --policy ignore"
    else:
        return
    raise SettingError(f"--self-train {config.self_train}: {reason}")


def _class_vectors(labels: Artifact, config: TrainConfig) -> NDArray[np.float32]:
    """Return the class vectors; of unit length where the loss looks at directions, so that NNE does so, too."""
    vectors: NDArray[np.float32] = labels.array("vectors")
    if config.loss not in losses.ANGULAR:
        return vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return vectors


def _default_crop(data: Artifact, indices: NDArray[np.int64]) -> int:
    """Return 320, or the largest image side where all images are smaller, rounded up to a multiple of 32."""
    side = int(data.array("sizes")[indices].max())
    return min(DEFAULT_CROP, -(-side // 32) * 32)


def with_pseudo_labels(task: Task, pseudo: PseudoLabels) -> Task:
    """Return the task of a self-trained model.

    By `void` nearly all unseen pixels have pseudo-labels, so the head learns unseen classes like seen ones: there is no
    gate to pass. By `anywhere` few have, and the model stays of the first one's kind.
    """
    if task.config.self_train == "void":
        task = replace(task, config=replace(task.config, gate=False, anchors="none", presence=False))
    return replace(task, pseudo=pseudo)
