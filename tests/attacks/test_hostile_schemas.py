"""JSON schemas made to recurse, to grow or to take forever: compiled soon, or refused soon."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import pytest

from haversack.core.errors import UserError
from haversack.models._bundled import model_folder
from haversack.models._tokenizer import Tokenizer
from haversack.run._constraint import json_schema

END = 0
LETTERS = [chr(97 + index) for index in range(26)]


def chain(length: int, **body: Any) -> dict[str, Any]:
    """Definitions that refer to the next one twice: 2^length of them when written out."""
    parts: dict[str, Any] = {f"a{length}": {"type": "null"}}
    for index in range(length):
        following = {"$ref": f"#/$defs/a{index + 1}"}
        parts[f"a{index}"] = {name: make(following) for name, make in body.items()}
    return {"$ref": "#/$defs/a0", "$defs": parts}


def pair(one: Any) -> dict[str, Any]:
    return {"left": one, "right": one}


COMPILED: dict[str, Any] = {
    "many values": {"enum": [f"value {n} of many" for n in range(10_000)]},
    "long value": {"const": {"a": [{"b": ["x" * 1000]}] * 100}},
    "doubling objects": chain(
        40, type=lambda _: "object", properties=pair, required=lambda _: ["left", "right"]
    ),
    "endless items": {"type": "array", "minItems": 10**9},
    "large numbers": {"type": "integer", "minimum": 10**29, "maximum": 10**30},
    "large multiple": {"type": "integer", "multipleOf": 10**20 + 39},
    "long text": {"type": "string", "maxLength": 10**12},
    "names alike": {
        "type": "object",
        "properties": {"x" * n: {} for n in range(1, 200)},
        "additionalProperties": True,
    },
    "deep": json.loads('{"items": ' * 900 + "{}" + "}" * 900),
    "stars": {"type": "string", "pattern": "^((a*)*)*b$"},
    "alternatives": {"type": "string", "pattern": f"^({'|'.join(LETTERS)}|aa|ab)*$"},
}
REFUSED: dict[str, Any] = {
    "doubling choices": chain(40, anyOf=lambda one: [one, one]),
    "choices of choices": {
        "oneOf": [{"anyOf": [{"const": f"{i}-{j}"} for j in range(200)]} for i in range(64)]
    },
    "exponential pattern": {"type": "string", "pattern": "^(a|b)*a(a|b){40}$"},
    "nested repetition": {"type": "string", "pattern": "(((((a{0,99}){0,99}){0,99}){0,99}){0,99})$"},
    "repetition": {"type": "string", "pattern": "a{100000}"},
    "deep groups": {"type": "string", "pattern": "(" * 500 + "a" + ")" * 500},
    "long pattern": {"type": "string", "pattern": "a" * 20_000},
    "two patterns": {"allOf": [{"type": "string", "pattern": "(.*a.*){30}b"}, {"pattern": "(.*c.*){30}d"}]},
    "wide": {
        "type": "object",
        "properties": {f"p{n}": {"type": "integer", "minimum": n, "multipleOf": 7} for n in range(1500)},
    },
    "endless reference": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    "endless object": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "not a number": {"type": "number", "minimum": float("nan")},
    "infinite": {"type": "number", "maximum": float("inf")},
    "lone surrogate": {"const": "\ud800"},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(model_folder("code") / "tokenizer.json")


def bounded(schema: Any, tokenizer: Tokenizer) -> Any:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    try:
        return json_schema(schema, tokenizer, [END])
    finally:
        assert time.process_time() - begun < 15
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


@pytest.mark.parametrize("name", COMPILED)
def test_what_is_large_but_sound_is_compiled(name: str, tokenizer: Tokenizer) -> None:
    constraint = bounded(COMPILED[name], tokenizer)
    for _ in range(40):
        if constraint.done:
            break
        constraint.advance(int(constraint.allowed(10**9).nonzero()[0][-1]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_never_end_is_refused(name: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError) as refused:
        bounded(REFUSED[name], tokenizer)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
