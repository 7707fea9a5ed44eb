"""Bit operations and memory traffic of a model: what a plan costs, counted and not timed.

Paper: Edge-ASR (2025), section on costs, counts bit operations as Baskin et al., "UNIQ" (2018), do.
What is here: a matrix product of r rows with a matrix [outputs, columns] is r * outputs * columns
multiplications, each of weight bits * activation bits; what stays float counts 16 * 16, its usual number on
the devices meant, also where our kernels hold f32, and so do attention's own products. Memory traffic is
every weight byte, scales and what is kept apart included, once for each time the weights are read, and every
number that enters or leaves a product, at its own bits. A decoder reads its weights once a token; an encoder
once a window.
Limits: norms, gates and softmax are not counted; a plan of fewer bit operations is faster only where a kernel
or an accelerator has products of so few bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from haversack.models._architecture import Architecture, Attention, Linear
from haversack.models.audio._record import SpeechArchitecture

SYSTEM = 16
FLOAT_BITS = 16
ACTIVATION_BITS = {"f32": FLOAT_BITS, "int8-dynamic": 8, "int8-static": 8}


@dataclass(frozen=True)
class Part:
    """One of several parts that a matrix is stored in: `weights` multiplications of a row of input, each of
    weight bits by activation bits."""

    weights: float
    weight_bits: float
    activation_bits: float


@dataclass(frozen=True)
class Product:
    """`rows` rows of `columns` numbers times a matrix of `outputs` rows, all in one run of the model.

    `weights`: multiplications of one row, by default columns * outputs; a matrix in parts or one that skips
    rows has another number. `reads`: how often its weights come from memory in that run; a product of two
    activations (attention's scores and mixtures) has none: `weight_nbytes` is 0 and the second operand
    counts as activations. `copies`: so many products of that shape, such as one a head; `outputs` may be a
    mean. `parts`: those of a matrix stored in several, in place of `weights` and both bits; its input is read
    and its result written once, whatever the parts.
    """

    name: str
    rows: float
    columns: float
    outputs: float
    weight_bits: float = FLOAT_BITS
    activation_bits: float = FLOAT_BITS
    weight_nbytes: int = 0
    reads: int = 1
    copies: int = 1
    weights: float | None = None
    parts: tuple[Part, ...] = ()

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """`parts`, or the whole as the only one."""
        weights = self.columns * self.outputs if self.weights is None else self.weights
        return self.parts or (Part(weights, self.weight_bits, self.activation_bits),)

    @property
    def multiplications(self) -> float:
        """Multiply-accumulates."""
        return self.copies * self.rows * sum(part.weights for part in self.all_parts)

    @property
    def bit_operations(self) -> float:
        """Multiplications, each as weight bits times activation bits."""
        one = sum(part.weights * part.weight_bits * part.activation_bits for part in self.all_parts)
        return self.copies * self.rows * one

    @property
    def input_bits(self) -> float:
        """Bits of a number of the input: the mean over the multiplications that it takes part in."""
        total = sum(part.weights for part in self.all_parts)
        return sum(part.weights * part.activation_bits for part in self.all_parts) / total

    @property
    def traffic_nbytes(self) -> float:
        """Bytes of weights read, activations read and results written (16 bits)."""
        bits = self.input_bits
        second = 0.0 if self.weight_nbytes else self.columns * self.outputs * bits / 8
        read = self.rows * self.columns * bits / 8 + second
        moved = read + self.rows * self.outputs * FLOAT_BITS / 8
        return self.weight_nbytes * self.reads + self.copies * moved

    def floating(self) -> Product:
        """The same product of a whole matrix of 16-bit weights and activations."""
        weights = round(2 * self.columns * self.outputs) if self.weight_nbytes else 0
        return replace(
            self,
            weight_bits=FLOAT_BITS,
            activation_bits=FLOAT_BITS,
            weight_nbytes=weights,
            weights=None,
            parts=(),
        )


@dataclass(frozen=True)
class Cost:
    """The sums over a run's products."""

    multiplications: float
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


def ratio_to_float(products: Iterable[Product], cost: str = "bit_operations") -> float:
    """A plan's `bit_operations` or `traffic_nbytes` over those of 16-bit weights and activations."""
    listed = list(products)
    plan, floating = Cost.of(listed), Cost.of(one.floating() for one in listed)
    return float(getattr(plan, cost) / getattr(floating, cost))


# The products of a matrix and of an attention layer.


def bits_of(kind: str) -> int:
    """Bits of a weight stored as `kind`: those in an integer kind's name, FLOAT_BITS for floats."""
    return int(kind.removeprefix("int")) if kind.startswith("int") else FLOAT_BITS


def matrix_product(linear: Linear, stored: Any, activations: str, rows: int = 1, reads: int = 1) -> Product:
    """The product of `rows` inputs with the matrix of `linear`, whose weights are read `reads` times.

    `stored` has `kind` and `nbytes(rows, columns)`; where it is in parts, `products(rows, columns)` says how
    often these multiply, or `bit_products(rows, columns)` gives (multiplications, kind) of each part. A float
    part takes float activations.
    """
    outputs, columns = linear.outputs, linear.inputs
    parted = getattr(stored, "bit_products", None)
    counted = getattr(stored, "products", None)
    if parted is not None:
        counts = list(parted(outputs, columns))
    else:
        counts = [(outputs * columns if counted is None else counted(outputs, columns), stored.kind)]
    parts = tuple(
        Part(count, bits_of(kind), ACTIVATION_BITS[activations] if kind.startswith("int") else FLOAT_BITS)
        for count, kind in counts
    )
    nbytes = stored.nbytes(outputs, columns)
    return Product(linear.weight, rows, columns, outputs, weight_nbytes=nbytes, reads=reads, parts=parts)


def attention_products(
    name: str, queries: int, keys: int, heads: int, head_width: int, causal: bool = False
) -> tuple[Product, Product]:
    """Scores and mixtures of one attention layer; `causal`: as many queries as keys, and each sees itself and
    what came before, half of all.
    """
    seen = (keys + 1) / 2 if causal else keys
    scores = Product(f"{name}.scores", queries, head_width, seen, copies=heads)
    mixtures = Product(f"{name}.mixtures", queries, seen, head_width, copies=heads)
    return scores, mixtures


def _seen(attention: Attention, keys: int) -> int:
    return keys if attention.window is None else min(keys, attention.window)


# The products of a model: those of the blocks' matrices, and all the others.


def token_products(
    architecture: Architecture, stored: Mapping[str, Any], activations: str, seen: int
) -> tuple[list[Product], list[Product]]:
    """The products of one more token of a decoder with `seen` tokens in the cache.

    `stored` says by name how each matrix is stored.
    """
    blocks = [linear for block in architecture.blocks for linear in block.read_by_one()]
    inside = {linear.weight for block in architecture.blocks for linear in block.matrices()}
    outside = [linear for linear in architecture.matrices() if linear.weight not in inside]

    def of(linears: Iterable[Linear]) -> list[Product]:
        return [matrix_product(linear, stored[linear.weight], activations) for linear in linears]

    others = of(outside)
    for block in architecture.blocks:
        layer = block.attention
        if layer is not None:
            name = f"blocks.{block.index}"
            others += attention_products(name, 1, _seen(layer, seen), layer.heads, layer.head_width)
    return of(blocks), others


def window_products(
    speech: SpeechArchitecture, stored: Mapping[str, Any], activations: str, rows: int, tokens: int
) -> tuple[list[Product], list[Product]]:
    """The products of hearing one window of `rows` rows of sound and writing `tokens` tokens.

    Keys and values of the encoder's states are made once; a token sees half of the others on average.
    """
    encoder, decoder = speech.encoder, speech.decoder

    def of(linear: Linear, rows: int, reads: int = 1) -> Product:
        return matrix_product(linear, stored[linear.weight], activations, rows, reads)

    blocks: list[Product] = []
    others: list[Product] = []
    for convolution in encoder.stem:
        rows = convolution.length(rows)
        others.append(of(convolution.matrix, rows))
    for block in encoder.blocks:
        blocks += [of(linear, rows) for linear in block.matrices()]
        layer = block.attention
        if layer is not None:
            seen = _seen(layer, rows)
            others += attention_products(f"encoder.{block.index}", rows, seen, layer.heads, layer.head_width)
    for block in decoder.blocks:
        own, cross, name = block.attention, block.cross_attention, f"decoder.{block.index}"
        once = () if cross is None else (cross.key, cross.value)
        for linear in block.matrices():
            blocks.append(of(linear, rows) if linear in once else of(linear, tokens, tokens))
        if own is not None:
            others += attention_products(name, tokens, tokens, own.heads, own.head_width, causal=True)
        if cross is not None:
            others += attention_products(f"{name}.cross", tokens, rows, cross.heads, cross.head_width)
    return blocks, [*others, of(decoder.head, tokens, tokens)]
