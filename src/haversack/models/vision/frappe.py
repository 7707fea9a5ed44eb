"""FRAPPE: an image encoder of independent products with patches, and the network that decodes it.

Paper: FRAPPE (arXiv 2605.28992, 2026; its companion library is proprietary and was not read: all of this is
[secondary], from a description of shapes), the sensor side of SEAOTTER (arXiv 2606.03940).
What is here: a latent channel is one strided convolution straight from the whole picture, kernel = stride =
patch, and a companding quantizer: u -> 127 u / (sigma + |u|), times gain, rounded to -127 .. 127. Channels
are sorted coarse to fine, so that the first n are a code of their own. The decoder brings each scale to one
grid (finer ones by space-to-depth, coarser ones repeated), then a 5 x 5 convolution, blocks, and a transposed
convolution of kernel = stride. Block C: depthwise 5 x 5, layer norm, MLP of four times the width with tanh
GELU. Block T: attention in heads of 32 over all positions, two coordinates stacked on, MLP with a depthwise
3 x 3.
Names in a file: `encoders.{s}.weight` [channels, 3, patch, patch], `.bias`, `.sigma`, `.gamma` of scale s;
`merged.{n}.decoder.*` for each n that has a decoder. A published checkpoint repeats its frozen encoders as
`merged.{n}.encoders.{s}.*` and has ps, decoder_ps, decoder_dim, arch and n_trained in config.json; both are
read [inferred: the names behind `.{s}.` and `.decoder.`].
Cost: 3 n multiplications a pixel and 3 n filters of a patch's size; no state, no order.
Limits: no linear-light input; a T block sees the whole picture, so that its pictures are not decoded in
tiles.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.formats.latent_stream import LARGEST, Stream, padded_sides
from haversack.kernels.pixels import patch_products

SYSTEM = 2

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]

PATCHES = (32,) * 4 + (16,) * 3 + (8,) * 3 + (4,) * 3 + (2,) * 3
SIGMA, LEAST_SIGMA = 126.0, 1e-6
HEAD = 32
ARCHES = "CT"


def companded(u: NDArray[Any], sigma: NDArray[Any] | float, size: float = LARGEST) -> NDArray[Any]:
    """size * u / (sigma + |u|)."""
    found: NDArray[Any] = size * u / (np.abs(sigma) + LEAST_SIGMA + np.abs(u))
    return found


def expanded(
    v: NDArray[Any], sigma: NDArray[Any] | float, size: float = LARGEST, spare: float = 0.5
) -> NDArray[Any]:
    """The inverse: sigma * v / (size + spare - |v|), the divisor at least 0.001; exact for spare 0."""
    found: NDArray[Any] = (np.abs(sigma) + LEAST_SIGMA) * v / np.maximum(size + spare - np.abs(v), 1e-3)
    return found


def quantized(v: NDArray[Any]) -> I8:
    """Rounded to -127 .. 127."""
    return np.clip(np.rint(v), -LARGEST, LARGEST).astype(np.int8)


def padded(picture: U8, multiple: int) -> U8:
    """Sides filled up to multiples by the last row and column."""
    height, width = picture.shape[:2]
    high, wide = padded_sides(height, width, multiple)
    if (high, wide) == (height, width):
        return np.ascontiguousarray(picture)
    return np.pad(picture, ((0, high - height), (0, wide - width), (0, 0)), "edge")


@dataclass(frozen=True)
class Scale:
    """The channels of one patch size: weight f32 [c, 3, p, p], bias, sigma and gain f32 [c]."""

    weight: F32
    bias: F32
    sigma: F32
    gamma: F32

    @property
    def patch(self) -> int:
        return self.weight.shape[2]

    def filters(self) -> tuple[F32, F32]:
        """Filters [c, p, 3 p] and biases for bytes, which stand for x = byte / 127.5 - 1."""
        weight = self.weight.astype(np.float64)
        flat = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(len(weight), self.patch, -1)
        bias = self.bias - flat.sum((1, 2))
        return (flat / 127.5).astype(np.float32), bias.astype(np.float32)


class Encoder:
    """Picture -> latents; needs numpy and the kernels, no PyTorch. Scales coarse to fine."""

    def __init__(self, scales: Sequence[Scale]) -> None:
        self.scales = tuple(scales)
        self.patches = tuple(one.patch for one in self.scales for _ in range(len(one.weight)))
        if list(self.patches) != sorted(self.patches, reverse=True) or len(
            {*(one.patch for one in scales)}
        ) != len(self.scales):
            raise UserError("an encoder's scales go from coarse to fine, each once.", field="ps")
        if any(self.patches[0] % patch for patch in self.patches):
            raise UserError("the coarsest patch is a multiple of all others.", field="ps")
        self._filters = [one.filters() for one in self.scales]
        self.id = self._id()

    def _id(self) -> int:
        total = 0
        for one in self.scales:
            for part in (one.weight, one.bias, one.sigma, one.gamma):
                total = zlib.crc32(np.ascontiguousarray(part, "<f4").tobytes(), total)
        return total

    def encode(self, picture: U8, channels: int | None = None) -> Stream:
        """The first `channels` (all by default) of a picture u8 [h, w, 3]. Raises UserError for more than
        there are and for what is no RGB picture."""
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise UserError(
                "a picture is RGB with 8 bits a colour; convert it first.",
                field="picture",
                given=list(picture.shape),
            )
        count = len(self.patches) if channels is None else channels
        if not 1 <= count <= len(self.patches):
            raise not_allowed("channels", count, range(1, len(self.patches) + 1))
        whole = padded(picture, self.patches[0])
        maps, left = [], count
        for scale, (filters, bias) in zip(self.scales, self._filters, strict=True):
            take = min(left, len(filters))
            if take <= 0:
                break
            u = patch_products(whole, np.ascontiguousarray(filters[:take]), np.ascontiguousarray(bias[:take]))
            v = companded(u, scale.sigma[:take, None, None]) * scale.gamma[:take, None, None]
            maps.append(quantized(v))
            left -= take
        return Stream(picture.shape[0], picture.shape[1], self.id, tuple(maps))


def on_grid(maps: Sequence[NDArray[Any]], patches: Sequence[int], grid: int) -> F32:
    """Maps [c, rows, columns] of one picture as f32 [channels, h / grid, w / grid]: finer scales by
    space-to-depth, coarser ones repeated."""
    parts = []
    for one, patch in zip(maps, patches, strict=True):
        values = one.astype(np.float32)
        if patch >= grid:
            times = patch // grid
            parts.append(values.repeat(times, 1).repeat(times, 2))
        else:
            step = grid // patch
            count, rows, columns = values.shape
            cut = values.reshape(count, rows // step, step, columns // step, step)
            parts.append(
                cut.transpose(0, 2, 4, 1, 3).reshape(count * step * step, rows // step, columns // step)
            )
    return np.concatenate(parts)


def grid_channels(patches: Sequence[int], grid: int) -> int:
    """Channels of `on_grid`."""
    return sum(1 if patch >= grid else (grid // patch) ** 2 for patch in patches)


@dataclass(frozen=True)
class DecoderShape:
    """What a decoder's weights do not say themselves: `grid` (decoder_ps), width (decoder_dim), blocks."""

    grid: int = 8
    width: int = 64
    arch: str = "CC"

    def __post_init__(self) -> None:
        bad = [letter for letter in self.arch if letter not in ARCHES]
        if bad or not self.arch or len(self.arch) > 64:
            raise not_allowed("arch", bad[0] if bad else self.arch, tuple(ARCHES))
        if self.grid not in (1, 2, 4, 8, 16, 32) or not 1 <= self.width <= 4096:
            raise not_allowed("decoder_ps", self.grid, (1, 2, 4, 8, 16, 32))
        if "T" in self.arch and self.width % HEAD:
            raise UserError(f"blocks T have heads of {HEAD}; decoder_dim is a multiple.", field="decoder_dim")

    @property
    def margin(self) -> int | None:
        """Grid cells that a pixel depends on at each side; None where it is the whole picture."""
        return None if "T" in self.arch else 2 + 2 * len(self.arch)

    def expected(self, patches: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of a decoder of the channels `patches`."""
        width, grid = self.width, self.grid
        out: dict[str, tuple[int, ...]] = {
            "embed.weight": (width, grid_channels(patches, grid), 5, 5),
            "embed.bias": (width,),
        }
        for at, letter in enumerate(self.arch):
            name = f"blocks.{at}"
            if letter == "C":
                out |= {f"{name}.depth.weight": (width, 1, 5, 5), f"{name}.depth.bias": (width,)}
            else:
                out |= {
                    f"{name}.norm1.weight": (width,),
                    f"{name}.norm1.bias": (width,),
                    f"{name}.qkv.weight": (3 * width, width + 2, 1, 1),
                    f"{name}.qkv.bias": (3 * width,),
                    f"{name}.proj.weight": (width, width, 1, 1),
                    f"{name}.proj.bias": (width,),
                    f"{name}.mix.weight": (4 * width, 1, 3, 3),
                    f"{name}.mix.bias": (4 * width,),
                }
            out |= {
                f"{name}.norm.weight": (width,),
                f"{name}.norm.bias": (width,),
                f"{name}.up.weight": (4 * width, width, 1, 1),
                f"{name}.up.bias": (4 * width,),
                f"{name}.down.weight": (width, 4 * width, 1, 1),
                f"{name}.down.bias": (width,),
            }
        inner = 3 * grid * grid
        out |= {"head.weight": (inner, width, 1, 1), "head.bias": (inner,)}
        return out | {"paint.weight": (inner, 3, grid, grid), "paint.bias": (3,)}


def encoder_of(tensors: Mapping[str, F32]) -> Encoder:
    """The encoder in tensors `encoders.{s}.*`, or in those of the largest `merged.{n}`. Raises UserError for
    what is missing or does not fit."""
    prefix = "encoders."
    if not any(name.startswith(prefix) for name in tensors):
        counts = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("merged.")})
        prefix = f"merged.{counts[-1]}.encoders." if counts else prefix
    numbers = sorted(
        {
            int(part)
            for name in tensors
            if name.startswith(prefix) and (part := name[len(prefix) :].split(".")[0]).isdigit()
        }
    )
    if numbers != list(range(len(numbers))) or not numbers:
        raise UserError(f"the tensors {prefix}0.* and so on are not all there.", field="model")
    scales = []
    for number in numbers:
        own = {part: tensors.get(f"{prefix}{number}.{part}") for part in ("weight", "bias", "sigma", "gamma")}
        weight = own["weight"]
        if weight is None or weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3]:
            raise UserError(f"{prefix}{number}.weight is no [channels, 3, patch, patch].", field="model")
        count = len(weight)
        default = {"bias": 0.0, "sigma": SIGMA, "gamma": 1.0}
        rest = {
            part: np.full(count, value, np.float32)
            if own[part] is None
            else np.asarray(own[part]).reshape(-1)
            for part, value in default.items()
        }
        if any(len(one) != count or not np.isfinite(one).all() for one in rest.values()):
            raise UserError(f"{prefix}{number}.* do not fit one another.", field="model")
        scales.append(Scale(weight, rest["bias"], rest["sigma"], rest["gamma"]))
    return Encoder(scales)
