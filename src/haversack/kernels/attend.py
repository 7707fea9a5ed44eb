"""Attention over a cache of keys and values.

For query i and head h, over the ordered list of cache entries j that the query sees:

    score_j = scale * (q . key_j)             with distances: score += bias[h, j's entry less i's place]
                                              with softcap: score = softcap * tanh(score / softcap)
    weight  = softmax(score)
    out     = sum_j weight_j * value_j

Several query heads may share a key head (heads / kv_heads of them). The bits of one query's result depend on
its query, on the keys and values it sees and on their order, and on nothing else: neither on where in the
cache they lie, nor on the other queries of the call, nor on threads. So verifying a tree of tokens equals
decoding its branches one token at a time, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._arguments import check_array, check_out, placed, refuse, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native
from haversack.kernels.norms import rms_norm_twin
from haversack.kernels.rotary import STYLES, check_rope, rope_twin

CACHE_KINDS = ("f32", "f16", "int8")
_DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}
_NAMES = {"float32": "f32", "float16": "f16", "int8": "int8"}


@dataclass(frozen=True, eq=False)
class CacheLayer:
    """The keys and values of one block: arrays [kv_heads, capacity, d] of f32, f16 or int8.

    int8 has one scale per head and entry, f32[kv_heads, capacity]; a number is its integer times its scale.
    Entries that were never written may hold anything.
    """

    keys: Array
    values: Array
    key_scales: Array | None = None
    value_scales: Array | None = None
    _handle: Any = field(default=None, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return CacheLayer, (self.keys, self.values, self.key_scales, self.value_scales)

    def handle(self) -> Any:
        """The layer as a native program takes it, made once; None for arrays that do not fit each other.

        Needs the native module.
        """
        if self._handle is None:
            module = native()
            assert module is not None
            arrays = self.keys, self.values, self.key_scales, self.value_scales
            object.__setattr__(self, "_handle", module.cache_layer(*arrays))
        return self._handle

    @classmethod
    def empty(cls, kv_heads: int, capacity: int, head_dim: int, kind: str = "f32") -> CacheLayer:
        """Room for `capacity` entries, of kind f32, f16 or int8; memory is touched when it is written."""
        if kind not in CACHE_KINDS:
            raise not_allowed("cache_type", kind, CACHE_KINDS)
        shape = (kv_heads, capacity, head_dim)
        keys, values = np.empty(shape, _DTYPES[kind]), np.empty(shape, _DTYPES[kind])
        if kind != "int8":
            return cls(keys, values)
        return cls(keys, values, np.empty(shape[:2], np.float32), np.empty(shape[:2], np.float32))

    @property
    def kind(self) -> str:
        return _NAMES[self.keys.dtype.name]

    @property
    def capacity(self) -> int:
        return int(self.keys.shape[1])

    @property
    def nbytes(self) -> int:
        arrays = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(int(array.nbytes) for array in arrays if array is not None)

    def floats(self, entries: Any) -> tuple[Array, Array]:
        """Keys and values of `entries` (a slice or indices) as f32[kv_heads, entries, d]."""
        keys, values = self.keys[:, entries].astype(np.float32), self.values[:, entries].astype(np.float32)
        if self.key_scales is not None and self.value_scales is not None:
            keys *= self.key_scales[:, entries, None]
            values *= self.value_scales[:, entries, None]
        return keys, values


@dataclass(frozen=True, eq=False)
class Visible:
    """What each of n queries sees of a cache that holds `length` entries and, behind them, m new ones.

    Query i sees the entries start[i] .. length - 1 (start None: all), and of the new entries j = 0 .. m - 1,
    which lie at length + j, those with mask[i, j] (mask bool[n, m]; None: m = n and j <= i), as far as
    length + j >= start[i]. A query that sees nothing gets zeros.
    """

    length: int
    start: Array | None = None
    mask: Array | None = None

    def entries(self, query: int) -> Array:
        """The cache indices that a query sees, ascending."""
        first = 0 if self.start is None else int(self.start[query])
        new = np.arange(query + 1) if self.mask is None else np.flatnonzero(self.mask[query])
        seen = np.concatenate([np.arange(first, self.length), self.length + new])
        return seen[seen >= first]


@dataclass(frozen=True, eq=False)
class Distances:
    """What scores get by distance: `bias` f32[heads, 2 * reach + 1] for the distances -reach to reach, an
    entry farther away counting as `reach` away. Query i stands at the entry places[i], i64[n].
    """

    bias: Array
    places: Array

    def of(self, query: int, entries: Array) -> Array:
        """f32[heads, entries]: what the scores of a query get."""
        reach = self.bias.shape[1] // 2
        return np.asarray(self.bias[:, np.clip(entries - self.places[query], -reach, reach) + reach])


def attention_twin(
    q: Array,
    layer: CacheLayer,
    visible: Visible,
    scale: float,
    softcap: float | None = None,
    distances: Distances | None = None,
) -> Array:
    """The definition of `attention`."""
    n, heads, width = q.shape
    kv_heads = layer.keys.shape[0]
    out = np.zeros((n, kv_heads, heads // kv_heads, width), np.float32)
    for i in range(n):
        seen = visible.entries(i)
        if len(seen) == 0:
            continue
        keys, values = layer.floats(seen)
        query = q[i].reshape(kv_heads, heads // kv_heads, width)
        scores = (query @ keys.transpose(0, 2, 1)) * np.float32(scale)
        if distances is not None:
            scores = scores + distances.of(i, seen).reshape(scores.shape)
        if softcap is not None:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[i] = (powers @ values) / powers.sum(axis=-1, keepdims=True)
    return out.reshape(n, heads, width)


def quantize_entries(x: Array) -> tuple[Array, Array]:
    """x f32[..., d] -> integers int8[..., d] and scales f32[...]: scale = largest / 127, integer = nearest
    even of x * (127 / largest); numbers that are not finite make the scale NaN."""
    largest = np.abs(x).max(axis=-1)
    finite = np.asarray(np.isfinite(x).all(axis=-1))
    alive = finite & (largest >= 1e-30)
    safe = np.where(alive, largest, 1).astype(np.float32)
    inverse = np.where(alive, np.float32(127) / safe, np.float32(0)).astype(np.float32)
    scales = np.where(finite, np.where(alive, safe / np.float32(127), np.float32(0)), np.float32("nan"))
    integers = np.rint(np.where(finite[..., None], x, np.float32(0)) * inverse[..., None])
    return np.clip(integers, -127, 127).astype(np.int8), scales.astype(np.float32)


def cache_write_twin(layer: CacheLayer, start: int, k: Array, v: Array) -> None:
    """The definition of `cache_write`."""
    new = slice(start, start + len(k))
    for stored, scales, x in (
        (layer.keys, layer.key_scales, k.transpose(1, 0, 2)),
        (layer.values, layer.value_scales, v.transpose(1, 0, 2)),
    ):
        if scales is None:
            with np.errstate(over="ignore"):
                stored[:, new] = x
        else:
            stored[:, new], scales[:, new] = quantize_entries(x)


def attention(
    q: Array,
    layer: CacheLayer,
    visible: Visible,
    scale: float,
    softcap: float | None = None,
    *,
    distances: Distances | None = None,
    out: Array | None = None,
) -> Array:
    """q f32[n, heads, d] over the entries of `layer` that are `visible` -> f32[n, heads, d].

    The new entries must have been written before (`cache_write`). Raises UserError for shapes and types that
    do not fit and for entries beyond the capacity.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(q), np.float32) if out is None else out
        if module.attention(
            q,
            layer.keys,
            layer.values,
            layer.key_scales,
            layer.value_scales,
            visible.length,
            visible.start,
            visible.mask,
            scale,
            0.0 if softcap is None else softcap,
            out,
            None if distances is None else distances.bias,
            None if distances is None else distances.places,
        ):
            return out
    check_array("attention", "q", q, (None, None, None))
    check_out("attention", out, q.shape)
    kv_heads, _, width = _check_layer("attention", layer)
    n, heads, _ = check_array("attention", "q", q, (None, None, width)).shape
    if heads == 0 or heads % kv_heads:
        refuse("attention", "q", f"f32[n, heads, {width}] with heads a multiple of {kv_heads}", q)
    new = n
    if visible.mask is not None:
        new = check_array("attention", "mask", visible.mask, (n, None), ("bool",)).shape[1]
    if visible.start is not None:
        check_array("attention", "start", visible.start, (n,), ("int64",))
    if distances is not None:
        check_array("attention", "places", distances.places, (n,), ("int64",))
        if check_array("attention", "bias", distances.bias, (heads, None)).shape[1] % 2 == 0:
            refuse("attention", "bias", f"f32[{heads}, an odd number]", distances.bias)
    _check_entries("attention", layer, visible.length, new)
    if module is not None:
        refuse_arrays("attention")
    return placed(attention_twin(q, layer, visible, scale, softcap, distances), out)


def cache_write(layer: CacheLayer, start: int, k: Array, v: Array) -> None:
    """Writes k, v f32[n, kv_heads, d] to the entries start .. start + n - 1, converted to the cache's type.

    f16 rounds to nearest even (beyond 65504: infinity); int8: see `quantize_entries`. Raises UserError for
    shapes and types that do not fit and for entries beyond the capacity.
    """
    module = native()
    if module is not None and module.cache_write(
        layer.keys, layer.values, layer.key_scales, layer.value_scales, start, k, v
    ):
        return
    _check_new("cache_write", layer, start, k, v)
    if module is not None:
        refuse_arrays("cache_write")
    cache_write_twin(layer, start, k, v)


def cache_gather(layer: CacheLayer, start: int, indices: Array) -> None:
    """Entry start + j becomes what entry indices[j] is: keeps the accepted path of a token tree.

    `indices` i64[m], strictly ascending, all >= start and below the capacity.
    """
    module = native()
    if module is not None and module.cache_gather(
        layer.keys, layer.values, layer.key_scales, layer.value_scales, start, indices
    ):
        return
    _check_layer("cache_gather", layer)
    check_array("cache_gather", "indices", indices, (None,), ("int64",))
    bounded = np.concatenate([[start - 1], indices, [layer.capacity]])
    if start < 0 or not bool(np.all(np.diff(bounded) > 0)):
        raise UserError(
            f"cache_gather: indices must ascend strictly within {start}..{layer.capacity - 1}",
            field="indices",
        )
    if module is not None:
        refuse_arrays("cache_gather")
    for array in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
        if array is not None:
            array[:, start : start + len(indices)] = array[:, indices]


def rope_write(
    q: Array,
    k: Array,
    v: Array,
    cos: Array | None,
    sin: Array | None,
    layer: CacheLayer,
    start: int,
    *,
    style: str = "half",
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> None:
    """All that lies between the products of a block and its attention, in one call: `rms_norm` of q's and
    k's heads (when q_norm, k_norm f32[d] are given), `rope` of both in place (when cos, sin are given), and
    `cache_write` of k and v.

    q f32[n, heads, d], k and v f32[n, kv_heads, d]. The bits are those of the single calls.
    """
    op, module = "rope_write", native()
    if (
        module is not None
        and style in STYLES
        and module.rope_write(
            q, k, v, cos, sin, layer.keys, layer.values, layer.key_scales, layer.value_scales, start,
            style == "interleaved", q_norm, k_norm, eps, offset,
        )
    ):  # fmt: skip
        return
    width = _check_new(op, layer, start, k, v)[2]
    check_array(op, "q", q, (len(k), None, width))
    if (cos is None) != (sin is None):
        refuse(op, "sin", "given with cos, or neither", sin)
    for x, norm, name in ((q, q_norm, "q_norm"), (k, k_norm, "k_norm")):
        if norm is not None:
            check_array(op, name, norm, (width,))
        if cos is not None and sin is not None:
            check_rope(op, x, cos, sin, style)
    if module is not None:
        refuse_arrays(op)
    for x, norm in ((q, q_norm), (k, k_norm)):
        if norm is not None:
            x[...] = rms_norm_twin(x, norm, eps, offset)
        if cos is not None and sin is not None:
            x[...] = rope_twin(x, cos, sin, style)
    cache_write_twin(layer, start, k, v)


def _check_layer(op: str, layer: CacheLayer) -> tuple[int, int, int]:
    shape = check_array(op, "keys", layer.keys, (None, None, None), ("float32", "float16", "int8")).shape
    check_array(op, "values", layer.values, shape, (layer.keys.dtype.name,))
    for name, scales in (("key_scales", layer.key_scales), ("value_scales", layer.value_scales)):
        if layer.kind == "int8":
            check_array(op, name, scales, shape[:2])
        elif scales is not None:
            refuse(op, name, f"None for a cache of {layer.kind}", scales)
    return shape[0], shape[1], shape[2]


def _check_new(op: str, layer: CacheLayer, start: int, k: Array, v: Array) -> tuple[int, int, int]:
    kv_heads, capacity, width = _check_layer(op, layer)
    check_array(op, "k", k, (None, kv_heads, width))
    check_array(op, "v", v, k.shape)
    _check_entries(op, layer, start, len(k))
    return kv_heads, capacity, width


def _check_entries(op: str, layer: CacheLayer, start: int, new: int) -> None:
    if start < 0 or start + new > layer.capacity:
        raise UserError(
            f"{op}: entries {start}..{start + new - 1} do not fit a cache of {layer.capacity}",
            field="capacity",
            given=layer.capacity,
            nearest=start + new,
        )
