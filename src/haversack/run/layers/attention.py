"""Self-attention over the cache: query, key and value; head norms and rotary positions; what is seen; output.

The record is `models.Attention`. Root-mean-square norms of heads, rotation and the write into the cache are
one native call; layer norms come before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.kernels import Distances, Visible, attention
from haversack.models._architecture import Norm
from haversack.run._products import F32, multiply, multiply_add, normalize_heads

if TYPE_CHECKING:
    from haversack.kernels import CacheLayer
    from haversack.models._architecture import Attention, HeadNorm
    from haversack.models._distance import DistanceBias
    from haversack.run._forward import Call, Tables
    from haversack.run._step import Step


def forward(layer: Attention, x: F32, weights: Any, call: Call, hidden: F32 | None) -> F32 | None:
    """Attention of x f32 [n, width]; added to `hidden` in place when given, else returned f32 [n, width].

    The keys and values of x become the entries call.step.start and on of the cache.
    """
    n, scratch, step, cache = len(x), call.scratch, call.step, call.cache_layer
    assert cache is not None
    query = scratch.get("query", n, layer.query.outputs)
    key = scratch.get("key", n, layer.key.outputs)
    value = scratch.get("value", n, layer.value.outputs)
    multiply(
        x, (layer.query, layer.key, layer.value), weights, (query, key, value), call.activations, call.tap
    )
    queries = query.reshape(n, layer.heads, layer.head_width)
    keys = key.reshape(n, layer.key_value_heads, layer.head_width)
    cosine, sine, style = None, None, "half"
    if layer.rope is not None:
        cosine, sine = step.tables(layer.rope)
        style = layer.rope.style
    one = fused_norm(layer.query_norm, layer.head_width)
    two = fused_norm(layer.key_norm, layer.head_width)
    if layer.query_norm is not None and one is None:
        normalize_heads(layer.query_norm, queries, weights)
    if layer.key_norm is not None and two is None:
        normalize_heads(layer.key_norm, keys, weights)
    step.write(
        queries,
        keys,
        value.reshape(n, layer.key_value_heads, layer.head_width),
        cosine,
        sine,
        cache,
        style=style,
        q_norm=None if one is None else weights[one.weight],
        k_norm=None if two is None else weights[two.weight],
        eps=0.0 if one is None else one.eps,
        offset=0.0 if one is None else one.offset,
    )
    if layer.distance is None:
        seen = call.attention.attend(queries, cache, step, layer)
    else:
        seen = by_distance(layer.distance, queries, cache, step, layer.scale, call.distances)
    seen = seen.reshape(n, layer.output.inputs)
    if hidden is not None:
        multiply_add(seen, layer.output, weights, hidden, call.activations, call.tap)
        return None
    out = scratch.get("branch", n, layer.output.outputs)
    multiply(seen, (layer.output,), weights, (out,), call.activations, call.tap)
    return out


def by_distance(
    bias: DistanceBias, queries: F32, cache: CacheLayer, step: Step, scale: float, tables: Tables
) -> F32:
    """Attention with scores biased by distance, f32 [n, heads, head width]: to the whole text where the bias
    goes both ways, else to what each token sees.
    """
    n, start = len(queries), step.start
    seen = step.visible(None)
    if bias.both_ways:
        seen = Visible(start + n, None, np.empty((n, 0), np.bool_))
    places = np.arange(start, start + n, dtype=np.int64)
    found: F32 = attention(queries, cache, seen, scale, distances=Distances(tables[bias.weight], places))
    return found


def fused_norm(norm: HeadNorm | None, width: int) -> Norm | None:
    """The norm of heads of `width` that the native call does on its way; None for one that must be done
    before.
    """
    return norm if isinstance(norm, Norm) and norm.kind == "rms" and norm.width == width else None
