"""Attention over chosen entries equals its definition, has the bits of dense attention over them, and reads
nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels import CacheLayer, Chosen, Visible
from haversack.kernels.attend import CACHE_KINDS
from haversack.kernels.chosen import chosen_attention_twin


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def filled(rng, kind, kv_heads, capacity, width):
    layer = CacheLayer.empty(kv_heads, capacity, width, kind)
    kernels.cache_write(layer, 0, *normal(rng, 2, capacity, kv_heads, width))
    return layer


def drawn(rng, length, bounds, sets, window=None):
    """Some of the entries before each block, as many for each set."""
    entries = []
    for first in bounds[:-1]:
        count = int(rng.integers(0, length + first + 1))
        rows = [np.sort(rng.permutation(length + first)[:count]) for _ in range(sets)]
        entries.append(np.array(rows, np.int64).reshape(sets, count))
    n = bounds[-1]
    start = None if window is None else np.maximum(0, length + np.arange(n) - window + 1)
    return Chosen.of(length, bounds, entries, start)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(CACHE_KINDS),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.sampled_from((1, 8, 20, 33, 64)),
    length=st.integers(0, 60),
    apart=st.booleans(),
    window=st.sampled_from([None, 1, 5, 40]),
    softcap=st.sampled_from([None, 2.0, 50.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin(kind, sizes, kv_heads, group, width, length, apart, window, softcap, seed):
    rng = np.random.default_rng(seed)
    bounds = np.cumsum([0, *sizes])
    layer = filled(rng, kind, kv_heads, length + bounds[-1] + 2, width)
    q = normal(rng, int(bounds[-1]), kv_heads * group, width)
    chosen = drawn(rng, length, bounds, kv_heads if apart else 1, window)
    expected = chosen_attention_twin(q, layer, chosen, width**-0.5, softcap)
    got = kernels.chosen_attention(q, layer, chosen, width**-0.5, softcap)
    assert np.abs(got - expected).max() <= 1e-5 * max(1e-3, float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("threads", [1, 2])
def test_everything_chosen_has_the_bits_of_dense_attention(kind, window, threads):
    rng = np.random.default_rng(3)
    length, bounds = 70, np.array([0, 16, 32, 50])
    layer, q = filled(rng, kind, 2, 125, 24), normal(rng, 50, 6, 24)
    every = [np.arange(length + first)[None] for first in bounds[:-1]]
    start = None if window is None else np.maximum(0, length + np.arange(50) - window + 1)
    before = kernels.threads()
    kernels.set_threads(threads)
    try:
        got = kernels.chosen_attention(q, layer, Chosen.of(length, bounds, every, start), 0.2, 9.0)
    finally:
        kernels.set_threads(before)
    assert np.array_equal(got, kernels.attention(q, layer, Visible(length, start), 0.2, 9.0))


def test_what_was_not_chosen_is_not_read():
    """NaN in every entry that no block chose changes no bit."""
    rng = np.random.default_rng(4)
    length, bounds = 200, np.array([0, 32, 64])
    layer, q = filled(rng, "f32", 2, 264, 16), normal(rng, 64, 4, 16)
    odd = np.arange(1, length, 2)[None]
    chosen = Chosen.of(length, bounds, [odd, odd])
    before = kernels.chosen_attention(q, layer, chosen, 0.3)
    layer.keys[:, 0:length:2] = np.nan
    layer.values[:, 0:length:2] = np.nan
    assert np.array_equal(kernels.chosen_attention(q, layer, chosen, 0.3), before)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"entries": [[3, 3]]}, "entries"),
        ({"entries": [[5, 4]]}, "entries"),
        ({"entries": [[9, 10]]}, "entries"),
        ({"entries": [[-1, 4]]}, "entries"),
        ({"bounds": [0, 5]}, "bounds"),
        ({"bounds": [1, 6]}, "bounds"),
        ({"offsets": [0, 1]}, "offsets"),
        ({"length": 11}, "capacity"),
        ({"entries": [[3, 4]] * 3}, "entries"),
    ],
)
def test_what_does_not_fit_is_refused(change, field):
    given = {"length": 10, "bounds": [0, 6], "offsets": [0, 2], "entries": [[3, 4]]} | change
    arrays = {name: np.array(each, np.int64) for name, each in given.items() if name != "length"}
    layer = filled(np.random.default_rng(0), "f32", 2, 16, 8)
    with pytest.raises(UserError) as refused:
        kernels.chosen_attention(
            np.zeros((6, 4, 8), np.float32), layer, Chosen(given["length"], **arrays), 1.0
        )
    assert refused.value.field == field
