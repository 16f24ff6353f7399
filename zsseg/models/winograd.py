"""3 × 3 convolutions on a processor with a fraction of the products.

F(m × m, 3 × 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. With d a tile of
m + 2 times as many inputs, tiles overlapping by two, g a kernel and Y the tile's m × m outputs,

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,

where the sum over input channels of the elementwise product ⊙ is, over all tiles, (m + 2)² products of matrices. The
transforms add, and multiply by small numbers. A step does the same thrice: forward, for the gradient of the input,
which is a convolution with the kernel turned round, and for that of the kernel,
Gᵀ [Σ over tiles (A dY Aᵀ) ⊙ (Bᵀ d B)] G.

In float32 m is 4: 36 products for sixteen outputs instead of 144. The transforms' rounding leaves outputs off by 2e-6
of their norm instead of 1e-6. In bfloat16 m is 2: 16 products for four outputs instead of 36. There, sums of four
numbers are rounded where a direct convolution has the numbers themselves, and outputs are off by 0.6 % instead of
0.24 %. So that is for training alone, whose gradients are noisier by far.

Where the scheme does not pay in bfloat16, the gradient of the kernels is still quicker of strips of a few rows, as the
images of a batch: oneDNN turns maps round before it multiplies, and a strip of them stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zsseg.hardware import has_avx512, multiplies_tiles

Line = Sequence[Tensor] | Tensor  # places of a tile along one axis
Target = Sequence[Tensor | None] | Tensor


@dataclass(frozen=True)
class Scheme:
    """F(m × m, 3 × 3), its transforms along one axis.

    Attributes:
        outputs: m.
        least: Input times output channels; with fewer, transforms cost more than products save.
        numbers: Channels of tiles at a time, so that what is made of them stays in the processor's cache.
        fewest: Tiles of an image; products of smaller matrices are no quicker than a convolution.
        of_kernels: G, float32 (m + 2, 3).
        of_inputs: Bᵀ, from m + 2 places of a tile to m + 2; like the next two, into tensors that are given or new.
        to_outputs: Aᵀ, from m + 2 to m.
        of_outputs: A, from m to m + 2.
    """

    outputs: int
    least: int
    numbers: int
    fewest: int
    of_kernels: Tensor
    of_inputs: Callable[[Line, Target], list[Tensor]]
    to_outputs: Callable[[Line, Target], list[Tensor]]
    of_outputs: Callable[[Line, Target], list[Tensor]]

    @cached_property
    def both(self) -> Tensor:
        """G along both axes of a kernel, (m + 2, m + 2, 9)."""
        places = self.outputs + 2
        return torch.kron(self.of_kernels, self.of_kernels).view(places, places, 9)


def _of_inputs_2(d: Line, out: Target) -> list[Tensor]:
    return [
        torch.sub(d[0], d[2], out=out[0]),
        torch.add(d[1], d[2], out=out[1]),
        torch.sub(d[2], d[1], out=out[2]),
        torch.sub(d[1], d[3], out=out[3]),
    ]


def _to_outputs_2(m: Line, out: Target) -> list[Tensor]:
    return [torch.add(m[0], m[1] + m[2], out=out[0]), torch.sub(m[1] - m[2], m[3], out=out[1])]


def _of_outputs_2(y: Line, out: Target) -> list[Tensor]:
    return [
        _into(y[0], out[0]),
        torch.add(y[0], y[1], out=out[1]),
        torch.sub(y[0], y[1], out=out[2]),
        torch.neg(y[1], out=out[3]),
    ]


def _of_inputs_4(d: Line, out: Target) -> list[Tensor]:
    even, odd = d[4] - d[2], d[3] - d[1]
    even_less, odd_less = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    return [
        torch.add(even, d[0] - d[2], alpha=4, out=out[0]),
        torch.add(even_less, odd_less, out=out[1]),
        torch.sub(even_less, odd_less, out=out[2]),
        torch.add(even, odd, alpha=2, out=out[3]),
        torch.sub(even, odd, alpha=2, out=out[4]),
        torch.sub(d[5] - d[3], odd, alpha=4, out=out[5]),
    ]


def _to_outputs_4(m: Line, out: Target) -> list[Tensor]:
    ones, twos = m[1] + m[2], m[3] + m[4]
    one, two = m[1] - m[2], m[3] - m[4]
    return [
        torch.add(m[0] + ones, twos, out=out[0]),
        torch.add(one, two, alpha=2, out=out[1]),
        torch.add(ones, twos, alpha=4, out=out[2]),
        torch.add(m[5] + one, two, alpha=8, out=out[3]),
    ]


def _of_outputs_4(y: Line, out: Target) -> list[Tensor]:
    even, odd = y[0] + y[2], y[1] + y[3]
    even_more, odd_more = torch.add(y[0], y[2], alpha=4), torch.add(y[1], y[3], alpha=4)
    return [
        _into(y[0], out[0]),
        torch.add(even, odd, out=out[1]),
        torch.sub(even, odd, out=out[2]),
        torch.add(even_more, odd_more, alpha=2, out=out[3]),
        torch.sub(even_more, odd_more, alpha=2, out=out[4]),
        _into(y[3], out[5]),
    ]


def _into(values: Tensor, out: Tensor | None) -> Tensor:
    return values if out is None else out.copy_(values)


_HALVES = torch.tensor([[1.0, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]])
_SIXTHS = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
F2 = Scheme(
    outputs=2, least=256 * 256, numbers=2048 * 256, fewest=196,
    of_kernels=_HALVES, of_inputs=_of_inputs_2, to_outputs=_to_outputs_2, of_outputs=_of_outputs_2,
)  # fmt: skip
F4 = Scheme(
    outputs=4, least=128 * 128, numbers=384 * 256, fewest=48,
    of_kernels=_SIXTHS, of_inputs=_of_inputs_4, to_outputs=_to_outputs_4, of_outputs=_of_outputs_4,
)  # fmt: skip
# oneDNN's gradients of kernels, float32 and channels last, reach a fifth of the processor's rate without AVX-512
LEAST_OF_KERNELS = 64 * 64
MOST_BY_STRIPS = 128 * 128  # with more, a strip's numbers are multiplied so often that turning them round costs little
ROWS = 16  # of a strip; 8 and 24 are as quick


class WinogradConv2d(nn.Conv2d):
    """A convolution of 3 × 3 with the stride 1 and a border of zeros, quicker on a processor.

    Args:
        in_channels: Of the maps.
        out_channels: Of the outputs.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, (N, K, h, w) -> (N, L, h, w)."""
        if torch.is_autocast_enabled("cpu") and maps.device.type == "cpu":
            maps = maps.to(torch.get_autocast_dtype("cpu"))
        scheme = self._scheme(maps)
        if scheme is None or not (self._pays(scheme) or self._pays_for_kernels(scheme, maps.shape[2])):
            return super().forward(maps)
        bias = self.get_parameter("bias")
        outputs: Tensor = _Convolution.apply(maps, self.weight, bias, scheme, self._pays(scheme))
        return outputs

    def _scheme(self, maps: Tensor) -> Scheme | None:
        """Return the scheme for maps of such a precision and size, if there is one."""
        if maps.device.type != "cpu" or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        if maps.dtype == torch.float32:
            scheme = F4
        elif maps.dtype == torch.bfloat16 and self._learns() and not multiplies_tiles():
            scheme = F2
        else:
            return None
        height, width = maps.shape[2:]
        whole = height % scheme.outputs == 0 and width % scheme.outputs == 0
        return scheme if whole and height * width >= scheme.outputs**2 * scheme.fewest else None

    def _pays(self, scheme: Scheme) -> bool:
        return self.weight[:, :, 0, 0].numel() >= scheme.least

    def _pays_for_kernels(self, scheme: Scheme, height: int) -> bool:
        """Return whether the kernels' gradient is quicker by the scheme or by strips, though outputs may not be."""
        channels = self.weight[:, :, 0, 0].numel()
        if not self._learns() or channels < LEAST_OF_KERNELS:
            return False
        return not has_avx512() if scheme is F4 else channels <= MOST_BY_STRIPS and height % ROWS == 0

    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled() and self.weight.requires_grad


class _Convolution(torch.autograd.Function):
    """Maps (N, K, h, w), kernels (L, K, 3, 3), bias (L) -> (N, L, h, w), channels last, in the precision of the maps.

    The kernels' gradient goes by the scheme or by strips, the outputs and the maps' gradient only where that pays.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernels: Tensor, bias: Tensor, scheme: Scheme, pays: bool) -> Tensor:
        ctx.save_for_backward(maps, kernels)  # transformed again backward, for that takes less than 52 MB are worth
        ctx.scheme, ctx.pays = scheme, pays
        if not pays:
            return F.conv2d(maps, kernels.to(maps.dtype), bias.to(maps.dtype), padding=1)
        matrices = (row.transpose(1, 2) for row in _of_kernels(kernels, maps.dtype, scheme))
        return _convolved(maps, matrices, len(kernels), scheme).add_(bias.to(maps.dtype)[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, kernels = ctx.saved_tensors
        gradient = gradient.to(maps.dtype, memory_format=torch.channels_last)
        of_maps = None
        if ctx.needs_input_grad[0] and ctx.pays:
            matrices = _of_kernels(kernels, maps.dtype, ctx.scheme, turned=True)
            of_maps = _convolved(gradient, matrices, kernels.shape[1], ctx.scheme)
        elif ctx.needs_input_grad[0]:
            of_maps = _plain_gradients(gradient, maps, kernels, [1, 1], [True, False, False])[0]
        of_kernels = None
        if ctx.needs_input_grad[1] and (ctx.pays or ctx.scheme is F4):
            of_kernels = _gradient_of_kernels(maps, gradient, ctx.scheme)
        elif ctx.needs_input_grad[1]:
            of_kernels = _gradient_by_strips(maps, gradient, kernels)
        return of_maps, of_kernels, gradient.sum(dim=(0, 2, 3)).float(), None, None


def _convolved(maps: Tensor, of_kernels: Iterable[Tensor], channels: int, scheme: Scheme) -> Tensor:
    """Convolve (N, K, h, w) by transformed kernels, m + 2 times (m + 2, K, L), to (N, L, h, w)."""
    count, _, height, width = maps.shape
    strips = _strips(maps, scheme)
    if count * len(strips) > 1:
        of_kernels = list(of_kernels)  # 36 MB of 512 × 512 channels, otherwise only a sixth of it at a time
    outputs = torch.empty((count, channels, height, width), dtype=maps.dtype, memory_format=torch.channels_last)
    for image, to_fill in zip(maps.permute(0, 2, 3, 1), outputs.permute(0, 2, 3, 1), strict=True):
        for start, end in strips:
            of_inputs = _of_inputs(_bordered(image, start, end), scheme)
            products = (torch.bmm(left, right) for left, right in zip(of_inputs, of_kernels, strict=True))
            _to_outputs(products, to_fill[start:end], scheme)
    return outputs


def _gradient_of_kernels(maps: Tensor, gradient: Tensor, scheme: Scheme) -> Tensor:
    """Return float32 (L, K, 3, 3), of maps (N, K, h, w) and the outputs' gradient, (N, L, h, w)."""
    kernels = torch.zeros(gradient.shape[1], 9, maps.shape[1])  # channels last, as kernels lie
    for image, of_image in zip(maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1), strict=True):
        for start, end in _strips(maps, scheme):
            of_outputs = _of_outputs(of_image[start:end], scheme)
            of_inputs = _of_inputs(_bordered(image, start, end), scheme)
            for left, right, row in zip(of_outputs, of_inputs, scheme.both, strict=True):
                product = torch.bmm(left.transpose(1, 2), right).float()  # (m + 2, L, K)
                kernels.baddbmm_(row.T.expand(len(kernels), -1, -1), product.transpose(0, 1))
    return kernels.view(-1, 3, 3, maps.shape[1]).permute(0, 3, 1, 2)


def _gradient_by_strips(maps: Tensor, gradient: Tensor, kernels: Tensor) -> Tensor:
    """Return float32 (L, K, 3, 3), as `_gradient_of_kernels`, of maps whose height is a multiple of `ROWS`."""
    count, channels, height, width = maps.shape
    images = maps.permute(0, 2, 3, 1).view(count, -1, ROWS, width, channels)
    strips = maps.new_empty(count, height // ROWS, ROWS + 2, width, channels)  # each with a row of its neighbours
    strips[:, :, 1:-1] = images
    strips[:, 1:, 0], strips[:, :-1, -1] = images[:, :-1, -1], images[:, 1:, 0]
    strips[:, 0, 0] = strips[:, -1, -1] = 0
    of_strips = gradient.permute(0, 2, 3, 1).reshape(-1, ROWS, width, gradient.shape[1])
    as_batch = of_strips.permute(0, 3, 1, 2), strips.flatten(0, 1).permute(0, 3, 1, 2)
    found: Tensor = _plain_gradients(*as_batch, kernels, [0, 1], [False, True, False])[1]
    return found.float()


def _plain_gradients(
    gradient: Tensor, maps: Tensor, kernels: Tensor, padding: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return those gradients of a plain convolution that are wanted: of maps, kernels and bias."""
    narrow, once = kernels.to(maps.dtype), [1, 1]
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, maps, narrow, None, once, padding, once, False, [0, 0], 1, wanted
    )
    return found


def _strips(maps: Tensor, scheme: Scheme) -> list[tuple[int, int]]:
    """Return the first row of each strip of whole tiles of (N, K, h, w), and the one after its last."""
    channels, height, width = maps.shape[1:]
    rows = scheme.outputs * max(1, scheme.numbers // channels // (width // scheme.outputs))
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def _bordered(image: Tensor, start: int, end: int) -> Tensor:
    """Cut some rows out of (h, w, K), with a border of one cell, which is zero outside of the image."""
    above, below = int(start > 0), int(end < len(image))
    return F.pad(image[start - above : end + below], (0, 0, 1, 1, 1 - above, 1 - below))


def _of_inputs(strip: Tensor, scheme: Scheme) -> Iterator[Tensor]:
    """Yield Bᵀ d B of all tiles row by row, (m · p + 2, m · q + 2, K) -> m + 2 times (m + 2, p · q, K)."""
    step, places = scheme.outputs, range(scheme.outputs + 2)
    height, width = strip.shape[0] - 2, strip.shape[1] - 2
    rows = scheme.of_inputs([strip[place : place + height - step + 1 : step] for place in places], [None] * len(places))
    for row in rows:
        out = row.new_empty(len(places), len(row), width // step, row.shape[2])
        scheme.of_inputs([row[:, place : place + width - step + 1 : step] for place in places], out)
        yield out.flatten(1, 2)


def _to_outputs(products: Iterable[Tensor], out: Tensor, scheme: Scheme) -> None:
    """Write Aᵀ m A of all tiles, m + 2 times (m + 2, p · q, L) -> (m · p, m · q, L)."""
    step = scheme.outputs
    to_fill = out.view(len(out) // step, step, out.shape[1] // step, step, -1)
    tiles = to_fill[:, 0, :, 0].shape  # (p, q, L)
    columns = [scheme.to_outputs(row.view(len(row), *tiles), [None] * step) for row in products]
    for place, column in enumerate(zip(*columns, strict=True)):
        scheme.to_outputs(column, [to_fill[:, row, :, place] for row in range(step)])


def _of_outputs(strip: Tensor, scheme: Scheme) -> Iterator[Tensor]:
    """Yield A y Aᵀ of all tiles row by row, (m · p, m · q, L) -> m + 2 times (m + 2, p · q, L)."""
    step = scheme.outputs
    rows = scheme.of_outputs([strip[place::step] for place in range(step)], [None] * (step + 2))
    for row in rows:
        out = row.new_empty(step + 2, len(row), row.shape[1] // step, row.shape[2])
        scheme.of_outputs([row[:, place::step] for place in range(step)], out)
        yield out.flatten(1, 2)


def _of_kernels(kernels: Tensor, dtype: torch.dtype, scheme: Scheme, *, turned: bool = False) -> Iterator[Tensor]:
    """Yield G g Gᵀ row by row, (L, K, 3, 3) -> m + 2 times (m + 2, L, K) of some precision."""
    columns = kernels.permute(0, 2, 3, 1).flatten(1, 2)  # (L, 9, K), as they lie
    for row in scheme.both.flip(2) if turned else scheme.both:
        matrices = (row @ columns).to(dtype).transpose(0, 1)
        # oneDNN would copy them for every strip, and slower; MKL, which multiplies float32, takes them as they lie
        yield matrices if dtype == torch.float32 else matrices.contiguous()
