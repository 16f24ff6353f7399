"""The optimizer does what torch's AdamW does, to the bit, and torch's Adafactor where a layer is wide."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg import distributed
from zsseg.models import build
from zsseg.models.wide import MANY_ROWS, WideConv2d, as_matrix
from zsseg.optimizer import AdamW

RATE = 0.01


class SmallNet(nn.Sequential):
    """Two wide layers, the first of more rows than are stepped on at a time, and of channels that may be dropped."""

    mask: Tensor | None = None

    def __init__(self) -> None:
        layers = WideConv2d(8, 600, 3, padding=1), nn.ReLU(), nn.Conv2d(600, 7, 1), WideConv2d(7, 5, 1)
        super().__init__(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Apply the mask to the first layer, then the others."""
        wide, *others = self
        outputs: Tensor = nn.Sequential(*others)(wide(images, self.mask))
        return outputs


def small_net() -> SmallNet:
    """Return always the same net."""
    torch.manual_seed(0)
    return SmallNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def backward(net: nn.Module, images: Tensor, *, bfloat16: bool) -> None:
    """Make the gradients of some loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = net(images)
    (outputs.float() - 1).square().mean().backward()


def images_of(step: int) -> Tensor:
    """Return two images."""
    return torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(step))


class Torch:
    """The same with torch's own optimizers: wide weights as matrices of their own, which hold the gradients."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.wide = [layer.weight for layer in net.modules() if isinstance(layer, WideConv2d)]
        self.matrices = [nn.Parameter(as_matrix(each).detach().clone()) for each in self.wide]
        others = [each for each in net.parameters() if all(each is not wide for wide in self.wide)]
        self.optimizers = (
            torch.optim.AdamW(others, lr=RATE, weight_decay=0.01, fused=True),
            torch.optim.Adafactor(self.matrices, lr=RATE, weight_decay=0.01, eps=(1e-18, 1.0)),  # it squares the first
        )

    def step(self) -> None:
        """Step on all parameters."""
        for matrix, each in zip(self.matrices, self.wide, strict=True):
            assert each.grad is not None
            matrix.grad = as_matrix(each.grad).clone()
        for optimizer in self.optimizers:
            optimizer.step()
        for matrix, each in zip(self.matrices, self.wide, strict=True):
            as_matrix(each.data).copy_(matrix.data)
        self.net.zero_grad()


def steps(*, bfloat16: bool, passes: int, dropped: float = 0.0) -> Iterator[tuple[nn.Module, AdamW, Torch]]:
    """Train two equal nets with both, and show them after every step."""
    ours, plain = small_net(), small_net()
    optimizer, reference = AdamW(ours, [{"params": list(ours.parameters())}], lr=RATE), Torch(plain)
    for step in range(5):
        for part in range(passes):
            if dropped:
                ours.mask = plain.mask = 2.0 * (torch.rand(2, 600, 1, 1) >= dropped)
            backward(ours, images_of(10 * step + part), bfloat16=bfloat16)
            backward(plain, images_of(10 * step + part), bfloat16=bfloat16)
        yield ours, optimizer, reference
        optimizer.step()
        optimizer.zero_grad()
        reference.step()
    yield ours, optimizer, reference


@pytest.mark.parametrize("dropped", [0.0, 0.7])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("by_gradient", [False, True])
def test_steps_are_those_of_torch(
    by_gradient: bool, passes: int, dropped: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a wide weight has products or a gradient, of some channels or all, also where several passes add up."""
    monkeypatch.setattr(distributed, "world", lambda: 2 if by_gradient else 1)
    start = [each.detach().clone() for each in small_net().parameters()]
    for net, _, reference in steps(bfloat16=False, passes=passes, dropped=dropped):
        for own, true in zip(net.parameters(), reference.net.parameters(), strict=True):
            torch.testing.assert_close(own, true, rtol=1e-5, atol=1e-6)
    moved = [(own - before).abs().mean() for own, before in zip(net.parameters(), start, strict=True)]
    assert all(distance > 0.001 for distance in moved)  # a thousand times what was tolerated


def test_steps_in_bfloat16_are_those_of_torch() -> None:
    """Wide weights of one step are equal but for bfloat16's rounding: to a fiftieth of the way that they went."""
    start = [each.detach().clone() for each in small_net().parameters()]
    _, (net, _, reference) = itertools.islice(steps(bfloat16=True, passes=2), 2)
    for own, true, before in zip(net.parameters(), reference.net.parameters(), start, strict=True):
        assert (own - true).norm() < 0.02 * (true - before).norm()


def test_what_is_not_wide_steps_to_the_bit() -> None:
    """AdamW's parameters and state are torch's, over several groups and rates, and where a gradient is missing."""
    ours, plain = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Linear(2, 2)) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    optimizer, reference = (
        make([{"params": [*net[0].parameters()], "lr": 0.1}, {"params": [*net[1:].parameters()], "weight_decay": 0.5}])
        for net, make in (
            (ours, lambda groups: AdamW(ours, groups, lr=RATE)),
            (plain, lambda groups: torch.optim.AdamW(groups, lr=RATE, weight_decay=0.01, fused=True)),
        )
    )
    for step in range(3):
        for net in (ours, plain):
            net[:2](torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        for each in (optimizer, reference):
            each.step()
            each.zero_grad()
        for own, true in zip(ours.parameters(), plain.parameters(), strict=True):
            assert torch.equal(own, true)
            assert optimizer.state.get(own, {}).keys() == reference.state.get(true, {}).keys()
            assert all(
                torch.equal(value, reference.state[true][key]) for key, value in optimizer.state.get(own, {}).items()
            )
    assert not any(each in optimizer.state for each in ours[2].parameters())


def test_wide_weights_have_two_means_for_their_state() -> None:
    """Rows and columns, no moment of the weights' size; no gradient of it is made either."""
    for net, optimizer, _ in steps(bfloat16=False, passes=1):
        assert [each.grad is None for each in net.parameters()][::4] == [True, True]
        last = optimizer.state
    state = last[net[0].weight]  # type: ignore[index]
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "step": (), "row_var": (600,), "col_var": (72,)
    }  # fmt: skip
    assert state["step"] == 5


def test_a_jump_of_the_gradient_is_clipped() -> None:
    """The mean square of an update is at most that of the learning rate, also a thousandfold gradient's."""
    net = small_net()
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=RATE, weight_decay=0.0)
    for step in range(20):
        backward(net, images_of(step) * (1000 if step == 19 else 1), bfloat16=False)
        before = net[0].weight.detach().clone()  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()
    moved = (net[0].weight - before).square().mean().sqrt()  # type: ignore[index]
    assert 0.9 * RATE < moved < 1.01 * RATE


def test_cells_without_a_gradient_change_nothing_but_by_decay() -> None:
    """A step whose gradients are all 0, as where a batch has no labels, leaves numbers as they should be."""
    net = small_net()
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=RATE)
    before = net[0].weight.detach().clone()  # type: ignore[index]
    (net(images_of(0)) * 0).sum().backward()
    optimizer.step()
    torch.testing.assert_close(net[0].weight, before * (1 - RATE * 0.01))  # type: ignore[index]


@pytest.mark.parametrize("seed", range(5))
def test_cells_that_cancel_out_do_not_blow_up(seed: int) -> None:
    """Nearly equal cells of opposite gradients leave next to nothing of large sums; bfloat16 says below 0 of it."""
    net = small_net()
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=RATE, weight_decay=0.0)
    wide = net[0]  # type: ignore[index]
    before = wide.weight.detach().clone()
    drawn = torch.Generator().manual_seed(seed)
    right = (10 + 0.1 * torch.randn(192, 72, generator=drawn)).bfloat16()
    left = torch.randn(192, 600, generator=drawn)
    left[:, :300] -= left[:, :300].mean(dim=0)
    wide.products.append((left.bfloat16(), right))
    optimizer.step()
    state = optimizer.state[wide.weight]
    assert (state["row_var"] > 0).all()
    assert (state["col_var"] > 0).all()
    moved = (wide.weight - before)[300:].square().mean().sqrt()  # cells of these add up
    assert 0.3 * RATE < moved < 1.5 * RATE
    assert torch.isfinite(wide.weight).all()


def test_a_weight_that_does_not_lie_as_a_matrix_is_refused() -> None:
    """It would be a copy that is stepped on, and nothing would be learned."""
    net = nn.Sequential(WideConv2d(8, 6, 3, padding=1))
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=RATE)
    net(images_of(0)).sum().backward()
    with pytest.raises(RuntimeError, match="view"):
        optimizer.step()


def test_it_does_not_load_the_compiler() -> None:
    """Torch's own optimizers import it, which takes a second and 150 MB."""
    script = (
        "import sys, torch; from zsseg.optimizer import AdamW; net = torch.nn.Linear(2, 2)\n"
        "optimizer = AdamW(net, [{'params': list(net.parameters())}], lr=0.1)\n"
        "net(torch.ones(1, 2)).sum().backward(); optimizer.step(); optimizer.zero_grad()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_forgotten_gradients_are_gone() -> None:
    """What a pass before `zero_grad` left behind moves nothing."""
    net = small_net()
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=0.1)
    backward(net, images_of(0), bfloat16=False)
    optimizer.zero_grad()
    before = [each.detach().clone() for each in net.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_wide_layers_convolve(kernel: int, layout: torch.memory_format) -> None:
    """Outputs and gradients are those of a convolution, however maps and weights lie."""
    torch.manual_seed(0)
    layer = WideConv2d(5, MANY_ROWS + 3, kernel, padding=kernel // 2).to(memory_format=layout)  # type: ignore[call-overload]
    maps = torch.randn(2, 5, 6, 9).to(memory_format=layout).requires_grad_()
    outputs = layer(maps)
    expected = F.conv2d(maps, layer.weight, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    towards = torch.randn_like(outputs)
    found = torch.autograd.grad(outputs, [maps, *layer.parameters()], towards)
    for own, true in zip(found, torch.autograd.grad(expected, [maps, *layer.parameters()], towards), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_wide_layers_with_dropped_channels(share: float, bfloat16: bool) -> None:
    """A mask gives the outputs and gradients of a product with it, whatever share of the channels it keeps."""
    torch.manual_seed(0)
    layer = WideConv2d(5, 300, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    maps, mask = torch.randn(2, 5, 6, 9, requires_grad=True), 2.0 * (torch.rand(2, 300, 1, 1) < share)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        pairs = layer(maps, mask), layer(maps) * mask
    towards = torch.randn_like(pairs[0])
    found, true = ([each, *torch.autograd.grad(each, [maps, *layer.parameters()], towards)] for each in pairs)
    for own, expected in zip(found, true, strict=True):
        torch.testing.assert_close(own, expected, rtol=0.02 if bfloat16 else 1e-5, atol=0.02 if bfloat16 else 1e-4)
    assert bool(found[0].any()) == bool(share)


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
