"""Visual models: images -> pixel embeddings (or class logits) on a coarse grid.

Every model is a `SegmentationNet`. `build` makes one with random parameters, `load_pretrained` fills its
backbone. Sizes: the input is (N, 3, H, W) with any H and W; it is padded at the right and at the bottom to a
multiple of the model's `pad_to`, so that cell (i, j) of the output, (N, D, h, w), covers the `stride` × `stride` pixels
from (i·stride, j·stride) on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zsseg.config import ARCHITECTURES, DenseFeatures, LossName, ModelName, TrainConfig
from zsseg.errors import SettingError
from zsseg.models.aspp import AsppNet
from zsseg.models.backbone import full_name
from zsseg.models.encoder import EncoderNet
from zsseg.models.fcn import FCN
from zsseg.models.hourglass import NO_BACKBONE, HourglassNet
from zsseg.models.net import BatchDropout, SegmentationNet
from zsseg.models.vit import VitNet
from zsseg.models.weights import Pretrained, fill_anchors, load_pretrained

__all__ = [
    "FCN",
    "AsppNet",
    "BatchDropout",
    "EncoderNet",
    "HourglassNet",
    "Pretrained",
    "SegmentationNet",
    "VitNet",
    "build",
    "default_lr",
    "fill_anchors",
    "load_pretrained",
    "out_dim",
    "resolve",
]


def build(
    model: ModelName,
    dim: int,
    *,
    backbone: str | None = None,
    stacks: int | None = None,
    dense_features: DenseFeatures | None = None,
    gate: bool = False,
    anchors: int = 0,
) -> SegmentationNet:
    """Make a model with random parameters (from torch's global generator).

    Args:
        model: Its name.
        dim: Output channels: embedding dims D, or the number of seen classes for softmax.
        backbone: timm's name of the backbone of aspp, hourglass and vit; "none" makes a plain hourglass.
        stacks: Hourglasses.
        dense_features: What a cell of vit holds.
        gate: Whether lite0 has a gate (`models.gate`).
        anchors: How many classes lite0's anchors speak of (`models.anchors`); 0: it has none.

    For each option, None is the model's default in `config.ARCHITECTURES`.

    Raises:
        SettingError: The backbone does not exist or does not go with the model, or an option belongs to another model.
    """
    given = {"backbone": backbone, "stacks": stacks, "dense_features": dense_features}
    options: dict[str, Any] = _options(model, given)
    if (gate or anchors) and model != "lite0":
        raise SettingError(f"--gate and --anchors go with --model lite0, got --model {model}; leave them out")
    match model:
        case "lite0":
            return EncoderNet("tf_efficientnet_lite0", dim, gate=gate, anchors=anchors)
        case "fcn32s":
            return FCN(32, dim)
        case "fcn16s":
            return FCN(16, dim)
        case "fcn8s":
            return FCN(8, dim)
        case "aspp":
            return AsppNet(options["backbone"], dim)
        case "hourglass":
            return HourglassNet(options["backbone"], dim, stacks=options["stacks"])
        case "vit":
            return VitNet(options["backbone"], dim, dense_features=options["dense_features"])


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in what `build` would take by default, with the full name of the backbone, so that a record is complete.

    Raises:
        SettingError: An option that belongs to another model, or settings that contradict each other.
    """
    given = {name: getattr(config, name) for name in ("backbone", "stacks", "dense_features")}
    options: dict[str, Any] = _options(config.model, given)
    if options.get("backbone") == NO_BACKBONE:
        if config.frozen:
            raise SettingError("--frozen keeps the backbone as it is, --backbone none has none; leave one of them out")
    elif "backbone" in options:
        options["backbone"] = full_name(options["backbone"])
    if config.frozen is None:
        learned = config.weights != "none" and options.get("backbone") != NO_BACKBONE
        options["frozen"] = learned and not config.model.startswith("fcn")  # fc6 and fc7, FCN's head, are most of it
    return replace(config, **options)


def _options(model: ModelName, given: dict[str, Any]) -> dict[str, Any]:
    """Return a model's options, the given ones over its defaults."""
    chosen = {name: value for name, value in given.items() if value is not None}
    defaults = ARCHITECTURES[model]
    for name in chosen.keys() - defaults.keys():
        takers = ", ".join(each for each, options in ARCHITECTURES.items() if name in options)
        raise SettingError(f"--{name.replace('_', '-')} goes with --model {takers}, got --model {model}; leave it out")
    if chosen.get("backbone") == NO_BACKBONE and model != "hourglass":
        raise SettingError(
            f"--backbone none goes with --model hourglass, got --model {model}; --weights none: from random"
        )
    return {**defaults, **chosen}


def out_dim(loss: LossName, *, dim: int, seen: int) -> int:
    """Return the output channels that a loss needs: D for a joint embedding, the seen classes for softmax."""
    return seen if loss == "softmax" else dim


def default_lr(model: ModelName) -> float:
    """Return the default learning rate of freshly initialised layers; docs/training.md has the curves."""
    match model:
        case "fcn32s" | "fcn16s" | "fcn8s":
            return 1e-4
        case "hourglass":
            return 1e-3
        case "lite0" | "aspp" | "vit":
            return 3e-3
