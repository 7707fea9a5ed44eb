"""What MobileQuant costs: bit operations and bytes of what it makes, memory of making it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from haversack.core.errors import not_allowed
from haversack.core.memory import MemoryPlan
from haversack.models._architecture import Architecture
from haversack.shrink._precision import StoredKind
from haversack.shrink.precision.mobilequant import NARROW, WIDE, Where, input_of, parts_of, precision_map

COPIES, PASSES = 8, 8
"""Tensors as large as a weight, and as an activation, that one block's way back holds [measured]."""
PLANNED_TOKENS, PLANNED_LENGTH = 32_768, 512
TORCH_MIB = 300


@dataclass(frozen=True)
class StoredStatic:
    """A matrix in `inner` kind with a number a row beside it; see run/forms/static_input.py."""

    inner: StoredKind

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def group(self) -> int | None:
        return self.inner.group

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix [rows, columns]."""
        return self.inner.nbytes(rows, columns) + 4 * rows


def planned_peak(
    architecture: Architecture, tokens: int = PLANNED_TOKENS, length: int = PLANNED_LENGTH, batch: int = 1
) -> MemoryPlan:
    """What end-to-end learning on `tokens` in texts of `length` holds at most, `batch` texts a step.

    One block at a time is computed again on the way back (activation checkpointing): its weights as they are
    transformed, divided, rounded and put back, and what it does with the texts.
    """
    sizes = [sum(math.prod(shape) for shape in block.tensors().values()) for block in architecture.blocks]
    parts = [parts_of(block) for block in architecture.blocks]
    rows = batch * length
    inner = max(
        sum(linear.outputs for linear in (*part.first, *part.last)) + 2 * part.feed_forward.width
        for part in parts
    )
    scores = max(part.attention.heads for part in parts) * batch * length * length
    top = sum(math.prod(shape) for shape in architecture.top_tensors().values())
    learned = 3 * sum(
        2 * linear.outputs + 2 * linear.inputs for part in parts for linear in (*part.first, *part.last)
    )
    return MemoryPlan(
        (
            ("weights in f32", 4 * (sum(sizes) + top)),
            ("hidden states before and after the blocks", 2 * 4 * tokens * architecture.width),
            ("states between blocks", 4 * rows * architecture.width * (len(sizes) + 1)),
            ("weights of a block on the way back", 4 * COPIES * max(sizes, default=0)),
            ("activations of a block on the way back", 4 * rows * inner * PASSES + 4 * scores * PASSES),
            ("what is learned, and its moments", 4 * learned),
            ("PyTorch", TORCH_MIB << 20),
        )
    )


@dataclass(frozen=True)
class Costs:
    """Of one token that sees `length` others: bit operations (MACs times the bits of both sides) and bytes of
    activations written, in the matrices and in all; the latter with what stays at 16 bits.
    """

    matrix_operations: float
    all_operations: float
    matrix_nbytes: float
    all_nbytes: float


def costs(
    architecture: Architecture,
    weight_bits: int,
    activation_bits: int,
    length: int,
    *,
    full: bool = False,
) -> Costs:
    """What a token costs; `activation_bits` 16 is the baseline in which every activation has 16 bits."""
    bits = precision_map(architecture, full=full)
    if activation_bits not in (NARROW, WIDE):
        raise not_allowed("activation_bits", activation_bits, (NARROW, WIDE))

    def of(where: Where) -> int:
        return WIDE if activation_bits == WIDE else bits.get(where, WIDE)

    matrix = whole = matrix_nbytes = whole_nbytes = 0.0
    for block in architecture.blocks:
        parts = parts_of(block)
        inputs = input_of(block)
        for linear in (*parts.first, *parts.last):
            macs = linear.inputs * linear.outputs
            matrix += macs * weight_bits * of(inputs[linear.weight])
        for where in dict.fromkeys(inputs.values()):
            width = next(one.inputs for one in (*parts.first, *parts.last) if inputs[one.weight] == where)
            matrix_nbytes += width * of(where) / 8
        layer, output = parts.attention, parts.attention.output.weight
        macs = layer.heads * layer.head_width * length
        whole += macs * WIDE * of(Where(output, "key"))  # the rotated query has 16 bits
        whole += macs * of(Where(output, "shares")) * of(Where(layer.value.weight, "output"))
        for norm in parts.norms:
            whole_nbytes += norm.width * of(Where(norm.weight, "input")) / 8
        whole_nbytes += 2 * layer.heads * length * of(Where(output, "scores")) / 8
        for linear in (*parts.first, *parts.last):
            whole_nbytes += linear.outputs * of(Where(linear.weight, "output")) / 8
    return Costs(matrix, matrix + whole, matrix_nbytes, matrix_nbytes + whole_nbytes)
