"""Serving a mixture of experts that are streamed, whole, by matrix or by plane: the answers of the model in
memory, all in lock step, inside a budget."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.run.conftest import tokenizer_json
from tests.run.experts import (
    LARGE_NESTED,
    OLMOE,
    SMALLTHINKER,
    write_expert_pack,
    write_nested_pack,
)

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


def plain_answers(pack: Path) -> list[str]:
    """One by one, with all weights in memory."""
    found = []
    with Engine.open(pack, residency="copied") as engine:
        for prompt in PROMPTS:
            made = generate(engine, prompt, Limits(max_tokens=8))
            for _ in made:
                pass
            found.append(made.text)
    return found


def served_answers(url: str) -> list[str]:
    """Asked for all at once."""
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: asked(url, prompt), PROMPTS))


@pytest.mark.parametrize(
    ("config", "by_matrix", "residency"),
    [
        (OLMOE, False, "streamed:edgemoe,buffer_kib=200"),
        (SMALLTHINKER, True, "streamed:smallthinker,buffer_kib=200"),
        (OLMOE, True, "streamed:smallthinker,buffer_kib=200,keeps=false"),
    ],
)
def test_whole_experts_and_matrices_answer_as_in_memory(
    config: dict[str, Any], by_matrix: bool, residency: str, serving: Any, tmp_path: Path
) -> None:
    goal = tmp_path / "nested.pack"
    pack = write_expert_pack(
        goal, config, profile=False, matrices=by_matrix, bits=lambda _, __: 4, tokenizer=tokenizer_json()
    )
    plain = plain_answers(pack)
    with serving.serving(pack, {"residency": residency}, context_length=64) as server:
        texts = served_answers(server.url)
        told = server.engine.held.record()
    assert texts == plain
    assert 0 < told["peak_nbytes"] <= told["buffer_nbytes"]
    assert told["asked"] > told["hits"]


@pytest.mark.parametrize("more_mib", [None, 61.0])
def test_answers_are_those_of_the_model_in_memory(nested: Path, serving: Any, more_mib: float | None) -> None:
    ram_mib = None if more_mib is None else program_mib() + more_mib
    plain = plain_answers(nested)
    given = {"residency": "streamed:d2moe"}
    options = {"budget": Budget(ram_mib=ram_mib), "context_length": 64}
    with serving.serving(nested, given, **options) as server:
        if ram_mib is not None:
            assert server.room.plan.total_mib <= ram_mib
        assert served_answers(server.url) == plain
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
