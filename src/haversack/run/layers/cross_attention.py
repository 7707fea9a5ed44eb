"""Attention to an encoder: queries of the tokens over keys and values of its states, which are made once.

The record is `models.CrossAttention`. `listen` fills the layer that `forward` reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.kernels import CacheLayer, Visible, attention, cache_write
from haversack.run._products import F32, Tap, multiply, multiply_add

if TYPE_CHECKING:
    from haversack.models._architecture import CrossAttention
    from haversack.run._forward import Call

ROWS = 256
"""States whose keys and values are made at once."""


def listen(
    layer: CrossAttention,
    states: F32,
    weights: Any,
    kind: str = "f32",
    activations: str = "f32",
    tap: Tap | None = None,
) -> CacheLayer:
    """Keys and values of `states` f32 [n, width], stored as `kind` f32, f16 or int8."""
    cache = CacheLayer.empty(layer.key_value_heads, len(states), layer.head_width, kind)
    if tap is not None:
        for linear in (layer.key, layer.value):
            tap(linear.weight, states)
    shape = (-1, layer.key_value_heads, layer.head_width)
    for start in range(0, len(states), ROWS):
        part = states[start : start + ROWS]
        key = np.empty((len(part), layer.key.outputs), np.float32)
        value = np.empty((len(part), layer.value.outputs), np.float32)
        multiply(part, (layer.key, layer.value), weights, (key, value), activations)
        cache_write(cache, start, key.reshape(shape), value.reshape(shape))
    return cache


def forward(layer: CrossAttention, x: F32, weights: Any, call: Call, hidden: F32 | None) -> F32 | None:
    """Attention of x f32 [n, width] to `call.cross`; added to `hidden` in place when given, else returned."""
    n, scratch, cross = len(x), call.scratch, call.cross
    assert cross is not None
    query = scratch.get("query", n, layer.query.outputs)
    multiply(x, (layer.query,), weights, (query,), call.activations, call.tap)
    everything = Visible(cross.capacity, None, np.empty((n, 0), np.bool_))
    queries = query.reshape(n, layer.heads, layer.head_width)
    seen = attention(queries, cross, everything, layer.scale).reshape(n, layer.output.inputs)
    if hidden is not None:
        multiply_add(seen, layer.output, weights, hidden, call.activations, call.tap)
        return None
    out = scratch.get("branch", n, layer.output.outputs)
    multiply(seen, (layer.output,), weights, (out,), call.activations, call.tap)
    return out
