"""Bit operations and memory traffic of a model: what a plan costs, counted and not timed.

Paper: Edge-ASR (2025), section on costs, counts bit operations as Baskin et al., "UNIQ" (2018), do.
What is here: a matrix product of r rows with a matrix [outputs, columns] is r * outputs * columns
multiplications, each of weight bits * activation bits; what stays float counts 16 * 16, its usual number on
the devices meant, also where our kernels hold f32. Memory traffic is every weight byte, scales and what is
kept apart included, once for each time the weights are read, and every number that enters or leaves a
product, at its own bits. A decoder reads its weights once a token; an encoder once a window.
Limits: norms, gates, softmax and convolution windows are not counted; a plan of fewer bit operations is
faster only where a kernel or an accelerator has products of so few bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from haversack.models._costs import FLOAT_BITS

SYSTEM = 16


@dataclass(frozen=True)
class Product:
    """`rows` rows of `columns` numbers times a matrix of `outputs` rows, all in one run of the model.

    `reads`: how often its weights come from memory in that run; a product of two activations (attention's
    scores and mixtures) has none: `weight_nbytes` is 0 and the second operand counts as activations.
    `copies`: so many products of that shape, such as one a head; `outputs` may be a mean.
    """

    name: str
    rows: int
    columns: int
    outputs: float
    weight_bits: float = FLOAT_BITS
    activation_bits: float = FLOAT_BITS
    weight_nbytes: int = 0
    reads: int = 1
    copies: int = 1

    @property
    def multiplications(self) -> int:
        """Multiply-accumulates."""
        return round(self.copies * self.rows * self.columns * self.outputs)

    @property
    def bit_operations(self) -> float:
        """Multiplications, each as weight bits times activation bits."""
        return self.multiplications * self.weight_bits * self.activation_bits

    @property
    def traffic_nbytes(self) -> float:
        """Bytes of weights read, activations read and results written (16 bits)."""
        second = 0.0 if self.weight_nbytes else self.columns * self.outputs * self.activation_bits / 8
        read = self.rows * self.columns * self.activation_bits / 8 + second
        moved = read + self.rows * self.outputs * FLOAT_BITS / 8
        return self.weight_nbytes * self.reads + self.copies * moved

    def floating(self) -> Product:
        """The same product of 16-bit weights and activations."""
        weights = round(2 * self.columns * self.outputs) if self.weight_nbytes else 0
        return replace(self, weight_bits=FLOAT_BITS, activation_bits=FLOAT_BITS, weight_nbytes=weights)


@dataclass(frozen=True)
class Cost:
    """The sums over a run's products."""

    multiplications: int
    bit_operations: float
    traffic_nbytes: float

    @classmethod
    def of(cls, products: Iterable[Product]) -> Cost:
        """Add up `products`."""
        listed = list(products)
        return cls(
            sum(one.multiplications for one in listed),
            sum(one.bit_operations for one in listed),
            sum(one.traffic_nbytes for one in listed),
        )


def attention_products(
    name: str, queries: int, keys: int, heads: int, head_width: int, causal: bool = False
) -> tuple[Product, Product]:
    """Scores and mixtures of one attention layer; `causal`: as many queries as keys, and each sees itself and
    what came before, half of all (rounded in the mixtures)."""
    seen = (keys + 1) / 2 if causal else keys
    scores = Product(f"{name}.scores", queries, head_width, seen, copies=heads)
    mixtures = Product(f"{name}.mixtures", queries, round(seen), head_width, copies=heads)
    return scores, mixtures


def ratio_to_float(products: Iterable[Product], cost: str = "bit_operations") -> float:
    """A plan's `bit_operations` or `traffic_nbytes` over those of 16-bit weights and activations."""
    listed = list(products)
    plan, floating = Cost.of(listed), Cost.of(one.floating() for one in listed)
    return float(getattr(plan, cost) / getattr(floating, cost))
