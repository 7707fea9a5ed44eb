"""The official client speaks to the server; what it gets is what the engine gives."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from haversack.run import Engine, Limits, Sampler, generate

openai = pytest.importorskip("openai")
PROMPT = "the other end of the road"


@pytest.fixture(scope="module")
def engine(tiny: Any) -> Any:
    with Engine.open(tiny) as engine:
        yield engine


def expected(
    engine: Engine, tokens: int, prompt: Any = PROMPT, stop: tuple[str, ...] = (), **sampler: Any
) -> Any:
    answer = generate(engine, prompt, Limits(tokens, stop), Sampler(**sampler))
    for _ in answer:
        pass
    return answer


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "haversack"
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("gpt-4")
    assert told.value.code == "model_not_found" and "this server has tiny" in told.value.message


def test_a_completion_is_the_engine_s(client: Any, engine: Engine) -> None:
    for options in ({"temperature": 0}, {"temperature": 0.9, "seed": 7, "top_p": 0.9}):
        made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=30, **options)
        answer = expected(engine, 30, **options)
        assert made.choices[0].text == answer.text
        assert made.choices[0].finish_reason == ("length" if answer.stop == "max-tokens" else "stop")
        assert made.usage.prompt_tokens == answer.prompt_tokens
        assert made.usage.completion_tokens == len(answer.tokens)
        assert made.usage.total_tokens == answer.prompt_tokens + len(answer.tokens)


def test_a_stream_is_the_same_answer(client: Any, engine: Engine) -> None:
    chunks = list(
        client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=30, temperature=0.9, seed=7, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    answer = expected(engine, 30, temperature=0.9, seed=7)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == answer.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(answer.tokens)
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 8  # token by token, but for those that end inside a character


def test_stop_texts(client: Any, engine: Engine) -> None:
    text = expected(engine, 30, temperature=0.8, seed=1).text
    stop = text[6:9]
    answer = expected(engine, 30, stop=(stop,), temperature=0.8, seed=1)
    for given in (stop, [stop, "never said"]):
        made = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=30, temperature=0.8, seed=1, stop=given
        )
        assert made.choices[0].text == answer.text and made.choices[0].finish_reason == "stop"
    chunks = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=30, temperature=0.8, seed=1, stop=stop, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.text


def test_choices_prompts_and_tokens(client: Any, engine: Engine) -> None:
    made = client.completions.create(
        model="tiny", prompt=[PROMPT, "in a"], n=3, max_tokens=6, temperature=1, seed=5, echo=True
    )
    assert [choice.index for choice in made.choices] == list(range(6))
    assert all(choice.text.startswith(PROMPT) for choice in made.choices[:3])
    assert all(choice.text.startswith("in a") for choice in made.choices[3:])
    assert len({choice.text for choice in made.choices}) == 6
    assert made.choices[0].text == PROMPT + expected(engine, 6, temperature=1, seed=5).text
    tokens = engine.model.tokenizer().encode(PROMPT)
    assert made.usage.prompt_tokens == len(tokens) + len(engine.model.tokenizer().encode("in a"))
    same = client.completions.create(model="tiny", prompt=tokens, max_tokens=6, temperature=1, seed=5)
    assert PROMPT + same.choices[0].text == made.choices[0].text
    streamed = ["", "", ""]
    for chunk in client.completions.create(
        model="tiny", prompt=PROMPT, n=3, max_tokens=6, temperature=1, seed=5, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert [PROMPT + text for text in streamed] == [choice.text for choice in made.choices[:3]]


def test_log_probabilities(client: Any, engine: Engine) -> None:
    answer = expected(engine, 12, temperature=0.8, seed=3)
    options = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": 12,
        "temperature": 0.8,
        "seed": 3,
        "logprobs": 4,
    }
    made = client.completions.create(**options).choices[0]
    np.testing.assert_allclose(made.logprobs.token_logprobs, answer.log_probabilities, atol=1e-5)
    assert len(made.logprobs.tokens) == 12
    for token, top in zip(made.logprobs.tokens, made.logprobs.top_logprobs, strict=True):
        assert len(top) in (4, 5) and token in top
        assert sum(np.exp(list(top.values()))) <= 1 + 1e-6
    chunks = list(client.completions.create(**options, stream=True))
    streamed = [
        value
        for chunk in chunks
        if chunk.choices[0].logprobs
        for value in chunk.choices[0].logprobs.token_logprobs
    ]
    assert streamed == made.logprobs.token_logprobs


def test_penalties_and_biases(client: Any) -> None:
    plain = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, temperature=0)
    other = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=40, temperature=0, frequency_penalty=2, presence_penalty=2
    )
    assert other.choices[0].text != plain.choices[0].text
    forced = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=5, temperature=0, logit_bias={"98": 100}
    )
    assert forced.choices[0].text == "aaaaa"
    ours = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=5, temperature=1, seed=1, extra_body={"top_k": 1}
    )
    likeliest = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0)
    assert ours.choices[0].text == likeliest.choices[0].text


def test_a_prefix_is_taken_over(client: Any) -> None:
    prompt = PROMPT * 8
    first = client.completions.create(model="tiny", prompt=prompt, max_tokens=4, temperature=0)
    again = client.completions.create(model="tiny", prompt=prompt, max_tokens=4, temperature=0)
    assert again.usage.prompt_tokens_details.cached_tokens >= 64
    assert first.choices[0].text == again.choices[0].text


def test_embeddings(client: Any, engine: Engine) -> None:
    texts = [PROMPT, "in a"]
    made = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    for index, text in enumerate(texts):
        tokens = engine.model.tokenizer().encode(text)
        _, hidden = engine.step(tokens, cache=engine.cache(100), want="hidden")
        mean = hidden.mean(axis=0)
        np.testing.assert_allclose(made.data[index].embedding, mean / np.linalg.norm(mean), atol=1e-6)
        np.testing.assert_allclose(plain.data[index].embedding, made.data[index].embedding, atol=1e-7)
    assert made.usage.prompt_tokens == sum(len(engine.model.tokenizer().encode(text)) for text in texts)
    packed = client.with_raw_response.embeddings.create(
        model="tiny", input=texts[0], encoding_format="base64"
    )
    shown = packed.http_response.json()["data"][0]["embedding"]
    assert len(np.frombuffer(base64.b64decode(shown), "<f4")) == engine.architecture.width
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="a", dimensions=7)


def test_a_closed_stream_frees_its_slot(client: Any, serving: Any, server: Any) -> None:
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=480, temperature=0, stream=True
    )
    next(iter(stream))
    stream.close()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
        other.completions.create(model="tiny", prompt=PROMPT, max_tokens=2)
    state = _state(server)
    serving.until(lambda: _state(server)["running"] == 0, 10)
    assert state["contexts"] == 4


def _state(server: Any) -> Any:
    import json
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/state", timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"temperature": 3}, "temperature", "invalid_type"),
        ({"max_tokens": 100_000}, "max_tokens", "invalid_value"),
        ({"prompt": "a " * 600}, "prompt", "context_length_exceeded"),
        ({"prompt": [5, 99_999]}, "prompt", "invalid_value"),
        ({"prompt": ["a", [1]]}, "prompt", "invalid_type"),
        ({"n": 99}, "n", "invalid_type"),
        ({"best_of": 4}, "best_of", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
        ({"logprobs": 9}, "logprobs", "invalid_type"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
        ({"extra_body": {"min_p": 2}}, "min_p", "invalid_type"),
    ],
)
def test_mistakes_are_named(client: Any, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        client.completions.create(**{"model": "tiny", "prompt": PROMPT, **fields})
    assert told.value.status_code == (404 if code == "model_not_found" else 400)
    assert (told.value.param, told.value.code) == (param, code)
    assert told.value.message


def test_a_model_without_template_does_not_chat(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}])
    assert told.value.code == "no_chat_template" and "/v1/completions" in told.value.message
