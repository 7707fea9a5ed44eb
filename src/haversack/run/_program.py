"""A block as one native call: its kernel calls in a list, made once while its weights stay where they are.

Between the kernels of a token lie megabytes of weights, which leave little of the interpreter in the caches:
a line of Python then costs several times what it costs alone. So a block whose weights stay in memory is run
by one call. The kernels, their order and their bits are those of `layers/`; a block with something that is
not known here (a layer of another kind, an attention method that needs more than the entries it sees, a
record with a new field) goes through `layers/`, but for the branches before a mixture of experts, which are a
program of their own.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any

from haversack.kernels import CacheLayer, Matrix, PoolLayer
from haversack.kernels.program import Program, workspace
from haversack.models._architecture import (
    Architecture,
    Attention,
    Block,
    Branch,
    FeedForward,
    Linear,
    Mixture,
    Norm,
)
from haversack.run._products import F32, activations_of
from haversack.run._step import Step
from haversack.run._weights import Steady, Weights

# Every field of these records is accounted for below; one that was added later keeps a block out of here.
_KNOWN = {
    Attention: "heads key_value_heads head_width scale query key value output rope window softcap query_norm "
    "key_norm distance",
    FeedForward: "width activation gate up down",
    Branch: "layer norm post_norm after_norm",
    Block: "index branches parallel",
    Linear: "weight inputs outputs bias",
    Norm: "weight width eps kind offset bias",
}
LEFT_OUT = object()
"""In the place of a block's program where `layers/` must run it."""
HIDDEN = 0
"""The buffer that a step's hidden states are."""


class Programs:
    """The programs of one model, made when a block's weights are first seen and kept with them.

    `activations` and `attention` are those of `Forward`. Only what an attention method says by `visible(step,
    layer)` is run here; where that is None, `layers/` must.
    """

    def __init__(self, architecture: Architecture, activations: str, attention: Any) -> None:
        self.activations = activations
        self._visible = getattr(attention, "visible", None)
        self._buffers: dict[tuple[str, int], int] = {("hidden", architecture.width): HIDDEN}
        self._space: Any = None
        self._leads = {block.index: _lead(block) for block in architecture.blocks}
        if self._visible is not None and all(map(_understood, self._leads.values())):
            for block in self._leads.values():
                self._name_buffers(block, architecture.width)
            self._space = workspace([width for _, width in self._buffers])

    def run(self, block: Block, hidden: F32, step: Step, layer: CacheLayer | None, weights: Weights) -> int:
        """Take `hidden` f32 [n, width] through the first branches of `block` in place, and return how many:
        all, those before a mixture, or 0, and nothing is done, where `layers/` must.
        """
        if self._space is None or self._visible is None:
            return 0
        pooled = type(layer) is PoolLayer
        if type(weights) is not Steady or (type(step) is not Step and not pooled):
            return 0
        lead = self._leads[block.index]
        program = weights.programs.get(self)
        if program is None:
            program = weights.programs[self] = self._make(lead, weights)
        if program is LEFT_OUT:
            return 0
        done = len(lead.branches)
        attention = lead.attention
        if attention is None:
            return done if program.run(hidden, None, None, None, 0, 0, None, None) else 0
        if not pooled and type(layer) is not CacheLayer:
            return 0
        assert layer is not None
        seen = self._visible(step, attention)
        if seen is None and not pooled:
            return 0
        cosine, sine = (None, None) if attention.rope is None else step.tables(attention.rope)
        if pooled:
            runs: Any = getattr(step, "runs", None)
            return done if program.run_pooled(hidden, layer.handle(), cosine, sine, runs, seen) else 0
        ran = program.run(
            hidden, layer.handle(), cosine, sine, step.start, seen.length, seen.start, seen.mask
        )
        return done if ran else 0

    def _name_buffers(self, block: Block, width: int) -> None:
        for branch in block.branches:
            layer = branch.layer
            wanted = [("entry", width)] if block.parallel else []
            wanted += [("normal", width), ("branch", width)]
            if isinstance(layer, Attention):
                queries = layer.query.outputs
                wanted += [("query", queries), ("key", layer.key.outputs), ("value", layer.value.outputs)]
                wanted += [("seen", queries)]
            elif isinstance(layer, FeedForward):
                wanted += [("gate", layer.width), ("up", layer.width)]
            for name in wanted:
                self._buffers.setdefault(name, len(self._buffers))

    def _make(self, block: Block, weights: Weights) -> Any:
        if not block.branches or not all(_has_steps(weights[linear.weight]) for linear in block.matrices()):
            return LEFT_OUT
        attention = block.attention
        heads, width = (1, 1) if attention is None else (attention.key_value_heads, attention.head_width)
        program = Program(self._space, heads, width)
        maker = _Maker(program, weights, self.activations, self._buffers, self._space)
        maker.block(block)
        return maker.program


class _Maker:
    """Appends the kernel calls of a block to `program`."""

    def __init__(
        self,
        program: Any,
        weights: Weights,
        activations: str,
        buffers: dict[tuple[str, int], int],
        space: Any,
    ) -> None:
        self.program, self.weights, self.activations, self.buffers = program, weights, activations, buffers
        self.space = space

    def block(self, block: Block) -> None:
        width = next(width for (_, width), number in self.buffers.items() if number == HIDDEN)
        entry, normal, branch_out = HIDDEN, self.buffers["normal", width], self.buffers["branch", width]
        if block.parallel:
            entry = self.buffers["entry", width]
            self.program.copy(HIDDEN, entry)
        for branch in block.branches:
            x = entry
            if branch.norm is not None:
                self.norm(branch.norm, entry, normal)
                x = normal
            out = HIDDEN if branch.post_norm is None else branch_out
            if isinstance(branch.layer, Attention):
                self.attention(branch.layer, x, out)
            elif isinstance(branch.layer, FeedForward):
                self.feed_forward(branch.layer, x, out)
            if branch.post_norm is not None:
                self.norm(branch.post_norm, out, out)
                self.program.add(out, HIDDEN)
            if branch.after_norm is not None:
                self.norm(branch.after_norm, HIDDEN, HIDDEN)

    def norm(self, norm: Norm, x: int, out: int) -> None:
        bias = None if norm.bias is None else self.weights[norm.bias]
        layer = norm.kind != "rms"
        self.program.norm(x, out, self.weights[norm.weight], bias, norm.eps, norm.offset, layer)

    def products(self, x: int, linears: tuple[Linear, ...], outs: list[int], add: bool = False) -> None:
        """Products of one input; those whose inputs have one type go together."""
        matrices = [self.weights[linear.weight] for linear in linears]
        if not all(type(matrix) is Matrix for matrix in matrices):
            for matrix, linear, out in zip(matrices, linears, outs, strict=True):
                bias = None if linear.bias is None else self.weights[linear.bias]
                self.product(x, matrix, out, bias, add)
            return
        types = [activations_of(matrix, self.activations) for matrix in matrices]
        for start in [i for i in range(len(types)) if i == 0 or types[i] != types[i - 1]]:
            stop = start
            while stop < len(types) and types[stop] == types[start]:
                stop += 1
            biases = [None if one.bias is None else self.weights[one.bias] for one in linears[start:stop]]
            self.program.products(x, matrices[start:stop], outs[start:stop], biases, add, types[start])

    def product(self, x: int, matrix: Any, out: int, bias: F32 | None, add: bool) -> None:
        """The product with one matrix, or the steps of a form."""
        if type(matrix) is Matrix:
            kind = activations_of(matrix, self.activations)
            self.program.products(x, [matrix], [out], [bias], add, kind)
        else:
            matrix.append(self, x, out, bias, add)

    def buffer(self, name: str, width: int) -> int:
        """The buffer `name` of `width` numbers a row, made when first asked for."""
        if (name, width) not in self.buffers:
            self.buffers[name, width] = self.space.append(width)
        return self.buffers[name, width]

    def attention(self, layer: Attention, x: int, out: int) -> None:
        names = ("query", layer.query), ("key", layer.key), ("value", layer.value)
        query, key, value = (self.buffers[name, linear.outputs] for name, linear in names)
        seen = self.buffers["seen", layer.query.outputs]
        self.products(x, (layer.query, layer.key, layer.value), [query, key, value])
        one, two = layer.query_norm, layer.key_norm
        assert not isinstance(one, tuple) and not isinstance(two, tuple), "_understood"
        if one is not None and one.width != layer.head_width:  # of all heads together
            self.norm(one, query, query)
            one = None
        if two is not None and two.width != layer.head_width:
            self.norm(two, key, key)
            two = None
        self.program.rope_write(
            query,
            key,
            value,
            None if one is None else self.weights[one.weight],
            None if two is None else self.weights[two.weight],
            0.0 if one is None else one.eps,
            0.0 if one is None else one.offset,
            "half" if layer.rope is None else layer.rope.style,
        )
        self.program.attention(query, seen, layer.scale, layer.softcap)
        self.products(seen, (layer.output,), [out], add=out == HIDDEN)

    def feed_forward(self, layer: FeedForward, x: int, out: int) -> None:
        up, gate = self.buffers["up", layer.width], self.buffers["gate", layer.width]
        if layer.gate is None:
            self.products(x, (layer.up,), [up])
            self.program.gate(up, None, up, layer.activation)
            inner = up
        else:
            self.products(x, (layer.gate, layer.up), [gate, up])
            self.program.gate(gate, up, gate, layer.activation)
            inner = gate
        self.products(inner, (layer.down,), [out], add=out == HIDDEN)


def _lead(block: Block) -> Block:
    """`block` without its mixture of experts and what comes behind it."""
    kinds = [isinstance(branch.layer, Mixture) for branch in block.branches]
    if True not in kinds:
        return block
    return replace(block, branches=() if block.parallel else block.branches[: kinds.index(True)])


def _has_steps(weight: Any) -> bool:
    """True for a matrix, and for a form that says what it does in a program."""
    return type(weight) is Matrix or hasattr(weight, "append")


def _understood(block: Block) -> bool:
    """True when a program does all that the records of `block` say."""
    records: list[Any] = [block, *block.branches, *block.matrices()]
    for branch in block.branches:
        records.append(branch.layer)
        records += branch.norms()
    if not {type(record) for record in records} <= _known_kinds():
        return False
    if sum(isinstance(branch.layer, Attention) for branch in block.branches) > 1:
        return False
    attention = block.attention
    if attention is not None and attention.distance is not None:
        return False
    norms = () if attention is None else (attention.query_norm, attention.key_norm)
    return all(norm is None or (isinstance(norm, Norm) and norm.kind == "rms") for norm in norms)


@cache
def _known_kinds() -> frozenset[Any]:
    return frozenset(
        kind for kind, names in _KNOWN.items() if {field.name for field in fields(kind)} == set(names.split())
    )
