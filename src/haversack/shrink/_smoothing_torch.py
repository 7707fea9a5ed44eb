"""Learned equivalent transforms: factors and shifts between channels that change nothing until something is
rounded.

A pair of shrink/_transforms.py is a producer of channels and the matrices that consume them. With x' = (x -
t) / s the producer's rows (or a norm's weights) are divided by s, the consumers' columns multiplied, and
biases take t where both sides have them. Here s and t are learned; they begin with SmoothQuant's s_j =
max|X_j|^a / max|W_j|^(1 - a), a = 0.5, and 0. At the end `folded` puts them into the weights once and for
all.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from haversack.models._blocks_torch import Hooks, Point
from haversack.shrink._learning_torch import Lesson
from haversack.shrink._rounding import F32
from haversack.shrink._transforms import Pair, fold, pairs_of

ALPHA = 0.5
SMALLEST = 1e-5
FLOOR = 1e-2
"""Learned factors stay at least this far from zero."""


class _Peaks(Hooks):
    """The largest magnitude of every channel that enters some matrices."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.found: dict[str, Tensor] = {}

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        if point.place == "input" and point.name in self.names:
            peaks = tensor.abs().flatten(0, -2).amax(dim=0)
            self.found[point.name] = torch.maximum(peaks, self.found.get(point.name, peaks))
        return tensor


def peaks_of(lesson: Lesson, names: set[str]) -> dict[str, Tensor]:
    """Largest magnitude [columns] of the inputs of the matrices `names`, on what the float blocks before
    give.
    """
    hooks = _Peaks(names)
    with torch.no_grad():
        for index in range(lesson.count):
            lesson.forward(lesson.task.exact.read(index), hooks)
    return hooks.found


class Smoothing:
    """The factors and shifts of a block's pairs, learned; `smoothing(name, tensor)` is a tensor with them."""

    def __init__(self, lesson: Lesson) -> None:
        self.weights = weights = lesson.weights
        self.pairs = pairs_of(lesson.task.record)
        self.factors: dict[str, nn.Parameter] = {}
        self.shifts: dict[str, nn.Parameter] = {}
        self.made_by: dict[str, Pair] = {}
        self.used_by: dict[str, Pair] = {}
        self.bias_of: dict[str, tuple[str, Pair]] = {}
        peaks = peaks_of(lesson, {pair.consumers[0] for pair in self.pairs})
        for pair in self.pairs:
            columns = torch.stack([weights[name].abs().amax(dim=0) for name in pair.consumers]).amax(dim=0)
            top = peaks[pair.consumers[0]].clamp_min(SMALLEST) ** ALPHA
            start = (top / columns.clamp_min(SMALLEST) ** (1 - ALPHA)).clamp_min(FLOOR)
            self.factors[pair.producer] = nn.Parameter(start)
            if pair.shifts:
                self.shifts[pair.producer] = nn.Parameter(torch.zeros_like(start))
            self.made_by[pair.producer] = pair
            if pair.bias is not None:
                self.made_by[pair.bias] = pair
            for name, bias in zip(pair.consumers, pair.biases, strict=True):
                self.used_by[name] = pair
                if bias is not None:
                    self.bias_of[bias] = (name, pair)

    def learned(self) -> list[nn.Parameter]:
        """Factors, then shifts."""
        return [*self.factors.values(), *self.shifts.values()]

    def keep_away_from_zero(self) -> None:
        """Push factors below FLOOR up to it: a factor is divided by, and never changes its sign."""
        with torch.no_grad():
            for each in self.factors.values():
                each.clamp_(min=FLOOR)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """What the tensor `name` becomes: consumers' columns times s and biases plus W t, then the producer's
        rows over s."""
        if name in self.bias_of:
            consumer, pair = self.bias_of[name]
            if pair.producer in self.shifts:
                tensor = tensor + self.weights[consumer] @ self.shifts[pair.producer]
        if name in self.used_by:
            tensor = tensor * self.factors[self.used_by[name].producer]
        if name in self.made_by:
            pair = self.made_by[name]
            factor = self.factors[pair.producer]
            if name == pair.bias:
                shift = self.shifts.get(pair.producer)
                tensor = (tensor if shift is None else tensor - shift) / factor
            elif pair.kind == "norm":
                tensor = (tensor + pair.offset) / factor - pair.offset
            else:
                tensor = tensor / factor[:, None]
        return tensor

    def folded(self) -> dict[str, F32]:
        """Every tensor of the block with factors and shifts in it."""
        tensors = {name: np.array(values.numpy(), np.float32) for name, values in self.weights.items()}
        for pair in self.pairs:
            shift = self.shifts.get(pair.producer)
            fold(
                tensors,
                pair,
                self.factors[pair.producer].detach().numpy(),
                None if shift is None else shift.detach().numpy(),
            )
        return tensors
