"""What students of a split network share: parts that add up, a quantizer that gradients pass, and norms with
statistics for every mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models.vision import _slim_record as record
from haversack.models.vision._lean_torch import Norm

Mode = tuple[int, int]
Pictures = np.ndarray[Any, np.dtype[np.uint8]]


class Slim(nn.Module):
    """What training asks of a student: parts that add up, a quantizer, a decoder. `most`: the parts of the
    largest mode; `modes`: from the smallest to the largest; `shared`: one set of statistics for all modes."""

    most: int
    modes: list[Mode]
    shared: bool
    members: Any  # a module, or a list of them
    norms: nn.ModuleList

    def outputs(self, x: Tensor, k: int) -> list[Tensor]:
        """The first k parts of what is sent."""
        raise NotImplementedError

    def learning(self, x: Tensor, k: int) -> list[Tensor]:
        """The same with the statistics of the batch, for training."""
        return self.outputs(x, k)

    def sent(self, y: Tensor, bits: int) -> Tensor:
        """y as the server restores it; gradients pass straight through."""
        raise NotImplementedError

    def decode(self, sent: Tensor, mode: Mode) -> Tensor:
        """The teacher's feature at the split, restored."""
        raise NotImplementedError

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        return self.decode(self.sent(sum_of(self.outputs(x, mode[0])), mode[1]), mode)


class ModeNorm(nn.Module):
    """A batch norm with one scale and shift and the statistics of every mode (switchable batch norm)."""

    def __init__(self, channels: int, modes: int, momentum: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(modes, channels))
        self.register_buffer("variance", torch.ones(modes, channels))
        self.momentum = momentum

    def forward(self, x: Tensor, mode: int) -> Tensor:
        mean, variance = self.mean[mode], self.variance[mode]
        return functional.batch_norm(
            x, mean, variance, self.weight, self.bias, self.training, self.momentum, record.EPS
        )


def through_cells(y: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """The middles of the cells that y falls into; gradients pass straight through within them."""
    place = ((y - low) / step).clamp(0, 2**bits - 1e-3)
    cells = place + (place.floor() + 0.5 - place).detach()
    return cells * step + low


def measures(module: nn.Module, on: bool) -> None:
    """Whether the norms of `module` take the statistics of their batches."""
    module.train(on)
    for each in module.modules():
        if isinstance(each, Norm):
            each.measures = on


def normed(pictures: Pictures) -> Tensor:
    """As slimmable.normed, of pictures u8 [n, h, w, 3]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    return x.div_(255).sub_(0.5).mul_(4).contiguous(memory_format=torch.channels_last)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """y of some members' outputs."""
    return torch.stack(list(parts)).sum(0)
