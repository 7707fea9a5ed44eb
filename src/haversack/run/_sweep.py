"""Many texts through a model block by block: each block's weights are asked for once and serve all texts.

For judging a model larger than memory: with streamed weights two blocks and the texts' hidden states are
held, and the bits are those of steps through each text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from haversack.kernels import CacheLayer
from haversack.run._forward import ROWS
from haversack.run._products import normalize
from haversack.run._reading import read_block
from haversack.run._step import Step
from haversack.run.layers.cross_attention import listen

if TYPE_CHECKING:
    from haversack.run._engine import Engine

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]


class States(Protocol):
    """Holds the hidden states of each text between two blocks."""

    def read(self, index: int) -> F32:
        """Those of text `index`, f32 [n, width]; not to be written to."""

    def write(self, index: int, piece: F32) -> None:
        """Replace those of text `index`."""


def through_blocks(engine: Engine, texts: Sequence[I32], states: States) -> None:
    """Leave in `states` what the last block gives for each of `texts` i32 [n], each a text of its own."""
    for index, ids in enumerate(texts):
        states.write(index, engine._embed(ids, np.arange(len(ids), dtype=np.int32)))
    for block in engine.architecture.blocks:
        attention = block.attention
        with engine.held.weights(block.index) as weights:
            for index, ids in enumerate(texts):
                hidden = np.array(states.read(index)[: len(ids)], np.float32)
                layer = None
                if attention is not None:
                    layer = CacheLayer.empty(
                        attention.key_value_heads, len(ids), attention.head_width, engine.cache_type
                    )
                for start in range(0, len(ids), ROWS):
                    part = hidden[start : start + ROWS]
                    positions = np.arange(start, start + len(part), dtype=np.int32)
                    engine.forward.advance(block, part, Step(positions, start), layer, weights)
                states.write(index, hidden)


def read_blocks(engine: Engine, texts: Sequence[I32], states: States) -> None:
    """Leave in `states` what an encoder makes of each of `texts` i32 [n]."""
    reader = engine.architecture.reader
    assert reader is not None
    for index, ids in enumerate(texts):
        positions = np.arange(len(ids), dtype=np.int32)
        states.write(index, engine._embed(ids, positions, reader.embedding))
    for block in engine.architecture.reading:
        last = block.index == reader.blocks - 1
        with engine.held.weights(block.index) as weights:
            for index, ids in enumerate(texts):
                hidden = np.array(states.read(index)[: len(ids)], np.float32)
                read_block(engine.forward, block, hidden, weights)
                if last:
                    normalize(reader.norm, hidden, engine.held.top, hidden)
                states.write(index, hidden)


def write_blocks(
    engine: Engine, read: Sequence[int], states: States, texts: Sequence[I32], after: States
) -> None:
    """Leave in `after` what the decoder's last block gives for each of `texts` i32 [n], whose encoder's
    `states` are of `read` tokens each.
    """
    for index, ids in enumerate(texts):
        after.write(index, engine._embed(ids, np.arange(len(ids), dtype=np.int32)))
    for block in engine.architecture.writing:
        attention, crossing = block.attention, block.cross_attention
        assert attention is not None and crossing is not None
        heads, width, kind = attention.key_value_heads, attention.head_width, engine.cache_type
        with engine.held.weights(block.index) as weights:
            for index, ids in enumerate(texts):
                hidden = np.array(after.read(index)[: len(ids)], np.float32)
                held = np.ascontiguousarray(states.read(index)[: read[index]])
                cross = listen(crossing, held, weights, kind, engine.activations)
                layer = CacheLayer.empty(heads, len(ids), width, kind)
                step = Step(np.arange(len(ids), dtype=np.int32), 0)
                engine.forward.advance(block, hidden, step, layer, weights, None, cross)
                after.write(index, hidden)


def target_bits(engine: Engine, hidden: Callable[[int], F32], targets: Sequence[I32]) -> list[F64]:
    """Bits that each of `targets[i]` i32 [n] costs after the last block's `hidden(i)` f32 [n, width].

    The output matrix is read once, in the parts that the residency gives; their totals are joined.
    """
    forward, top = engine.forward, engine.held.top
    bias = engine.architecture.head.bias
    largest = [np.full(len(each), -np.inf) for each in targets]
    totals = [np.zeros(len(each)) for each in targets]
    chosen = [np.zeros(len(each)) for each in targets]
    for first, matrix in engine.held.head():
        part = slice(first, first + matrix.rows)
        addend = None if bias is None else top[bias][part]
        for index, wanted in enumerate(targets):
            states = hidden(index)
            for start in range(0, len(wanted), ROWS):
                rows = slice(start, start + ROWS)
                normal = forward.finish(states[rows], top)
                logits = forward.head(normal, matrix, None, addend)
                before, peak = largest[index][rows], logits.max(axis=-1).astype(np.float64)
                after = np.maximum(before, peak)
                here = wanted[rows] - first
                inside = np.flatnonzero((here >= 0) & (here < matrix.rows))
                chosen[index][rows][inside] = logits[inside, here[inside]]
                logits -= after[:, None].astype(np.float32)
                powers = np.exp(logits, out=logits).sum(axis=-1, dtype=np.float64)
                totals[index][rows] = totals[index][rows] * np.exp(before - after) + powers
                largest[index][rows] = after
    return [
        (np.log(total) + peak - wanted) / np.log(2.0)
        for total, peak, wanted in zip(totals, largest, chosen, strict=True)
    ]
