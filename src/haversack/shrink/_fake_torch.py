"""Rounding that gradients pass: weights and activations on exactly the grids that the kernels store.

What a forward pass here gives is what a pack gives: codes, scales through f16 and their product are the bits
of shrink/_rounding.py, so that packing what was learned changes nothing. On the way back rounding has the
gradient 1 (straight through; Bengio et al., 2013), clipping the gradient 0 into what was clipped and that of
the outermost code into the scale.

Grids: 3 and 4 bits by group with f16 scales of either sign, 8 bits by row with f32 scales, activations int8
for each token and group of inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.kernels._matrix import INT8_COLUMNS
from haversack.kernels.products import SMALLEST
from haversack.models._blocks_torch import Hooks, Point
from haversack.shrink._precision import Quantized, StoredKind
from haversack.shrink._rounding import F32, levels

CLIP_START = 4.0
"""sigmoid(4.0) = 0.98201, the clipping share that learning starts from."""


class _Round(torch.autograd.Function):
    """Nearest integer, ties to even; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Half(torch.autograd.Function):
    """What f16 keeps; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.half().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def rounded(x: Tensor) -> Tensor:
    """The nearest integers, with the gradient 1."""
    found: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return found


def half_rounded(x: Tensor) -> Tensor:
    """The nearest f16 numbers, with the gradient 1."""
    found: Tensor = _Half.apply(x)  # type: ignore[no-untyped-call]
    return found


def by_group(weight: Tensor, group: int | None) -> Tensor:
    """[rows, columns] as [rows, groups, group], the last group filled up with zeros."""
    rows, columns = weight.shape
    size = group or columns
    padding = -columns % size
    return nn.functional.pad(weight, (0, padding)).reshape(rows, -1, size)


def whole(wide: Tensor, columns: int) -> Tensor:
    """The inverse of `by_group`."""
    return wide.flatten(1)[:, :columns]


def divided(wide: Tensor, scales: Tensor) -> Tensor:
    """`wide` [rows, groups, group] over `scales` [rows, groups]; a zero scale gives zeros."""
    alive = scales != 0
    safe = torch.where(alive, scales, torch.ones_like(scales))
    return wide / safe[..., None] * alive[..., None]


class Scales(nn.Module):
    """Scales [rows, groups] as they are stored: learned numbers times what they start from.

    `given` are factors on the range (or the range itself), `half` says that f16 keeps the product.
    """

    given: Tensor

    def __init__(self, given: F32, half: bool, start: float) -> None:
        super().__init__()
        self.halved = half
        self.register_buffer("given", torch.from_numpy(np.array(given, np.float32)))
        self.learned = nn.Parameter(torch.full(given.shape, start))

    def share(self) -> Tensor:
        """The factors [rows, groups] that were learned."""
        raise NotImplementedError

    def forward(self, span: Tensor | None = None) -> Tensor:
        """`span`: further factors, which follow the weights."""
        scales = self.share() * self.given
        scales = scales if span is None else scales * span
        return half_rounded(scales) if self.halved else scales


class Clipped(Scales):
    """Learned clipping: sigmoid(u), u from 4.0 (OmniQuant's LWC)."""

    def __init__(self, given: F32, half: bool) -> None:
        super().__init__(given, half, CLIP_START)

    def share(self) -> Tensor:
        return self.learned.sigmoid()


class Rescaled(Scales):
    """Learned dequantization scales: 2 sigmoid(u), u from 0 (TesseraQ)."""

    def __init__(self, given: F32, half: bool) -> None:
        super().__init__(given, half, 0.0)

    def share(self) -> Tensor:
        return 2 * self.learned.sigmoid()


def nearest_codes(weight: Tensor, scales: Tensor, bits: int, group: int | None) -> Tensor:
    """Codes [rows, groups, group] nearest to `weight` [rows, columns]."""
    low, high = levels(bits)
    return rounded(divided(by_group(weight, group), scales)).clamp(low, high)


def fake_weight(weight: Tensor, scales: Tensor, bits: int, group: int | None) -> Tensor:
    """`weight` [rows, columns] as it reads back after being stored with `scales` [rows, groups]."""
    codes = nearest_codes(weight, scales, bits, group)
    return whole(codes * scales[..., None], weight.shape[1])


def stored(codes: Tensor, scales: Tensor, kind: StoredKind, columns: int) -> Quantized:
    """What the pack holds of codes [rows, groups, group] and scales [rows, groups]."""
    integers = whole(codes, columns).detach().to(torch.int8).numpy()
    return Quantized(
        kind, np.ascontiguousarray(integers), np.ascontiguousarray(scales.detach().float().numpy())
    )


def fake_activations(x: Tensor, group: int) -> Tensor:
    """x [..., columns] as int8-dynamic products see it: one scale for every token and `group` inputs.

    The scale follows the largest input; gradients pass into x, and through the scale into that input.
    """
    columns = x.shape[-1]
    padding = -columns % group
    wide = nn.functional.pad(x, (0, padding)).unflatten(-1, (-1, group))
    largest = wide.abs().amax(dim=-1, keepdim=True)
    alive = largest >= float(SMALLEST)
    safe = torch.where(alive, largest, torch.ones_like(largest))
    codes = rounded((wide * (127.0 / safe)).clamp(-127, 127))
    return (codes * (safe / 127.0) * alive).flatten(-2)[..., :columns]


class Int8Activations(Hooks):
    """Rounds the input of every packed matrix as int8-dynamic does; products that share an input round it
    once. `groups`: matrix name -> its group (None: whole rows, whose inputs go by 32).
    """

    def __init__(self, groups: dict[str, int | None]) -> None:
        self.groups = groups
        self._last: tuple[Tensor, int, Tensor] | None = None

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        if point.place != "input" or point.name not in self.groups:
            return tensor
        group = self.groups[point.name] or INT8_COLUMNS
        if self._last is None or self._last[0] is not tensor or self._last[1] != group:
            self._last = (tensor, group, fake_activations(tensor, group))
        return self._last[2]

    def forget(self) -> None:
        """Let go of the last input and its graph."""
        self._last = None
