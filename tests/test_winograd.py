"""Convolutions with fewer products, against plain ones in float64, and where they are not to be used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg.models import build, winograd
from zsseg.models.winograd import WinogradConv2d
from zsseg.state import set_mode

WIDE, WIDER = 128, 256  # channels that are worth it


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it pay for images of any size."""
    monkeypatch.setattr(winograd, "FEWEST", 1)


def layer(inputs: int = WIDE, outputs: int = WIDER) -> WinogradConv2d:
    """Return a layer with weights that are not those of another test."""
    torch.manual_seed(inputs + outputs)
    return WinogradConv2d(inputs, outputs).to(memory_format=torch.channels_last)


def maps(size: tuple[int, int], *, count: int = 1, channels: int = WIDE) -> Tensor:
    """Return what a ReLU leaves, channels last."""
    drawn = torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(size[0]))
    return drawn.relu().to(memory_format=torch.channels_last)


def gradients(outputs: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """Return what some outputs, (N, L, h, w), send back to tensors, of a gradient that is the same for all."""
    drawn = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(7))
    return torch.autograd.grad(outputs, of, drawn.to(outputs.dtype))


def plain(conv: WinogradConv2d, images: Tensor) -> Tensor:
    """Convolve in float64."""
    return F.conv2d(images.double(), conv.weight.double(), conv.get_parameter("bias").double(), padding=1)


def error(found: Tensor, expected: Tensor) -> float:
    """Return how far off a tensor is, as a share of the norm."""
    one, two = found.detach().double(), expected.detach().double()
    return float((one - two).norm() / two.norm())


@pytest.mark.parametrize("tiles", [1, 10, 768])
@pytest.mark.parametrize(("size", "count"), [((2, 2), 1), ((2, 10), 2), ((14, 6), 3), ((8, 8), 1)])
def test_outputs_and_gradients(size: tuple[int, int], count: int, tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a plain convolution's, borders included, for every size and however few tiles are taken at a time."""
    monkeypatch.setattr(winograd, "TILES", tiles)
    conv, images = layer(), maps(size, count=count).requires_grad_()
    assert conv._pays(images)
    found, expected = conv(images), plain(conv, images)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    of = (images, conv.weight, conv.get_parameter("bias"))
    for got, wanted in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert got.dtype == torch.float32
        assert error(got, wanted) < 1e-5


def test_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding costs less than one percent of the norm, of outputs and of gradients."""
    monkeypatch.setattr(winograd, "multiplies_tiles", lambda: False)
    conv, images = layer(), maps((16, 24)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(images)
    expected = plain(conv, images)
    assert found.dtype == torch.bfloat16
    assert 1e-4 < error(found, expected) < 0.01
    of = (images, conv.weight, conv.get_parameter("bias"))
    for got, wanted in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert got.dtype == torch.float32
        assert error(got, wanted) < 0.01


def test_maps_that_need_no_gradient() -> None:
    """Kernels and bias get theirs all the same."""
    conv, images = layer(), maps((4, 6))
    of = (conv.weight, conv.get_parameter("bias"))
    for got, wanted in zip(gradients(conv(images), *of), gradients(plain(conv, images), *of), strict=True):
        assert error(got, wanted) < 1e-5


def test_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions, few channels, odd maps and fixed kernels are convolved plainly; bfloat16 where there are tiles."""

    def is_plain(conv: WinogradConv2d, images: Tensor) -> bool:
        return torch.equal(conv(images), F.conv2d(images, conv.weight, conv.bias, padding=1))

    assert not is_plain(layer(), maps((8, 8)))
    assert is_plain(layer().eval(), maps((8, 8)))
    assert is_plain(layer(64, 64), maps((8, 8), channels=64))
    assert is_plain(layer(), maps((7, 8)))
    assert is_plain(layer(), maps((8, 7)))
    monkeypatch.setattr(winograd, "FEWEST", 17)
    assert is_plain(layer(), maps((8, 8)))
    monkeypatch.setattr(winograd, "FEWEST", 16)
    assert is_plain(layer().requires_grad_(requires_grad=False), maps((8, 8)))
    with torch.no_grad():
        assert is_plain(layer(), maps((8, 8)))
    for tiles in (False, True):
        monkeypatch.setattr(winograd, "multiplies_tiles", lambda tiles=tiles: tiles)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer()._pays(maps((8, 8))) != tiles
        assert layer()._pays(maps((8, 8)))


def test_a_step_of_training_uses_it_and_scoring_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` switches these layers of an FCN by themselves: its network is in evaluation mode."""
    monkeypatch.setattr(winograd, "multiplies_tiles", lambda: False)
    used: list[torch.Size] = []
    convolved = winograd._convolved
    monkeypatch.setattr(winograd, "_convolved", lambda *args: used.append(args[0].shape) or convolved(*args))
    net = build("fcn8s", 5)
    images = torch.randn(1, 3, 64, 64)
    set_mode(net, training=True)
    net(images).sum().backward()
    forward_and_backward = len(used)
    assert forward_and_backward == 2 * 9  # of 128 -> 256 channels and more
    set_mode(net, training=False)
    net(images).sum().backward()
    assert len(used) == forward_and_backward
