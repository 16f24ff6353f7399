"""Losses: pixel embeddings (or class logits), labels and class vectors -> one scalar.

Shapes: `outputs` float32 (N, D, H, W) pixel embeddings, or (N, S, H, W) logits of the S seen classes for softmax;
`labels` int64 (N, H, W) class ids with 255 = void; `vectors` float32 (C, D); `weights` float32 (C,).
Void pixels add nothing. A batch of void pixels only has loss 0 and gradient 0.

The mean is always over non-void pixels, and for the joint embedding the sum is over the D dims: a mean over
dims would shrink the effective learning rate with D and confound every comparison of embedding sizes; a
sum over pixels would tie it to the image size.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zsseg.classes import VOID


def mse(outputs: Tensor, labels: Tensor, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean square error to the class vectors: Σ_p a_y ‖f_p − w_y‖² / Σ_p a_y over non-void pixels p of class y.

    Args:
        outputs: Pixel embeddings f, (N, D, H, W).
        labels: (N, H, W), 255 = void.
        vectors: Class vectors w, (C, D).
        weights: Class weights a, (C,); None weighs all alike.
    """
    valid = labels != VOID
    labels = labels.masked_fill(~valid, 0)  # any class: its term is multiplied by 0 below
    # ‖f − w‖² = Σ_d f_d² − 2 f·w_y + ‖w_y‖², so that no (N, D, H, W) map of targets is ever made
    products = torch.einsum("ndhw,cd->nchw", outputs, vectors).gather(1, labels.unsqueeze(1)).squeeze(1)
    squares = outputs.square().sum(dim=1) - 2 * products + vectors.square().sum(dim=1)[labels]
    return _mean(squares, labels, valid, weights)


def softmax(outputs: Tensor, labels: Tensor, seen: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy over the seen classes, the baseline.

    −Σ_p a_y log s_y(z_p) / Σ_p a_y with s the softmax, over non-void pixels p of class y.

    Args:
        outputs: Logits z of the seen classes in their order, (N, S, H, W).
        labels: (N, H, W) ids of seen classes, 255 = void.
        seen: Ids of the seen classes, int64 (S,).
        weights: Class weights a, (C,); None weighs all alike.
    """
    position = torch.zeros(256, dtype=torch.int64, device=labels.device)
    position[seen] = torch.arange(len(seen), device=labels.device)
    valid = labels != VOID
    losses = F.cross_entropy(outputs, position[labels], reduction="none")
    return _mean(losses, labels.masked_fill(~valid, 0), valid, weights)


def _mean(losses: Tensor, labels: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
    share = valid.to(losses.dtype)
    if weights is not None:
        share = share * weights[labels]
    return (losses * share).sum() / share.sum().clamp_min(1e-12)


def frequency_weights(pixels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Median-frequency class weights: median(f) / f_c (Eigen and Fergus, ICCV 2015; SegNet), float32 (C,).

    Args:
        pixels: Training pixels of each class, (C,), as the loss sees them: unseen classes count 0.

    Returns:
        The weights, scaled so that the mean over training pixels is 1; classes without a pixel get 0.
    """
    present = pixels > 0
    if not present.any():
        return np.zeros(len(pixels), dtype=np.float32)
    frequency = pixels[present] / pixels.sum()
    weights = np.zeros(len(pixels))
    weights[present] = np.median(frequency) / frequency
    mean = (weights * pixels).sum() / pixels.sum()
    scaled: NDArray[np.float32] = (weights / mean).astype(np.float32)
    return scaled
