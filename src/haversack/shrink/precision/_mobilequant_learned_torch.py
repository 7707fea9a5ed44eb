"""What MobileQuant learns, as PyTorch modules and as hooks between a model and its numbers.

A forward pass is that of models/_blocks_torch.py: a weight is transformed (LET), clipped and rounded (LWC),
an activation is rounded to its static grid (LRL). Rounding passes gradients; what is clipped passes them into
its range alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haversack.core.errors import UserError
from haversack.models._architecture import Attention
from haversack.models._blocks_torch import Hooks, Point
from haversack.models._fake_quant import SCALE_LIMITS, Grid
from haversack.shrink._fake_torch import half_rounded, rounded
from haversack.shrink._rounding import F32
from haversack.shrink._transforms import Pair
from haversack.shrink.precision.mobilequant import CLIP_START, Where, activation_grid

LEAST_SCALE = 1e-2
"""LET's scales are pushed away from zero to this before each step."""


# What is learned


class Transforms(nn.Module):
    """LET: a scale (from 1) and, where biases take it, a shift (from 0) for each pair; for queries and keys
    one scale for each pair of channels that a rotation mixes.
    """

    def __init__(self, pairs: Sequence[Pair], channels: Mapping[str, int]) -> None:
        super().__init__()
        self.pairs = {pair.producer: pair for pair in pairs}
        self.consumers = {name: pair for pair in pairs for name in pair.consumers}
        self.scales = nn.ParameterDict(
            {key(pair.producer): nn.Parameter(torch.ones(channels[pair.producer])) for pair in pairs}
        )
        self.shifts = nn.ParameterDict(
            {
                key(pair.producer): nn.Parameter(torch.zeros(channels[pair.producer]))
                for pair in pairs
                if pair.shifts
            }
        )
        self.turned: dict[str, tuple[str, Attention, bool]] = {}
        self.queries = nn.ParameterDict()

    def tie_queries(self, layer: Attention) -> None:
        """Let `layer`'s queries and keys share a scale, where that is exact: as many keys as queries."""
        if layer.heads != layer.key_value_heads:
            return
        name = key(layer.query.weight)
        count = int(tied_channels(layer).max()) + 1
        self.queries[name] = nn.Parameter(torch.ones(layer.heads, count))
        for linear, divides in ((layer.query, True), (layer.key, False)):
            for tensor in (linear.weight, linear.bias):
                if tensor is not None:
                    self.turned[tensor] = (name, layer, divides)

    def keep_away_from_zero(self) -> None:
        """Push scales below 1e-2 back to it, each to its side."""
        with torch.no_grad():
            for scale in (*self.scales.values(), *self.queries.values()):
                small = scale.abs() < LEAST_SCALE
                scale[small] = torch.where(scale[small] < 0, -LEAST_SCALE, LEAST_SCALE)

    def apply(self, name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        """The tensor `name` with all that folds into it; `tensors` are those before."""
        pair = self.consumers.get(name)
        if pair is not None:
            tensor = tensor * self.scales[key(pair.producer)]
        for pair in self.pairs.values():
            if name in pair.biases and pair.shifts:
                weight = pair.consumers[pair.biases.index(name)]
                tensor = tensor + tensors[weight] @ self.shifts[key(pair.producer)]
        turned = self.turned.get(name)
        if turned is not None:
            parameter, layer, divides = turned
            places = torch.from_numpy(tied_channels(layer))
            scale = self.queries[parameter][:, places].flatten()
            scale = 1 / scale if divides else scale
            tensor = tensor * (scale[:, None] if tensor.ndim == 2 else scale)
        made = self.pairs.get(name)
        if made is not None:
            scale = self.scales[key(name)]
            if made.kind == "norm":
                return (tensor + made.offset) / scale - made.offset
            return tensor / scale[:, None]
        for made in self.pairs.values():
            if made.bias == name:
                if made.shifts:
                    tensor = tensor - self.shifts[key(made.producer)]
                return tensor / self.scales[key(made.producer)]
        return tensor


def tied_channels(layer: Attention) -> NDArray[np.int64]:
    """Which scale each channel of a head has: the two that a rotation mixes share one."""
    places = np.arange(layer.head_width)
    if layer.rope is not None:
        half = layer.rope.width // 2
        turned = places[: 2 * half]
        turned[:] = turned % half if layer.rope.style == "half" else turned // 2
        places[2 * half :] -= half
    return places


class Clipping(nn.Module):
    """LWC: for each row, or each matrix, the shares of its range that are kept: sigmoid of two numbers."""

    def __init__(self, rows: Mapping[str, int], each: Mapping[str, bool], bits: int, symmetric: bool) -> None:
        super().__init__()
        self.each, self.bits, self.symmetric = dict(each), bits, symmetric
        self.ends = nn.ParameterDict(
            {
                key(name): nn.Parameter(torch.full((2, rows[name] if each[name] else 1, 1), CLIP_START))
                for name in each
            }
        )

    def shares(self, name: str) -> Tensor:
        """Of the low and the high end of the range [2, rows or 1, 1]."""
        found: Tensor = self.ends[key(name)].sigmoid()
        return found

    def forward(self, name: str, weight: Tensor, learned: bool = True) -> Tensor:
        """`weight` [rows, columns] as it reads back from its grid."""
        if self.each[name]:
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        else:
            low, high = weight.amin().reshape(1, 1), weight.amax().reshape(1, 1)
        shares = self.shares(name) if learned else (1.0, 1.0)
        low, high = low.clamp(max=0) * shares[0], high.clamp(min=0) * shares[1]
        if self.symmetric:
            top = (1 << (self.bits - 1)) - 1
            scale = (torch.maximum(-low, high) / top).clamp(*SCALE_LIMITS)
            scale = half_rounded(scale) if self.bits == 4 else scale
            return rounded(weight / scale).clamp(-top - 1, top) * scale
        top = (1 << self.bits) - 1
        scale = ((high - low) / top).clamp(*SCALE_LIMITS)
        zero = rounded(-low / scale)
        return ((rounded(weight / scale) + zero).clamp(0, top) - zero) * scale


class Ranges(nn.Module):
    """LRL: of each activation's grid a share added to the calibrated scale, and codes added to its offset."""

    def __init__(self, grids: Mapping[Where, Grid]) -> None:
        super().__init__()
        self.grids = dict(grids)
        self.number = {where: index for index, where in enumerate(grids)}
        self.stretch = nn.Parameter(torch.zeros(len(grids)))
        self.lift = nn.Parameter(torch.zeros(len(grids)))

    def ends(self, where: Where) -> tuple[Tensor, Tensor, int]:
        """Scale, offset and largest code of the grid of `where`."""
        grid, number = self.grids[where], self.number[where]
        scale = (float(grid.scale) * (1 + self.stretch[number])).clamp(*SCALE_LIMITS)
        return scale, float(grid.zero) + grid.high * self.lift[number], grid.high

    def forward(self, where: Where, x: Tensor) -> Tensor:
        """`x` as it reads back from the grid; gradients of what is clipped pass into the range alone."""
        scale, offset, top = self.ends(where)
        return ((rounded(x / scale) + offset).clamp(0, top) - offset) * scale

    def fixed(self) -> dict[Where, Grid]:
        """The grids as learned, offsets whole numbers."""
        found = {}
        with torch.no_grad():
            for where in self.grids:
                scale, offset, top = self.ends(where)
                zero = float(offset.round().clamp(0, top))
                found[where] = Grid(np.asarray(float(scale)), np.asarray(zero), 0, top)
        return found


def key(name: str) -> str:
    """A tensor's name as a parameter's, which has no dots."""
    return name.replace(".", "/")


# Hooks


class Watching(Hooks):
    """Remembers the range of every activation in `wanted` and the largest of each channel of `peaks`."""

    inside = True

    def __init__(self, wanted: Iterable[Where], peaks: Iterable[str] = ()) -> None:
        self.low = dict.fromkeys(wanted, math.inf)
        self.high = dict.fromkeys(self.low, -math.inf)
        self.peaks: dict[str, F32] = {}
        self._peaks = frozenset(peaks)

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        where = Where(*point)
        if where.place == "input" and where.name in self._peaks:
            largest = tensor.detach().abs().flatten(0, -2).amax(0).numpy()
            self.peaks[where.name] = np.maximum(self.peaks.get(where.name, largest), largest)
        if where in self.low:
            seen = tensor.detach().tril() if where.place == "scores" else tensor.detach()
            self.low[where] = min(self.low[where], float(seen.min()))
            self.high[where] = max(self.high[where], float(seen.max()))
        return tensor

    def grids(self, bits: Mapping[Where, int]) -> dict[Where, Grid]:
        """The calibrated grids. Raises UserError naming the first activation that was not finite."""
        for where in bits:
            if not (math.isfinite(self.low[where]) and math.isfinite(self.high[where])):
                raise UserError(
                    f"calibration text gives an {where.place} of {where.name} that is not finite; the model "
                    "cannot be calibrated on it.",
                    field="calibration",
                    given=where.name,
                )
        return {where: activation_grid(self.low[where], self.high[where], bits[where]) for where in bits}


class Transformed(Watching):
    """Watches the float model whose weights are transformed."""

    def __init__(
        self, wanted: Iterable[Where], transforms: Transforms, tensors: Mapping[str, Tensor]
    ) -> None:
        super().__init__(wanted)
        self.transforms, self.tensors = transforms, tensors

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        return self.transforms.apply(name, tensor, self.tensors)


class Rounding(Hooks):
    """Transforms, clips and rounds: what is simulated while it is learned."""

    inside = True

    def __init__(
        self,
        transforms: Transforms,
        clipping: Clipping,
        ranges: Ranges,
        norms: Mapping[str, float],
        tensors: Mapping[str, Tensor],
        clipped: bool,
    ) -> None:
        self.transforms, self.clipping, self.ranges = transforms, clipping, ranges
        self.norms, self.tensors, self.clipped = norms, tensors, clipped

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        tensor = self.transforms.apply(name, tensor, self.tensors)
        if name in self.clipping.each:
            return self.clipping(name, tensor, self.clipped)
        if name in self.norms:
            return rounded_norm(tensor, self.norms[name])
        return tensor

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        where = Where(*point)
        return self.ranges(where, tensor) if where in self.ranges.number else tensor


class Fixed(Hooks):
    """Rounds activations to grids that stay; weights are on theirs already."""

    inside = True

    def __init__(self, grids: Mapping[Where, Grid]) -> None:
        self.grids = grids

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        grid = self.grids.get(Where(*point))
        if grid is None:
            return tensor
        zero, scale = float(grid.zero), float(grid.scale)
        return ((tensor / scale).round() + zero).clamp(0, grid.high).sub(zero).mul(scale)


def rounded_norm(weight: Tensor, offset: float) -> Tensor:
    """A norm's weight, `offset` added, on its asymmetric grid of 16 bits."""
    whole = weight + offset
    low, high = whole.amin().clamp(max=0), whole.amax().clamp(min=0)
    scale = ((high - low) / 65535).clamp(*SCALE_LIMITS)
    zero = rounded(-low / scale)
    return ((rounded(whole / scale) + zero).clamp(0, 65535) - zero) * scale - offset
