"""Trains the JPEG sandwich for the eye: one colour pair and three sets of tables, and calibrates the bits.

Loss: the sum over the tables of w (log10 MSE + lambda bpp), through the differentiable JPEG. The rate
constant is the mean of real bits over the mean of counted ones, on pictures as the sandwich will meet them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from haversack.formats.tabled_jpeg import scan_nbytes, write_jpeg
from haversack.share._codec_proxy_torch import Colours, Tables, through_jpeg
from haversack.share._codec_train_torch import Say, crops, nothing
from haversack.share.seaotter import plain_pair

U8 = NDArray[np.uint8]
LAMBDAS, WEIGHTS = (0.75, 0.40, 0.22), (0.3, 0.7, 1.5)
CALIBRATION = 16


@dataclass
class Sandwich:
    """What training works on: `alpha` turns counted bits into real ones."""

    colours: Colours
    tables: Tables
    alpha: float = 1.0


def begin(variant: str = "D", count: int = 3, start: float = 8.0) -> Sandwich:
    """JFIF's colours, flat tables."""
    return Sandwich(Colours(plain_pair(variant)), Tables(count, start))


def real_bpp(planes: U8, table: NDArray[np.uint8]) -> float:
    """Bits a pixel of the JPEG's scan; its headers do not grow with the picture and are left out."""
    return float(8 * scan_nbytes(write_jpeg(planes, table, "0" * 16)) / (planes.shape[0] * planes.shape[1]))


@torch.no_grad()
def counted_bpp(sandwich: Sandwich, x: torch.Tensor, at: int, hard: bool = False) -> list[float]:
    """Uncalibrated bits a pixel of pictures x within -1 .. 1, as training counts them, or of rounded
    coefficients."""
    sandwich.colours.eval()
    planes = sandwich.colours.to_planes((x + 1) * 127.5).round()
    table = torch.tensor(sandwich.tables.stored()[at], dtype=torch.float32)
    _, bits = through_jpeg(planes, table, training=not hard)
    return [float(one) for one in bits]


def calibrate(sandwich: Sandwich, x: torch.Tensor) -> float:
    """Sets and returns alpha, from pictures x [n, 3, h, w] within -1 .. 1 and every set of tables."""
    pair, stored = sandwich.colours.pair(), sandwich.tables.stored()
    real, counted = [], []
    for at in range(len(stored)):
        counted += counted_bpp(sandwich, x, at)
        for one in bytes_of(x):
            real.append(real_bpp(pair.to_planes(one), stored[at]))
    sandwich.alpha = float(np.mean(real) / np.mean(counted))
    return sandwich.alpha


def bytes_of(x: torch.Tensor) -> list[U8]:
    """Pictures x within -1 .. 1 as bytes [h, w, 3]."""
    found = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return [np.ascontiguousarray(one.numpy()) for one in found]


def train_sandwich(
    pictures: Sequence[U8],
    steps: int = 300,
    *,
    variant: str = "D",
    batch: int = 4,
    crop: int = 128,
    seed: int = 0,
    say: Say = nothing,
) -> Sandwich:
    """The pair and its tables, for `pictures`; alpha is set anew along the way."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    made = begin(variant)
    calibrate(made, crops(pictures, CALIBRATION, crop, rng))
    optimizer = torch.optim.AdamW(
        [
            {"params": list(made.colours.parameters()), "lr": 2e-3, "weight_decay": 0.0},
            {"params": list(made.tables.parameters()), "lr": 0.25, "weight_decay": 0.0},
        ]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.no_grad():  # sigma and gamma are learned relative to their size
        sizes = {name: float(part.abs().mean()) for name, part in made.colours.named_parameters()}
    for step in range(steps):
        made.colours.train()
        x = (crops(pictures, batch, crop, rng) + 1) * 127.5
        planes = made.colours.to_planes(x)
        loss = x.new_zeros(())
        for k, table in enumerate(made.tables()):
            back, bits = through_jpeg(planes, table, training=True)
            error = ((made.colours.to_pictures(back) - x) ** 2).mean()
            loss = loss + WEIGHTS[k] * (torch.log10(error) + LAMBDAS[k] * made.alpha * bits.mean())
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, part in made.colours.named_parameters():
                if name.endswith("sigma") and part.grad is not None:
                    part.sub_(rates[0] * sizes[name] * part.grad.sign() * _course(step, steps))
                    part.grad = None
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _course(step, steps)
        torch.nn.utils.clip_grad_norm_(made.colours.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            say(f"sandwich, step {step}: loss {loss.item():.3f}")
        if step == steps // 2:
            calibrate(made, crops(pictures, CALIBRATION, crop, rng))
    calibrate(made, crops(pictures, CALIBRATION, crop, rng))
    return made


def _course(step: int, steps: int) -> float:
    """Up over 20 steps, down along a cosine."""
    return min(1.0, (step + 1) / 20) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / max(1, steps))))
