"""Convolutions with fewer products, against plain ones in float64, and where they are not to be used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg.models import build, winograd
from zsseg.models.winograd import WinogradConv2d
from zsseg.state import set_mode

WIDE, WIDER = 128, 256  # channels that are worth it


def change(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> winograd.Scheme:
    """Let a scheme have other thresholds."""
    scheme = dataclasses.replace(getattr(winograd, name), **values)
    monkeypatch.setattr(winograd, name, scheme)
    return scheme


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it pay for images of any size, on any processor without AMX."""
    for name in ("F2", "F4"):
        change(monkeypatch, name, fewest=1)
    monkeypatch.setattr(winograd, "multiplies_tiles", lambda: False)
    monkeypatch.setattr(winograd, "has_avx512", lambda: True)


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


def is_plain(conv: WinogradConv2d, images: Tensor) -> bool:
    """Say whether outputs are a plain convolution's to the bit."""
    return torch.equal(conv(images), F.conv2d(images, conv.weight, conv.bias, padding=1))


def error(found: Tensor, expected: Tensor) -> float:
    """Return how far off a tensor is, as a share of the norm."""
    one, two = found.detach().double(), expected.detach().double()
    return float((one - two).norm() / two.norm())


@pytest.mark.parametrize("tiles", [1, 10, 768])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 3), (4, 4)])
@pytest.mark.parametrize(("name", "count"), [("F2", 1), ("F2", 3), ("F4", 1), ("F4", 2)])
def test_outputs_and_gradients(
    name: str, count: int, size: tuple[int, int], tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a plain convolution's, borders included, for every size in tiles and however few are taken at a time."""
    scheme = change(monkeypatch, name, numbers=tiles * WIDE)
    conv = layer()
    height, width = (length * scheme.outputs for length in size)
    images = maps((height, width), count=count).requires_grad_()
    found = winograd._Convolution.apply(images, conv.weight, conv.bias, scheme, True)
    expected = plain(conv, images)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=5e-5)
    of = (images, conv.weight, conv.get_parameter("bias"))
    for got, wanted in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert got.dtype == torch.float32
        assert error(got, wanted) < 1e-5


@pytest.mark.parametrize("training", [False, True])
def test_in_float32(training: bool) -> None:
    """Training and prediction take the scheme of 36 products, whose outputs may be changed in place."""
    conv, images = layer().train(training), maps((16, 24), count=2).requires_grad_()
    found = conv(images).mul_(2)
    assert not is_plain(conv, images)
    expected = plain(conv, images) * 2
    assert error(found, expected) < 1e-5
    of = (images, conv.weight, conv.get_parameter("bias"))
    for got, wanted in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert error(got, wanted) < 1e-5


def test_in_bfloat16() -> None:
    """Rounding costs less than one percent of the norm, of outputs and of gradients."""
    conv, images = layer(WIDER), maps((16, 24), channels=WIDER).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_plain(conv, images)
        found = conv(images)
    expected = plain(conv, images)
    assert found.dtype == torch.bfloat16
    assert 1e-4 < error(found, expected) < 0.01
    of = (images, conv.weight, conv.get_parameter("bias"))
    for got, wanted in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert got.dtype == torch.float32
        assert error(got, wanted) < 0.01


@pytest.mark.parametrize(("count", "height"), [(1, 16), (3, 48)])
def test_kernels_gradients_by_strips(count: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, layers of few channels have the outputs and gradients of torch's own convolution."""
    taken: list[torch.Size] = []
    by_strips = winograd._gradient_by_strips
    monkeypatch.setattr(winograd, "_gradient_by_strips", lambda *args: taken.append(args[0].shape) or by_strips(*args))
    conv, images = layer(64, WIDE), maps((height, 6), count=count, channels=64).requires_grad_()
    of = (images, conv.weight, conv.get_parameter("bias"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = conv(images), F.conv2d(images, conv.weight, conv.bias, padding=1)
    assert torch.equal(found, expected)
    for got, wanted in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert got.dtype == torch.float32
        assert error(got, wanted) < 1e-3
    assert taken == [images.shape]


@pytest.mark.parametrize(
    ("inputs", "outputs", "height"), [(WIDE, WIDER, 16), (32, 64, 16), (64, 64, 15), (64, 64, 24), (3, 64, 16)]
)
def test_where_strips_do_not_pay(inputs: int, outputs: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many or very few channels, and maps that are not whole strips."""
    monkeypatch.setattr(winograd, "_gradient_by_strips", lambda *_: pytest.fail("by strips"))
    conv, images = layer(inputs, outputs), maps((height, 6), channels=inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(images)
    gradients(found, conv.weight)


@pytest.mark.parametrize("channels", [64, WIDE])
def test_maps_that_need_no_gradient(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and bias get theirs all the same."""
    monkeypatch.setattr(winograd, "has_avx512", lambda: False)
    conv, images = layer(channels, channels), maps((4, 8), channels=channels)
    of = (conv.weight, conv.get_parameter("bias"))
    for got, wanted in zip(gradients(conv(images), *of), gradients(plain(conv, images), *of), strict=True):
        assert error(got, wanted) < 1e-5


def test_kernels_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AVX-512, layers of few channels convolve plainly but for the gradients of their kernels."""
    taken: list[torch.Size] = []
    of_kernels = winograd._gradient_of_kernels
    monkeypatch.setattr(
        winograd, "_gradient_of_kernels", lambda *args: taken.append(args[0].shape) or of_kernels(*args)
    )
    conv, images = layer(64, 64), maps((8, 12), count=2, channels=64).requires_grad_()
    of = (images, conv.weight, conv.get_parameter("bias"))
    wanted = gradients(plain(conv, images), *of)
    for fast, least in ((True, 0), (False, 1)):
        monkeypatch.setattr(winograd, "has_avx512", lambda fast=fast: fast)
        assert is_plain(conv, images)
        for got, expected in zip(gradients(conv(images), *of), wanted, strict=True):
            assert error(got, expected) < 1e-5
        assert len(taken) == least


def test_where_it_does_not_pay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels, maps that are not whole tiles, and few tiles are convolved plainly."""
    assert not is_plain(layer(), maps((8, 8)))
    assert not is_plain(layer(128, 128), maps((8, 8)))
    assert is_plain(layer(64, 128), maps((8, 8), channels=64))
    assert is_plain(layer(), maps((10, 8)))
    assert is_plain(layer(), maps((8, 10)))
    assert not is_plain(layer().requires_grad_(requires_grad=False), maps((8, 8)))
    change(monkeypatch, "F4", fewest=5)
    assert is_plain(layer(), maps((8, 8)))
    change(monkeypatch, "F4", fewest=4)
    assert not is_plain(layer(), maps((8, 8)))


def test_where_it_does_not_pay_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions, fixed kernels, few channels, and odd maps are, and all where the processor multiplies tiles."""

    def pays(conv: WinogradConv2d, size: tuple[int, int]) -> bool:
        scheme = conv._scheme(maps(size).bfloat16())
        assert scheme in (None, winograd.F2)
        return scheme is not None and conv._pays(scheme)

    assert pays(layer(WIDER), (8, 8))
    assert pays(layer(WIDER), (10, 6))
    assert not pays(layer(WIDER).eval(), (8, 8))
    assert not pays(layer(), (8, 8))
    assert not pays(layer(WIDER), (7, 8))
    assert not pays(layer(WIDER), (8, 7))
    assert not pays(layer(WIDER).requires_grad_(requires_grad=False), (8, 8))
    with torch.no_grad():
        assert not pays(layer(WIDER), (8, 8))
    change(monkeypatch, "F2", fewest=17)
    assert not pays(layer(WIDER), (8, 8))
    change(monkeypatch, "F2", fewest=16)
    assert pays(layer(WIDER), (8, 8))
    monkeypatch.setattr(winograd, "multiplies_tiles", lambda: True)
    assert not pays(layer(WIDER), (8, 8))


def test_a_step_of_training_uses_it_and_scoring_does_not_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` switches these layers of an FCN by themselves: its network is in evaluation mode."""
    used: list[torch.Size] = []
    convolved = winograd._convolved
    monkeypatch.setattr(winograd, "_convolved", lambda *args: used.append(args[0].shape) or convolved(*args))
    net = build("fcn8s", 5)
    images = torch.randn(1, 3, 64, 64)

    def step() -> int:
        used.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net(images).float().sum().backward()
        return len(used)

    set_mode(net, training=True)
    assert step() == 2 * 8  # of 256 -> 256 channels and more
    set_mode(net, training=False)
    assert step() == 0
