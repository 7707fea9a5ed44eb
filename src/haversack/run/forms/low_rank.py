"""Low rank: a matrix as the product of two thin ones, W [rows, columns] = second first.

Paper: Cahyawijaya, "Greenformers" (2021); shrink/structure/low_rank.py finds the factors.
What is here: `first` [rank, columns] meets the input, `second` [rows, rank] the `rank` numbers it gives;
nothing lies between, and a bias belongs to the second. Each is stored in any kind, so both may be quantized;
with int8 activations the numbers between them are quantized again, each row by itself.
Cost: rank (rows + columns) products in place of rows columns, in two calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.kernels import Matrix, matmul, unpack
from haversack.models._architecture import Linear
from haversack.run._forms import F32, Entry, Part, whole
from haversack.run._products import activations_of


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the field `rank` is the width between the two."""
    rows, columns = entry["shape"]
    rank = whole(entry, "rank", 1, min(rows, columns))
    return {"first": Part((rank, columns)), "second": Part((rows, rank))}


def bind(entry: Entry, parts: Mapping[str, Any]) -> LowRank:
    """See Form."""
    return LowRank(parts["first"], parts["second"])


def chain(entry: Entry, linear: Linear) -> tuple[Linear, Linear]:
    """`linear` as two, one after the other: what a graph writes."""
    first = Linear(f"{linear.weight}.first", linear.inputs, int(entry["rank"]))
    return first, Linear(f"{linear.weight}.second", int(entry["rank"]), linear.outputs, linear.bias)


class LowRank:
    """The product of `first` [rank, columns] and `second` [rows, rank]."""

    __slots__ = ("columns", "first", "kind", "nbytes", "rows", "second")

    def __init__(self, first: Matrix, second: Matrix) -> None:
        self.first, self.second = first, second
        self.rows, self.columns, self.kind = second.rows, first.columns, first.kind
        self.nbytes = first.nbytes + second.nbytes

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        inner = matmul(x, self.first, activations=activations_of(self.first, activations))
        kind = activations_of(self.second, activations)
        matmul(inner, self.second, activations=kind, out=out, add=out if add else None, bias=bias)

    def append(self, maker: Any, x: int, out: int, bias: F32 | None, add: bool) -> None:
        """See Bound: two products with a buffer of `rank` numbers between them."""
        inner = maker.buffer("rank", self.first.rows)
        maker.product(x, self.first, inner, None, False)
        maker.product(inner, self.second, out, bias, add)

    def dense(self) -> F32:
        """See Bound."""
        product: F32 = unpack(self.second) @ unpack(self.first)
        return product
