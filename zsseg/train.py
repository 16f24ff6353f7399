"""`zsseg train`: fit a visual model to class vectors (or to the softmax baseline), and write model.h5.

With a calibration, a probe is trained first, from which some seen classes are hidden, too; what it says of the
calibration's parameter goes into the model (`probe`). An interrupt during the probe leaves nothing behind.

With self-training (`selftrain`, transductive) the model so far described is only the first: its pseudo-labels of unseen
classes join the seen labels, and a new model is trained on both from the start, `rounds` times. An interrupt before the
last of these models leaves nothing behind, either; an unfinished last model carries its pseudo-labels along.

A run is a function of its inputs and its seed: the order of the images, their augmentation, dropout and the
learning rate depend on (seed, step) alone, so a run that was interrupted goes on exactly.
No model is selected: the last weights are the result, so no validation label can leak into it. The validation
curve in the artifact is for the eye, and takes its labels through the same door as the loss.
"""

from __future__ import annotations

import functools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from zsseg import calibration, kinship, losses, metrics, probe, selftrain, wordnet
from zsseg.artifacts import Artifact, check_output, create, open_artifact, same_names
from zsseg.batches import FeatureCache, batch_positions, image_batches
from zsseg.calibration import Calibration
from zsseg.classes import BACKGROUND
from zsseg.config import CalibrationName, Precision, PredictConfig, TrainConfig
from zsseg.dataset import LABEL_STRIDE, NO_PSEUDO, normalise, read_image, seen_pixels, training_labels
from zsseg.errors import ArtifactError, SettingError, TrainingError
from zsseg.hardware import autocast, choose_device, choose_precision
from zsseg.inference import Model, label_map, restore_net, score_image
from zsseg.models import SegmentationNet, build, default_lr, fill_anchors, gate, load_pretrained, out_dim, resolve
from zsseg.progress import SILENT, Progress
from zsseg.selftrain import PseudoLabels

log = logging.getLogger(__name__)

DEFAULT_CROP = 320
WARMUP = 100  # steps, at most a tenth of the run
PROBE_SHARE = 0.4  # of the epochs: a probe serves to choose one number, and should not double the time
VAL_IMAGES = 30  # of the validation curve


@dataclass(frozen=True)
class TrainSummary:
    """What `train` did."""

    path: Path
    finished: bool
    steps: int
    total_steps: int
    first_loss: float
    last_loss: float
    val_seen_miou: float
    pretrained: str
    settings: dict[str, Any]


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

    @property
    def calibration(self) -> CalibrationName:
        """The calibration, no longer "auto"."""
        assert self.config.calibration != "auto"
        return self.config.calibration

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


@dataclass
class State:
    """What training changes, and all that a resume needs."""

    net: SegmentationNet
    log_scale: nn.Parameter  # log(1 / temperature); learned where the loss has one
    optimizer: torch.optim.Optimizer
    pretrained: dict[str, str]
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    val_seen_miou: list[float] = field(default_factory=list)
    calibration_choice: dict[str, Any] | None = None  # what the probe said

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all that the optimizer may hold, by name."""
        yield from self.net.named_parameters()
        yield "log_scale", self.log_scale


@dataclass
class Features:
    """The frozen backbone's features of the latest run, which others on the same photos take over.

    They depend on the backbone and the photos, and their labels on the split; not on head, loss, class vectors or seed.
    """

    key: object = None
    cache: FeatureCache | None = None

    def of(self, task: Task, net: SegmentationNet, folder: Path, progress: Progress) -> FeatureCache:
        """Return the features of a task, computed where the latest ones are of another."""
        config = task.config
        backbone = (config.model, config.backbone, config.dense_features, config.weights)
        key = (task.data, task.inputs["data"], task.inputs["split"], task.precision, task.device, backbone)
        if self.cache is None or key != self.key:
            self.cache, self.key = _feature_cache(task, net, folder, progress), key
        return self.cache


def train(
    data: Path,
    split: Path,
    labels: Path | None,
    out: Path,
    config: TrainConfig,
    *,
    force: bool = False,
    resume: bool = False,
    features: Features | None = None,
    progress: Progress = SILENT,
) -> TrainSummary:
    """Train a model and write it to `out`; on Ctrl-C or SIGTERM, write what was trained so far.

    Args:
        data: data.h5.
        split: split.h5, made from that data.
        labels: labels.h5 of the same classes; None for the softmax baseline.
        out: model.h5.
        config: Settings.
        force: Replace an existing model.
        resume: Go on with the unfinished model in `out`, with the settings that it records.
        features: Shared by runs on the same data and split, so that a frozen backbone's are computed once.
        progress: Told of each step.

    Raises:
        ArtifactError: An input is missing, damaged, or does not fit the others; or the output is refused.
        SettingError: A setting that cannot be met.
        TrainingError: The loss is no longer finite, or there is nothing to train on.
    """
    check_output(out, force=force or resume)
    task = _read_task(data, split, labels, config)
    if resume and task.config.self_train != "none":
        task = _with_stored_pseudo_labels(task, out)
    with torch.random.fork_rng(devices=[]):
        state = _resume(task, out) if resume else _start(task)
        features = features or Features()
        cache = features.of(task, state.net, out.parent, progress) if task.config.frozen else None
        if task.config.calibration != "none" and state.calibration_choice is None:
            state.calibration_choice = _choose_calibration(task, cache, progress)
        if task.config.self_train != "none" and task.pseudo is None:
            task = _self_train(task, state, cache, progress)
            state = replace(_start(task), calibration_choice=state.calibration_choice)
        finished = _run(task, state, out, cache, progress)
    return TrainSummary(
        path=out,
        finished=finished,
        steps=state.step,
        total_steps=task.total_steps,
        first_loss=_smooth(state.losses[:20]),
        last_loss=_smooth(state.losses[-20:]),
        val_seen_miou=state.val_seen_miou[-1] if state.val_seen_miou else math.nan,
        pretrained=state.pretrained["source"],
        settings=_settings(task, state),
    )


def recorded_config(model: Path) -> TrainConfig:
    """Return the settings that an unfinished model was trained with, for a resume."""
    if not model.is_file():
        raise ArtifactError(f"{model}: no such file, nothing to resume; train without --resume")
    with open_artifact(model, "model") as artifact:
        names = {each.name for each in fields(TrainConfig)}
        recorded = {key: value for key, value in artifact.params.items() if key in names}
        return TrainConfig(**{**recorded, "val_classes": tuple(recorded.get("val_classes", ()))})


def learning_rate(step: int, total: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up, then polynomial decay of power 0.9 to 0 (DeepLab).

    Args:
        step: From 0.
        total: Steps of the run.
        peak: The rate between the two.
    """
    warmup = min(WARMUP, max(1, total // 10))
    return float(peak * min(1.0, (step + 1) / warmup) * (1 - step / total) ** 0.9)


def _choose_calibration(task: Task, cache: FeatureCache | None, progress: Progress) -> dict[str, Any]:
    """Train a probe from which validation classes are hidden, too, and choose the calibration's parameter with it."""
    config, plan = task.config, task.plan
    assert plan is not None
    with open_artifact(task.data, "data", verify=False) as data:
        names = ", ".join(task.names[index] for index in plan.hidden)
        log.info("calibration: training a probe from which %s is hidden, too", names)
        probe_task = replace(
            task,
            seen=np.setdiff1d(task.seen, plan.hidden),
            unseen=np.union1d(task.unseen, plan.hidden),
            train=np.array(plan.rest, dtype=np.int64),
            config=replace(config, epochs=math.ceil(config.epochs * PROBE_SHARE)),
        )
        state = _start(probe_task)
        if not _run(probe_task, state, None, cache, progress):
            log.warning("interrupted while the probe was trained: nothing is saved, the next run starts anew")
            raise KeyboardInterrupt
        _set_mode(state.net, training=False)
        choice = probe.choose_parameter(
            task.calibration,
            _as_model(probe_task, state.net),
            data,
            plan,
            max_seen_loss=config.max_seen_loss,
            seed=config.seed,
            progress=progress,
        )
    log.info(
        "calibration: parameter %.4g takes mIoU of %s from the probe to %.3f, of its seen classes from %.3f to %.3f",
        choice["parameter"],
        names,
        choice["hidden_miou"],
        choice["seen_miou_before"],
        choice["seen_miou"],
    )
    return choice


def _self_train(task: Task, first: State, cache: FeatureCache | None, progress: Progress) -> Task:
    """Train all models but the last, each on what the former says of the photos; return the task of the last."""
    for number in range(task.config.rounds):
        teacher = replace(_start(task), calibration_choice=first.calibration_choice)
        log.info("self-training, round %d: training the model that makes pseudo-labels", number + 1)
        try:
            if not _run(task, teacher, None, cache, progress, purpose="the model that makes pseudo-labels"):
                raise KeyboardInterrupt
            task = _with_pseudo_labels(task, _pseudo_labels(task, teacher, progress))
        except KeyboardInterrupt:
            log.warning("interrupted before the self-trained model: nothing is saved, the next run starts anew")
            raise
    return task


def _with_pseudo_labels(task: Task, pseudo: PseudoLabels) -> Task:
    """Return the task of a self-trained model.

    By `void` nearly all unseen pixels have pseudo-labels, so the head learns unseen classes like seen ones: there is no
    gate to pass. By `anywhere` few have, and the model stays of the first one's kind.
    """
    if task.config.self_train == "void":
        task = replace(task, config=replace(task.config, gate=False, anchors="none"))
    return replace(task, pseudo=pseudo)


def _pseudo_labels(task: Task, teacher: State, progress: Progress) -> PseudoLabels:
    chosen = _calibration(task, teacher)
    _set_mode(teacher.net, training=False)
    model = replace(_as_model(task, teacher.net), calibration=chosen)
    with open_artifact(task.data, "data", verify=False) as data:
        pseudo = selftrain.pseudo_labels(
            task.config.self_train, model, data, task.train, seed=task.config.seed, progress=progress
        )
    pseudo.record.update(gate=bool(task.config.gate), anchors=task.config.anchors)
    counts = ", ".join(f"{count:,} of {name}" for name, count in pseudo.record["pixels"].items())
    log.info("self-training: pixels with pseudo-labels in %d photos: %s", len(pseudo.maps), counts)
    if not pseudo.maps:
        log.warning(
            "self-training found no pixel of an unseen class%s",
            "" if chosen else "; without --calibration unseen classes hardly ever win against seen ones",
        )
    return pseudo


def _with_stored_pseudo_labels(task: Task, out: Path) -> Task:
    """Return the task with the pseudo-labels that an unfinished model carries, as it is for any other model."""
    with open_artifact(out, "model") as artifact:
        if "pseudo_images" not in artifact:
            return task
        images = artifact.array("pseudo_images").tolist()
        maps = {index: artifact.bytes_at("pseudo_labels", row) for row, index in enumerate(images)}
        return _with_pseudo_labels(task, PseudoLabels(maps, artifact.params["self_training"]))


def _calibration(task: Task, state: State) -> Calibration | None:
    """Return the finished model's calibration, from what the probe said and the model's own scores.

    One that was self-trained on void pixels has none: the strength was chosen for a model that never saw the unseen
    classes, and would favour them twice.
    """
    self_trained = task.pseudo is not None and task.config.self_train == "void"
    if state.calibration_choice is None or self_trained:
        return None
    _set_mode(state.net, training=False)
    with open_artifact(task.data, "data", verify=False) as data:
        evidence = probe.gather_evidence(
            task.calibration, _as_model(task, state.net), data, task.train.tolist(), seed=task.config.seed
        )
    _set_mode(state.net, training=True)
    return calibration.build(task.calibration, state.calibration_choice["parameter"], evidence)


def _run(
    task: Task,
    state: State,
    out: Path | None,
    cache: FeatureCache | None,
    progress: Progress,
    *,
    purpose: str = "the probe",
) -> bool:
    """Train until the end or an interrupt, and save; return whether the end was reached.

    A model that only serves another has no `out`, and its `purpose` names it.
    """
    config = task.config
    positions = batch_positions(
        task.train, batch=config.batch, epochs=config.epochs, seed=config.seed, start=state.step
    )
    batches, features_of = _batch_source(task, state, positions, cache)
    loss_of = _loss(task, state.log_scale)
    saved = time.monotonic()
    with _interrupts() as interrupted:
        title = f"training {config.model if out else purpose}"
        for inputs, labels in progress.track(batches, title, len(positions)):
            _step(task, state, inputs, labels, features_of=features_of, loss_of=loss_of)
            progress.status(f"loss {_smooth(state.losses[-20:]):.3f}")
            if out and state.step % task.steps_per_epoch == 0:
                state.val_seen_miou.append(_validate(task, state.net))  # short, so an interrupt waits for it
                log.info(
                    "epoch %d/%d: loss %.4f, val seen mIoU %.3f",
                    state.step // task.steps_per_epoch,
                    config.epochs,
                    _smooth(state.losses[-task.steps_per_epoch :]),
                    state.val_seen_miou[-1],
                )
            if interrupted.is_set():
                break
            if out and time.monotonic() - saved > 60 * config.checkpoint_every and state.step < task.total_steps:
                _save(task, state, out)
                saved = time.monotonic()
        if out:
            _save(task, state, out)
    return state.step == task.total_steps


def _step(
    task: Task,
    state: State,
    inputs: Any,
    labels: Tensor,
    *,
    features_of: Callable[[Any], list[Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Do one step of gradient descent on the mean loss of all supervised outputs, and on the gate's in its time."""
    rate = learning_rate(state.step, task.total_steps, task.lr)
    gated = state.step < task.gate_steps
    gate_rate = learning_rate(state.step, task.gate_steps, task.lr) if gated else 0.0
    for group in state.optimizer.param_groups:
        group["lr"] = (gate_rate if group.get("gate") else rate) * group["multiple"]
    torch.manual_seed(task.config.seed * 1_000_003 + state.step)  # of dropout, so that a resume draws the same
    with autocast(task.precision, task.device):
        features = features_of(inputs)
        outputs = state.net.outputs(features)
        branches = state.net.gate_branches(features) if gated else None
    labels = labels.to(task.device)
    loss = torch.stack([loss_of(_at_labels(each, state.net.stride, labels), labels) for each in outputs]).mean()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {state.step + 1} of {task.total_steps} with a learning rate of {rate:.2g}; "
            f"try --lr {task.lr / 10:.1g}" + (" or --precision float32" if task.precision == "bfloat16" else "")
        )
    state.optimizer.zero_grad(set_to_none=True)
    total = loss if branches is None else loss + _gate_loss(task, branches, labels)
    total.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.log_scale.data.clamp_(*losses.LOG_SCALE_RANGE)
    state.losses.append(value)
    state.rates.append(rate)


def _gate_loss(task: Task, branches: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return the sum of the branches' losses, each at the label next to a cell's centre."""
    wide, deep, contrastive = (each.float() for each in branches)
    ratio = labels.shape[1] // wide.shape[2]
    near = labels[:, ratio // 2 :: ratio, ratio // 2 :: ratio]
    vectors, trained = (torch.from_numpy(each).to(task.device) for each in (task.vectors, task.trained))
    scale = torch.tensor(gate.LOG_SCALE, device=task.device)
    return (
        losses.mse(wide, near, vectors, trained)
        + losses.mse(deep, near, vectors, trained)
        + losses.softmax_embed(contrastive, near, vectors, trained, log_scale=scale)
    )


def _at_labels(outputs: Tensor, stride: int, labels: Tensor) -> Tensor:
    """Bring outputs, (N, D, h, w), to the pixels where labels are taken, (N, H, W) -> (N, D, H, W)."""
    upsampled = F.interpolate(outputs.float(), scale_factor=stride / LABEL_STRIDE, mode="bilinear", align_corners=False)
    return upsampled[:, :, : labels.shape[1], : labels.shape[2]]


def _feature_cache(task: Task, net: SegmentationNet, folder: Path, progress: Progress) -> FeatureCache:
    with open_artifact(task.data, "data", verify=False) as data:
        return FeatureCache(
            net,
            data,
            task.train,
            unseen=task.unseen.tolist(),
            folder=folder,
            precision=task.precision,
            progress=progress,
        )


def _batch_source(
    task: Task, state: State, positions: list[list[Any]], cache: FeatureCache | None
) -> tuple[Iterator[tuple[Any, Tensor]], Callable[[Any], list[Tensor]]]:
    """Return the batches, and how their inputs become features."""
    config, net = task.config, state.net
    unseen = task.unseen.tolist()
    if cache is not None:
        feature_batches = cache.batches(
            positions, crop=task.crop, seed=config.seed, hidden=unseen, pseudo=task.pseudo_maps
        )
        return feature_batches, lambda maps: [m.to(task.device) for m in maps]
    image_source = image_batches(
        task.data,
        positions,
        unseen=unseen,
        crop=task.crop,
        seed=config.seed,
        workers=config.workers,
        pseudo=task.pseudo_maps,
    )
    return image_source, lambda images: net.features(net.pad(normalise(images.to(task.device), net.mean, net.std)))


def _loss(task: Task, log_scale: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return outputs, labels -> loss for the settings of this run."""
    weigh = _weighting(task)
    trained = torch.from_numpy(task.trained).to(task.device)
    if task.vectors is None:
        return lambda outputs, labels: losses.softmax(outputs, labels, trained, weigh(labels))
    embedding_loss = _embedding_loss(task, log_scale)
    vectors = torch.from_numpy(task.vectors).to(task.device)
    return lambda outputs, labels: embedding_loss(outputs, labels, vectors, trained, weigh(labels))


def _embedding_loss(task: Task, log_scale: Tensor) -> Callable[..., Tensor]:
    """Return outputs, labels, vectors, seen, pixel weights -> loss."""
    match task.config.loss:
        case "cosine":
            return losses.cosine
        case "hinge":
            return functools.partial(losses.hinge, negatives=task.config.negatives)
        case "softmax-embed":
            return functools.partial(losses.softmax_embed, log_scale=log_scale)
        case "infonce":
            return functools.partial(losses.infonce, log_scale=log_scale)
        case "joem":
            objects = [index for index in task.trained.tolist() if task.names[index] != BACKGROUND]
            return functools.partial(losses.joem, objects=torch.tensor(objects, dtype=torch.int64, device=task.device))
        case "mse" | "softmax":  # softmax has no class vectors and takes no part here
            return losses.mse


def _weighting(task: Task) -> Callable[[Tensor], Tensor | None]:
    """Return labels -> pixel weights for the settings of this run."""
    match task.config.weighting:
        case "none":
            return lambda _: None
        case "image":
            return losses.image_weighted
        case "frequency":
            class_weights = losses.frequency_weights(_training_pixels(task))
        case "effective-number":
            class_weights = losses.effective_number_weights(_training_pixels(task))
    weights = torch.from_numpy(class_weights).to(task.device)
    return lambda labels: losses.class_weighted(labels, weights)


def _training_pixels(task: Task) -> NDArray[np.int64]:
    """Return the training pixels of each class, (C,); unseen classes have pseudo-labels at most."""
    with open_artifact(task.data, "data", verify=False) as data:
        return sum(
            seen_pixels(data, task.train.tolist(), task.unseen.tolist(), len(task.names), pseudo=task.pseudo_maps),
            np.zeros(len(task.names), dtype=np.int64),
        )


def _validate(task: Task, net: SegmentationNet) -> float:
    """Return mIoU over the seen classes on a few validation images, unseen pixels void; NaN without images."""
    chosen = task.val[np.linspace(0, len(task.val) - 1, min(VAL_IMAGES, len(task.val))).round().astype(int)]
    model = _as_model(task, net)
    matrix = np.zeros((len(task.names),) * 2, dtype=np.int64)
    _set_mode(net, training=False)
    with open_artifact(task.data, "data", verify=False) as data:
        for index in chosen.tolist():
            image = read_image(data, index)
            truth = training_labels(data, index, task.unseen.tolist(), image.shape[:2])
            predicted = label_map(score_image(model, image, max_side=PredictConfig.max_side))
            matrix += metrics.confusion(truth, predicted, len(task.names))
    _set_mode(net, training=True)
    return metrics.score(matrix, seen=task.seen.tolist(), unseen=task.unseen.tolist()).seen_miou


def _set_mode(net: SegmentationNet, *, training: bool) -> None:
    """Switch dropout; batch normalisation keeps its ImageNet statistics, as is usual with small batches.

    A backbone from random has no statistics yet, so there it gathers them.
    """
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.Dropout2d | nn.Dropout) or (isinstance(module, nn.BatchNorm2d) and net.from_random):
            module.train(training)


def _as_model(task: Task, net: SegmentationNet) -> Model:
    return Model(
        net=net,
        names=task.names,
        seen=tuple(task.seen.tolist()),
        unseen=tuple(task.unseen.tolist()),
        vectors=None if task.vectors is None else torch.from_numpy(task.vectors).to(task.device),
        device=task.device,
        precision=task.precision,
        params={},
    )


def _read_task(data: Path, split: Path, labels: Path | None, config: TrainConfig) -> Task:
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
        vectors = None
        if labels is not None and config.loss != "softmax":
            with open_artifact(labels, "labels") as words:
                same_names(words.strings("names"), names, f"{labels} and {data}")
                vectors = _class_vectors(words, config)
                inputs["labels"] = words.digest
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
        return replace(config, gate=False, anchors="none")
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
    return replace(config, gate=has_gate, anchors=anchors)


def _plan(
    config: TrainConfig,
    data: Artifact,
    train: NDArray[np.int64],
    vectors: NDArray[np.float32] | None,
    unseen: NDArray[np.int64],
) -> tuple[TrainConfig, probe.Plan | None]:
    """Return what the probe does without; where --calibration auto finds too little, the settings without one."""
    if config.calibration == "none" or vectors is None:
        return config, None
    wanted: CalibrationName = "stacking" if config.calibration == "auto" else config.calibration
    try:
        plan = probe.make_plan(data, train, vectors, unseen.tolist(), wanted=config.val_classes, seed=config.seed)
    except TrainingError as error:
        if config.calibration != "auto":
            raise
        log.info("no calibration: %s", error)
        return replace(config, calibration="none"), None
    return replace(config, calibration=wanted), plan


def _needed_calibration(
    config: TrainConfig, vectors: NDArray[np.float32] | None, unseen: NDArray[np.int64]
) -> TrainConfig:
    """Return the settings without a calibration where no unseen class can be predicted anyway."""
    if config.calibration == "none":
        if config.val_classes:
            raise SettingError("--val-classes: serve to choose a calibration's parameter; name one with --calibration")
        return config
    if vectors is not None and len(unseen):
        return config
    reason = "no class is unseen" if vectors is not None else "a softmax model predicts no unseen class"
    if config.calibration != "auto":
        log.info("--calibration %s: left out, %s", config.calibration, reason)
    return replace(config, calibration="none", val_classes=())


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


def _start(task: Task) -> State:
    torch.manual_seed(task.config.seed)
    config = task.config
    net = build(
        config.model,
        task.out_dim,
        backbone=config.backbone,
        stacks=config.stacks,
        dense_features=config.dense_features,
        gate=bool(config.gate),
        anchors=len(task.names) if config.anchors == "imagenet" else 0,
    )
    pretrained = load_pretrained(net, config.weights)
    if config.anchors == "imagenet":
        share = kinship.shares(_kinship(task.names), task.unseen.tolist())
        fill_anchors(net, config.weights, share)
    return _state(task, net, asdict(pretrained))


@functools.cache
def _kinship(names: tuple[str, ...]) -> kinship.Kinship:
    """Return how ImageNet's classes relate to ours; it takes half a minute, and every model of a run asks."""
    return kinship.imagenet_kinship(names)


def _state(task: Task, net: SegmentationNet, pretrained: dict[str, str]) -> State:
    net.from_random = pretrained["source"] == "none"
    if net.from_random and task.config.frozen:
        raise SettingError(
            "--frozen keeps the backbone as it is, --weights none makes it random; leave one of them out"
        )
    net = net.to(task.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _set_mode(net, training=True)
    for module in net.backbone_modules() if task.config.frozen else ():
        module.requires_grad_(False)
    start = torch.tensor(losses.LOG_SCALE, device=task.device)
    log_scale = nn.Parameter(start, requires_grad=task.config.loss in losses.SCALED)
    return State(net, log_scale, _optimizer(net, log_scale, task), pretrained)


def _optimizer(net: SegmentationNet, log_scale: nn.Parameter, task: Task) -> torch.optim.Optimizer:
    """AdamW: its steps do not scale with the loss, so one learning rate serves every loss and dimension."""
    trained = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    fresh = [parameter for name, parameter in trained if name.startswith(net.fresh) and not name.startswith("gate.")]
    old = [parameter for name, parameter in trained if not name.startswith(net.fresh)]
    groups: list[dict[str, Any]] = [{"params": fresh, "multiple": 1.0}]
    if old:
        groups.append({"params": old, "multiple": task.config.backbone_lr})
    gate_parameters = [parameter for name, parameter in trained if name.startswith("gate.")]
    if gate_parameters:
        groups.append({"params": gate_parameters, "multiple": 1.0, "gate": True})
    if log_scale.requires_grad:
        groups.append({"params": [log_scale], "multiple": 1.0, "weight_decay": 0.0})  # 0 is no neutral value
    return torch.optim.AdamW(groups, lr=task.lr, weight_decay=0.01, fused=True)


def _settings(task: Task, state: State) -> dict[str, Any]:
    """Return the settings that the model artifact records: no path, nothing that does not change the result."""
    left_out = {"workers", "checkpoint_every", "device"} | ({"negatives"} if task.config.loss != "hinge" else set())
    left_out |= {"rounds"} if task.config.self_train == "none" else set()
    config = {key: value for key, value in asdict(task.config).items() if key not in left_out}
    config["val_classes"] = list(task.config.val_classes)
    if state.calibration_choice is not None:
        config["calibration_choice"] = state.calibration_choice
    if task.pseudo is not None:
        config["self_training"] = task.pseudo.record
    if state.log_scale.requires_grad:
        config["log_scale"] = state.log_scale.item()
    if task.config.anchors == "imagenet":
        kin = _kinship(task.names)
        config["anchors_from"] = list(kin.sources)
        config["anchors_taken_out"] = kinship.taken_out(kin, task.unseen.tolist())
    if len(task.unseen) and "ImageNet-1k" in state.pretrained.get("seen", ""):
        overlap = wordnet.imagenet_overlap([task.names[index] for index in task.unseen])
        config["imagenet_overlap"] = {name: None if found is None else list(found) for name, found in overlap.items()}
    return {
        **config,
        "weights": None if task.config.weights is None else Path(task.config.weights).name,
        "lr": task.lr,
        "crop": task.crop,
        "precision": task.precision,
        "out_dim": task.out_dim,
        "fresh": list(state.net.fresh),
        "pretrained": state.pretrained,
        "step": state.step,
        "total_steps": task.total_steps,
    }


def _save(task: Task, state: State, out: Path) -> None:
    """Write the model; while training is unfinished with the optimizer's state, for a resume."""
    with create(out, "model", params=_settings(task, state), inputs=task.inputs, force=True) as writer:
        writer.put("names", task.names)
        writer.put("seen", task.seen)
        writer.put("unseen", task.unseen)
        if task.vectors is not None:
            writer.put("vectors", task.vectors)
        writer.put("loss", state.losses)
        writer.put("lr", state.rates)
        writer.put("val_seen_miou", state.val_seen_miou)
        if state.step == task.total_steps and (chosen := _calibration(task, state)) is not None:
            writer.put("calibration_scale", chosen.scale)
            writer.put("calibration_bias", chosen.bias)
        writer.put("weights", {name: value.cpu().numpy() for name, value in state.net.state_dict().items()})
        if state.step < task.total_steps:
            writer.put("optimizer", _optimizer_arrays(state))
            if task.pseudo is not None:
                writer.put("pseudo_images", list(task.pseudo.maps))
                writer.put("pseudo_labels", list(task.pseudo.maps.values()))


def _optimizer_arrays(state: State) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, parameter in state.parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            arrays[f"{key}:{name}"] = value.cpu().numpy()
    return arrays


def _resume(task: Task, out: Path) -> State:
    """Rebuild the state from an unfinished model.

    Raises:
        ArtifactError: It is finished, or was trained from other inputs.
        SettingError: A setting on the command line differs from the recorded one.
    """
    with open_artifact(out, "model") as artifact:
        recorded = artifact.params
        if "optimizer" not in artifact:
            raise ArtifactError(
                f"{out}: is finished ({recorded['step']} steps), nothing to resume; train anew with --force"
            )
        _compare_settings(recorded, {"loss": task.config.loss}, out)  # it decides which inputs there are
        if artifact.inputs != task.inputs:
            changed = sorted(kind for kind in task.inputs if artifact.inputs.get(kind) != task.inputs[kind])
            raise ArtifactError(
                f"{out}: was trained from another {' and '.join(changed) or 'set of inputs'}; "
                "restore that, or train anew with --force"
            )
        net = restore_net(artifact)
        net.fresh = tuple(recorded["fresh"])
        state = _state(task, net, recorded["pretrained"])
        if state.log_scale.requires_grad:
            state.log_scale.data.fill_(recorded["log_scale"])
        state.calibration_choice = recorded.get("calibration_choice")
        _compare_settings(recorded, _settings(task, state), out)
        state.losses = artifact.array("loss").tolist()
        state.rates = artifact.array("lr").tolist()
        state.val_seen_miou = artifact.array("val_seen_miou").tolist()
        _restore_optimizer(state, artifact.arrays("optimizer"))
    return state


def _compare_settings(recorded: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    for key, value in wanted.items():
        if key not in ("step",) and recorded.get(key) != value:
            raise SettingError(
                f"{out}: was trained with {key} {recorded.get(key)!r}, this command says {value!r}; "
                "resume with the same options, or train anew with --force"
            )


def _restore_optimizer(state: State, arrays: dict[str, NDArray[Any]]) -> None:
    for name, parameter in state.parameters():
        found = {key.split(":")[0]: value for key, value in arrays.items() if key.split(":", 1)[1] == name}
        if found:
            state.optimizer.state[parameter] = {key: _laid_out_like(parameter, value) for key, value in found.items()}


def _laid_out_like(parameter: Tensor, value: NDArray[Any]) -> Tensor:
    """Return the array as a tensor; moments in the parameter's own memory layout, which the fused kernel assumes."""
    tensor = torch.from_numpy(np.asarray(value)).to(parameter.device)
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event that the loop sees between two steps; the second one stops."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        event.set()
        log.warning("interrupted: finishing this step and saving; once more gives it up")
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _smooth(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
