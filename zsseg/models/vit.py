"""Vision transformers with dense features: `vit`, for CLIP, DINOv2, DINOv3 and their kin in timm.

Patch tokens are reshaped to a grid whose stride is the patch, 14 or 16 pixels as a rule; the position embeddings are
resampled to the grid of each image, so that any size goes in. What a cell holds is chosen by `dense_features`:

- tokens: the patch tokens of the last block, after the final normalisation.
- value: MaskCLIP's value path (Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP", ECCV 2022). CLIP was trained on
  one token an image, so attention in its last block spreads the image's meaning over all tokens. There the attention of
  queries and keys is left out, as if every token attended to itself alone: it keeps its value projection and output
  projection, the residual path, the block's MLP and the final normalisation. Where the model has CLIP's projection into
  the space of texts, it is applied too, so that every cell holds a CLIP image embedding of its own, not of unit length.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.config import DenseFeatures
from zsseg.errors import SettingError
from zsseg.models.aspp import zero_convolution
from zsseg.models.backbone import full_name, pretrained_cfg
from zsseg.models.encoder import ChannelNorm
from zsseg.models.net import SegmentationNet

WIDTH = 256
LABEL_GRID = 4  # pixels; training takes labels at every fourth pixel, so windows of cached features start there
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"  # with the activation that OpenAI trained it with
SOME_THAT_WORK = f"vit_small_patch14_dinov2, {CLIP}, vit_small_patch16_dinov3"


class VitNet(SegmentationNet):
    """A plain vision transformer with a light head on its grid of patches; output at the stride of a patch.

    Args:
        backbone: timm's name of it.
        dim: Output channels.
        dense_features: What a cell of the grid holds, see the module.

    Raises:
        SettingError: The backbone is no plain vision transformer, or has no value path.
    """

    fresh = ("norm", "project", "context", "widen", "mix", "out")

    def __init__(self, backbone: str, dim: int, *, dense_features: DenseFeatures) -> None:
        super().__init__()
        cfg = pretrained_cfg(backbone)
        self.mean, self.std = tuple(cfg.mean), tuple(cfg.std)
        self.backbone_name = full_name(backbone)
        self.dense_features = dense_features
        self.backbone = _transformer(backbone, dense_features)
        self.stride = int(self.backbone.patch_embed.patch_size[0])
        self.pad_to = math.lcm(self.stride, LABEL_GRID)
        self.feature_strides = (self.stride, None)
        width = self.backbone.num_classes if self._is_projected() else self.backbone.embed_dim
        self.norm = ChannelNorm(width)
        self.norm_context = ChannelNorm(width)
        self.project = nn.Conv2d(width, WIDTH, 1)
        self.context = nn.Conv2d(width, WIDTH, 1)
        self.widen = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        self.out = zero_convolution(WIDTH, dim)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the grid of patches, (N, K, H/stride, W/stride), and its mean, (N, K, 1, 1)."""
        grid = self._value_grid(images) if self.dense_features == "value" else self._token_grid(images)
        return [grid, grid.mean(dim=(2, 3), keepdim=True)]

    def head(self, features: list[Tensor]) -> Tensor:
        """Map the features to outputs at the stride of a patch."""
        grid, mean = features
        hidden = F.relu(self.project(self.norm(grid)) + self.context(self.norm_context(mean)))
        outputs: Tensor = self.out(F.relu(hidden + self.mix(self.widen(hidden))))
        return outputs

    def backbone_modules(self) -> list[nn.Module]:
        """Return the transformer."""
        return [self.backbone]

    def _is_projected(self) -> bool:
        return self.dense_features == "value" and self.backbone.num_classes > 0

    def _token_grid(self, images: Tensor) -> Tensor:
        grid: Tensor = self.backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        return grid

    def _value_grid(self, images: Tensor) -> Tensor:
        *before, last = self.backbone.blocks
        grid = self.backbone.forward_intermediates(
            images, indices=[len(before) - 1], stop_early=True, intermediates_only=True
        )[0]
        tokens = value_path(last, grid.flatten(2).transpose(1, 2))
        tokens = self.backbone.fc_norm(self.backbone.norm(tokens))
        if self._is_projected():
            tokens = self.backbone.head(tokens)
        dense: Tensor = tokens.transpose(1, 2).unflatten(2, grid.shape[2:])
        return dense


def value_path(block: Any, tokens: Tensor) -> Tensor:
    """Run a transformer block in which every token attends to itself alone.

    Args:
        block: timm's `vision_transformer.Block`.
        tokens: (N, tokens, K).

    Returns:
        (N, tokens, K).
    """
    attention = block.attn
    values = attention.qkv(block.norm1(tokens))[..., -attention.proj.in_features :]
    tokens = tokens + block.ls1(attention.proj(values))
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))  # type: ignore[no-any-return]


def _transformer(name: str, dense_features: DenseFeatures) -> Any:
    """Make the timm model, without what dense features do not need."""
    import timm
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    projection = dense_features == "value" and _is_clip_tower(name)
    options: dict[str, Any] = {} if projection else {"num_classes": 0}
    try:
        model = timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # not a transformer, hence no such argument
        model = None
    if not isinstance(model, VisionTransformer | Eva) or type(model.patch_embed) is not PatchEmbed:
        raise SettingError(f"backbone {name!r} is no plain vision transformer; take one such as {SOME_THAT_WORK}")
    if dense_features == "value" and not _has_value_path(model):
        raise SettingError(
            f"backbone {name!r} has no value path that zsseg knows; leave out --dense-features value, or take one such "
            f"as {CLIP}"
        )
    if not projection:
        model.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    return model


def _is_clip_tower(name: str) -> bool:
    """Tell whether the weights of a name end in CLIP's projection: not those fine-tuned to classify."""
    cfg = pretrained_cfg(name)
    return "clip" in str(cfg.architecture) and "_ft_" not in str(cfg.tag)


def _has_value_path(model: Any) -> bool:
    from timm.models.vision_transformer import Attention, Block

    last = model.blocks[-1]
    plain = type(last) is Block and type(last.attn) is Attention and len(model.blocks) > 1
    # no newer timm's norm or gate on the attention's output
    return (
        plain
        and getattr(last.attn, "gate", None) is None
        and isinstance(getattr(last.attn, "norm", nn.Identity()), nn.Identity)
    )
