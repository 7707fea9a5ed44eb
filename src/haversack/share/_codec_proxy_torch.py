"""JPEG that can be differentiated, bits that can be, and the colour pair as a module; the definitions are in
seaotter.py."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from haversack.share.seaotter import (
    AC_BITS,
    SPARE,
    VARIANTS,
    ColourPair,
    Half,
    dct_matrix,
    table_parameters,
)


class Tables(nn.Module):
    """`count` sets of three tables, all entries `start` at first."""

    def __init__(self, count: int, start: float = 8.0) -> None:
        super().__init__()
        p = table_parameters(np.full((count, 3, 8, 8), start))
        self.p = nn.Parameter(torch.tensor(p, dtype=torch.float32))

    def forward(self) -> Tensor:
        """Q [count, 3, 8, 8]."""
        return 128.5 + 127.5 * self.p / (1 + self.p.abs())

    def stored(self) -> NDArray[np.uint8]:
        """u8 [count, 3, 8, 8], as files have them."""
        return self.forward().detach().round().clamp(1, 255).to(torch.uint8).numpy()


def coefficients(planes: Tensor) -> Tensor:
    """Planes [n, 3, h, w] within 0 .. 255, sides multiples of 8 -> [n, 3, h / 8, w / 8, 8, 8]."""
    n, colours, height, width = planes.shape
    cut = (planes - 128).reshape(n, colours, height // 8, 8, width // 8, 8)
    d = torch.tensor(dct_matrix(), dtype=planes.dtype)
    return torch.einsum("ki,ncyixj,lj->ncyxkl", d, cut, d)


def planes_of(found: Tensor) -> Tensor:
    """The inverse of `coefficients`."""
    n, colours, rows, columns = found.shape[:4]
    d = torch.tensor(dct_matrix(), dtype=found.dtype)
    cut = torch.einsum("ki,ncyxkl,lj->ncyixj", d, found, d)
    return cut.reshape(n, colours, rows * 8, columns * 8) + 128


def run_length_bpp(z: Tensor) -> Tensor:
    """Bits a pixel of each picture [n], coefficients z [n, 3, y, x, 8, 8] over the table; not calibrated."""
    flat = z.flatten(4).flatten(2, 3)
    dc, ac = flat[..., 0], flat[..., 1:]
    step = dc - F.pad(dc[..., :-1], (1, 0))
    bits = 1 + torch.log2(1 + step.abs())
    bits = bits + (torch.tanh(ac**2) * (torch.log2(1 + ac.abs()) + AC_BITS)).sum(-1)
    return bits.sum((1, 2)) / (64 * flat.shape[2])


def log_magnitude_bpp(z: Tensor) -> Tensor:
    """Another count: the mean of log2(1 + |c|) over coefficients, times three colours."""
    return torch.log2(1 + z.abs()).mean((1, 2, 3, 4, 5)) * 3


def through_jpeg(planes: Tensor, table: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """(planes as a JPEG under table [3, 8, 8] gives them back, uncalibrated bits a pixel [n])."""
    q = table[:, None, None]
    z = coefficients(planes) / q
    hard = z + torch.rand_like(z) - 0.5 if training else z.round()
    return planes_of(hard * q), run_length_bpp(z if training else hard)


class Colours(nn.Module):
    """A colour pair with gradients. Pictures and planes are within 0 .. 255."""

    forth_weight: nn.Parameter
    forth_bias: nn.Parameter
    forth_sigma: nn.Parameter
    forth_gamma: nn.Parameter
    back_weight: nn.Parameter
    back_bias: nn.Parameter
    back_sigma: nn.Parameter
    back_gamma: nn.Parameter

    def __init__(self, start: ColourPair) -> None:
        super().__init__()
        self.variant = start.variant
        self.side, self.size = VARIANTS[start.variant]
        for name, half in (("forth", start.forward), ("back", start.inverse)):
            for part in ("weight", "bias", "sigma", "gamma"):
                value = torch.tensor(getattr(half, part), dtype=torch.float32)
                self.register_parameter(f"{name}_{part}", nn.Parameter(value))

    def to_planes(self, x: Tensor) -> Tensor:
        u = F.conv2d(x - 128, self.forth_weight, self.forth_bias, padding=self.side // 2)
        if self.size is not None:
            u = self.size * u / (self.forth_sigma.abs()[:, None, None] + 1e-6 + u.abs())
            u = u * self.forth_gamma[:, None, None]
        u = u + torch.rand_like(u) - 0.5 if self.training else u.round()
        return _kept(u + 128)

    def to_pictures(self, planes: Tensor) -> Tensor:
        """Within 0 .. 255; rounded outside of training."""
        z = planes if self.training else planes.round().clamp(0, 255)
        v = z - 128 + (torch.rand_like(z) - 0.5 if self.training else 0)
        if self.size is not None:
            v = v * self.back_gamma[:, None, None]
            v = v.clamp(-self.size, self.size)
            sigma = self.back_sigma.abs()[:, None, None] + 1e-6
            v = sigma * v / (self.size + SPARE - v.abs()).clamp(min=1e-3)
        x = _kept(F.conv2d(v, self.back_weight, self.back_bias, padding=self.side // 2) + 128)
        return x if self.training else x.round()

    def pair(self) -> ColourPair:
        """As files have it."""
        halves = [
            Half(
                *(
                    getattr(self, f"{name}_{part}").detach().numpy().copy()
                    for part in ("weight", "bias", "sigma", "gamma")
                )
            )
            for name in ("forth", "back")
        ]
        return ColourPair(self.variant, halves[0], halves[1])


def _kept(x: Tensor) -> Tensor:
    """Within 0 .. 255; the gradient passes where a step would lead back inside."""
    return x + (x.clamp(0, 255) - x).detach() if x.requires_grad else x.clamp(0, 255)
