"""Tools in a chat: what the template is told, how an answer is made a call; JSON schemas kept compiled."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from haversack.core.errors import UserError
from haversack.models._chat import ChatTemplate
from haversack.models._tool_calls import LIST, OPEN, ToolCallParser
from haversack.run._constraint import TokenConstraint, json_schema
from haversack.share._errors import ApiError
from haversack.share._requests import ChatRequest, Function, NamedChoice

MOST_SCHEMAS = 64
LARGEST_SCHEMA = 256 * 1024
"""Bytes of a schema as JSON."""


def plain(record: Any, *without: str) -> dict[str, Any]:
    """A record as a dict, without fields that are null and those named."""
    made: dict[str, Any] = msgspec.to_builtins(record)
    return {name: value for name, value in made.items() if value is not None and name not in without}


class Calls:
    """The tools of a request. `tools`: what the template shows. An answer that must call one goes on after
    `opening` and satisfies `schema`; one that may call has neither."""

    def __init__(
        self, functions: Sequence[Function], template: ChatTemplate, forced: Sequence[Function]
    ) -> None:
        self.tools = [{"type": "function", "function": plain(function, "strict")} for function in functions]
        self._syntaxes = template.syntaxes
        self.opening = ""
        self.schema: dict[str, Any] | None = None
        self._forced = bool(forced)
        if forced:
            self._force(forced)

    @classmethod
    def of(cls, request: ChatRequest, template: ChatTemplate) -> Calls | None:
        """The tools that `request` lets the model call. Raises ApiError for a choice that is none of them."""
        functions = [tool.function for tool in request.tools or []]
        choice = request.tool_choice
        if not functions:
            if choice not in (None, "none", "auto"):
                raise ApiError(400, "tool_choice needs tools.", param="tool_choice", code="invalid_value")
            return None
        if choice == "none":
            return None
        forced: list[Function] = functions if choice == "required" else []
        if isinstance(choice, NamedChoice):
            forced = [function for function in functions if function.name == choice.function.name]
            if not forced:
                raise ApiError(
                    400,
                    f"tool_choice names {choice.function.name[:64]!r}, which is none of the tools.",
                    param="tool_choice",
                    code="invalid_value",
                )
        return cls(functions, template, forced)

    def _force(self, functions: Sequence[Function]) -> None:
        arguments = "parameters" if self._syntaxes[:1] == ("object",) else "arguments"
        choices = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function.name},
                    arguments: function.parameters or {"type": "object"},
                },
                "required": ["name", arguments],
                "additionalProperties": False,
            }
            for function in functions
        ]
        self.schema = _merged_definitions(choices)
        if "tagged" in self._syntaxes:
            self.opening = f"{OPEN}\n"
        elif "list" in self._syntaxes:  # one object is read as well as a list of one
            self.opening = f"{LIST} "

    def parser(self) -> Any:
        """What tells the calls of one answer from its text."""
        return ForcedCall() if self._forced else ToolCallParser(self._syntaxes or ("tagged",))


def _merged_definitions(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One of `choices`. What a function's parameters refer to from their root moves to the root."""
    definitions: dict[str, Any] = {}
    for number, choice in enumerate(choices):
        for name, schema in choice["properties"].items():
            if isinstance(schema, dict):
                root = f"#/$defs/tool{number}"
                if "#" in json.dumps(schema):
                    definitions[f"tool{number}"] = _moved(schema, root)
                    choice["properties"][name] = {"$ref": root}
    made = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {**made, "$defs": definitions} if definitions else made


def _moved(schema: Any, root: str) -> Any:
    """`schema` with its references from its root, for a place inside another."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for name, value in schema.items():
        if name == "$ref" and isinstance(value, str) and value.startswith("#"):
            made[name] = root + value[1:]
        else:
            made[name] = _moved(value, root)
    return made


class ForcedCall:
    """Reads an answer that is one call, by its constraint."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._text = ""

    def add(self, text: str) -> str:
        self._text += text
        return ""

    def finish(self) -> str:
        """Text, when the answer is no call after all: it was cut short."""
        try:
            made = json.loads(self._text)
        except ValueError:
            return self._text
        self.calls.append({"name": made["name"], "arguments": made.get("arguments", made.get("parameters"))})
        return ""


class Schemas:
    """Constraints by JSON schema, compiled once.

    Compiling goes on beside the batch; an automaton is only walked on the batch's thread, so `constraint`
    gives a function that makes one there. The oldest is forgotten first: before the vocabulary's own store
    could give it out again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[TokenConstraint, int]] = {}

    def constraint(self, schema: Any, ends: Sequence[int], room: int) -> Callable[[], TokenConstraint]:
        """What makes a constraint by `schema` for an answer of at most `room` tokens. Raises ApiError for a
        schema that is none, cannot be enforced, or does not fit."""
        key = json.dumps(schema)
        if len(key) > LARGEST_SCHEMA:
            raise ApiError(
                400,
                f"the schema is longer than {LARGEST_SCHEMA >> 10} KiB.",
                param="response_format",
                code="invalid_value",
            )
        with self._lock:
            if key not in self._kept:
                try:
                    made = json_schema(schema, self._tokenizer, ends)
                    least = int(made.least)
                except UserError as error:
                    raise ApiError(400, str(error), param="response_format", code="invalid_schema") from error
                while len(self._kept) >= MOST_SCHEMAS:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[key] = made, least
            made, least = self._kept[key]
        if least > room:
            raise ApiError(
                400,
                f"the shortest JSON by this schema takes {least} tokens and there is room for {room}.",
                param="max_tokens",
                code="invalid_value",
            )
        return made.fresh
