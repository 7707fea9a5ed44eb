"""Chats by the official client: templates, streams, calls of tools and JSON by schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models._chat_templates import QWEN

from haversack.models._chat import ChatTemplate
from haversack.run import Engine, Limits, Sampler, generate

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "in a road"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"$ref": "#/$defs/days"}},
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop_all"}},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"enum": ["yes", "no"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["answer", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def chatting(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template of Qwen's kind, and room for tools."""
    folder = tmp_path_factory.mktemp("served") / "chatty"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    (folder / "chat_template.jinja").write_text(QWEN)
    return folder


@pytest.fixture(scope="module")
def server(chatting: Path, serving: Any) -> Any:
    with serving.serving(chatting, max_prompt=1500) as server:
        yield server


def ask(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "chatty", "messages": MESSAGES, "max_completion_tokens": 12, "temperature": 0, **fields}
    )


def test_a_chat_is_the_template_s_text_completed(client: Any, chatting: Path) -> None:
    template = ChatTemplate.of(chatting)
    assert template is not None
    with Engine.open(chatting) as engine:
        tokens = engine.model.tokenizer().encode(template.render(MESSAGES), special=False)
        answer = generate(engine, tokens, Limits(12), Sampler(0.9, seed=4))
        for _ in answer:
            pass
        made = ask(client, temperature=0.9, seed=4)
        assert made.choices[0].message.content == answer.text
        assert made.usage.prompt_tokens == len(tokens) and made.usage.completion_tokens == len(answer.tokens)
        parts = [
            {**MESSAGES[1], "content": [{"type": "text", "text": "in a "}, {"type": "text", "text": "road"}]}
        ]
        again = ask(client, temperature=0.9, seed=4, messages=[MESSAGES[0], *parts])
        assert again.choices[0].message.content == answer.text
    chunks = list(ask(client, temperature=0.9, seed=4, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.text
    assert chunks[-1].choices[0].finish_reason == made.choices[0].finish_reason == "length"


def test_log_probabilities(client: Any) -> None:
    made = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(made) == 12
    for one in made:
        assert bytes(one.bytes) if one.bytes else one.token
        assert len(one.top_logprobs) == 3
        assert one.logprob == max(other.logprob for other in one.top_logprobs)  # temperature 0
    streamed = [
        one.logprob
        for chunk in ask(client, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert streamed == [one.logprob for one in made]


@pytest.mark.parametrize("seed", range(4))
def test_json_by_schema(client: Any, seed: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "vote", "schema": SCHEMA, "strict": True}}
    fields = {"response_format": wanted, "temperature": 1.5, "seed": seed, "max_completion_tokens": 60}
    made = ask(client, **fields, n=2)
    for choice in made.choices:
        found = json.loads(choice.message.content)
        assert set(found) == {"answer", "count"} and found["answer"] in ("yes", "no")
        assert 0 <= found["count"] <= 99 and choice.finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, **fields, stream=True))
    assert text == made.choices[0].message.content
    free = ask(
        client, response_format={"type": "json_object"}, temperature=1, seed=seed, max_completion_tokens=40
    )
    assert isinstance(json.loads(free.choices[0].message.content), dict)


def test_a_constrained_answer_beside_free_ones(client: Any) -> None:
    """Among answers that share its steps, and they among themselves, nothing changes."""
    from concurrent.futures import ThreadPoolExecutor

    wanted = {"type": "json_schema", "json_schema": {"name": "vote", "schema": SCHEMA}}
    cases = [
        {"seed": number, "temperature": 1, "max_completion_tokens": 40}
        | ({"response_format": wanted} if number % 2 else {})
        for number in range(8)
    ]
    alone = [ask(client, **case).choices[0].message.content for case in cases]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda case: ask(client, **case).choices[0].message.content, cases))
    assert together == alone


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_be(client: Any, choice: Any, stream: bool) -> None:
    fields = {
        "tools": TOOLS,
        "tool_choice": choice,
        "temperature": 1.2,
        "seed": 1,
        "max_completion_tokens": 80,
    }
    if stream:
        chunks = list(ask(client, **fields, stream=True))
        (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        reason, content = chunks[-1].choices[0].finish_reason, None
    else:
        made = ask(client, **fields).choices[0]
        (call,) = made.message.tool_calls
        reason, content = made.finish_reason, made.message.content
    assert reason == "tool_calls" and not content
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather" or (choice == "required" and call.function.name == "stop_all")
    if call.function.name == "weather":
        assert arguments["city"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9
    follow = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert (
        ask(client, messages=follow, tools=TOOLS, tool_choice="none").choices[0].message.content is not None
    )


def test_a_call_that_may_be(client: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model writes a call by itself: its logits are bent so that it does."""
    text = 'so <tool_call>{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}</tool_call>'
    tokens = server.app.asker.tokenizer.encode(text)
    together = server.app.batch.together
    step = together.step

    def bent(parts: Any) -> Any:
        found = step(parts)
        for part, logits in zip(parts, found, strict=True):
            at = together.caches[part.slot].length - together.caches[part.slot].horizon
            if logits is not None and part.want == "last":
                logits[tokens[at] if at < len(tokens) else 0] = 1e4
        return found

    monkeypatch.setattr(together, "step", bent)
    fields = {"tools": TOOLS, "max_completion_tokens": 200}
    made = ask(client, **fields).choices[0]
    assert made.finish_reason == "tool_calls" and made.message.content == "so"
    assert json.loads(made.message.tool_calls[0].function.arguments) == {"city": "Oslo", "days": 3}
    chunks = list(ask(client, **fields, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == "so"
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert call.function.name == "weather" and chunks[-1].choices[0].finish_reason == "tool_calls"
    plain = ask(client, tools=TOOLS, tool_choice="none", max_completion_tokens=200).choices[0]
    assert plain.message.content == text and not plain.message.tool_calls


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            None,
        ),
        ({"messages": [{"role": "user", "content": "the " * 1000}]}, "messages"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_mistakes_are_named(client: Any, fields: dict[str, Any], param: str | None) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as told:
            ask(client, **fields, stream=stream)
        assert param is None or told.value.param == param


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {"more": {"$ref": "#"}}, "required": ["more"]},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/nowhere"},
        {"enum": []},
        {"allOf": [{"type": "string"}, {"type": "number"}]},
        {"type": "string", "minLength": 10_000},
        {"type": "string", "pattern": "(a+)+$("},
        {"type": "unheard-of"},
        {"type": "object", "properties": {str(i): {"type": "string"} for i in range(30_000)}},
        {"not": {}},
    ],
    ids=range(12),
)
def test_schemas_that_recurse_or_never_end_are_refused(client: Any, schema: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError):
            ask(client, response_format=wanted, stream=stream)
    assert ask(client).choices[0].message.content is not None


def test_a_schema_that_is_too_deep(server: Any, serving: Any) -> None:
    schema = '{"type":"array","items":' * 5_000 + "true" + "}" * 5_000
    body = {"model": "chatty", "messages": MESSAGES, "response_format": {"type": "json_schema"}}
    text = json.dumps(body)[:-2] + ', "json_schema": {"name": "s", "schema": ' + schema + "}}}"
    data = serving.raw(serving.port_of(server), serving.post("/v1/chat/completions", text.encode()))
    status, said = serving.answered(data)
    assert status == 400 and said["error"]["type"] == "invalid_request_error"


def test_a_schema_that_recurses_and_may_end(client: Any) -> None:
    tree = {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
        "required": ["kids"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "tree", "schema": tree}}
    for seed in range(3):
        made = ask(client, response_format=wanted, temperature=1.5, seed=seed, max_completion_tokens=50)
        assert "kids" in json.loads(made.choices[0].message.content)


def test_a_template_from_a_file(serving: Any, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    with (
        serving.serving(tiny, chat_template=file, name="mine") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        made = client.chat.completions.create(model="mine", messages=MESSAGES, max_tokens=3)
        assert made.choices[0].message.content is not None and made.model == "mine"
