"""Constrained decoding: what is written satisfies the schema, always ends, and costs nothing in exactness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.bench.serving._schemas import drawn_schema
from haversack.core.errors import UserError
from haversack.models._bundled import model_folder
from haversack.models._tokenizer import Tokenizer
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._constraint import TokenConstraint, json_object, json_schema, one_of, regular_expression

END = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(model_folder("code") / "tokenizer.json")


def written(constraint: TokenConstraint, tokenizer: Tokenizer, seed: int, room: int = 200) -> str:
    """A text of tokens drawn evenly from those that are allowed."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    for left in range(room, 0, -1):
        if constraint.done:
            break
        allowed = np.flatnonzero(constraint.allowed(left))
        assert allowed.size, tokenizer.decode(tokens)
        token = int(rng.choice(allowed))
        constraint.advance(token)
        tokens.append(token)
    assert constraint.complete
    return tokenizer.decode(tokens)


def check(schema: Any, text: str) -> Any:
    validators = pytest.importorskip("jsonschema")
    value = json.loads(text)
    kind = validators.Draft202012Validator
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(value)
    return value


@pytest.mark.parametrize("part", range(8))
def test_every_text_of_drawn_schemas_is_valid(part: int, tokenizer: Tokenizer) -> None:
    for seed in range(part * 15, part * 15 + 15):
        schema = drawn_schema(seed)
        constraint = json_schema(schema, tokenizer, [END])
        for room in (int(constraint.least), 160):  # the least that can be asked, and plenty
            check(schema, written(constraint.fresh(), tokenizer, seed + room, room))


def fallback_tokenizer() -> Tokenizer:
    """A vocabulary with a token for each byte and some pieces, as SentencePiece makes them."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": byte + 3 for byte in range(256)}}
    for piece in (
        "\u2581",
        "\u2581{",
        '"',
        "{",
        '\u2581"',
        '":',
        '",',
        "name",
        "\u2581the",
        "1",
        "12",
        "é",
        "日",
    ):
        vocabulary[piece] = len(vocabulary)
    special = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text, number in list(vocabulary.items())[:3]
    ]
    steps = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>", "byte_fallback": True}
    document = {
        "version": "1.0",
        "added_tokens": special,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": model,
    }
    return Tokenizer.of_bytes(json.dumps(document).encode())


def test_vocabularies_with_tokens_for_bytes() -> None:
    tokenizer = fallback_tokenizer()
    for seed in range(12):
        schema = drawn_schema(seed)
        constraint = json_schema(schema, tokenizer, [2])
        assert not constraint.allowed()[[0, 1]].any()
        check(schema, written(constraint, tokenizer, seed, int(constraint.least) + 40))


CASES: list[tuple[Any, list[str], list[str]]] = [
    (
        True,
        ["null", "[]", '{"a": [1.5e3, "\\u00e9\\ud83d\\ude00"]}'],
        ["nul ", '"\\ud83d"', "01", "[1,]", "{a}"],
    ),
    (
        {"type": "integer", "minimum": -5, "maximum": 120},
        ["-5", "0", "120"],
        ["-6", "121", "1.0", "-0", "007"],
    ),
    (
        {"type": "number", "exclusiveMinimum": 0.1, "maximum": 2},
        ["0.11", "2", "2.0", "1"],
        ["0.1", "2.01", "1e0"],
    ),
    ({"type": "integer", "multipleOf": 7}, ["0", "7", "-14", "700"], ["6", "71"]),
    ({"type": "number", "multipleOf": 0.25}, ["0.25", "3.5", "-1.75", "2"], ["0.3", "0.125"]),
    (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ['"ab"', '"é\\n!"', '"\\ud83d\\ude00x"'],
        ['"a"', '"abcd"'],
    ),
    ({"type": "string", "pattern": "^a+b$"}, ['"ab"', '"aaab"'], ['"b"', '"abc"', '"\\u0061b"']),
    ({"type": "string", "pattern": "b"}, ['"b"', '"xbx"'], ['"x"']),
    ({"enum": [1, "two", {"a": [None]}]}, ["1", '"two"', '{"a":[null]}'], ["2", '"tw"']),
    ({"const": "x", "type": "string"}, ['"x"'], ['"y"']),
    ({"enum": [1, 5, "x", 9], "type": "integer", "maximum": 6}, ["1", "5"], ["9", '"x"']),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        ["[true]", "[true, false]"],
        ["[]", "[true,true,true]", "[1]"],
    ),
    (
        {"prefixItems": [{"const": 1}, {"type": "null"}], "items": {"const": 2}, "type": "array"},
        ["[]", "[1]", "[1,null,2,2]"],
        ["[2]", "[1,null,3]"],
    ),
    (
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]},
        ['{"b":2}', '{"a": 1, "b": 2}'],
        ["{}", '{"a":1}', '{"b":2,"c":3}'],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {}},
            "additionalProperties": {"type": "null"},
            "maxProperties": 2,
        },
        ['{"b":null}', '{"a":1,"c":null}'],
        ['{"b":1}', '{"\\u0061":null}', '{"b":null,"c":null,"d":null}'],
    ),
    (
        {"type": "object", "patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False},
        ['{"n":1}', "{}"],
        ['{"n":"x"}', '{"m":1}'],
    ),
    ({"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 9}]}, ["null", "9"], ["8", "true"]),
    (
        {
            "allOf": [{"type": "integer"}, {"minimum": 3}, {"$ref": "#/$defs/top"}],
            "$defs": {"top": {"maximum": 4}},
        },
        ["3", "4"],
        ["2", "5"],
    ),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ['"a"', "1"], ["1.5", "null"]),
    (
        {
            "$ref": "#/$defs/list",
            "$defs": {
                "list": {
                    "type": "object",
                    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}},
                    "required": ["next"],
                }
            },
        },
        ['{"next":null}', '{"next": {"next": {"next": null}}}'],
        ["{}", '{"next":1}'],
    ),
]


def accepts(constraint: TokenConstraint, text: str, tokenizer: Tokenizer) -> bool:
    """Byte by byte, so that no split of the text matters."""
    single = {tokenizer.bytes_of(token): token for token in range(tokenizer.size)}
    for byte in text.encode():
        token = single[bytes([byte])]
        if constraint.done or not constraint.allowed()[token]:
            return False
        constraint.advance(token)
    return constraint.complete


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda case: json.dumps(case)[:50])
def test_what_each_keyword_allows(schema: Any, good: list[str], bad: list[str], tokenizer: Tokenizer) -> None:
    constraint = json_schema(schema, tokenizer, [END])
    for text in good:
        check(schema, text)
        assert accepts(constraint.fresh(), text, tokenizer), text
    for text in bad:
        assert not accepts(constraint.fresh(), text, tokenizer), text


def node(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"], **more}


REFUSED: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"properties": {"a": {"not": {"type": "null"}}}}, "#/properties/a has not"),
    ({"if": {}, "then": {}}, "has if"),
    ({"propertes": {}}, "nearest: properties"),
    ({"type": "strin"}, "nearest: string"),
    ({"format": "idn-email"}, "idn-email"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "string", "pattern": "(a)\\1"}, "cannot be enforced"),
    ({"type": "string", "pattern": "("}, "cannot be enforced"),
    ({"type": "string", "pattern": "^(a|b)*a(a|b){30}$"}, "states"),
    ({"type": "string", "pattern": "(a?){40}" * 9 + "$"}, ""),
    ({"type": "number", "multipleOf": 0.01}, "binary fractions"),
    ({"type": "number", "multipleOf": 0}, "multipleOf"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "branches 0 and 1"),
    ({"$ref": "#"}, "without an end"),
    ({"anyOf": [{"$ref": "#"}]}, "without an end"),
    ({"$ref": "#/$defs/absent"}, "not there"),
    ({"$ref": "https://example.org/schema"}, "within the document"),
    ({"type": "object", "minProperties": 3}, "minProperties"),
    ({"minLength": -1}, "no count"),
    ({"allOf": [{"anyOf": [{"minimum": n} for n in range(9)]}] * 3}, "combinations"),
    ({"properties": []}, "no object"),
    ("text", "JSON object"),
    (3, "JSON object"),
    # nothing satisfies these
    (False, "allows nothing"),
    (node(), "without an end"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no JSON satisfies"),
    ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4}, "no JSON satisfies"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "#/allOf/0"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 exceeds"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems 3 exceeds"),
    ({"enum": [1, 2], "type": "string"}, "none of the values"),
    ({"type": "string", "pattern": "^a$", "minLength": 2}, "there is no text"),
    ({"properties": {"a": False}, "required": ["a"], "type": "object"}, "#/properties/a"),
    ({"type": "object", "required": ["a", "b"], "maxProperties": 1}, "maxProperties is 1"),
]


@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=lambda case: json.dumps(case)[:60])
def test_what_cannot_be_enforced_is_refused_by_name(schema: Any, said: str, tokenizer: Tokenizer) -> None:
    if not said:
        json_schema(schema, tokenizer, [END])
        return
    with pytest.raises(UserError) as refused:
        json_schema(schema, tokenizer, [END])
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.field == "schema"


def test_large_and_deep_schemas(tokenizer: Tokenizer) -> None:
    deep: Any = {"type": "null"}
    for _ in range(60):
        deep = {"type": "array", "items": deep, "minItems": 1}
    assert json.loads(written(json_schema(deep, tokenizer, [END]), tokenizer, 1))
    for _ in range(900):
        deep = {"type": "array", "items": deep, "minItems": 1}
    with pytest.raises(UserError):
        json_schema(deep, tokenizer, [END])
    wide = {f"property_{n}": {"type": "integer"} for n in range(500)}
    constraint = json_schema({"type": "object", "properties": wide}, tokenizer, [END])
    assert isinstance(json.loads(written(constraint, tokenizer, 2, 40)), dict)
    with pytest.raises(UserError, match="characters"):
        json_schema({"enum": ["x" * (1 << 20)]}, tokenizer, [END])
    far = json_schema({"type": "string", "minLength": 10, "maxLength": 1_000_000}, tokenizer, [END])
    assert len(json.loads(written(far, tokenizer, 3, 60))) >= 10


def test_an_answer_that_cannot_fit_is_refused(tokenizer: Tokenizer) -> None:
    constraint = json_schema({"type": "string", "minLength": 50}, tokenizer, [END])
    with pytest.raises(UserError, match="52") as refused:
        constraint.require_room(20)
    assert (refused.value.given, refused.value.nearest) == (20, 52)


def test_the_engine_refuses_it_too(folder: Path) -> None:
    with Engine.open(folder, context_length=40) as engine:
        tokenizer = engine.model.tokenizer()
        for schema, most in (
            ({"type": "string", "minLength": 9}, 8),
            ({"type": "string", "minLength": 60}, 99),
        ):
            with pytest.raises(UserError, match="room for"):
                generate(
                    engine,
                    "the one",
                    Limits(max_tokens=most),
                    None,
                    tokenizer,
                    json_schema(schema, tokenizer, [END]),
                )


def test_json_mode_expressions_and_choices(tokenizer: Tokenizer) -> None:
    for seed in range(5):
        assert isinstance(json.loads(written(json_object(tokenizer, [END]), tokenizer, seed)), dict)
        import re

        pattern = r"\d{4}-(jan|feb) é?"
        assert re.fullmatch(pattern, written(regular_expression(pattern, tokenizer, [END]), tokenizer, seed))
        assert written(one_of(["yes", "no", "not yet"], tokenizer, [END]), tokenizer, seed) in (
            "yes",
            "no",
            "not yet",
        )
    with pytest.raises(UserError):
        regular_expression("a(", tokenizer, [END])
    with pytest.raises(UserError):
        one_of([], tokenizer, [END])


def test_without_an_end_token_a_line_break_ends(tokenizer: Tokenizer) -> None:
    constraint = json_schema({"type": "integer"}, tokenizer, [])
    text = written(constraint, tokenizer, 4)
    assert constraint.done and text.endswith("\n") and isinstance(json.loads(text), int)


def test_what_is_kept_stays_within_bounds(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts under way survive that the automaton forgets."""
    from haversack.run import _automaton

    monkeypatch.setattr(_automaton, "MOST_CONFIGURATIONS", 60)
    one = json_schema(
        {"type": "object", "properties": {"forget": {}}, "required": ["forget"]}, tokenizer, [END]
    )
    two = one.fresh()
    for token in tokenizer.encode('{"forget": [1, {"x": "'):
        one.advance(token)
    before = one.allowed(50).copy()
    for seed in range(6):
        json.loads(written(two.fresh(), tokenizer, seed))
    assert np.array_equal(one.allowed(50), before)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(temperature=1.0, seed=3), Sampler(temperature=2, top_k=5)]
)
@pytest.mark.parametrize("room", [16, 60])
def test_answers_of_an_engine_are_valid(folder: Path, sampler: Sampler, room: int) -> None:
    with Engine.open(folder) as engine:
        tokenizer = engine.model.tokenizer()
        constraint = json_schema(SCHEMA, tokenizer, engine.model.end_of_text)
        constraint.require_room(room + 20)
        answer = generate(engine, "the one", Limits(max_tokens=room + 20), sampler, tokenizer, constraint)
        text = "".join(token.text for token in answer)
        assert text == answer.text and answer.stop == "end-of-text"
        check(SCHEMA, answer.text)


@pytest.mark.parametrize("sampling", ["tokens", "rejection"])
def test_drafts_keep_to_the_constraint(folder: Path, draft: Path, sampling: str) -> None:
    """Greedy drafting gives the plain tokens under a constraint too; sampled drafting gives valid text."""
    found = {}
    drafting = (
        f"linear-draft:draft={draft},length=3,sampling={sampling}",
        f"tree:draft={draft},alpha=1e-5,branch_threshold=1e-3,sampling={sampling}",
    )
    for decode in ("one-by-one", *drafting):
        with Engine.open(folder, decode=decode) as engine:
            tokenizer = engine.model.tokenizer()
            for sampler in (Sampler(), Sampler(temperature=1.0, seed=5)):
                constraint = json_schema(SCHEMA, tokenizer, [END])
                answer = generate(engine, "the one", Limits(max_tokens=70), sampler, tokenizer, constraint)
                for _ in answer:
                    pass
                check(SCHEMA, answer.text)
                found[decode, sampler.greedy] = answer.tokens
    assert len({tuple(tokens) for (_, greedy), tokens in found.items() if greedy}) == 1
    if sampling == "tokens":
        assert len({tuple(tokens) for (_, greedy), tokens in found.items() if not greedy}) == 1


def test_trees_are_drafted_under_the_constraint(folder: Path) -> None:
    """A draft that has the model's own weights is always right, though it would write anything but JSON."""
    decode = f"tree:draft={folder},alpha=1e-12,adaptive=none,pause=never,children=1,nodes=6"
    with Engine.open(folder, decode=decode) as engine:
        tokenizer = engine.model.tokenizer()
        for sampler in (Sampler(), Sampler(temperature=1.0, seed=5)):
            constraint = json_schema(SCHEMA, tokenizer, [END])
            answer = generate(engine, "the one", Limits(max_tokens=70), sampler, tokenizer, constraint)
            for _ in answer:
                pass
            check(SCHEMA, answer.text)
            counts = answer.drafting
            assert counts is not None and len(answer.tokens) > 12
            assert counts.passes <= -(-len(answer.tokens) // 6) + 1


def test_without_an_end_token_and_without_a_line_break_it_is_refused() -> None:
    class Lettered:
        size = 3

        def bytes_of(self, token: int) -> bytes:
            return (b"1", b"2", b"12")[token]

    assert json_schema({"type": "integer"}, Lettered(), [0]).least == 1
    with pytest.raises(UserError, match="no token of this model ends a text"):
        json_schema({"type": "integer"}, Lettered(), [])


def test_the_end_of_the_context_counts(folder: Path) -> None:
    with Engine.open(folder, context_length=70) as engine:
        tokenizer = engine.model.tokenizer()
        constraint = json_schema({"type": "array", "items": {"type": "string"}}, tokenizer, [END])
        sampler = Sampler(temperature=1.5, seed=1)
        answer = generate(engine, "the one", Limits(max_tokens=500), sampler, tokenizer, constraint)
        for _ in answer:
            pass
        assert isinstance(json.loads(answer.text), list)


def test_stop_texts_and_word_pieces_are_refused(folder: Path) -> None:
    with Engine.open(folder) as engine:
        tokenizer = engine.model.tokenizer()
        with pytest.raises(UserError, match="stop"):
            generate(engine, "a", Limits(stop=("x",)), None, tokenizer, json_object(tokenizer, [END]))
    pieces = {
        "version": "1.0",
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "vocab": {"[UNK]": 0, "a": 1},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9,
        },
    }
    with pytest.raises(UserError, match="bytes of their own"):
        json_object(Tokenizer.of_bytes(json.dumps(pieces).encode()), [END])
