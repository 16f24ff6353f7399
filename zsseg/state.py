"""What training changes: the network, the optimizer, and the history. Built here, stepped on in `train`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zsseg import distributed, kinship, losses
from zsseg.distributed import Part
from zsseg.errors import SettingError
from zsseg.inference import Model
from zsseg.models import BatchDropout, SegmentationNet, build, fill_anchors, load_pretrained
from zsseg.models.winograd import WinogradConv2d
from zsseg.optimizer import AdamW
from zsseg.presence import SHARPNESS
from zsseg.task import Task


@dataclass
class State:
    """What training changes, and all that a resume needs."""

    net: SegmentationNet
    log_scale: nn.Parameter  # log(1 / temperature); learned where the loss has one
    optimizer: AdamW
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

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that training changes."""
        yield from self.net.state_dict().values()
        yield self.log_scale
        for _, parameter in self.parameters():
            yield from self.optimizer.state.get(parameter, {}).values()


def initial_state(task: Task) -> State:
    """Return the state before the first step; draws the new layers' weights by the seed, from torch's global state."""
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
        share = kinship.shares(imagenet_kinship(task.names), task.unseen.tolist())
        fill_anchors(net, config.weights, share)
    return state_of(task, net, asdict(pretrained))


@functools.cache
def imagenet_kinship(names: tuple[str, ...]) -> kinship.Kinship:
    """Return how ImageNet's classes relate to ours; it takes half a minute, and every model of a run asks."""
    return kinship.imagenet_kinship(names)


def state_of(task: Task, net: SegmentationNet, pretrained: dict[str, str]) -> State:
    """Return the state of a network, whose optimizer has not stepped yet and whose history is empty.

    Raises:
        SettingError: A random backbone is to be kept as it is; or it gathers statistics, which several processes do not
            have in common.
    """
    net.from_random = pretrained["source"] == "none"
    if net.from_random and task.config.frozen:
        raise SettingError(
            "--frozen keeps the backbone as it is, --weights none makes it random; leave one of them out"
        )
    if net.from_random and distributed.world() > 1 and any(isinstance(each, nn.BatchNorm2d) for each in net.modules()):
        raise SettingError(
            "--weights none: this backbone gathers the statistics of whole batches, and several processes have none in "
            "common; train it with one process, or from pre-trained weights"
        )
    net = net.to(task.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_mode(net, training=True)
    for module in net.backbone_modules() if task.config.frozen else ():
        module.requires_grad_(False)
    start = torch.tensor(losses.LOG_SCALE, device=task.device)
    log_scale = nn.Parameter(start, requires_grad=task.config.loss in losses.SCALED)
    return State(net, log_scale, _optimizer(net, log_scale, task), pretrained)


def _optimizer(net: SegmentationNet, log_scale: nn.Parameter, task: Task) -> AdamW:
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
    return AdamW(net, groups, lr=task.lr)


def set_mode(net: SegmentationNet, *, training: bool) -> None:
    """Switch dropout and convolutions that round more; batch normalisation keeps its statistics.

    They are ImageNet's, as is usual with small batches. A backbone from random has none yet, so there it gathers them.
    """
    switched: tuple[type[nn.Module], ...] = (nn.Dropout2d, nn.Dropout, WinogradConv2d)
    if net.from_random:
        switched = (*switched, nn.BatchNorm2d)
    net.eval()
    for module in net.modules():
        if isinstance(module, switched):
            module.train(training)


def take_part(net: SegmentationNet, part: Part | None) -> None:
    """Tell the dropout layers which part of a batch they see."""
    for module in net.modules():
        if isinstance(module, BatchDropout):
            module.part = part


def as_model(task: Task, net: SegmentationNet) -> Model:
    """Return the network as that which scores photos, as a loaded model does (folded), without a calibration."""
    return Model(
        net=net.folded(task.precision, task.device),
        names=task.names,
        seen=tuple(task.seen.tolist()),
        unseen=tuple(task.unseen.tolist()),
        vectors=None if task.vectors is None else torch.from_numpy(task.vectors).to(task.device),
        device=task.device,
        precision=task.precision,
        params={"presence": bool(task.config.presence), "presence_sharpness": SHARPNESS},
    )
