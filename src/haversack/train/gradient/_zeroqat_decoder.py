"""A language model whose matrices and inputs are rounded at every pass: what ZeroQAT takes its losses from.

Paper: ZeroQAT (arXiv 2509.00031, 2025); see zeroqat.py.
Passes are the engine's own (run/_forward.py): one block at a time over some texts, a block's matrices bound
when its turn comes. A matrix is `held` as it lies in its pack, mapped, or is a `master` in f32 that is
smoothed, clipped and rounded for each pass and forgotten after the block. So at any time there are the
masters, one block of rounded ones and the states of the texts, and no PyTorch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.pack import Pack
from haversack.kernels import CacheLayer, Matrix
from haversack.models._architecture import Block
from haversack.models._evaluation import token_bits
from haversack.run._forward import Forward
from haversack.run._products import product
from haversack.run._source import Model
from haversack.run._step import Step
from haversack.run._weights import FLOAT_KINDS, bind
from haversack.train.gradient._zeroqat_grid import OFF, rounded, rounded_inputs
from haversack.train.gradient._zeroqat_smoothing import Place, moved, places_of

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

HEAD_ROWS = 32
"""Positions whose logits exist at once."""
TOKENS = 512
"""Tokens whose states exist at once: more texts of a step pass one group after the other."""


@dataclass(frozen=True)
class Bits:
    """How a model is rounded: bits of weights and of inputs (16: not at all), columns of a group (None: whole
    rows)."""

    weights: int
    inputs: int
    group: int | None = None

    def __str__(self) -> str:
        group = "" if self.group is None else f"g{self.group}"
        return f"W{self.weights}A{self.inputs}{group}"


@dataclass
class Rows:
    """What one step reads: texts `tokens` i32 [n], and entries, each some `places` of one text and the tokens
    that come there. `of`: the text of each entry (None: one entry a text)."""

    tokens: Sequence[I32]
    places: Sequence[I32]
    targets: Sequence[I32]
    of: Sequence[int] | None = None

    @classmethod
    def of_texts(cls, texts: npt.NDArray[Any]) -> Rows:
        """Texts [rows, n + 1] of which every token but the first counts."""
        inside = np.ascontiguousarray(texts, np.int32)
        places = np.arange(inside.shape[1] - 1, dtype=np.int32)
        return cls([row[:-1] for row in inside], [places] * len(inside), [row[1:] for row in inside])


class RoundedInput:
    """A matrix whose inputs are rounded first. Those of one input share `given`, which the `first` of them
    makes."""

    def __init__(self, matrix: Any, bits: int, given: list[F32], first: bool) -> None:
        self.matrix, self.bits, self.given, self.first = matrix, bits, given, first
        self.rows, self.columns, self.kind = matrix.rows, matrix.columns, matrix.kind

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound of run/_forms.py."""
        if self.first:
            self.given[:] = [rounded_inputs(x, self.bits)]
        product(self.given[0], self.matrix, out, "f32", bias, add=add)


class RoundedDecoder:
    """The model of `model` (a prepared pack or a checkpoint), rounded as `bits` say.

    `masters`: names of the matrices that are kept in f32 and rounded anew for each pass; the others are
    multiplied as they are stored. `clips` f32 [2, rows, groups] of each master (zeroqat's a and b).
    `factors`: whether a logarithm of s is learned for each place, from 0.
    """

    def __init__(
        self,
        model: Model,
        bits: Bits,
        masters: Sequence[str],
        clips: Mapping[str, F32],
        *,
        factors: bool = False,
    ) -> None:
        self.model, self.architecture, self.bits = model, model.architecture, bits
        self.masters: dict[str, F32] = {name: floats(model, name) for name in masters}
        self.clips = {name: np.array(clips[name], np.float32) for name in masters}
        self.places: dict[int, tuple[Place, ...]] = {}
        self.factors: dict[str, F32] = {}
        if factors:
            self._place_factors()
        self._forward = Forward(model.architecture)
        self._steps: dict[int, Step] = {}
        self._caches: dict[tuple[int, int], CacheLayer] = {}
        self._held: dict[int, dict[str, Any]] = {}

    def _place_factors(self) -> None:
        shapes = self.architecture.tensors()
        for block in self.architecture.blocks:
            found = [
                place
                for place in places_of(block)
                if place.learns and all(name in self.masters for name, _ in place.consumers)
            ]
            self.places[block.index] = tuple(
                place for place in found if place.kind == "norm" or place.producer in self.masters
            )
            for place in self.places[block.index]:
                self.factors[place.producer] = np.zeros(shapes[place.producer][0], np.float32)

    # ------------------------------------------------------------------------------------------- losses

    def loss(self, rows: Rows) -> float:
        """Mean cross-entropy in nats of the tokens that count."""
        losses = self.token_losses(rows)
        return float(np.concatenate(losses).mean())

    def token_losses(self, rows: Rows) -> list[npt.NDArray[np.float64]]:
        """Nats of each token that counts, by entry. At most TOKENS tokens pass at once, or one text."""
        entries: list[list[int]] = [[] for _ in rows.tokens]
        for entry in range(len(rows.places)):
            entries[entry if rows.of is None else rows.of[entry]].append(entry)
        found: list[Any] = [None] * len(rows.places)
        start = 0
        while start < len(rows.tokens):
            stop, tokens = start + 1, len(rows.tokens[start])
            while stop < len(rows.tokens) and tokens + len(rows.tokens[stop]) <= TOKENS:
                tokens += len(rows.tokens[stop])
                stop += 1
            states = self.states(rows.tokens[start:stop])
            own = [(text, entry) for text in range(start, stop) for entry in entries[text]]
            chosen = [states[text - start][rows.places[entry]] for text, entry in own]
            targets = [np.asarray(rows.targets[entry], np.int32) for _, entry in own]
            edges = np.cumsum([len(each) for each in targets])[:-1]
            losses = self._losses(np.concatenate(chosen), np.concatenate(targets)) if own else np.empty(0)
            for (_, entry), each in zip(own, np.split(losses, edges), strict=True):
                found[entry] = each
            start = stop
        return found

    def _losses(self, states: F32, targets: I32) -> npt.NDArray[np.float64]:
        """Nats of targets [n] after states f32 [n, width]."""
        pieces = [slice(start, start + HEAD_ROWS) for start in range(0, len(targets), HEAD_ROWS)]
        losses = [token_bits(self._logits(states[part]), targets[part]) for part in pieces]
        return np.concatenate(losses) * math.log(2)

    def states(self, texts: Sequence[I32]) -> list[F32]:
        """What the last block gives for each text, f32 [n, width] each."""
        hidden = [self._embedded(tokens) for tokens in texts]
        for block in self.architecture.blocks:
            self.through(block, hidden)
        return hidden

    def through(self, block: Block, hidden: Sequence[F32], tap: Any = None) -> None:
        """Take texts f32 [n, width] through `block` in place."""
        weights = self.bound(block)
        for state in hidden:
            step = self._step(len(state))
            self._forward.advance(block, state, step, self._cache(block, len(state)), weights, tap)

    # ------------------------------------------------------------------------------------------- weights

    def bound(self, block: Block) -> dict[str, Any]:
        """What `block` multiplies by in this pass."""
        held = self._held.get(block.index)
        if held is None:  # mapped, or small: what lies there costs nothing to keep
            names = [name for name in block.tensors() if name not in self.masters]
            self._held[block.index] = held = bind(self.model.source, names)
        return rounded_block(block, self.tensors(block), held, self.clips, self.bits)

    def tensors(self, block: Block) -> dict[str, F32]:
        """The masters of `block`, and the vectors beside them where factors learn, smoothed by what was
        learned of factors."""
        found = {name: self.masters[name] for name in block.tensors() if name in self.masters}
        places = self.places.get(block.index, ())
        if places:
            vectors = [name for name, shape in block.tensors().items() if len(shape) == 1]
            found |= {name: np.array(value) for name, value in bind(self.model.source, vectors).items()}
        for place in places:
            found.update(moved(place, found, np.exp(self.factors[place.producer])))
        return found

    # ------------------------------------------------------------------------------------------- parts

    def _embedded(self, tokens: I32) -> F32:
        top, learned = self._top, self.architecture.positions
        places = None
        if learned is not None:
            rows = np.arange(learned.offset, learned.offset + len(tokens), dtype=np.int32)
            places = (top[learned.weight], rows)
        return self._forward.embed(
            np.ascontiguousarray(tokens, np.int32), top[self.architecture.embedding], top, places
        )

    def _logits(self, states: F32) -> F32:
        normal = self._forward.finish(states, self._top)
        bias = self.architecture.head.bias
        head = self._top[self.architecture.head.weight]
        return self._forward.head(normal, head, None, None if bias is None else self._top[bias])

    @cached_property
    def _top(self) -> dict[str, Any]:
        return bind(self.model.source, self.architecture.top_tensors())

    def _step(self, length: int) -> Step:
        if length not in self._steps:
            self._steps[length] = Step(np.arange(length, dtype=np.int32), 0)
        return self._steps[length]

    def _cache(self, block: Block, length: int) -> CacheLayer | None:
        attention = block.attention
        if attention is None:
            return None
        shape = (attention.key_value_heads, attention.head_width)
        found = self._caches.get(shape)
        if found is None or found.capacity < length:
            found = CacheLayer.empty(shape[0], length, shape[1], "f32")
            self._caches[shape] = found
        return found


def rounded_block(
    block: Block, tensors: Mapping[str, F32], held: Mapping[str, Any], clips: Mapping[str, F32], bits: Bits
) -> dict[str, Any]:
    """What `block` multiplies by: matrices of `tensors` clipped and rounded, those of `held` as they are;
    vectors of `tensors` before those of `held`."""
    found: dict[str, Any] = {**held, **tensors}
    for group in block.products():
        given: list[F32] = []
        for index, linear in enumerate(group):
            name = linear.weight
            matrix: Any = held.get(name)
            if name in tensors:
                values = rounded(tensors[name], bits.weights, bits.group, clips[name])
                matrix = Matrix.from_array(values)
            if bits.inputs < OFF:
                matrix = RoundedInput(matrix, bits.inputs, given, index == 0)
            found[name] = matrix
    return found


def floats(model: Model, name: str) -> F32:
    """The tensor `name` as f32, a copy. A pack's are read past its mapping and not left in the page cache:
    they would count a second time beside the copy."""
    source: Any = model.source
    shape = model.architecture.tensors()[name]
    entry = source.tensors.get(name)
    if isinstance(source, Pack) and entry is not None and entry.kind == "f32":
        with (source.path / entry.file).open("rb") as file:
            file.seek(entry.offset)
            found = np.fromfile(file, "<f4", entry.nbytes // 4).reshape(shape)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), entry.offset, entry.nbytes, os.POSIX_FADV_DONTNEED)
        return found.astype(np.float32, copy=False)
    from haversack.run.export._tensors import numbers

    pieces = [np.asarray(piece, np.float32).reshape(-1) for piece in numbers(source, name)]
    return np.concatenate(pieces).reshape(shape)


def block_matrices(model: Model) -> Iterator[str]:
    """The matrices inside blocks, in order of use."""
    for block in model.architecture.blocks:
        for linear in block.matrices():
            yield linear.weight


def float_matrices(model: Model) -> tuple[str, ...]:
    """The matrices of blocks that are stored as floats."""
    tensors = model.source.tensors
    return tuple(
        name for name in block_matrices(model) if name in tensors and tensors[name].kind in FLOAT_KINDS
    )
