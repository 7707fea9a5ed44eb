"""From a prompt to text: where it ends, what is printed, and that a seed decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._generate import StopTexts

PROMPT = "the one and the other"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    with Engine.open(folder) as opened:
        yield opened


def answer(engine: Engine, prompt: Any = PROMPT, sampler: Sampler | None = None, **limits: Any) -> Any:
    said = generate(engine, prompt, Limits(**{"max_tokens": 24, "end": (), **limits}), sampler)
    said.pieces = [token.text for token in said]
    return said


texts = st.text(alphabet="abc", max_size=30)


@given(st.lists(texts, max_size=8), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_stop_texts_are_never_printed(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut into pieces, exactly what stands before the first stop text comes out."""
    whole = "".join(pieces)
    # The earliest end of a stop text decides; among those, the earliest beginning.
    ends = sorted((at + len(s), at) for s in stops for at in range(len(whole)) if whole.startswith(s, at))
    found, out = StopTexts(stops), ""
    for piece in pieces:
        out += found.add(piece)
        assert not any(stop in out for stop in stops)
        if found.met:
            break
    if not found.met:
        out += found.finish()
    assert found.met == bool(ends)
    if not ends:
        assert out == whole
    else:
        assert whole.startswith(out) and len(out) <= ends[0][1]


def test_stop_text_across_tokens_ends_the_answer(engine: Engine) -> None:
    plain = answer(engine)
    middle = plain.text[5:8]
    stopped = answer(engine, stop=(middle,))
    assert stopped.stop == "stop-text"
    assert stopped.text == plain.text[: plain.text.index(middle)]
    assert "".join(stopped.pieces) == stopped.text
    never = answer(engine, stop=(plain.text[-2:] + "?",))
    assert never.text == plain.text and "".join(never.pieces) == plain.text


def test_greedy_takes_the_likeliest(engine: Engine) -> None:
    said = answer(engine)
    assert said.stop == "max-tokens" and len(said.tokens) == 24
    tokens = np.array(engine.model.tokenizer().encode(PROMPT), np.int32)
    logits, _ = engine.step([*tokens, *said.tokens], cache=engine.cache(), want="all")
    assert logits is not None
    rows = logits[len(tokens) - 1 : -1]
    assert rows.argmax(axis=1).tolist() == said.tokens
    shares = rows - np.log(np.exp(rows.astype(np.float64)).sum(axis=1, keepdims=True))
    wanted = shares[np.arange(24), said.tokens]
    assert np.allclose(said.log_probabilities, wanted, atol=1e-5)


FILTERS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 12},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize("filters", FILTERS)
def test_a_seed_decides(filters: dict[str, Any], engine: Engine) -> None:
    first = answer(engine, sampler=Sampler(**filters, seed=5))
    again = answer(engine, sampler=Sampler(**filters, seed=5))
    other = answer(engine, sampler=Sampler(**filters, seed=6))
    assert first.tokens == again.tokens and first.text == again.text
    assert first.tokens != other.tokens


def test_filters_hold(engine: Engine) -> None:
    """Every drawn token is among those the filter leaves, by the definition."""
    sampler = Sampler(temperature=1.5, top_k=3, seed=2)
    said = answer(engine, sampler=sampler)
    tokens = engine.model.tokenizer().encode(PROMPT)
    logits, _ = engine.step([*tokens, *said.tokens], cache=engine.cache(), want="all")
    assert logits is not None
    best = np.argsort(-logits[len(tokens) - 1 : -1], axis=1, kind="stable")[:, :3]
    assert all(token in row for token, row in zip(said.tokens, best, strict=True))
    assert any(token != row[0] for token, row in zip(said.tokens, best, strict=True))


def test_repetition_penalty_ends_repetition(engine: Engine) -> None:
    said = answer(engine, sampler=Sampler(repetition_penalty=50.0))
    assert len(set(said.tokens)) == len(said.tokens)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_impossible_filters_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError) as refused:
        Sampler(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize("limits", [{"max_tokens": 0}, {"stop": ("",)}, {"stop": ("a",) * 100}])
def test_impossible_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Limits(**limits)


def test_the_end_token_ends_without_text(engine: Engine) -> None:
    plain = answer(engine)
    end = plain.tokens[3]
    first = plain.tokens.index(end)
    said = answer(engine, end=(end,))
    assert said.stop == "end-of-text" and said.tokens == plain.tokens[:first]


def test_the_context_ends_an_answer(folder: Path) -> None:
    with Engine.open(folder, context_length=30) as engine:
        length = len(engine.model.tokenizer().encode(PROMPT))
        said = answer(engine, max_tokens=10**12)
        assert said.stop == "context"
        assert len(said.tokens) == 30 - length + 1  # the last one needs no place in the cache


def test_a_prompt_longer_than_the_context_names_both_lengths(folder: Path) -> None:
    with (
        Engine.open(folder, context_length=20) as engine,
        pytest.raises(UserError, match=r"25.*20") as refused,
    ):
        generate(engine, list(range(3, 28)))
    assert (refused.value.given, refused.value.nearest) == (25, 20)


def test_an_empty_prompt_begins_a_text(engine: Engine) -> None:
    assert answer(engine, "").tokens == answer(engine, [0]).tokens
    with pytest.raises(UserError):
        answer(engine, [])


def test_pieces_are_whole_characters(engine: Engine) -> None:
    """Random weights write bytes that are no UTF-8: they show as U+FFFD, and pieces joined are the text."""
    for seed in range(4):
        said = answer(engine, sampler=Sampler(temperature=2.0, seed=seed))
        assert "".join(said.pieces) == said.text
        assert said.text == engine.model.tokenizer().decode(said.tokens)


def test_times_and_counts(engine: Engine) -> None:
    said = answer(engine)
    assert 0 < said.first_token_ms / 1e3 <= said.seconds
    assert said.tokens_per_s > 0
    assert said.prompt_tokens == len(engine.model.tokenizer().encode(PROMPT))
