"""Gradient reversal (Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _ReverseGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, grad_scaling: float) -> Tensor:
        ctx.grad_scaling = grad_scaling
        return input.view_as(input)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        return -ctx.grad_scaling * grad_output, None


class ReverseGrad(nn.Module):
    """The identity, whose gradient is the negative, scaled one."""

    def forward(self, x: Tensor, grad_scaling: float = 1.0) -> Tensor:
        """`x` as it is.

        Args:
            x: Any tensor.
            grad_scaling: Factor of the reversed gradient, not negative.

        Raises:
            ValueError: The factor is negative.
        """
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling must not be negative, but got {grad_scaling}")
        return _ReverseGrad.apply(x, grad_scaling)
