"""The PyTorch part of TinyTL: the lite residual, and putting it beside blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models.vision._counts import Way
from haversack.models.vision._inverted_residual_torch import Unit
from haversack.models.vision._record import Beside
from haversack.train.parameters.mobiletl_torch import exchange, require_blocks

if TYPE_CHECKING:
    from haversack.train.parameters.tinytl import TinyTL


class LiteResidual(nn.Module):
    """See `tinytl.lite_residual`; `size` is the side of the map it is added to."""

    def __init__(self, record: Beside, stride: int, momentum: float) -> None:
        super().__init__()
        self.record, self.stride = record, stride
        self.first = Unit(record.first, momentum)
        self.second = Unit(record.second, momentum)

    def forward(self, x: Tensor) -> Tensor:
        side = (x.shape[-1] - 1) // self.stride + 1
        made = self.second(self.first(means(x, self.record.pool)))
        return functional.interpolate(made, size=(side, side), mode="bilinear", align_corners=False)

    def initialize(self, seed: int) -> None:
        """Draw the weights; the last scale is 0, so that the branch adds nothing at first."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for unit in (self.first, self.second):
                weight = unit.conv.weight
                fan = weight.shape[0] * weight.shape[2] ** 2 // unit.conv.groups
                weight.normal_(0, (2 / fan) ** 0.5, generator=generator)
            self.second.norm.weight.zero_()


def means(x: Tensor, pool: int) -> Tensor:
    """Means of squares of `pool` x `pool` places; PyTorch's own pooling would keep x for the way back."""
    if pool == 1:
        return x
    rows, channels, height, width = x.shape
    height, width = height // pool, width // pool
    whole = x[:, :, : height * pool, : width * pool]
    return whole.reshape(rows, channels, height, pool, width, pool).mean((3, 5))


def tinytl(module: Any, method: TinyTL, seed: int) -> Way:
    """Put the branches beside the blocks of `module`, as `method` says, and return how it learns. Raises
    UserError for a module without inverted residual blocks, or with fewer than are asked for."""
    require_blocks(module)
    way = method.way(module.record)
    exchange(module, way)
    for index, block in enumerate(module.inverted_residuals()):
        branch = way.beside.get(block.block.name)
        if branch is None:
            continue
        lite = block.beside = LiteResidual(branch, block.block.depthwise.stride, module.record.momentum)
        lite.initialize(seed + index)
        for unit, said in ((lite.first, branch.first), (lite.second, branch.second)):
            unit.norm.measures = said.name in way.batch_norms
    return way
