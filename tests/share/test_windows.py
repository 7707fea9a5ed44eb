"""A server of a model with windows keeps every entry: answers and kept beginnings are those of the engine."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.run.conftest import CONFIG, write_folder

from haversack.run import Engine, Limits, generate

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
WINDOWED = {**CONFIG, "model_type": "mistral", "sliding_window": 20, "max_position_embeddings": 1024}
LONG = "qz" * 240


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("served") / "windowed", WINDOWED)


def asked(url: str, prompt: str) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were there already."""
    body = {"model": "windowed", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    return found["choices"][0]["text"], found["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_answers_and_beginnings_are_the_engine_s(windowed: Path, serving: Any) -> None:
    prompts = [LONG + "the one", LONG[:130] + "another", LONG + "the other"]
    with Engine.open(windowed) as engine:
        assert engine.cache().stretches
        plain = []
        for prompt in prompts:
            said = generate(engine, prompt, Limits(8))
            for _ in said:
                pass
            plain.append(said.text)
    with serving.serving(windowed) as server:
        found = [asked(server.url, prompt) for prompt in prompts]
        assert [text for text, _ in found] == plain
        assert [cached for _, cached in found] == [0, 128, 480]
        record = server.record()
        assert record["plan"]["cache_keeps"] == "everything"
        whole = server.engine.architecture.cache_nbytes(1024)
        assert dict(server.room.plan.lines)["KV caches, 4 of 1024 tokens"] == 4 * whole
        assert dict(server.engine.memory_plan().lines)["KV cache, 1024 tokens"] == whole
