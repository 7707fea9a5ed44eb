"""JSON schemas drawn from a seed, over everything that constrained decoding enforces."""

from __future__ import annotations

import random
from typing import Any

WORDS = (
    *("name", "age", "id", "tags", "items", "value", "kind", "size"),
    *("note", "path", "count", 'unit"s', "naïve", "a/b", "key~", "é"),
)
PATTERNS = (
    "^[a-z]{2,8}$",
    "^[A-Z][a-z]+( [A-Z][a-z]+)?$",
    r"^\d{3}-\d{4}$",
    "foo|bar",
    r"^\w+\.(py|txt)$",
    '^["\\\\ ]+$',
    "^[^\\s]{1,6}$",
    "(ab)+$",
    "^.{4}$",
)
FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri", "duration")
MULTIPLES = (2, 3, 5, 7, 10, 12, 64, 100, 365)


def drawn_schema(seed: int) -> dict[str, Any]:
    """A schema of number `seed`; some share definitions, some recurse."""
    rng = random.Random(seed)
    schema = _object(rng, 3) if rng.random() < 0.7 else _any(rng, 3)
    if rng.random() < 0.2:
        schema = {
            "type": "object",
            "properties": {"tree": {"$ref": "#/$defs/node"}, "rest": schema},
            "required": ["tree"],
            "additionalProperties": False,
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "label": _string(rng),
                        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                    },
                    "required": ["label"],
                    "additionalProperties": False,
                }
            },
        }
        # what was drawn moved: its own references are none, so nothing else changes
    return schema


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _integer, _number, _plain, _listed]
    if depth > 0:
        deep = [_object, _array, _either, _merged, _exclusive]
        maker = rng.choice(deep) if rng.random() < 0.45 else None
        if maker is not None:
            return maker(rng, depth - 1)
    return rng.choice(makers)(rng)


def _string(rng: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    way = rng.random()
    if way < 0.3:
        schema["pattern"] = rng.choice(PATTERNS)
    elif way < 0.5:
        schema["format"] = rng.choice(FORMATS)
    elif way < 0.8:
        schema["minLength"] = rng.randrange(0, 6)
        schema["maxLength"] = schema["minLength"] + rng.randrange(0, 30)
    return schema


def _integer(rng: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    low = rng.choice((-1000, -17, 0, 1, 12, 999))
    if rng.random() < 0.6:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.6:
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = low + rng.choice((2, 9, 40, 12345))
    if rng.random() < 0.25 and len(schema) != 2:
        schema = {"type": "integer", "multipleOf": rng.choice(MULTIPLES)}
        if rng.random() < 0.5:
            schema |= {"minimum": -1000, "maximum": 1000}
    return schema


def _number(rng: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    low = rng.choice((-2.5, -0.125, 0, 0.1, 3.14159, 100, 1e6))
    if rng.random() < 0.6:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.6:
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = low + rng.choice((0.01, 0.3, 2, 1000.5))
    if rng.random() < 0.1:
        schema = {"type": "number", "multipleOf": rng.choice((0.5, 0.25, 3, 10))}
    return schema


def _plain(rng: random.Random) -> dict[str, Any]:
    ways: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["string", "null"]},
        {"type": ["integer", "boolean"]},
        {},
    ]
    return rng.choice(ways)


def _listed(rng: random.Random) -> dict[str, Any]:
    values: list[Any] = ["red", "green", 'a "quoted" one', "é", 1, 2.5, -3, None, True, [1, "x"], {"k": [1]}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randrange(1, 6))}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if rng.random() < 0.3:
        schema["prefixItems"] = [_any(rng, depth) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.8:
        schema["items"] = _any(rng, depth)
    if rng.random() < 0.6:
        schema["minItems"] = rng.randrange(0, 4)
    if rng.random() < 0.6:
        schema["maxItems"] = schema.get("minItems", 0) + rng.randrange(0, 4)
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randrange(1, 6))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    way = rng.random()
    if way < 0.5:
        schema["additionalProperties"] = False
    elif way < 0.65:
        schema["additionalProperties"] = _any(rng, 0)
    elif way < 0.75:
        schema = {
            "type": "object",
            "patternProperties": {"^x_[a-z]+$": _any(rng, 0), "[0-9]$": {"type": "integer"}},
        }
        schema["additionalProperties"] = rng.random() < 0.5
    elif way < 0.85:
        schema["maxProperties"] = max(len(schema["required"]), 1)
        schema["minProperties"] = 1
    elif way < 0.9:
        schema = {"type": "object", "propertyNames": {"pattern": "^[a-z]+$", "maxLength": 8}}
    return schema


def _either(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randrange(2, 4))]}


def _merged(rng: random.Random, depth: int) -> dict[str, Any]:
    one, two = rng.sample(WORDS, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {one: _any(rng, depth)}, "required": [one]},
            {"properties": {two: _any(rng, depth)}, "required": [two]},
            {"minProperties": 2},
        ]
    }


def _exclusive(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "body": _any(rng, depth)},
                "required": ["kind", "body"],
                "additionalProperties": False,
            }
            for kind in ("first", "second", "third")
        ]
    }
