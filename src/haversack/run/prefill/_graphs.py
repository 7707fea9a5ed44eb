"""A decoder's blocks as subgraphs of one fixed shape: what a processor of integers runs, and what one of
floats.

Paper: arXiv 2407.05858, chunk-sharing graphs. A block is cut where the processor changes: norm; query, key
and value; what these miss in floats, rotation, cache, attention; output, residual, norm, gate and up,
activation, down. A matrix whose shadow is executed adds a cut behind it. All subgraphs but those of
attention depend on the number of rows alone, so they are built once and serve every chunk of every prompt;
attention is built for each place that a chunk begins at. A subgraph computes what `layers/` does, with the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels import CacheLayer, gate, matmul_many
from haversack.models._architecture import Architecture, Attention, Block, Branch, FeedForward, Linear, Norm
from haversack.run._products import F32, Scratch, normalize, normalize_heads
from haversack.run._step import Step
from haversack.run.forms.shadow import STATIC, ShadowMatrix
from haversack.run.layers.attention import fused_norm
from haversack.run.prefill._schedule import FLOATS, INTEGERS, Subgraph

I32 = npt.NDArray[np.int32]
FLOAT_COST = 9.3
"""How many products of the integer processor take the time of one of the other, by the paper's figures and
half the processor's int8 rate for floats [assumed]; times for choosing alone."""
PASS_COST = 64.0
"""The same of a number that is only passed over [assumed]."""


class Chunk:
    """`count` tokens from position `step.start` on, and buffers of `rows` rows that they stand in."""

    def __init__(
        self, number: int, hidden: F32, count: int, step: Step, layers: Sequence[CacheLayer | None]
    ) -> None:
        self.number, self.hidden, self.count, self.step, self.layers = number, hidden, count, step, layers
        self.rows = len(hidden)
        self._scratch = Scratch(self.rows)

    def get(self, name: str, width: int) -> F32:
        """The buffer `name` f32 [rows, width]; zeros when it is new."""
        return self._scratch.get(name, self.rows, width)


class Prompt:
    """The chunks of one prompt; `written`: block -> how many of them have their keys in the cache."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks
        self.written: dict[int, int] = {}


Call = Callable[[Prompt, Chunk], None]


@dataclass
class Graph:
    """A subgraph: calls in order, and what `shape` says of it. `products`: of a row, those with weights;
    `passed`: numbers of a row that are only passed over; `nbytes`: of the weights that belong to it."""

    shape: Subgraph
    calls: list[Call]
    products: int = 0
    passed: int = 0
    seen_width: int = 0
    nbytes: int = 0

    def run(self, prompt: Prompt, chunk: Chunk) -> None:
        """Take `chunk` through it."""
        for call in self.calls:
            call(prompt, chunk)

    def cost(self, start: int, rows: int) -> float:
        """About how long it takes, in products of the integer processor, for `rows` rows from `start` on."""
        seen = 2.0 * self.seen_width * (start + rows / 2) * FLOAT_COST
        return rows * (self.products + seen + PASS_COST * self.passed)


class Graphs:
    """The subgraphs of `architecture` for chunks of `rows` tokens, over the bound `weights` of each block.

    `shadow` is one of run/forms/shadow.py's CHOICES; `attend` the attention method's function. `built` counts
    subgraphs made. Raises UserError for a block that has no subgraphs.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Sequence[Mapping[str, Any]],
        rows: int,
        shadow: str,
        attend: Callable[[F32, CacheLayer, Step, Attention], F32],
    ) -> None:
        self.rows, self.built = rows, 0
        self._attend = attend
        self.sequence: list[Graph] = []
        self._places: dict[int, list[Graph]] = {}
        for block in architecture.blocks:
            _Cutter(self, block, weights[block.index], shadow).cut()
        self.built = sum(not graph.shape.attention for graph in self.sequence)
        self.buffers = buffer_widths(architecture)

    def of_chunk(self, start: int) -> list[Graph]:
        """The sequence of a chunk that begins at `start`: attention is made for that place when first asked
        for."""
        found = self._places.get(start)
        if found is None:
            found = [Graph(**vars(one)) if one.shape.attention else one for one in self.sequence]
            self.built += sum(one.shape.attention for one in self.sequence)
            self._places[start] = found
        return found

    @property
    def shapes(self) -> list[Subgraph]:
        """What the schedule needs to know of the sequence."""
        return [graph.shape for graph in self.sequence]

    def compiled_nbytes(self) -> int:
        """Bytes of a processor whose graphs hold their weights, and of one chunk's buffers."""
        return sum(graph.nbytes for graph in self.sequence) + 4 * self.rows * self.buffers


def buffer_widths(architecture: Architecture) -> int:
    """Numbers a row of all buffers of a chunk, hidden states included."""
    width = architecture.width
    widest: dict[str, int] = {}
    for block in architecture.blocks:
        for branch in block.branches:
            inner = sum(2 * linear.outputs for group in branch.layer.products() for linear in group)
            inner += branch.layer.products()[-1][0].inputs
            widest[branch.layer.kind] = max(widest.get(branch.layer.kind, 0), inner)
    return 4 * width + sum(widest.values())


class _Cutter:
    """Appends the subgraphs of one block to `graphs.sequence`."""

    def __init__(self, graphs: Graphs, block: Block, weights: Mapping[str, Any], shadow: str) -> None:
        self.graphs, self.block, self.weights = graphs, block, weights
        self.last: Graph | None = None
        self.matrices: dict[str, ShadowMatrix] = {}
        for linear in block.matrices():
            matrix = weights[linear.weight]
            if not isinstance(matrix, ShadowMatrix):
                raise UserError(
                    "chunked:shadow needs every matrix of a block in int8 with its scales, and "
                    f"{linear.weight} has none; pack the model with --precision mllm-npu.",
                    field="prefill",
                    given="chunked:shadow",
                    nearest="chunked",
                )
            self.matrices[linear.weight] = matrix.executing(shadow)

    def cut(self) -> None:
        """All branches, in order."""
        block = self.block
        if block.parallel:
            self._add(FLOATS, _copy_entry)
        done: Norm | None = None
        for number, branch in enumerate(block.branches):
            where = INTEGERS if number else FLOATS
            entry = "entry" if block.parallel else "hidden"
            x = entry
            if branch.norm is not None:
                x = "normal"
                if branch.norm is not done:
                    self._norm(where, branch.norm, entry, x)
                done = branch.norm if block.parallel else None
            self._branch(branch, x)

    def _branch(self, branch: Branch, x: str) -> None:
        layer = branch.layer
        out = "hidden" if branch.post_norm is None else "branch"
        if isinstance(layer, Attention):
            self._attention(layer, x, out)
        elif isinstance(layer, FeedForward):
            self._feed_forward(layer, x, out)
        else:
            raise UserError(
                f"chunked:shadow has no subgraphs for {layer.kind} (block {self.block.index}); use "
                "--prefill chunked.",
                field="prefill",
                given="chunked:shadow",
                nearest="chunked",
            )
        if branch.post_norm is not None:
            self._norm(INTEGERS, branch.post_norm, "branch", "branch")
            self._add(INTEGERS, _add_branch, passed=layer.products()[-1][0].outputs)
        if branch.after_norm is not None:
            self._norm(INTEGERS, branch.after_norm, "hidden", "hidden")

    def _add(
        self,
        processor: str,
        call: Call,
        *,
        attention: bool = False,
        label: str = "",
        products: int = 0,
        passed: int = 0,
        seen_width: int = 0,
        nbytes: int = 0,
    ) -> None:
        sequence = self.graphs.sequence
        graph = sequence[-1] if sequence else None
        if graph is None or graph.shape.processor != processor or attention or graph.shape.attention:
            name = f"block {self.block.index} {label or 'norm'}"
            sequence.append(Graph(Subgraph(processor, attention, name), []))
            graph = sequence[-1]
        graph.calls.append(call)
        graph.products += products
        graph.passed += passed
        graph.seen_width += seen_width
        graph.nbytes += nbytes

    def _norm(self, processor: str, norm: Norm, x: str, out: str) -> None:
        weights, width = self.weights, norm.width

        def call(prompt: Prompt, chunk: Chunk) -> None:
            normalize(norm, _buffer(chunk, x, width), weights, _buffer(chunk, out, width))

        self._add(processor, call, passed=width)

    def _products(self, x: str, linears: Sequence[Linear], outs: Sequence[str], label: str) -> list[Call]:
        """Products that overwrite their buffers; returns what is left to do in floats."""
        matrices = [self.matrices[linear.weight] for linear in linears]
        biases = [None if one.bias is None else self.weights[one.bias] for one in linears]
        inputs = linears[0].inputs
        own = [bias if one.shadow.idle else None for one, bias in zip(matrices, biases, strict=True)]
        self._add(
            INTEGERS,
            _products(matrices, x, outs, inputs, own),
            label=label,
            products=sum(linear.inputs * linear.outputs for linear in linears),
            nbytes=sum(matrix.codes.nbytes for matrix in matrices),
        )
        later: list[Call] = []
        for matrix, out, bias in zip(matrices, outs, biases, strict=True):
            finish = _finish(matrix, x, out, out, inputs, bias, add=False)
            if matrix.in_floats:
                later.append(finish)
            elif not matrix.shadow.idle:
                self._add(INTEGERS, finish, passed=matrix.rows)
        return later

    def _product_add(self, x: str, linear: Linear, out: str, label: str) -> None:
        """A product that is added to the hidden states, or is a branch of its own."""
        matrix, add = self.matrices[linear.weight], out == "hidden"
        bias = None if linear.bias is None else self.weights[linear.bias]
        size = {"products": linear.inputs * linear.outputs, "nbytes": matrix.codes.nbytes}
        if matrix.shadow.idle:
            self._add(INTEGERS, _whole(matrix, x, out, linear.inputs, bias, add), label=label, **size)
            return
        self._add(INTEGERS, _products([matrix], x, ["integers"], linear.inputs, [None]), label=label, **size)
        finish = _finish(matrix, x, "integers", out, linear.inputs, bias, add=add)
        where = FLOATS if matrix.in_floats else INTEGERS
        self._add(where, finish, label=f"shadow of {label}", passed=linear.inputs + linear.outputs)

    def _attention(self, layer: Attention, x: str, out: str) -> None:
        names = ("query", "key", "value")
        linears = (layer.query, layer.key, layer.value)
        later = self._products(x, linears, names, "query, key, value")
        call = _attention(layer, self.block.index, self.weights, later, self.graphs._attend)
        widths = sum(linear.outputs for linear in linears)
        self._add(
            FLOATS,
            call,
            attention=True,
            label="attention",
            passed=2 * widths + layer.output.inputs,
            seen_width=layer.heads * layer.head_width,
        )
        self._product_add("seen", layer.output, out, "output")

    def _feed_forward(self, layer: FeedForward, x: str, out: str) -> None:
        linears = (layer.up,) if layer.gate is None else (layer.gate, layer.up)
        names = ("up",) if layer.gate is None else ("gate", "up")
        later = self._products(x, linears, names, "gate, up")
        for call in later:
            self._add(FLOATS, call, label="shadow of gate, up", passed=layer.up.inputs + layer.width)
        inner, other = names[0], "up" if layer.gate is not None else None

        def activate(prompt: Prompt, chunk: Chunk) -> None:
            x = chunk.get(inner, layer.width)
            up = None if other is None else chunk.get(other, layer.width)
            gate(x, up, layer.activation, out=x)

        self._add(INTEGERS, activate, label="activation", passed=2 * layer.width)
        self._product_add(inner, layer.down, out, "down")


def _buffer(chunk: Chunk, name: str, width: int) -> F32:
    return chunk.hidden if name == "hidden" else chunk.get(name, width)


def _copy_entry(prompt: Prompt, chunk: Chunk) -> None:
    chunk.get("entry", chunk.hidden.shape[1])[...] = chunk.hidden


def _add_branch(prompt: Prompt, chunk: Chunk) -> None:
    chunk.hidden += chunk.get("branch", chunk.hidden.shape[1])


def _products(
    matrices: Sequence[ShadowMatrix],
    x: str,
    outs: Sequence[str],
    inputs: int,
    biases: Sequence[F32 | None],
) -> Call:
    """Products of one input, whose integers are made once for all matrices that share its grid."""
    alike: dict[float, list[int]] = {matrix.scale: [] for matrix in matrices}
    for number, matrix in enumerate(matrices):
        alike[matrix.scale].append(number)

    def call(prompt: Prompt, chunk: Chunk) -> None:
        read = _buffer(chunk, x, inputs)
        for scale, numbers in alike.items():
            matmul_many(
                read,
                [matrices[number].codes for number in numbers],
                activations=STATIC,
                static_scale=scale,
                out=[chunk.get(outs[number], matrices[number].rows) for number in numbers],
                bias=[biases[number] for number in numbers],
            )

    return call


def _whole(matrix: ShadowMatrix, x: str, out: str, inputs: int, bias: F32 | None, add: bool) -> Call:
    def call(prompt: Prompt, chunk: Chunk) -> None:
        to = _buffer(chunk, out, matrix.rows)
        matrix.multiply(_buffer(chunk, x, inputs), to, activations=STATIC, add=add, bias=bias)

    return call


def _finish(
    matrix: ShadowMatrix, x: str, y: str, out: str, inputs: int, bias: F32 | None, *, add: bool
) -> Call:
    def call(prompt: Prompt, chunk: Chunk) -> None:
        to = _buffer(chunk, out, matrix.rows)
        products = chunk.get(y, matrix.rows)
        matrix.shadow.finish(_buffer(chunk, x, inputs), products, out=to, add=to if add else None, bias=bias)

    return call


def _attention(
    layer: Attention,
    block: int,
    weights: Mapping[str, Any],
    later: Sequence[Call],
    attend: Callable[[F32, CacheLayer, Step, Attention], F32],
) -> Call:
    """What a chunk's attention does: the keys of earlier chunks that are not in the cache yet are put there
    first, for the schedule asks only that they are computed."""
    one, two = (fused_norm(norm, layer.head_width) for norm in (layer.query_norm, layer.key_norm))

    def heads(chunk: Chunk, name: str, linear: Linear) -> F32:
        return chunk.get(name, linear.outputs)[: chunk.count].reshape(chunk.count, -1, layer.head_width)

    def write(prompt: Prompt, chunk: Chunk) -> None:
        for call in later:
            call(prompt, chunk)
        query, key = heads(chunk, "query", layer.query), heads(chunk, "key", layer.key)
        cosine, sine, style = None, None, "half"
        if layer.rope is not None:
            cosine, sine = chunk.step.tables(layer.rope)
            style = layer.rope.style
        if layer.query_norm is not None and one is None:
            normalize_heads(layer.query_norm, query, weights)
        if layer.key_norm is not None and two is None:
            normalize_heads(layer.key_norm, key, weights)
        cache = chunk.layers[block]
        assert cache is not None
        chunk.step.write(
            *(query, key, heads(chunk, "value", layer.value), cosine, sine, cache),
            style=style,
            q_norm=None if one is None else weights[one.weight],
            k_norm=None if two is None else weights[two.weight],
            eps=0.0 if one is None else one.eps,
            offset=0.0 if one is None else one.offset,
        )

    def call(prompt: Prompt, chunk: Chunk) -> None:
        for number in range(prompt.written.get(block, 0), chunk.number + 1):
            write(prompt, prompt.chunks[number])
            prompt.written[block] = number + 1
        cache = chunk.layers[block]
        assert cache is not None
        seen = chunk.get("seen", layer.output.inputs)
        found = attend(heads(chunk, "query", layer.query), cache, chunk.step, layer)
        seen[: chunk.count] = found.reshape(chunk.count, layer.output.inputs)
        seen[chunk.count :] = 0

    return call
