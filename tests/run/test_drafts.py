"""Drafts change how fast tokens come, never which (greedy, coupled) or how likely they are (rejection)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.run.draws import require_drawn_from

from haversack.core.errors import UserError
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._verify import kept_share, remainder

PROMPT = "the one and the other"


def tokens_of(
    engine: Engine, sampler: Sampler | None = None, prompt: Any = PROMPT, count: int = 30
) -> list[int]:
    said = generate(engine, prompt, Limits(count, end=()), sampler)
    for _ in said:
        pass
    return said.tokens


@pytest.mark.parametrize("length", [1, 3, 4, 8])
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_greedy_tokens_are_the_plain_ones(kind: str, length: int, request: Any, draft: Path) -> None:
    model = request.getfixturevalue(kind)
    with Engine.open(model) as engine:
        plain = tokens_of(engine)
    for drafting in (draft, model):  # one that is mostly wrong, one that is always right
        with Engine.open(model, decode=f"linear-draft:length={length}", draft=drafting) as engine:
            assert tokens_of(engine) == plain


def test_a_perfect_draft_saves_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.open(folder, decode="linear-draft:length=4", draft=folder) as engine:
        steps = []
        step = engine.step
        monkeypatch.setattr(engine, "step", lambda *a, **k: steps.append(len(a[0])) or step(*a, **k))
        assert len(tokens_of(engine, count=26)) == 26
        assert len(steps) == 1 + 5  # the prompt, then five tokens a step after the first


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_coupled_sampling_gives_the_plain_tokens(penalty: float, folder: Path, draft: Path) -> None:
    with (
        Engine.open(folder) as plain,
        Engine.open(folder, decode="linear-draft:sampling=tokens", draft=draft) as drafted,
    ):
        for seed in range(6):
            sampler = Sampler(temperature=1.0, top_p=0.9, repetition_penalty=penalty, seed=seed)
            assert tokens_of(drafted, sampler) == tokens_of(plain, sampler)


shares = (
    st.lists(st.integers(0, 20), min_size=6, max_size=6)
    .filter(any)
    .map(lambda counts: (np.array(counts, np.float64) / sum(counts)).astype(np.float32))
)


@given(shares, shares)
def test_rejection_keeps_the_distribution_by_definition(p: np.ndarray, q: np.ndarray) -> None:
    """sum over drafts of q(x) min(1, p / q), plus the rejected share of the remainder, is p."""
    kept = np.array([qx * kept_share(px, qx) for px, qx in zip(p.tolist(), q.tolist(), strict=True)])
    after = kept + (1 - kept.sum()) * remainder(p, q)
    assert np.allclose(after, p, atol=1e-6)


def test_rejection_keeps_the_distribution_by_counting(folder: Path, draft: Path) -> None:
    """Second and third tokens of 600 seeds, drafted, against the model's own distribution: chi-square."""
    sampler = {"temperature": 1.0, "top_k": 6}
    with Engine.open(folder, decode="linear-draft:length=2", draft=draft) as engine:
        first = Sampler(**sampler).distribution(logits_after(engine, [5]), None)
        exact = np.zeros(288)
        for token in np.flatnonzero(first):
            exact += first[token] * Sampler(**sampler).distribution(
                logits_after(engine, [5, int(token)]), None
            )
        counts = np.zeros(288)
        for seed in range(600):
            counts[tokens_of(engine, Sampler(**sampler, seed=seed), [5], 3)[1]] += 1
    require_drawn_from(exact, counts)


def logits_after(engine: Engine, tokens: list[int]) -> np.ndarray:
    logits, _ = engine.step(tokens, cache=engine.cache(8))
    assert logits is not None
    return logits[0]


def test_drafts_near_the_end_of_the_context(folder: Path, draft: Path) -> None:
    with Engine.open(folder, context_length=32) as engine:
        plain = tokens_of(engine, count=100)
    with Engine.open(folder, decode="linear-draft:length=8", draft=draft, context_length=32) as engine:
        assert tokens_of(engine, count=100) == plain


def test_a_draft_with_a_shorter_context_stops_drafting(
    folder: Path, tmp_path: Path, make_folder: Any, tiny_config: Any
) -> None:
    short = make_folder(
        tmp_path / "short", {**tiny_config, "num_hidden_layers": 1, "max_position_embeddings": 28}
    )
    with Engine.open(folder) as engine:
        plain = tokens_of(engine)
    with Engine.open(folder, decode="linear-draft", draft=short) as engine:
        assert tokens_of(engine) == plain


def test_a_draft_of_another_tokenizer_is_refused(
    folder: Path, tmp_path: Path, make_folder: Any, tiny_config: Any
) -> None:
    other = make_folder(tmp_path / "other", {**tiny_config, "num_hidden_layers": 1})
    said = json.loads((other / "tokenizer.json").read_text())
    vocabulary = said["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="another tokenizer"):
        Engine.open(folder, decode="linear-draft", draft=other)
    wider = make_folder(tmp_path / "wider", {**tiny_config, "vocab_size": 300})
    with pytest.raises(UserError, match="another tokenizer"):
        Engine.open(folder, decode="linear-draft", draft=wider)


def test_a_draft_needs_a_method_that_takes_one(folder: Path, draft: Path) -> None:
    with pytest.raises(UserError) as refused:
        Engine.open(folder, draft=draft)
    assert refused.value.nearest == "linear-draft"
    with pytest.raises(UserError, match="--draft"):
        Engine.open(folder, decode="linear-draft")


def test_the_draft_is_in_the_memory_plan(folder: Path, draft: Path) -> None:
    with Engine.open(folder, decode="linear-draft", draft=draft) as engine:
        labels = [label for label, _ in engine.memory_plan((10, 10)).lines]
    assert any(label.startswith("draft: weights") for label in labels)
    assert any(label.startswith("draft: KV cache") for label in labels)
