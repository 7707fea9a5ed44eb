"""The block types of GGUF as numbers: exact, in f32, step by step as the ggml project defines them.

Each function takes blocks u8 [n, bytes] and gives f32 [n, numbers]. Blocks of 256 ("k-quants") are eight or
sixteen runs with scales of 4 to 8 bits under one or two scales in f16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.formats._gguf_types import BY_NAME, PLAIN

U8 = NDArray[Any]
F32 = NDArray[np.float32]


def _half(blocks: U8, at: int) -> F32:
    """The f16 at byte `at` of every block, f32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: U8) -> U8:
    """[n, k] -> [n, 2 k]: all low halves, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _high_bits(blocks: U8, at: int) -> U8:
    """The 32 bits at byte `at` of every block, as 0 or 16, u8 [n, 32]."""
    word = np.ascontiguousarray(blocks[:, at : at + 4]).view("<u4")
    return (((word >> np.arange(32, dtype=np.uint32)) & 1) << 4).astype(np.uint8)


def q4_0(blocks: U8) -> F32:
    """(nibble - 8) d."""
    return (_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32) * _half(blocks, 0)


def q4_1(blocks: U8) -> F32:
    """nibble d + m."""
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def q5_0(blocks: U8) -> F32:
    """(nibble + 16 bit - 16) d."""
    raised = _nibbles(blocks[:, 6:]) | _high_bits(blocks, 2)
    return (raised.astype(np.int8) - np.int8(16)).astype(np.float32) * _half(blocks, 0)


def q5_1(blocks: U8) -> F32:
    """(nibble + 16 bit) d + m."""
    raised = _nibbles(blocks[:, 8:]) | _high_bits(blocks, 4)
    return raised.astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def q8_0(blocks: U8) -> F32:
    """byte d."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _pairs(packed: U8, runs: int) -> U8:
    """2-bit numbers u8 [n, 32 a] -> [n, runs, 32]: for each 32 bytes four runs, lowest bits first."""
    n = len(packed)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((packed.reshape(n, -1, 1, 32) >> shifts) & 3).reshape(n, runs, 32)


def q2_k(blocks: U8) -> F32:
    """2 bits a number; every 16 a scale and a minimum of 4 bits."""
    n = len(blocks)
    d, least = _half(blocks, 80), _half(blocks, 82)
    scales = (d * (blocks[:, :16] & 15).astype(np.float32)).reshape(n, 16, 1)
    minima = (least * (blocks[:, :16] >> 4).astype(np.float32)).reshape(n, 16, 1)
    numbers = _pairs(blocks[:, 16:80], 8).reshape(n, 16, 16).astype(np.float32)
    return (scales * numbers - minima).reshape(n, 256)


def q3_k(blocks: U8) -> F32:
    """3 bits a number; every 16 a scale of 6 bits."""
    n = len(blocks)
    packed = blocks[:, 96:108]
    low = _nibbles(packed[:, :8])
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)
    high = ((packed[:, None, 8:] >> shifts) & 3).reshape(n, 16)
    scales = (low | (high << 4)).astype(np.int8) - np.int8(32)
    wide = (_half(blocks, 108) * scales.astype(np.float32)).reshape(n, 16, 1)
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    above = ((blocks[:, None, :32] >> bits) & 1).reshape(n, 16, 16)
    lacking = ((above ^ 1) << 2).astype(np.int8)
    numbers = _pairs(blocks[:, 32:96], 8).reshape(n, 16, 16).astype(np.int8) - lacking
    found: F32 = (wide * numbers.astype(np.float32)).reshape(n, 256)
    return found


def _six_bits(packed: U8) -> tuple[U8, U8]:
    """Scales and minima of Q4_K and Q5_K, 6 bits each in 12 bytes: u8 [n, 8] twice."""
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (last & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (last >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


def _q45_k(blocks: U8, numbers: U8) -> F32:
    scales, minima = _six_bits(blocks[:, 4:16])
    wide = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    least = (_half(blocks, 2) * minima.astype(np.float32))[:, :, None]
    return (wide * numbers.astype(np.float32) - least).reshape(len(blocks), 256)


def _halves(packed: U8) -> U8:
    """4-bit numbers u8 [n, 128] -> [n, 8, 32]: for each 32 bytes the low halves, then the high ones."""
    shifts = np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return ((packed.reshape(len(packed), 4, 1, 32) >> shifts) & 15).reshape(len(packed), 8, 32)


def q4_k(blocks: U8) -> F32:
    """4 bits a number; every 32 a scale and a minimum of 6 bits."""
    return _q45_k(blocks, _halves(blocks[:, 16:]))


def q5_k(blocks: U8) -> F32:
    """5 bits a number; every 32 a scale and a minimum of 6 bits."""
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    above = (blocks[:, None, 16:48] >> bits) & 1
    return _q45_k(blocks, _halves(blocks[:, 48:]) | (above << 4))


def q6_k(blocks: U8) -> F32:
    """6 bits a number; every 16 a scale of 8 bits."""
    n = len(blocks)
    shifts = np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    low = ((blocks[:, :128].reshape(n, 2, 1, 64) >> shifts) & 15).reshape(n, 8, 32)
    high = _pairs(blocks[:, 128:192], 8)
    numbers = (low | (high << 4)).astype(np.int8) - np.int8(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    wide = (_half(blocks, 208) * scales).reshape(n, 16, 1)
    return (wide * numbers.reshape(n, 16, 16).astype(np.float32)).reshape(n, 256)


def q8_k(blocks: U8) -> F32:
    """8 bits a number under one f32; the sums behind them serve products only."""
    scale: F32 = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    found: F32 = blocks[:, 4:260].view(np.int8).astype(np.float32) * scale
    return found


LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the sixteen codes of IQ4 stand for."""


def iq4_nl(blocks: U8) -> F32:
    """A level of sixteen times d."""
    return _half(blocks, 0) * LEVELS[_nibbles(blocks[:, 2:])]


def iq4_xs(blocks: U8) -> F32:
    """A level of sixteen; every 32 a scale of 6 bits."""
    n = len(blocks)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> (2 * np.arange(8, dtype=np.uint16)) & 3
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(n, 8)
    scales = (low | (high.astype(np.uint8) << 4)).astype(np.int8) - np.int8(32)
    wide = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    codes = blocks[:, 8:].reshape(n, 8, 16)
    numbers = LEVELS[np.concatenate([codes & 15, codes >> 4], axis=2)]
    found: F32 = (wide * numbers).reshape(n, 256)
    return found


DEQUANTIZERS: dict[str, Callable[[U8], F32]] = {
    "q4_0": q4_0,
    "q4_1": q4_1,
    "q5_0": q5_0,
    "q5_1": q5_1,
    "q8_0": q8_0,
    "q2_k": q2_k,
    "q3_k": q3_k,
    "q4_k": q4_k,
    "q5_k": q5_k,
    "q6_k": q6_k,
    "q8_k": q8_k,
    "iq4_nl": iq4_nl,
    "iq4_xs": iq4_xs,
}


def dequantize(kind: str, data: Any, shape: Sequence[int]) -> F32:
    """The numbers of `data` as f32 of `shape`. Raises UserError for a type that has no function here."""
    raw: Any = np.frombuffer(data, np.uint8)
    found: F32
    if kind in PLAIN:
        if kind == "bf16":
            found = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            found = raw.view("<f4" if kind == "f32" else "<f2").astype(np.float32)
        return found.reshape(shape)
    if kind not in DEQUANTIZERS:
        known = ", ".join(name.upper() for name in (*PLAIN, *DEQUANTIZERS))
        raise UserError(
            f"weights of type {kind.upper()} are not read (types that are: {known}).",
            field="model",
            given=kind,
        )
    with np.errstate(invalid="ignore", over="ignore"):  # scales that are not finite give what is not finite
        return DEQUANTIZERS[kind](raw.reshape(-1, BY_NAME[kind].nbytes)).reshape(shape)
