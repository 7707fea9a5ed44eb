"""The layers that low rank knows, as they are and as two thin ones: shapes, weights, the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.shrink.structure.low_rank import Array, Shape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LED(nn.Module):
    """A linear layer [.., inputs] -> [.., outputs] through `rank` numbers, nothing in the middle."""

    def __init__(self, first: nn.Linear, second: nn.Linear, transposed: bool = False) -> None:
        super().__init__()
        self.led = nn.Sequential(first, second)
        self.transposed = transposed  # the dense layer was one of GPT-2's, its weight [inputs, outputs]
        self.in_features, self.rank, self.out_features = (
            first.in_features,
            first.out_features,
            second.out_features,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.led(x)  # type: ignore[no-any-return]


class CED(nn.Module):
    """A convolution to `rank` channels, then one of kernel size 1 to the outputs."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.ced = nn.Sequential(first, second)
        self.rank = int(first.out_channels)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.ced(x)  # type: ignore[no-any-return]


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2, `y = x W + b` with W [inputs, outputs]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and "weight" in layer._parameters


def shape_of(layer: Any) -> Shape:
    """The shape of a layer, factored or not."""
    if isinstance(layer, LED):
        return Shape(layer.in_features, layer.out_features)
    if isinstance(layer, CED):
        first, second = _parts(layer.ced)
        return Shape(
            int(first.in_channels), int(second.out_channels), int(np.prod(first.kernel_size)), first.groups
        )
    if isinstance(layer, CONVOLUTIONS):
        kernel = int(np.prod(layer.kernel_size))
        return Shape(layer.in_channels, layer.out_channels, kernel, layer.groups)
    outputs, inputs = layer.weight.shape[::-1] if is_transposed(layer) else layer.weight.shape
    return Shape(int(inputs), int(outputs))


def matrices(layer: Any) -> Iterator[Array]:
    """W f32 [inputs, outputs] of each group of a layer: one for linear layers."""
    weight = layer.weight.detach().to("cpu", torch.float32).numpy()
    if isinstance(layer, CONVOLUTIONS):
        for part in np.split(weight.reshape(len(weight), -1), layer.groups):
            yield part.T
    else:
        yield weight if is_transposed(layer) else weight.T


def thin(layer: Any, rank: int) -> tuple[Any, Any]:
    """The two layers without numbers in them."""
    bias = layer.bias is not None
    shape = shape_of(layer)
    if not isinstance(layer, CONVOLUTIONS):
        return (
            nn.Linear(shape.inputs, rank, bias=False, device="meta"),
            nn.Linear(rank, shape.outputs, bias=bias, device="meta"),
        )
    kind: Any = type(layer)
    first = kind(
        layer.in_channels,
        rank,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    second = kind(rank, layer.out_channels, 1, groups=layer.groups, bias=bias, device="meta")
    return first, second


def _parts(pair: nn.Sequential) -> tuple[Any, Any]:
    return pair[0], pair[1]


def dense_of(unit: Any) -> nn.Module:
    """The dense layer that a factored one stands for."""
    dense: Any
    if isinstance(unit, CED):
        first, second = _parts(unit.ced)
        groups = first.groups
        u = first.weight.detach().reshape(groups, unit.rank // groups, -1)
        v = second.weight.detach().reshape(groups, second.out_channels // groups, -1)
        weight = torch.bmm(v, u).reshape(second.out_channels, first.in_channels // groups, *first.kernel_size)
        dense = type(first)(
            first.in_channels,
            second.out_channels,
            first.kernel_size,
            stride=first.stride,
            padding=first.padding,
            dilation=first.dilation,
            groups=groups,
            bias=False,
            padding_mode=first.padding_mode,
            device="meta",
        )
    else:
        first, second = _parts(unit.led)
        weight = second.weight.detach() @ first.weight.detach()
        if unit.transposed:
            from transformers.pytorch_utils import Conv1D

            dense, weight = Conv1D(0, 0), weight.T.contiguous()
            dense.nf, dense.nx = unit.out_features, unit.in_features
        else:
            dense = nn.Linear(unit.in_features, unit.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=first.weight.requires_grad)
    dense.bias = second.bias
    return dense.train(unit.training)  # type: ignore[no-any-return]
