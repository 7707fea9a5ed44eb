"""Trains a sensor's encoder and its decoders.

Greedily: for k = 1 .. n one channel and a linear decoder of it learn the residual of those before, the
channel seeing the whole picture. Then, encoders frozen, one network decodes the first n together, for each n
that is asked for; each starts from the one before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from haversack.core.errors import UserError
from haversack.formats.latent_stream import LARGEST, table_of
from haversack.models.vision.frappe import PATCHES, DecoderShape, Encoder, Scale
from haversack.models.vision.frappe_torch import Channels, Decoder, laplace_bits, on_grid

U8 = NDArray[np.uint8]
Say = Callable[[str], None]


def nothing(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Plan:
    """How long and on what: `crop` in pixels, `step` the coarseness of codes at first (in units of a filter
    of norm 1 over pixels within -1 .. 1), `bit` what a bit costs in squared error."""

    patches: tuple[int, ...] = PATCHES[:13]
    counts: tuple[int, ...] = (3, 6, 9, 12)
    shape: DecoderShape = field(default_factory=DecoderShape)
    channel_steps: int = 40
    decoder_steps: int = 300
    batch: int = 8
    crop: int = 128
    step: float = 1.2
    bit: float = 0.25
    rate: float = 2e-3
    seed: int = 0


def crops(pictures: Sequence[U8], count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Crops [count, 3, size, size] within -1 .. 1, mirrored at random; a picture is drawn by its area."""
    areas = np.array([one.shape[0] * one.shape[1] for one in pictures], float) ** 0.5
    out = np.empty((count, size, size, 3), np.uint8)
    for at, number in enumerate(rng.choice(len(pictures), count, p=areas / areas.sum())):
        one = pictures[number]
        top, left = (int(rng.integers(side - size + 1)) for side in one.shape[:2])
        cut = one[top : top + size, left : left + size]
        out[at] = cut[:, ::-1] if rng.random() < 0.5 else cut
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def check_pictures(pictures: Sequence[U8], size: int) -> None:
    """Raises UserError for none, and for one that is smaller than a crop."""
    small = [one.shape[:2] for one in pictures if min(one.shape[:2]) < size]
    if not pictures or small:
        what = (
            f"a picture of {small[0][0]} x {small[0][1]} is" if small else "there is no picture, each must be"
        )
        raise UserError(f"{what} smaller than crops of {size} pixels.", field="data", nearest=size)


def train_channels(pictures: Sequence[U8], plan: Plan, say: Say = nothing) -> list[Channels]:
    """The encoder's scales, coarse to fine; deterministic under the seed."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    coarsest = plan.patches[0]
    found: list[Channels] = []
    painters: list[Tensor] = []
    for patch in dict.fromkeys(plan.patches):
        group = Channels(plan.patches.count(patch), patch)
        tiles = crops(pictures, 1024, coarsest, rng)
        rest = tiles - _painted(found, painters, tiles)
        with torch.no_grad():
            flat = F.unfold(rest, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch * patch)
            flat = flat[torch.randperm(len(flat))[:4000]]
            mean = flat.mean(0) if patch < coarsest else torch.zeros(flat.shape[1])
            _, _, direction = torch.svd_lowrank(flat - mean, q=min(12, *flat.shape), niter=3)
            count = len(group.weight)
            start = direction.T[:count].reshape(group.weight.shape)
            group.weight.copy_(start / plan.step)
        painter = nn.Parameter(start * plan.step)
        _refine(group, painter, found, painters, pictures, plan, rng)
        found.append(group.requires_grad_(False).eval())
        painters.append(painter.detach())
        say(f"channels of {patch} x {patch} pixels")
    return found


def _refine(
    group: Channels,
    painter: nn.Parameter,
    found: list[Channels],
    painters: list[Tensor],
    pictures: Sequence[U8],
    plan: Plan,
    rng: np.random.Generator,
) -> None:
    """One channel after the other: what the channels before it left is what it learns."""
    patch = group.weight.shape[2]
    for k in range(len(group.weight)):
        optimizer = torch.optim.Adam(
            [
                {"params": [group.weight, painter], "lr": 0.004},
                {"params": [group.bias, group.sigma, group.gamma], "lr": 0.02},
            ]
        )
        for _ in range(plan.channel_steps):
            tiles = crops(pictures, 64, plan.patches[0], rng)
            v = group(tiles)[:, : k + 1]
            own = F.conv_transpose2d(v, painter[: k + 1], stride=patch)
            error = ((tiles - _painted(found, painters, tiles) - own) ** 2).sum() / len(tiles)
            bits = laplace_bits(v).sum() / len(tiles)
            (error + plan.bit * bits).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():  # channels before k are done, those behind have no gradient yet
                for part in (group.weight, group.bias, group.sigma, group.gamma, painter):
                    if part.grad is not None:
                        part.grad[:k] = 0
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def _painted(found: list[Channels], painters: list[Tensor], tiles: Tensor) -> Tensor:
    total = torch.zeros_like(tiles)
    for group, painter in zip(found, painters, strict=True):
        total += F.conv_transpose2d(group(tiles), painter, stride=group.weight.shape[2])
    return total


def codes_of(channels: Sequence[Channels], x: Tensor, count: int) -> list[Tensor]:
    """Rounded codes of the first `count` channels, one tensor a scale."""
    out: list[Tensor] = []
    left = count
    with torch.no_grad():
        for group in channels:
            if left <= 0:
                break
            v = group.values(x).round().clamp(-LARGEST, LARGEST)
            out.append(v[:, :left])
            left -= v.shape[1]
    return out


def train_decoders(
    channels: Sequence[Channels], pictures: Sequence[U8], plan: Plan, say: Say = nothing
) -> dict[int, Decoder]:
    """One decoder for each of `plan.counts`; MSE, AdamW, the rate falls along a cosine."""
    torch.manual_seed(plan.seed + 1)
    rng = np.random.default_rng(plan.seed + 1)
    made: dict[int, Decoder] = {}
    before: Decoder | None = None
    for count in plan.counts:
        own = plan.patches[:count]
        decoder = Decoder(own, plan.shape)
        _begin(decoder, before, channels, pictures, plan, count, rng)
        steps = plan.decoder_steps if before is None else plan.decoder_steps * 2 // 3
        optimizer = torch.optim.AdamW(decoder.parameters(), plan.rate, weight_decay=1e-4)
        for step in range(steps):
            x = crops(pictures, plan.batch, plan.crop, rng)
            loss = F.mse_loss(decoder(codes_of(channels, x, count)), x)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = (
                    plan.rate
                    * min(1, (step + 1) / 20)
                    * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
                )
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 0 or step == steps - 1:
                say(f"decoder of {count} channels, step {step}: {10 * math.log10(4 / loss.item()):.2f} dB")
        made[count] = decoder.eval()
        before = decoder
    return made


@torch.no_grad()
def _begin(
    decoder: Decoder,
    before: Decoder | None,
    channels: Sequence[Channels],
    pictures: Sequence[U8],
    plan: Plan,
    count: int,
    rng: np.random.Generator,
) -> None:
    """Inputs count alike at first; what the smaller decoder knows is taken over."""
    maps = codes_of(channels, crops(pictures, 16, plan.crop, rng), count)
    grid = on_grid(maps, decoder.patches, decoder.grid)
    spread = grid.std((0, 2, 3)) + 0.1
    decoder.embed.weight.div_(spread[None, :, None, None])
    if before is not None:
        taken = before.embed.weight.shape[1]
        state = copy.deepcopy(before.state_dict())
        weight = decoder.embed.weight * 0.3
        weight[:, :taken] = state.pop("embed.weight")
        decoder.load_state_dict({**state, "embed.weight": weight})


def encoder_of(channels: Sequence[Channels]) -> Encoder:
    """What a sensor carries."""
    return Encoder(
        [
            Scale(*(part.detach().numpy().copy() for part in (one.weight, one.bias, one.sigma, one.gamma)))
            for one in channels
        ]
    )


def coder_tables(encoder: Encoder, pictures: Sequence[U8]) -> NDArray[np.int64]:
    """Counts [channels, 255] over pictures, for the range coder."""
    maps = [encoder.encode(one).maps for one in pictures]
    joined = [
        np.concatenate([each[at].reshape(len(each[at]), -1) for each in maps], 1)
        for at in range(len(maps[0]))
    ]
    return np.stack([table_of(row) for scale in joined for row in scale])
