"""Losses and weightings against plain Python loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zsseg import losses
from zsseg.losses import class_weighted, effective_number_weights, frequency_weights, image_weighted

VOID = 255
SEEN = [1, 3, 4, 7]  # not contiguous, of 8 classes
UNSEEN = [0, 2, 5, 6]
OBJECTS = [1, 4, 7]  # 3 is the background
CLASSES = 8
DIMS = 4  # as many as seen classes, so that softmax takes the same outputs
LOG_SCALE = torch.tensor(1.3, dtype=torch.float64)
Loss = Callable[..., Tensor]  # outputs, labels, vectors, seen, weights -> scalar

LOSSES: dict[str, Loss] = {
    "mse": losses.mse,
    "cosine": losses.cosine,
    "hinge all": losses.hinge,
    "hinge hardest": partial(losses.hinge, negatives="hardest"),
    "hinge semi-hard": partial(losses.hinge, negatives="semi-hard"),
    "softmax-embed": partial(losses.softmax_embed, log_scale=LOG_SCALE),
    "infonce": partial(losses.infonce, log_scale=LOG_SCALE),
    "joem": partial(losses.joem, objects=torch.tensor(OBJECTS)),
    "softmax": lambda outputs, labels, _, seen, weights=None: losses.softmax(outputs, labels, seen, weights),
}
WEIGHTINGS = ("none", "class", "image")
every_loss = pytest.mark.parametrize("name", LOSSES)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


def random_case(seed: int, *, void: float = 0.3, height: int = 9, ids: Sequence[int] = SEEN) -> tuple[Tensor, Tensor]:
    """Return float64 outputs (2, D, H, 7), and labels in blocks of two rows and columns, with void."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(2, DIMS, height, 7, generator=generator, dtype=torch.float64)
    blocks = torch.tensor(ids)[torch.randint(len(ids), (2, height, 7), generator=generator)]
    labels = blocks.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :7].clone()
    labels[torch.rand(2, height, 7, generator=generator) < void] = VOID
    return outputs, labels


def random_vectors(seed: int = 0) -> Tensor:
    """Return class vectors of various lengths, float64 (8, D)."""
    return torch.randn(CLASSES, DIMS, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)


def pixel_weights(weighting: str, labels: Tensor) -> Tensor | None:
    """Return the weights of a weighting, of classes drawn by seed."""
    if weighting == "none":
        return None
    if weighting == "image":
        return image_weighted(labels)
    classes = torch.rand(CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1
    return class_weighted(labels, classes)


def evaluate(name: str, outputs: Tensor, labels: Tensor, weighting: str = "none", seen: list[int] = SEEN) -> Tensor:
    """Compute a loss, by name, with class vectors drawn by seed."""
    vectors = random_vectors().to(outputs.dtype)
    return LOSSES[name](outputs, labels, vectors, torch.tensor(seen), pixel_weights(weighting, labels))


# --- against plain loops ----------------------------------------------------------------------------------------------


def pixels(labels: Tensor) -> list[tuple[int, int, int, int]]:
    """List image, row, column and label of the pixels that are not void."""
    every = np.ndindex(*labels.shape)
    return [(*place, int(labels[place])) for place in every if int(labels[place]) != VOID]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cos(f: list[float], w: list[float]) -> float:
    return dot(f, w) / math.sqrt(dot(w, w)) / math.sqrt(dot(f, f) + 0.1**2)


def cross_entropy(scores: list[float], own: int) -> float:
    return math.log(sum(math.exp(score) for score in scores)) - scores[own]


def naive_term(name: str, f: list[float], label: int, w: list[list[float]]) -> float:
    """Return the loss of one pixel, for those losses that look at pixels one by one."""
    own = SEEN.index(label)
    scale = math.exp(float(LOG_SCALE))
    cosines = [cos(f, w[c]) for c in SEEN]
    others = [score for place, score in enumerate(cosines) if place != own]
    match name:
        case "mse":
            return sum((x - y) ** 2 for x, y in zip(f, w[label], strict=True))
        case "cosine":
            return 1 - cosines[own]
        case "hinge all":
            return sum(max(0.0, 0.1 - cosines[own] + other) for other in others)
        case "hinge hardest":
            return max(0.0, 0.1 - cosines[own] + max(others))
        case "hinge semi-hard":
            chosen = [other for other in others if cosines[own] - 0.1 < other <= cosines[own]]
            chosen += sorted(other for other in others if other > cosines[own])[:1]
            return sum(0.1 - cosines[own] + other for other in chosen)
        case "softmax-embed":
            return cross_entropy([scale * dot(f, w[c]) / math.sqrt(dot(w[c], w[c])) for c in SEEN], own)
        case "infonce":
            return cross_entropy([scale * score for score in cosines], own)
        case _:
            return cross_entropy(f, own)


def naive_weight(weighting: str, labels: Tensor, image: int, label: int) -> float:
    """Return the weight of one pixel."""
    if weighting == "none":
        return 1.0
    if weighting == "image":
        return 1 / int((labels[image] == label).sum())
    return float(torch.rand(CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)[label]) + 0.1


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "joem"])
@every_weighting
@pytest.mark.parametrize("seed", range(3))
def test_value(name: str, weighting: str, seed: int) -> None:
    """The loss is the weighted mean over the pixels that are not void of the formula in its docstring."""
    outputs, labels = random_case(seed)
    outputs[:, :, ::2] *= 0.05  # short embeddings, too: there ε shows, and margins are not all kept
    vectors = random_vectors().tolist()
    total = share = 0.0
    for image, row, column, label in pixels(labels):
        weight = naive_weight(weighting, labels, image, label)
        total += weight * naive_term(name, outputs[image, :, row, column].tolist(), label, vectors)
        share += weight
    rel = 1e-6 if weighting == "image" else 1e-12  # these weights are float32
    assert float(evaluate(name, outputs, labels, weighting)) == pytest.approx(total / share, rel=rel)
    assert total > 0


def naive_bilinear(cells: list[list[list[float]]], row: float, column: float) -> list[float]:
    """Return the vector between four cells; `row` and `column` count cell centres, clamped at the border."""
    row, column = min(max(row, 0), len(cells) - 1), min(max(column, 0), len(cells[0]) - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, len(cells) - 1), min(left + 1, len(cells[0]) - 1)
    y, x = row - top, column - left
    corners = (cells[top][left], cells[top][right], cells[bottom][left], cells[bottom][right])
    shares = ((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x)
    return [dot(shares, values) for values in zip(*corners, strict=True)]


def naive_bar(outputs: Tensor, labels: Tensor, weighting: str) -> float:
    """Return JoEm's boundary-aware regression from an explicit map of targets; sides must divide by 4."""
    vectors = [*random_vectors().tolist(), [0.0] * DIMS]
    total = share = 0.0
    for image, row, column, label in pixels(labels):
        kept = labels[image, 2::4, 2::4].tolist()
        cells = [[vectors[-1 if each == VOID else each] for each in line] for line in kept]
        target = naive_bilinear(cells, (row + 0.5) / 4 - 0.5, (column + 0.5) / 4 - 0.5)
        f = outputs[image, :, row, column].tolist()
        weight = naive_weight(weighting, labels, image, label)
        total += weight * sum((x - y) ** 2 for x, y in zip(f, target, strict=True))
        share += weight
    return total / share


def relations(points: list[list[float]], sharpness: float) -> list[list[float]]:
    """Return row by row the softmax of the negative distances."""
    raw = [[math.exp(-sharpness * math.dist(a, b)) for b in points] for a in points]
    return [[value / sum(row) for value in row] for row in raw]


def naive_consistency(outputs: Tensor, labels: Tensor, weighting: str) -> float:
    """Return JoEm's semantic consistency."""
    vectors = random_vectors().tolist()
    words, means = [], []
    for each in OBJECTS:
        own = [(place, naive_weight(weighting, labels, place[0], each)) for place in pixels(labels) if place[3] == each]
        if own:
            total = sum(weight for _, weight in own)
            words.append(vectors[each])
            means.append([
                sum(weight * float(outputs[n, d, row, column]) for (n, row, column, _), weight in own) / total
                for d in range(DIMS)
            ])  # fmt: skip
    p, q = relations(words, 5.0), relations(means, 1.0)
    kl = sum(a * math.log(a / b) for left, right in zip(p, q, strict=True) for a, b in zip(left, right, strict=True))
    return kl / len(words)


@pytest.mark.parametrize("ids", [SEEN, [1, 3, 4]], ids=["all", "some"])
@every_weighting
def test_joem(weighting: str, ids: list[int]) -> None:
    """JoEm is the regression to blended vectors plus a tenth of the consistency over the objects in the batch."""
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(2, DIMS, 12, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor(ids)[torch.randint(len(ids), (2, 12, 8), generator=generator)]
    labels[torch.rand(2, 12, 8, generator=generator) < 0.3] = VOID
    expected = naive_bar(outputs, labels, weighting) + 0.1 * naive_consistency(outputs, labels, weighting)
    assert naive_consistency(outputs, labels, weighting) > 0.01
    assert float(evaluate("joem", outputs, labels, weighting)) == pytest.approx(expected, rel=1e-6)


def test_joem_inside_a_class_is_mse() -> None:
    """Far from a boundary the blended target is the class vector itself; one object has no relations."""
    outputs = torch.randn(1, DIMS, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.full((1, 16, 16), 4)
    assert float(evaluate("joem", outputs, labels)) == pytest.approx(float(evaluate("mse", outputs, labels)))


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 3)])
def test_joem_on_any_size(shape: tuple[int, int]) -> None:
    """Sides that four does not divide are blended as well, and a pixel of one class only has that vector."""
    labels = torch.full((1, *shape), 7)
    outputs = random_vectors()[7].reshape(1, DIMS, 1, 1).expand(1, DIMS, *shape)
    assert float(evaluate("joem", outputs, labels)) == pytest.approx(0, abs=1e-12)


# --- what every loss must keep ----------------------------------------------------------------------------------------


@every_loss
@every_weighting
def test_gradient(name: str, weighting: str) -> None:
    """The gradient agrees with finite differences and is exactly 0 at void pixels."""
    outputs, labels = random_case(1, height=4)
    outputs.requires_grad_()

    def value(x: Tensor) -> Tensor:
        return evaluate(name, x, labels, weighting)

    assert torch.autograd.gradcheck(value, (outputs,))
    (gradient,) = torch.autograd.grad(value(outputs), outputs)
    void = (labels == VOID)[:, None].expand_as(gradient)
    assert void.any()
    assert (gradient[void] == 0).all()
    assert (gradient[~void] != 0).any()


@pytest.mark.parametrize("name", ["softmax-embed", "infonce"])
def test_gradient_of_the_temperature(name: str) -> None:
    """The scale is learned: its gradient agrees with finite differences and is not 0."""
    outputs, labels = random_case(1)
    loss = {"softmax-embed": losses.softmax_embed, "infonce": losses.infonce}[name]
    scale = LOG_SCALE.clone().requires_grad_()

    def value(t: Tensor) -> Tensor:
        return loss(outputs, labels, random_vectors(), torch.tensor(SEEN), log_scale=t)

    assert torch.autograd.gradcheck(value, (scale,))
    assert torch.autograd.grad(value(scale), scale)[0] != 0


@every_loss
@every_weighting
def test_leaves_zero(name: str, weighting: str) -> None:
    """Heads start from 0: there every pixel but the void ones has a finite gradient, and a step along it helps."""
    _, labels = random_case(1, void=0)
    labels[0, 0, 0] = VOID  # one that JoEm does not keep, or its neighbours' targets would be 0, too
    outputs = torch.zeros(2, DIMS, 9, 7, dtype=torch.float64, requires_grad=True)
    value = evaluate(name, outputs, labels, weighting)
    (gradient,) = torch.autograd.grad(value, outputs)
    assert gradient.isfinite().all()
    assert (gradient.norm(dim=1) > 0).equal(labels != VOID)
    step = -0.01 * gradient / gradient.norm()
    assert evaluate(name, step, labels, weighting) < value


@every_loss
@every_weighting
def test_all_void(name: str, weighting: str) -> None:
    """A batch of void pixels has loss 0 and gradient 0, so that it changes nothing."""
    outputs, labels = random_case(3, void=2.0)
    outputs = outputs.float().requires_grad_()
    value = evaluate(name, outputs, labels, weighting)
    (gradient,) = torch.autograd.grad(value, outputs)
    assert value.item() == 0
    assert (gradient == 0).all()


@every_loss
@every_weighting
def test_void_pixels_do_not_matter(name: str, weighting: str) -> None:
    """Any number of void pixels, whatever the network says there, leaves the loss as it is."""
    outputs, labels = random_case(2, height=8)
    wide = torch.cat([outputs, torch.zeros(2, DIMS, 8, 1, dtype=torch.float64)], dim=3)
    padded = torch.cat([labels, torch.full((2, 8, 1), VOID)], dim=2)
    expected = float(evaluate(name, wide, padded, weighting))
    other = 100 * torch.randn(3, DIMS, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    changed = torch.where((padded == VOID)[:, None], other[:2], wide)
    assert float(evaluate(name, changed, padded, weighting)) == pytest.approx(expected, rel=1e-12)
    more = torch.cat([changed, other[2:]])
    labels = torch.cat([padded, torch.full((1, 8, 8), VOID)])
    assert float(evaluate(name, more, labels, weighting)) == pytest.approx(expected, rel=1e-12)


@every_loss
def test_weight_zero_everywhere(name: str) -> None:
    """Where every pixel weighs 0 the loss is 0 and finite."""
    outputs, labels = random_case(4)
    nothing = torch.zeros(labels.shape)
    assert LOSSES[name](outputs, labels, random_vectors(), torch.tensor(SEEN), nothing).item() == 0


@every_loss
@every_weighting
def test_unseen_vectors_reach_nothing(name: str, weighting: str) -> None:
    """Other vectors of the unseen classes, even NaN, change no bit of a loss or a gradient."""
    outputs, labels = random_case(5)
    outputs.requires_grad_()
    found = []
    for other in (None, 100.0, math.nan):
        vectors = random_vectors()
        if other is not None:
            vectors[UNSEEN] = other
        value = LOSSES[name](outputs, labels, vectors, torch.tensor(SEEN), pixel_weights(weighting, labels))
        found.append((value.detach(), *torch.autograd.grad(value, outputs)))
    for value, gradient in found[1:]:
        assert value.equal(found[0][0])
        assert gradient.equal(found[0][1])


@every_loss
@every_weighting
def test_unseen_labels_are_void(name: str, weighting: str) -> None:
    """The door in `dataset` hides unseen labels; should one pass nevertheless, it counts as void."""
    outputs, labels = random_case(6, ids=[*SEEN, *UNSEEN])
    hidden = labels.clone()
    for each in UNSEEN:
        hidden[labels == each] = VOID
    assert (hidden != labels).any()
    assert float(evaluate(name, outputs, labels, weighting)) == float(evaluate(name, outputs, hidden, weighting))


@every_loss
def test_order_of_seen(name: str) -> None:
    """Which order the seen classes come in does not matter; softmax's channels follow it."""
    outputs, labels = random_case(7)
    shuffled = [7, 1, 4, 3]
    places = [SEEN.index(each) for each in shuffled]
    expected = float(evaluate(name, outputs, labels))
    given_outputs = outputs[:, places] if name == "softmax" else outputs
    assert float(evaluate(name, given_outputs, labels, seen=shuffled)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "softmax"])
def test_no_class_is_favoured_at_zero(name: str) -> None:
    """At an output of 0 all classes tie: the gradient there does not depend on the order of the seen classes."""
    _, labels = random_case(7)
    gradients = []
    for seen in (SEEN, [7, 1, 4, 3]):
        outputs = torch.zeros(2, DIMS, 9, 7, dtype=torch.float64, requires_grad=True)
        gradients += torch.autograd.grad(evaluate(name, outputs, labels, seen=seen), outputs)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@every_loss
@every_weighting
def test_mean_over_pixels(name: str, weighting: str) -> None:
    """The same batch twice has the same loss: a sum over pixels would tie the learning rate to the image size."""
    outputs, labels = random_case(6)
    single = float(evaluate(name, outputs, labels, weighting))
    twice = float(evaluate(name, outputs.repeat(3, 1, 1, 1), labels.repeat(3, 1, 1), weighting))
    assert twice == pytest.approx(single, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "joem"])
def test_a_sum_over_dims(name: str) -> None:
    """Twice the dims is twice the loss: a mean over dims would shrink the effective learning rate with D."""
    outputs, labels = random_case(5)
    labels = torch.where(labels == VOID, VOID, 3)  # the background only, so that joem has no consistency
    vectors, seen = random_vectors(), torch.tensor(SEEN)
    single = float(LOSSES[name](outputs, labels, vectors, seen))
    twice = float(LOSSES[name](outputs.repeat(1, 2, 1, 1), labels, vectors.repeat(1, 2), seen))
    assert twice == pytest.approx(2 * single, rel=1e-12)


@pytest.mark.parametrize(
    "name", ["cosine", "hinge all", "hinge hardest", "hinge semi-hard", "softmax-embed", "infonce"]
)
def test_the_length_of_class_vectors_does_not_matter(name: str) -> None:
    """These losses take the directions of the class vectors, which is what NNE over unit vectors ranks by."""
    outputs, labels = random_case(8)
    lengths = torch.arange(1, CLASSES + 1, dtype=torch.float64)[:, None]
    seen = torch.tensor(SEEN)
    stretched = float(LOSSES[name](outputs, labels, lengths * random_vectors(), seen))
    assert stretched == pytest.approx(float(LOSSES[name](outputs, labels, random_vectors(), seen)), rel=1e-12)


@pytest.mark.parametrize("name", ["mse", "cosine", "hinge all", "hinge hardest", "hinge semi-hard"])
def test_at_the_class_vectors(name: str) -> None:
    """Pixels that lie on their class vectors have no loss; the ε of the cosine leaves half a percent."""
    labels = torch.tensor(SEEN)[torch.arange(12).reshape(1, 3, 4) % 4]
    vectors = torch.nn.functional.normalize(random_vectors(), dim=1)
    value = LOSSES[name](vectors[labels].permute(0, 3, 1, 2), labels, vectors, torch.tensor(SEEN))
    assert 0 <= float(value) + 1e-12 < 0.0051


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("hinge")])
def test_a_rank_loss_with_one_seen_class(name: str) -> None:
    """Without a negative there is nothing to rank: loss 0, gradient 0, no NaN."""
    outputs, _ = random_case(9)
    outputs.requires_grad_()
    value = evaluate(name, outputs, torch.full((2, 9, 7), 4), seen=[4])
    (gradient,) = torch.autograd.grad(value, outputs)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("seen", [[0, 1, 2, 3], [7, 4, 3, 1]])
def test_softmax_order(seen: list[int]) -> None:
    """Channel k of the logits belongs to the k-th seen class, in the order given."""
    labels = torch.tensor(seen).reshape(1, 2, 2)
    logits = torch.full((1, 4, 2, 2), -50.0)
    for channel in range(4):
        logits[0, channel, channel // 2, channel % 2] = 50.0
    assert float(losses.softmax(logits, labels, torch.tensor(seen))) == pytest.approx(0, abs=1e-6)


def test_semi_hard_negatives_mend_an_outranked_pixel() -> None:
    """A pixel that one class outranks is moved, past that class first: by the letter it would have no gradient."""
    vectors, seen = torch.eye(CLASSES, DIMS), torch.tensor([0, 1, 2, 3])
    outputs = torch.tensor([0.0, 0.5, 1.0, -5.0]).reshape(1, DIMS, 1, 1).requires_grad_()
    value = losses.hinge(outputs, torch.zeros(1, 1, 1, dtype=torch.int64), vectors, seen, negatives="semi-hard")
    (gradient,) = torch.autograd.grad(value, outputs)
    assert value > 0.1
    assert gradient[0, 0] < 0 < gradient[0, 1]


# --- weightings -------------------------------------------------------------------------------------------------------


def test_image_weighting() -> None:
    """Every class that an image shows has a total weight of 1 there, however few its pixels; void has none."""
    _, labels = random_case(10)
    weights = image_weighted(labels)
    assert (weights[labels == VOID] == 0).all()
    for image in range(2):
        for label in set(labels[image].flatten().tolist()) - {VOID}:
            assert float(weights[image][labels[image] == label].sum()) == pytest.approx(1, rel=1e-6)


def test_class_weighting() -> None:
    """A pixel has the weight of its class; void has none."""
    labels = torch.tensor([[[0, 2, VOID], [1, 1, 2]]])
    expected = torch.tensor([[[0.5, 3.0, 0.0], [1.0, 1.0, 3.0]]])
    assert class_weighted(labels, torch.tensor([0.5, 1.0, 3.0])).equal(expected)


@pytest.mark.parametrize("weights_of", [frequency_weights, effective_number_weights])
@given(counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_class_weights(weights_of: Callable[[np.ndarray], np.ndarray], counts: list[int]) -> None:
    """Weights follow their formula, scaled to a mean of 1 over pixels; a class without a pixel has 0."""
    weights = weights_of(np.array(counts))
    assert weights.dtype == np.float32
    present = sorted(count for count in counts if count)
    if not present:
        assert not weights.any()
        return
    total = sum(counts)
    if weights_of is frequency_weights:
        half = len(present) // 2
        median = present[half] if len(present) % 2 else (present[half - 1] + present[half]) / 2
        raw = [(median / total) / (count / total) if count else 0.0 for count in counts]
    else:
        raw = [(1 - 0.9999) / (1 - 0.9999 ** (count / 1024)) if count else 0.0 for count in counts]
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / total
    np.testing.assert_allclose(weights, [weight / mean for weight in raw], rtol=1e-6)
    assert (weights.astype(float) * counts).sum() / total == pytest.approx(1, rel=1e-6)


def test_rare_classes_weigh_more() -> None:
    """A class that is ten times rarer weighs ten times as much."""
    weights = frequency_weights(np.array([1000, 100, 0, 10]))
    assert weights[1] == pytest.approx(10 * weights[0])
    assert weights[3] == pytest.approx(10 * weights[1])


def test_effective_numbers_are_milder() -> None:
    """Where classes are rare it is the inverse frequency; among frequent ones a factor of ten hardly matters."""
    rare = effective_number_weights(np.array([10_000, 100_000]))
    assert rare[0] / rare[1] == pytest.approx(10, rel=0.01)
    frequent = effective_number_weights(np.array([30_000_000, 300_000_000]))
    assert 1 < frequent[0] / frequent[1] < 1.1


# --- on a coarser grid than the labels --------------------------------------------------------------------------------


@every_loss
@every_weighting
def test_a_coarse_grid_is_upsampled(name: str, weighting: str) -> None:
    """Outputs on the feature grid have the loss and the gradient of the same outputs upsampled before."""
    outputs, _ = random_case(0, height=5)
    _, labels = random_case(1, height=10)
    labels = torch.cat([labels, labels], dim=2)
    coarse = outputs.requires_grad_()
    fine = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
    ours, naive = (evaluate(name, each, labels, weighting) for each in (coarse, fine))
    assert ours.item() == pytest.approx(naive.item(), rel=1e-9)
    one, two = (torch.autograd.grad(each, coarse, retain_graph=True)[0] for each in (ours, naive))
    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)
