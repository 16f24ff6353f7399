"""The optimizer: AdamW, which makes the gradient of wide layers a few rows at a time.

Of FCN's 134 million weights fc6 and fc7 hold 120. Their gradient is a product of two small matrices, one row of each
for every cell: so it need not exist. What a step of AdamW does to a weight depends on that weight's gradient alone, and
rows can be stepped on one after the other. That saves 480 MB, and the time that the system takes to clear them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from zsseg import distributed
from zsseg.models.wide import Products, WideConv2d

ROWS = 256  # that are stepped on at a time


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW(fused=True)` to the bit, with the state of it.

    Args:
        net: Its wide layers hand over their gradients as products, on a processor and in one process.
        groups: As torch's.
        lr: As torch's.
        weight_decay: As torch's.
    """

    def __init__(self, net: nn.Module, groups: list[dict[str, Any]], *, lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay, fused=True)
        self._products: dict[Tensor, Products] = {}
        for layer in net.modules():
            if isinstance(layer, WideConv2d):
                lies = layer.weight.is_contiguous(memory_format=torch.channels_last)  # as the matrix
                possible = lies and distributed.world() == 1 and layer.weight.device.type == "cpu"
                layer.products = self._products.setdefault(layer.weight, []) if possible else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step on all parameters, by their `.grad` or by their products."""
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                products = self._products.get(parameter)
                if products:
                    self._step_by_rows(parameter, products, group)
                    products.clear()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        super().zero_grad(set_to_none)
        for products in self._products.values():
            products.clear()

    def _step_by_rows(self, parameter: Tensor, products: Products, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        stepped_on = (parameter, state["exp_avg"], state["exp_avg_sq"])
        matrices = [each.permute(0, 2, 3, 1).view(len(each), -1) for each in stepped_on]  # a view, or it fails
        beta1, beta2 = group["betas"]
        for first in range(0, len(parameter), ROWS):
            rows = slice(first, first + ROWS)
            weights, mean, square = (each[rows] for each in matrices)
            parts = [(left[:, rows].T @ right).to(weights.dtype) for left, right in products]
            gradient = functools.reduce(torch.add, parts)
            adamw(
                [weights], [gradient], [mean], [square], [], [state["step"].clone()],
                fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
                weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
            )  # fmt: skip
        state["step"] += 1
