"""The optimizer does what torch's AdamW does, to the bit, without ever holding the gradient of a wide layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg import distributed
from zsseg.models import build
from zsseg.models.wide import WideConv2d
from zsseg.optimizer import AdamW


def small_net() -> nn.Module:
    """Return a net with two wide layers, the first of more rows than are stepped on at a time."""
    torch.manual_seed(0)
    layers = nn.Sequential(WideConv2d(8, 600, 3, padding=1), nn.ReLU(), nn.Conv2d(600, 7, 1), WideConv2d(7, 5, 1))
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def backward(net: nn.Module, images: Tensor, *, bfloat16: bool) -> None:
    """Make the gradients of some loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = net(images)
    outputs.float().square().mean().backward()


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("passes", [1, 2])
def test_steps_are_those_of_torch(bfloat16: bool, passes: int) -> None:
    """Parameters and state are the same bits after each step, also where gradients of several passes add up."""
    ours, plain = small_net(), small_net()
    groups = [{"params": [each], "lr": 0.01 * (place + 1)} for place, each in enumerate(ours.parameters())]
    same = [{"params": [each], "lr": 0.01 * (place + 1)} for place, each in enumerate(plain.parameters())]
    optimizer, reference = AdamW(ours, groups, lr=0.1), torch.optim.AdamW(same, lr=0.1, weight_decay=0.01, fused=True)
    before = [each.detach().clone() for each in ours.parameters()]
    for step in range(3):
        optimizer.zero_grad()
        reference.zero_grad()
        for part in range(passes):
            images = torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(10 * step + part))
            backward(ours, images, bfloat16=bfloat16)
            backward(plain, images, bfloat16=bfloat16)
        assert [each.grad is None for each in ours.parameters()] == [True, False, False, False, True, False]
        optimizer.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    found, expected = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert found.keys() == expected.keys()
    for key in expected:
        assert all(torch.equal(found[key][name], expected[key][name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    assert not any(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


def test_forgotten_gradients_are_gone() -> None:
    """What a pass before `zero_grad` left behind moves nothing."""
    net = small_net()
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=0.1)
    backward(net, torch.randn(1, 8, 4, 4), bfloat16=False)
    optimizer.zero_grad()
    before = [each.detach().clone() for each in net.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_where_gradients_are_needed_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes add gradients up, and a matrix that does not lie as one cannot be stepped on by rows."""
    images = torch.randn(1, 8, 4, 4)
    loose = nn.Sequential(WideConv2d(8, 6, 3, padding=1))
    AdamW(loose, [{"params": list(loose.parameters())}], lr=0.1)
    backward(loose, images, bfloat16=False)
    assert loose[0].weight.grad is not None
    monkeypatch.setattr(distributed, "world", lambda: 2)
    net = small_net()
    AdamW(net, [{"params": list(net.parameters())}], lr=0.1)
    backward(net, images, bfloat16=False)
    assert all(each.grad is not None for each in net.parameters())


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_wide_layers_convolve(kernel: int, layout: torch.memory_format) -> None:
    """Outputs and gradients are those of a convolution, however maps and weights lie."""
    torch.manual_seed(0)
    layer = WideConv2d(5, 300, kernel, padding=kernel // 2).to(memory_format=layout)  # type: ignore[call-overload]
    maps = torch.randn(2, 5, 6, 9).to(memory_format=layout).requires_grad_()
    outputs = layer(maps)
    expected = F.conv2d(maps, layer.weight, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    towards = torch.randn_like(outputs)
    found = torch.autograd.grad(outputs, [maps, *layer.parameters()], towards)
    for own, true in zip(found, torch.autograd.grad(expected, [maps, *layer.parameters()], towards), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-4, atol=1e-4)


def test_fcn_hands_its_wide_gradients_over() -> None:
    """fc6 and fc7 never have a gradient of their own in training, and change all the same."""
    torch.manual_seed(0)
    net = build("fcn32s", 4).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=1e-3)
    nn.init.normal_(net.get_parameter("score.weight"))  # from 0 nothing flows back in the first step
    before = {name: net.get_parameter(name).detach().clone() for name in ("fc6.weight", "fc7.weight")}
    net(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert {name for name, each in net.named_parameters() if each.grad is None} == set(before)
    optimizer.step()
    for name, old in before.items():
        assert not torch.equal(old, net.get_parameter(name))
