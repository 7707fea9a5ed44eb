"""An encoder's arithmetic: ragged batches through embeddings, blocks, pooler and head.

The texts of a batch lie behind one another, without padding: products and norms take all their tokens at
once, attention takes each text by itself. Kernels are row-invariant, so a text's bits depend neither on the
texts beside it nor on how long those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import CacheLayer, Visible, attention, gate
from haversack.models._architecture import Attention, Linear
from haversack.models.language._encoder import EncoderArchitecture
from haversack.run._forward import Forward
from haversack.run._products import F32, Tap, normalize, product
from haversack.run._step import Step
from haversack.run._weights import Weights, embedding_rows

I32 = npt.NDArray[np.int32]

ROWS = 512
"""Tokens that pass a block at once, as far as whole texts allow it."""


@dataclass(frozen=True)
class Tokens:
    """One text: `ids`, `types` and `positions` i32 [n], padding left out."""

    ids: I32
    types: I32
    positions: I32

    def __len__(self) -> int:
        return len(self.ids)


def positions_of(architecture: EncoderArchitecture, ids: I32) -> I32:
    """Rows of the position table for `ids` i32 [n], padding tokens included.

    BERT counts every token from 0. RoBERTa counts those that are no padding, from `padding` + 1 on, and gives
    padding the row `padding`: [0, 5, 6, 2, 1, 1] with padding 1 gives [2, 3, 4, 5, 1, 1].
    """
    if not architecture.skips_padding:
        return np.arange(len(ids), dtype=np.int32)
    counted = ids != architecture.padding
    found: I32 = (np.cumsum(counted) * counted + architecture.padding).astype(np.int32)
    return found


class BothWays:
    """Attention of every token to all tokens of its own text. `bounds`: where each text of the batch begins,
    and the end of the last."""

    def __init__(self) -> None:
        self.bounds: Sequence[int] = (0, 0)

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """query f32 [n, heads, head width] over the entries of its text -> f32 [n, heads, head width]."""
        out = np.empty_like(query)
        for begin, end in zip(self.bounds, self.bounds[1:], strict=False):
            count = end - begin
            start = np.full(count, begin, np.int64) if begin else None
            seen = Visible(end, start, np.empty((count, 0), np.bool_))
            attention(query[begin:end], cache, seen, layer.scale, layer.softcap, out=out[begin:end])
        return out


class EncoderForward:
    """The arithmetic of `architecture`. `activations`: type of the inputs of packed matrices, f32 or
    int8-dynamic."""

    def __init__(self, architecture: EncoderArchitecture, *, activations: str = "f32") -> None:
        self.architecture = architecture
        self.activations = activations
        self._attention = BothWays()
        self._forward = Forward(
            architecture,  # type: ignore[arg-type]  # blocks are all that is asked of it
            activations=activations,
            attention=self._attention,
            rows=1,
        )

    def embed(self, texts: Sequence[Tokens], weights: Weights) -> F32:
        """Hidden states f32 [all tokens, width] before the first block."""
        plan = self.architecture
        hidden = embedding_rows(weights[plan.embedding], np.concatenate([text.ids for text in texts]))
        hidden += embedding_rows(weights[plan.types], np.concatenate([text.types for text in texts]))
        hidden += embedding_rows(weights[plan.positions], np.concatenate([text.positions for text in texts]))
        return normalize(plan.embedding_norm, hidden, weights, hidden)

    def block(
        self, index: int, hidden: F32, lengths: Sequence[int], weights: Weights, tap: Tap | None = None
    ) -> None:
        """Take `hidden` f32 [all tokens, width] through block `index` in place; texts have `lengths`."""
        block = self.architecture.blocks[index]
        layer = block.attention
        assert layer is not None
        cache = CacheLayer.empty(layer.key_value_heads, len(hidden), layer.head_width)
        self._attention.bounds = [0, *np.cumsum(lengths).tolist()]
        step = Step(np.zeros(len(hidden), np.int32), 0)
        self._forward.advance(block, hidden, step, cache, weights, tap)

    def pooled(self, hidden: F32, lengths: Sequence[int], weights: Weights) -> F32:
        """tanh of the pooler over each text's first token, f32 [texts, width]."""
        pooler = self.architecture.pooler
        assert pooler is not None
        first = np.ascontiguousarray(hidden[_starts(lengths)])
        return np.tanh(self.linear(first, pooler, weights))

    def head(self, hidden: F32, lengths: Sequence[int], weights: Weights, tap: Tap | None = None) -> F32:
        """The head's numbers: f32 [texts, classes] of a sequence head, else f32 [all tokens, classes]."""
        head = self.architecture.head
        assert head is not None
        x = np.ascontiguousarray(hidden[_starts(lengths)]) if head.kind == "sequence" else hidden
        if head.dense is not None:
            x = self.linear(x, head.dense, weights, tap)
            if head.activation == "tanh":
                x = np.tanh(x)
            elif head.activation is not None:
                x = gate(x, None, head.activation, out=x)
        if head.norm is not None:
            x = normalize(head.norm, x, weights, x)
        return self.linear(x, head.output, weights, tap)

    def linear(self, x: F32, linear: Linear, weights: Weights, tap: Tap | None = None) -> F32:
        """x f32 [n, inputs] times `linear`, plus its bias."""
        if tap is not None:
            tap(linear.weight, x)
        matrix: Any = weights[linear.weight]
        bias = None if linear.bias is None else weights[linear.bias]
        out = np.empty((len(x), linear.outputs), np.float32)
        product(x, matrix, out, self.activations, bias)
        return out


def _starts(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)


def parts(lengths: Sequence[int], most: int = ROWS) -> list[slice]:
    """Slices of texts whose tokens together are at most `most`, or one text where it alone has more."""
    found, begin, held = [], 0, 0
    for index, length in enumerate(lengths):
        if held and held + length > most:
            found.append(slice(begin, index))
            begin, held = index, 0
        held += length
    return [*found, slice(begin, len(lengths))] if len(lengths) else []
