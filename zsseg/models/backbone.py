"""timm backbones by name: which weights a name means, and maps at stride 8 and 16 from any that makes them.

A name is timm's `architecture.tag`; the tag says which pre-trained weights. It is written out in full wherever it is
recorded, since timm's default tags change from version to version.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.errors import SettingError
from zsseg.models.net import PAD_TO

FINE, COARSE = 8, 16  # strides of the two maps
PROBE = PAD_TO  # pixels; the smallest image
SOME_THAT_WORK = "tf_efficientnet_lite0, resnet50, convnext_tiny, mobilenetv3_large_100"


def full_name(name: str) -> str:
    """Return a backbone's name with its tag: resnet50 -> resnet50.a1_in1k.

    Raises:
        SettingError: timm has no such model, or no such tag of it.
    """
    cfg = pretrained_cfg(name)
    return f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)


def pretrained_cfg(name: str) -> Any:
    """Return what timm knows of a model's weights: mean, std, tag, where they lie.

    Raises:
        SettingError: timm has no such model, or no such tag of it.
    """
    import timm
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or [SOME_THAT_WORK]
        raise SettingError(f"backbone {name!r}: timm {timm.__version__} has no such model; near: {', '.join(near)}")
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:  # how timm refuses a tag
        architecture = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or architecture
        raise SettingError(f"backbone {name!r}: timm knows no weights of that tag; known: {tags}") from error
    if cfg is None:
        raise SettingError(f"backbone {name!r}: timm {timm.__version__} says nothing of its input; take another")
    return cfg


class Pyramid(nn.Module):
    """The maps of a timm backbone at stride 8 and 16.

    The coarse one is the backbone's deepest map. Where the backbone can be kept at stride 16 by dilation, it is;
    where not, its map at stride 32 is brought up.

    Args:
        name: timm's name.

    Attributes:
        channels: Of the two maps.
        maps: timm's model, cut off after the deepest map.

    Raises:
        SettingError: No such model, or one that does not make such maps for photos of any size.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if pretrained_cfg(name).fixed_input_size:
            raise SettingError(
                f"backbone {name!r} takes photos of one size only; a plain transformer (vit_*) goes with --model vit, "
                f"otherwise take one such as {SOME_THAT_WORK}"
            )
        strides = _strides(name)
        if FINE not in strides or strides[-1] not in (COARSE, 2 * COARSE):
            raise SettingError(
                f"backbone {name!r} makes maps at strides {', '.join(f'{s:g}' for s in strides)}, expected {FINE} and "
                f"{COARSE} or {2 * COARSE}; take one such as {SOME_THAT_WORK}"
            )
        fine = max(index for index, stride in enumerate(strides) if stride == FINE)
        self.maps = _create(name, out_indices=(fine, len(strides) - 1))
        self.channels: tuple[int, int] = tuple(self.maps.feature_info.channels())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map padded images, (N, 3, H, W), to maps (N, K, H/8, W/8) and (N, L, H/16, W/16)."""
        fine, coarse = self.maps(images)
        return fine, resized(coarse, (images.shape[2] // COARSE, images.shape[3] // COARSE))


def _strides(name: str) -> list[float]:
    """Return image size / map size of each map, of a run without numbers."""
    with torch.device("meta"):
        model = _create(name).eval()
        try:
            return [PROBE / maps.shape[-1] for maps in model(torch.empty(1, 3, PROBE, PROBE))]
        except (RuntimeError, ValueError) as error:  # convolutions without padding, windows of one size
            raise SettingError(
                f"backbone {name!r} takes no image of {PROBE} × {PROBE} pixels; take one such as {SOME_THAT_WORK}"
            ) from error


def _create(name: str, **options: Any) -> Any:
    """Make a timm feature extractor, dilated to stride 16 where its constructor can."""
    import timm

    options = {"features_only": True, "feature_cls": "getter", **options}
    try:
        return timm.create_model(name, output_stride=COARSE, **options)
    except (TypeError, AssertionError, NotImplementedError):  # each way in which timm's models refuse output_stride
        pass
    try:
        return timm.create_model(name, **options)
    except (TypeError, AssertionError, NotImplementedError, AttributeError, RuntimeError) as error:
        raise SettingError(f"backbone {name!r} gives no feature maps; take one such as {SOME_THAT_WORK}") from error


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to a size bilinearly; those that have it stay as they are."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
