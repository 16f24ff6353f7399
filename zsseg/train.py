"""`zsseg train`: fit a visual model to class vectors (or to the softmax baseline), and write model.h5.

A run is a function of its inputs and its seed: the order of the images, their augmentation, dropout and the
learning rate depend on (seed, step) alone, so a run that was interrupted goes on exactly.
No model is selected: the last weights are the result, so no validation label can leak into it. The validation
curve in the artifact is for the eye, and takes its labels through the same door as the loss.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from zsseg import losses, metrics
from zsseg.artifacts import Artifact, check_output, create, open_artifact, same_names
from zsseg.batches import FeatureCache, batch_positions, image_batches
from zsseg.config import Precision, PredictConfig, TrainConfig
from zsseg.dataset import LABEL_STRIDE, normalise, read_image, seen_pixels, training_labels
from zsseg.errors import ArtifactError, SettingError, TrainingError
from zsseg.hardware import autocast, choose_device, choose_precision
from zsseg.inference import Model, label_maps, restore_net, score_image
from zsseg.models import SegmentationNet, build, default_lr, load_pretrained, out_dim
from zsseg.progress import SILENT, Progress

log = logging.getLogger(__name__)

DEFAULT_CROP = 320
WARMUP = 100  # steps, at most a tenth of the run
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
    optimizer: torch.optim.Optimizer
    pretrained: dict[str, str]
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    val_seen_miou: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)


def train(
    data: Path,
    split: Path,
    labels: Path | None,
    out: Path,
    config: TrainConfig,
    *,
    force: bool = False,
    resume: bool = False,
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
        progress: Told of each step.

    Raises:
        ArtifactError: An input is missing, damaged, or does not fit the others; or the output is refused.
        SettingError: A setting that cannot be met.
        TrainingError: The loss is no longer finite, or there is nothing to train on.
    """
    check_output(out, force=force or resume)
    task = _read_task(data, split, labels, config)
    with torch.random.fork_rng(devices=[]):
        state = _resume(task, out) if resume else _start(task)
        finished = _run(task, state, out, progress)
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
        return TrainConfig(**{key: value for key, value in artifact.params.items() if key in names})


def learning_rate(step: int, total: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up, then polynomial decay of power 0.9 to 0 (DeepLab).

    Args:
        step: From 0.
        total: Steps of the run.
        peak: The rate between the two.
    """
    warmup = min(WARMUP, max(1, total // 10))
    return float(peak * min(1.0, (step + 1) / warmup) * (1 - step / total) ** 0.9)


def _run(task: Task, state: State, out: Path, progress: Progress) -> bool:
    """Train until the end or an interrupt, and save; return whether the end was reached."""
    config = task.config
    positions = batch_positions(
        task.train, batch=config.batch, epochs=config.epochs, seed=config.seed, start=state.step
    )
    batches, run_net = _batch_source(task, state, positions, out.parent, progress)
    loss_of = _loss(task)
    saved = time.monotonic()
    with _interrupts() as interrupted:
        for inputs, labels in progress.track(batches, f"training {config.model}", len(positions)):
            _step(task, state, inputs, labels, run_net=run_net, loss_of=loss_of)
            progress.status(f"loss {_smooth(state.losses[-20:]):.3f}")
            if state.step % task.steps_per_epoch == 0:
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
            if time.monotonic() - saved > 60 * config.checkpoint_every and state.step < task.total_steps:
                _save(task, state, out)
                saved = time.monotonic()
        _save(task, state, out)
    return state.step == task.total_steps


def _step(
    task: Task,
    state: State,
    inputs: Any,
    labels: Tensor,
    *,
    run_net: Callable[[Any], Tensor],
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Do one step of gradient descent."""
    rate = learning_rate(state.step, task.total_steps, task.lr)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["multiple"]
    torch.manual_seed(task.config.seed * 1_000_003 + state.step)  # of dropout, so that a resume draws the same
    with autocast(task.precision, task.device):
        outputs = run_net(inputs)
    upsampled = F.interpolate(
        outputs.float(), scale_factor=state.net.stride / LABEL_STRIDE, mode="bilinear", align_corners=False
    )
    height, width = labels.shape[1:]
    loss = loss_of(upsampled[:, :, :height, :width], labels.to(task.device))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {state.step + 1} of {task.total_steps} with a learning rate of {rate:.2g}; "
            f"try --lr {task.lr / 10:.1g}" + (" or --precision float32" if task.precision == "bfloat16" else "")
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.losses.append(value)
    state.rates.append(rate)


def _batch_source(
    task: Task, state: State, positions: list[list[Any]], folder: Path, progress: Progress
) -> tuple[Iterator[tuple[Any, Tensor]], Callable[[Any], Tensor]]:
    """Return the batches, and how the network turns their inputs into outputs."""
    config, net = task.config, state.net
    unseen = task.unseen.tolist()
    if config.frozen:
        with open_artifact(task.data, "data", verify=False) as data:
            cache = FeatureCache(
                net, data, task.train, unseen=unseen, folder=folder, precision=task.precision, progress=progress
            )
        feature_batches = cache.batches(positions, crop=task.crop, seed=config.seed)
        return feature_batches, lambda maps: net.head([m.to(task.device) for m in maps])
    image_source = image_batches(
        task.data, positions, unseen=unseen, crop=task.crop, seed=config.seed, workers=config.workers
    )
    return image_source, lambda images: net(normalise(images.to(task.device), net.mean, net.std))


def _loss(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Return outputs, labels -> loss for the settings of this run."""
    weights = _class_weights(task)
    if task.vectors is None:
        seen = torch.from_numpy(task.seen).to(task.device)
        return lambda outputs, labels: losses.softmax(outputs, labels, seen, weights)
    vectors = torch.from_numpy(task.vectors).to(task.device)
    return lambda outputs, labels: losses.mse(outputs, labels, vectors, weights)


def _class_weights(task: Task) -> Tensor | None:
    if task.config.weighting == "none":
        return None
    with open_artifact(task.data, "data", verify=False) as data:
        pixels = sum(
            seen_pixels(data, task.train.tolist(), task.unseen.tolist(), len(task.names)),
            np.zeros(len(task.names), dtype=np.int64),
        )
    return torch.from_numpy(losses.frequency_weights(pixels)).to(task.device)


def _validate(task: Task, net: SegmentationNet) -> float:
    """Return mIoU over the seen classes on a few validation images, unseen pixels void; NaN without images."""
    chosen = task.val[np.linspace(0, len(task.val) - 1, min(VAL_IMAGES, len(task.val))).round().astype(int)]
    model = _as_model(task, net)
    no_bias = np.zeros(len(task.names), dtype=np.float32)
    matrix = np.zeros((len(task.names),) * 2, dtype=np.int64)
    _set_mode(net, training=False)
    with open_artifact(task.data, "data", verify=False) as data:
        for index in chosen.tolist():
            image = read_image(data, index)
            truth = training_labels(data, index, task.unseen.tolist(), image.shape[:2])
            (predicted,) = label_maps(score_image(model, image, max_side=PredictConfig.max_side), [no_bias])
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
                vectors = words.array("vectors")
                inputs["labels"] = words.digest
        device = choose_device(config.device)
        indices = parts.array("train")
        if len(indices) == 0:
            raise TrainingError(f"{split}: leaves no training image; choose other unseen classes or --policy ignore")
        return Task(
            data=data,
            names=tuple(names),
            seen=parts.array("seen"),
            unseen=parts.array("unseen"),
            train=indices,
            val=parts.array("val"),
            vectors=vectors,
            config=config,
            lr=default_lr(config.model) if config.lr is None else config.lr,
            crop=config.crop or _default_crop(images, indices),
            precision=choose_precision(config.precision, device),
            device=device,
            inputs=inputs,
        )


def _default_crop(data: Artifact, indices: NDArray[np.int64]) -> int:
    """Return 320, or the largest image side where all images are smaller, rounded up to a multiple of 32."""
    side = int(data.array("sizes")[indices].max())
    return min(DEFAULT_CROP, -(-side // 32) * 32)


def _start(task: Task) -> State:
    torch.manual_seed(task.config.seed)
    net = build(task.config.model, task.out_dim)
    pretrained = load_pretrained(net, task.config.weights)
    return _state(task, net, asdict(pretrained))


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
    return State(net, _optimizer(net, task), pretrained)


def _optimizer(net: SegmentationNet, task: Task) -> torch.optim.Optimizer:
    """AdamW: its steps do not scale with the loss, so one learning rate serves every loss and dimension."""
    trained = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    fresh = [parameter for name, parameter in trained if name.startswith(net.fresh)]
    old = [parameter for name, parameter in trained if not name.startswith(net.fresh)]
    groups = [{"params": fresh, "multiple": 1.0}]
    if old:
        groups.append({"params": old, "multiple": task.config.backbone_lr})
    return torch.optim.AdamW(groups, lr=task.lr, weight_decay=0.01, fused=True)


def _settings(task: Task, state: State) -> dict[str, Any]:
    """Return the settings that the model artifact records: no path, nothing that does not change the result."""
    config = {
        key: value for key, value in asdict(task.config).items() if key not in ("workers", "checkpoint_every", "device")
    }
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
        writer.put("weights", {name: value.cpu().numpy() for name, value in state.net.state_dict().items()})
        if state.step < task.total_steps:
            writer.put("optimizer", _optimizer_arrays(state))


def _optimizer_arrays(state: State) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, parameter in state.net.named_parameters():
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
    for name, parameter in state.net.named_parameters():
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
