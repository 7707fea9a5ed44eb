"""Many caches of one shape in one allocation, and attention for rows that belong to different ones.

A `run` is some rows of a call that belong to one slot and follow one another in its text: (first row, rows,
slot, entry of the first row). Row r of a run sees the entries 0 .. entry + r of its slot, or from start[row]
on. The bits of a run are those of `rope_write` and `attention` on that slot alone, so that texts read
together equal texts read one by one, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._arguments import check_array, refuse, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native
from haversack.kernels.attend import CACHE_KINDS, CacheLayer, Visible, attention_twin, rope_write
from haversack.kernels.rotary import STYLES, check_rope

_DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}
_NAMES = {"float32": "f32", "float16": "f16", "int8": "int8"}


@dataclass(frozen=True, eq=False)
class PoolLayer:
    """The keys and values of one block of every slot: arrays [slots, kv_heads, capacity, d] of f32, f16 or
    int8, with scales f32[slots, kv_heads, capacity] for int8."""

    keys: Array
    values: Array
    key_scales: Array | None = None
    value_scales: Array | None = None
    _handle: Any = field(default=None, init=False, repr=False, compare=False)

    def handle(self) -> Any:
        """The pool as a native program takes it, made once; needs the native module."""
        if self._handle is None:
            module = native()
            assert module is not None
            object.__setattr__(self, "_handle", module.pool_layer(*self._arrays()))
        return self._handle

    @classmethod
    def empty(cls, slots: int, kv_heads: int, capacity: int, head_dim: int, kind: str = "f32") -> PoolLayer:
        """Room for `slots` caches of `capacity` entries; memory is touched when it is written."""
        if kind not in CACHE_KINDS:
            raise not_allowed("cache_type", kind, CACHE_KINDS)
        shape = (slots, kv_heads, capacity, head_dim)
        keys, values = np.empty(shape, _DTYPES[kind]), np.empty(shape, _DTYPES[kind])
        if kind != "int8":
            return cls(keys, values)
        return cls(keys, values, np.empty(shape[:3], np.float32), np.empty(shape[:3], np.float32))

    @property
    def kind(self) -> str:
        return _NAMES[self.keys.dtype.name]

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self._arrays() if array is not None)

    def slot(self, slot: int) -> CacheLayer:
        """The cache of one slot: views, no copy."""
        return CacheLayer(*(None if array is None else array[slot] for array in self._arrays()))  # type: ignore[arg-type]

    def _arrays(self) -> tuple[Array | None, ...]:
        return self.keys, self.values, self.key_scales, self.value_scales


def pool_attention(
    q: Array,
    layer: PoolLayer,
    runs: Array,
    scale: float,
    softcap: float | None = None,
    *,
    start: Array | None = None,
) -> Array:
    """q f32[n, heads, d] over the slots that `runs` i64[r, 4] names -> f32[n, heads, d].

    `start` i64[n]: the first entry each row sees (None: 0). The rows' own entries must have been written
    before. Raises UserError for shapes and types that do not fit and for entries beyond the capacity.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(q), np.float32)
        if module.pool_attention(
            q, layer.keys, layer.values, layer.key_scales, layer.value_scales, runs, start, scale,
            0.0 if softcap is None else softcap, out,
        ):  # fmt: skip
            return out
    op = "pool_attention"
    n, heads, _ = check_array(op, "q", q, (None, None, layer.keys.shape[3])).shape
    kv_heads = layer.keys.shape[1]
    if heads == 0 or heads % kv_heads:
        refuse(op, "q", f"f32[n, heads, d] with heads a multiple of {kv_heads}", q)
    if start is not None:
        check_array(op, "start", start, (n,), ("int64",))
    _check_runs(op, layer, runs, n)
    if module is not None:
        refuse_arrays(op)
    return pool_attention_twin(q, layer, runs, scale, softcap, start)


def pool_attention_twin(
    q: Array,
    layer: PoolLayer,
    runs: Array,
    scale: float,
    softcap: float | None = None,
    start: Array | None = None,
) -> Array:
    """The definition of `pool_attention`: one attention a run."""
    out = np.empty(q.shape, np.float32)
    for rows, slot, entry in _runs(runs):
        visible = Visible(entry, None if start is None else start[rows])
        out[rows] = attention_twin(q[rows], layer.slot(slot), visible, scale, softcap)
    return out


def pool_write(
    q: Array,
    k: Array,
    v: Array,
    cos: Array | None,
    sin: Array | None,
    layer: PoolLayer,
    runs: Array,
    *,
    style: str = "half",
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> None:
    """`rope_write` for every run of `runs` i64[r, 4]: k and v f32[n, kv_heads, d] go to their slots."""
    op, module = "pool_write", native()
    if (
        module is not None
        and style in STYLES
        and module.pool_write(
            q, k, v, cos, sin, layer.keys, layer.values, layer.key_scales, layer.value_scales, runs,
            style == "interleaved", q_norm, k_norm, eps, offset,
        )
    ):  # fmt: skip
        return
    kv_heads, _, width = layer.keys.shape[1:]
    check_array(op, "k", k, (None, kv_heads, width))
    check_array(op, "v", v, k.shape)
    check_array(op, "q", q, (len(k), None, width))
    if (cos is None) != (sin is None):
        refuse(op, "sin", "given with cos, or neither", sin)
    if cos is not None and sin is not None:
        check_rope(op, q, cos, sin, style)
    _check_runs(op, layer, runs, len(k))
    if module is not None:
        refuse_arrays(op)
    for rows, slot, entry in _runs(runs):
        one, two = (None, None) if cos is None or sin is None else (cos[rows], sin[rows])
        rope_write(
            q[rows], k[rows], v[rows], one, two, layer.slot(slot), entry,
            style=style, q_norm=q_norm, k_norm=k_norm, eps=eps, offset=offset,
        )  # fmt: skip


def _runs(runs: Array) -> Iterator[tuple[slice, int, int]]:
    for row, rows, slot, entry in runs.tolist():
        yield slice(row, row + rows), slot, entry


def _check_runs(op: str, layer: PoolLayer, runs: Any, n: int) -> None:
    check_array(op, "runs", runs, (None, 4), ("int64",))
    slots, _, capacity, _ = layer.keys.shape
    row = 0
    for first, rows, slot, entry in runs.tolist():
        if first != row or rows < 1 or not 0 <= slot < slots:
            raise UserError(
                f"{op}: runs must follow one another in rows and name slots 0..{slots - 1}", field="runs"
            )
        if entry < 0 or entry + rows > capacity:
            raise UserError(
                f"{op}: entries {entry}..{entry + rows - 1} do not fit a cache of {capacity}",
                field="capacity",
                given=capacity,
                nearest=entry + rows,
            )
        row += rows
    if row != n:
        raise UserError(f"{op}: runs cover {row} rows of {n}", field="runs", given=row, nearest=n)
