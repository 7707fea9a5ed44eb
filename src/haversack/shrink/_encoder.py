"""An encoder as compression sees it: the blocks, then one more that holds the pooler and the head's dense
layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.pack import TensorSource
from haversack.kernels import Matrix
from haversack.models._architecture import Block, Linear
from haversack.models.language._encoder import EncoderArchitecture
from haversack.run._encode import EncoderForward, Tokens, positions_of
from haversack.shrink._pipeline import Tap
from haversack.shrink._reconstruction import View
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor
from haversack.shrink._transforms import Pair, pairs_of

I32 = NDArray[np.int32]


class EncoderWalk:
    """The `Walk` of shrink/_pipeline.py over an encoder.

    Positions, token types and the matrix of a few classes are stored as what lies outside the blocks is; the
    words' embedding as an output matrix is, tied to one or not.
    """

    def __init__(self, architecture: EncoderArchitecture, source: TensorSource) -> None:
        self.architecture = architecture
        self.blocks = len(architecture.blocks) + 1
        self.width = architecture.width
        self.embedding = architecture.embedding
        self.first: tuple[str, ...] = (self.embedding,)
        self.shapes = architecture.tensors()
        head = architecture.head
        words = head is not None and head.kind == "masked-language"
        self.output = head.output.weight if head is not None and words else self.embedding
        dense = () if head is None else (head.dense,)
        self._last_linears: dict[str, Linear] = {
            linear.weight: linear for linear in (architecture.pooler, *dense) if linear is not None
        }
        self._last_names = tuple(
            name for linear in self._last_linears.values() for name, _ in linear.tensors()
        )
        taken = {self.embedding, self.output, *self._last_names}
        self.last: tuple[str, ...] = tuple(name for name in architecture.top_tensors() if name not in taken)
        self._matrices = {linear.weight for linear in architecture.matrices()} - set(self.last)
        self._source = source
        self._forward = EncoderForward(architecture)
        self._top: dict[str, Any] = {}

    def names(self, block: int) -> Sequence[str]:
        """The tensors of `block` in order of use."""
        if block == len(self.architecture.blocks):
            return self._last_names
        return tuple(self.architecture.blocks[block].tensors())

    def products(self, block: int) -> Sequence[tuple[str, ...]]:
        """The matrices of `block` in order of use, those that multiply the same input together."""
        if block == len(self.architecture.blocks):
            return [(name,) for name in self._last_linears]
        groups = self.architecture.blocks[block].products()
        return [tuple(linear.weight for linear in group) for group in groups]

    def record(self, block: int) -> Block | None:
        """What `block` is declared to be; None for the pooler and the head's layer."""
        return self.architecture.blocks[block] if block < len(self.architecture.blocks) else None

    def view(self, block: int) -> View:
        """How a block reads a text: every token sees all."""
        return View(causal=False)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.shapes[name]

    def is_matrix(self, name: str) -> bool:
        """True for what multiplies activations, False for norms and biases."""
        return name in self._matrices

    def embed(self, tokens: I32, weights: Mapping[str, Any]) -> F32:
        """Hidden states f32 [n, width] of `tokens` [n], all of token type 0."""
        if not self._top:
            one = self.architecture
            for name in (one.positions, one.types):
                self._top[name] = Matrix.from_array(read_tensor(self._source, name))
            for name, _ in one.embedding_norm.tensors():
                self._top[name] = read_tensor(self._source, name)
        text = Tokens(tokens, np.zeros(len(tokens), np.int32), positions_of(self.architecture, tokens))
        return self._forward.embed([text], {**self._top, **weights})

    def run(self, block: int, hidden: F32, weights: Mapping[str, Any], tap: Tap | None) -> F32:
        """Hidden states f32 [n, width] after `block`, the n tokens being a text of their own."""
        if block < len(self.architecture.blocks):
            result = np.array(hidden, np.float32)
            self._forward.block(block, result, [len(hidden)], weights, tap)
            return result
        one = self.architecture
        for name, linear in self._last_linears.items():
            every = one.head is not None and linear is one.head.dense and one.head.kind != "sequence"
            if tap is not None:
                tap(name, np.ascontiguousarray(hidden if every else hidden[:1]))
        return hidden

    def pairs(self, block: int) -> Sequence[Pair]:
        """Producers and consumers of `block` between which scales may be folded; the pooler and the head's
        layer have none."""
        return pairs_of(self.architecture.blocks[block]) if block < len(self.architecture.blocks) else ()

    def inspect(self, block: int, pair: Pair, x: F32, weights: Mapping[str, Any]) -> F32:
        """An encoder's norms come after sums, and none of its pairs begins with one."""
        raise ValueError(f"{pair.producer} is no norm before a layer")
