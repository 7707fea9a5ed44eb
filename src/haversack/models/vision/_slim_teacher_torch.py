"""The teacher of a split network as a PyTorch module, built from its record: what a student learns from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models.vision import _slim_record as record
from haversack.models.vision._inverted_residual_torch import Block as BlockModule
from haversack.models.vision._inverted_residual_torch import Unit as UnitModule
from haversack.models.vision._record import Block, Unit
from haversack.models.vision._slim_record import SplitNet


class ResidualModule(nn.Module):
    """See _slim_record.Residual."""

    def __init__(self, residual: record.Residual, momentum: float) -> None:
        super().__init__()
        self.first = UnitModule(residual.first, momentum)
        self.second = UnitModule(residual.second, momentum)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


def module_of(layer: record.Layer, momentum: float) -> nn.Module:
    """A layer as a module."""
    if isinstance(layer, Unit):
        return UnitModule(layer, momentum)
    if isinstance(layer, Block):
        return BlockModule(layer, momentum)
    return ResidualModule(layer, momentum)


class Frozen(nn.Module):
    """What training asks of a teacher."""

    net: SplitNet

    def head_of(self, x: Tensor) -> Tensor:
        """The feature at the split of normed pictures."""
        raise NotImplementedError

    def stages(self, split: Tensor) -> list[Tensor]:
        """What the student learns to give back, the feature at the split first."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of a pack."""
        raise NotImplementedError


class Teacher(Frozen):
    """See _slim_record.SplitNet.teacher; logits [n, outputs, h/8, w/8] of a detector, [n, outputs] of a
    classifier."""

    def __init__(self, net: SplitNet) -> None:
        super().__init__()
        self.net = net
        stages = net.teacher()
        if net.task == "classify":
            stages.pop("neck")
        for name, layers in stages.items():
            self.add_module(name, nn.Sequential(*(module_of(layer, 0.1) for layer in layers)))
        final = net.final()
        self.final = nn.Conv2d(final.inputs, final.outputs, 1)
        with torch.no_grad():
            self.final.weight.mul_(0.1)
            self.final.bias.zero_()  # type: ignore[union-attr]
            if net.task == "detect":
                self.final.bias[: len(net.classes)] = -3.0  # type: ignore[index]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of a pack."""
        return {name: each for name, each in self.state_dict().items() if "num_batches" not in name}

    def head_of(self, x: Tensor) -> Tensor:
        """The feature at the split [n, SPLIT, h/4, w/4] of normed pictures."""
        made: Tensor = self.get_submodule("head")(x)
        return made

    def rest(self, split: Tensor) -> list[Tensor]:
        """The features of the stages behind the split, the last one what the final layer reads."""
        mid = self.get_submodule("mid")(split)
        low = self.get_submodule("low")(mid)
        if self.net.task == "classify":
            return [mid, low]
        neck = self.get_submodule("neck")
        up = functional.interpolate(neck[0](low), scale_factor=2.0, mode="nearest")  # type: ignore[index]
        return [mid, low, neck[1](up + mid)]  # type: ignore[index]

    def stages(self, split: Tensor) -> list[Tensor]:
        """What the student learns to give back: the features from the split on, and the logits."""
        behind = self.rest(split)
        return [split, *behind, self.answer(behind[-1])]

    def answer(self, last: Tensor) -> Tensor:
        """Logits of the last feature."""
        if self.net.task == "classify":
            return self.final(last.mean((2, 3), keepdim=True)).flatten(1)
        made: Tensor = self.final(last)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.rest(self.head_of(x))[-1])


def cosine(step: int, steps: int) -> float:
    """What the teacher's rate is multiplied with in `step`: up within 20 steps, down as a cosine."""
    return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
