"""What every visual model offers, and the padding that lets it take any image size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.config import Precision
from zsseg.distributed import Part

PAD_TO = 32  # pixels; the coarsest stride of every backbone with a pyramid of maps divides it


class BatchDropout:
    """What a dropout layer knows of its batch.

    Attributes:
        part: Which photos it sees, of a batch that several processes share: the mask is drawn for all of the batch, so
            that it is that of one process. None: it sees them all.
    """

    part: Part | None = None


class SegmentationNet(nn.Module):
    """A backbone that `features` runs and a head that maps its features to pixel embeddings.

    Attributes:
        stride: Pixels between neighbouring cells of the output.
        feature_strides: The stride of each map that `features` returns; None for an image-level one.
        pad_to: The input is padded to a multiple of this, in pixels; the strides divide it, and so does the 4 by which
            training takes labels, or windows of cached features could not be cut.
        mean: Channel means that the backbone's weights expect, RGB in [0, 1].
        std: Channel standard deviations, likewise.
        backbone_name: timm's name of the backbone with its tag, None for one that is not timm's.
        gate_stride: Pixels between neighbouring cells of `gate_cells` and `prior`.
        from_random: Whether the backbone, too, started from random.
        fresh: Name prefixes of the parameters that start from random and learn at the full rate.
    """

    stride: int
    feature_strides: tuple[int | None, ...]
    pad_to: int = PAD_TO
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backbone_name: str | None = None
    gate_stride: int = PAD_TO
    from_random: bool = False
    fresh: tuple[str, ...]

    def features(self, images: Tensor) -> list[Tensor]:
        """Run the backbone on padded input, (N, 3, H, W) -> feature maps, finest first."""
        raise NotImplementedError

    def head(self, features: list[Tensor]) -> Tensor:
        """Map the feature maps to outputs, (N, D, h, w)."""
        raise NotImplementedError

    def outputs(self, features: list[Tensor]) -> list[Tensor]:
        """Return every output that training supervises, (N, D, h, w) each; the last is that of `head`."""
        return [self.head(features)]

    def gate_cells(self, features: list[Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return the gate's embeddings, (N, D, h', w') at `gate_stride` (`models.gate`); None without a gate."""
        return None

    def gate_branches(self, features: list[Tensor]) -> tuple[Tensor, ...] | None:  # noqa: ARG002
        """Return what training supervises of the gate, (N, D, h', w') each; None without a gate."""
        return None

    def prior(self, features: list[Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return what the anchors add to the gate's scores, (N, C, h', w') (`models.anchors`); None without them."""
        return None

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images of any size, (N, 3, H, W), to outputs, (N, D, h, w)."""
        return self.head(self.features(self.pad(images)))

    def pad(self, images: Tensor) -> Tensor:
        """Pad normalised images with zeros (the mean colour) at the right and bottom to a multiple of `pad_to`."""
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.pad_to, 0, -height % self.pad_to))

    def folded(self, precision: Precision, device: torch.device) -> SegmentationNet:  # noqa: ARG002
        """Return the same network for prediction alone, batch normalisations folded where that pays, or itself.

        Args:
            precision: "float32" or "bfloat16", as it will compute.
            device: Where it will compute.
        """
        return self

    def backbone_modules(self) -> list[nn.Module]:
        """Return the modules that `features` runs: those that `--frozen` leaves as they are."""
        raise NotImplementedError
