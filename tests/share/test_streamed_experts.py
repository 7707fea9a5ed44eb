"""Serving a mixture of experts whose planes are streamed: the answers of the model in memory, all in lock
step, inside a budget."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.run.conftest import tokenizer_json
from tests.run.experts import LARGE_NESTED, write_nested_pack

from haversack.core.budget import Budget, BudgetError
from haversack.run import Engine, Limits, generate
from haversack.run._memory import program_mib

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
PROMPTS = ["the second one", "a", "one two three", "of the", "second", "three of them"]


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "nested.pack"
    return write_nested_pack(path, LARGE_NESTED, tokenizer=tokenizer_json(), alike=True)


def asked(url: str, prompt: str) -> str:
    body = {"model": "nested", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text


@pytest.mark.parametrize("more_mib", [None, 61.0])
def test_answers_are_those_of_the_model_in_memory(nested: Path, serving: Any, more_mib: float | None) -> None:
    ram_mib = None if more_mib is None else program_mib() + more_mib
    with Engine.open(nested, residency="copied") as engine:
        plain = []
        for prompt in PROMPTS:
            made = generate(engine, prompt, Limits(max_tokens=8))
            for _ in made:
                pass
            plain.append(made.text)
    given = {"residency": "streamed:d2moe"}
    options = {"budget": Budget(ram_mib=ram_mib), "context_length": 64}
    with serving.serving(nested, given, **options) as server:
        if ram_mib is not None:
            assert server.room.plan.total_mib <= ram_mib
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            texts = list(pool.map(lambda prompt: asked(server.url, prompt), PROMPTS))
        assert texts == plain
        told = server.engine.held.record()
        assert 0 < told["peak_nbytes"] <= told["buffer_nbytes"] and told["asked"] > 0
        if ram_mib is not None:
            assert told["buffer_nbytes"] <= server.room.experts_bytes


def test_a_budget_that_is_too_small_names_the_least(nested: Path, serving: Any) -> None:
    given = {"residency": "streamed:d2moe"}
    with (
        pytest.raises(BudgetError) as caught,
        serving.serving(nested, given, budget=Budget(ram_mib=60), context_length=64),
    ):
        pass
    (failure,) = caught.value.failures
    assert 60 < failure.needed < 120
