"""ZeroQAT's grids: matrices whose range is clipped by what is learned, and inputs rounded as they come.

Paper: ZeroQAT (arXiv 2509.00031, 2025), its quantizer and OmniQuant's learned clipping (zeroqat.py).
Of a row of weights, or of each `group` of its columns, N bits:

    high = max(max w, 0) sigmoid(a),  low = min(min w, 0) sigmoid(b)        (a, b from 3.0: sigmoid 0.953)
    D = (high - low) / (2^N - 1), within 1e-4 to 1e4, as f16 keeps it;  z = round(-low / D)
    code = clamp(round(w / D) + z, 0, 2^N - 1),  w^ = (code - z) D

Ties go to even: 0.5 becomes 0. Ranges hold 0, so that z is a code. Inputs have one range for each token, as
it is, and no f16. 16 bits round nothing. What `rounded` gives is what the plane of `packed` multiplies
(kernels/nested.py), to the bit. Two bits lie four codes a byte, low bits first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels.nested import Plane, pack_base
from haversack.models._fake_quant import Grid, affine_grid, extent

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

OFF = 16
"""Bits from which nothing is rounded."""
STEP_LIMITS = (1e-4, 1e4)
CLIP_START = 3.0
MOST_STORED = 8
"""Bits of a code that a plane holds."""
WIDEST = 4096
"""Columns that a plane's group holds at most; a longer row repeats its scale."""


def sigmoid(x: F32) -> F32:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def group_of(columns: int, group: int | None) -> int:
    """Columns that share a scale. Raises UserError for a group that does not divide the row."""
    if group is None:
        return columns
    if columns % group:
        raise UserError(
            f"group={group} does not divide the {columns} inputs of a matrix; use a group that does, or none "
            "for whole rows.",
            field="group",
            given=group,
        )
    return group


def fresh_clip(rows: int, columns: int, group: int | None) -> F32:
    """(a, b) before anything is learned: f32 [2, rows, groups]."""
    return np.full((2, rows, columns // group_of(columns, group)), CLIP_START, np.float32)


def weight_grid(weight: F32, bits: int, group: int | None, clip: F32) -> Grid:
    """The grid of weight f32 [rows, columns], its arrays [rows, groups, 1]; `clip` is f32 [2, rows,
    groups]."""
    rows, columns = weight.shape
    least, most = extent(weight.reshape(rows, -1, group_of(columns, group)))
    shares = sigmoid(clip)[..., None]
    low, high = least * shares[1], most * shares[0]
    found = affine_grid(low, high, bits, STEP_LIMITS)
    scale = found.scale.astype(np.float16).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, found.high).astype(np.float32)
    return Grid(scale, zero, 0, found.high)


def rounded(weight: F32, bits: int, group: int | None, clip: F32) -> F32:
    """`weight` [rows, columns] as it reads back after being stored; itself from 16 bits on."""
    if bits >= OFF:
        return weight
    grid = weight_grid(weight, bits, group, clip)
    wide = weight.reshape(len(weight), -1, group_of(weight.shape[1], group)) / grid.scale
    np.rint(wide, out=wide)
    wide += grid.zero
    np.clip(wide, grid.low, grid.high, out=wide)
    wide -= grid.zero
    wide *= grid.scale
    return np.asarray(wide.reshape(weight.shape), np.float32)


def codes_of(weight: F32, bits: int, group: int | None, clip: F32) -> tuple[U8, F32, F32]:
    """Codes u8 [rows, columns], D and z f32 [rows, groups]. Raises UserError above MOST_STORED bits."""
    if bits > MOST_STORED:
        raise UserError(
            f"{bits} bits are not stored (packs hold codes of 2 to {MOST_STORED}); use {MOST_STORED}, or "
            f"{OFF} for floats.",
            field="bits",
            given=bits,
            nearest=MOST_STORED,
        )
    grid = weight_grid(weight, bits, group, clip)
    wide = weight.reshape(len(weight), -1, group_of(weight.shape[1], group))
    codes = grid.codes(wide).astype(np.uint8).reshape(weight.shape)
    return codes, grid.scale[..., 0], grid.zero[..., 0]


def packed(weight: F32, bits: int, group: int | None, clip: F32) -> Plane:
    """`weight` as the kernels multiply it: codes, D and z by group."""
    codes, scales, zeros = codes_of(weight, bits, group, clip)
    columns = weight.shape[1]
    wide = group_of(columns, group)
    if wide > WIDEST and group is None:
        wide, count = WIDEST, -(-columns // WIDEST)
        scales, zeros = (np.repeat(each, count, axis=1) for each in (scales, zeros))
    return pack_base(codes, scales, zeros, bits, wide)


def rounded_inputs(x: F32, bits: int) -> F32:
    """x f32 [n, columns] with each row on its own grid; itself from 16 bits on."""
    if bits >= OFF:
        return x
    low, high = extent(x, with_zero=False)
    grid: Any = affine_grid(low, high, bits, STEP_LIMITS)
    found: F32 = x / grid.scale
    np.rint(found, out=found)
    found += grid.zero
    np.clip(found, grid.low, grid.high, out=found)
    found -= grid.zero
    found *= grid.scale
    return found


def checked_bits(name: str, bits: int) -> int:
    """`bits`; UserError outside 2 to 16."""
    if not 2 <= bits <= OFF:
        raise UserError(
            f"{name}={bits} is not supported (allowed 2 to {OFF}, which rounds nothing); use {name}=4.",
            field=name,
            given=bits,
            nearest=min(max(bits, 2), OFF),
        )
    return bits
