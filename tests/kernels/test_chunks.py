"""Chunks of keys: native equals its twin and brute force, a block's bits are its own, and what does not fit
is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels._native import native
from haversack.kernels.chunks import (
    POOLINGS,
    best_keys_twin,
    by_score,
    chunk_vectors,
    left_to_choose,
    score_chunks_twin,
)


def cut(rng, end, most):
    """Places that ascend from 0 to `end`."""
    return np.unique(np.concatenate([[0, end], rng.integers(1, end + 1, int(rng.integers(0, most)))]))


class Made:
    """Queries, keys and places as `score_chunks` takes them."""

    def __init__(self, seed, n, start, kv_heads=2, group=3, width=20, apart=False, pooling="sqrt"):
        rng = np.random.default_rng(seed)
        self.start, self.pooling, self.n = start, pooling, n
        self.bounds, self.borders = cut(rng, n, 6), cut(rng, start + n, 12)
        self.q = rng.standard_normal((n, kv_heads * group, width)).astype(np.float32)
        self.keys = rng.standard_normal((kv_heads, start + n, width)).astype(np.float32)
        self.sets = kv_heads if apart else 1

    def sums(self):
        return kernels.no_sums(self.sets, len(self.borders) - 1, self.q.shape[2], self.pooling)

    def scores(self, function=kernels.score_chunks, **change):
        call = {"q": self.q, "keys": self.keys, "done": 0, "start": self.start, "bounds": self.bounds}
        call |= {"borders": self.borders, "sums": self.sums(), "pooling": self.pooling} | change
        return function(**call)

    def plain(self, block, group, chunk):
        """One score in f64, by the paper's words; None for a chunk that begins behind the block."""
        first, stop = self.bounds[block], self.bounds[block + 1]
        begin, end = self.borders[chunk], min(self.borders[chunk + 1], self.start + stop)
        if begin >= end:
            return None
        keys = self.keys.reshape(self.sets, -1, *self.keys.shape[1:])[group].astype(np.float64).mean(axis=0)
        asked = self.q.reshape(self.n, self.sets, -1, self.q.shape[2])[first:stop, group].astype(np.float64)
        query, part = asked.mean(axis=1), keys[begin:end]
        if self.pooling == "max":
            return query.max(axis=0) @ part.max(axis=0)
        root = np.sqrt(end - begin) if self.pooling == "sqrt" else 1
        return query.mean(axis=0) * np.sqrt(stop - first) @ (part.mean(axis=0) * root)


def test_equal_vectors_grow_by_the_root_of_their_number():
    v = np.array([1.0, -2.0, 0.5], np.float32)
    for count, factor in ((16, 4.0), (7, np.sqrt(7)), (1, 1.0)):
        sums, lengths = (count * v)[None, None], np.array([count])
        assert np.allclose(chunk_vectors(sums, lengths, "sqrt"), factor * v)
        assert np.allclose(chunk_vectors(sums, lengths, "mean"), v)
    assert np.allclose(chunk_vectors(v[None, None], np.array([9]), "max"), v)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    start=st.integers(0, 60),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    width=st.sampled_from((1, 8, 20, 33, 64)),
    apart=st.booleans(),
    pooling=st.sampled_from(POOLINGS),
)
def test_scores_equal_their_definition(seed, n, start, kv_heads, group, width, apart, pooling):
    made = Made(seed, n, start, kv_heads, group, width, apart, pooling)
    got, twin = made.scores(), made.scores(score_chunks_twin)
    for (block, group, chunk), score in np.ndenumerate(got):
        wanted = made.plain(block, group, chunk)
        if wanted is None:
            assert score == twin[block, group, chunk] == -np.inf
        else:
            assert abs(score - wanted) < 1e-4 and abs(twin[block, group, chunk] - wanted) < 1e-4


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_block_has_the_bits_of_a_call_with_it_alone(pooling, apart):
    """Whatever keys were taken in by earlier calls."""
    made = Made(8, 48, 30, apart=apart, pooling=pooling)
    made.bounds = np.array([0, 16, 32, 48])
    whole, sums, done = made.scores(), made.sums(), 0
    for block, (first, stop) in enumerate(pairwise(made.bounds.tolist())):
        start = made.start + first
        part = kernels.score_chunks(
            made.q[first:stop],
            np.ascontiguousarray(made.keys[:, done : start + stop - first]),
            *(done, start, np.array([0, stop - first]), made.borders, sums, pooling),
        )
        done = start + stop - first
        assert np.array_equal(part[0], whole[block])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    start=st.integers(0, 80),
    sets=st.integers(1, 3),
    sinks=st.integers(0, 12),
    local=st.integers(0, 24),
    more=st.integers(0, 60),
    window=st.sampled_from([None, 1, 9, 40, 200]),
    kinds=st.sampled_from([3, 1000]),
)
def test_the_best_keys_are_those_of_brute_force(seed, n, start, sets, sinks, local, more, window, kinds):
    """Token by token: each has its chunk's score, ties go to the earlier one; few different scores tie
    often, and NaN is the worst."""
    made, rng = Made(seed, n, start), np.random.default_rng(seed)
    bounds, borders = made.bounds, made.borders
    scores = (rng.integers(-kinds, kinds, (len(bounds) - 1, sets, len(borders) - 1)) / kinds).astype("f4")
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[rng.random(scores.shape) < 0.1] = -0.0
    budget = sinks + max(local, int(np.diff(bounds).max())) + more
    given_ = scores, borders, start, bounds, budget, sinks, local, window
    offsets, entries = kernels.best_keys(*given_)
    for ours, theirs in zip((offsets, entries), best_keys_twin(*given_), strict=True):
        assert np.array_equal(ours, theirs) and ours.dtype == np.int64
    for block, (first, end) in enumerate(pairwise((start + bounds).tolist())):
        low = 0 if window is None else max(first - window + 1, 0)
        always = set(range(low, min(low + sinks, first))) | set(range(max(end - local, low), first))
        others = sorted(set(range(low, first)) - always)
        for group in range(sets):
            found = entries[group, offsets[block] : offsets[block + 1]].tolist()
            of_chunk = np.nan_to_num(scores[block, group], nan=-9.0)
            best = sorted(
                others, key=lambda t, of=of_chunk: (-of[np.searchsorted(borders, t, side="right") - 1], t)
            )
            wanted = always | set(best[: max(budget - (end - first) - len(always), 0)])
            assert found == sorted(wanted)
            assert len(found) + end - first == min(budget, end - low)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_leave_the_choice_alone(threads):
    rng = np.random.default_rng(3)
    bounds, borders = np.arange(0, 257, 32), np.unique(np.append(rng.integers(0, 900, 200), [0, 1000]))
    scores = rng.standard_normal((8, 2, len(borders) - 1)).astype(np.float32)
    before = kernels.threads()
    kernels.set_threads(threads)
    try:
        _, entries = kernels.best_keys(scores, borders, 700, bounds, 300, 10, 40)
    finally:
        kernels.set_threads(before)
    assert np.array_equal(entries, best_keys_twin(scores, borders, 700, bounds, 300, 10, 40)[1])


def test_a_choice_by_hand():
    """Chunks 0-3, 4-6, 7-9 with 5 keys to take: all of the best, two of the second."""
    borders, scores = np.array([0, 4, 7, 10]), np.array([0.5, 0.1, 0.9], np.float32)
    assert left_to_choose(0, 10, 12, 0, 0) == range(10)
    assert by_score(scores, borders, 0, 10, range(10), 5).tolist() == [0, 1, 7, 8, 9]
    assert by_score(scores, borders, 0, 10, range(1, 8), 3).tolist() == [0, 1, 2, 7, 8, 9]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"q": np.zeros((11, 6, 20), np.float32)}, "bounds"),
        ({"q": np.zeros((12, 5, 20), np.float32)}, "keys"),
        ({"keys": np.zeros((2, 30, 19), np.float32)}, "keys"),
        ({"keys": np.zeros((2, 31, 20), np.float32)}, "keys"),
        ({"keys": np.zeros((2, 30, 20))}, "keys"),
        ({"done": 19}, "done"),
        ({"done": -1}, "done"),
        ({"start": -1}, "start"),
        ({"bounds": np.array([0, 5, 5, 12])}, "bounds"),
        ({"borders": np.array([1, 30])}, "borders"),
        ({"borders": np.array([0, 29])}, "borders"),
        ({"borders": np.array([0, 9, 30])}, "sums"),
        ({"sums": np.zeros((3, 1, 20), np.float32)}, "sums"),
        ({"pooling": "root"}, "pooling"),
        ({"keys": np.zeros((2, 60, 20), np.float32)[:, ::2]}, "arrays"),
    ],
)
def test_scores_refuse_what_does_not_fit(change, field):
    made = Made(0, 12, 18)
    made.bounds, made.borders = np.array([0, 12]), np.array([0, 30])
    assert made.scores().shape == (1, 1, 1)
    if field == "arrays" and native() is None:
        return  # numpy takes any strides
    with pytest.raises(UserError) as caught:
        made.scores(**change)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"budget": 27}, "budget"),
        ({"budget": 3}, "budget"),
        ({"sinks": -1}, "sinks"),
        ({"local": -1}, "local"),
        ({"window": 0}, "window"),
        ({"window": 0, "sinks": 0, "local": 0}, "window"),
        ({"scores": np.zeros((2, 2, 2), np.float32)}, "scores"),
        ({"scores": np.zeros((1, 2, 3), np.float32)}, "scores"),
        ({"scores": np.zeros((1, 2, 2))}, "scores"),
        ({"borders": np.array([0, 9, 41])}, "borders"),
        ({"bounds": np.array([3, 12])}, "bounds"),
        ({"bounds": np.array([0.0, 12.0])}, "bounds"),
        ({"start": -2}, "start"),
    ],
)
def test_choices_refuse_what_does_not_fit(change, field):
    call = {"scores": np.zeros((1, 2, 2), np.float32), "borders": np.array([0, 9, 42]), "start": 30}
    call |= {"bounds": np.array([0, 12]), "budget": 28, "sinks": 8, "local": 20, "window": None}
    assert kernels.best_keys(**call)[1].shape == (2, 16)
    with pytest.raises(UserError) as caught:
        kernels.best_keys(**call | change)
    assert caught.value.field == field
