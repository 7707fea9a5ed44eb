"""Integer tensors of NITI: int8 numbers that share a power of two, and all arithmetic of training on them.

Papers: Wang et al., "NITI: Training Integer Neural Networks Using Integer-Only Arithmetic" (arXiv 2009.13108,
2020) for the representation, its rounding and the error at the output; Sugiura and Matsutani, "ElasticZO"
(arXiv 2501.04287, 2025) for cross-entropy in integers, whose details here are inferred.
What is here: a tensor is mantissas m int8 in -127..127 times 2^e, one e a tensor. Products accumulate to
int32 and come back to eight bits: with b bits in the largest sum, b - 7 are dropped by pseudo-stochastic
rounding: the dropped bits' upper half is compared with their lower half, and the number is rounded up (away
from 0) where it is larger; no random numbers. With four bits dropped the mean error is -3/32 of a step. Of an
odd count the upper half is the larger one.
Cross-entropy: 2^x instead of e^x, by 47274 / 2^15 = log2(e). p_i = floor(47274 m_i 2^(e - 15)), kept with
FRACTION further bits (0 is the paper's); 2^(p_i - p_max) is a table's entry shifted right; log2 of their sum
is the place of its leading bit and a line between seventeen table entries.
numpy multiplies floats: an exact product is taken in f32 where no sum can pass 2^24, else in f64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError

I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

LARGEST = 127
LOG2_E = 47274  # / 2^15
F = 15
"""Fraction bits of powers, logarithms and losses."""
FRACTION = 5
EXPONENTS = range(-64, 21)
"""Exponents of logits whose powers stay within 32 bits."""
LOG2 = (
    *(0, 2866, 5568, 8124, 10549, 12855, 15055, 17156),
    *(19168, 21098, 22952, 24736, 26455, 28114, 29717, 31267, 32768),
)
"""2^15 log2(1 + k / 16), k = 0..16."""
PIECE = 1 << 15


@dataclass(frozen=True)
class Integers:
    """`mantissas` times 2^`exponent`."""

    mantissas: I8
    exponent: int

    @property
    def values(self) -> NDArray[np.float32]:
        """As floats, for people and tests."""
        return np.ldexp(self.mantissas.astype(np.float32), self.exponent)


def require_integers(array: NDArray[Any], what: str) -> None:
    """Raises UserError for a tensor that is not int8."""
    if array.dtype != np.int8:
        raise UserError(
            f"{what} is {array.dtype}; the integer path takes int8 and nothing else.",
            field=what,
            given=str(array.dtype),
            nearest="int8",
        )


def quantized(values: NDArray[Any]) -> Integers:
    """Floats, once, as integers: the smallest exponent that holds the largest of them; round half to even."""
    largest = float(np.abs(values).max(initial=0.0))
    exponent = int(np.ceil(np.log2(largest / LARGEST))) if largest else 0
    mantissas = np.clip(np.rint(np.ldexp(values.astype(np.float64), -exponent)), -LARGEST, LARGEST)
    return Integers(mantissas.astype(np.int8), exponent)


def largest_of(numbers: I32) -> int:
    """The largest magnitude."""
    return max(int(numbers.max(initial=0)), -int(numbers.min(initial=0)))


def pseudo_rounded(numbers: I32, dropped: int) -> I32:
    """numbers / 2^dropped, rounded as the file's head says; signs apart, so that it is symmetric."""
    if dropped <= 0:
        return numbers
    low = dropped // 2
    size = np.abs(numbers)
    rest = size & np.int32((1 << dropped) - 1)
    threshold = (rest & np.int32((1 << low) - 1)) << np.int32(dropped - 2 * low)
    size >>= np.int32(dropped)
    size += (rest >> np.int32(low)) > threshold
    return np.where(numbers < 0, -size, size)


def renormalized(sums: I32, out: I8, bits: int = 7) -> int:
    """Bring `sums` to `bits` bits of magnitude in `out`; how many bits were dropped."""
    dropped = max(0, largest_of(sums).bit_length() - bits)
    most = (1 << bits) - 1
    flat, goal = sums.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, PIECE):
        part = pseudo_rounded(flat[start : start + PIECE], dropped)
        goal[start : start + PIECE] = np.clip(part, -most, most)
    return dropped


def product_type(length: int) -> Any:
    """f32 or f64: in which a sum of `length` products of int8 numbers is exact."""
    return np.float32 if length * LARGEST * LARGEST <= 1 << 24 else np.float64


def powers(logits: Integers, fraction: int = FRACTION) -> tuple[I64, I64]:
    """Of logits [n, classes]: p [n, classes] in units of 2^-fraction and 2^(p - p_max) in units of 2^-F.

    Raises UserError for an exponent that would overflow 32 bits.
    """
    require_integers(logits.mantissas, "logits")
    if logits.exponent not in EXPONENTS:
        raise UserError(
            f"the logits' exponent {logits.exponent} overflows 32 bits (allowed {EXPONENTS[0]} to "
            f"{EXPONENTS[-1]}); begin with smaller weights.",
            field="logits",
            given=logits.exponent,
            nearest=EXPONENTS[-1],
        )
    p = logits.mantissas.astype(np.int64) * LOG2_E
    shift = F - logits.exponent - fraction
    p = p >> min(shift, 40) if shift >= 0 else p << -shift
    below = p.max(axis=1, keepdims=True) - p
    steps = 1 << fraction
    table = np.array([round(2.0 ** (F - k / steps)) for k in range(steps)], np.int64)
    return p, table[below & (steps - 1)] >> np.minimum(below >> fraction, F + 1)


def log2_fixed(numbers: I64) -> I64:
    """2^F log2 of whole numbers above 0."""
    place = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1  # the leading bit; clz in C
    rest = np.where(place > F, numbers >> np.maximum(place - F, 0), numbers << np.maximum(F - place, 0))
    rest -= 1 << F
    table = np.array(LOG2, np.int64)
    at, inside = rest >> (F - 4), rest & ((1 << (F - 4)) - 1)
    return (place << F) + table[at] + (((table[at + 1] - table[at]) * inside) >> (F - 4))


def loss_bits(logits: Integers, labels: I64, fraction: int = FRACTION) -> int:
    """The sum over rows of the cross-entropy, in units of 2^-F bits.

    Raises UserError for labels out of range.
    """
    rows, classes = logits.mantissas.shape
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        bad = int(labels.max()) if labels.max() >= classes else int(labels.min())
        raise UserError(
            f"label {bad} is outside 0..{classes - 1}.", field="labels", given=bad, nearest=classes - 1
        )
    p, shares = powers(logits, fraction)
    below = (p.max(axis=1) - p[np.arange(rows), labels]) << (F - fraction)
    return int((log2_fixed(shares.sum(axis=1)) - (F << F) + below).sum())


def sign_of(plus: int, minus: int) -> int:
    """-1, 0 or 1: which way the loss rises; both in the same units, whatever the logits' exponents were."""
    return (plus > minus) - (plus < minus)


def logit_error(logits: Integers, labels: I64, out: I8) -> None:
    """127 (softmax - one-hot) [n, classes] in `out`, to the nearest."""
    _, shares = powers(logits)
    total = shares.sum(axis=1, keepdims=True)
    found = (2 * LARGEST * shares + total) // (2 * total)
    found[np.arange(len(labels)), labels] -= LARGEST
    out[...] = found
