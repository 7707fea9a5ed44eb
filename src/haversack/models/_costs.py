"""What products cost in bits: multiplications times the bits of both factors (system 16's bit operations).

Floats count as 16 bits on either side, whatever they are stored in, so that a model of 4-bit weights and float
activations has a quarter of the float model's bit operations in its matrices. Attention's own products, of
queries with keys and of weights with values, are float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from haversack.models._architecture import Architecture, Attention, Linear

FLOAT_BITS = 16
ACTIVATION_BITS = {"f32": FLOAT_BITS, "int8-dynamic": 8, "int8-static": 8}


@dataclass(frozen=True)
class Products:
    """`count` multiplications of a weight of `weight_bits` with an activation of `activation_bits`."""

    count: float
    weight_bits: int
    activation_bits: int

    @property
    def bit_operations(self) -> float:
        """count * weight_bits * activation_bits."""
        return self.count * self.weight_bits * self.activation_bits


def bits_of(kind: str) -> int:
    """Bits of a weight stored as `kind`: those in an integer kind's name, FLOAT_BITS for floats."""
    return int(kind.removeprefix("int")) if kind.startswith("int") else FLOAT_BITS


def matrix_products(stored: Any, rows: int, columns: int, activations: str) -> list[Products]:
    """The products of one input with a matrix [rows, columns].

    `stored` has its `kind`; where it is stored in parts, `products(rows, columns)` says how often these
    multiply, or `bit_products(rows, columns)` gives (multiplications, kind) of each part. A float part takes
    float activations.
    """
    parted = getattr(stored, "bit_products", None)
    counted = getattr(stored, "products", None)
    if parted is not None:
        parts = list(parted(rows, columns))
    else:
        parts = [(rows * columns if counted is None else counted(rows, columns), stored.kind)]
    return [Products(count, *_bits(kind, activations)) for count, kind in parts]


def _bits(kind: str, activations: str) -> tuple[int, int]:
    weight = bits_of(kind)
    return weight, ACTIVATION_BITS[activations] if kind.startswith("int") else FLOAT_BITS


def linear_products(linears: Iterable[Linear], stored: Mapping[str, Any], activations: str) -> list[Products]:
    """The products of one token with the matrices `linears`, stored as `stored` says by name."""
    return [
        products
        for linear in linears
        for products in matrix_products(stored[linear.weight], linear.outputs, linear.inputs, activations)
    ]


def attention_products(attention: Attention, seen: int) -> Products:
    """Queries with `seen` keys and weights with as many values, for one token."""
    counted = seen if attention.window is None else min(seen, attention.window)
    return Products(2.0 * counted * attention.heads * attention.head_width, FLOAT_BITS, FLOAT_BITS)


def token_products(
    architecture: Architecture, stored: Mapping[str, Any], activations: str, seen: int
) -> tuple[list[Products], list[Products]]:
    """The products that one more token of a decoder takes with `seen` tokens in the cache: those of the blocks'
    matrices, and all the others (attention, projections, output matrix).
    """
    blocks = [linear for block in architecture.blocks for linear in block.matrices()]
    inside = {linear.weight for linear in blocks}
    outside = [linear for linear in architecture.matrices() if linear.weight not in inside]
    others = linear_products(outside, stored, activations)
    attentions = (block.attention for block in architecture.blocks)
    others += [attention_products(one, seen) for one in attentions if one is not None]
    return linear_products(blocks, stored, activations), others


def bit_operations(products: Iterable[Products]) -> float:
    """The sum over `products`."""
    return sum(one.bit_operations for one in products)
