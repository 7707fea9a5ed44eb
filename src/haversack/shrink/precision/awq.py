"""AWQ: channels that carry large activations get finer steps, by a scale that is searched for.

Paper: Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han, "AWQ: Activation-aware Weight Quantization
for On-Device LLM Compression and Acceleration" (2024).
What is here: the columns of the matrices behind a norm (behind values, behind the gate) are multiplied by s
before rounding and their inputs divided, which changes nothing but the rounding. s_j = max(mean|X_j|^r,
1e-4), divided by sqrt(max s * min s); r = 0, 1/20 .. 19/20 is searched for by the squared error of the
module that the matrices belong to (attention, feed-forward; for single matrices their product), measured on
pieces of the calibration text. `version=1` divides by the mean normalised weight magnitude^(1 - r), as the
first version did. Then every group's range is clipped: shares 1 - i/20, i < 10, of the largest value are
tried, and the one with the least squared error of the group's part of the product on at most 512 inputs is
kept.
What we changed: the module's error is measured on `tokens` tokens (means over channels are of all text), so
that a large model is searched within minutes. Scales are signed and lean to the longer side of a group (see
shrink/_rounding.py), where the paper stores a zero for each group; a clipping share is tried on either side.
Cost: one pass of the text through each block, 20 passes of `tokens` tokens through each of its modules, and
rows * columns * group * 20 operations a matrix for the clipping.
Limits: a channel is scaled as one; errors are not made good by other weights, as GPTQ's are. In a block
without pairs only the clipping is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from haversack.core.method import Method, parameter
from haversack.shrink._block import BlockView
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import (
    F32,
    I8,
    codes_of,
    group_count,
    grouped,
    leaning_scales,
    restored,
    storable,
    symmetric_scales,
)
from haversack.shrink._transforms import Pair
from haversack.shrink.precision.round_to_nearest import round_to_nearest

if TYPE_CHECKING:
    from haversack.shrink._pipeline import Walk

RATIOS = tuple(i / 20 for i in range(20))
CLIPS = tuple(1.0 - i / 20 for i in range(10))
SMALLEST = 1e-4
ROWS = 256  # rows rounded at once


def channel_scales(magnitude: F32, ratio: float, weight_share: F32 | None = None) -> F32:
    """s [channels] of the mean magnitudes [channels] of inputs; `weight_share` [channels] is that of version
    1."""
    scales = np.maximum(magnitude.astype(np.float64) ** ratio, SMALLEST)
    if weight_share is not None:
        scales = np.maximum(scales / np.maximum(weight_share, SMALLEST) ** (1 - ratio), SMALLEST)
    return (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)


def weight_share(weights: Sequence[F32], group: int | None) -> F32:
    """Version 1: the mean over rows [channels] of |w| over the largest |w| of its group."""
    total = np.zeros(weights[0].shape[1])
    for weight in weights:
        values = np.abs(grouped(weight, group))
        largest = values.max(axis=-1, keepdims=True)
        shares = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
        total += shares.reshape(len(weight), -1)[:, : weight.shape[1]].sum(axis=0, dtype=np.float64)
    return (total / sum(map(len, weights))).astype(np.float32)


def searched_scales(
    magnitude: F32, error_of: Callable[[F32], float], share: F32 | None = None
) -> tuple[F32, float]:
    """The scales of RATIOS with the least `error_of`(scales), and their ratio; of equals the smaller
    ratio."""
    found = []
    for ratio in RATIOS:
        scales = channel_scales(magnitude, ratio, share)
        found.append((error_of(scales), ratio, scales))
    _, ratio, scales = min(found, key=lambda one: one[:2])
    return scales, ratio


def rounded(weight: F32, bits: int, group: int | None, choice: str, scales: F32 | None = None) -> F32:
    """`weight` [rows, columns] as it reads back after rounding; with `scales` [columns] rounded as weight *
    scales, and divided again."""
    found = np.empty_like(weight)
    for start in range(0, len(weight), ROWS):
        part = weight[start : start + ROWS]
        part = part if scales is None else part * scales
        back = restored(*round_to_nearest(part, bits, group, choice), group)
        found[start : start + ROWS] = back if scales is None else back / scales
    return found


def clip_candidates(values: F32, bits: int, choice: str, half: bool) -> Iterator[F32]:
    """The scales [...] of groups `values` [..., group] at every share of CLIPS, the full range first."""
    for share in CLIPS:
        if choice == "largest":
            yield storable(symmetric_scales(values, bits, half=False) * np.float32(share), half)
        else:
            leaning = leaning_scales(values, bits, half=half, share=share)
            yield leaning
            yield -leaning


def clipped(weight: F32, inputs: F32, bits: int, group: int | None, choice: str) -> tuple[I8, F32]:
    """Codes int8 [rows, columns] and scales f32 [rows, groups]: each group clipped where its part of the
    product with `inputs` f32 [tokens, columns] has the least squared error."""
    rows, columns = weight.shape
    width = group or columns
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, group_count(columns, group)), np.float32)
    for number in range(scales.shape[1]):
        part = slice(number * width, min((number + 1) * width, columns))
        x = inputs[:, part]
        root: F32 = np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x  # type: ignore[assignment]
        for start in range(0, rows, ROWS):
            few = slice(start, start + ROWS)
            values = weight[few, part]
            least = np.full(len(values), np.inf, np.float32)
            for tried in clip_candidates(values, bits, choice, group is not None):
                found = codes_of(values, tried[:, None], bits)
                misses = (values - found * tried[:, None]) @ root.T
                error = np.einsum("rk,rk->r", misses, misses)
                better = error < least
                least = np.where(better, error, least)
                codes[few, part][better] = found[better].astype(np.int8)
                scales[few, number][better] = tried[better]
    return codes, scales


@dataclass(frozen=True)
class Awq(Method):
    name = "awq"
    stage = "shrink"
    slot = "precision"
    paper = (
        "Lin et al., AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and "
        "Acceleration (2024)"
    )
    summary = (
        "Scales up the weights of channels with large activations, then clips each group, both searched."
    )
    system = 16
    provides = frozenset(
        {"weight-type:int8", "weight-type:int4", "weight-type:int3", "weight-layout:rows16-1"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})
    passes: ClassVar[float] = 8.0

    bits: int = parameter(4, allowed=(3, 4, 8), help="bits a weight")
    group: int = parameter(
        64, allowed=(32, 64, 128), help="inputs that share a scale at 3 and 4 bits; 8 bits: whole rows"
    )
    version: int = parameter(2, allowed=(1, 2), help="scales from activations (2), or from weights too (1)")
    scales: str = parameter("leaning", allowed=("largest", "leaning"), help="how the range of a group lies")
    clip: bool = parameter(True, allowed=(False, True), help="search the range of each group")
    tokens: int = parameter(2048, allowed=(512, 2048, 8192), help="tokens that scales are judged on")

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group in which a matrix [rows, columns] is stored."""
        return StoredKind.of_bits(self.bits, self.group)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square, less what the scales save."""
        return 0.7 * expected_noise(self.bits, self.group, self.scales)

    def working_nbytes(self, walk: Walk) -> int:
        """The matrices of one input as rounded, and the inputs and results that they are judged by."""
        groups = [group for block in range(walk.blocks) for group in walk.products(block)]
        largest = max((sum(_numbers(walk, name) for name in group) for group in groups), default=0)
        widest = max((walk.shape(group[0])[1] for group in groups), default=0)
        return 4 * (largest + self.tokens * (widest + 3 * walk.width))

    def transform(self, block: BlockView) -> None:
        """Search and fold the scales of every pair of the block, one after the other."""
        pairs = block.pairs
        ranges = block.ranges() if pairs else {}
        for pair in pairs:
            scales, _ = self._searched(block, pair, ranges[pair.consumers[0]].magnitude)
            block.fold(pair, scales)

    def _searched(self, block: BlockView, pair: Pair, magnitude: F32) -> tuple[F32, float]:
        weights = {name: block.tensors[name] for name in pair.consumers}
        group = self.stored(*block.tensors[pair.consumers[0]].shape).group
        pieces = block.inputs(pair.consumers[0], self.tokens)
        wanted = [block.inspected(pair, x) for x in pieces]

        def error_of(scales: F32) -> float:
            changed = {
                name: rounded(weight, self.bits, group, self.scales, scales)
                for name, weight in weights.items()
            }
            return sum(
                float(np.square(block.inspected(pair, x, changed) - exact).mean(dtype=np.float64))
                for x, exact in zip(pieces, wanted, strict=True)
            )

        share = weight_share(list(weights.values()), group) if self.version == 1 else None
        return searched_scales(magnitude, error_of, share)

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Every matrix of `weights` as codes and scales, its groups clipped by what they multiply."""
        assert inputs is not None and inputs.inputs is not None
        quantized = {}
        for name, weight in weights.items():
            kind = self.stored(*weight.shape)
            if self.clip:
                codes, scales = clipped(weight, inputs.inputs, self.bits, kind.group, self.scales)
            else:
                codes, scales = round_to_nearest(weight, self.bits, kind.group, self.scales)
            quantized[name] = Quantized(kind, codes, scales)
        return quantized


def _numbers(walk: Walk, name: str) -> int:
    rows, columns = walk.shape(name)
    return rows * columns
