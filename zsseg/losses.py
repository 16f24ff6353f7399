"""Losses: pixel embeddings (or class logits), labels and class vectors -> one scalar; and how pixels are weighed.

Shapes: `outputs` float32 (N, D, H, W) pixel embeddings f, or (N, S, H, W) logits of the S seen classes for softmax;
`labels` int64 (N, H, W) class ids with 255 = void; `vectors` float32 (C, D) class vectors w, ŵ = w/‖w‖; `seen` int64
(S,) ids of the seen classes; `weights` float32 (N, H, W), a_p of each pixel p; y is the class of p.

Only the rows `seen` of `vectors` are read: an unseen class is neither target nor negative nor in a denominator.
Pixels of any other label, void above all, add nothing. A batch of void pixels only has loss 0 and gradient 0.

The mean is always over the pixels that count, Σ_p a_p l_p / Σ_p a_p, and for the joint embedding the sum is over the
D dims: a mean over dims would shrink the effective learning rate with D and confound every comparison of
embedding sizes; a sum over pixels would tie it to the image size. Where several processes share a batch, both sums are
over all of it (`zsseg.distributed`), and so are those of JoEm's mean embeddings.

Heads start from 0, where a cosine has no gradient. Cosines here are cos_ε(f, w) = f·ŵ / √(‖f‖² + ε²) with ε = 0.1:
the gradient at f = 0 is ŵ/ε, and at ‖f‖ = 1 the value is within 0.5 % of the cosine. Losses that do not fix the
length of f (`cosine`, `hinge`, `softmax_embed`, `infonce`) rank classes by f·ŵ; so does NNE over unit vectors,
whatever ‖f‖.

`outputs` may come on a coarser grid than the labels, (N, D, h, w): f is then what bilinear upsampling to the labels'
size makes of them. Only the S maps f·w_c are upsampled, and for `mse` none (`zsseg.bilinear`): no tensor of D × H × W
exists, neither of embeddings nor of targets.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zsseg import bilinear, distributed
from zsseg.classes import VOID
from zsseg.config import LossName, Negatives

ANGULAR: tuple[LossName, ...] = ("cosine", "hinge", "softmax-embed", "infonce")  # they use directions of class vectors
SCALED: tuple[LossName, ...] = ("softmax-embed", "infonce")  # they learn a temperature
LOG_SCALE = math.log(1 / 0.07)  # where a learned log(1/temperature) starts, CLIP's value
LOG_SCALE_RANGE = (0.0, math.log(100))  # where CLIP keeps it
EPSILON = 0.1  # of the cosines, see above
MARGIN = 0.1  # of the rank loss, DeViSE's value
JOEM_REDUCTION = 4  # cells of the loss's grid between labels that are kept, JoEm's r = 1/4
JOEM_ALPHA = 0.1  # share of the semantic consistency
JOEM_TAU = 5.0  # sharpness of the class vectors' relations
CELL = 32**2  # pixels that count as one sample, see effective_number_weights


def mse(outputs: Tensor, labels: Tensor, vectors: Tensor, seen: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean square error to the class vectors: l_p = ‖f_p − w_y‖².

    Args:
        outputs: Pixel embeddings f, (N, D, H, W).
        labels: (N, H, W), 255 = void.
        vectors: Class vectors w, (C, D).
        seen: Ids of the seen classes, (S,).
        weights: Pixel weights a, (N, H, W); None weighs all alike.
    """
    place, share = _targets(labels, seen, weights, outputs)
    chosen = vectors[seen]
    # Σ a ‖f − w_y‖² = Σ a ‖f‖² − 2 Σ_k g_k·(Σ_p a_p b_pk w_y) + Σ a ‖w_y‖², with g the outputs and b as in `bilinear`
    of_class = torch.zeros(len(place), len(seen), *place.shape[1:], dtype=share.dtype, device=share.device)
    of_class.scatter_(1, place.unsqueeze(1), share.unsqueeze(1))
    towards = bilinear.gather(of_class, outputs.shape[-2:]).permute(0, 2, 3, 1) @ chosen
    lengths = (of_class.sum(dim=(0, 2, 3)) * chosen.square().sum(dim=1)).sum()
    return _ratio(bilinear.squared_error(outputs, share, towards) + lengths, share)


def cosine(outputs: Tensor, labels: Tensor, vectors: Tensor, seen: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cosine distance to the class vectors: l_p = 1 − cos_ε(f_p, w_y).

    Args:
        outputs: Pixel embeddings f, (N, D, H, W), of any length.
        labels: (N, H, W), 255 = void.
        vectors: Class vectors w, (C, D); their length does not matter.
        seen: Ids of the seen classes, (S,).
        weights: Pixel weights a, (N, H, W); None weighs all alike.
    """
    place, share = _targets(labels, seen, weights, outputs)
    return _mean(1 - _pick(_cosines(outputs, vectors[seen], labels.shape[1:]), place), share)


def hinge(
    outputs: Tensor,
    labels: Tensor,
    vectors: Tensor,
    seen: Tensor,
    weights: Tensor | None = None,
    *,
    negatives: Negatives = "all",
) -> Tensor:
    """Rank loss of DeViSE (Frome et al., NeurIPS 2013) on cosines: l_p = Σ_{j ∈ J} max(0, m − s_y + s_j), m = 0.1.

    s_c = cos_ε(f_p, w_c). J is a sum, not a mean, as in the paper: AdamW does not mind, and a class that outranks y
    weighs the same however many others do not.

    Args:
        outputs: Pixel embeddings f, (N, D, H, W), of any length.
        labels: (N, H, W), 255 = void.
        vectors: Class vectors w, (C, D); their length does not matter.
        seen: Ids of the seen classes, (S,); the negatives are among them.
        weights: Pixel weights a, (N, H, W); None weighs all alike.
        negatives: J: all other seen classes; the one that scores highest; or the semi-hard ones (Schroff et al., CVPR
            2015), those that do not score above s_y, of which those within the margin have a loss. Ties count, or
            training would never leave f = 0, where all scores are alike. So does the lowest of those above s_y: with
            fixed class vectors a wrong pixel is otherwise never mended, and background wins everywhere (measured).
    """
    place, share = _targets(labels, seen, weights, outputs)
    scores = _cosines(outputs, vectors[seen], labels.shape[1:])
    own = _pick(scores, place).unsqueeze(1)
    others = scores.scatter(1, place.unsqueeze(1), -math.inf)  # the true class is no negative of its own
    terms = F.relu(MARGIN - own + others)
    match negatives:
        case "all":
            losses = terms.sum(dim=1)
        case "hardest":
            losses = terms.amax(dim=1)  # shares the gradient where several are highest, as all are at f = 0
        case "semi-hard":
            lowest_above = others.masked_fill(others <= own, math.inf).amin(dim=1, keepdim=True)
            losses = (terms * ((others <= own) | (others == lowest_above))).sum(dim=1)
    return _mean(losses, share)


def softmax_embed(
    outputs: Tensor, labels: Tensor, vectors: Tensor, seen: Tensor, weights: Tensor | None = None, *, log_scale: Tensor
) -> Tensor:
    """Cross-entropy over fixed class vectors: l_p = −log softmax_y(e^t f_p·ŵ_c) over seen c.

    SPNet (Xian et al., CVPR 2019). f is not normalised: its length is the pixel's own confidence. The learned
    scale e^t, which SPNet does not have, lets that length stay near 1, as for the other losses.

    Args:
        outputs: Pixel embeddings f, (N, D, H, W), of any length.
        labels: (N, H, W), 255 = void.
        vectors: Class vectors w, (C, D); their length does not matter.
        seen: Ids of the seen classes, (S,).
        weights: Pixel weights a, (N, H, W); None weighs all alike.
        log_scale: t, learned, a scalar.
    """
    place, share = _targets(labels, seen, weights, outputs)
    scores = log_scale.exp() * _products(outputs, F.normalize(vectors[seen], dim=1), labels.shape[1:])
    return _mean(F.cross_entropy(scores, place, reduction="none"), share)


def infonce(
    outputs: Tensor, labels: Tensor, vectors: Tensor, seen: Tensor, weights: Tensor | None = None, *, log_scale: Tensor
) -> Tensor:
    """InfoNCE with class vectors as prototypes: l_p = −log softmax_y(e^t cos_ε(f_p, w_c)) over seen c.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018; the learned scale e^t,
    its start and its limits are those of CLIP (Radford et al., ICML 2021).

    Args:
        outputs: Pixel embeddings f, (N, D, H, W), of any length.
        labels: (N, H, W), 255 = void.
        vectors: Class vectors w, (C, D); their length does not matter.
        seen: Ids of the seen classes, (S,).
        weights: Pixel weights a, (N, H, W); None weighs all alike.
        log_scale: t = log(1 / temperature), learned, a scalar.
    """
    place, share = _targets(labels, seen, weights, outputs)
    scores = log_scale.exp() * _cosines(outputs, vectors[seen], labels.shape[1:])
    return _mean(F.cross_entropy(scores, place, reduction="none"), share)


def joem(
    outputs: Tensor, labels: Tensor, vectors: Tensor, seen: Tensor, weights: Tensor | None = None, *, objects: Tensor
) -> Tensor:
    """Boundary-aware regression and semantic consistency, BAR + 0.1 SC (JoEm, Baek et al., ICCV 2021).

    BAR: every fourth label of the grid is kept and filled with its class vector, void with the zero vector; upsampled
    bilinearly as vectors these are the targets t_p, which blend at boundaries; l_p = ‖f_p − t_p‖².
    SC = mean_i KL(softmax_j(−5 ‖w_i − w_j‖) ‖ softmax_j(−‖μ_i − μ_j‖)) over the objects i, j in the batch, with
    μ_i = Σ a_p f_p / Σ a_p over the pixels of i; 0 where there are fewer than two.

    What differs from the paper: class vectors are fixed, there is no semantic encoder to learn, so SC, which holds
    the encoder's prototypes to the relations of the words, acts on the mean pixel embeddings, and on the classes that
    the batch shows; the auxiliary classifier with its cross-entropy is left out; BAR is summed over D, not averaged.

    Args:
        outputs: Pixel embeddings f, (N, D, H, W).
        labels: (N, H, W), 255 = void.
        vectors: Class vectors w, (C, D).
        seen: Ids of the seen classes, (S,).
        weights: Pixel weights a, (N, H, W); None weighs all alike.
        objects: Ids of the seen classes but the background.
    """
    place, share = _targets(labels, seen, weights, outputs)
    chosen = vectors[seen]
    regression = _mean(_blended_squares(outputs, labels, chosen, seen), share)
    is_object = torch.isin(seen, objects)
    return regression + JOEM_ALPHA * _consistency(outputs, place, share, chosen, is_object)


def softmax(outputs: Tensor, labels: Tensor, seen: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy over the seen classes, the baseline without class vectors: l_p = −log softmax_y(z_p).

    Args:
        outputs: Logits z of the seen classes in their order, (N, S, H, W).
        labels: (N, H, W), 255 = void.
        seen: Ids of the seen classes, (S,).
        weights: Pixel weights a, (N, H, W); None weighs all alike.
    """
    place, share = _targets(labels, seen, weights, outputs)
    logits = bilinear.upsample(outputs, labels.shape[1:])
    return _mean(F.cross_entropy(logits, place, reduction="none"), share)


def _targets(labels: Tensor, seen: Tensor, weights: Tensor | None, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's place among the seen classes, int64 (N, H, W), and its weight, 0 where it is of none."""
    places = torch.full((256,), -1, dtype=torch.int64, device=labels.device)
    places[seen] = torch.arange(len(seen), device=labels.device)
    place = places[labels]
    share = (place >= 0).to(outputs.dtype)
    if weights is not None:
        share = share * weights.to(share.dtype)
    return place.clamp_min(0), share  # place 0 where the weight is 0: any would do


def _mean(losses: Tensor, share: Tensor) -> Tensor:
    return _ratio((losses * share).sum(), share)


def _ratio(total: Tensor, share: Tensor) -> Tensor:
    """Return a sum over pixels by the sum of their weights, both over the whole batch."""
    total, weight = distributed.summed(total, share.sum())
    return total / weight.clamp_min(1e-12)


def _products(outputs: Tensor, vectors: Tensor, size: torch.Size) -> Tensor:
    """Return f·w of every pixel and class, (N, S, H, W), size (H, W)."""
    return bilinear.upsample(torch.einsum("ndhw,sd->nshw", outputs, vectors), size)


def _cosines(outputs: Tensor, vectors: Tensor, size: torch.Size) -> Tensor:
    """Return cos_ε(f, w) of every pixel and class, (N, S, H, W), size (H, W)."""
    lengths = (bilinear.squares(outputs, size).unsqueeze(1) + EPSILON**2).sqrt()
    return _products(outputs, F.normalize(vectors, dim=1), size) / lengths


def _pick(scores: Tensor, place: Tensor) -> Tensor:
    """Return the score of each pixel's own class, (N, S, H, W) -> (N, H, W)."""
    return scores.gather(1, place.unsqueeze(1)).squeeze(1)


def _blended_squares(outputs: Tensor, labels: Tensor, vectors: Tensor, seen: Tensor) -> Tensor:
    """Return ‖f_p − t_p‖² of JoEm's blended targets, (N, H, W).

    t_p = Σ_c b_pc w_c with b the upsampled shares of the classes, hence ‖f − t‖² = ‖f‖² − 2 Σ_c b_c f·w_c + bᵀWWᵀb.
    """
    small = [max(1, round(length / JOEM_REDUCTION)) for length in labels.shape[1:]]
    kept = F.interpolate(labels.unsqueeze(1).to(outputs.dtype), size=small, mode="nearest-exact").long()
    one_hot = (kept == seen[:, None, None]).to(outputs.dtype)  # (N, S, h, w); void is of no class
    blend = F.interpolate(one_hot, size=labels.shape[1:], mode="bilinear", align_corners=False)
    towards = (blend * _products(outputs, vectors, labels.shape[1:])).sum(dim=1)
    squares = (blend * torch.einsum("nshw,st->nthw", blend, vectors @ vectors.T)).sum(dim=1)
    return bilinear.squares(outputs, labels.shape[1:]) - 2 * towards + squares


def _consistency(outputs: Tensor, place: Tensor, share: Tensor, vectors: Tensor, is_object: Tensor) -> Tensor:
    """Return JoEm's SC: how far the relations of the batch's mean embeddings are from those of the class vectors."""
    one_hot = F.one_hot(place, len(vectors)) * share.unsqueeze(-1)  # (N, H, W, S)
    (totals,) = distributed.summed(one_hot.sum(dim=(0, 1, 2)))
    present = is_object & (totals > 0)
    if present.sum() < 2:
        return outputs.new_zeros(())
    on_grid = bilinear.gather(one_hot.permute(0, 3, 1, 2), outputs.shape[-2:])
    (sums,) = distributed.summed(torch.einsum("nshw,ndhw->sd", on_grid, outputs))
    means = sums[present] / totals[present, None]
    wanted = (-JOEM_TAU * _distances(vectors[present])).softmax(dim=1)
    return F.kl_div((-_distances(means)).log_softmax(dim=1), wanted, reduction="batchmean")


def _distances(points: Tensor) -> Tensor:
    """Return all Euclidean distances, exact and with gradient 0 where two points coincide."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


# --- weightings -------------------------------------------------------------------------------------------------------


def class_weighted(labels: Tensor, class_weights: Tensor) -> Tensor:
    """Return the weight of each pixel's class, float32 (N, H, W), 0 where void.

    Args:
        labels: (N, H, W), 255 = void.
        class_weights: (C,), C ≤ 255.
    """
    return F.pad(class_weights, (0, 256 - len(class_weights)))[labels]


def image_weighted(labels: Tensor) -> Tensor:
    """Return 1 / (pixels of the same class in the same image), float32 (N, H, W), 0 where void.

    Every class that an image shows then weighs 1, however small it is there, and the loss is a mean over pairs of
    image and class.

    Args:
        labels: (N, H, W), 255 = void.
    """
    flat = labels.flatten(1)
    counts = torch.zeros(len(labels), 256, device=labels.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))
    return (1 / counts.gather(1, flat)).reshape(labels.shape).masked_fill(labels == VOID, 0)


def frequency_weights(pixels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Median-frequency class weights: median(n) / n_c (Eigen and Fergus, ICCV 2015; SegNet), float32 (C,).

    Args:
        pixels: Training pixels n of each class, (C,), as the loss sees them: unseen classes count 0.

    Returns:
        The weights, scaled so that the mean over training pixels is 1; classes without a pixel get 0.
    """
    return _scaled(1 / np.maximum(pixels, 1), pixels)


def effective_number_weights(pixels: NDArray[np.int64], *, beta: float = 0.9999) -> NDArray[np.float32]:
    """Class weights by effective number: (1 − β) / (1 − β^n_c) (Cui et al., CVPR 2019), float32 (C,).

    n counts cells of 32 × 32 pixels: that is one step of the coarsest backbone, within which pixels share nearly
    all that the network sees, so about one sample. With β = 0.9999 a class saturates near 10 000 samples. Counted in
    pixels every class has more, and all weigh alike; counted in photos none has, and the weights are 1/n.

    Args:
        pixels: Training pixels of each class, (C,), as the loss sees them: unseen classes count 0.
        beta: β, at least 0 and below 1.

    Returns:
        The weights, scaled so that the mean over training pixels is 1; classes without a pixel get 0.
    """
    samples = np.maximum(pixels, 1) / CELL
    # 1 − β^n through expm1, which keeps its digits where β^n is close to 1
    return _scaled((1 - beta) / -np.expm1(samples * np.log(beta)), pixels)


def _scaled(weights: NDArray[np.float64], pixels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Scale class weights to a mean of 1 over pixels, and to 0 for a class without any."""
    if not pixels.any():
        return np.zeros(len(pixels), dtype=np.float32)
    mean = (weights * pixels).sum() / pixels.sum()
    scaled: NDArray[np.float32] = np.where(pixels > 0, weights / mean, 0).astype(np.float32)
    return scaled
