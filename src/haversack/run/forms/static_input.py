"""Static input: a packed matrix whose inputs are rounded to one fixed grid of 8 bits, for all tokens.

shrink/precision/mobilequant.py finds the grids. Here is: `codes`, the matrix in int8 or int4, and `taken`
f32 [rows], what the zero point of the inputs adds to every output, with its sign turned; `scale` and `zero`
(-128 to 127) of the inputs stand in pack.json. With int8-static activations an input x counts as the integer
round(x / scale) + zero, clipped, and sums are of integers; with f32 or int8-dynamic activations the matrix is
multiplied like any other.
Cost: no range is searched while running; 4 bytes a row beside the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.kernels import Matrix, matmul, unpack
from haversack.models._architecture import Linear
from haversack.run._forms import F32, Entry, Part, whole

STATIC = "int8-static"


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the fields are `scale` and `zero`."""
    rows, columns = entry["shape"]
    scale = entry.get("scale")
    if not isinstance(scale, float) or not math.isfinite(scale) or not 1e-30 <= scale < 1e30:
        raise ValueError(f"scale is {str(scale)[:40]}, not a positive number")
    whole(entry, "zero", -128, 127)
    return {"codes": Part((rows, columns), ("int8", "int4")), "taken": Part((rows,), ("f32",))}


def bind(entry: Entry, parts: Mapping[str, Any]) -> StaticInput:
    """See Form."""
    return StaticInput(parts["codes"], parts["taken"], float(entry["scale"]), int(entry["zero"]))


def chain(entry: Entry, linear: Linear) -> tuple[Linear]:
    """`linear` over its codes: what a graph writes; the grids of its numbers stand in encodings.json."""
    return (replace(linear, weight=f"{linear.weight}.codes"),)


class StaticInput:
    """The matrix `codes` [rows, columns] and the grid of its inputs."""

    __slots__ = ("codes", "columns", "kind", "nbytes", "rows", "scale", "taken", "zero")

    def __init__(self, codes: Matrix, taken: F32, scale: float, zero: int) -> None:
        self.codes, self.taken, self.scale, self.zero = codes, taken, scale, zero
        self.rows, self.columns, self.kind = codes.rows, codes.columns, codes.kind
        self.nbytes = codes.nbytes + taken.nbytes

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        to = out if add else None
        if activations == STATIC:
            matmul(
                x,
                self.codes,
                activations=STATIC,
                static_scale=self.scale,
                static_zero=self.zero,
                out=out,
                add=to,
                bias=self._bias(bias),
            )
        else:
            matmul(x, self.codes, activations=activations, out=out, add=to, bias=bias)

    def append(self, maker: Any, x: int, out: int, bias: F32 | None, add: bool) -> None:
        """See Bound: one product."""
        if maker.activations == STATIC:
            maker.program.products(
                x, [self.codes], [out], [self._bias(bias)], add, STATIC, self.scale, self.zero
            )
        else:
            maker.product(x, self.codes, out, bias, add)

    def dense(self) -> F32:
        """See Bound."""
        found: F32 = unpack(self.codes)
        return found

    def _bias(self, bias: F32 | None) -> F32:
        return self.taken if bias is None else self.taken + bias
