"""The members of an ensemble in one pass: as one network of k times the width, in k groups.

A member's layers have 4 to 36 channels, too few to keep a processor busy. Side by side they have k times as
many: the stem is one convolution of the picture, depthwise layers have more channels, and 1x1 convolutions
become one with a block diagonal matrix. The numbers are those of one member after the other but for the order
of sums; norms take the statistics of their batch and leave the running ones alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models.vision._inverted_residual_torch import Block, Squeeze, Unit


def joint(members: Sequence[Any], x: Tensor) -> Tensor:
    """What `members` (each a sequence of a stem and blocks) give for x, side by side: [n, k c, h, w]."""
    y = _unit([member[0] for member in members], x, shared=True)
    for at in range(1, len(members[0])):
        y = _block([member[at] for member in members], y)
    return y


def _block(blocks: Sequence[Block], x: Tensor) -> Tensor:
    made, one = x, blocks[0]
    if one.expand is not None:
        made = _unit([_there(block.expand) for block in blocks], made)
    made = _unit([block.depthwise for block in blocks], made)
    if one.squeeze is not None:
        made = _squeezed([_there(block.squeeze) for block in blocks], made)
    made = _unit([block.project for block in blocks], made)
    return made + x if one.block.residual else made


def _unit(units: Sequence[Unit], x: Tensor, *, shared: bool = False) -> Tensor:
    """Convolution, norm and activation; `shared`: every unit reads the whole of x."""
    conv, norm = units[0].conv, units[0].norm
    if shared or conv.groups > 1:
        weight = torch.cat([unit.conv.weight for unit in units])
    else:
        weight = torch.block_diag(*(unit.conv.weight[:, :, 0, 0] for unit in units))[:, :, None, None]
    groups = conv.groups * len(units) if conv.groups > 1 else 1
    y = functional.conv2d(x, weight, None, conv.stride, conv.padding, 1, groups)
    scale, shift = _joined(units, lambda unit: unit.norm.weight), _joined(units, lambda unit: unit.norm.bias)
    made: Tensor = units[0].act(functional.batch_norm(y, None, None, scale, shift, True, 0.0, norm.eps))
    return made


def _squeezed(squeezes: Sequence[Squeeze], x: Tensor) -> Tensor:
    inner = _linear([squeeze.reduce for squeeze in squeezes], x.mean((2, 3))).relu()
    gate = functional.hardsigmoid(_linear([squeeze.expand for squeeze in squeezes], inner))
    return x * gate[:, :, None, None]


def _linear(layers: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    weight = torch.block_diag(*(layer.weight[:, :, 0, 0] for layer in layers))
    return functional.linear(x, weight, _joined(layers, lambda layer: layer.bias))


def _joined(modules: Sequence[Any], part: Callable[[Any], Tensor]) -> Tensor:
    return torch.cat([part(module) for module in modules])


def _there(module: nn.Module | None) -> Any:
    assert module is not None
    return module
