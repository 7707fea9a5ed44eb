"""Scales and shifts of channels that move from a producer of activations into their consumers, exactly.

With x' = (x - t) / s for every channel, a consumer y = W x + b becomes (W s) x' + (b + W t): the columns of
its matrix are multiplied, its bias takes the shift. The producer gives x' at once: a norm's weight and
bias, or a matrix's rows and bias, are divided. What is computed does not change; what is rounded does.

A `Pair` is a producer and all its consumers, only where this is exact. `pairs_of` finds them in a block's
record:

- norm: a norm before a layer feeds the layer's first matrices; in a parallel block one norm may feed those of
  several layers, which then share the scale. A norm after a sum feeds the residual too, and is none.
- linear: value -> output of attention, where each key has one query (weights of attention add up to 1, so a
  shift passes as well). Under grouped queries one row of values feeds several columns, and there is no pair.
- gate: up -> down, through the product with the gate or through a ReLU. Scales pass, shifts do not; nothing
  passes GELU or SiLU of the up projection itself.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models._architecture import Attention, Block, FeedForward, Linear, Norm
from haversack.shrink._rounding import F32

Tensors = MutableMapping[str, F32]

SMALLEST_SCALE = 1e-5


@dataclass(frozen=True)
class Pair:
    """The tensor `producer` makes the inputs of all the matrices `consumers`, and of nothing else.

    `kind`: "norm" (producer is the weight of a norm that adds `offset` to it), "linear" or "gate" (producer
    is a matrix; through a gate pass scales, not shifts). `bias`: the producer's; `biases`: the consumers',
    None where there is none.
    """

    producer: str
    kind: str
    consumers: tuple[str, ...]
    bias: str | None = None
    biases: tuple[str | None, ...] = ()
    offset: float = 0.0

    @property
    def shifts(self) -> bool:
        """True when a shift can be folded too: biases on both sides take it."""
        return self.kind != "gate" and self.bias is not None and None not in self.biases


def pairs_of(block: Block) -> tuple[Pair, ...]:
    """The pairs of a block, in order of use. A layer of a kind that is not known here has none."""
    found: dict[str, Pair] = {}
    for branch in block.branches:
        layer = branch.layer
        if branch.norm is not None and isinstance(layer, Attention | FeedForward):
            _add_norm(found, branch.norm, layer.products()[0])
        if isinstance(layer, Attention) and layer.heads == layer.key_value_heads:
            _add_matrix(found, layer.value, "linear", layer.output)
        if isinstance(layer, FeedForward) and (layer.gate is not None or layer.activation == "relu"):
            _add_matrix(found, layer.up, "gate", layer.down)
    others = (branch for branch in block.branches if not isinstance(branch.layer, Attention | FeedForward))
    fed_otherwise = {branch.norm.weight for branch in others if branch.norm is not None}
    return tuple(pair for pair in found.values() if pair.producer not in fed_otherwise)


def _add_norm(found: dict[str, Pair], norm: Norm, linears: tuple[Linear, ...]) -> None:
    before = found.get(norm.weight)
    names = tuple(linear.weight for linear in linears)
    biases = tuple(linear.bias for linear in linears)
    if before is not None:
        names, biases = before.consumers + names, before.biases + biases
    found[norm.weight] = Pair(norm.weight, "norm", names, norm.bias, biases, norm.offset)


def _add_matrix(found: dict[str, Pair], producer: Linear, kind: str, consumer: Linear) -> None:
    found[producer.weight] = Pair(producer.weight, kind, (consumer.weight,), producer.bias, (consumer.bias,))


def fold(
    tensors: Tensors, pair: Pair, scale: NDArray[np.floating], shift: NDArray[np.floating] | None = None
) -> None:
    """Fold `scale` [channels] (each above 0) and `shift` [channels] into the tensors of `pair`, in place.

    Raises UserError for a scale that is not positive and finite, and for a shift that the pair cannot take.
    """
    s = np.asarray(scale, np.float64)
    channels = len(tensors[pair.producer])
    if s.shape != (channels,) or not np.isfinite(s).all() or not (s > 0).all():
        raise UserError(
            f"the scales of {pair.producer} must be {channels} positive numbers; got shape {s.shape} from "
            f"{s.min(initial=0):g} to {s.max(initial=0):g}.",
            field="model",
            given=pair.producer,
        )
    if shift is not None and not pair.shifts:
        raise UserError(
            f"{pair.producer} and what it feeds have no biases to take a shift; fold the scale alone.",
            field="model",
            given=pair.producer,
        )
    t = None if shift is None else np.asarray(shift, np.float64)
    producer = tensors[pair.producer]
    if pair.kind == "norm":
        producer[...] = (producer.astype(np.float64) + pair.offset) / s - pair.offset
    else:
        producer /= s[:, None].astype(np.float32)
    if pair.bias is not None:
        bias = tensors[pair.bias]
        bias[...] = (bias - (0.0 if t is None else t)) / s
    for name, bias_name in zip(pair.consumers, pair.biases, strict=True):
        weight = tensors[name]
        if t is not None:
            assert bias_name is not None
            tensors[bias_name] += (weight @ t).astype(np.float32)
        weight *= s.astype(np.float32)


def column_peaks(tensors: Tensors, names: tuple[str, ...]) -> F32:
    """The largest magnitude of every column over the matrices `names`, f32 [columns]."""
    peaks = [np.maximum(tensors[name].max(axis=0), -tensors[name].min(axis=0)) for name in names]
    found: F32 = np.max(peaks, axis=0)
    return found
