"""Conversations: answers equal those of a full reading, history stays within the context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.models._chat import ChatTemplate
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._constraint import json_schema
from haversack.run._conversation import Conversation
from haversack.run._prefix import Prefix

SOURCE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEMPLATE = ChatTemplate({"default": SOURCE}, {})
TURNS = ["the one and the other", "there it is", "read on and on", "at the end"]


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, context_length=256) as engine:
        yield engine


def talk(engine: Engine, **options: Any) -> Conversation:
    options = {"limits": Limits(max_tokens=12), "sampler": Sampler(temperature=0.8, seed=4), **options}
    return Conversation(engine, TEMPLATE, **options)


def ask(conversation: Conversation, text: str) -> str:
    return "".join(conversation.ask(text))


@pytest.mark.parametrize("decode", ["one-by-one", "linear-draft", "tree"])
@pytest.mark.parametrize("cache_type", ["f32", "int8"])
def test_only_new_turns_are_read_and_answers_stay_the_same(
    folder: Path, draft: Path, decode: str, cache_type: str
) -> None:
    options: dict[str, Any] = {"decode": decode, "draft": draft} if decode != "one-by-one" else {}
    with Engine.open(folder, context_length=256, cache_type=cache_type, **options) as engine:
        conversation, read = talk(engine), 0
        for turn, text in enumerate(TURNS):
            said = ask(conversation, text)
            assert said
            prompt = TEMPLATE.render(conversation.saved()[:-1])
            tokens = conversation.tokenizer.encode(prompt, special=False)
            again = generate(engine, tokens, conversation.limits, Sampler(temperature=0.8, seed=4 + turn))
            assert "".join(token.text for token in again) == said
            assert conversation.last is not None
            assert again.tokens == conversation.last.tokens
            assert again.log_probabilities == conversation.last.log_probabilities
            # what is said as bytes that are no text comes back as other tokens; all before it is kept
            assert conversation.prefix.reused >= read - 2
            read = conversation.last.prompt_tokens
        assert [m["role"] for m in conversation.saved()] == ["user", "assistant"] * len(TURNS)


def test_a_cache_that_is_cut_back_holds_the_same_bits(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(1, 280, 60).astype(np.int32)
    two = np.concatenate([one[:25], rng.integers(1, 280, 30).astype(np.int32)])
    prefix = Prefix()
    for prompt, reused in ((one, 0), (two, 25), (two, 54), (one[:10], 9)):
        cache, rest = prefix.begin(engine, prompt)
        assert prefix.reused == reused and len(rest) == len(prompt) - reused
        logits, _ = engine.step(rest, cache=cache)
        prefix.keep(prompt)
        plain, _ = engine.step(prompt, cache=engine.cache(128))
        assert logits is not None and plain is not None and np.array_equal(logits, plain)


def test_scalings_that_look_at_the_length_share_nothing(
    make_folder: Any, tiny_config: Any, tmp_path: Path
) -> None:
    scaling = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    config = {**tiny_config, "max_position_embeddings": 32, **scaling}
    with Engine.open(make_folder(tmp_path / "dynamic", config)) as engine:
        prefix = Prefix()
        prompt = np.arange(1, 20, dtype=np.int32)
        cache, rest = prefix.begin(engine, prompt)
        engine.step(rest, cache=cache)
        prefix.keep(prompt)
        changes = [
            b.attention.rope.changes_at()
            for b in engine.architecture.blocks
            if b.attention and b.attention.rope
        ]
        prefix.begin(engine, prompt)
        shares = all(end is None or engine.context_length <= end for end in changes)
        assert prefix.reused == (18 if shares else 0)


def test_the_oldest_turns_are_left_out(engine: Engine) -> None:
    conversation = talk(engine, system="be brief")
    dropped = 0
    for text in TURNS * 4:
        ask(conversation, text)
        dropped += conversation.dropped
        assert conversation.last is not None
        assert conversation.last.prompt_tokens + 12 <= engine.context_length
        assert conversation.saved()[0] == {"role": "system", "content": "be brief"}
        assert conversation.messages[0]["role"] == "user" and conversation.messages[-2]["content"] == text
    assert dropped > 0


def test_a_message_that_cannot_fit_is_taken_back(engine: Engine) -> None:
    conversation = talk(engine)
    ask(conversation, "the one")
    before = conversation.saved()
    with pytest.raises(UserError, match="256"):
        ask(conversation, "no end " * 300)
    assert conversation.saved()[-2:] == before[-2:] and conversation.messages[-1]["role"] == "assistant"
    assert ask(conversation, "the other")


def test_an_interrupted_answer_stays_as_far_as_it_went(engine: Engine) -> None:
    conversation = talk(engine)
    pieces = conversation.ask("the one")
    said = next(pieces) + next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    whole = ask(conversation, "go on")
    prompt = TEMPLATE.render(conversation.saved()[:-1])
    tokens = conversation.tokenizer.encode(prompt, special=False)
    again = generate(engine, tokens, conversation.limits, Sampler(temperature=0.8, seed=5))
    assert "".join(token.text for token in again) == whole


def test_the_template_ends_the_turn(engine: Engine) -> None:
    assert talk(engine).limits.end == (0,)
    plain = Conversation(engine, TEMPLATE, limits=Limits(end=()))
    assert plain.limits.end == ()


def test_answers_under_a_schema_every_turn(engine: Engine) -> None:
    tokenizer = engine.model.tokenizer()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    conversation = talk(
        engine, limits=Limits(max_tokens=30), constraint=lambda ends: json_schema(schema, tokenizer, ends)
    )
    for text in TURNS[:2]:
        assert isinstance(json.loads(ask(conversation, text))["a"], int)


def test_conversations_are_saved_and_loaded(engine: Engine) -> None:
    conversation = talk(engine, system="be brief")
    ask(conversation, "the one")
    other = talk(engine)
    other.load(conversation.saved())
    assert other.saved() == conversation.saved()
    other.reset()
    assert other.saved() == [{"role": "system", "content": "be brief"}]
    with pytest.raises(UserError):
        other.load([{"role": "nobody"}])
