"""A language model as compression sees it: its tensors in order of use, and a pass through one block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.kernels import CacheLayer
from haversack.models._architecture import Architecture, Block
from haversack.models._experts import Experts, experts_of
from haversack.run._forward import Forward
from haversack.shrink._pipeline import Tap
from haversack.shrink._rounding import F32
from haversack.shrink._transforms import Pair, pairs_of

I32 = NDArray[np.int32]


class LanguageWalk:
    """The `Walk` of shrink/_pipeline.py over a decoder."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.blocks = len(architecture.blocks)
        self.width = architecture.width
        self.embedding = architecture.embedding
        self.output = architecture.head.weight
        self.shapes = architecture.tensors()
        self.first = tuple(architecture.first_tensors())
        self.last = tuple(name for name in architecture.last_tensors() if name != self.output)
        self.exact: frozenset[str] = frozenset()
        """Matrices outside the blocks that stay in f32."""
        self._matrices = {linear.weight for linear in architecture.matrices()}

    @cached_property
    def forward(self) -> Forward:
        """The model's arithmetic."""
        return Forward(self.architecture)

    @cached_property
    def all_experts(self) -> Experts | None:
        """The model's experts and their tensors, where it has any."""
        return experts_of(self.architecture)

    def names(self, block: int) -> Sequence[str]:
        """The tensors of `block` in order of use."""
        return tuple(self.architecture.blocks[block].tensors())

    def products(self, block: int) -> Sequence[tuple[str, ...]]:
        """The matrices of `block` in order of use, those that multiply the same input together."""
        groups = self.architecture.blocks[block].products()
        return [tuple(linear.weight for linear in group) for group in groups]

    def record(self, block: int) -> Block:
        """What `block` is declared to be."""
        return self.architecture.blocks[block]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.shapes[name]

    def is_matrix(self, name: str) -> bool:
        """True for what multiplies activations, False for norms and biases."""
        return name in self._matrices

    def embed(self, tokens: I32, weights: Mapping[str, Any]) -> F32:
        """Hidden states f32 [n, width] of `tokens` [n], a text of their own."""
        learned = self.architecture.positions
        places = None
        if learned is not None:
            rows = np.arange(learned.offset, learned.offset + len(tokens), dtype=np.int32)
            places = (weights[learned.weight], rows)
        return self.forward.embed(tokens, weights[self.embedding], weights, places)

    def run(self, block: int, hidden: F32, weights: Mapping[str, Any], tap: Tap | None) -> F32:
        """Hidden states f32 [n, width] after `block`, the n tokens being a text of their own."""
        positions = np.arange(len(hidden), dtype=np.int32)
        cache = self.cache(block, len(hidden))
        return self.forward.block_forward(block, hidden, positions, cache, weights, tap)

    def targets(self, hidden: F32, tokens: I32) -> tuple[F32, I32]:
        """Of the hidden states f32 [n, width] after the last block: those that predict a token of the text
        `tokens` i32 [n], and which it is.
        """
        return hidden[:-1], tokens[1:]

    def routers(self, block: int) -> Sequence[str]:
        """The matrices of `block` that choose experts, which no method rounds."""
        mixture = self.architecture.blocks[block].mixture
        return () if mixture is None else tuple(linear.weight for linear in mixture.routers())

    def experts(self, block: int) -> Mapping[str, int]:
        """The first matrix of every group that belongs to an expert of `block` -> the expert's number."""
        mixture = self.architecture.blocks[block].mixture
        if mixture is None:
            return {}
        return {
            group[0].weight: number
            for number, expert in enumerate(mixture.experts)
            for group in expert.products()
        }

    def routed(self, block: int, hidden: F32, weights: Mapping[str, Any]) -> tuple[F32, Any]:
        """What the mixture of `block` reads of a text of its own, and what its router chooses."""
        positions = np.arange(len(hidden), dtype=np.int32)
        return self.forward.routed(block, hidden, positions, self.cache(block, len(hidden)), weights)

    def expert(
        self, block: int, number: int, x: F32, shares: F32, weights: Mapping[str, Any], tap: Tap | None
    ) -> F32:
        """What expert `number` of `block` makes of x f32 [n, width] at `shares` f32 [n]."""
        return self.forward.expert_forward(block, number, x, shares, weights, tap)

    def pairs(self, block: int) -> Sequence[Pair]:
        """Producers and consumers of `block` between which scales may be folded."""
        return pairs_of(self.architecture.blocks[block])

    def inspect(self, block: int, pair: Pair, x: F32, weights: Mapping[str, Any]) -> F32:
        """What the layers behind the norm of `pair` make of x f32 [n, width], added up: f32 [n, width]."""
        positions = np.arange(len(x), dtype=np.int32)
        total = np.zeros_like(x)
        for branch in self.architecture.blocks[block].branches:
            if branch.norm is not None and branch.norm.weight == pair.producer:
                cache = self.cache(block, len(x))
                total += self.forward.layer_forward(branch.layer, x, positions, cache, weights)
        return total

    def cache(self, block: int, length: int) -> CacheLayer | None:
        """An empty cache of `length` tokens for the attention of `block`; None where it has none."""
        attention = self.architecture.blocks[block].attention
        if attention is None:
            return None
        return CacheLayer.empty(attention.key_value_heads, length, attention.head_width, "f32")
