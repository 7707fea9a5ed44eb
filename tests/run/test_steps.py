"""The run contract: a step's bits depend on what its tokens see, and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.run import Cache, Engine

TEXT = np.random.default_rng(7).integers(3, 280, 60).astype(np.int32)
FAMILIES = [
    *("llama", "llama-dynamic", "mistral", "qwen2", "qwen3", "smollm3-window"),
    *("gemma2", "gemma3", "phi-norms", "phi3-partial", "stablelm-parallel", "gpt2", "opt-350m"),
]


def in_parts(
    engine: Engine, tokens: np.ndarray, sizes: list[int], horizon: int = 0
) -> tuple[np.ndarray, Cache]:
    """Logits of all `tokens`, read in steps of `sizes` (the last size repeats)."""
    cache = engine.cache(len(tokens) + 8)
    cache.horizon = horizon
    rows, at = [], 0
    while at < len(tokens):
        size = sizes[min(len(rows), len(sizes) - 1)]
        rows.append(engine.step(tokens[at : at + size], cache=cache, want="all")[0])
        at += size
    return np.concatenate(rows), cache


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_many_tokens_at_once_equal_one_by_one(kind: str, cache_type: str, request: Any) -> None:
    with Engine.open(request.getfixturevalue(kind), cache_type=cache_type) as engine:
        plain, _ = in_parts(engine, TEXT, [1])
        for sizes in ([8], [60], [3, 1, 17, 5], [2, 31]):
            assert np.array_equal(in_parts(engine, TEXT, sizes)[0], plain), sizes


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_row_invariant(name: str, family: Any) -> None:
    with Engine.open(family(name)) as engine:
        plain, _ = in_parts(engine, TEXT, [1], horizon=50)
        assert np.array_equal(in_parts(engine, TEXT, [8], horizon=50)[0], plain)
        assert np.array_equal(in_parts(engine, TEXT, [50, 1], horizon=50)[0], plain)


def test_a_text_that_outgrows_its_frequencies(family: Any) -> None:
    """LongRoPE: whatever the steps, and wherever a text is cut back to, the bits are those of one by one."""
    beyond = 32
    with Engine.open(family("phi3-switch")) as engine:
        assert engine.architecture.changes_at == beyond
        plain, _ = in_parts(engine, TEXT, [1])
        for sizes in ([8], [60], [31, 1], [32, 28], [33, 1]):
            assert np.array_equal(in_parts(engine, TEXT, sizes)[0], plain), sizes
        announced, cache = in_parts(engine, TEXT, [60], horizon=60)
        assert np.array_equal(announced[beyond:], plain[beyond:])
        assert not np.array_equal(announced[:beyond], plain[:beyond])
        for back, until in ((30, 60), (20, 40), (31, 60), (40, 50), (10, 60)):
            cache.horizon = 0
            cache.truncate(back)
            again, _ = engine.step(TEXT[back:until], cache=cache, want="all")
            assert again is not None and np.array_equal(again, plain[back:until]), (back, until)
        cache.truncate(40)
        cache.gather([*range(10), *range(20, 40)])
        assert cache.tokens is not None
        assert cache.tokens[:30].tolist() == [*TEXT[:10], *TEXT[20:40]]


def test_steps_longer_than_a_part(folder: Any) -> None:
    tokens = np.random.default_rng(1).integers(3, 280, 300).astype(np.int32)
    with Engine.open(folder) as engine:
        whole, _ = in_parts(engine, tokens, [300])
        assert np.array_equal(in_parts(engine, tokens, [100])[0], whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(threads: int, pack: Any) -> None:
    with Engine.open(pack, threads=1) as engine:
        alone, _ = in_parts(engine, TEXT, [7])
    with Engine.open(pack, threads=threads) as engine:
        assert np.array_equal(in_parts(engine, TEXT, [7])[0], alone)


# A tree behind the text: token 0 is the root, parents say the rest.
PARENTS = [-1, 0, 0, 1, 1, 3, 2]
BRANCHES = [[0, 1, 3, 5], [0, 1, 4], [0, 2, 6]]


def tree() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = np.array([11, 22, 33, 44, 55, 66, 77], np.int32)
    mask = np.zeros((7, 7), bool)
    depth = np.zeros(7, np.int32)
    for index, parent in enumerate(PARENTS):
        mask[index, index] = True
        if parent >= 0:
            mask[index] |= mask[parent]
            depth[index] = depth[parent] + 1
    return tokens, depth, mask


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tree_equals_its_branches(name: str, family: Any) -> None:
    text = TEXT[:30]
    tokens, depth, mask = tree()
    with Engine.open(family(name)) as engine:
        _, cache = in_parts(engine, text, [30])
        rows, hidden = engine.step(tokens, 30 + depth, mask, cache, want="all")
        assert rows is not None and hidden is not None
        assert hidden.shape == (7, engine.architecture.head.inputs)
        _, grown = in_parts(engine, text, [30])
        for node in range(7):  # node by node, each told which of those before it are its ancestors
            one, _ = engine.step(
                tokens[node : node + 1],
                30 + depth[node : node + 1],
                mask[node : node + 1, : node + 1],
                grown,
            )
            assert one is not None and np.array_equal(one[0], rows[node]), node
        for branch in BRANCHES:
            _, plain = in_parts(engine, text, [30])
            for index in branch:
                one, _ = engine.step(tokens[index : index + 1], cache=plain)
                assert one is not None
                assert np.array_equal(one[0], rows[index]), (branch, index)


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
def test_gather_keeps_the_accepted_branch(cache_type: str, family: Any) -> None:
    tokens, depth, mask = tree()
    branch = BRANCHES[0]
    with Engine.open(family("mistral"), cache_type=cache_type) as engine:
        _, cache = in_parts(engine, TEXT[:30], [30])
        engine.step(tokens, 30 + depth, mask, cache, want="none")
        cache.gather([*range(30), *(30 + index for index in branch)])
        assert cache.length == 34 and cache.linear
        after, _ = engine.step([99, 98], cache=cache, want="all")
        plain, _ = in_parts(engine, np.concatenate([TEXT[:30], tokens[branch], [99, 98]]), [1])
        assert after is not None and np.array_equal(after, plain[-2:])


def test_truncate_forgets(pack: Any) -> None:
    with Engine.open(pack) as engine:
        plain, cache = in_parts(engine, TEXT, [60])
        cache.truncate(20)
        again, _ = engine.step(TEXT[20:30], cache=cache, want="all")
        assert again is not None and np.array_equal(again, plain[20:30])


def test_wants(folder: Any) -> None:
    with Engine.open(folder) as engine:
        every, hidden = engine.step(TEXT[:5], cache=engine.cache(), want="all")
        last, one = engine.step(TEXT[:5], cache=engine.cache(), want="last")
        assert every is not None and last is not None and hidden is not None and one is not None
        assert np.array_equal(every[-1:], last) and np.array_equal(hidden[-1:], one)
        nothing, only = engine.step(TEXT[:5], cache=engine.cache(), want="hidden")
        assert nothing is None and only is not None and np.array_equal(only, hidden)
        assert engine.step(TEXT[:5], cache=engine.cache(), want="none") == (None, None)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"tokens": []}, "tokens"),
        ({"tokens": [1, 288]}, "tokens"),
        ({"tokens": [-1]}, "tokens"),
        ({"tokens": [2**40]}, "tokens"),
        ({"tokens": ["a"]}, "tokens"),
        ({"tokens": [[1, 2]]}, "tokens"),
        ({"tokens": [1] * 50}, "context_length"),
        ({"tokens": [1, 2], "positions": np.array([1], np.int32)}, "positions"),
        ({"tokens": [1], "positions": np.array([-1], np.int32)}, "positions"),
        ({"tokens": [1, 2], "mask": np.ones((2, 1), bool)}, "mask"),
        ({"tokens": [1, 2], "mask": np.ones((2, 2), np.float32)}, "mask"),
        ({"tokens": [1], "want": "everything"}, "want"),
    ],
)
def test_a_refused_step_leaves_the_cache(arguments: dict[str, Any], field: str, folder: Any) -> None:
    with Engine.open(folder) as engine:
        cache = engine.cache(40)
        engine.step(TEXT[:10], cache=cache, want="none")
        with pytest.raises(UserError) as refused:
            engine.step(**arguments, cache=cache)
        assert refused.value.field == field
        assert cache.length == 10
        after, _ = engine.step([5], cache=cache)
        plain, _ = in_parts(engine, np.append(TEXT[:10], 5).astype(np.int32), [11])
        assert after is not None and np.array_equal(after[0], plain[-1])


def test_cache_bytes_are_predicted(folder: Any) -> None:
    with Engine.open(folder) as engine:
        for kind in ("f32", "f16", "int8"):
            cache = Cache(engine.architecture, 100, kind)
            assert cache.nbytes == engine.architecture.cache_nbytes(100, kind)
        for wrong in ({"capacity": 0}, {"capacity": 5, "kind": "int4"}):
            with pytest.raises(UserError):
                Cache(engine.architecture, **wrong)


def test_blocks_walked_one_by_one_equal_a_step(folder: Any) -> None:
    """What compression does: block by block with its own weights, the taps seeing every product's input."""
    from haversack.kernels import CacheLayer
    from haversack.run import Forward
    from haversack.run._weights import bind

    with Engine.open(folder) as engine:
        logits, _ = engine.step(TEXT, cache=engine.cache(), want="all")
        architecture, source = engine.architecture, engine.model.source
        forward = Forward(architecture)
        top = bind(source, architecture.top_tensors())
        hidden = forward.embed(TEXT, top[architecture.embedding])
        seen: list[str] = []
        for block in architecture.blocks:
            layer = CacheLayer.empty(2, len(TEXT), 16)
            weights = bind(source, block.tensors())
            before = hidden.copy()
            after = forward.block_forward(
                block.index,
                hidden,
                np.arange(len(TEXT), dtype=np.int32),
                layer,
                weights,
                lambda name, x: seen.append(name),
            )
            assert np.array_equal(hidden, before)
            hidden = after
        assert seen == [linear.weight for block in architecture.blocks for linear in block.matrices()]
        assert np.array_equal(
            forward.head(forward.finish(hidden, top), top[architecture.head.weight]), logits
        )
