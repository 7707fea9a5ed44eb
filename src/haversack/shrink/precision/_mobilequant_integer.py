"""A quantized decoder in integers alone: what an integer-only device would compute [inferred].

Everything a step does is whole numbers: products of codes added up in 32 bits (64 where one side has 16),
then brought to the next grid by a fixed-point multiplier, a whole mantissa and a shift; tables for the
activation function, the exponential and the rotation; a Newton iteration for the root in a norm. Floats occur
only while a model is made ready: scales become multipliers, curves become tables. The residual is a whole
number on a grid 256 times finer than the finest norm input.

This is a reference in numpy, to be compared with the simulation and with a device; it is not fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.kernels import gate as activate
from haversack.models._architecture import Attention, Block, FeedForward, Linear, Norm
from haversack.models._fake_quant import Grid, affine_grid
from haversack.models._rotary import rotary_tables
from haversack.shrink.precision._mobilequant_model import QuantizedModel
from haversack.shrink.precision.mobilequant import Where, input_of

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

MANTISSA, SHORT = 31, 24
"""Bits of a multiplier; the short one meets sums of more than 32 bits."""
MOST_SHIFT = 50
TURN, SPARE = 20, 10
"""Bits behind the point of cosine and sine, and those that a rotated query keeps beyond its code."""
UNIT = 22
"""Bits behind the point of a normalized number."""
EXPONENT = 24
SHARE = 30
FINER = 256.0
TOP_BITS = 17
"""Bits of the last hidden state on its way to the output matrix."""


# Fixed point


@dataclass(frozen=True)
class Multiplier:
    """A positive or negative factor as mantissa / 2^shift; arrays have one for each channel."""

    mantissa: I64
    shift: I64

    @classmethod
    def of(cls, factor: Any, bits: int = MANTISSA) -> Multiplier:
        """The nearest to `factor` whose mantissa has `bits` bits, sign included."""
        exponent = np.frexp(np.asarray(factor, np.float64))[1]
        shift = np.minimum(bits - 1 - exponent, MOST_SHIFT).astype(np.int64)
        return cls(np.rint(factor * 2.0 ** shift.astype(float)).astype(np.int64), shift)

    def __call__(self, x: I64, add: I64 | int = 0) -> I64:
        """x times the factor, plus `add` / 2^shift, to the nearest whole number (halves upwards)."""
        product = x * self.mantissa + add
        shift = np.maximum(self.shift, 1)
        half = np.ones_like(shift) << (shift - 1)
        found: I64 = (product << np.maximum(1 - self.shift, 0)) + half >> shift
        return found


def to_grid(x: I64, multiplier: Multiplier, grid: Grid, add: I64 | int = 0) -> I64:
    """Whole numbers `x` on the grid after them, its zero point taken off: codes - zero."""
    zero = int(grid.zero)
    return np.clip(multiplier(x, add), int(grid.low) - zero, int(grid.high) - zero)


def whole_root(x: I64) -> I64:
    """The largest whole number whose square is at most `x`, by Newton's iteration in whole numbers."""
    x = np.maximum(x, 1)
    root = np.int64(1) << np.int64(31)
    guess = np.full_like(x, root)
    while True:
        better = guess + x // guess >> 1
        if not (better < guess).any():
            return guess
        guess = np.minimum(better, guess)


# Parts of a block, made ready


class Normal:
    """A norm: codes - zero of its input -> codes - zero of its output."""

    def __init__(self, norm: Norm, model: QuantizedModel, source: Grid, to: Grid) -> None:
        self.norm, self.to = norm, to
        scale, width = float(source.scale), norm.width
        self.spare = 0 if norm.kind == "rms" else 4
        unit = scale / 2**self.spare
        self.eps = np.int64(min(norm.eps * width / unit**2, 2.0**61))
        weight = model.tensors[norm.weight].astype(np.float64) + norm.offset
        factor = weight * math.sqrt(width) / 2**UNIT / float(to.scale)
        self.multiplier = Multiplier.of(factor)
        bias = np.zeros(width) if norm.bias is None else model.tensors[norm.bias].astype(np.float64)
        self.add = np.rint(bias / float(to.scale) * 2.0 ** self.multiplier.shift.astype(float)).astype(
            np.int64
        )

    def __call__(self, x: I64) -> I64:
        if self.norm.kind != "rms":
            x = x << self.spare
            x = x - (x.sum(-1, keepdims=True) + self.norm.width // 2) // self.norm.width
        root = whole_root(((x * x).sum(-1, keepdims=True) + self.eps) << 8)  # times 2^4
        return to_grid((x << UNIT + 4) // np.maximum(root, 1), self.multiplier, self.to, self.add)


class Product:
    """A matrix product: codes - zero -> codes - zero of its output."""

    def __init__(self, linear: Linear, model: QuantizedModel, source: Grid, to: Grid) -> None:
        matrix = model.matrices[linear.weight]
        self.codes: I32 = (matrix.codes - matrix.grid.zero).astype(np.int32).T.copy()
        self.to = to
        scale = float(source.scale) * np.broadcast_to(matrix.grid.scale, (linear.outputs, 1))[:, 0].astype(
            float
        )
        bias = np.zeros(linear.outputs) if linear.bias is None else model.tensors[linear.bias].astype(float)
        self.bias = np.rint(bias / scale).astype(np.int64)
        self.multiplier = Multiplier.of(scale / float(to.scale))

    def __call__(self, x: I64) -> I64:
        sums = x.astype(np.int32) @ self.codes  # 32 bits: 255 * 255 * inputs stays below 2^31
        return to_grid(sums.astype(np.int64) + self.bias, self.multiplier, self.to)


class Heads:
    """Attention between the matrices: query, key and value -> what the output matrix multiplies."""

    def __init__(self, layer: Attention, grids: dict[Where, Grid], length: int) -> None:
        self.layer = layer
        name = layer.output.weight
        query, key, value = (
            grids[Where(one.weight, "output")] for one in (layer.query, layer.key, layer.value)
        )
        self.keys, self.scores, self.shares = (
            grids[Where(name, place)] for place in ("key", "scores", "shares")
        )
        self.out = grids[Where(name, "input")]
        self.to_keys = Multiplier.of(float(key.scale) / 2**TURN / float(self.keys.scale))
        factor = (
            float(query.scale) / 2**SPARE * float(self.keys.scale) * layer.scale / float(self.scores.scale)
        )
        self.to_scores = Multiplier.of(factor, SHORT)
        steps = np.arange(int(self.scores.high) + 1) * float(self.scores.scale)
        self.exponentials = np.rint(np.exp(-steps) * 2**EXPONENT).astype(np.int64)
        self.to_shares = Multiplier.of(1 / 2**SHARE / float(self.shares.scale))
        factor = float(self.shares.scale) * float(value.scale) / float(self.out.scale)
        self.to_out = Multiplier.of(factor, SHORT)
        self.cosine = self.sine = None
        if layer.rope is not None:
            tables = rotary_tables(layer.rope, np.arange(length, dtype=np.int32), 0)
            self.cosine, self.sine = (np.rint(each * 2.0**TURN).astype(np.int64) for each in tables)

    def turned(self, x: I64) -> I64:
        """Heads [n, heads, d] rotated, with TURN bits behind the point."""
        if self.cosine is None or self.sine is None:
            return x << TURN
        assert self.layer.rope is not None
        half, n = self.cosine.shape[1], len(x)
        cosine, sine = self.cosine[:n, None], self.sine[:n, None]
        out = x << TURN
        if self.layer.rope.style == "half":
            first, second = slice(0, half), slice(half, 2 * half)
        else:
            first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        one, two = x[..., first], x[..., second]
        out[..., first] = one * cosine - two * sine
        out[..., second] = two * cosine + one * sine
        return out

    def __call__(self, query: I64, key: I64, value: I64) -> I64:
        layer, n = self.layer, len(query)
        query = self.turned(query.reshape(n, layer.heads, -1)) + (1 << TURN - SPARE - 1) >> TURN - SPARE
        key = to_grid(self.turned(key.reshape(n, layer.key_value_heads, -1)), self.to_keys, self.keys)
        value = value.reshape(n, layer.key_value_heads, -1)
        shared = layer.heads // layer.key_value_heads
        key, value = (np.repeat(each, shared, axis=1) for each in (key, value))
        seen = np.tri(n, dtype=bool)
        mixed = np.empty_like(query)
        for head in range(layer.heads):
            scores = to_grid(query[:, head] @ key[:, head].T, self.to_scores, self.scores)
            largest = np.where(seen, scores, scores.min()).max(axis=1, keepdims=True)
            below = np.clip(largest - scores, 0, len(self.exponentials) - 1)
            parts = np.where(seen, self.exponentials[below], 0)
            shares = (parts << SHARE) // parts.sum(axis=1, keepdims=True)
            rounded = to_grid(shares, self.to_shares, self.shares)
            mixed[:, head] = to_grid(np.where(seen, rounded, 0) @ value[:, head], self.to_out, self.out)
        return mixed.reshape(n, -1)


class Gate:
    """The activation function through a table, and the product with the other branch."""

    def __init__(self, layer: FeedForward, grids: dict[Where, Grid]) -> None:
        name = layer.down.weight
        first = layer.up if layer.gate is None else layer.gate
        source, self.out = grids[Where(first.weight, "output")], grids[Where(name, "input")]
        to = self.out if layer.gate is None else grids[Where(name, "activated")]
        self.low = int(source.low - source.zero)
        levels = source.values(np.arange(int(source.low), int(source.high) + 1)).astype(np.float32)
        curve = activate(levels[None], None, layer.activation)[0]
        self.table = (to.codes(curve.astype(np.float64)) - to.zero).astype(np.int64)
        self.multiplier = None
        if layer.gate is not None:
            up = grids[Where(layer.up.weight, "output")]
            self.multiplier = Multiplier.of(float(to.scale) * float(up.scale) / float(self.out.scale))

    def __call__(self, gate: I64, up: I64 | None) -> I64:
        found: I64 = self.table[gate - self.low]
        return (
            found if self.multiplier is None or up is None else to_grid(found * up, self.multiplier, self.out)
        )


class IntegerBlock:
    """A block: the residual in, the residual out."""

    def __init__(self, block: Block, model: QuantizedModel, unit: float, length: int) -> None:
        self.block, grids, inputs = block, model.grids, input_of(block)
        self.norms: dict[str, tuple[Multiplier, Grid, Normal]] = {}
        self.products: dict[str, Product] = {}
        self.back: dict[str, Multiplier] = {}
        self.most = 0.0  # that the block can add to the residual
        for branch in block.branches:
            assert branch.norm is not None
            name = branch.norm.weight
            source, to = grids[Where(name, "input")], grids[Where(name, "output")]
            ready = Normal(branch.norm, model, source, to)
            self.norms[name] = Multiplier.of(unit / float(source.scale)), source, ready
            for linear in (one for group in branch.layer.products() for one in group):
                out = grids[Where(linear.weight, "output")]
                self.products[linear.weight] = Product(linear, model, grids[inputs[linear.weight]], out)
            last = branch.layer.products()[-1][0].weight
            out = grids[Where(last, "output")]
            self.back[last] = Multiplier.of(float(out.scale) / unit)
            self.most += float(np.abs(out.values(np.array([out.low, out.high], np.float64))).max())
            if isinstance(branch.layer, Attention):
                self.heads = Heads(branch.layer, grids, length)
            else:
                assert isinstance(branch.layer, FeedForward)
                self.gate = Gate(branch.layer, grids)

    def __call__(self, hidden: I64) -> I64:
        entry = hidden
        for branch in self.block.branches:
            assert branch.norm is not None
            multiplier, source, normal = self.norms[branch.norm.weight]
            x = normal(to_grid(entry if self.block.parallel else hidden, multiplier, source))
            layer = branch.layer
            if isinstance(layer, Attention):
                names = (layer.query.weight, layer.key.weight, layer.value.weight)
                last = layer.output.weight
                inner = self.heads(*(self.products[name](x) for name in names))
            else:
                assert isinstance(layer, FeedForward)
                last = layer.down.weight
                up = self.products[layer.up.weight](x)
                inner = (
                    self.gate(up, None)
                    if layer.gate is None
                    else self.gate(self.products[layer.gate.weight](x), up)
                )
            hidden = hidden + self.back[last](self.products[last](inner))
        return hidden


class IntegerModel:
    """`model` made ready for texts of up to `length` tokens."""

    def __init__(self, model: QuantizedModel, length: int) -> None:
        architecture = model.architecture
        inputs = [grid for where, grid in model.grids.items() if where.place == "input" and grid.high > 255]
        finest = min(float(grid.scale) for grid in inputs or model.grids.values())
        unit = finest / FINER
        table = model.tensors[architecture.embedding].astype(np.float64) * architecture.embedding_scale
        self.embedding = np.rint(table / unit).astype(np.int64)
        self.blocks = [IntegerBlock(block, model, unit, length) for block in architecture.blocks]
        self.length = length
        self.final = None
        width = architecture.width
        if architecture.final_norm is not None:
            most = np.abs(table).max() + sum(block.most for block in self.blocks)
            fine = Grid(np.asarray(most / 2**TOP_BITS), np.asarray(0.0), -(1 << TOP_BITS), 1 << TOP_BITS)
            weight = np.abs(
                model.tensors[architecture.final_norm.weight] + architecture.final_norm.offset
            ).max()
            far = float(weight) * math.sqrt(width)
            to = affine_grid(np.float64(-far), np.float64(far), 16)
            self.final = (
                Multiplier.of(unit / float(fine.scale)),
                fine,
                Normal(architecture.final_norm, model, fine, to),
            )
        head = model.tensors[architecture.head.weight].astype(np.float64)
        step = np.abs(head).max() / 32767
        self.head = np.rint(head / step).astype(np.int64).T.copy()
        self.step = step * (unit if self.final is None else float(self.final[2].to.scale))
        bias = architecture.head.bias
        self.bias = (
            0 if bias is None else np.rint(model.tensors[bias].astype(float) / self.step).astype(np.int64)
        )

    def __call__(self, tokens: NDArray[np.integer[Any]]) -> I64:
        """Logits i64 [n, vocabulary] of `tokens` [n], in units of `step`."""
        hidden = self.embedding[tokens]
        for block in self.blocks:
            hidden = block(hidden)
        if self.final is not None:
            multiplier, fine, normal = self.final
            hidden = normal(to_grid(hidden, multiplier, fine))
        found: I64 = hidden @ self.head + self.bias
        return found


def run_integer(model: QuantizedModel, tokens: NDArray[np.integer[Any]]) -> tuple[I64, float]:
    """Logits i64 [n, vocabulary] of one text `tokens` [n] in whole numbers, and the step they are counted in.

    Raises UserError for tokens the model does not know.
    """
    from haversack.core.errors import UserError

    vocabulary = model.architecture.vocabulary
    if tokens.ndim != 1 or tokens.size == 0 or int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise UserError(
            f"run_integer takes one text of tokens 0 to {vocabulary - 1}.",
            field="tokens",
            given=list(tokens.shape),
        )
    ready = IntegerModel(model, len(tokens))
    return ready(tokens), ready.step
