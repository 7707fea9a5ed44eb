"""SmoothQuant: part of what makes activations hard to round is moved into the weights before both are
rounded.

Paper: Xiao, Lin, Seznec, Wu, Demouth and Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization
for Large Language Models" (2023).
What is here: a few channels of activations are tens of times larger than the rest and take the rest's
levels. Channel j behind a norm is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), the norm by s and
the columns of all matrices it feeds multiplied, so that the float model stays the same; then weights are
rounded to nearest and activations are rounded as they come. alpha = 0.5 is the paper's, 0.8 that of the
w8a8 recipe in the llmc toolkit. `pairs=all` smooths wherever it is exact (value to output, up through the
gate to down), as MobileQuant begins.
What we changed: a channel that calibration never saw is left alone (the formula would give it the smallest
scale, and later inputs there would be blown up). The kernels give each token a scale for every 32 inputs
(int8 weights) or every group of inputs (int4), not one for all: an outlier spoils its 31 neighbours instead
of the whole token, and what is left to smooth is less than in the paper.
Cost: one pass of the text through each block; no search.
Limits: for activations of 8 bits only; with float activations it makes weights harder to round and nothing
easier. Blocks whose norms all come after sums have nothing to smooth; their matrices are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from haversack.core.method import Method, parameter
from haversack.shrink._block import BlockView
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import F32
from haversack.shrink._transforms import SMALLEST_SCALE, Pair, column_peaks
from haversack.shrink.precision.round_to_nearest import round_to_nearest

if TYPE_CHECKING:
    from haversack.shrink._pipeline import Walk


def smoothing_scales(inputs: F32, weights: F32, alpha: float) -> F32:
    """s [channels] from the largest magnitudes of inputs and of weights [channels]: the channels are
    divided by it."""
    seen = inputs > 0
    raised = np.where(seen, inputs, 1.0).astype(np.float64) ** alpha
    lowered = np.maximum(weights, SMALLEST_SCALE).astype(np.float64) ** (1 - alpha)
    scales = np.where(seen, np.maximum(raised / lowered, SMALLEST_SCALE), 1.0)
    return scales.astype(np.float32)


@dataclass(frozen=True)
class SmoothQuant(Method):
    name = "smoothquant"
    stage = "shrink"
    slot = "precision"
    paper = (
        "Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language "
        "Models (2023)"
    )
    summary = "Moves outliers of activations into the weights behind norms, then rounds both to nearest."
    system = 16
    provides = frozenset({"weight-type:int8", "weight-type:int4", "weight-layout:rows16-1"})
    excludes = frozenset({"activation-type:f32"})
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: ClassVar[float] = 2.0

    bits: int = parameter(8, allowed=(4, 8), help="bits a weight")
    group: int = parameter(
        64, allowed=(32, 64, 128), help="inputs that share a scale at 4 bits; 8 bits: whole rows"
    )
    alpha: float = parameter(
        0.5, allowed=(0.4, 0.5, 0.6, 0.7, 0.8, 0.85), help="share of the difficulty moved into weights"
    )
    pairs: str = parameter("norms", allowed=("norms", "all"), help="smooth behind norms, or wherever exact")
    scales: str = parameter(
        "leaning", allowed=("largest", "leaning", "searched"), help="how the scale of a group is chosen"
    )

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group in which a matrix [rows, columns] is stored."""
        return StoredKind.of_bits(self.bits, self.group)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square: as of plain rounding."""
        return expected_noise(self.bits, self.group, self.scales)

    def refused(self, walk: Walk) -> dict[str, str]:
        """The matrices of blocks in which nothing can be smoothed."""
        bare = [block for block in range(walk.blocks) if not self._smoothed(walk.pairs(block))]
        names = [name for block in bare for group in walk.products(block) for name in group]
        reason = "no norm before it" if self.pairs == "norms" else "no exact pair before it"
        return dict.fromkeys(names, reason)

    def _smoothed(self, pairs: Sequence[Pair]) -> list[Pair]:
        return [pair for pair in pairs if self.pairs == "all" or pair.kind == "norm"]

    def transform(self, block: BlockView) -> None:
        """Smooth the block's activations, by what the calibration text shows of their channels."""
        pairs = self._smoothed(block.pairs)
        ranges = block.ranges() if pairs else {}
        for pair in pairs:
            peaks = column_peaks(block.tensors, pair.consumers)
            scales = smoothing_scales(ranges[pair.consumers[0]].largest, peaks, self.alpha)
            block.fold(pair, scales)

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Every matrix of `weights` as codes and scales, rounded to nearest."""
        quantized = {}
        for name, weight in weights.items():
            kind = self.stored(*weight.shape)
            codes, scales = round_to_nearest(weight, self.bits, kind.group, self.scales)
            quantized[name] = Quantized(kind, codes, scales)
        return quantized
