"""Token trees: places and masks, the published rules' numbers, and the plain tokens whatever is drafted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.run.draws import require_drawn_from

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import UserError
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._draft_costs import Costs, Pause
from haversack.run._sampler import Session
from haversack.run._token_tree import TokenTree, shortfalls
from haversack.run._verify import Numbers, Rejection, accept_one, kept_share, remainder, without
from haversack.run.decode.tree import best_matching, bounded_threshold, next_threshold

PROMPT = "the one and the other"
# On drawn weights every token is about as likely as any other: thresholds that still make trees.
WIDE = "tree:alpha=1e-12,adaptive=none,branch_threshold=1e-4,pause=never"


def tokens_of(
    engine: Engine, sampler: Sampler | None = None, prompt: Any = PROMPT, count: int = 30
) -> list[int]:
    said = generate(engine, prompt, Limits(count, end=()), sampler)
    for _ in said:
        pass
    return said.tokens


def forked() -> TokenTree:
    """1-2-3-4 in a row, 5 beside 4, 6 below 4, 7 below 5; node n is token 10 n."""
    tree = TokenTree(0, 16)
    for parent, token in ((0, 10), (1, 20), (2, 30), (3, 40), (3, 50), (4, 60), (5, 70)):
        tree.add(parent, token, 0.5)
    return tree


def test_a_node_sees_its_ancestors_and_siblings_share_a_place() -> None:
    tree = forked()
    assert np.flatnonzero(tree.mask()[7]).tolist() == [0, 1, 2, 3, 5, 7]
    assert tree.positions(9).tolist() == [9, 10, 11, 12, 13, 13, 14, 14]
    assert tree.paths() == [[1, 2, 3, 4, 6], [1, 2, 3, 5, 7]]
    assert tree.mask([0, 1, 2, 3, 5]).tolist() == np.tri(5, dtype=bool).tolist()


def test_the_best_nodes_keep_their_parents() -> None:
    tree = TokenTree(0, 16)
    for parent, share in ((0, 0.6), (0, 0.4), (1, 0.5), (2, 1.0), (4, 0.9)):
        tree.add(parent, 1, share)
    assert tree.best(4) == [0, 1, 2, 4]
    assert tree.best(99) == list(range(6))


def test_a_subtree_is_the_tree_of_its_root() -> None:
    tree = forked()
    below, numbers = tree.subtree(3, 16)
    assert numbers == {3: 0, 4: 1, 5: 2, 6: 3, 7: 4}
    assert below.tokens == [30, 40, 50, 60, 70] and below.depths == [0, 1, 1, 2, 2]
    assert below.confidences == [1.0, 0.5, 0.5, 0.25, 0.25]
    assert sum(below.held[leaf] for leaf in below.leaves) == 4


def test_the_pacer_s_numbers() -> None:
    behind = shortfalls([0.6, 0.3, 0.1], [3, 1, 1])
    assert np.allclose(behind, [0, 0.5, -0.5])


def test_the_threshold_s_numbers() -> None:
    assert next_threshold(0.01, 0.0049, 4, 4) == 0.005
    assert next_threshold(0.005, 0.0049, 4, 2) == pytest.approx(0.0714, abs=1e-4)
    assert next_threshold(0.02, 0.5, 0, 0) == 0.02
    assert bounded_threshold(0.3, 1 / 50) == 0.02 and bounded_threshold(0.003, 1 / 50) == 0.003
    assert bounded_threshold(0.3, 0) == 0.3 and bounded_threshold(7.0, 0) == 0.9


def test_the_best_matching_branch() -> None:
    tree = forked()
    assert best_matching(tree, list(range(8)), [1, 2, 3, 5]) == 5
    assert best_matching(tree, [0, 1, 2, 3, 4], []) == 4


@pytest.mark.parametrize(("length", "expected"), [(1, 1.6), (2, 1.96), (4, 2.306), (8, 2.475)])
def test_a_chain_of_equal_acceptance(length: int, expected: float) -> None:
    """p = (.5, .5), q = (.9, .1): .6 are accepted, so a pass gives (1 - .6^(length + 1)) / .4 tokens, and
    what comes out is p."""
    p, q = np.log([0.5, 0.5]).astype(np.float32), np.array([0.9, 0.1], np.float32)
    drawing, rejection, passes = Numbers(1, 7), Rejection(1), 4000
    found: list[int] = []
    for _ in range(passes):
        session = Session(Sampler(temperature=1.0), np.zeros(1, np.int32), length + 1)
        tree = TokenTree(0, length + 1)
        for node in range(length):
            tree.add(node, int(drawing.next() >= 0.9), 1.0)
        rows = np.tile(p, (length + 1, 1))
        verdict = rejection.verify(tree, rows, session, dict.fromkeys(range(length), q))
        assert len(verdict.drawn) == len(verdict.path) + 1 == session.drawn
        found += [token for token, _ in verdict.drawn]
    assert len(found) / passes == pytest.approx(expected, rel=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(found)))


def test_one_rejection_s_numbers() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    assert kept_share(p[0], q[0]) == pytest.approx(0.5556, abs=1e-4)
    assert remainder(p, q).tolist() == [0, 1]


shares = (
    st.lists(st.integers(0, 9), min_size=4, max_size=4)
    .filter(any)
    .map(lambda counts: np.array(counts, np.float64) / sum(counts))
)


@given(shares, shares, st.integers(1, 3))
def test_children_without_replacement_keep_the_distribution(p: Any, q: Any, children: int) -> None:
    """Every order of drawing the children, by its probability: what comes out is p."""

    def out(p: Any, q: Any, left: int) -> Any:
        if left == 0 or not q.any():
            return p
        found = np.zeros(4)
        for token in np.flatnonzero(q):
            kept = kept_share(p[token], q[token])
            found[token] += q[token] * kept
            if kept < 1:
                found += q[token] * (1 - kept) * out(remainder(p, q), without(q, token), left - 1)
        return found

    assert np.allclose(out(p, q, children), p, atol=1e-9)


def test_the_walk_is_the_definition() -> None:
    """`accept_one` over two children, counted: a token is p's, and the second is tried after the first."""
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.6, 0.3, 0.1])
    drawing, deciding, counts = np.random.default_rng(3), Numbers(5, 1), np.zeros(3)
    for _ in range(6000):
        tokens = drawing.choice(3, 2, replace=False, p=q).tolist()
        place, rest = accept_one(p, q, tokens, deciding)
        token = tokens[place] if place is not None else drawing.choice(3, p=rest)
        counts[token] += 1
    distance = float(((counts - 6000 * p) ** 2 / (6000 * p)).sum())
    assert distance < 18.4  # one in ten thousand of chi-square with two degrees


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_greedy_tokens_are_the_plain_ones(kind: str, cache_type: str, request: Any, draft: Path) -> None:
    model = request.getfixturevalue(kind)
    with Engine.open(model, cache_type=cache_type) as engine:
        plain = tokens_of(engine, count=40)
    for drafting in (draft, model):  # one that is mostly wrong, one that is always right
        for decode in ("tree", WIDE, f"{WIDE},children=1", f"{WIDE},nodes=6,branches=3"):
            with Engine.open(model, decode=decode, draft=drafting, cache_type=cache_type) as engine:
                assert tokens_of(engine, count=40) == plain, decode


def test_a_perfect_draft_saves_passes(folder: Path) -> None:
    with Engine.open(folder, decode=f"{WIDE},children=1,nodes=6", draft=folder) as engine:
        said = generate(engine, PROMPT, Limits(31, end=()))
        for _ in said:
            pass
        counts = said.drafting
        assert counts is not None
        assert (counts.passes, counts.tokens, counts.acceptance) == (5, 30, 1.0)
        assert counts.sizes == [5] * 5


def test_a_perfect_draft_is_right_in_any_branch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model's own places and masks: with the large model's weights its likeliest child is always
    the next token."""
    from haversack.run._tree_draft import Drafter

    ends = []
    settle = Drafter.settle

    def watched(self: Any, verdict: Any) -> None:
        end = verdict.path[-1] if verdict.path else 0
        likeliest = [self.tree.tokens[child] for child in self.tree.children[end][:1]]
        ends.append((len(self.tree.leaves), likeliest in ([], [verdict.drawn[-1][0]])))
        settle(self, verdict)

    monkeypatch.setattr(Drafter, "settle", watched)
    with Engine.open(folder, decode=f"{WIDE},nodes=24,children=3,speculate=false", draft=folder) as engine:
        assert len(tokens_of(engine, count=60)) == 60
    assert max(leaves for leaves, _ in ends) > 4
    assert all(right for _, right in ends)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_coupled_sampling_gives_the_plain_tokens(penalty: float, folder: Path, draft: Path) -> None:
    with Engine.open(folder) as plain, Engine.open(folder, decode=WIDE, draft=draft) as drafted:
        for seed in range(4):
            sampler = Sampler(temperature=1.0, top_p=0.9, repetition_penalty=penalty, seed=seed)
            assert tokens_of(drafted, sampler) == tokens_of(plain, sampler)
        sampler = Sampler(repetition_penalty=1.4)
        assert tokens_of(drafted, sampler) == tokens_of(plain, sampler)


def test_rejection_keeps_the_distribution_by_counting(folder: Path, draft: Path) -> None:
    """Second tokens of 600 seeds, drafted as trees, against the model's own distribution: chi-square."""
    sampler = {"temperature": 1.0, "top_k": 6}
    decode = f"{WIDE},sampling=rejection,nodes=12"
    with Engine.open(folder, decode=decode, draft=draft) as engine:
        first = Sampler(**sampler).distribution(logits_after(engine, [5]), None)
        exact = np.zeros(288)
        for token in np.flatnonzero(first):
            after = logits_after(engine, [5, int(token)])
            exact += first[token] * Sampler(**sampler).distribution(after, None)
        counts = np.zeros(288)
        for seed in range(600):
            counts[tokens_of(engine, Sampler(**sampler, seed=seed), [5], 3)[1]] += 1
        again = Sampler(**sampler, seed=3)
        assert tokens_of(engine, again) == tokens_of(engine, again)
    require_drawn_from(exact, counts)


def logits_after(engine: Engine, tokens: list[int]) -> np.ndarray:
    logits, _ = engine.step(tokens, cache=engine.cache(8))
    assert logits is not None
    return logits[0]


@pytest.mark.parametrize("speculate", [True, False])
def test_drafting_goes_on_while_weights_are_read(speculate: bool, folder: Path) -> None:
    with Engine.open(folder) as engine:
        plain = tokens_of(engine, count=16)
    decode = f"{WIDE},nodes=5,children=1,speculate={speculate}"
    with Engine.open(folder, residency="streamed:mb_s=1", decode=decode, draft=folder) as engine:
        said = generate(engine, PROMPT, Limits(16, end=()))
        assert [token.id for token in said] == plain
        counts = said.drafting
        assert counts is not None and engine.held.meanwhile is None
        if not speculate:
            assert counts.speculated == counts.kept == 0
        else:
            assert counts.speculated > 0 and counts.kept > 0 and counts.beside_s > 0


def test_trees_near_the_end_of_the_context(folder: Path, draft: Path) -> None:
    with Engine.open(folder, context_length=32) as engine:
        plain = tokens_of(engine, count=100)
    for drafting in (draft, folder):
        with Engine.open(folder, decode=WIDE, draft=drafting, context_length=32) as engine:
            assert tokens_of(engine, count=100) == plain


def test_a_draft_with_a_shorter_context_stops_drafting(
    folder: Path, tmp_path: Path, make_folder: Any, tiny_config: Any
) -> None:
    short = make_folder(
        tmp_path / "short", {**tiny_config, "num_hidden_layers": 1, "max_position_embeddings": 28}
    )
    with Engine.open(folder) as engine:
        plain = tokens_of(engine)
    with Engine.open(folder, decode=WIDE, draft=short) as engine:
        assert tokens_of(engine) == plain


def test_a_text_that_outgrows_its_frequencies(tmp_path: Path, make_folder: Any, record: Any) -> None:
    """LongRoPE: a tree stands on one side of the length at which frequencies change."""
    config = {**record.CASES["phi3-switch"][0], "vocab_size": 288}
    model = make_folder(tmp_path / "switch", config)
    with Engine.open(model) as engine:
        assert engine.architecture.changes_at == 32
        plain = tokens_of(engine, prompt=[5, 6, 7], count=44)
    with Engine.open(model, decode=WIDE, draft=model) as engine:
        assert tokens_of(engine, prompt=[5, 6, 7], count=44) == plain


def test_a_draft_of_another_tokenizer_is_refused(
    folder: Path, tmp_path: Path, make_folder: Any, tiny_config: Any
) -> None:
    wider = make_folder(tmp_path / "wider", {**tiny_config, "vocab_size": 300})
    with pytest.raises(UserError, match="another tokenizer") as refused:
        Engine.open(folder, decode="tree", draft=wider)
    assert refused.value.field == "draft"


@pytest.mark.parametrize(
    ("decode", "nearest"),
    [
        ("tree:branch_threshold=1", 0.3),
        ("tree:alpha=0", 0.01),
        ("tree:alpha=nan", 0.01),
        ("tree:children=0", 1),
        ("tree:nodes=1", 2),
        ("tree:adaptive=papr", "paper"),
        ("tree:ratio=-1", 0.0),
        ("tre", "tree"),
    ],
)
def test_impossible_choices_name_the_nearest(decode: str, nearest: Any, folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        Engine.open(folder, decode=decode, draft=folder)
    assert refused.value.nearest == nearest


def test_a_tree_needs_a_draft(folder: Path) -> None:
    with pytest.raises(UserError, match="--draft"):
        Engine.open(folder, decode="tree")


def test_both_models_and_the_tree_are_in_the_memory_plan(folder: Path, draft: Path) -> None:
    with Engine.open(folder, decode="tree:nodes=32", draft=draft) as engine:
        plan = dict(engine.memory_plan((10, 10)).lines)
        needed = engine.memory_plan((10, 10)).total_mib
    assert "draft: weights, mapped" in plan and "draft: KV cache, 180 tokens" in plan
    assert "KV cache, 20 tokens" in plan
    budget = Budget(ram_mib=needed - 0.1)
    with pytest.raises(BudgetError) as refused:
        Engine.open(folder, decode="tree:nodes=32", draft=draft, tokens=(10, 10), budget=budget)
    assert refused.value.failures[0].needed == pytest.approx(needed, abs=0.1)


def test_masks_that_cover_what_is_held(folder: Path) -> None:
    """A step may be told which of the last entries it sees; a mask wider than the cache is refused."""
    with Engine.open(folder) as engine:
        cache = engine.cache(16)
        engine.step([5, 6, 7], cache=cache)
        mask = np.array([[False, False, True]])
        seen, _ = engine.step([8], np.array([1], np.int32), mask, cache)
        plain = engine.cache(16)
        engine.step([5], cache=plain)
        expected, _ = engine.step([8], cache=plain)
        assert seen is not None and expected is not None and np.array_equal(seen, expected)
        with pytest.raises(UserError, match="mask"):
            engine.step([8], np.array([1], np.int32), np.ones((1, 6), np.bool_), cache)
        assert cache.length == 4


def test_costs_are_a_line_through_passes() -> None:
    costs = Costs()
    assert costs.ratio == 0 and costs.first == 0
    for tokens in (1, 5, 9, 5, 3):
        costs.passed(10 + 0.5 * (tokens - 1), tokens)
    costs.drafted(4.0, 8)
    assert (costs.first, costs.more, costs.small) == pytest.approx((10, 0.5, 0.5))
    assert costs.ratio == pytest.approx(0.1)
    assert costs.wider == pytest.approx(0.05)
    fixed = Costs((1.0, 50.0))
    fixed.passed(9.0, 4)
    assert fixed.ratio == fixed.wider == 1 / 50


def test_drafting_rests_where_it_does_not_pay() -> None:
    costs = Costs((0.25, 1.0))
    pause = Pause(costs)
    resting = []
    for _ in range(40):  # one token a pass and eight small steps: never
        resting.append(pause.resting)
        pause.passed(1, 0 if pause.resting else 8, 0 if pause.resting else 8)
    assert not any(resting[:3]) and sum(resting) >= 28
    paying = Pause(costs)
    for _ in range(40):
        assert not paying.resting
        paying.passed(5, 8, 8)
