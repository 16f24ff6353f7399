"""Losses and class weights against plain Python loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zsseg.losses import frequency_weights, mse, softmax

VOID = 255
SEEN = [1, 3, 4, 7]  # not contiguous, of 8 classes
CLASSES = 8


def random_case(seed: int, *, dims: int, ids: Sequence[int], void: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 outputs (2, D, 3, 4), labels with void, and class weights (8,)."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(2, dims, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor(ids)[torch.randint(len(ids), (2, 3, 4), generator=generator)]
    labels[torch.rand(2, 3, 4, generator=generator) < void] = VOID
    return outputs, labels, torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.1


def random_vectors(seed: int, dims: int) -> Tensor:
    """Return class vectors, float64 (8, D)."""
    return torch.randn(CLASSES, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_mean(outputs: Tensor, labels: Tensor, weights: Tensor | None, loss_of: object) -> float:
    """Return the weighted mean over the pixels that are not void, one by one."""
    total = share = 0.0
    for image in range(labels.shape[0]):
        for row in range(labels.shape[1]):
            for column in range(labels.shape[2]):
                label = int(labels[image, row, column])
                if label != VOID:
                    weight = 1.0 if weights is None else float(weights[label])
                    total += weight * loss_of(outputs[image, :, row, column].tolist(), label)  # type: ignore[operator]
                    share += weight
    return total / share if share else 0.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_mse(seed: int, weighted: bool) -> None:
    """The loss is the squared distance to the class vector, summed over dims, averaged over non-void pixels."""
    outputs, labels, weights = random_case(seed, dims=5, ids=range(CLASSES))
    vectors = random_vectors(seed, 5)

    def distance(embedding: list[float], label: int) -> float:
        return sum((f - w) ** 2 for f, w in zip(embedding, vectors[label].tolist(), strict=True))

    chosen = weights if weighted else None
    assert float(mse(outputs, labels, vectors, chosen)) == pytest.approx(
        naive_mean(outputs, labels, chosen, distance), rel=1e-12
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_softmax(seed: int, weighted: bool) -> None:
    """The baseline is the cross-entropy over seen classes, whose ids need not be contiguous."""
    outputs, labels, weights = random_case(seed, dims=len(SEEN), ids=SEEN)

    def entropy(logits: list[float], label: int) -> float:
        return math.log(sum(math.exp(z) for z in logits)) - logits[SEEN.index(label)]

    chosen = weights if weighted else None
    assert float(softmax(outputs, labels, torch.tensor(SEEN), chosen)) == pytest.approx(
        naive_mean(outputs, labels, chosen, entropy), rel=1e-12
    )


@pytest.mark.parametrize("loss", ["mse", "softmax"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient(loss: str, weighted: bool) -> None:
    """The gradient agrees with finite differences and is exactly 0 at void pixels."""
    outputs, labels, weights = random_case(1, dims=4, ids=SEEN)
    outputs.requires_grad_()
    chosen = weights if weighted else None

    def value(x: Tensor) -> Tensor:
        return evaluate(loss, x, labels, chosen)

    assert torch.autograd.gradcheck(value, (outputs,))
    (gradient,) = torch.autograd.grad(value(outputs), outputs)
    void = (labels == VOID)[:, None].expand_as(gradient)
    assert void.any()
    assert (gradient[void] == 0).all()
    assert (gradient[~void] != 0).any()


def evaluate(loss: str, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute one of the losses on 4 channels."""
    if loss == "mse":
        return mse(outputs, labels, random_vectors(0, 4).to(outputs.dtype), weights)
    return softmax(outputs, labels, torch.tensor(SEEN), weights)


@pytest.mark.parametrize("loss", ["mse", "softmax"])
def test_void_pixels_do_not_matter(loss: str) -> None:
    """Any number of void pixels, whatever the network says there, leaves the loss as it is."""
    outputs, labels, weights = random_case(2, dims=4, ids=SEEN)
    more = torch.cat([outputs, 100 * torch.randn(2, 4, 3, 4, dtype=torch.float64)], dim=3)
    padded = torch.cat([labels, torch.full((2, 3, 4), VOID)], dim=2)
    for chosen in (None, weights):
        expected = float(evaluate(loss, outputs, labels, chosen))
        assert float(evaluate(loss, more, padded, chosen)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", ["mse", "softmax"])
@pytest.mark.parametrize("weighted", [False, True])
def test_all_void(loss: str, weighted: bool) -> None:
    """A batch of void pixels has loss 0 and gradient 0, so that it changes nothing."""
    outputs, labels, weights = random_case(3, dims=4, ids=SEEN, void=2.0)
    outputs = outputs.float().requires_grad_()
    value = evaluate(loss, outputs, labels, weights.float() if weighted else None)
    (gradient,) = torch.autograd.grad(value, outputs)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("loss", ["mse", "softmax"])
def test_weight_zero_everywhere(loss: str) -> None:
    """Where every pixel weighs 0 the loss is 0 and finite."""
    outputs, labels, weights = random_case(4, dims=4, ids=SEEN)
    assert evaluate(loss, outputs, labels, weights * 0).item() == 0


def test_mse_is_a_sum_over_dims() -> None:
    """Twice the dims, doubled, is twice the loss: a mean over dims would shrink the learning rate with D."""
    outputs, labels, _ = random_case(5, dims=6, ids=range(CLASSES))
    vectors = random_vectors(5, 6)
    single = float(mse(outputs, labels, vectors))
    assert float(mse(outputs.repeat(1, 2, 1, 1), labels, vectors.repeat(1, 2))) == pytest.approx(2 * single, rel=1e-12)


@pytest.mark.parametrize("loss", ["mse", "softmax"])
def test_mean_over_pixels(loss: str) -> None:
    """The same batch twice has the same loss: a sum over pixels would tie the learning rate to the image size."""
    outputs, labels, _ = random_case(6, dims=4, ids=SEEN)
    single = float(evaluate(loss, outputs, labels))
    assert float(evaluate(loss, outputs.repeat(3, 1, 1, 1), labels.repeat(3, 1, 1))) == pytest.approx(single, rel=1e-12)


def test_mse_at_the_vectors() -> None:
    """Pixels that lie on their class vectors have no loss."""
    labels = torch.tensor(SEEN)[torch.arange(12).reshape(1, 3, 4) % 4]
    vectors = random_vectors(7, 5)
    assert float(mse(vectors[labels].permute(0, 3, 1, 2), labels, vectors)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seen", [[0, 1, 2, 3], [7, 4, 3, 1]])
def test_softmax_order(seen: list[int]) -> None:
    """Channel k of the logits belongs to the k-th seen class, in the order given."""
    labels = torch.tensor(seen).reshape(1, 2, 2)
    logits = torch.full((1, 4, 2, 2), -50.0)
    for channel in range(4):
        logits[0, channel, channel // 2, channel % 2] = 50.0
    assert float(softmax(logits, labels, torch.tensor(seen))) == pytest.approx(0, abs=1e-6)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_frequency_weights(pixels: list[int]) -> None:
    """Weights are median frequency over frequency, scaled to a mean of 1 over pixels; a class without a pixel has 0."""
    weights = frequency_weights(np.array(pixels))
    assert weights.dtype == np.float32
    present = sorted(count for count in pixels if count)
    if not present:
        assert not weights.any()
        return
    total = sum(pixels)
    half = len(present) // 2
    median = present[half] if len(present) % 2 else (present[half - 1] + present[half]) / 2
    raw = [(median / total) / (count / total) if count else 0.0 for count in pixels]
    mean = sum(weight * count for weight, count in zip(raw, pixels, strict=True)) / total
    np.testing.assert_allclose(weights, [weight / mean for weight in raw], rtol=1e-6)
    assert (weights[np.array(pixels) == 0] == 0).all()
    assert (weights.astype(float) * pixels).sum() / total == pytest.approx(1, rel=1e-6)


def test_rare_classes_weigh_more() -> None:
    """A class that is ten times rarer weighs ten times as much."""
    weights = frequency_weights(np.array([1000, 100, 0, 10]))
    assert weights[1] == pytest.approx(10 * weights[0])
    assert weights[3] == pytest.approx(10 * weights[1])
