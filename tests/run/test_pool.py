"""Several texts in one step: each gets the bits it would get alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.models import read_architecture
from haversack.run import Cache, Engine
from haversack.run._pool import CachePool, Part, Together
from haversack.run._prefix_store import BLOCK, PrefixStore

FAMILIES = [
    "llama",
    "llama-dynamic",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3-window",
    "gemma2",
    "gemma3",
    "phi",
    "phi3-switch",
    "stablelm-parallel",
    "gpt2",
    "opt-350m",
]
RNG = np.random.default_rng(11)
TEXTS = [RNG.integers(3, 280, size).astype(np.int32) for size in (40, 1, 23, 7)]


def alone(engine: Engine, text: np.ndarray, horizon: int) -> np.ndarray:
    """Logits after each token, one token at a time."""
    cache = engine.cache(len(text) + 4)
    cache.horizon = horizon
    rows = [engine.step(text[at : at + 1], cache=cache)[0] for at in range(len(text))]
    return np.concatenate([row for row in rows if row is not None])


def check(engine: Engine, seed: int = 0) -> None:
    """Read TEXTS together, in pieces and an order drawn by `seed`; compare with each alone."""
    rng = np.random.default_rng(seed)
    together = Together(engine, len(TEXTS) + 1, 60)
    horizons = [max(1, len(text) - 3) for text in TEXTS]
    expected = [alone(engine, text, h) for text, h in zip(TEXTS, horizons, strict=True)]
    slots = rng.permutation(len(TEXTS) + 1)[: len(TEXTS)].tolist()
    for slot, horizon in zip(slots, horizons, strict=True):
        together.caches[slot].horizon = horizon
    at = [0] * len(TEXTS)
    while any(at[i] < len(text) for i, text in enumerate(TEXTS)):
        parts, chosen = [], []
        for i in rng.permutation(len(TEXTS)).tolist():
            left = len(TEXTS[i]) - at[i]
            if left and (not parts or rng.random() < 0.8):
                count = min(left, int(rng.choice([1, 1, 2, 9])))
                parts.append(Part(slots[i], TEXTS[i][at[i] : at[i] + count]))
                chosen.append(i)
                at[i] += count
        for i, logits in zip(chosen, together.step(parts), strict=True):
            assert logits is not None
            assert np.array_equal(logits, expected[i][at[i] - 1]), (i, at[i])


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("attention", ["dense", "sliding:window=5", "sliding:window=5,sink=2"])
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_texts_read_together_equal_texts_read_alone(
    kind: str, attention: str, cache_type: str, request: Any
) -> None:
    with Engine.open(request.getfixturevalue(kind), cache_type=cache_type, attention=attention) as engine:
        check(engine)


def test_with_f32_activations_and_one_thread(pack: Any) -> None:
    for options in ({"activations": "f32"}, {"threads": 1}, {"threads": 2}, {"residency": "streamed"}):
        with Engine.open(pack, **options) as engine:
            check(engine, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, family: Any) -> None:
    with Engine.open(family(name)) as engine:
        for seed in (1, 2):
            check(engine, seed)


def test_hidden_states_are_those_of_a_step(folder: Any) -> None:
    with Engine.open(folder) as engine:
        together = Together(engine, 3, 60)
        parts = [Part(0, TEXTS[0], "hidden"), Part(2, TEXTS[3], "none"), Part(1, TEXTS[2], "hidden")]
        found = together.step(parts)
        for part, hidden in zip(parts, found, strict=True):
            if part.want == "none":
                assert hidden is None
                continue
            _, expected = engine.step(part.tokens, cache=engine.cache(60), want="hidden")
            assert np.array_equal(hidden, expected)


def test_a_step_that_cannot_be_leaves_all_caches(folder: Any) -> None:
    with Engine.open(folder) as engine:
        together = Together(engine, 2, 10)
        together.step([Part(0, TEXTS[3]), Part(1, TEXTS[1])])
        with pytest.raises(UserError, match="do not fit"):
            together.step([Part(1, TEXTS[1]), Part(0, TEXTS[3])])
        with pytest.raises(UserError, match="the model knows"):
            together.step([Part(0, [5]), Part(1, [9999])])
        assert [cache.length for cache in together.caches] == [7, 1]
        with pytest.raises(ValueError, match="a slot once"):
            together.step([Part(0, [5]), Part(0, [6])])


def test_a_pool_counts_its_bytes(tiny_config: Any) -> None:
    architecture = read_architecture(tiny_config)
    for kind in ("f32", "f16", "int8"):
        assert CachePool(architecture, 3, 50, kind).nbytes == architecture.cache_nbytes(150, kind)


# ---- prefixes


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
def test_a_kept_prefix_gives_the_same_bits(cache_type: str, pack: Any) -> None:
    text = RNG.integers(3, 280, 150).astype(np.int32)
    with Engine.open(pack, cache_type=cache_type) as engine:
        store = PrefixStore(engine.architecture, cache_type, 1 << 20)
        first = engine.cache(200)
        assert store.take(text, first) == 0
        engine.step(text, cache=first, want="none")
        store.keep(text, first)
        longer = np.concatenate([text[:100], RNG.integers(3, 280, 30).astype(np.int32)])
        expected, _ = engine.step(longer, cache=engine.cache(200))
        cache = engine.cache(200)
        assert store.take(longer, cache) == 100 // BLOCK * BLOCK == cache.length
        found, _ = engine.step(longer[cache.length :], cache=cache)
        assert np.array_equal(found, expected)
        again = engine.cache(200)
        assert store.take(text[:128], again) == 96  # the last token is read for its logits


def filled(store: PrefixStore, cache: Cache, text: np.ndarray) -> None:
    cache.truncate(0)
    cache.append(len(text), True)
    store.keep(text, cache)


def test_the_longest_unused_block_makes_room(tiny_config: Any) -> None:
    architecture = read_architecture(tiny_config)
    block = architecture.cache_nbytes(BLOCK)
    store = PrefixStore(architecture, "f32", 4 * block + 5)
    assert store.blocks == 4 and store.nbytes == 4 * block
    cache = Cache(architecture, 400)
    a, b, c = (np.full(2 * BLOCK + 1, token, np.int32) for token in (5, 6, 7))

    def kept(text: np.ndarray) -> int:
        cache.truncate(0)
        return store.take(text, cache) // BLOCK

    filled(store, cache, a)
    filled(store, cache, b)
    assert (kept(a), kept(b)) == (2, 2)
    assert kept(a) == 2  # b is the longest unused now
    filled(store, cache, c)
    assert (kept(a), kept(b), kept(c)) == (2, 0, 2)
    long = np.full(10 * BLOCK, 9, np.int32)  # longer than the store: as much as fits
    filled(store, cache, long)
    assert kept(np.append(long, 1).astype(np.int32)) == 4 and store.used == 4
    assert PrefixStore(architecture, "f32", block - 1).blocks == 0


def test_any_order_of_use_keeps_the_store_whole(tiny_config: Any) -> None:
    """Against a model of the store: what is found is a prefix that was kept, and nothing leaks."""
    architecture = read_architecture(tiny_config)
    store = PrefixStore(architecture, "int8", 7 * architecture.cache_nbytes(BLOCK, "int8"))
    cache = Cache(architecture, 400, "int8")
    rng = np.random.default_rng(5)
    for _ in range(600):
        text = np.repeat(rng.integers(0, 2, rng.integers(1, 7)), BLOCK).astype(np.int32)
        if rng.random() < 0.5:
            filled(store, cache, text)
        else:
            cache.truncate(0)
            store.take(np.append(text, 3).astype(np.int32), cache)
        assert store.used + len(store._free) == 7 == len({*store._known.values(), *store._free})
        for before, _ in store._known:
            assert before < 0 or before in store._keys  # no block without the one it continues


def test_texts_of_other_frequencies_share_nothing(family: Any) -> None:
    """Dynamic rotary scaling: a prompt longer than the trained context turns all its keys differently."""
    with Engine.open(family("llama-dynamic")) as engine:
        beyond = engine.architecture.blocks[0].attention.rope.changes_at()
        text = RNG.integers(3, 250, beyond + 40).astype(np.int32)
        for read, wanted in (
            (beyond + 40, beyond + 10),
            (beyond - 1, beyond + 40),
            (beyond + 40, beyond + 40),
        ):
            store = PrefixStore(engine.architecture, "f32", 1 << 20)
            cache = engine.cache(len(text) + 8)
            cache.horizon = read
            engine.step(text[:read], cache=cache, want="none")
            store.keep(text[:read], cache)
            prompt = text[:wanted]
            plain = engine.cache(len(text) + 8)
            plain.horizon = wanted
            expected, _ = engine.step(prompt, cache=plain)
            again = engine.cache(len(text) + 8)
            again.horizon = wanted
            taken = store.take(prompt, again)
            found, _ = engine.step(prompt[taken:], cache=again)
            assert np.array_equal(found, expected)
            assert (taken > 0) == (read == wanted and wanted > BLOCK)
