"""Attention equals its definition; a query's bits depend on the keys it sees and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.attend import CACHE_KINDS, CacheLayer, Visible, attention_twin, quantize_entries

WIDTHS = (1, 8, 16, 20, 33, 64, 80, 128, 256)


def normal(rng, *shape, size=1.0):
    return (rng.standard_normal(shape) * size).astype(np.float32)


def filled(rng, kind, kv_heads, capacity, width, entries=None):
    """A layer with `entries` written (all of them unless told), and NaN wherever nothing was written."""
    layer = poisoned(kind, kv_heads, capacity, width)
    entries = capacity if entries is None else entries
    kernels.cache_write(layer, 0, *normal(rng, 2, entries, kv_heads, width))
    return layer


def poisoned(kind, kv_heads, capacity, width):
    layer = CacheLayer.empty(kv_heads, capacity, width, kind)
    for array in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
        if array is not None:
            array[...] = 127 if array.dtype == np.int8 else np.nan
    return layer


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(CACHE_KINDS),
    n=st.integers(1, 12),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    width=st.sampled_from(WIDTHS),
    length=st.integers(0, 90),
    window=st.sampled_from([None, 1, 5, 40]),
    tree=st.booleans(),
    softcap=st.sampled_from([None, 2.0, 50.0]),
    reach=st.sampled_from([None, 0, 1, 7, 130]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin(kind, n, kv_heads, group, width, length, window, tree, softcap, reach, seed):
    rng = np.random.default_rng(seed)
    layer = filled(rng, kind, kv_heads, length + n + 5, width, length + n)
    q = normal(rng, n, kv_heads * group, width)
    start = None if window is None else np.maximum(0, length + np.arange(n) - window + 1)
    mask = rng.random((n, n)) < 0.5 if tree else None
    visible = Visible(length, start, mask)
    distances = None
    if reach is not None:
        places = rng.integers(0, length + n, n)
        distances = kernels.Distances(normal(rng, kv_heads * group, 2 * reach + 1, size=3.0), places)
    expected = attention_twin(q, layer, visible, width**-0.5, softcap, distances)
    got = kernels.attention(q, layer, visible, width**-0.5, softcap, distances=distances)
    assert got.dtype == np.float32 and got.shape == q.shape
    size = max(1e-3, float(np.abs(expected).max()))
    assert np.abs(got - expected).max() <= 1e-5 * size


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("width", [20, 64])
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("biased", [False, True])
def test_many_at_once_equal_one_by_one(kind, width, group, softcap, biased):
    rng = np.random.default_rng(1)
    n, length, kv_heads = 50, 37, 2
    k, v = normal(rng, 2, length + n, kv_heads, width)
    q = normal(rng, n, kv_heads * group, width)
    whole, steps = (poisoned(kind, kv_heads, length + n + 3, width) for _ in range(2))
    kernels.cache_write(whole, 0, k, v)
    kernels.cache_write(steps, 0, k[:length], v[:length])
    bias, places = normal(rng, kv_heads * group, 25), np.arange(length, length + n)

    def by_distance(queries):
        return kernels.Distances(bias, places[queries]) if biased else None

    every = slice(None)
    at_once = kernels.attention(q, whole, Visible(length), 0.3, softcap, distances=by_distance(every))
    for i in range(n):
        kernels.cache_write(steps, length + i, k[length + i : length + i + 1], v[length + i : length + i + 1])
        row = slice(i, i + 1)
        one = kernels.attention(q[row], steps, Visible(length + i), 0.3, softcap, distances=by_distance(row))
        assert same_bits(one[0], at_once[i]), i


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(CACHE_KINDS),
    parents=st.lists(st.integers(0, 100), min_size=1, max_size=24),
    length=st.integers(0, 40),
    group=st.sampled_from([1, 4]),
    width=st.sampled_from([16, 20, 64]),
    softcap=st.sampled_from([None, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_tree_equals_its_branches_decoded_one_by_one(kind, parents, length, group, width, softcap, seed):
    rng = np.random.default_rng(seed)
    n = len(parents)
    # Node i hangs below an earlier node, or (-1) below the last token of the prefix.
    paths: list[list[int]] = []
    for i, draw in enumerate(parents):
        parent = draw % (i + 1) - 1
        paths.append([*(paths[parent] if parent >= 0 else []), i])
    mask = np.zeros((n, n), bool)
    for i, path in enumerate(paths):
        mask[i, path] = True
    k, v = normal(rng, 2, length + n, 2, width)
    q = normal(rng, n, 2 * group, width)
    layer = poisoned(kind, 2, length + n, width)
    kernels.cache_write(layer, 0, k, v)
    tree = kernels.attention(q, layer, Visible(length, None, mask), 0.2, softcap)
    for i, path in enumerate(paths):
        rows = [*range(length), *(length + node for node in path)]
        branch = poisoned(kind, 2, len(rows) + 7, width)
        kernels.cache_write(branch, 0, k[rows], v[rows])
        alone = kernels.attention(q[i : i + 1], branch, Visible(len(rows) - 1), 0.2, softcap)
        assert same_bits(alone[0], tree[i]), path


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("window", [1, 7, 16, 33])
def test_a_window_equals_a_cache_that_holds_nothing_else(kind, window):
    rng = np.random.default_rng(2)
    n, length, width = 40, 30, 64
    k, v = normal(rng, 2, length + n, 2, width)
    q = normal(rng, n, 6, width)
    layer = poisoned(kind, 2, length + n, width)
    kernels.cache_write(layer, 0, k, v)
    start = np.maximum(0, length + np.arange(n) - window + 1)
    got = kernels.attention(q, layer, Visible(length, start), 0.2)
    for i in range(n):
        rows = slice(start[i], length + i + 1)
        small = poisoned(kind, 2, window, width)
        kernels.cache_write(small, 0, k[rows], v[rows])
        count = rows.stop - rows.start
        assert same_bits(kernels.attention(q[i : i + 1], small, Visible(count - 1), 0.2)[0], got[i])


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_what_is_not_visible_never_leaks(kind):
    rng = np.random.default_rng(3)
    layer = filled(rng, kind, 2, 60, 64)
    q = normal(rng, 9, 4, 64)
    mask = rng.random((9, 9)) < 0.4
    start = rng.integers(0, 48, 9)
    visible = Visible(40, start, mask)
    before = kernels.attention(q, layer, visible, 0.2)
    seen = np.zeros(60, bool)
    for i in range(9):
        seen[visible.entries(i)] = True
    assert 0 < seen.sum() < 60
    for bad in (np.nan, np.inf):
        if kind == "int8":
            layer.key_scales[:, ~seen] = bad
            layer.value_scales[:, ~seen] = bad
        else:
            layer.keys[:, ~seen] = bad
            layer.values[:, ~seen] = bad
        assert same_bits(kernels.attention(q, layer, visible, 0.2), before)
    # What only one query sees shows in that query alone.
    only = next(e for e in range(60) if sum(e in visible.entries(i) for i in range(9)) == 1)
    reader = next(i for i in range(9) if only in visible.entries(i))
    (layer.values if kind != "int8" else layer.value_scales)[:, only] = np.nan
    after = kernels.attention(q, layer, visible, 0.2)
    others = [i for i in range(9) if i != reader]
    assert np.isnan(after[reader]).any() and same_bits(after[others], before[others])


def test_a_query_that_sees_nothing_gets_zeros():
    rng = np.random.default_rng(4)
    layer = filled(rng, "f32", 2, 20, 16)
    q = normal(rng, 3, 4, 16)
    mask = np.zeros((3, 3), bool)
    mask[1, 0] = True
    got = kernels.attention(q, layer, Visible(5, np.array([5, 5, 99]), mask), 0.2)
    assert not got[0].any() and not got[2].any()
    assert np.array_equal(got[1], np.repeat(layer.values[:, 5], 2, axis=0))
    assert not kernels.attention(q, layer, Visible(0, None, np.zeros((3, 0), bool)), 0.2).any()
    assert kernels.attention(q[:0], layer, Visible(5), 0.2).shape == (0, 4, 16)


def test_a_mask_may_choose_any_keys_for_any_number_of_queries():
    rng = np.random.default_rng(5)
    layer = filled(rng, "f32", 1, 50, 32)
    q = normal(rng, 4, 2, 32)
    mask = rng.random((4, 50)) < 0.3
    got = kernels.attention(q, layer, Visible(0, None, mask), 0.2)
    assert np.abs(got - attention_twin(q, layer, Visible(0, None, mask), 0.2)).max() < 1e-5


def test_scores_beyond_the_range_of_exp():
    rng = np.random.default_rng(6)
    layer = filled(rng, "f32", 1, 64, 16)
    q = normal(rng, 5, 1, 16, size=1e4)
    got = kernels.attention(q, layer, Visible(59), 1.0)
    assert np.abs(got - attention_twin(q, layer, Visible(59), 1.0)).max() < 1e-5
    layer.keys[...] = -np.abs(layer.keys)  # all scores far below 0
    got = kernels.attention(np.abs(q), layer, Visible(59), 1.0)
    assert np.isfinite(got).all() and np.abs(got).max() > 0.01


def test_the_softcap_bounds_scores():
    layer = CacheLayer.empty(1, 2, 16)
    k, v = np.zeros((2, 2, 1, 16), np.float32)
    k[0], v[0] = 1e3, 1.0
    kernels.cache_write(layer, 0, k, v)
    got = kernels.attention(np.full((1, 1, 16), 1e3, np.float32), layer, Visible(1), 1.0, 2.0)
    assert np.allclose(got, 1 / (1 + np.exp(-2.0)))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(CACHE_KINDS),
    n=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    width=st.sampled_from(WIDTHS),
    start=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_writing_converts_and_touches_nothing_else(kind, n, kv_heads, width, start, seed):
    rng = np.random.default_rng(seed)
    layer = poisoned(kind, kv_heads, 16, width)
    k, v = normal(rng, 2, n, kv_heads, width, size=10.0)
    kernels.cache_write(layer, start, k, v)
    new = slice(start, start + n)
    for stored, scales, x in ((layer.keys, layer.key_scales, k), (layer.values, layer.value_scales, v)):
        wanted = x.transpose(1, 0, 2)
        if kind == "int8":
            integers, steps = quantize_entries(wanted)
            assert np.array_equal(stored[:, new], integers) and np.array_equal(scales[:, new], steps)
            assert np.abs(stored[:, new] * steps[..., None] - wanted).max(initial=0) <= 0.51 * steps.max(
                initial=0
            )
            assert np.isnan(np.delete(scales, np.arange(start, start + n), axis=1)).all()
        else:
            assert np.array_equal(stored[:, new], wanted.astype(stored.dtype))
            assert np.isnan(np.delete(stored, np.arange(start, start + n), axis=1)).all()


def test_not_finite_entries_are_marked_in_int8():
    layer = CacheLayer.empty(1, 4, 20, "int8")
    k = np.ones((3, 1, 20), np.float32)
    k[0, 0, 19], k[2] = np.inf, 0.0
    kernels.cache_write(layer, 0, k, np.ones_like(k))
    assert (
        np.isnan(layer.key_scales[0, 0]) and not layer.keys[0, [0, 2]].any() and layer.key_scales[0, 2] == 0
    )
    assert np.all(layer.keys[0, 1] == 127)


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_gathering_keeps_a_path(kind):
    rng = np.random.default_rng(7)
    layer = filled(rng, kind, 2, 30, 20)
    arrays = [a for a in (layer.keys, layer.values, layer.key_scales, layer.value_scales) if a is not None]
    before = [a.copy() for a in arrays]
    indices = np.array([10, 12, 13, 20, 29])
    kernels.cache_gather(layer, 10, indices)
    for array, old in zip(arrays, before, strict=True):
        assert np.array_equal(array[:, 10:15], old[:, indices])
        assert np.array_equal(array[:, :10], old[:, :10]) and np.array_equal(array[:, 15:], old[:, 15:])
    for bad in ([9, 11], [10, 10], [12, 11], [29, 30]):
        with pytest.raises(UserError, match=r"ascend strictly within 10\.\.29"):
            kernels.cache_gather(layer, 10, np.array(bad))


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("style", ["half", "interleaved", None])
def test_the_fused_call_has_the_bits_of_its_parts(kind, norms, style):
    rng = np.random.default_rng(8)
    n, heads, kv_heads, width = 7, 6, 2, 24
    q, (k, v) = normal(rng, n, heads, width), normal(rng, 2, n, kv_heads, width)
    q_norm, k_norm = normal(rng, 2, width) if norms else (None, None)
    table = kernels.rope_table(np.arange(3, 3 + n), 100.0 ** -np.linspace(0, 1, 10))
    cos, sin = table if style else (None, None)
    one, two = (poisoned(kind, kv_heads, 12, width) for _ in range(2))
    q_parts, k_parts = q.copy(), k.copy()
    if norms:
        kernels.rms_norm(q_parts, q_norm, 1e-5, offset=1.0, out=q_parts)
        kernels.rms_norm(k_parts, k_norm, 1e-5, offset=1.0, out=k_parts)
    if style:
        kernels.rope(q_parts, *table, style)
        kernels.rope(k_parts, *table, style)
    kernels.cache_write(one, 2, k_parts, v)
    kernels.rope_write(
        q, k, v, cos, sin, two, 2, style=style or "half", q_norm=q_norm, k_norm=k_norm, eps=1e-5, offset=1.0
    )
    assert same_bits(q, q_parts) and same_bits(k, k_parts)
    for a, b in zip(
        (one.keys, one.values, one.key_scales, one.value_scales),
        (two.keys, two.values, two.key_scales, two.value_scales),
        strict=True,
    ):
        assert a is b is None or np.array_equal(a[:, 2:9], b[:, 2:9])


def test_sizes():
    for kind, size in (("f32", 4), ("f16", 2), ("int8", 1)):
        layer = CacheLayer.empty(2, 10, 64, kind)
        assert layer.nbytes == 2 * 2 * 10 * 64 * size + (160 if kind == "int8" else 0)
        assert (layer.kind, layer.capacity) == (kind, 10)


Q = np.zeros((2, 4, 16), np.float32)
LAYER = CacheLayer.empty(2, 10, 16)
K = np.zeros((2, 2, 16), np.float32)
COS = np.zeros((2, 4), np.float32)
INT8 = CacheLayer.empty(2, 10, 16, "int8")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CacheLayer.empty(2, 10, 16, "fp8"), "cache_type=fp8"),
        (
            lambda: kernels.attention(Q, LAYER, Visible(9), 1.0),
            "attention: entries 9..10 do not fit a cache of 10",
        ),
        (lambda: kernels.attention(Q, LAYER, Visible(-1), 1.0), "do not fit"),
        (lambda: kernels.attention(Q[:, :3], LAYER, Visible(0), 1.0), "heads a multiple of 2"),
        (lambda: kernels.attention(Q[:, :, :8], LAYER, Visible(0), 1.0), r"q must be f32\[any, any, 16\]"),
        (lambda: kernels.attention(Q.astype(np.float64), LAYER, Visible(0), 1.0), "q must be f32.*got f64"),
        (
            lambda: kernels.attention(Q, LAYER, Visible(0, np.zeros(3, np.int64)), 1.0),
            r"start must be i64\[2\]",
        ),
        (lambda: kernels.attention(Q, LAYER, Visible(0, np.zeros(2)), 1.0), "start must be i64"),
        (
            lambda: kernels.attention(Q, LAYER, Visible(0, None, np.zeros((3, 2), bool)), 1.0),
            "mask must be bool",
        ),
        (lambda: kernels.attention(Q, LAYER, Visible(0, None, np.zeros((2, 2))), 1.0), "mask must be bool"),
        (lambda: kernels.attention(Q, LAYER, Visible(0), 1.0, out=Q[0]), "out must be"),
        (
            lambda: kernels.attention(Q, CacheLayer(LAYER.keys, LAYER.values[:1]), Visible(0), 1.0),
            "values must be f32",
        ),
        (
            lambda: kernels.attention(Q, CacheLayer(INT8.keys, INT8.values), Visible(0), 1.0),
            "key_scales must be .*NoneType",
        ),
        (
            lambda: kernels.attention(
                Q, CacheLayer(LAYER.keys, LAYER.values, INT8.key_scales, INT8.value_scales), Visible(0), 1.0
            ),
            "key_scales must be None for a cache of f32",
        ),
        (lambda: kernels.cache_write(LAYER, 9, K, K), "cache_write: entries 9..10 do not fit"),
        (lambda: kernels.cache_write(LAYER, 0, K, K[:1]), r"v must be f32\[2, 2, 16\], got f32\[1, 2, 16\]"),
        (lambda: kernels.cache_write(LAYER, 0, K[:, :1], K), "k must be"),
        (lambda: kernels.rope_write(Q, K, K, COS, None, LAYER, 0), "sin must be given with cos, or neither"),
        (lambda: kernels.rope_write(Q, K, K, COS, COS, LAYER, 0, style="x"), "style=x"),
        (lambda: kernels.rope_write(Q[:1], K, K, COS, COS, LAYER, 0), r"q must be f32\[2, any, 16\]"),
        (lambda: kernels.rope_write(Q, K, K, COS[:1], COS[:1], LAYER, 0), "cos must be"),
        (lambda: kernels.rope_write(Q, K, K, COS, COS, LAYER, 0, k_norm=COS), r"k_norm must be f32\[16\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_distances_that_do_not_fit_are_refused():
    rng = np.random.default_rng(2)
    layer, q = filled(rng, "f32", 2, 9, 16), normal(rng, 3, 4, 16)
    places = np.arange(3)
    for bias, at, field in (
        (normal(rng, 4, 6), places, "bias"),
        (normal(rng, 2, 7), places, "bias"),
        (normal(rng, 4, 7), places[:2], "places"),
        (normal(rng, 4, 7), places.astype(np.int32), "places"),
    ):
        with pytest.raises(UserError, match=field):
            kernels.attention(q, layer, Visible(6), 1.0, distances=kernels.Distances(bias, at))
