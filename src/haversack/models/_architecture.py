"""What a model is made of, without its weights: a record that every family maps its config to.

A block is a declared list of branches. Each branch is one layer (attention, feed-forward, ...) with the norms
around it; sequential blocks add one branch after the other to the hidden state, parallel ones all read the
block's input::

    hidden = after_norm(hidden + post_norm(layer(norm(hidden))))

Records name tensors as the hub does, so that a pack and a hub folder load through the same code; where a
family's checkpoints keep several matrices in one tensor, or a matrix turned over, the records name the single
ones and `Part`s say where they are. A new kind of layer is a record here and a file of the same name in
`run/layers/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from haversack.models._distance import DistanceBias
from haversack.models._rope import Rope

ACTIVATIONS = ("silu", "gelu", "gelu-tanh", "relu")


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis of width `width`: `kind` rms (weight + `offset`, no bias) or layer (with
    bias).

    `weight` and `bias` are tensor names.
    """

    weight: str
    width: int
    eps: float
    kind: str = "rms"
    offset: float = 0.0
    bias: str | None = None

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(tensor name, shape) of each tensor."""
        yield self.weight, (self.width,)
        if self.bias is not None:
            yield self.bias, (self.width,)


@dataclass(frozen=True)
class Linear:
    """A matrix [outputs, inputs] named `weight`, with an optional bias [outputs]."""

    weight: str
    inputs: int
    outputs: int
    bias: str | None = None

    @classmethod
    def named(cls, module: str, inputs: int, outputs: int, bias: bool = False) -> Linear:
        """The linear layer whose tensors are `module`.weight and, with `bias`, `module`.bias."""
        return cls(f"{module}.weight", inputs, outputs, f"{module}.bias" if bias else None)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(tensor name, shape) of each tensor."""
        yield self.weight, (self.outputs, self.inputs)
        if self.bias is not None:
            yield self.bias, (self.outputs,)


@dataclass(frozen=True)
class Part:
    """Where a checkpoint of the hub keeps the tensor `name`: `shape` is that of `holder`, whose rows from
    `first` on it is.

    `transposed`: the holder is a matrix [inputs, outputs], and it is the columns from `first` on.
    """

    name: str
    holder: str
    shape: tuple[int, ...]
    first: int = 0
    transposed: bool = False


def parts_of(module: str, linears: Sequence[Linear], *, transposed: bool = False) -> tuple[Part, ...]:
    """The parts of `module`.weight, and `module`.bias, that are `linears`, one after the other.

    All multiply inputs of the same width; all or none have biases.
    """
    rows, columns = sum(linear.outputs for linear in linears), linears[0].inputs
    shape = (columns, rows) if transposed else (rows, columns)
    found: list[Part] = []
    first = 0
    for linear in linears:
        found.append(Part(linear.weight, f"{module}.weight", shape, first, transposed))
        if linear.bias is not None:
            found.append(Part(linear.bias, f"{module}.bias", (rows,), first))
        first += linear.outputs
    return tuple(found)


@dataclass(frozen=True)
class Positions:
    """A learned vector for every position: the token at position p gets row p + `offset` of the matrix
    `weight` [count, width] added to its embedding.
    """

    weight: str
    count: int
    offset: int = 0


HeadNorm = Norm | tuple[Norm, ...]
"""The norm of all heads (as wide as one, or as all together), or one norm for each."""


@dataclass(frozen=True)
class Attention:
    """Grouped-query self-attention over a cache.

    `window`: a query sees the last `window` positions, itself included; None sees all. `rope` None leaves
    positions out. `query_norm` and `key_norm` normalize each head, or, when as wide as all heads, these
    together. `scale` multiplies the products of query and key, `softcap` bounds them by
    softcap * tanh(. / softcap), `distance` adds to them.
    """

    kind: ClassVar[str] = "attention"

    heads: int
    key_value_heads: int
    head_width: int
    scale: float
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    rope: Rope | None = None
    window: int | None = None
    softcap: float | None = None
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    distance: DistanceBias | None = None

    def products(self) -> tuple[tuple[Linear, ...], ...]:
        """The matrix products in order; those in one tuple multiply the same input."""
        return (self.query, self.key, self.value), (self.output,)

    def cache_nbytes(self, entries: int, cache_type: str = "f32") -> int:
        """Bytes of keys and values (and scales, for int8) of `entries` tokens."""
        number = {"f32": 4, "f16": 2, "int8": 1}[cache_type]
        entry = self.head_width * number + (4 if cache_type == "int8" else 0)
        return 2 * self.key_value_heads * entries * entry

    def norms(self) -> tuple[Norm, ...]:
        """The norms inside the layer."""
        found: tuple[Norm, ...] = ()
        for norm in (self.query_norm, self.key_norm):
            found += norm if isinstance(norm, tuple) else () if norm is None else (norm,)
        return found


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) when `gate` is None."""

    kind: ClassVar[str] = "feed_forward"

    width: int
    activation: str
    gate: Linear | None
    up: Linear
    down: Linear

    def products(self) -> tuple[tuple[Linear, ...], ...]:
        """The matrix products in order; those in one tuple multiply the same input."""
        return (self.up,) if self.gate is None else (self.gate, self.up), (self.down,)

    def norms(self) -> tuple[Norm, ...]:
        """The norms inside the layer."""
        return ()


@dataclass(frozen=True)
class CrossAttention:
    """Attention of a decoder's tokens to the states of an encoder, whose keys and values are made once.

    `query` multiplies the tokens, `key` and `value` the encoder's states; every token sees every state.
    """

    kind: ClassVar[str] = "cross_attention"

    heads: int
    key_value_heads: int
    head_width: int
    scale: float
    query: Linear
    key: Linear
    value: Linear
    output: Linear

    def products(self) -> tuple[tuple[Linear, ...], ...]:
        """The matrix products in order; those in one tuple multiply the same input."""
        return (self.key, self.value), (self.query,), (self.output,)

    def norms(self) -> tuple[Norm, ...]:
        """The norms inside the layer."""
        return ()


SCORINGS = ("softmax", "sigmoid")
SCORED = ("all", "chosen")
TAPS = ("normed", "residual")


@dataclass(frozen=True)
class Mixture:
    """Feed-forward layers of which a token takes the `top` that its router rates highest; what they make of
    it is added up by the shares that the router gives them.

    `router` makes a number for each of `experts`. The share of a chosen one is its score: `scoring` (softmax
    or sigmoid) of `scored`, "all" numbers or those of the "chosen" experts alone; `normalized`: divided by
    the sum of the chosen scores. `tap` is what the router reads: "normed", the layer's own input, or
    "residual", the block's input as it comes, before norms and attention, so that the choice is known while
    attention computes. `shared` takes every token; `shared_gate` [1, width], where there is one, makes the
    number whose sigmoid multiplies that. An expert takes the first `capacity` tokens of a text that chose it
    (None: all), and the others get nothing; a text that is being written comes token by token and never has
    so many.
    """

    kind: ClassVar[str] = "mixture"

    router: Linear
    experts: tuple[FeedForward, ...]
    top: int
    scoring: str = "softmax"
    scored: str = "all"
    normalized: bool = False
    tap: str = "normed"
    shared: FeedForward | None = None
    shared_gate: Linear | None = None
    capacity: int | None = None

    def routers(self) -> tuple[Linear, ...]:
        """The matrices that decide, and are too small to be worth rounding: router and gate of the shared
        expert.
        """
        return (self.router,) if self.shared_gate is None else (self.router, self.shared_gate)

    def products(self) -> tuple[tuple[Linear, ...], ...]:
        """The matrix products in order; those in one tuple multiply the same input, but an expert's only
        that of the tokens that chose it.
        """
        found: list[tuple[Linear, ...]] = [(self.router,)]
        for expert in self.experts:
            found += expert.products()
        if self.shared_gate is not None:
            found.append((self.shared_gate,))
        if self.shared is not None:
            found += self.shared.products()
        return tuple(found)

    def norms(self) -> tuple[Norm, ...]:
        """The norms inside the layer."""
        return ()


Layer = Attention | CrossAttention | FeedForward | Mixture


@dataclass(frozen=True)
class Branch:
    """One layer and the norms around it: before it, on its result, and on the sum with what it was added
    to.
    """

    layer: Layer
    norm: Norm | None = None
    post_norm: Norm | None = None
    after_norm: Norm | None = None

    def norms(self) -> tuple[Norm, ...]:
        """All norms of the branch, the layer's own included."""
        around = tuple(n for n in (self.norm, self.post_norm, self.after_norm) if n is not None)
        return around + self.layer.norms()


@dataclass(frozen=True)
class Block:
    """One block: its branches in order.

    `parallel`: all read the block's input instead of one another's sum.
    """

    index: int
    branches: tuple[Branch, ...]
    parallel: bool = False

    @cached_property
    def cross_attention(self) -> CrossAttention | None:
        """The block's attention to an encoder; None when the block has none."""
        for branch in self.branches:
            if isinstance(branch.layer, CrossAttention):
                return branch.layer
        return None

    @cached_property
    def attention(self) -> Attention | None:
        """The block's attention, which owns its part of the cache; None when the block has none."""
        for branch in self.branches:
            if isinstance(branch.layer, Attention):
                return branch.layer
        return None

    @cached_property
    def mixture(self) -> Mixture | None:
        """The block's mixture of experts; None when the block has none."""
        for branch in self.branches:
            if isinstance(branch.layer, Mixture):
                return branch.layer
        return None

    def products(self) -> tuple[tuple[Linear, ...], ...]:
        """The matrix products of the block in order of use; those in one tuple multiply the same input."""
        groups = [group for branch in self.branches for group in branch.layer.products()]
        mixture = self.mixture
        if mixture is not None and mixture.tap == "residual":
            groups.remove((mixture.router,))
            groups.insert(0, (mixture.router,))
        return tuple(groups)

    def matrices(self) -> tuple[Linear, ...]:
        """Every matrix of the block, in order of use."""
        return tuple(linear for group in self.products() for linear in group)

    def read_by_one(self) -> tuple[Linear, ...]:
        """The matrices that one token meets, in order: of a mixture as many experts as take it, the first
        ones in the place of any.
        """
        mixture = self.mixture
        left = () if mixture is None else mixture.experts[mixture.top :]
        others = {linear for expert in left for group in expert.products() for linear in group}
        return tuple(linear for linear in self.matrices() if linear not in others)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of everything the block holds."""
        found: dict[str, tuple[int, ...]] = {}
        for branch in self.branches:
            for norm in branch.norms():
                found.update(norm.tensors())
        for linear in self.matrices():
            found.update(linear.tensors())
        return found


@dataclass(frozen=True)
class Reader:
    """The part of a model that reads a text before another is written: the first `blocks` of its blocks,
    which see the text both ways, and the `norm` behind them. The written text begins with the token `start`.
    `embedding`: that of the text that is read, where it has one of its own.
    """

    blocks: int
    norm: Norm
    start: int
    embedding: str | None = None


@dataclass(frozen=True)
class Architecture:
    """A decoder: token embedding, blocks, final norm, output matrix; with a `reader`, an encoder before it.

    `embedding` is the name of the matrix [vocabulary, width]; `head.weight` is the same name when it is tied.
    `context` is the largest number of positions the model was made for. `start_of_text` is the token that
    begins a text (None when there is none), `end_of_text` the tokens that end one. `embedding_scale`
    multiplies the embedding, `head_scale` the states that meet the output matrix; `logit_softcap` bounds the
    logits.

    `positions` are added to the embedding. An embedding of another width than the blocks' goes through
    `project_in`, and the last hidden state through `project_out` before it meets the output matrix. `parts`
    say which tensors a checkpoint of the hub keeps inside others.
    """

    family: str
    vocabulary: int
    width: int
    context: int
    embedding: str
    blocks: tuple[Block, ...]
    final_norm: Norm | None
    head: Linear
    start_of_text: int | None = None
    end_of_text: tuple[int, ...] = ()
    embedding_scale: float = 1.0
    head_scale: float = 1.0
    logit_softcap: float | None = None
    positions: Positions | None = None
    project_in: Linear | None = None
    project_out: Linear | None = None
    parts: tuple[Part, ...] = ()
    reader: Reader | None = None

    @property
    def reading(self) -> tuple[Block, ...]:
        """The blocks of the encoder; none of a decoder alone."""
        return () if self.reader is None else self.blocks[: self.reader.blocks]

    @property
    def writing(self) -> tuple[Block, ...]:
        """The blocks of the decoder."""
        return self.blocks if self.reader is None else self.blocks[self.reader.blocks :]

    @cached_property
    def distances(self) -> tuple[DistanceBias, ...]:
        """What biases attention by distance, each matrix once."""
        attentions = (block.attention for block in self.blocks)
        found = (attention.distance for attention in attentions if attention is not None)
        return tuple(dict.fromkeys(one for one in found if one is not None))

    @property
    def tied(self) -> bool:
        """True when the output matrix is the embedding."""
        return self.head.weight == self.embedding

    @cached_property
    def changes_at(self) -> int | None:
        """The length beyond which a text has other rotary frequencies throughout; None when it never has."""
        attentions = (block.attention for block in self.blocks)
        ropes = [attention.rope for attention in attentions if attention is not None]
        found = [rope.changes_at() for rope in ropes if rope is not None and rope.changes_once()]
        return min((length for length in found if length is not None), default=None)

    @property
    def embedding_width(self) -> int:
        """Width of the embedding."""
        return self.width if self.project_in is None else self.project_in.inputs

    def first_tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of what comes before the blocks: embedding, its projection, positions, what
        attention is biased by, and the norm of an encoder.
        """
        found: dict[str, tuple[int, ...]] = {self.embedding: (self.vocabulary, self.embedding_width)}
        if self.project_in is not None:
            found.update(self.project_in.tensors())
        if self.positions is not None:
            found[self.positions.weight] = (self.positions.count, self.width)
        found.update((bias.weight, (bias.buckets, bias.heads)) for bias in self.distances)
        if self.reader is not None:
            found.update(self.reader.norm.tensors())
            if self.reader.embedding is not None:
                found[self.reader.embedding] = (self.vocabulary, self.width)
        return found

    def last_tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of what comes after the blocks: final norm, projection, output matrix."""
        found: dict[str, tuple[int, ...]] = {}
        if self.final_norm is not None:
            found.update(self.final_norm.tensors())
        if self.project_out is not None:
            found.update(self.project_out.tensors())
        found.update(self.head.tensors())
        if self.tied:
            del found[self.embedding]
        return found

    def top_tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of what lies outside the blocks."""
        return self.first_tensors() | self.last_tensors()

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of the whole model, in order of first use."""
        found = self.first_tensors()
        for block in self.blocks:
            found.update(block.tensors())
        return found | self.last_tensors()

    def checkpoint_tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of the whole model as a checkpoint of the hub keeps it."""
        parts = {part.name: part for part in self.parts}
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in self.tensors().items():
            part = parts.get(name)
            found.update({name: shape} if part is None else {part.holder: part.shape})
        return found

    def matrices(self) -> tuple[Linear, ...]:
        """Every matrix that multiplies, in order of use; the output matrix is the last."""
        first = () if self.project_in is None else (self.project_in,)
        last = (self.head,) if self.project_out is None else (self.project_out, self.head)
        return (*first, *(linear for block in self.blocks for linear in block.matrices()), *last)

    def cache_nbytes(self, capacity: int, cache_type: str = "f32") -> int:
        """Bytes of keys and values (and scales, for int8) of `capacity` tokens, every layer keeping all."""
        attentions = (block.attention for block in self.writing)
        return sum(one.cache_nbytes(capacity, cache_type) for one in attentions if one is not None)
