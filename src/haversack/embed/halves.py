"""16-bit floats on machines that have none: rounding, packing, a multiply-add that rounds once.

Paper: Nadalini, Rusci, Benini and Conti, "Reduced Precision Floating-Point Optimization for Deep Neural
Network On-Device Learning on MicroControllers" (arXiv 2305.19167, 2023); formats of IEEE 754 (f16) and of
bfloat16 (bf16).
What is here: the numbers of the emitted C in numpy, to the bit. A product of two 16-bit floats is exact in 32
bits; its sum with a third is not, and rounding it twice can miss the nearest 16-bit float. So the error of
the 32-bit sum is taken (two-sum), and a sum that is not exact is moved to its odd neighbour: 24 bits, rounded
to odd, are enough for the second rounding to give what one rounding would (11 bits or fewer are kept).
`dots` is a product of matrices as the device adds it up: in 16 bits, even and odd terms in two lanes that are
added at the end, as pairs in a register give it; or in 32 bits, one term after the other.
What we changed: nothing; the paper's cores have these as instructions.
Cost: about twelve passes of numpy a term in 16 bits, two in 32.
Limits: bf16 products below 2^-126 lose bits, as subnormals of 32 bits do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

SYSTEM = 11

KINDS = ("f32", "f16", "bf16")
LARGEST = {"f32": 3.4028234663852886e38, "f16": 65504.0, "bf16": 3.3895313892515355e38}
ONE = np.float32(1)


def rounded(x: Array, kind: str) -> F32:
    """The nearest numbers of `kind`, halves to the even one, as f32; beyond the largest: infinite."""
    values = np.asarray(x, np.float32)
    if kind == "f32":
        return values
    if kind == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    near = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    found: F32 = np.where(np.isnan(values), values, np.asarray(near).view(np.float32)).astype(np.float32)
    return found


def packed(x: Array, kind: str) -> Array:
    """Numbers of `kind` as they lie in memory: f32, or u16."""
    values = rounded(x, kind)
    if kind == "f32":
        return values
    if kind == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def unpacked(bits: Array, kind: str) -> F32:
    """The numbers that `packed` gave, as f32."""
    if kind == "f32":
        return np.asarray(bits, np.float32)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fused(a: Array, b: Array, c: Array, kind: str) -> F32:
    """a b + c, rounded once to `kind` (f32: the product and the sum, each once)."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        product = a * b
        total = product + c
        if kind == "f32":
            return total
        back = total - product
        rest = (product - (total - back)) + (c - back)
        bits = np.asarray(total, np.float32).view(np.uint32)
        inexact = ((bits & np.uint32(1)) == 0) & ((rest > 0) | (rest < 0))
        outwards = (rest > 0) == (total > 0)
        odd = bits + np.where(outwards, np.uint32(1), np.uint32(0xFFFFFFFF)) * inexact.astype(np.uint32)
        return rounded(np.asarray(odd).view(np.float32), kind)


@dataclass(frozen=True)
class Numbers:
    """What a network learns in: `kind` of what is stored, `sums` "same" (added up in 16 bits, in two lanes)
    or "f32"."""

    kind: str = "f32"
    sums: str = "f32"

    @property
    def narrow(self) -> bool:
        """Whether sums are taken in 16 bits."""
        return self.kind != "f32" and self.sums == "same"

    def round(self, x: Array) -> F32:
        """To what is stored."""
        return rounded(x, self.kind)

    def added(self, x: Array, y: Array) -> F32:
        """A sum as the device takes it between two totals."""
        return self.round(x + y) if self.narrow else np.asarray(x + y, np.float32)

    def dots(self, a: Array, b: Array) -> F32:
        """a [n, k] times b [m, k] transposed: f32 [n, m], terms added in the order of k."""
        first, second = (np.ascontiguousarray(each.T, np.float32) for each in (a, b))
        lanes = np.zeros((2 if self.narrow else 1, len(a), len(b)), np.float32)
        for k in range(len(first)):
            lane = lanes[k % len(lanes)]
            lane[...] = fused(first[k][:, None], second[k], lane, self.kind if self.narrow else "f32")
        return self.added(lanes[0], lanes[1]) if self.narrow else lanes[0]

    def rowwise(self, a: Array, b: Array) -> F32:
        """Sums over k of a [k, ...] b [k, ...], as `dots` adds them: f32 [...]."""
        shape = np.broadcast_shapes(a.shape[1:], b.shape[1:])
        lanes = np.zeros((2 if self.narrow else 1, *shape), np.float32)
        for k in range(len(a)):
            lane = lanes[k % len(lanes)]
            lane[...] = fused(a[k], b[k], lane, self.kind if self.narrow else "f32")
        return self.added(lanes[0], lanes[1]) if self.narrow else lanes[0]
