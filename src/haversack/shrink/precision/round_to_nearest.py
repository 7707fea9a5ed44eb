"""Round to nearest: each weight to the nearest level of its group, the baseline of every other method.

Paper: none; the form with one scale for each output is in Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference" (2018), the grouped form in every 4-bit weight
format since.
What is here: 8 bits with one f32 scale an output row; 3 and 4 bits with one f16 scale a group of 32, 64 or
128 inputs, the scale rounded to f16 before the codes are chosen. Symmetric: a code is an integer, zero is
exact.
What may be chosen: `scales=largest` puts the largest magnitude on the largest code (the textbook); `leaning`
uses the lopsided range of codes and signed scales for finer steps at no cost; `searched` tries clipping
shares and both, and keeps for each group what rounds with the least squared error.
Cost: one pass over the weights (22 for `searched`); no calibration data.
Limits: the error of one weight is not made good by another; below 4 bits that is ruinous.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from haversack.core.method import Method, parameter
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import F32, I8, choose_scales, codes_of, group_count, grouped


def round_to_nearest(weight: F32, bits: int, group: int | None, choice: str) -> tuple[I8, F32]:
    """Codes int8 [rows, columns] and scales f32 [rows, groups] of `weight` [rows, columns].

    `group` None gives each row one f32 scale; otherwise scales are exact in f16.
    """
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, group_count(columns, group)), np.float32)
    rows_at_once = max(1, (1 << 20) // columns)  # the search's temporaries stay near 4 MiB each
    for start in range(0, rows, rows_at_once):
        stop = start + rows_at_once
        values = grouped(weight[start:stop], group)
        scales[start:stop] = choose_scales(values, bits, choice, half=group is not None)
        wide = codes_of(values, scales[start:stop, :, None], bits)
        codes[start:stop] = wide.reshape(len(values), -1)[:, :columns]
    return codes, scales


@dataclass(frozen=True)
class RoundToNearest(Method):
    name = "round-to-nearest"
    stage = "shrink"
    slot = "precision"
    paper = "-"
    summary = (
        "Each weight to the nearest level, one scale an output row (8 bits) or a group of inputs (3, 4)."
    )
    provides = frozenset(
        {"weight-type:int8", "weight-type:int4", "weight-type:int3", "weight-layout:rows16-1"}
    )
    needs: ClassVar[frozenset[str]] = frozenset()

    bits: int = parameter(4, allowed=(3, 4, 8), help="bits a weight")
    group: int = parameter(
        64, allowed=(32, 64, 128), help="inputs that share a scale at 3 and 4 bits; 8 bits: whole rows"
    )
    scales: str = parameter(
        "leaning", allowed=("largest", "leaning", "searched"), help="how the scale of a group is chosen"
    )

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group in which a matrix [rows, columns] is stored."""
        return StoredKind.of_bits(self.bits, self.group)

    def noise(self) -> float:
        """Expected squared error over the weights' mean square, for weights near a normal distribution."""
        return expected_noise(self.bits, self.group, self.scales)

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Every matrix of `weights` (they share one input, which is not looked at) as codes and scales."""
        quantized = {}
        for name, weight in weights.items():
            kind = self.stored(*weight.shape)
            codes, scales = round_to_nearest(weight, self.bits, kind.group, self.scales)
            quantized[name] = Quantized(kind, codes, scales)
        return quantized
