"""Constrained decoding: every answer valid, and the speed beside the same model left free."""

from __future__ import annotations

import json
import time
from typing import Any

from haversack.bench._harness import MIN_PAIRS, Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.serving._bench import bench
from haversack.bench.serving._schemas import drawn_schema

CONSTRAINT_FILES = (
    "run/_constraint.py",
    "run/_automaton.py",
    "run/_terms.py",
    "run/_regex.py",
    "run/_json*.py",
    *("kernels/automaton.py", "native/automaton*", "native/bind/automaton*"),
)
VALID_FILES = (
    *CONSTRAINT_FILES,
    "run/_schema*.py",
    "bench/serving/_schemas.py",
    "bench/serving/constrained.py",
)
SLOWDOWN_FILES = (*VALID_FILES, "run/_generate.py", "run/_sampler.py", "kernels/sampling.py")
SCHEMAS, QUICK_SCHEMAS = 500, 30
ROOM = 200
PROMPT = "# The record as JSON\nrecord = "
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 2, "maxItems": 6},
        "author": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "email": {"type": "string", "format": "email"}},
            "required": ["name", "email"],
            "additionalProperties": False,
        },
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "notes": {"type": "string", "minLength": 20, "maxLength": 2000},
    },
    "required": ["title", "year", "tags", "author", "score", "notes"],
    "additionalProperties": False,
}
TOKENS = 160


def _judge(schema: dict[str, Any]) -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise Unavailable("jsonschema is not installed: pip install 'haversack[dev]'") from error
    kind = jsonschema.Draft202012Validator
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@bench.measure(
    Row(
        "constrained-valid",
        "answers of `code` under drawn JSON schemas, sampled at temperature 1.5: share that a validator "
        "accepts",
        "share",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        quick=True,
    ),
    seconds=180,
    quick_seconds=10,
    watches=VALID_FILES,
)
def constrained_valid(run: Run) -> Outcomes:
    from haversack.run import Engine, Limits, Sampler, generate
    from haversack.run._constraint import json_schema

    valid = longest = 0
    count = QUICK_SCHEMAS if run.quick else SCHEMAS
    with Engine.open("code", context_length=512) as engine:
        tokenizer = engine.model.tokenizer()
        for number in range(count):
            schema = drawn_schema(run.seed * 1000 + number)
            constraint = json_schema(schema, tokenizer, engine.model.end_of_text)
            least = int(constraint.least)
            room = max(ROOM, least) if number % 2 else least + number % 7
            sampler = Sampler(temperature=1.5, seed=number)
            answer = generate(engine, PROMPT, Limits(max_tokens=room), sampler, tokenizer, constraint)
            for _ in answer:
                pass
            longest = max(longest, len(answer.tokens))
            try:
                value = json.loads(answer.text)
            except ValueError:
                continue
            valid += _judge(schema).is_valid(value)
    note = f"{count} schemas, every second one with hardly the room it needs; longest answer {longest} tokens"
    return {"constrained-valid": Outcome.single(valid / count, name="code", note=note)}


def _seconds(engine: Any, tokenizer: Any, constraint: Any, seed: int) -> float:
    """Seconds a token of an answer of TOKENS tokens, the first one left out."""
    from haversack.run import Limits, Sampler, generate

    sampler = Sampler(temperature=1.0, seed=seed)
    answer = generate(engine, PROMPT, Limits(max_tokens=TOKENS, end=()), sampler, tokenizer, constraint)
    for _ in answer:
        pass
    return 1 / answer.tokens_per_s


@bench.measure(
    Row(
        "constrained-slowdown",
        "seconds a token of `code` under a schema used before, beside the same model left free",
        "ratio",
        "time",
        Bar("<=", 1.15),
        quick=True,
    ),
    Row(
        "constrained-first",
        "seconds a token of the first answer under a schema, its compilation included, beside the same "
        "model left free",
        "ratio",
        "time",
    ),
    seconds=60,
    quick_seconds=15,
    watches=SLOWDOWN_FILES,
)
def constrained_slowdown(run: Run) -> Outcomes:
    from haversack.run import Engine
    from haversack.run._automaton import Vocabulary
    from haversack.run._constraint import json_schema

    with Engine.open("code") as engine:
        tokenizer = engine.model.tokenizer()
        ends = engine.model.end_of_text
        numbers = iter(range(10_000))
        vocabulary = Vocabulary.of(tokenizer)
        assert vocabulary is not None

        def free() -> float:
            return 1e3 * _seconds(engine, tokenizer, None, run.seed + next(numbers))

        def warm() -> float:
            constraint = json_schema(RECORD, tokenizer, ends)
            return 1e3 * _seconds(engine, tokenizer, constraint, run.seed + next(numbers))

        def cold() -> float:
            vocabulary.kept.clear()
            begun = time.perf_counter()
            constraint = json_schema(RECORD, tokenizer, ends)
            compiling = time.perf_counter() - begun
            return 1e3 * (
                _seconds(engine, tokenizer, constraint, run.seed + next(numbers)) + compiling / TOKENS
            )

        warm()
        pairs = run.interleave({"free": free, "constrained": warm}, MIN_PAIRS)
        note = f"{TOKENS} tokens at temperature 1, milliseconds a token"
        found = {"constrained-slowdown": Outcome.of(pairs, baseline="free", ours="constrained", note=note)}
        if not run.quick:
            taken = run.interleave({"free": free, "first answer": cold}, MIN_PAIRS)
            found["constrained-first"] = Outcome.of(taken, baseline="free", ours="first answer", note=note)
    return found
