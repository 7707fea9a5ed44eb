"""Attention of blocks of queries over entries that were chosen for each block; the others are never read.

Query i of a call stands at entry `length` + i of the cache. A block of queries sees the entries chosen for
it, all of them before its first query, and its own entries up to each query. Keys and values of a block are
gathered once for all its queries. A query's bits are those of `attention` over the same entries in the same
order: a block for which everything before it was chosen has the bits of dense attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels._arguments import check_array, check_out, placed, refuse, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native
from haversack.kernels.attend import CacheLayer


@dataclass(frozen=True, eq=False)
class Chosen:
    """What each of B blocks of queries sees of the `length` entries before a call, and of those of the call.

    Block b holds the queries bounds[b] .. bounds[b + 1] - 1 (`bounds` i64 [B + 1], from 0 to n) and sees,
    before its own entries, entries[:, offsets[b] : offsets[b + 1]], ascending and below `length` + bounds[b]
    (`offsets` i64 [B + 1], `entries` i64 [sets, total]; one set for all key heads, or one for each). `start`
    i64 [n]: the first entry that each query may see (None: all).
    """

    length: int
    bounds: Array
    offsets: Array
    entries: Array
    start: Array | None = None

    @classmethod
    def of(cls, length: int, bounds: Array, entries: Sequence[Array], start: Array | None = None) -> Chosen:
        """From the entries i64 [sets, count] of each block; a single set holds for all key heads."""
        sets = max(len(each) for each in entries)
        entries = [np.broadcast_to(each, (sets, each.shape[1])) for each in entries]
        counts = np.array([0, *(each.shape[1] for each in entries)], np.int64)
        together = np.ascontiguousarray(np.concatenate(entries, axis=1), np.int64)
        return cls(length, np.ascontiguousarray(bounds, np.int64), np.cumsum(counts), together, start)

    def seen(self, query: int, kv_head: int) -> Array:
        """The cache indices that a query sees under one key head, ascending."""
        block = int(np.searchsorted(self.bounds, query, side="right")) - 1
        chosen = self.entries[kv_head if len(self.entries) > 1 else 0]
        before = chosen[self.offsets[block] : self.offsets[block + 1]]
        own = np.arange(self.length + self.bounds[block], self.length + query + 1)
        seen = np.concatenate([before, own])
        return seen if self.start is None else seen[seen >= self.start[query]]


def chosen_attention(
    q: Array,
    layer: CacheLayer,
    chosen: Chosen,
    scale: float,
    softcap: float | None = None,
    *,
    out: Array | None = None,
) -> Array:
    """q f32[n, heads, d] over what is `chosen` of `layer` -> f32[n, heads, d]; a query that sees nothing gets
    zeros.

    The call's own entries must have been written before (`cache_write`). Raises UserError for shapes and
    types that do not fit, for entries beyond the capacity and for chosen entries that do not ascend below
    their block.
    """
    op, module = "chosen_attention", native()
    out = np.empty(np.shape(q), np.float32) if out is None else out
    if module is not None and module.chosen_attention(
        q, layer.keys, layer.values, layer.key_scales, layer.value_scales, chosen.length, chosen.bounds,
        chosen.offsets, chosen.entries, chosen.start, scale, 0.0 if softcap is None else softcap, out,
    ):  # fmt: skip
        return out
    kv_heads, capacity, width = check_array(
        op, "keys", layer.keys, (None, None, None), ("float32", "float16", "int8")
    ).shape
    n, heads, _ = check_array(op, "q", q, (None, None, width)).shape
    check_out(op, out, q.shape)
    if heads == 0 or heads % kv_heads:
        refuse(op, "q", f"f32[n, heads, {width}] with heads a multiple of {kv_heads}", q)
    _check_chosen(op, chosen, n, kv_heads, capacity)
    if module is not None:
        refuse_arrays(op)
    return placed(chosen_attention_twin(q, layer, chosen, scale, softcap), out)


def chosen_attention_twin(
    q: Array, layer: CacheLayer, chosen: Chosen, scale: float, softcap: float | None = None
) -> Array:
    """The definition of `chosen_attention`."""
    n, heads, width = q.shape
    kv_heads = layer.keys.shape[0]
    out = np.zeros((n, kv_heads, heads // kv_heads, width), np.float32)
    for i in range(n):
        query = q[i].reshape(kv_heads, heads // kv_heads, width)
        for kv_head in range(kv_heads):
            seen = chosen.seen(i, kv_head)
            if len(seen) == 0:
                continue
            keys, values = (each[kv_head] for each in layer.floats(seen))
            scores = (query[kv_head] @ keys.T) * np.float32(scale)
            if softcap is not None:
                scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
            powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[i, kv_head] = (powers @ values) / powers.sum(axis=-1, keepdims=True)
    return out.reshape(n, heads, width)


def _check_chosen(op: str, chosen: Chosen, n: int, kv_heads: int, capacity: int) -> None:
    blocks = len(check_array(op, "bounds", chosen.bounds, (None,), ("int64",))) - 1
    check_array(op, "offsets", chosen.offsets, (blocks + 1,), ("int64",))
    sets, total = check_array(op, "entries", chosen.entries, (None, None), ("int64",)).shape
    if sets not in (1, kv_heads):
        refuse(op, "entries", f"i64[1, total] or i64[{kv_heads}, total]", chosen.entries)
    if chosen.start is not None:
        check_array(op, "start", chosen.start, (n,), ("int64",))
    if chosen.length < 0 or chosen.length + n > capacity:
        raise UserError(
            f"{op}: entries {chosen.length}..{chosen.length + n - 1} do not fit a cache of {capacity}",
            field="capacity",
            given=capacity,
            nearest=chosen.length + n,
        )
    for name, ends, last in (("bounds", chosen.bounds, n), ("offsets", chosen.offsets, total)):
        least = 1 if name == "bounds" else 0
        if blocks < 1 or ends[0] != 0 or ends[-1] != last or bool((np.diff(ends) < least).any()):
            raise UserError(f"{op}: {name} must ascend from 0 to {last}", field=name)
    for block in range(blocks):
        own = chosen.entries[:, chosen.offsets[block] : chosen.offsets[block + 1]]
        edges = np.pad(own, ((0, 0), (1, 1)), constant_values=-1)
        edges[:, -1] = chosen.length + chosen.bounds[block]
        if bool((np.diff(edges, axis=1) < 1).any()):
            raise UserError(
                f"{op}: the entries of block {block} must ascend below {edges[0, -1]}, its first own",
                field="entries",
            )
