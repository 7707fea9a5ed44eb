"""CURA, a reconstruction: a residual gated cell of tens to thousands of numbers, trained without a framework.

Paper: "Size Isn't All You Need - A Compact Universal Architecture for On-Device Intelligence" (arXiv
2509.24601, 2025). No code is public and only the abstract's facts were at hand (MLP-based, residual, gated,
compact, after analog audio circuits). Everything below is a reconstruction in that spirit [inferred]; it is
not the authors' network.
What is here: an input stage h = tanh(x W + b); cells that drive and clip (s = tanh(d (h S + c)), or sin for
periodic targets), gate (a = sigmoid(h G + g)) and mix (h + m a s); a linear output. w units, B cells, d_in
and d_out take w (d_in + 1) + B (2 w^2 + 4 w) + d_out (w + 1) numbers. Tied cells share S, c, G, g and have m
and d of their own. Gradients are written out; several restarts train side by side in one batch of arrays, the
best on held-out rows is kept, and regression is polished by L-BFGS.
What we changed: nothing is known to be changed; the authors' details are unknown.
Cost: 2 B w^2 multiplications a row; 3,000 steps of five restarts on 800 rows take seconds on one core.
Limits: tiny networks depend on their first weights: restarts are part of the method. On targets that a linear
map fits there is no gain, and the bench says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed

SYSTEM = 10

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Arrays = dict[str, Any]
CLIPS = ("tanh", "sin", "relu")
KNOB = (0.1, 8.0)
"""Where the drive d is kept: beyond, tanh saturates."""
SIN_RATE = 5e-3


@dataclass(frozen=True)
class Design:
    """A network: inputs, outputs, units, cells. `gate` and `residual` off are ablations."""

    inputs: int
    outputs: int
    width: int = 8
    blocks: int = 3
    tied: bool = False
    clip: str = "tanh"
    gate: bool = True
    residual: bool = True

    def __post_init__(self) -> None:
        for name, value, most in (("width", self.width, 256), ("blocks", self.blocks, 64)):
            if isinstance(value, bool) or not 1 <= value <= most:
                raise UserError(
                    f"{name}={value} is not supported (allowed 1 to {most}).",
                    field=name,
                    given=value,
                    nearest=min(max(1, int(value)), most),
                )
        if self.clip not in CLIPS:
            raise not_allowed("clip", self.clip, CLIPS)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every learned array by name, in the order of the pass."""
        w, shared = self.width, 1 if self.tied else self.blocks
        gates = {"G": (shared, w, w), "g": (shared, w)} if self.gate else {}
        return {
            "W_in": (self.inputs, w),
            "b_in": (w,),
            "S": (shared, w, w),
            "c": (shared, w),
            **gates,
            "d": (self.blocks, w),
            "m": (self.blocks, w),
            "W_out": (w, self.outputs),
            "b_out": (self.outputs,),
        }

    def count(self) -> int:
        """Learned numbers."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def split(self, flat: Any) -> Arrays:
        """Views of flat parameters [..., count] as arrays [..., *shape]."""
        out, at = {}, 0
        for name, shape in self.shapes().items():
            size = math.prod(shape)
            out[name] = flat[..., at : at + size].reshape(*flat.shape[:-1], *shape)
            at += size
        return out

    def start(self, random: np.random.Generator) -> F64:
        """First parameters, flat."""
        parts = []
        for name, shape in self.shapes().items():
            if name == "d":
                made = np.full(shape, 1.5)
            elif name == "m":
                made = np.full(shape, 0.5)
            elif name == "b_out":
                made = np.zeros(shape)
            elif name in ("b_in", "c", "g"):
                made = 0.5 * random.standard_normal(shape)
            else:
                reach = shape[-2]
                gain = 1.5 if name == "W_in" else 1.0
                made = gain * random.standard_normal(shape) / math.sqrt(reach)
            parts.append(made.ravel())
        return np.concatenate(parts)


def forward(design: Design, p: Arrays, x: Any, keep: list[Any] | None = None) -> Any:
    """Outputs [..., n, outputs] of rows x [n, inputs] (or [..., n, inputs]); `keep` collects what the pass
    back needs."""
    h = np.tanh(x @ p["W_in"] + p["b_in"][..., None, :])
    if keep is not None:
        keep.append(h)
    for block in range(design.blocks):
        cell = 0 if design.tied else block
        u = h @ p["S"][..., cell, :, :] + p["c"][..., None, cell, :]
        z = p["d"][..., None, block, :] * u
        s = np.tanh(z) if design.clip == "tanh" else np.sin(z) if design.clip == "sin" else np.maximum(z, 0)
        if design.gate:
            a = 0.5 + 0.5 * np.tanh(0.5 * (h @ p["G"][..., cell, :, :] + p["g"][..., None, cell, :]))
            out = p["m"][..., None, block, :] * a * s
        else:
            a = None
            out = p["m"][..., None, block, :] * s
        if keep is not None:
            keep.append((h, u, z, s, a))
        h = h + out if design.residual else out
    if keep is not None:
        keep.append(h)
    return h @ p["W_out"] + p["b_out"][..., None, :]


def backward(design: Design, p: Arrays, x: Any, keep: list[Any], slope: Any, out: Arrays) -> None:
    """Write the gradients of every array into `out`, `slope` being the loss's by the outputs."""
    h = keep[-1]
    out["W_out"][...] = np.swapaxes(h, -1, -2) @ slope
    out["b_out"][...] = slope.sum(-2)
    for name in ("S", "c", "G", "g"):
        if name in out:
            out[name][...] = 0
    down = slope @ np.swapaxes(p["W_out"], -1, -2)
    for block in reversed(range(design.blocks)):
        cell = 0 if design.tied else block
        h, u, z, s, a = keep[1 + block]
        mixed = p["m"][..., None, block, :] * down
        gated = s if a is None else a * s
        out["m"][..., block, :] = (down * gated).sum(-2)
        into_s = mixed if a is None else mixed * a
        if design.clip == "tanh":
            into_z = into_s * (1 - s * s)
        elif design.clip == "sin":
            into_z = into_s * np.cos(z)
        else:
            into_z = into_s * (z > 0)
        out["d"][..., block, :] = (into_z * u).sum(-2)
        into_u = into_z * p["d"][..., None, block, :]
        back = np.swapaxes(h, -1, -2)
        out["S"][..., cell, :, :] += back @ into_u
        out["c"][..., cell, :] += into_u.sum(-2)
        below = into_u @ np.swapaxes(p["S"][..., cell, :, :], -1, -2)
        if a is not None:
            into_gate = mixed * s * a * (1 - a)
            out["G"][..., cell, :, :] += back @ into_gate
            out["g"][..., cell, :] += into_gate.sum(-2)
            below += into_gate @ np.swapaxes(p["G"][..., cell, :, :], -1, -2)
        down = down + below if design.residual else below
    first = keep[0]
    into_in = down * (1 - first * first)
    out["W_in"][...] = np.swapaxes(x, -1, -2) @ into_in
    out["b_in"][...] = into_in.sum(-2)


def square_loss(made: Any, wanted: Any) -> tuple[Any, Any]:
    """(mean square error of each restart, its slope)."""
    missed = made - wanted
    size = missed.shape[-1] * missed.shape[-2]
    return (missed**2).sum((-1, -2)) / size, 2 * missed / size


def class_loss(made: Any, wanted: Any) -> tuple[Any, Any]:
    """(mean cross entropy of each restart, its slope); `wanted` are shares of the classes."""
    shifted = made - made.max(-1, keepdims=True)
    shares = np.exp(shifted)
    total = shares.sum(-1, keepdims=True)
    loss = -(wanted * (shifted - np.log(total))).sum((-1, -2)) / made.shape[-2]
    return loss, (shares / total - wanted) / made.shape[-2]


Loss = Callable[[Any, Any], tuple[Any, Any]]


def train(
    design: Design,
    x: F32,
    wanted: F32,
    loss: Loss,
    *,
    steps: int,
    restarts: int,
    rate: float = 1e-2,
    decay: float = 1e-4,
    seed: int = 0,
    tell: Callable[[int], None] | None = None,
) -> F32:
    """AdamW on all rows at once, the rate falling to 0 by a cosine, gradients clipped to norm 1: parameters
    of every restart [restarts, count]."""
    flat = np.stack([design.start(np.random.default_rng([seed, one])) for one in range(restarts)])
    flat = flat.astype(np.float32)
    slopes, mean, power = (np.zeros_like(flat) for _ in range(3))
    p, into = design.split(flat), design.split(slopes)
    rate = min(rate, SIN_RATE) if design.clip == "sin" else rate
    for step in range(1, steps + 1):
        keep: list[Any] = []
        made = forward(design, p, x, keep)
        _, slope = loss(made, wanted)
        backward(design, p, x, keep, slope, into)
        norm = np.sqrt((slopes**2).sum(1, keepdims=True))
        slopes *= np.minimum(1.0, 1.0 / np.maximum(norm, 1e-12))
        mean += 0.1 * (slopes - mean)
        power += 0.001 * (slopes**2 - power)
        now = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        hat = mean / (1 - 0.9**step), power / (1 - 0.999**step)
        flat -= np.float32(now) * (hat[0] / (np.sqrt(hat[1]) + 1e-8) + decay * flat)
        np.clip(p["d"], *KNOB, out=p["d"])
        if tell is not None and step % 50 == 0:
            tell(50)
    return np.asarray(flat, np.float32)


def polish(
    design: Design,
    flat: Any,
    x: Any,
    wanted: Any,
    loss: Loss,
    rounds: int,
    held: Any = None,
    free: F64 | None = None,
) -> F64:
    """L-BFGS from one restart's parameters, in f64; with rows `held` (x, wanted) it keeps the best on them.
    Parameters where `free` is 0 stay as they are."""
    x, wanted = np.asarray(x, np.float64), np.asarray(wanted, np.float64)

    def measured(at: F64) -> tuple[float, F64]:
        slopes = np.zeros_like(at)
        keep: list[Any] = []
        p = design.split(at)
        value, slope = loss(forward(design, p, x, keep), wanted)
        backward(design, p, x, keep, slope, design.split(slopes))
        return float(value), slopes if free is None else slopes * free

    def judged(at: F64) -> float:
        return float(loss(forward(design, design.split(at), held[0]), held[1])[0])

    at = np.asarray(flat, np.float64).copy()
    value, slope = measured(at)
    best, best_at = (judged(at) if held is not None else value), at
    pairs: list[tuple[F64, F64]] = []
    for _ in range(rounds):
        step = _two_loops(slope, pairs)
        lean = float(step @ slope)
        if lean >= 0:
            step, lean, pairs = -slope, -float(slope @ slope), []
        size = 1.0 if pairs else min(1.0, 1.0 / (float(np.abs(slope).sum()) or 1.0))
        for _ in range(25):
            found, turned = measured(at + size * step)
            if found <= value + 1e-4 * size * lean:
                break
            size *= 0.5
        else:
            break
        moved, bent = size * step, turned - slope
        if float(moved @ bent) > 1e-12 * float(bent @ bent):
            pairs = [*pairs[-19:], (moved, bent)]
        gained = value - found
        at, value, slope = at + moved, found, turned
        score = judged(at) if held is not None else value
        if score < best:
            best, best_at = score, at
        if gained <= 1e-9 * abs(value):
            break
    return best_at


def _two_loops(slope: F64, pairs: list[tuple[F64, F64]]) -> F64:
    step, kept = -slope.copy(), []
    for moved, bent in reversed(pairs):
        share = float(moved @ step) / float(moved @ bent)
        kept.append(share)
        step -= share * bent
    if pairs:
        moved, bent = pairs[-1]
        step *= float(moved @ bent) / float(bent @ bent)
    for (moved, bent), share in zip(pairs, reversed(kept), strict=True):
        step += (share - float(bent @ step) / float(moved @ bent)) * moved
    return step


def low_pass(u: F64, k: float) -> F64:
    """An RC filter over the first axis: y_t = (1 - k) y_(t-1) + k u_t, from 0; k = 1 is the identity."""
    out, y = np.empty_like(u, dtype=np.float64), np.zeros(u.shape[1:])
    for at, value in enumerate(u):
        y = (1 - k) * y + k * value
        out[at] = y
    return out
