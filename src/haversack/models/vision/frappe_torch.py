"""FRAPPE with gradients: one channel's encoder, the decoder's network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from haversack.formats.latent_stream import LARGEST
from haversack.models.vision.frappe import HEAD, LEAST_SIGMA, SIGMA, DecoderShape, grid_channels

NORM_EPS = 1e-6


class Channels(nn.Module):
    """Channels of one patch size. In training the rounding is noise between -1/2 and 1/2."""

    def __init__(self, count: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, 3, patch, patch) / (patch * math.sqrt(3)))
        self.bias = nn.Parameter(torch.zeros(count))
        self.sigma = nn.Parameter(torch.full((count,), SIGMA))
        self.gamma = nn.Parameter(torch.ones(count))

    def values(self, x: Tensor) -> Tensor:
        """Before the rounding, of pictures x [n, 3, h, w] within -1 .. 1."""
        u = F.conv2d(x, self.weight, self.bias, stride=self.weight.shape[2])
        sigma = (self.sigma.abs() + LEAST_SIGMA)[:, None, None]
        return LARGEST * u / (sigma + u.abs()) * self.gamma[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        v = self.values(x)
        if self.training:
            return v + torch.rand_like(v) - 0.5
        return v.round().clamp(-LARGEST, LARGEST)


def laplace_bits(v: Tensor) -> Tensor:
    """Bits that v [n, c, ..] takes under one Laplace distribution a channel, fitted to it: what one more unit
    of scale costs, with gradients."""
    flat = v.transpose(0, 1).flatten(1)
    spread = flat.abs().mean(1, keepdim=True) + 0.05
    density = -(flat.abs() / spread + torch.log(2 * spread)) / math.log(2)
    return F.softplus(-density * 2) / 2  # never below zero, smooth


def on_grid(maps: Sequence[Tensor], patches: Sequence[int], grid: int) -> Tensor:
    """As haversack.models.vision.frappe.on_grid, of batches."""
    parts = []
    for one, patch in zip(maps, patches, strict=True):
        if patch >= grid:
            times = patch // grid
            parts.append(one.repeat_interleave(times, 2).repeat_interleave(times, 3))
        else:
            parts.append(F.pixel_unshuffle(one, grid // patch))
    return torch.cat(parts, 1)


class ConvBlock(nn.Module):
    """Block C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.up, self.down = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.down(F.gelu(self.up(y), approximate="tanh"))


class AttentionBlock(nn.Module):
    """Block T. Coordinates run from -1 to 1 over the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.qkv, self.proj = nn.Conv2d(width + 2, 3 * width, 1), nn.Conv2d(width, width, 1)
        self.up, self.down = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.mix = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)

    def forward(self, x: Tensor) -> Tensor:
        n, width, rows, columns = x.shape
        down = (torch.arange(rows, device=x.device) * 2 + 1) / rows - 1
        right = (torch.arange(columns, device=x.device) * 2 + 1) / columns - 1
        where = torch.stack(torch.meshgrid(down, right, indexing="ij")).expand(n, 2, rows, columns)
        y = self.norm1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        three = self.qkv(torch.cat([y, where], 1)).reshape(n, 3, width // HEAD, HEAD, rows * columns)
        query, key, value = three.transpose(3, 4).unbind(1)
        seen = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(seen.transpose(2, 3).reshape(n, width, rows, columns))
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.down(F.gelu(self.mix(self.up(y)), approximate="tanh"))


class Decoder(nn.Module):
    """Maps of a prefix of channels -> pictures [n, 3, h, w] within -1 .. 1."""

    def __init__(self, patches: Sequence[int], shape: DecoderShape) -> None:
        super().__init__()
        self.patches, self.grid = tuple(dict.fromkeys(patches)), shape.grid
        width, inner = shape.width, 3 * shape.grid**2
        self.embed = nn.Conv2d(
            grid_channels(patches, shape.grid), width, 5, padding=2, padding_mode="reflect"
        )
        self.blocks = nn.ModuleList(
            [ConvBlock(width) if letter == "C" else AttentionBlock(width) for letter in shape.arch]
        )
        self.head = nn.Conv2d(width, inner, 1)
        self.paint = nn.ConvTranspose2d(inner, 3, shape.grid, shape.grid)
        with torch.no_grad():
            self.embed.weight.mul_(0.3)
            self.paint.weight.normal_(0, 1 / math.sqrt(inner))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.embed(on_grid(maps, self.patches, self.grid))
        for block in self.blocks:
            x = block(x)
        return F.hardtanh(self.paint(self.head(x)))
