"""Softmax of 8-bit codes: by a table of floats, or in whole numbers alone.

Source: the fixed-point functions that LiteRT's reference kernel for 8-bit integers is made of, as published
with gemmlowp (exponentials of negative numbers, 1 / (1 + x)); `softmax_fixed` gives that kernel's codes to
the bit. A number of 32 bits with i whole bits stands for itself over 2^(31 - i); products are rounded once,
halves up.
What is here: differences of codes from the largest become exponentials with no whole bit, by the series of
exp around -1/8 within a quarter and by a constant for each higher bit of the difference; their sum has 12
whole bits; its reciprocal comes from the leading zeros of the sum and three of Newton's steps. As a network's
scale is known beforehand, the 256 exponentials are a table: on the device a row costs a sum, three steps and
one product a code. `softmax_codes` is the rule of graphs whose scales are floats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.models.graph._integer import I64, doubling_high, multiplier, shifted_right
from haversack.models.graph._ir import Quantization

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

WHOLE = 5
"""Whole bits of a difference; where it has no room with its scale, its exponential counts as nothing."""
SUM_BITS = 12
"""Whole bits of the sum."""
MOST = (1 << SUM_BITS) - 1
"""Codes of a row: more could leave 32 bits."""
ONE = (1 << 31) - 1
SCALE, ZERO = 1 / 256, -128
"""The codes that the rule in whole numbers gives."""

EXP_EIGHTH, THIRD = 1895147668, 715827883
EXP_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
"""exp(-1/8), 1/3, and exp(-2^n) for n from -2 to 4, without whole bits."""
INVERSE_START, INVERSE_SLOPE = 1515870810, -1010580540
"""48/17 and -32/17 with two whole bits: the line that Newton's steps towards 1/x begin with."""


def exponentials(x: I64) -> I64:
    """exp(x) without whole bits, of x <= 0 with WHOLE ones."""
    quarter = 1 << (29 - WHOLE)
    below = (x & (quarter - 1)) - quarter
    near = (below << WHOLE) + (1 << 28)
    square = doubling_high(near, near)
    cube, fourth = doubling_high(square, near), doubling_high(square, square)
    terms = shifted_right(doubling_high(shifted_right(fourth, 2) + cube, THIRD) + square, 1)
    found = EXP_EIGHTH + doubling_high(near + terms, EXP_EIGHTH)
    rest = below - x
    for place, factor in enumerate(EXP_POWERS):
        found = np.where(rest & (quarter << place), doubling_high(found, factor), found)
    return np.where(x == 0, np.int64(ONE), found)


def fixed_powers(scale: float) -> I64:
    """exp(-scale d) for differences d of codes from 0 to 255, without whole bits; 0 for what has no
    room: beyond -31, or half of it where the scale is just above a power of two."""
    m, shift = multiplier(min(scale * (1 << (31 - WHOLE)), float(ONE)))
    farthest = min(255, math.floor(((1 << WHOLE) - 1) * 2.0 ** (31 - WHOLE - shift)))
    steps = np.arange(256, dtype=np.int64)
    reached = np.minimum(steps, farthest)
    lifted = -reached << shift if shift >= 0 else -reached >> -shift
    return np.where(steps <= farthest, exponentials(doubling_high(lifted, m)), 0)


def reciprocal(total: I64) -> tuple[I64, I64]:
    """(r, bits) with 1 / total = r / 2^31 / 2^bits, of sums with SUM_BITS whole bits."""
    zeros = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    half = (total << zeros) >> 1
    found = INVERSE_START + doubling_high(half, INVERSE_SLOPE)
    for _ in range(3):
        found = found + (doubling_high(found, (1 << 29) - doubling_high(half, found)) << 2)
    return np.minimum(found << 1, ONE), SUM_BITS - zeros


def softmax_fixed(x: Array, scale: float) -> Array:
    """Softmax of i8 codes over the last dimension, in codes of SCALE and ZERO."""
    powers = fixed_powers(scale)[x.max(axis=-1, keepdims=True).astype(np.int64) - x]
    share, bits = reciprocal(shifted_right(powers, SUM_BITS).sum(axis=-1, keepdims=True))
    codes = shifted_right(doubling_high(share, powers), bits + 31 - 8) + ZERO
    return np.clip(codes, -128, 127).astype(np.int8)


def softmax_powers(scale: float) -> F32:
    """exp(-scale d) for differences d of codes from 0 to 255, each rounded once: the C library's own."""
    exponents = np.float32(-scale) * np.arange(256, dtype=np.float32)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def softmax_codes(x: Array, scale: float, y: Quantization) -> Array:
    """Softmax of i8 codes with a table of 256 powers in f32."""
    power = softmax_powers(scale)[x.max(axis=-1, keepdims=True).astype(np.int64) - x]
    total = np.zeros((*x.shape[:-1], 1), np.float32)
    for index in range(x.shape[-1]):
        total += power[..., index : index + 1]
    share = np.float32(1.0) / (total * np.float32(y.scale))
    codes = (power * share + np.float32(0.5)).astype(np.int32) + y.zero
    return np.clip(codes, -128, 127).astype(np.int8)
