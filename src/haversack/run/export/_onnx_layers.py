"""A decoder's layers as ONNX nodes: rotary positions, what is seen, attention over a cache, feed-forward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.models._architecture import Attention, FeedForward, HeadNorm, Norm
from haversack.models._rope import Rope
from haversack.run.export._onnx_graph import Graph

LOWEST = float(np.finfo(np.float32).min)


class Step:
    """What all layers share: sizes and positions of the call, rotary tables, masks; made when first asked."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        shape = graph.add("Shape", "input_ids")
        self.batch, self.count = graph.slice(shape, 0, 1, 0), graph.slice(shape, 1, 2, 0)
        self.total = graph.slice(graph.add("Shape", "attention_mask"), 1, 2, 0)
        self.positions = graph.add("Cast", "position_ids", to=1)
        self.entry = ""
        """What the block that is written reads, before its norms."""
        self._tables: dict[Rope, tuple[str, str]] = {}
        self._masks: dict[int | None, str] = {}

    def tables(self, rope: Rope) -> tuple[str, str]:
        """Cosine and sine [batch, 1, n, width / 2]."""
        if rope not in self._tables:
            graph = self.graph
            places = graph.add("Unsqueeze", self.positions, graph.whole(1, 3))
            angles = graph.add("Mul", places, self._frequencies(rope))
            factor = graph.constant(rope.attention_factor)
            found = [graph.add("Mul", graph.add(kind, angles), factor) for kind in ("Cos", "Sin")]
            self._tables[rope] = found[0], found[1]
        return self._tables[rope]

    def _frequencies(self, rope: Rope) -> str:
        """[width / 2]; where they depend on the length of the text, that is the highest position and one."""
        graph = self.graph
        beyond = rope.changes_at()
        if beyond is None:
            return graph.constant(rope.inverse_frequencies())
        last = graph.add("ReduceMax", self.positions, keepdims=0)
        length = graph.add("Add", last, graph.constant(1.0))
        if rope.scaling == "dynamic":
            length = graph.add("Max", length, graph.constant(float(beyond)))
            stretch = graph.add("Mul", length, graph.constant(rope.factor / rope.original_context))
            stretch = graph.add("Sub", stretch, graph.constant(rope.factor - 1))
            power = graph.add("Pow", stretch, graph.constant(rope.width / (rope.width - 2)))
            theta = graph.add("Mul", power, graph.constant(rope.theta))
            exponents = -np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
            return graph.add("Pow", theta, graph.constant(exponents))
        if rope.changes_once():
            short, long = rope.inverse_frequencies(0), rope.inverse_frequencies(beyond + 1)
            longer = graph.add("Greater", length, graph.constant(float(beyond)))
            return graph.add("Where", longer, graph.constant(long), graph.constant(short))
        raise UserError(
            f"rope scaling {rope.scaling!r} has no form in ONNX.", field="rope", given=rope.scaling
        )

    def mask(self, window: int | None) -> str:
        """What is added to the scores, f32 [batch, 1, 1, n, total]: 0 for what a token sees, else the
        lowest number."""
        if window not in self._masks:
            graph = self.graph
            zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
            total = graph.add("Squeeze", self.total)
            past = graph.add("Sub", total, graph.add("Squeeze", self.count))
            row = graph.add("Unsqueeze", graph.add("Range", past, total, one), graph.whole(1))
            column = graph.add("Unsqueeze", graph.add("Range", zero, total, one), graph.whole(0))
            seen = graph.add("LessOrEqual", column, row)
            if window is not None:
                oldest = graph.add("Sub", row, graph.constant(window, np.int64))
                seen = graph.add("And", seen, graph.add("Greater", column, oldest))
            given = graph.add("Unsqueeze", graph.add("Cast", "attention_mask", to=9), graph.whole(1, 2, 3))
            seen = graph.add("And", given, seen)
            self._masks[window] = graph.add("Where", seen, graph.constant(0.0), graph.constant(LOWEST))
        return self._masks[window]


def attention(graph: Graph, step: Step, layer: Attention, x: str, index: int) -> str:
    """Attention of x [batch * n, width] over `past_key_values.index` and itself; writes `present.index`."""
    heads, width = layer.heads, layer.head_width
    shared = layer.key_value_heads

    def split(linear: Any, count: int, norm: Any) -> str:
        """[batch, count, n, width], its heads normalized."""
        out = graph.linear(x, linear)
        together = isinstance(norm, Norm) and norm.width != width
        if together:
            out = graph.norm(out, norm)
        out = graph.reshape(out, step.batch, step.count, count, width)
        out = graph.add("Transpose", out, perm=[0, 2, 1, 3])
        return out if norm is None or together else _head_norm(graph, out, norm)

    query = split(layer.query, heads, layer.query_norm)
    key = split(layer.key, shared, layer.key_norm)
    value = split(layer.value, shared, None)
    if layer.rope is not None:
        query, key = (_turn(graph, one, layer.rope, step.tables(layer.rope)) for one in (query, key))
    at = layer.output.weight.removesuffix(".weight").rpartition(".")[0]
    graph.mark(f"{at}.qk", "input2", key)
    key = graph.add("Concat", f"past_key_values.{index}.key", key, axis=2, out=f"present.{index}.key")
    value = graph.add("Concat", f"past_key_values.{index}.value", value, axis=2, out=f"present.{index}.value")
    grouped = graph.reshape(query, step.batch, shared, heads // shared, step.count, width)
    keys = graph.add("Transpose", graph.add("Unsqueeze", key, graph.whole(2)), perm=[0, 1, 2, 4, 3])
    scores = graph.add("Mul", graph.add("MatMul", grouped, keys), graph.constant(layer.scale))
    if layer.softcap is not None:
        scores = softcap(graph, scores, layer.softcap)
    graph.mark(f"{at}.qk", "output", scores)
    weights = graph.add("Softmax", graph.add("Add", scores, step.mask(layer.window)), axis=-1)
    graph.mark(f"{at}.softmax", "output", weights)
    seen = graph.add("MatMul", weights, graph.add("Unsqueeze", value, graph.whole(2)))
    seen = graph.reshape(seen, step.batch, heads, step.count, width)
    seen = graph.add("Transpose", seen, perm=[0, 2, 1, 3])
    seen = graph.mark(f"{at}.pv", "output", graph.reshape(seen, -1, heads * width))
    return graph.linear(seen, layer.output)


def feed_forward(
    graph: Graph, step: Step, layer: FeedForward, x: str, index: int, share: str | None = None
) -> str:
    """down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x))); `share` [n, 1] multiplies
    the input of down.
    """
    at = layer.down.weight.removesuffix(".weight").rpartition(".")[0]
    up = graph.linear(x, layer.up)
    first = up if layer.gate is None else graph.linear(x, layer.gate)
    inner = graph.mark(f"{at}.act", "output", activation(graph, layer.activation, first))
    if layer.gate is not None:
        inner = graph.mark(f"{at}.mul", "output", graph.add("Mul", inner, up))
    if share is not None:
        inner = graph.add("Mul", inner, share)
    return graph.linear(inner, layer.down)


def activation(graph: Graph, kind: str, x: str) -> str:
    """The activation `kind` of x, of primitive operators. Raises UserError for one that has no form here."""
    if kind == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    if kind == "relu":
        return graph.add("Relu", x)
    half = graph.add("Mul", x, graph.constant(0.5))
    if kind == "gelu":
        inner = graph.add("Erf", graph.add("Mul", x, graph.constant(math.sqrt(0.5))))
    elif kind == "gelu-tanh":
        cube = graph.add("Mul", graph.add("Mul", x, x), x)
        inner = graph.add("Add", x, graph.add("Mul", cube, graph.constant(0.044715)))
        inner = graph.add("Tanh", graph.add("Mul", inner, graph.constant(math.sqrt(2 / math.pi))))
    else:
        raise UserError(f"the activation {kind!r} has no form in ONNX here.", field="activation", given=kind)
    return graph.add("Mul", half, graph.add("Add", inner, graph.constant(1.0)))


def softcap(graph: Graph, x: str, cap: float) -> str:
    """cap * tanh(x / cap)."""
    bounded = graph.add("Tanh", graph.add("Div", x, graph.constant(cap)))
    return graph.add("Mul", bounded, graph.constant(cap))


def _head_norm(graph: Graph, x: str, norm: HeadNorm) -> str:
    """x [batch, heads, n, width], every head by the one norm or each by its own."""
    if isinstance(norm, Norm):
        return graph.norm(x, norm)
    parts = [graph.norm(graph.slice(x, head, head + 1, 1), each) for head, each in enumerate(norm)]
    return graph.add("Concat", *parts, axis=1)


def _turn(graph: Graph, x: str, rope: Rope, tables: tuple[str, str]) -> str:
    """The first `rope.width` numbers of each head turned by its position; the others stay."""
    cosine, sine = tables
    half = rope.width // 2
    if rope.style == "half":
        one, two = graph.slice(x, 0, half), graph.slice(x, half, rope.width)
    else:
        one, two = graph.slice(x, 0, rope.width, step=2), graph.slice(x, 1, rope.width, step=2)
    left = graph.add("Sub", graph.add("Mul", one, cosine), graph.add("Mul", two, sine))
    right = graph.add("Add", graph.add("Mul", two, cosine), graph.add("Mul", one, sine))
    if rope.style == "half":
        parts = [left, right]
    else:
        pair = [graph.add("Unsqueeze", side, graph.whole(-1)) for side in (left, right)]
        parts = [graph.reshape(graph.add("Concat", *pair, axis=-1), 0, 0, 0, rope.width)]
    rest = graph.slice(x, rope.width, 1 << 30)
    return graph.add("Concat", *parts, rest, axis=-1)
