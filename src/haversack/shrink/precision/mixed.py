"""Mixed: GPTQ with the bits of every layer chosen apart.

Paper: none of its own. Bits by layer under a budget of bytes are in Yao et al., "HAWQ-V3" (2021), as an
integer program over second derivatives [recalled]; here the costs are measured losses, and
plan/_sensitivity.py finds `layers`.
What is here: a layer is the matrices of a block that share one input (query, key and value; the output
matrix; gate and up; down), since they share GPTQ's Hessian too. `layers` has a digit for each in order of
use, and a dot between blocks: `4448.3344` gives the last layer of the first block 8 bits. Without `layers`
every one has 8.
Cost: that of GPTQ.
Limits: the bits are right for the model and text that they were measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.shrink._pipeline import Walk
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind
from haversack.shrink._rounding import F32
from haversack.shrink.precision.gptq import Gptq

WIDTHS = (3, 4, 8)


def bits_by_block(layers: str) -> tuple[tuple[int, ...], ...]:
    """`4448.3344` as bits of each layer of each block; none for an empty text. Raises UserError for anything
    else than the digits of WIDTHS and dots."""
    if not layers:
        return ()
    if any(not part for part in layers.split(".")) or set(layers) - {".", *map(str, WIDTHS)}:
        raise UserError(
            f"layers={layers!r} is no list of bits: a digit for each layer (allowed 3, 4, 8), a dot between "
            "blocks, as in 4448.3344.",
            field="layers",
            given=layers,
            nearest="",
        )
    return tuple(tuple(map(int, part)) for part in layers.split("."))


def text_of(bits: tuple[tuple[int, ...], ...]) -> str:
    """What `bits_by_block` reads."""
    return ".".join("".join(map(str, block)) for block in bits)


@dataclass(frozen=True)
class Mixed(Method):
    name = "mixed"
    stage = "shrink"
    slot = "precision"
    paper = "-"
    summary = "GPTQ with 3, 4 or 8 bits for each layer, those that the planner measured to fit a budget best."
    provides = frozenset(
        {"weight-type:int8", "weight-type:int4", "weight-type:int3", "weight-layout:rows16-1"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    layers: str = parameter("", help="bits of each layer, a dot between blocks; empty: 8 bits for all")
    group: int = parameter(
        64, allowed=(32, 64, 128), help="inputs that share a scale at 3 and 4 bits; 8 bits: whole rows"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        bits_by_block(self.layers)

    def by(self, bits: int) -> Gptq:
        """What compresses a layer of `bits` bits."""
        return Gptq(bits=bits, group=self.group)

    def _least(self) -> int:
        return min((bits for block in bits_by_block(self.layers) for bits in block), default=8)

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group of the layers with the fewest bits, which is what matrices outside blocks go by."""
        return self.by(self._least()).stored(rows, columns)

    def noise(self) -> float:
        """The mean of the layers' expected errors."""
        found = [bits for block in bits_by_block(self.layers) for bits in block] or [8]
        return sum(self.by(bits).noise() for bits in found) / len(found)

    def for_walk(self, walk: Walk) -> MixedFor:
        """The method for the model of `walk`. Raises UserError when it has other layers than are named."""
        groups = [walk.products(block) for block in range(walk.blocks)]
        named = bits_by_block(self.layers) or tuple((8,) * len(layers) for layers in groups)
        needed, given = [len(layers) for layers in groups], [len(layers) for layers in named]
        if needed != given:
            raise UserError(
                f"layers={self.layers} names {given} layers by block, and the model has {needed}.",
                field="layers",
                given=self.layers,
                nearest=text_of(tuple((8,) * count for count in needed)),
            )
        pairs = zip(groups, named, strict=True)
        return MixedFor(
            self,
            {
                name: bits
                for layers, widths in pairs
                for names, bits in zip(layers, widths, strict=True)
                for name in names
            },
        )

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Matrices of no model in particular: with the fewest bits that are named."""
        return self.by(self._least()).quantize(weights, inputs)


@dataclass(frozen=True)
class MixedFor:
    """`method` for one model: `bits` by the names of its matrices; fills shrink: precision."""

    method: Mixed
    bits: Mapping[str, int]

    name: ClassVar[str] = Mixed.name
    needs: ClassVar[frozenset[str]] = Mixed.needs

    def stored(self, rows: int, columns: int) -> StoredKind:
        """As of the method."""
        return self.method.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> StoredKind:
        """How the matrix `name` is stored."""
        return self.method.by(self.bits[name]).stored(rows, columns)

    def noise(self) -> float:
        """As of the method."""
        return self.method.noise()

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """The matrices of one layer, which have the same bits."""
        (bits,) = {self.bits[name] for name in weights}
        return self.method.by(bits).quantize(weights, inputs)
