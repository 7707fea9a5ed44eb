"""A model on fixed grids: what learning ends in, what a pack holds of it, and its two JSON files.

`act_ranges.json` has, for every module, the smallest and largest level of its input, second operand (input2)
and output; `qconfig.json` their bits and kind. Ranges are the grids: scale and offset follow from them
exactly as in `_fake_quant.affine_grid`. Attention's own products are modules of their own: `qk` (second
operand the keys, output the scores), `softmax` and `pv` (output what the output matrix multiplies); in a
gated layer `act` and `mul` are the activation function and the product with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.models._architecture import Architecture
from haversack.models._fake_quant import Grid
from haversack.shrink._rounding import F32
from haversack.shrink.precision.mobilequant import Where, input_of, parts_of, precision_map

I16 = NDArray[np.int16]


@dataclass(frozen=True)
class OnGrid:
    """A matrix as codes i16 [rows, columns] and the grid they are of: scale and zero [rows, 1] or [1, 1]."""

    codes: I16
    grid: Grid

    @classmethod
    def of(cls, weight: F32, grid: Grid) -> OnGrid:
        return cls(grid.codes(weight).astype(np.int16), grid)

    def dense(self) -> F32:
        """The matrix f32 [rows, columns] that the codes stand for."""
        return np.asarray((self.codes - self.grid.zero) * self.grid.scale, np.float32)

    @property
    def symmetric(self) -> bool:
        return self.grid.low < 0


@dataclass
class QuantizedModel:
    """`tensors` are what is not on a grid (embedding, biases, output matrix) and the rounded norm weights;
    `matrices` those of the blocks; `grids` those of the activations, offsets whole numbers.
    """

    architecture: Architecture
    bits: int
    tensors: dict[str, F32]
    matrices: dict[str, OnGrid]
    grids: dict[Where, Grid]
    notes: dict[str, Any] = field(default_factory=dict)

    def ranges(self) -> dict[str, dict[str, list[float]]]:
        """What act_ranges.json holds."""
        found: dict[str, dict[str, list[float]]] = {}
        for where, (module, side) in modules(self.architecture).items():
            grid = self.grids[where]
            ends = grid.values(np.array([grid.low, grid.high], np.float64))
            found.setdefault(module, {})[side] = [float(end) for end in ends]
        return found

    def config(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What qconfig.json holds."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for where, (module, side) in modules(self.architecture).items():
            bits = bits_of(self.grids[where])
            found.setdefault(module, {})[side] = _described(bits, symmetric=False, per_channel=False)
        for name, matrix in self.matrices.items():
            each = matrix.grid.scale.size > 1
            weight = _described(bits_of(matrix.grid), symmetric=matrix.symmetric, per_channel=each)
            found.setdefault(module_of(name), {})["weight"] = weight
        for block in self.architecture.blocks:
            for norm in parts_of(block).norms:
                weight = _described(16, symmetric=False, per_channel=False)
                found.setdefault(module_of(norm.weight), {})["weight"] = weight
        return found

    def static_input(self, name: str, block: int) -> tuple[float, int]:
        """Scale and zero point (-128 to 127) of what the matrix `name` multiplies."""
        grid = self.grids[input_of(self.architecture.blocks[block])[name]]
        return float(grid.scale), int(grid.zero) - 128


def modules(architecture: Architecture) -> dict[Where, tuple[str, str]]:
    """Activation -> (module, side) under which the JSON files have it."""
    named: dict[Where, tuple[str, str]] = {}
    for block in architecture.blocks:
        parts = parts_of(block)
        output, down = parts.attention.output.weight, parts.feed_forward.down.weight
        attention, layer = (module_of(module_of(name)) for name in (output, down))
        last = "act" if parts.feed_forward.gate is None else "mul"
        named |= {
            Where(output, "key"): (f"{attention}.qk", "input2"),
            Where(output, "scores"): (f"{attention}.qk", "output"),
            Where(output, "shares"): (f"{attention}.softmax", "output"),
            Where(output, "input"): (f"{attention}.pv", "output"),
            Where(down, "activated"): (f"{layer}.act", "output"),
            Where(down, "input"): (f"{layer}.{last}", "output"),
        }
    return {
        where: named.get(where, (module_of(where.name), where.place)) for where in precision_map(architecture)
    }


def module_of(tensor: str) -> str:
    """The module that a tensor belongs to."""
    return tensor.rpartition(".")[0]


def bits_of(grid: Grid) -> int:
    """How many bits the codes of `grid` take."""
    return int(grid.high - grid.low).bit_length()


def _described(bits: int, *, symmetric: bool, per_channel: bool) -> dict[str, Any]:
    return {
        "bitwidth": bits,
        "group_size": None,
        "is_symmetric": symmetric,
        "is_per_channel": per_channel,
        "is_dynamic": False,
    }
