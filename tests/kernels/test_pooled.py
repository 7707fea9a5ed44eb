"""Rows of several caches in one call: bit for bit what each cache gives alone, and as the definition says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.attend import CACHE_KINDS, Visible
from haversack.kernels.pooled import PoolLayer, pool_attention_twin


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def drawn(rng, kind, slots, kv_heads, capacity, width):
    """A pool whose caches are full, and runs over some of its slots in any order."""
    pool = PoolLayer.empty(slots, kv_heads, capacity, width, kind)
    for slot in range(slots):
        kernels.cache_write(pool.slot(slot), 0, *normal(rng, 2, capacity, kv_heads, width))
    chosen = rng.permutation(slots)[: int(rng.integers(1, slots + 1))]
    runs, row = [], 0
    for slot in chosen.tolist():
        rows = int(rng.choice([1, 1, 1, int(rng.integers(1, 9))]))
        runs.append((row, rows, slot, int(rng.integers(0, capacity - rows + 1))))
        row += rows
    return pool, np.asarray(runs, np.int64), row


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(CACHE_KINDS),
    slots=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.sampled_from((8, 20, 64, 80)),
    window=st.sampled_from([None, 1, 7]),
    softcap=st.sampled_from([None, 5.0]),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_that_of_each_cache_alone(
    kind, slots, kv_heads, group, width, window, softcap, threads, seed
):
    rng = np.random.default_rng(seed)
    pool, runs, n = drawn(rng, kind, slots, kv_heads, 40, width)
    q = normal(rng, n, kv_heads * group, width)
    positions = np.concatenate([np.arange(entry, entry + rows) for _, rows, _, entry in runs.tolist()])
    start = None if window is None else np.maximum(0, positions - window + 1)
    before = kernels.threads()
    kernels.set_threads(threads)
    try:
        out = kernels.pool_attention(q, pool, runs, 0.3, softcap, start=start)
    finally:
        kernels.set_threads(before)
    for row, rows, slot, entry in runs.tolist():
        part = slice(row, row + rows)
        visible = Visible(entry, None if start is None else start[part])
        alone = kernels.attention(q[part], pool.slot(slot), visible, 0.3, softcap)
        assert same_bits(np.ascontiguousarray(out[part]), alone)
    twin = pool_attention_twin(q, pool, runs, 0.3, softcap, start)
    np.testing.assert_allclose(out, twin, rtol=2e-4, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(CACHE_KINDS),
    style=st.sampled_from(("half", "interleaved")),
    normed=st.booleans(),
    turned=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_writes_are_those_of_each_cache_alone(kind, style, normed, turned, seed):
    rng = np.random.default_rng(seed)
    pool, runs, n = drawn(rng, kind, 5, 2, 30, 16)
    alone = PoolLayer(*(None if array is None else array.copy() for array in pool._arrays()))
    q, k, v = normal(rng, n, 4, 16), normal(rng, n, 2, 16), normal(rng, n, 2, 16)
    cos, sin = (normal(rng, n, 8), normal(rng, n, 8)) if turned else (None, None)
    norms = {"q_norm": normal(rng, 16), "k_norm": normal(rng, 16), "eps": 1e-5} if normed else {}
    expected_q = q.copy()
    for row, rows, slot, entry in runs.tolist():
        part = slice(row, row + rows)
        one, two = (None, None) if cos is None else (cos[part], sin[part])
        kernels.rope_write(
            expected_q[part], k[part].copy(), v[part], one, two, alone.slot(slot), entry, style=style, **norms
        )
    kernels.pool_write(q, k, v, cos, sin, pool, runs, style=style, **norms)
    assert same_bits(q, expected_q)
    for ours, theirs in zip(pool._arrays(), alone._arrays(), strict=True):
        assert ours is theirs is None or np.array_equal(ours.view(np.uint8), theirs.view(np.uint8))


def test_runs_that_do_not_fit_are_told():
    pool = PoolLayer.empty(2, 1, 8, 4)
    q = np.zeros((2, 1, 4), np.float32)
    for runs, field in (
        ([[0, 2, 2, 0]], "runs"),
        ([[0, 1, 0, 0]], "runs"),
        ([[0, 1, 0, 0], [0, 1, 1, 0]], "runs"),
        ([[0, 2, 0, 7]], "capacity"),
        ([[0, 2, 0, -1]], "capacity"),
        ([[0, 2, 0]], "runs"),
    ):
        with pytest.raises(UserError) as told:
            kernels.pool_attention(q, pool, np.asarray(runs, np.int64), 1.0)
        assert told.value.field == field
    with pytest.raises(UserError, match="q must be"):
        kernels.pool_attention(
            np.zeros((1, 1, 5), np.float32), pool, np.asarray([[0, 1, 0, 0]], np.int64), 1.0
        )
