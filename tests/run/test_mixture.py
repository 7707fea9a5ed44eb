"""Mixtures of experts in the engine: a token's bits depend on that token, its experts' weights may live
anywhere, and what routers choose can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import RECORD, MemorySource, draw, write_folder, write_pack

from haversack.core.memory import MIB
from haversack.models import read_architecture
from haversack.run import Engine
from haversack.run._forward import scratch_nbytes
from haversack.run._pool import Part, Together
from haversack.run._residency import CHOSEN
from haversack.run._routing import RoutingTrace
from haversack.run._weights import bind

NAMES = sorted(name for name, (config, _) in RECORD.CASES.items() if "moe" in name or "mix" in name)
NAMES += ["olmoe", "olmoe-normalized", "smallthinker", "smallthinker-softmax"]
TEXT = np.random.default_rng(7).integers(3, 280, 60).astype(np.int32)


def in_parts(engine: Engine, tokens: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Logits of all `tokens`, read in steps of `sizes` (the last size repeats)."""
    cache = engine.cache(len(tokens) + 8)
    rows, at = [], 0
    while at < len(tokens):
        size = sizes[min(len(rows), len(sizes) - 1)]
        rows.append(engine.step(tokens[at : at + size], cache=cache, want="all")[0])
        at += size
    return np.concatenate(rows)


@pytest.mark.parametrize("name", NAMES)
def test_many_tokens_at_once_equal_one_by_one(name: str, family: Any) -> None:
    with Engine.open(family(name)) as engine:
        plain = in_parts(engine, TEXT, [1])
        assert np.isfinite(plain).all()
        for sizes in ([8], [60], [3, 1, 17, 5], [2, 31]):
            assert np.array_equal(in_parts(engine, TEXT, sizes), plain), sizes


@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "smallthinker"])
def test_packed_experts_are_row_invariant_too(name: str, activations: str, tmp_path: Path) -> None:
    config = widened(RECORD.CASES[name][0])
    with Engine.open(write_pack(tmp_path / "a.pack", config, activations)) as engine:
        plain = in_parts(engine, TEXT, [1])
        for sizes in ([8], [60], [3, 1, 17, 5]):
            assert np.array_equal(in_parts(engine, TEXT, sizes), plain), sizes


def widened(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with widths that groups of 32 divide."""
    found = dict(config)
    for field in ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_ffn_hidden_size"):
        if field in found:
            found[field] = 64
    return {**found, **({"head_dim": 32} if "head_dim" in found else {})}


def test_a_tree_equals_its_branches(family: Any) -> None:
    with Engine.open(family("olmoe")) as engine:
        cache = engine.cache(32)
        engine.step(TEXT[:10], cache=cache, want="none")
        mask = np.eye(4, dtype=bool)
        mask[1, 0] = mask[3, 2] = True  # two branches of two tokens
        positions = np.array([10, 11, 10, 11], np.int32)
        tree, _ = engine.step(TEXT[10:14], positions, mask, cache, want="all")
        for first in (10, 12):
            alone = engine.cache(32)
            engine.step(TEXT[:10], cache=alone, want="none")
            branch, _ = engine.step(TEXT[first : first + 2], cache=alone, want="all")
            assert tree is not None
            assert np.array_equal(tree[first - 10 : first - 8], branch)


@pytest.mark.parametrize("name", ["mixtral-window", "qwen2_moe-mixed", "smallthinker"])
def test_texts_that_share_a_step_do_not_see_one_another(name: str, family: Any) -> None:
    texts = [TEXT[:20], TEXT[20:33], TEXT[30:31]]
    with Engine.open(family(name)) as engine:
        alone = [in_parts(engine, text, [len(text), 1])[-1] for text in texts]
        together = Together(engine, slots=3, capacity=40)
        found = together.step([Part(slot, text) for slot, text in enumerate(texts)])
        assert all(np.array_equal(one, two) for one, two in zip(found, alone, strict=True))


class Apart:
    """Weights of which the experts are given out one by one, and nothing else is."""

    def __init__(self, held: Any, source: Any, architecture: Any) -> None:
        self.held, self.source, self.architecture = held, source, architecture
        self.top = held.top
        self.said: list[tuple[Any, ...]] = []
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)

    @contextmanager
    def weights(self, block: int, names: Sequence[str] = ()) -> Iterator[Mapping[str, Any]]:
        mixture = self.architecture.blocks[block].mixture
        experts = () if mixture is None else mixture.experts
        inside = {one.weight for expert in experts for group in expert.products() for one in group}
        with self.held.weights(block) as weights:
            yield {name: value for name, value in weights.items() if name not in inside}

    @contextmanager
    def expert(self, block: int, expert: int) -> Iterator[Mapping[str, Any]]:
        self.said.append(("expert", block, expert))
        assert self.open == 0, "one expert at a time"
        self.open += 1
        record = self.architecture.blocks[block].mixture.experts[expert]
        yield bind(self.source, [one.weight for group in record.products() for one in group])
        self.open -= 1

    def routed(self, routing: Any) -> None:
        assert self.open == 0

    def want(self, block: int, ids: Sequence[int] = (), priority: int = 0) -> None:
        self.said.append(("want", block, tuple(ids), priority))


@pytest.mark.parametrize("name", NAMES)
def test_experts_may_live_apart_from_their_block(name: str, family: Any) -> None:
    source = family(name)
    with Engine.open(source) as engine:
        plain = in_parts(engine, TEXT, [40, 1])
        apart = Apart(engine.held, source, engine.architecture)
        engine.held = engine.forward.experts = apart
        assert np.array_equal(in_parts(engine, TEXT, [40, 1]), plain)
    said = iter(apart.said)
    for what in said:  # announced, then asked for in the same order
        assert what[0] == "want" and what[3] == CHOSEN and list(what[2]) == sorted(set(what[2]))
        assert [next(said) for _ in what[2]] == [("expert", what[1], number) for number in what[2]]


def test_a_router_before_attention_announces_before_it(family: Any) -> None:
    """SmallThinker's choice is known before a key of the block is written."""
    with Engine.open(family("smallthinker")) as engine:
        cache = engine.cache(16)
        for held in cache.layers:
            held.keys[:] = 0  # memory as it came
        seen = []

        def look(routing: Any) -> None:
            layer = cache.layers[routing.block]
            seen.append((routing.block, bool(np.asarray(layer.keys).any())))

        engine.observe(look)
        engine.step(TEXT[:9], cache=cache, want="none")
    assert seen == [(block, False) for block in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_holds_what_every_token_chose(name: str, family: Any) -> None:
    with Engine.open(family(name)) as engine:
        at_once, one_by_one = RoutingTrace(), RoutingTrace()
        for trace, sizes in ((at_once, [60]), (one_by_one, [1])):
            engine.observe(trace)
            traced = in_parts(engine, TEXT, sizes)
            engine.observe(None)
        assert np.array_equal(in_parts(engine, TEXT, [60]), traced)
        mixtures = {b.index: b.mixture for b in engine.architecture.blocks if b.mixture is not None}
    assert at_once.blocks == one_by_one.blocks == sorted(mixtures)
    for block, mixture in mixtures.items():
        positions, experts, shares = at_once.chosen(block)
        for ours, theirs in zip(at_once.chosen(block), one_by_one.chosen(block), strict=True):
            assert np.array_equal(ours, theirs)
        assert positions.tolist() == list(range(60))
        assert experts.shape == shares.shape == (60, mixture.top)
        assert all(len(set(row)) == mixture.top for row in experts.tolist())
        assert (np.diff(shares, axis=1) <= 0).all() and (shares > 0).all()
        if mixture.normalized or mixture.scored == "chosen":
            assert np.abs(shares.sum(axis=1) - 1).max() < 1e-6
        assert at_once.counts(block, len(mixture.experts)).sum() == 60 * mixture.top


@pytest.mark.parametrize("way", ["mapped", "copied", "streamed", "streamed:keep=2"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe-mixed"])
def test_residency_changes_no_bit(name: str, way: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", RECORD.CASES[name][0])
    with Engine.open(folder) as engine:
        plain = in_parts(engine, TEXT, [40, 1])
    with Engine.open(folder, residency=way) as engine:
        assert np.array_equal(in_parts(engine, TEXT, [40, 1]), plain)


def test_the_memory_plan_counts_every_expert() -> None:
    config = RECORD.CASES["qwen2_moe"][0]
    weights = draw(config)
    with Engine.open(MemorySource(config, weights)) as engine:
        lines = dict(engine.memory_plan((10, 10)).lines)
    assert lines["weights, mapped"] == sum(values.nbytes for values in weights.values())


def test_the_plan_of_buffers_covers_a_step_where_all_choose_one_expert(tmp_path: Path) -> None:
    """A router of zeros sends all 256 tokens of a part to the same experts."""
    config = {**RECORD.CASES["qwen2_moe"][0], "hidden_size": 512, "max_position_embeddings": 512}
    weights = draw(config)
    for name in weights:
        if name.endswith("mlp.gate.weight"):
            weights[name][:] = 0
    with Engine.open(MemorySource(config, weights)) as engine:
        engine.step(np.resize(TEXT, 256), cache=engine.cache(256))
        held = sum(buffer.nbytes for buffer in engine.forward.scratch._buffers.values())
        assert held <= scratch_nbytes(engine.architecture, 256) < held + 8 * MIB


def test_few_experts_are_read_by_one_token() -> None:
    block = read_architecture(RECORD.CASES["olmoe"][0]).blocks[0]
    mixture = block.mixture
    assert mixture is not None
    unread = 3 * (len(mixture.experts) - mixture.top)
    assert len(block.read_by_one()) == len(block.matrices()) - unread
