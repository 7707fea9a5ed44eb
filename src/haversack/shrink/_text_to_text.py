"""A model with an encoder and a decoder as compression sees it: the encoder's blocks, then the decoder's.

A calibration text is one row of tokens, of which the first `reads` are read and the others written; its
hidden states are one array too, those of the encoder before those of the decoder. Blocks of the encoder
change the former, blocks of the decoder the latter; the norm behind the encoder belongs to its last block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.models._architecture import Architecture, Layer
from haversack.run._products import normalize
from haversack.run._reading import read_block
from haversack.run._step import Step
from haversack.run._weights import embedding_rows
from haversack.run.layers.cross_attention import listen
from haversack.shrink._language import LanguageWalk
from haversack.shrink._listening import side_by_side
from haversack.shrink._pipeline import Tap
from haversack.shrink._rounding import F32
from haversack.shrink._transforms import Pair

I32 = NDArray[np.int32]


def walk_of(architecture: Architecture) -> LanguageWalk:
    """The walk over a language model: a decoder, or an encoder with one."""
    return LanguageWalk(architecture) if architecture.reader is None else TextToTextWalk(architecture)


class TextToTextWalk(LanguageWalk):
    """The `Walk` of shrink/_pipeline.py over an encoder with a decoder. `reads`: tokens of a text that are
    read, which is to be said before one passes.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        assert architecture.reader is not None
        self.reader = architecture.reader
        self.reads = 0
        self._norm = tuple(name for name, _ in self.reader.norm.tensors())
        self.first = tuple(name for name in self.first if name not in self._norm)
        self.exact = frozenset(bias.weight for bias in architecture.distances)

    def names(self, block: int) -> Sequence[str]:
        """See LanguageWalk."""
        own = super().names(block)
        return (*own, *self._norm) if block == self.reader.blocks - 1 else own

    def embed(self, tokens: I32, weights: Mapping[str, Any]) -> F32:
        """Hidden states f32 [n, width] of `tokens` i32 [n]: of those that are read, and of those that the
        decoder reads to write the others.
        """
        self.forward.learn_distances(weights)
        read, written = tokens[: self.reads], tokens[self.reads :]
        shifted = np.concatenate([[self.reader.start], written[:-1]]).astype(np.int32)
        table = weights[self.reader.embedding or self.embedding]
        return np.concatenate(
            [
                embedding_rows(table, np.ascontiguousarray(read, np.int32)),
                embedding_rows(weights[self.embedding], shifted),
            ]
        )

    def run(self, block: int, hidden: F32, weights: Mapping[str, Any], tap: Tap | None) -> F32:
        """See LanguageWalk."""
        result = np.array(hidden, np.float32)
        record, reads = self.record(block), self.reads
        states, text = result[:reads], result[reads:]
        if block < self.reader.blocks:
            read_block(self.forward, record, states, weights, tap)
            if block == self.reader.blocks - 1:
                normalize(self.reader.norm, states, weights, states)
            return result
        cross = record.cross_attention
        listened = None if cross is None else listen(cross, states, weights, tap=tap)
        step = Step(np.arange(len(text), dtype=np.int32), 0)
        self.forward.advance(record, text, step, self.cache(block, len(text)), weights, tap, listened)
        return result

    def targets(self, hidden: F32, tokens: I32) -> tuple[F32, I32]:
        """See LanguageWalk."""
        return hidden[self.reads :], tokens[self.reads :]

    def routed(self, block: int, hidden: F32, weights: Mapping[str, Any]) -> tuple[F32, Any]:
        """See LanguageWalk; of the side that the block belongs to."""
        seen: list[Any] = []
        mixture = self.record(block).mixture
        assert mixture is not None

        def see(name: str, x: F32) -> None:
            if name == mixture.router.weight:
                seen.append(x.copy())

        before = self.forward.observer
        self.forward.observer = lambda routing: seen.append(
            _Chosen(routing.experts.copy(), routing.shares.copy())
        )
        try:
            self.run(block, hidden, weights, see)
        finally:
            self.forward.observer = before
        x, choice = seen
        return x, choice

    def inspect(self, block: int, pair: Pair, x: F32, weights: Mapping[str, Any]) -> F32:
        """See `side_by_side`."""
        positions = np.arange(len(x), dtype=np.int32)

        def made(layer: Layer) -> F32:
            return self.forward.layer_forward(layer, x, positions, self.cache(block, len(x)), weights)

        return side_by_side(self.record(block), pair, x, weights, made)


class _Chosen:
    """A router's choice, of which compression asks the `experts` i32 [n, top] and their `shares`."""

    def __init__(self, experts: I32, shares: F32) -> None:
        self.experts, self.shares = experts, shares
