"""Layers that keep for the way back only what their learned parameters need, as PyTorch functions.

PyTorch's convolution keeps its inputs even where its weights do not learn, and its norm keeps them even with
fixed statistics. `FrozenConvolution` and `FrozenAffineShift` keep nothing but parameters and statistics,
which are there anyway. `Convolution` and `Norm` choose by what learns; elsewhere they are PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class FrozenConvolution(torch.autograd.Function):
    """A convolution whose weights do not learn; its bias may. Keeps nothing."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
    ) -> Tensor:
        context.save_for_backward(weight)
        context.sizes, context.options = x.shape, (stride, padding, 1, groups)
        return functional.conv2d(x, weight, bias, stride, padding, 1, groups)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = context.saved_tensors
        inward = shift = None
        if context.needs_input_grad[0]:
            inward = conv2d_input(context.sizes, weight, gradient, *context.options)
        if context.needs_input_grad[2]:
            shift = gradient.sum((0, 2, 3))
        return inward, None, shift, None, None, None


class FrozenAffineShift(torch.autograd.Function):
    """y = a x + (beta - a mean) with a = gamma / sqrt(variance + eps) constant, for x [n, c, h, w].

    Back: g_x = a g_y, g_beta = the sum of g_y over all but the channels. Keeps gamma and variance, which are
    the norm's own.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        context.save_for_backward(gamma, variance)
        context.eps = eps
        a = gamma * (variance + eps).rsqrt()
        return torch.addcmul((beta - a * mean)[:, None, None], x, a[:, None, None])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gamma, variance = context.saved_tensors
        inward = shift = None
        if context.needs_input_grad[0]:
            inward = gradient * (gamma * (variance + context.eps).rsqrt())[:, None, None]
        if context.needs_input_grad[2]:
            shift = gradient.sum((0, 2, 3))
        return inward, None, shift, None, None, None


class Convolution(nn.Conv2d):
    """A convolution with odd kernels, padded to keep the map; lean where its weights do not learn."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad:
            return super().forward(x)
        stride, padding = int(self.stride[0]), int(self.padding[0])  # type: ignore[arg-type]
        made: Tensor = FrozenConvolution.apply(x, self.weight, self.bias, stride, padding, self.groups)
        return made


class Norm(nn.BatchNorm2d):
    """A batch norm. `measures` says whether it takes the statistics of its batch (and moves the running
    ones) in a pass with gradients; else they are fixed, and it is lean where its scale does not learn. A pass
    without gradients has the same bits whatever learns."""

    measures = False

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None
        learning = torch.is_grad_enabled()
        if self.measures and learning:
            return functional.batch_norm(
                x, mean, variance, self.weight, self.bias, True, self.momentum or 0.0, self.eps
            )
        if self.weight.requires_grad and learning:
            return functional.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        made: Tensor = FrozenAffineShift.apply(x, self.weight, self.bias, mean, variance, self.eps)
        return made
