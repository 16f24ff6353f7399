"""`zsseg train`: fit a visual model to class vectors (or to the softmax baseline), and write model.h5.

With a calibration, its parameter is chosen at the end, by what it costs the seen classes (`probe`). Or, where
validation classes are asked for, a probe is trained first from which these are hidden, too; what it says of the
parameter goes into the model.

With self-training (`selftrain`, transductive) the model so far described is only the first: its pseudo-labels of unseen
classes join the seen labels, and a new model is trained on both from the start, `rounds` times.

Whatever is trained is written down now and then (`checkpoint`), and a run that was killed goes on from there. It goes
on exactly, for a run is a function of its inputs and its seed: the order of the images, their augmentation, dropout and
the learning rate depend on (seed, step) alone.
No model is selected: the last weights are the result, so no validation label can leak into it. The validation
curve in the artifact is for the eye, and takes its labels through the same door as the loss.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsseg import calibration, checkpoint, distributed, losses, metrics, probe, selftrain
from zsseg.artifacts import check_output, claim
from zsseg.batches import FeatureCache, batch_positions, image_batches
from zsseg.calibration import Calibration
from zsseg.checkpoint import LAST, TEACHER, Journal
from zsseg.classes import VOID
from zsseg.config import PredictConfig, TrainConfig, feature_folder
from zsseg.dataset import normalise, read_image, training_labels
from zsseg.distributed import Part
from zsseg.errors import JobError, TrainingError
from zsseg.hardware import autocast, keep_freed_memory
from zsseg.images import UInt8
from zsseg.inference import ImageFeatures, image_features, label_map, score_features
from zsseg.models import SegmentationNet
from zsseg.objective import as_far_as, gate_loss, loss_function
from zsseg.progress import SILENT, Progress
from zsseg.selftrain import PseudoLabels
from zsseg.state import State, as_model, set_mode, take_part
from zsseg.task import Task, read_task, with_pseudo_labels

log = logging.getLogger(__name__)

WARMUP = 100  # steps, at most a tenth of the run
PROBE_SHARE = 0.4  # of the epochs: a probe serves to choose one number, and should not double the time
VAL_IMAGES = 30  # of the validation curve

ValidationPhotos = dict[int, tuple[ImageFeatures, UInt8]]  # by index: what a frozen backbone made of it, and its labels


class DivergedError(TrainingError):
    """The loss is no longer finite."""


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
        resume: Go on with the run that was to write `out`, with the settings that it recorded; where none was
            begun, start one.
        features: Shared by runs on the same data and split, so that a frozen backbone's are computed once.
        progress: Told of each step.

    Raises:
        ArtifactError: An input is missing, damaged, or does not fit the others; or the output is refused.
        SettingError: A setting that cannot be met.
        TrainingError: The loss is no longer finite, or there is nothing to train on.
    """
    check_output(out, force=force or resume)
    keep_freed_memory()
    task = read_task(data, split, labels, config)
    distributed.check_same("inputs and settings", (task.inputs, task.config, task.lr, task.crop, task.precision))
    claimed = claim(out, force=force or resume) if distributed.is_main() else nullcontext()
    with claimed, torch.random.fork_rng(devices=[]):
        journal = checkpoint.open_journal(task, out, resume=resume)
        try:
            cache = _features(journal, features or Features(), progress) if task.config.frozen else None
            if task.plan is not None and journal.choice is None:
                journal.choice = _choose_calibration(journal, cache, progress)
            if task.config.self_train != "none":
                _self_train(journal, cache, progress)
            task = journal.task
            state = journal.start(LAST, task)
            finished = _run(task, state, journal, cache, progress)
        except DivergedError:
            journal.give_up()  # a resume would come to the same step
            raise
    return TrainSummary(
        path=out,
        finished=finished,
        steps=state.step,
        total_steps=task.total_steps,
        first_loss=_smooth(state.losses[:20]),
        last_loss=_smooth(state.losses[-20:]),
        val_seen_miou=state.val_seen_miou[-1] if state.val_seen_miou else math.nan,
        pretrained=state.pretrained["source"],
        settings=checkpoint.recorded_settings(task, state),
    )


def _features(journal: Journal, features: Features, progress: Progress) -> FeatureCache:
    assert journal.resumed is not None
    return features.of(journal.task, journal.resumed[1].net, journal.out.parent, progress)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up, then polynomial decay of power 0.9 to 0 (DeepLab).

    Args:
        step: From 0.
        total: Steps of the run.
        peak: The rate between the two.
    """
    warmup = min(WARMUP, max(1, total // 10))
    return float(peak * min(1.0, (step + 1) / warmup) * (1 - step / total) ** 0.9)


def _choose_calibration(journal: Journal, cache: FeatureCache | None, progress: Progress) -> dict[str, Any]:
    """Train a probe from which validation classes are hidden, too, and choose the calibration's parameter with it."""
    task = journal.task
    config, plan = task.config, task.plan
    assert plan is not None
    with task.open_data() as data:
        names = ", ".join(task.names[index] for index in plan.hidden)
        log.info("calibration: training a probe from which %s is hidden, too", names)
        probe_task = replace(
            task,
            seen=np.setdiff1d(task.seen, plan.hidden),
            unseen=np.union1d(task.unseen, plan.hidden),
            train=np.array(plan.rest, dtype=np.int64),
            config=replace(config, epochs=math.ceil(config.epochs * PROBE_SHARE)),
        )
        state = journal.start("probe", probe_task)
        if not _run(probe_task, state, journal, cache, progress, stage="probe"):
            log.warning("interrupted while the probe was trained; go on with --resume")
            raise KeyboardInterrupt
        set_mode(state.net, training=False)
        choice = probe.choose_parameter(
            task.calibration,
            as_model(probe_task, state.net),
            data,
            plan,
            max_seen_loss=config.max_seen_loss,
            seed=config.seed,
            progress=progress,
        )
        choice = distributed.from_main(choice)
    log.info(
        "calibration: parameter %.4g takes mIoU of %s from the probe to %.3f, of its seen classes from %.3f to %.3f",
        choice["parameter"],
        names,
        choice["hidden_miou"],
        choice["seen_miou_before"],
        choice["seen_miou"],
    )
    return choice


def _self_train(journal: Journal, cache: FeatureCache | None, progress: Progress) -> None:
    """Train all models but the last, each on what the former says of the photos; leave the task of the last."""
    for number in range(journal.rounds_done(), journal.task.config.rounds):
        log.info("self-training, round %d: training the model that makes pseudo-labels", number + 1)
        try:
            teacher = journal.start(f"{TEACHER} {number}", journal.task)
            if not _run(journal.task, teacher, journal, cache, progress, stage=f"{TEACHER} {number}"):
                raise KeyboardInterrupt
            journal.task = with_pseudo_labels(journal.task, _pseudo_labels(journal.task, teacher, progress))
        except KeyboardInterrupt:
            log.warning("interrupted before the self-trained model; go on with --resume")
            raise


def _pseudo_labels(task: Task, teacher: State, progress: Progress) -> PseudoLabels:
    chosen = _calibration(task, teacher, progress)
    set_mode(teacher.net, training=False)
    model = replace(as_model(task, teacher.net), calibration=chosen)
    with task.open_data() as data:
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


def _calibration(task: Task, state: State, progress: Progress) -> Calibration | None:
    """Return the finished model's calibration, from what the probe said or its seen classes lose, and its own scores.

    One that was self-trained on void pixels has none: the strength was chosen for a model that never saw the unseen
    classes, and would favour them twice.
    """
    self_trained = task.pseudo is not None and task.config.self_train == "void"
    if task.calibration == "none" or self_trained:
        return None
    set_mode(state.net, training=False)
    model, seed = as_model(task, state.net), task.config.seed
    with task.open_data() as data:
        if state.calibration_choice is None:
            choice = probe.spend_seen_loss(
                task.calibration,
                model,
                data,
                task.train,
                max_seen_loss=task.config.max_seen_loss,
                max_false_share=task.config.max_false_share,
                seed=seed,
                progress=progress,
            )
            state.calibration_choice = distributed.from_main(choice)
        evidence = probe.gather_evidence(task.calibration, model, data, task.train.tolist(), seed=seed)
    set_mode(state.net, training=True)
    return calibration.build(task.calibration, state.calibration_choice["parameter"], evidence)


def _run(
    task: Task,
    state: State,
    journal: Journal,
    cache: FeatureCache | None,
    progress: Progress,
    *,
    stage: str = LAST,
) -> bool:
    """Train until the end or an interrupt, and write the state down; return whether to go on to what comes next."""
    config = task.config
    positions = batch_positions(
        task.train, batch=config.batch, epochs=config.epochs, seed=config.seed, start=state.step
    )
    batches, features_of = _batch_source(task, state, positions, cache)
    distributed.copy_from_main(state.tensors())
    loss_of = loss_function(task, state.log_scale)
    saved = time.monotonic()
    validation: ValidationPhotos | None = {} if config.frozen else None
    stop = False
    with _interrupts() as interrupted, _saved_where_another_dies(task, state, journal, stage):
        for inputs, labels, part in progress.track(batches, _title(task, stage), len(positions)):
            _step(task, state, inputs, labels, part=part, features_of=features_of, loss_of=loss_of)
            progress.status(f"loss {_smooth(state.losses[-20:]):.3f}")
            if stage == LAST and state.step % task.steps_per_epoch == 0:
                state.val_seen_miou.append(_validate(task, state.net, validation))  # short: an interrupt waits
                log.info(
                    "epoch %d/%d: loss %.4f, val seen mIoU %.3f",
                    state.step // task.steps_per_epoch,
                    config.epochs,
                    _smooth(state.losses[-task.steps_per_epoch :]),
                    state.val_seen_miou[-1],
                )
            stop = distributed.any_of(interrupted.is_set())
            if stop:
                break
            if state.step < task.total_steps and _checkpoint_is_due(config, state.step, saved):
                journal.save(stage, state)
                saved = time.monotonic()
        finished = state.step == task.total_steps
        journal.save(stage, state, _calibration(task, state, progress) if finished and stage == LAST else None)
        stop = distributed.any_of(stop or interrupted.is_set())
    return finished and (stage == LAST or not stop)


@contextmanager
def _saved_where_another_dies(task: Task, state: State, journal: Journal, stage: str) -> Iterator[None]:
    """Write down what was trained where another process of the job dies: an exchange never fails within an update."""
    try:
        yield
    except JobError:
        if stage != LAST or state.step < task.total_steps:  # or else only the calibration is missing
            journal.save(stage, state)
        raise


def walk(
    task: Task,
    state: State,
    cache: FeatureCache | None,
    *,
    title: str,
    rate_of: Callable[[int], float] | None = None,
    progress: Progress = SILENT,
) -> Generator[int, None, None]:
    """Train a state that is not written down, and yield after each step how many are done.

    Args:
        task: What is trained on what.
        state: Changed by every step; its network is in training mode whenever this goes on.
        cache: The frozen backbone's features of the task's photos; None where it is trained, too.
        title: Of the progress bar.
        rate_of: Learning rate of a step, from 0; None: the schedule of a run.
        progress: Told of each step.

    Raises:
        DivergedError: The loss is no longer finite.
    """
    config = task.config
    positions = batch_positions(task.train, batch=config.batch, epochs=config.epochs, seed=config.seed)
    batches, features_of = _batch_source(task, state, positions, cache)
    loss_of = loss_function(task, state.log_scale)
    for inputs, labels, part in progress.track(batches, title, len(positions)):
        rate = None if rate_of is None else rate_of(state.step)
        _step(task, state, inputs, labels, part=part, features_of=features_of, loss_of=loss_of, fixed_rate=rate)
        progress.status(f"loss {_smooth(state.losses[-20:]):.3f}")
        yield state.step


def _title(task: Task, stage: str) -> str:
    if stage == LAST:
        return f"training {task.config.model}"
    return f"training {'the model that makes pseudo-labels' if stage.startswith(TEACHER) else 'the probe'}"


def _checkpoint_is_due(config: TrainConfig, step: int, saved: float) -> bool:
    by_step = config.checkpoint_steps is not None and step % config.checkpoint_steps == 0
    return by_step or time.monotonic() - saved > 60 * config.checkpoint_every


def _step(
    task: Task,
    state: State,
    inputs: Any,
    labels: Tensor,
    *,
    part: Part,
    features_of: Callable[[Any], list[Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    fixed_rate: float | None = None,
) -> None:
    """Do one step of gradient descent on the mean loss of all supervised outputs, and on the gate's in its time.

    Inputs and labels are this rank's part of the batch; losses and gradients are of all of it.
    """
    rate = learning_rate(state.step, task.total_steps, task.lr)
    gated = state.step < task.gate_steps
    gate_rate = learning_rate(state.step, task.gate_steps, task.lr) if gated else 0.0
    if fixed_rate is not None:
        rate = gate_rate = fixed_rate
    for group in state.optimizer.param_groups:
        group["lr"] = (gate_rate if group.get("gate") else rate) * group["multiple"]
    torch.manual_seed(task.config.seed * 1_000_003 + state.step)  # of dropout, so that a resume draws the same
    take_part(state.net, part if distributed.world() > 1 else None)
    with autocast(task.precision, task.device):
        features = features_of(inputs)
        outputs = state.net.outputs(features)
        branches = state.net.gate_branches(features) if gated else None
    labels = labels.to(task.device)
    if part.is_empty:
        labels = torch.full_like(labels, VOID)
    loss = torch.stack([loss_of(each.float(), as_far_as(each, state.net.stride, labels)) for each in outputs]).mean()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss is {value} at step {state.step + 1} of {task.total_steps} with a learning rate of {rate:.2g}; "
            f"try --lr {task.lr / 10:.1g}" + (" or --precision float32" if task.precision == "bfloat16" else "")
        )
    total = loss if branches is None else loss + gate_loss(task, branches, labels)
    total.backward()  # type: ignore[no-untyped-call]
    distributed.sum_gradients(parameter for _, parameter in state.parameters())
    state.optimizer.step()
    state.optimizer.zero_grad()  # before the next forward pass needs the memory
    state.log_scale.data.clamp_(*losses.LOG_SCALE_RANGE)
    state.losses.append(value)
    state.rates.append(rate)


def _feature_cache(task: Task, net: SegmentationNet, folder: Path, progress: Progress) -> FeatureCache:
    with task.open_data() as data:
        return FeatureCache(
            net,
            data,
            task.train,
            unseen=task.unseen.tolist(),
            folder=folder,
            precision=task.precision,
            progress=progress,
            kept=feature_folder(),
            settings=(task.config.model, task.config.backbone, task.config.dense_features),
        )


def _batch_source(
    task: Task, state: State, positions: list[list[Any]], cache: FeatureCache | None
) -> tuple[Iterator[tuple[Any, Tensor, Part]], Callable[[Any], list[Tensor]]]:
    """Return this rank's part of the batches, and how their inputs become features."""
    parts = [distributed.part(len(batch)) for batch in positions]
    own = [batch[part.rows] for batch, part in zip(positions, parts, strict=True)]
    source, features_of = _own_source(task, state, own, cache)
    return ((inputs, labels, part) for (inputs, labels), part in zip(source, parts, strict=True)), features_of


def _own_source(
    task: Task, state: State, positions: list[list[Any]], cache: FeatureCache | None
) -> tuple[Iterator[tuple[Any, Tensor]], Callable[[Any], list[Tensor]]]:
    config, net = task.config, state.net
    unseen = task.unseen.tolist()
    if cache is not None:
        feature_batches = cache.batches(
            positions, crop=task.crop, seed=config.seed, hidden=unseen, pseudo=task.pseudo_maps
        )
        return feature_batches, lambda maps: [m.to(task.device).float() for m in maps]
    image_source = image_batches(
        task.data,
        positions,
        unseen=unseen,
        crop=task.crop,
        seed=config.seed,
        workers=config.workers,
        pseudo=task.pseudo_maps,
        digest=task.inputs["data"],
    )
    return image_source, lambda images: net.features(net.pad(normalise(images.to(task.device), net.mean, net.std)))


def _validate(task: Task, net: SegmentationNet, kept: ValidationPhotos | None) -> float:
    """Return mIoU over the seen classes on a few validation images, unseen pixels void; NaN without images."""
    chosen = task.val[np.linspace(0, len(task.val) - 1, min(VAL_IMAGES, len(task.val))).round().astype(int)]
    return seen_miou(task, net, chosen.tolist(), kept)


def seen_miou(task: Task, net: SegmentationNet, photos: Sequence[int], kept: ValidationPhotos | None = None) -> float:
    """Return mIoU over the seen classes on some photos, all classes competing, pixels of unseen ones void.

    Args:
        task: The run.
        net: Its network.
        photos: Indices of photos.
        kept: What a frozen backbone made of photos the last time, and their labels; what it lacks is added.
    """
    set_mode(net, training=False)
    model = as_model(task, net)
    matrix = np.zeros((len(task.names),) * 2, dtype=np.int64)
    with task.open_data() as data:
        for index in distributed.share(list(photos)):
            known = kept.get(index) if kept is not None else None
            if known is None:
                image = read_image(data, index)
                truth = training_labels(data, index, task.unseen.tolist(), image.shape[:2])
                known = image_features(model, image, max_side=PredictConfig.max_side), truth
            if kept is not None:
                kept[index] = known
            features, truth = known
            predicted = label_map(score_features(model, features))
            matrix += metrics.confusion(truth, predicted, len(task.names))
    matrix = distributed.sum_counts(matrix)
    set_mode(net, training=True)
    return metrics.score(matrix, seen=task.seen.tolist(), unseen=task.unseen.tolist()).seen_miou


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
