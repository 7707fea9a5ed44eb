"""Calls of tools inside an answer, in the syntaxes that models are trained on, found while the text streams.

`tagged` (Qwen, Hermes, SmolLM): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of
them. `list` (Mistral): `[TOOL_CALLS] [{...}, ...]`, or `[TOOL_CALLS]NAME{...}` for each call. `object` (Llama
3): the whole answer is one object with `name` and `parameters`, possibly after `<|python_tag|>`, several
separated by `;`. Text that looked like a call and is none is given back as text: nothing a model wrote is
lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
LIST = "[TOOL_CALLS]"
PYTHON = "<|python_tag|>"
SYNTAXES = ("tagged", "list", "object")
MARKS = (OPEN, CLOSE, LIST, PYTHON)
"""Tokens that begin or end calls; a tokenizer may count them as special, which shows no text by itself."""


def syntaxes_of(source: str) -> tuple[str, ...]:
    """The syntaxes that a template's source speaks of."""
    found = []
    if OPEN in source:
        found.append("tagged")
    if LIST in source:
        found.append("list")
    if PYTHON in source or ('"parameters"' in source and "ipython" in source):
        found.append("object")
    return tuple(found)


def called(value: Any) -> dict[str, Any] | None:
    """The call that a JSON value describes, or None: {"name": text, "arguments": object}."""
    if not isinstance(value, Mapping):
        return None
    value = value.get("function") if isinstance(value.get("function"), Mapping) else value
    assert isinstance(value, Mapping)
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {"name": name, "arguments": arguments}


class ToolCallParser:
    """Fed an answer piece by piece: `add` gives the text that is certain to be no call, `calls` fills up."""

    def __init__(self, syntaxes: tuple[str, ...] = SYNTAXES) -> None:
        self.calls: list[dict[str, Any]] = []
        self._syntaxes = syntaxes
        self._held = ""
        self._inside = ""  # the mark that opened what is held
        self._begun = False  # text other than white space was given out

    def add(self, text: str) -> str:
        """The part of the answer so far that is certain to be text."""
        if not self._syntaxes:
            return text
        self._held += text
        given = ""
        while True:
            more, again = self._tagged() if self._inside == OPEN else self._outside()
            given += more
            if not again:
                break
        if given.strip():
            self._begun = True
        return given

    def finish(self) -> str:
        """What was held back: calls that end with the answer are read, the rest is text."""
        held, self._held = self._held, ""
        inside, self._inside = self._inside, ""
        if not held and not inside:
            return ""
        if inside == OPEN:
            return self._read(held.replace(CLOSE, ""), OPEN + held)
        if inside == LIST:
            return self._list(held)
        if inside in (PYTHON, "{"):
            return self._objects(held, PYTHON + held if inside == PYTHON else held)
        return held

    def _outside(self) -> tuple[str, bool]:
        """Text up to the next mark, and whether to go on."""
        if self._inside:
            return "", False  # a list or an object: it ends with the answer
        marks = [
            mark
            for syntax, mark in (("tagged", OPEN), ("list", LIST), ("object", PYTHON))
            if syntax in self._syntaxes
        ]
        found = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if not self._begun and "object" in self._syntaxes and self._held.lstrip().startswith("{"):
            self._inside = "{"
            return "", False
        if found:
            at, mark = min(found)
            given, self._held, self._inside = self._held[:at], self._held[at + len(mark) :], mark
            return given, mark == OPEN
        keep = max(
            (n for mark in marks for n in range(1, len(mark)) if self._held.endswith(mark[:n])), default=0
        )
        if not self._begun and not self._held.strip():
            keep = len(self._held)  # white space before a call is not worth showing
        cut = len(self._held) - keep
        given, self._held = self._held[:cut], self._held[cut:]
        return given, False

    def _tagged(self) -> tuple[str, bool]:
        """A call between its tags, once both are there."""
        at = self._held.find(CLOSE)
        if at < 0:
            return "", False
        body, self._held, self._inside = self._held[:at], self._held[at + len(CLOSE) :], ""
        text = self._read(body, OPEN + body + CLOSE)
        if not text:
            self._held = self._held.removeprefix("\n")
        return text, True

    def _read(self, body: str, whole: str) -> str:
        """Note the call or calls of `body`; what is none comes back as the text `whole`."""
        value = _json(body)
        values = value if isinstance(value, list) else [value]
        calls = [called(each) for each in values]
        if not calls or any(call is None for call in calls):
            return whole
        self.calls += [call for call in calls if call is not None]
        return ""

    def _list(self, body: str) -> str:
        """Mistral's list, or its newer NAME{...} parts."""
        if not self._read(body, "x"):
            return ""
        calls = []
        for part in body.split(LIST):
            name, brace, rest = part.strip().partition("{")
            name = name.removesuffix("[ARGS]").strip()
            call = called({"name": name, "arguments": _json(brace + rest)})
            if call is None:
                return LIST + body
            calls.append(call)
        self.calls += calls
        return ""

    def _objects(self, body: str, whole: str) -> str:
        """Llama's objects, one after the other."""
        decoder, rest, calls = json.JSONDecoder(), body.strip(), []
        while rest:
            try:
                value, end = decoder.raw_decode(rest)
            except (ValueError, RecursionError):
                return whole
            call = called(value)
            if call is None or ("parameters" not in value and "arguments" not in value):
                return whole
            calls.append(call)
            rest = rest[end:].lstrip(" \n;,")
        self.calls += calls
        return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
