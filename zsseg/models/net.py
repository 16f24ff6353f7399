"""What every visual model offers, and the padding that lets it take any image size."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

PAD_TO = 32  # pixels; every backbone's coarsest stride divides it


class SegmentationNet(nn.Module):
    """A backbone that `features` runs and a head that maps its features to pixel embeddings.

    Attributes:
        stride: Pixels between neighbouring cells of the output.
        feature_strides: The stride of each map that `features` returns; None for an image-level one.
        mean: Channel means that the backbone's weights expect, RGB in [0, 1].
        std: Channel standard deviations, likewise.
        from_random: Whether the backbone, too, started from random.
        fresh: Name prefixes of the parameters that start from random and learn at the full rate.
    """

    stride: int
    feature_strides: tuple[int | None, ...]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    fresh: tuple[str, ...]
    from_random: bool = False

    def features(self, images: Tensor) -> list[Tensor]:
        """Run the backbone on padded input, (N, 3, H, W) -> feature maps, finest first."""
        raise NotImplementedError

    def head(self, features: list[Tensor]) -> Tensor:
        """Map the feature maps to outputs, (N, D, h, w)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images of any size, (N, 3, H, W), to outputs, (N, D, h, w)."""
        return self.head(self.features(pad(images)))

    def backbone_modules(self) -> list[nn.Module]:
        """Return the modules that `features` runs: those that `--frozen` leaves as they are."""
        raise NotImplementedError


def pad(images: Tensor) -> Tensor:
    """Pad normalised images with zeros (the mean colour) at the right and bottom to a multiple of 32."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % PAD_TO, 0, -height % PAD_TO))
