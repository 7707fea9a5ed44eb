"""Keep: the weights as they are, in 32, 16 or brain-float 16 bits.

Paper: none; it is the plan that every other is compared with.
What is here: matrices rounded to nearest even in the chosen kind, or left alone when they are stored in it.
Cost: one pass over the weights.
Limits: f16 ends at 65,504, and what is larger is refused; bf16 has 8 bits of mantissa.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.shrink._precision import InputStatistics, Kept, StoredKind
from haversack.shrink._rounding import F32

LARGEST_F16 = 65504.0
# Squared relative error of rounding to a mantissa of m bits, evenly spread: (2^-m / 2)^2 / 3 at most.
NOISE = {"f32": 0.0, "f16": 2.0**-24 / 3, "bf16": 2.0**-18 / 3}


@dataclass(frozen=True)
class Keep(Method):
    name = "keep"
    stage = "shrink"
    slot = "precision"
    paper = "-"
    summary = "Weights as they are, in f32, f16 or bf16."
    provides = frozenset({"weight-type:f32", "weight-type:f16", "weight-type:bf16", "weight-layout:rows-1"})
    needs: ClassVar[frozenset[str]] = frozenset()

    kind: str = parameter("f16", allowed=("f16", "f32", "bf16"), help="type of the numbers")

    def stored(self, rows: int, columns: int) -> StoredKind:
        """How a matrix [rows, columns] is stored."""
        return StoredKind(self.kind)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square."""
        return NOISE[self.kind]

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Kept]:
        """The same matrices, to be stored as `kind`. Raises UserError when f16 cannot hold a weight."""
        for name, weight in weights.items():
            if self.kind == "f16" and float(np.abs(weight).max(initial=0.0)) > LARGEST_F16:
                raise UserError(
                    f"{name} has weights beyond 65504, which f16 cannot hold; use keep:kind=bf16 or "
                    "keep:kind=f32.",
                    field="precision",
                    given="keep:kind=f16",
                    nearest="keep:kind=bf16",
                )
        return {name: Kept(StoredKind(self.kind), weight) for name, weight in weights.items()}
