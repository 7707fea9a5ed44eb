"""A speech model as compression sees it: the encoder's blocks, then the decoder's, over windows of sound with
the text that was said in them.

A piece of calibration is one array, so that states are kept and passed on as those of a text are: its first
row says how many of the next rows are the encoder's states and how many behind those the decoder's, the rest
is padding. Encoder blocks change the former, decoder blocks the latter; the last norm of the encoder belongs
to its last block. Cross-attention's keys and values multiply the encoder's states and are a group of their
own. The norm before them feeds every block of the decoder, so no block folds a scale into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.pack import TensorSource
from haversack.kernels import CacheLayer
from haversack.models._architecture import Block, Layer
from haversack.models.audio._record import RATE, SpeechArchitecture
from haversack.run._hear import SpeechForward
from haversack.run._speech import WINDOW_S
from haversack.run._step import Step
from haversack.run.layers.cross_attention import listen
from haversack.shrink._listening import side_by_side
from haversack.shrink._pipeline import Tap
from haversack.shrink._reconstruction import View
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor
from haversack.shrink._transforms import Pair, pairs_of

I32 = NDArray[np.int32]

HEADER = 1
BASE = 1024
"""Counts are written in two digits of this base, which half precision holds exactly."""


@dataclass(frozen=True)
class Piece:
    """A window of sound as the encoder takes it, `rows` f32 [n, bands] (or [n, 1]), and `tokens` i32 [m]."""

    rows: F32
    tokens: I32


class Pieces:
    """Calibration of a speech model: pieces that are made when they are asked for, one after the other.

    `shape` is [pieces, rows of an array that holds the longest], as that of texts is.
    """

    def __init__(self, architecture: SpeechArchitecture, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        frames = architecture.encoder.frames
        longest = max((frames(len(one.rows)) + len(one.tokens) for one in pieces), default=0)
        self.shape = (len(pieces), HEADER + longest)
        self.size = len(pieces) * longest

    def __iter__(self) -> Iterator[tuple[Piece, int]]:
        return ((piece, self.shape[1]) for piece in self._pieces)


def joined(states: F32, hidden: F32, length: int) -> F32:
    """A piece f32 [length, width] of the encoder's states [n, width] and the decoder's [m, width]."""
    if states.shape[1] < 4:
        raise UserError(f"a width of {states.shape[1]} holds no count (4 at least).", field="model")
    found = np.zeros((length, states.shape[1]), np.float32)
    found[0, :4] = [*divmod(len(states), BASE), *divmod(len(hidden), BASE)]
    found[HEADER : HEADER + len(states)] = states
    found[HEADER + len(states) : HEADER + len(states) + len(hidden)] = hidden
    return found


def split(piece: F32) -> tuple[slice, slice]:
    """Where a piece's encoder states and its decoder's are."""
    counts = np.rint(piece[0, :4]).astype(int)
    middle = HEADER + int(counts[0] * BASE + counts[1])
    return slice(HEADER, middle), slice(middle, middle + int(counts[2] * BASE + counts[3]))


class SpeechWalk:
    """The `Walk` of shrink/_pipeline.py over a speech model; its texts are `Pieces`."""

    def __init__(self, architecture: SpeechArchitecture, source: TensorSource) -> None:
        self.architecture = architecture
        self.encoders = len(architecture.encoder.blocks)
        self.blocks = len(architecture.blocks)
        self.width = architecture.width
        self.embedding = architecture.embedding
        self.output = architecture.decoder.head.weight
        self.shapes = architecture.tensors()
        outside = {**architecture.encoder.stem_tensors(), **architecture.decoder.first_tensors()}
        self.first = tuple(name for name, shape in outside.items() if len(shape) == 2)
        after = architecture.decoder.last_tensors()
        vectors = [name for name, shape in outside.items() if len(shape) != 2]
        self.last = (*vectors, *(name for name in after if name != self.output))
        self._matrices = {linear.weight for linear in architecture.matrices()}
        self._source = source
        self._forward = SpeechForward(architecture)
        self._vectors: dict[str, Any] = {}

    def block(self, index: int) -> Block:
        """The record of block number `index`."""
        return self.architecture.blocks[index]

    @property
    def longest(self) -> int:
        """Rows of the largest piece: what is heard at once, and all the text that goes with it."""
        encoder = self.architecture.encoder
        rows = encoder.window or int(WINDOW_S * RATE)
        return HEADER + encoder.frames(rows) + self.architecture.decoder.context

    def record(self, block: int) -> Block:
        """What `block` is declared to be."""
        return self.block(block)

    def view(self, block: int) -> View:
        """How a block reads a piece: encoder blocks the states, decoder blocks the text beside them."""
        if block < self.encoders:
            norm = self.architecture.encoder.norm if block == self.encoders - 1 else None
            return View(False, norm, lambda piece: (split(piece)[0], None))
        return View(True, None, lambda piece: split(piece)[::-1])

    def names(self, block: int) -> Sequence[str]:
        """The tensors of `block` in order of use."""
        names = tuple(self.block(block).tensors())
        if block != self.encoders - 1:
            return names
        return (*names, *(name for name, _ in self.architecture.encoder.norm.tensors()))

    def products(self, block: int) -> Sequence[tuple[str, ...]]:
        """The matrices of `block` in order of use, those that multiply the same input together."""
        return [tuple(linear.weight for linear in group) for group in self.block(block).products()]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, convolutions as matrices."""
        return self.shapes[name]

    def is_matrix(self, name: str) -> bool:
        """True for what multiplies activations, False for norms and biases."""
        return name in self._matrices

    def embed(self, tokens: Any, weights: Mapping[str, Any]) -> F32:
        """A piece f32 [length, width] of what `Pieces` gives: sound through the stem, tokens embedded."""
        piece, length = tokens
        if not self._vectors:
            names = [name for name in self.last if len(self.shapes[name]) == 1]
            self._vectors = {name: read_tensor(self._source, name) for name in names}
        held = {**self._vectors, **weights}
        places = np.arange(len(piece.tokens), dtype=np.int32)
        hidden = self._forward.embed(np.ascontiguousarray(piece.tokens, np.int32), places, held)
        return joined(self._forward.stem(piece.rows, held), hidden, length)

    def run(self, block: int, hidden: F32, weights: Mapping[str, Any], tap: Tap | None) -> F32:
        """The piece f32 [length, width] after `block`."""
        result = np.array(hidden, np.float32)
        heard, said = split(result)
        states = np.ascontiguousarray(result[heard])
        if block < self.encoders:
            self._forward.encode(block, states, weights, tap)
            if block == self.encoders - 1:
                self._forward.finish(states, weights)
            result[heard] = states
            return result
        text = np.ascontiguousarray(result[said])
        cross = self.block(block).cross_attention
        listened = None if cross is None else listen(cross, states, weights, tap=tap)
        step = Step(np.arange(len(text), dtype=np.int32), 0)
        cache = self._cache(block, len(text))
        self._forward.advance(block - self.encoders, text, step, cache, listened, weights, tap)
        result[said] = text
        return result

    def pairs(self, block: int) -> Sequence[Pair]:
        """Producers and consumers of `block` between which scales may be folded."""
        return pairs_of(self.block(block))

    def inspect(self, block: int, pair: Pair, x: F32, weights: Mapping[str, Any]) -> F32:
        """See `side_by_side`."""

        def made(layer: Layer) -> F32:
            return self._forward.layer(block, layer, x, self._cache(block, len(x)), weights)

        return side_by_side(self.block(block), pair, x, weights, made)

    def _cache(self, block: int, length: int) -> CacheLayer:
        attention = self.block(block).attention
        assert attention is not None
        return CacheLayer.empty(attention.key_value_heads, max(length, 1), attention.head_width)
