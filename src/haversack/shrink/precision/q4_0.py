"""Q4_0: blocks of 32 weights under one scale, and experts stored matrix by matrix, as SmallThinker's engine
reads them.

Paper: Song et al., "SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local
Deployment" (arXiv 2507.20984, 2025); the block is ggml's.
What is here: of every 32 neighbouring inputs of a row d is the value of largest magnitude over -8, kept in
f16; a weight's code is floor(w / d + 8.5) - 8, at most 7. 18 bytes a block. Every matrix of an expert is a
record of its own in the pack's expert store, padded to 4096 bytes, in order of use: gate, up, down.
What we changed: the codes of a matrix lie 16 rows interleaved (docs/format.md), in as many bytes as ggml's
blocks; the down matrix is not turned.
`predictor` adds two small matrices that say which rows of the output matrix matter (run/_head_predictor.py).
Cost: one pass over the weights; no calibration data. A predictor takes a pass of the calibration text, with
the model in memory in f32, and a minute of training.
Limits: rows of a multiple of 32 inputs, models with experts. To leave out neurons that a ReLU made 0 take
--precision round-to-nearest:bits=4,group=64 --structure reglu --residency streamed:smallthinker, whose
layouts have no blocks of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from haversack.core._record import PREDICTOR_NAME
from haversack.core.method import Method, parameter
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import F32, I8, storable

BLOCK = 32
ROWS_AT_ONCE = 1 << 20
"""Weights that are rounded together."""


def block_scales(blocks: F32) -> F32:
    """d f32 [..., 1] of blocks f32 [..., 32], before it is rounded to f16: the first value of largest
    magnitude over -8."""
    at = np.abs(blocks).argmax(axis=-1, keepdims=True)
    return np.take_along_axis(blocks, at, axis=-1) / np.float32(-8)


def block_codes(blocks: F32, scales: F32) -> I8:
    """Codes int8 [..., 32] in -8..7 of blocks f32 [..., 32] whose scales are f32 [..., 1]; a block of zeros
    has codes 0."""
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    raised = np.floor(blocks * inverse + np.float32(8.5))
    return (np.clip(raised, 0, 15) - 8).astype(np.int8)


def round_blocks(weight: F32) -> tuple[I8, F32]:
    """Codes int8 [rows, columns] and scales f32 [rows, columns / 32], exact in f16, of `weight` [rows,
    columns].

    >>> codes, scales = round_blocks(np.linspace(-1, 1, 32, dtype=np.float32)[None])
    >>> int(codes[0, 0]), int(codes[0, -1]), float(scales[0, 0])
    (-8, 7, 0.125)
    """
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // BLOCK), np.float32)
    step = max(1, ROWS_AT_ONCE // columns)
    for start in range(0, rows, step):
        blocks = weight[start : start + step].reshape(-1, columns // BLOCK, BLOCK)
        wide = block_scales(blocks)
        codes[start : start + step] = block_codes(blocks, wide).reshape(len(blocks), columns)
        scales[start : start + step] = storable(wide[..., 0], half=True)
    return codes, scales


@dataclass(frozen=True)
class Q40(Method):
    name = "q4_0"
    stage = "shrink"
    slot = "precision"
    paper = "SmallThinker (arXiv 2507.20984, 2025)"
    summary = "Blocks of 32 weights under one scale; experts are stored matrix by matrix, for streaming."
    system = 49
    provides = frozenset(
        {"weight-type:int4", "weight-type:f32", "weight-layout:rows16-1", "expert-store:matrices"}
    )
    needs: ClassVar[frozenset[str]] = frozenset()

    predictor: int = parameter(
        0,
        allowed=(0, 32, 64, 96, 128, 256),
        help="rank of a predictor of output rows, for run --decode sparse-head; 0: none (extra workshop)",
    )

    @property
    def learn(self) -> Any:
        """See shrink/_precision.py: what trains the predictor, where one is wanted."""
        if not self.predictor:
            raise AttributeError("learn")
        return self._learn

    def _learn(self, source: Any, walk: Any, texts: Any) -> WithPredictor:
        from haversack.shrink._head_predictor import learned

        return WithPredictor(self, learned(source, walk, texts, self.predictor).to_bytes())

    def stored(self, rows: int, columns: int) -> StoredKind:
        """How a matrix [rows, columns] is stored."""
        return StoredKind("int4", BLOCK)

    def noise(self) -> float:
        """Expected squared error over the weights' mean square, for weights near a normal distribution."""
        return expected_noise(4, BLOCK, "leaning")

    def refused(self, walk: Any) -> Mapping[str, str]:
        """Every matrix of a model without experts, and rows that are no whole number of blocks."""
        inside = [name for block in range(walk.blocks) for name in walk.names(block) if walk.is_matrix(name)]
        if getattr(walk, "all_experts", None) is None:
            said = "the model has no experts; round-to-nearest:bits=4,group=32 has the same numbers"
            return dict.fromkeys(inside, said)
        return {
            name: f"its rows of {walk.shape(name)[1]} are no multiple of {BLOCK}"
            for name in inside
            if walk.shape(name)[1] % BLOCK
        }

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Every matrix of `weights` as codes and scales."""
        return {name: Quantized(self.stored(*one.shape), *round_blocks(one)) for name, one in weights.items()}


@dataclass(frozen=True)
class WithPredictor:
    """The method, and the file of the predictor that it trained for one model."""

    method: Q40
    data: bytes

    needs: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = Q40.provides

    @property
    def name(self) -> str:
        """As the method's."""
        return self.method.name

    def __str__(self) -> str:
        return str(self.method)

    def stored(self, rows: int, columns: int) -> StoredKind:
        """See Q40."""
        return self.method.stored(rows, columns)

    def noise(self) -> float:
        """See Q40."""
        return self.method.noise()

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """See Q40."""
        return self.method.quantize(weights, inputs)

    def files(self) -> dict[str, bytes]:
        """What the pack holds beside the tensors."""
        return {PREDICTOR_NAME: self.data}
