"""What a step of training minimises: the loss, its weighting of pixels, and the gate's losses, by the settings."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zsseg import distributed, losses
from zsseg.classes import BACKGROUND, VOID
from zsseg.dataset import LABEL_STRIDE, seen_pixels
from zsseg.models import gate
from zsseg.task import Task


def loss_function(task: Task, log_scale: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
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
    with task.open_data() as data:
        photos = distributed.share(task.train.tolist())
        own = sum(
            seen_pixels(data, photos, task.unseen.tolist(), len(task.names), pseudo=task.pseudo_maps),
            np.zeros(len(task.names), dtype=np.int64),
        )
    return distributed.sum_counts(own)


def gate_loss(task: Task, branches: tuple[Tensor, ...], labels: Tensor) -> Tensor:
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


def as_far_as(outputs: Tensor, stride: int, labels: Tensor) -> Tensor:
    """Pad labels, (N, H, W), with void to all that the outputs, (N, D, h, w), cover: the padding of the images."""
    height, width = (length * stride // LABEL_STRIDE for length in outputs.shape[2:])
    return F.pad(labels, (0, width - labels.shape[2], 0, height - labels.shape[1]), value=VOID)
