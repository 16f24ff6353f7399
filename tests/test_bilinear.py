"""Upsampled maps, and sums over them that never make them, against `F.interpolate`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg import bilinear

SIZES = [(4, 3), (8, 6), (16, 12), (14, 9), (32, 24)]  # of a grid of 4 × 3: by whole factors, and by 3.5 and 3
every_size = pytest.mark.parametrize("size", SIZES)


def drawn(*shape: int) -> Tensor:
    """Return random numbers, float64, with a gradient."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def same_gradient(maps: Tensor, ours: Tensor, naive: Tensor) -> None:
    """Compare two scalars and their gradients."""
    assert ours.item() == pytest.approx(naive.item(), rel=1e-12)
    one, two = (torch.autograd.grad(each, maps, retain_graph=True)[0] for each in (ours, naive))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@every_size
def test_upsample_is_interpolate(size: tuple[int, int]) -> None:
    """The matrices hold the weights of torch's bilinear mode."""
    maps = drawn(2, 5, 4, 3)
    torch.testing.assert_close(bilinear.upsample(maps, size), interpolated(maps, size))


@every_size
def test_gather_is_the_adjoint(size: tuple[int, int]) -> None:
    """⟨upsample(g), m⟩ = ⟨g, gather(m)⟩."""
    maps, pixels = drawn(2, 5, 4, 3), torch.rand(2, 5, *size, dtype=torch.float64)
    direct = (interpolated(maps, size) * pixels).sum().item()
    assert (maps * bilinear.gather(pixels, maps.shape[-2:])).sum().item() == pytest.approx(direct, rel=1e-12)


@every_size
def test_squares_are_those_of_the_upsampled_maps(size: tuple[int, int]) -> None:
    """‖f_p‖² of every pixel, and its gradient, come out of dot products of neighbouring cells."""
    maps = drawn(2, 5, 4, 3)
    naive = interpolated(maps, size).square().sum(dim=1)
    torch.testing.assert_close(bilinear.squares(maps, size), naive)
    pixels = torch.rand(2, *size, dtype=torch.float64)
    same_gradient(maps, (bilinear.squares(maps, size) * pixels).sum(), (naive * pixels).sum())


@every_size
def test_squared_error_is_that_of_the_upsampled_maps(size: tuple[int, int]) -> None:
    """Σ_p a_p ‖f_p − t_p‖² less Σ_p a_p ‖t_p‖², and its gradient, without a number a pixel."""
    maps, pixels, targets = drawn(2, 5, 4, 3), torch.rand(2, *size, dtype=torch.float64), drawn(2, 5, *size).detach()
    upsampled = interpolated(maps, size)
    naive = (((upsampled - targets).square() - targets.square()).sum(dim=1) * pixels).sum()
    towards = bilinear.gather(targets * pixels.unsqueeze(1), (4, 3)).permute(0, 2, 3, 1)
    ours = bilinear.squared_error(maps, pixels, towards)
    same_gradient(maps, ours, naive)
    same_gradient(maps, 3 * ours, 3 * naive)


def test_single_cells() -> None:
    """A grid of one row or one column has no neighbours to multiply with."""
    for shape in ((1, 1), (1, 3), (4, 1)):
        maps, size = drawn(2, 5, *shape), (8, 12)
        naive = interpolated(maps, size).square().sum(dim=1)
        torch.testing.assert_close(bilinear.squares(maps, size), naive)
        none = torch.zeros(2, *shape, 5, dtype=torch.float64)
        same_gradient(maps, bilinear.squared_error(maps, torch.ones_like(naive), none), naive.sum())
