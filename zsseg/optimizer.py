"""The optimizer: AdamW, but Adafactor for wide layers, whose gradient is never made.

Of FCN's 134 million weights fc6 and fc7 hold 120. AdamW's two moments of them are 960 MB, their gradient is another
480, and all of it passes through memory in every step. Adafactor (Shazeer and Stern, ICML 2018) keeps mean squares of a
matrix's rows and columns instead of all its entries, and no first moment. Both moments are then a few numbers, and as
the gradient is a product of two small matrices, one row of each for every cell, so is the update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from zsseg import distributed
from zsseg.models.wide import ROWS, Products, WideConv2d, as_matrix, rows_used

BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW
TINY = 1e-30  # ε₁ of Adafactor
BETA_POWER = -0.8  # ĉ of Adafactor: β₂ = 1 - t^ĉ


class AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019), and Adafactor for the weights of wide layers.

    What AdamW steps on has the parameters and the state of `torch.optim.AdamW(fused=True)`, to the bit; that class
    itself imports torch's compiler, 150 MB and 0.8 s for nothing. Wide weights step as matrices, at AdamW's learning
    rate and with its weight decay: with G the gradient, R and C running means of the squares of its rows and columns
    (β₂ = 1 - t^-0.8),

        U = G / sqrt(R C^T / mean(R)),   W <- (1 - lr · weight_decay) W - lr U / max(1, rms(U)).

    That is algorithm 4 of Adafactor without its relative step size, and `torch.optim.Adafactor(eps=(1e-30, 1))`, which
    makes NaN of a row that never had a gradient, as of a channel that was dropped; here such a row
    only decays.

    Args:
        net: Its wide layers hand over their gradients as products, on a processor and in one process.
        groups: Of parameters, `params`; what else is in them, `lr` or `weight_decay`, holds for that group.
        lr: Learning rate.
        weight_decay: Decoupled.

    Attributes:
        param_groups: The groups, whose `lr` may be changed between steps.
        state: What is kept of each parameter that was stepped on: "step", and "exp_avg" and "exp_avg_sq" of its shape,
            or, of a wide weight, "row_var" (L), and "col_var" (K).
    """

    def __init__(self, net: nn.Module, groups: list[dict[str, Any]], *, lr: float, weight_decay: float = 0.01) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, "weight_decay": weight_decay, **each} for each in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._products: dict[Tensor, Products] = {}
        for layer in net.modules():
            if isinstance(layer, WideConv2d):
                products = self._products.setdefault(layer.weight, [])
                possible = distributed.world() == 1 and layer.weight.device.type == "cpu"
                layer.products = products if possible else None

    @torch.no_grad()
    def step(self) -> None:
        """Step on all parameters, by their `.grad` or by their products."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self._products:
                    self._step_on_wide(parameter, group)
            self._step_on_others([each for each in group["params"] if each not in self._products], group)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for products in self._products.values():
            products.clear()

    def _step_on_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        parameters = [each for each in parameters if each.grad is not None]
        for each in parameters:
            if each not in self.state:
                moments = {name: torch.zeros_like(each) for name in ("exp_avg", "exp_avg_sq")}
                self.state[each] = {"step": torch.zeros((), device=each.device), **moments}
        gradients = [each.grad for each in parameters if each.grad is not None]
        names = ("exp_avg", "exp_avg_sq", "step")
        means, squares, steps = ([self.state[each][name] for each in parameters] for name in names)
        adamw(
            parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1],
            lr=group["lr"], weight_decay=group["weight_decay"], eps=EPS, maximize=False,
        )  # fmt: skip

    def _step_on_wide(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if self._products[parameter]:
            self._step_by_products(parameter, self._products[parameter], group)
        elif parameter.grad is not None:
            self._step_by_gradient(parameter, group)

    def _step_by_products(self, parameter: Tensor, products: Products, group: dict[str, Any]) -> None:
        """Step by the gradient left.T @ right, (P, L), (P, K): means of its squares follow from matrices of P × P."""
        left, right = (torch.cat(each) for each in zip(*products, strict=True))
        row_factors, column_factors = self._factors(parameter, _mean_squares(left, right), _mean_squares(right, left))
        left, right = (left * row_factors).to(left.dtype), (right * column_factors).to(right.dtype)
        squares = ((left @ left.T).float() * (right @ right.T)).sum() / parameter.numel()  # the mean of U's
        left *= -group["lr"] / squares.clamp(min=1).sqrt()  # rounded, it may be below 0
        matrix = _matrix_of(parameter)
        matrix *= 1 - group["lr"] * group["weight_decay"]
        for rows in torch.split(rows_used(left), ROWS):
            matrix.index_add_(0, rows, (left[:, rows].T @ right).to(matrix.dtype))

    def _step_by_gradient(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Step by a gradient that was made: on a GPU, and where several processes add theirs up."""
        assert parameter.grad is not None
        matrix, gradient = _matrix_of(parameter), as_matrix(parameter.grad)
        parts = torch.split(gradient, ROWS)
        of_rows = torch.cat([part.square().mean(dim=1) for part in parts])
        of_columns = torch.stack([part.square().sum(dim=0) for part in parts]).sum(dim=0) / len(gradient)
        row_factors, column_factors = self._factors(parameter, of_rows, of_columns)
        for part, factors in zip(parts, torch.split(row_factors, ROWS), strict=True):
            part *= factors[:, None] * column_factors
        rms = torch.linalg.vector_norm(gradient) / gradient.numel() ** 0.5
        matrix *= 1 - group["lr"] * group["weight_decay"]
        for weights, part in zip(torch.split(matrix, ROWS), parts, strict=True):
            weights -= part * (group["lr"] / rms.clamp(min=1))

    def _factors(self, parameter: Tensor, of_rows: Tensor, of_columns: Tensor) -> tuple[Tensor, Tensor]:
        """Take up the mean squares of a gradient's rows, (L), and columns, (K); return what each is multiplied with."""
        if "row_var" not in self.state.get(parameter, {}):
            means = {"row_var": torch.zeros_like(of_rows), "col_var": torch.zeros_like(of_columns)}
            self.state[parameter] = {"step": torch.zeros(()), **means}
        state = self.state[parameter]
        state["step"] += 1
        weight = float(state["step"]) ** BETA_POWER
        state["row_var"].lerp_(of_rows, weight)
        state["col_var"].lerp_(of_columns, weight)
        rows, columns = state["row_var"].clamp(min=TINY), state["col_var"].clamp(min=TINY)
        return (rows.mean() / rows).sqrt(), columns.rsqrt()


def _mean_squares(factor: Tensor, other: Tensor) -> Tensor:
    """Return the mean square of each row of factor.T @ other, (P, L), (P, K) -> float32 (L).

    Where cells cancel each other out, what is left may be rounding, and below 0. No row has less than rounding makes of
    what its cells have each for itself: divided by a root of nearly nothing, it would outweigh all others.
    """
    gram = other @ other.T
    squares = (factor * (gram @ factor)).sum(dim=0, dtype=torch.float32)
    apart = (factor.square() * gram.diagonal()[:, None]).sum(dim=0, dtype=torch.float32)
    return torch.maximum(squares, apart * torch.finfo(factor.dtype).eps) / other.shape[1]


def _matrix_of(parameter: Tensor) -> Tensor:
    """Return a wide weight as the matrix that it is; RuntimeError where it is not channels last, and that is a copy."""
    return parameter.permute(0, 2, 3, 1).view(len(parameter), -1)
