"""MobileQuant: a decoder's numbers on fixed grids, learned together, for integer-only devices.

Paper: Tan, Lee, Dudziak and Laskaridis (the list of authors is [recalled]), "MobileQuant: Mobile-friendly
Quantization for On-device Language Models" (Findings of EMNLP 2024).
What is here: the precision map (which number of a block has how many bits), grids whose ranges are fixed in
advance for all of a tensor, the first smoothing of every pair that allows it (norm -> matrices, value ->
output, up -> down), and what a device compiler is handed: folded weights, `act_ranges.json`, `qconfig.json`.
Three things are then learned against the float model's last hidden state, for all blocks at once
(mobilequant_torch.py): scales and shifts of the pairs (LET), the weights' clipping (LWC) and the ranges of
the activations (LRL). `_mobilequant_integer.py` runs the result in integers alone [inferred]; the engine runs
its matrix products so (`--activations int8-static`).
What we changed: LRL learns the scale as a share of the calibrated one and the offset as a share of the codes,
so that one rate serves grids of 8 and of 16 bits; queries and keys share a scale only between the two
channels that a rotation mixes [inferred], where it is exact; what meets the shares of attention is rounded
once, as the value matrix's output, not twice. A pack holds symmetric weights, which the kernels run; the
asymmetric ones of the simulation are for `export`ed encodings.
Cost: weights once in f32, what one block's way back needs, and the texts' hidden states; see `planned_peak`.
Limits: decoders whose blocks are norm, attention, norm, feed-forward, one after the other or side by side,
without norms of heads, norms after a layer, windows below the text's length or soft caps. As shipped by its
authors, softmax and norms stay at 16 bits; `full=True` is the variant with 8 everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.models._architecture import Architecture, Attention, Block, FeedForward, Linear, Norm
from haversack.models._fake_quant import SCALE_LIMITS, Grid, affine_grid, symmetric_grid
from haversack.shrink._precision import InputStatistics, Stored, StoredKind, expected_noise
from haversack.shrink._reconstruction import check_positive
from haversack.shrink._rounding import F32, storable
from haversack.shrink._transforms import Pair, column_peaks, fold, pairs_of
from haversack.shrink.precision.smoothquant import smoothing_scales

CLIP_START = 4.0
"""Where learned clipping starts: sigmoid(4.0) = 0.98201 of the range."""
WIDE, NARROW = 16, 8
SMALLEST_SCALE = 1e-5
GROUP = 128
"""int4: columns under one stored scale; all groups of a row have the same."""
FILES = ("act_ranges.json", "qconfig.json")


class Where(NamedTuple):
    """A number of a model: the tensor it is named by and its place there, as in models/_blocks_torch.py."""

    name: str
    place: str


# Grids


def activation_grid(low: float, high: float, bits: int) -> Grid:
    """The asymmetric grid of an activation whose values lie in `low` to `high`, 0 among its levels."""
    return affine_grid(np.minimum(low, 0.0), np.maximum(high, 0.0), bits, SCALE_LIMITS)


def clipped_extent(
    weight: F32, per_channel: bool, shares: tuple[Any, Any] = (1.0, 1.0)
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The range of each row [rows, 1], or of all [1, 1], times the `shares` of its ends (LWC)."""
    axis = 1 if per_channel else None
    low = np.minimum(weight.min(axis=axis, keepdims=True), 0)
    high = np.maximum(weight.max(axis=axis, keepdims=True), 0)
    return low * shares[0], high * shares[1]


def weight_grid(
    weight: F32, bits: int, *, per_channel: bool, symmetric: bool, shares: tuple[Any, Any] = (1.0, 1.0)
) -> Grid:
    """The grid of a matrix [rows, columns]: one for each row, or one for all. At 4 bits symmetric scales are
    exact in f16, as packs store them.
    """
    low, high = clipped_extent(weight, per_channel, shares)
    if not symmetric:
        return affine_grid(low, high, bits, SCALE_LIMITS)
    found = symmetric_grid(low, high, bits, SCALE_LIMITS)
    if bits == 4:
        return Grid(storable(found.scale.astype(np.float32), True), found.zero, found.low, found.high)
    return Grid(found.scale.astype(np.float32), found.zero, found.low, found.high)


# The first smoothing


def smooth(tensors: dict[str, F32], pairs: Sequence[Pair], peaks: Mapping[str, F32]) -> None:
    """Fold the scales of SmoothQuant (share 0.5) of every pair into `tensors`, in place; `peaks`: matrix ->
    largest inputs [columns].

    Exact: what the model computes stays.
    """
    for pair in pairs:
        columns = column_peaks(tensors, pair.consumers)
        fold(tensors, pair, smoothing_scales(peaks[pair.consumers[0]], columns, 0.5))


# What a block is made of, and the bits of each of its numbers


@dataclass(frozen=True)
class Parts:
    """A block as this method knows it."""

    attention: Attention
    feed_forward: FeedForward
    norms: tuple[Norm, ...]

    @property
    def first(self) -> tuple[Linear, ...]:
        """Matrices whose outputs have 8 bits: those that read a norm's output."""
        gate = self.feed_forward.gate
        attention = (self.attention.query, self.attention.key, self.attention.value)
        return (*attention, *((gate,) if gate is not None else ()), self.feed_forward.up)

    @property
    def last(self) -> tuple[Linear, ...]:
        """Matrices that add to the residual, with 16 bits."""
        return self.attention.output, self.feed_forward.down


def parts_of(block: Block) -> Parts:
    """The parts of `block`. Raises UserError that lists what is there and not known here."""
    attention = [one.layer for one in block.branches if isinstance(one.layer, Attention)]
    feed_forward = [one.layer for one in block.branches if isinstance(one.layer, FeedForward)]
    norms = tuple(dict.fromkeys(one.norm for one in block.branches if one.norm is not None))
    strange = []
    if len(attention) != 1 or len(feed_forward) != 1 or len(block.branches) != 2:
        strange.append("layers " + ", ".join(one.layer.kind for one in block.branches))
    if any(one.norm is None for one in block.branches):
        strange.append("a layer without a norm before it")
    if any(one.post_norm is not None or one.after_norm is not None for one in block.branches):
        strange.append("norms after a layer")
    for layer in attention:
        if layer.query_norm is not None or layer.key_norm is not None:
            strange.append("norms of heads")
        if layer.softcap is not None:
            strange.append("a soft cap on attention")
        if layer.window is not None:
            strange.append(f"a window of {layer.window} tokens")
    if strange:
        raise UserError(
            f"mobilequant does not know the graph of block {block.index}: {'; '.join(strange)}; it takes a "
            "norm before attention and before a feed-forward layer, and nothing else (Llama, Gemma 1, "
            "StableLM 2).",
            field="model",
            given=f"block {block.index}",
            nearest="gptq",
        )
    return Parts(attention[0], feed_forward[0], norms)


def precision_map(architecture: Architecture, *, full: bool = False) -> dict[Where, int]:
    """Bits of every activation that is rounded, in order of use, per tensor and static.

    `full`: the softmax, the norms' inputs and what adds to the residual have 8 bits too. Raises UserError for
    a model whose graph is not known.
    """
    for given, what in (
        (architecture.positions, "learned positions"),
        (architecture.project_in, "a projected embedding"),
    ):
        if given is not None:
            raise UserError(f"mobilequant does not know models with {what}.", field="model", given=what)
    wide = NARROW if full else WIDE
    bits: dict[Where, int] = {}
    for block in architecture.blocks:
        parts = parts_of(block)
        output, down = parts.last
        for norm in parts.norms:
            bits[Where(norm.weight, "input")] = wide
            bits[Where(norm.weight, "output")] = NARROW
        for linear in parts.first:
            bits[Where(linear.weight, "output")] = NARROW
        bits[Where(output.weight, "key")] = NARROW
        bits[Where(output.weight, "scores")] = wide
        bits[Where(output.weight, "shares")] = wide
        bits[Where(output.weight, "input")] = NARROW
        bits[Where(output.weight, "output")] = wide
        if parts.feed_forward.gate is not None:
            bits[Where(down.weight, "activated")] = NARROW
        bits[Where(down.weight, "input")] = NARROW
        bits[Where(down.weight, "output")] = wide
    return bits


def rows_apart(block: Block, bits: int, per_channel: bool | None = None) -> dict[str, bool]:
    """Matrix -> whether each of its rows has its own grid: at 4 bits all, at 8 bits the down matrix alone
    unless `per_channel` says otherwise.
    """
    parts = parts_of(block)
    each = bits == 4 if per_channel is None else per_channel
    found = {linear.weight: each for linear in (*parts.first, *parts.last)}
    return found | {parts.feed_forward.down.weight: True}


def input_of(block: Block) -> dict[str, Where]:
    """Matrix -> the number that it multiplies."""
    found: dict[str, Where] = {}
    for branch in block.branches:
        assert branch.norm is not None
        for linear in branch.layer.products()[0]:
            found[linear.weight] = Where(branch.norm.weight, "output")
        for linear in branch.layer.products()[1]:
            found[linear.weight] = Where(linear.weight, "input")
    return found


def all_pairs(architecture: Architecture, kinds: Sequence[str] = ("norm", "linear", "gate")) -> list[Pair]:
    """The pairs of all blocks, in order, of the given `kinds`."""
    return [pair for block in architecture.blocks for pair in pairs_of(block) if pair.kind in kinds]


@dataclass(frozen=True)
class MobileQuant(Method):
    name = "mobilequant"
    stage = "shrink"
    slot = "precision"
    paper = "MobileQuant: Mobile-friendly Quantization for On-device Language Models (EMNLP Findings, 2024)"
    summary = "Static integer activations; transforms, clipping and ranges learned end to end."
    system = 8
    provides = frozenset(
        {"weight-type:int8", "weight-type:int4", "weight-layout:rows16-1", "activation-type:int8-static"}
    )
    needs: ClassVar[frozenset[str]] = frozenset()

    bits: int = parameter(8, allowed=(4, 8), help="bits a weight")
    mode: str = parameter(
        "e2e",
        allowed=("e2e", "layerwise", "smoothed", "nearest"),
        help="what is learned: all blocks together, one after the other, or nothing",
    )
    epochs: int = parameter(4, help="passes over the calibration text")
    full: bool = parameter(False, help="8 bits in softmax, norms and residual too")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(epochs=self.epochs)

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group of a matrix [rows, columns]; int4 goes by groups that share their row's scale."""
        return StoredKind("int8") if self.bits == 8 else StoredKind("int4", GROUP)

    def stored_as(self, name: str, rows: int, columns: int) -> Stored:
        """How the matrix `name` of a block is stored: beside it what its inputs' zero point takes off."""
        from haversack.shrink.precision._mobilequant_costs import StoredStatic

        return StoredStatic(self.stored(rows, columns))

    def learned(self, tokens: int, length: int) -> float:
        """Tokens that pass forward and back through all blocks, of `tokens` in texts of `length`."""
        return float(self.epochs * tokens) if self.mode in ("e2e", "layerwise") else 0.0

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square: a row, or all rows, share a scale."""
        return expected_noise(8, 1024, "largest") * (1 if self.bits == 8 else (127 / 7) ** 2)

    def working_nbytes(self, walk: Any) -> int:
        """Bytes beside a block and its text: see `planned_peak`."""
        from haversack.shrink.precision._mobilequant_costs import planned_peak

        return planned_peak(walk.architecture).total_bytes

    def learn(self, source: Any, walk: Any, texts: Any) -> Any:
        """The model learned on `texts` i32 [pieces, length], as a precision method of its blocks."""
        from haversack.shrink.precision._mobilequant_pack import learned

        return learned(self, source, walk.architecture, texts)

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> Mapping[str, Any]:
        """Refused: what is learned together cannot be asked for alone."""
        raise UserError(
            "mobilequant learns all matrices of a model together; it goes with no structure and quantizes no "
            "matrix alone.",
            field="structure",
            nearest="none",
        )
