"""Presence: what a photo's best places say of an unseen class counts for all its places.

Whether a photo shows a sheep is easier to tell than which of its pixels do: seen classes win most pixels of an unseen
object by a little, but rarely all of them by much, and in a photo without such an object they win everywhere. So each
unseen class c gets, all over the photo, what a soft maximum over its P cells says of the gap to the best seen class
(multiple-instance learning; the pooling is that of Pinheiro and Collobert, "From Image-level to Pixel-level Labeling
with Convolutional Networks", CVPR 2015):

    gap_c(p)   = score_c(p) − max over seen score(p),
    presence_c = 1/r · log(1/P · Σ_p exp(r · gap_c(p))),
    score_c(p) ← score_c(p) + presence_c.

r = SHARPNESS over the mean ‖w‖² of the class vectors. Unlike a seen bias, which is the same for every photo,
this one is large where the class seems to be and small where it does not. Nothing is learned, and no label is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHARPNESS = 40.0
UNRECORDED = 20.0  # of models that do not say


def with_presence(
    scores: Tensor, seen: Sequence[int], unseen: Sequence[int], *, unit: float, sharpness: float = SHARPNESS
) -> Tensor:
    """Return the scores, those of unseen classes raised by their presence in the photo.

    Args:
        scores: Of one photo on the coarse grid, float32 (C, h, w).
        seen: Ids of the seen classes, at least one.
        unseen: Ids of the unseen classes.
        unit: The scale of scores, the mean ‖w‖² of the class vectors, above 0.
        sharpness: Of the soft maximum, in that scale.

    Returns:
        float32 (C, h, w), a new tensor.
    """
    chosen = torch.as_tensor(list(unseen), device=scores.device)
    best = scores[torch.as_tensor(list(seen), device=scores.device)].amax(dim=0)
    sharpness /= unit
    gaps = (scores[chosen] - best).flatten(1)
    highest = gaps.amax(dim=1, keepdim=True)  # taken out, so that no exponential overflows
    presence = highest + (sharpness * (gaps - highest)).exp().mean(dim=1, keepdim=True).log() / sharpness
    raised = scores.clone()
    raised[chosen] = scores[chosen] + presence[:, :, None]
    return raised
