"""What `haversack run` takes for a chat and for answers of a given form: templates, tools, schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError

if TYPE_CHECKING:
    from haversack.models._chat import ChatTemplate
    from haversack.models._tokenizer import Tokenizer
    from haversack.run._constraint import TokenConstraint
    from haversack.run._generate import Limits
    from haversack.run._source import Model

LARGEST = 16 << 20
CHAT_CONTEXT = 4096
"""Tokens of a chat where neither --context-length nor the model says less."""


@dataclass(frozen=True)
class Talk:
    """The options of a chat. `template` is None where a text is completed instead."""

    template: ChatTemplate | None
    system: str | None
    tools: list[dict[str, Any]] | None
    schema: Any

    @property
    def constrained(self) -> bool:
        """True when a schema restricts the answers."""
        return self.schema is not None

    def limits(self, limits: Limits, model: Model, tokenizer: Tokenizer) -> Limits:
        """`limits` that end at the end of a turn as well."""
        if self.template is None:
            return limits
        from haversack.run._conversation import chat_limits

        return chat_limits(limits, model, self.template, tokenizer)

    def prompt(self, text: str) -> str:
        """What the model reads for `text`: in a chat, the conversation that it begins."""
        if self.template is None:
            return text
        messages = [{"role": "system", "content": self.system}] if self.system else []
        return self.template.render([*messages, {"role": "user", "content": text}], tools=self.tools)

    def constraint(self, tokenizer: Tokenizer, ends: Sequence[int]) -> TokenConstraint | None:
        """The constraint of one answer, None without a schema."""
        if not self.constrained:
            return None
        from haversack.run._constraint import json_schema

        return json_schema(self.schema, tokenizer, ends)

    def calls(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """(content, calls) of an answer; no calls without tools."""
        if self.tools is None or self.template is None:
            return text, []
        from haversack.models._chat import parse_tool_calls

        return parse_tool_calls(text, self.template)


def talk_of(
    model: Model,
    name: str,
    *,
    chat: bool,
    interactive: bool,
    system: str | None,
    tools: Path | None,
    chat_template: Path | None,
    schema: Path | None,
) -> Talk:
    """The options read and checked.

    A chat is asked for by `chat`, `system`, `tools` or `chat_template`, or by a terminal where the model has
    a template. Raises UserError for files that are none, and for a chat with a model that has no template.
    """
    asked = chat or system is not None or tools is not None or chat_template is not None
    template = None
    if asked or interactive:
        from haversack.models._chat import ChatTemplate, require_template

        if chat_template is not None:
            template = ChatTemplate.of_file(chat_template, model)
        else:
            template = require_template(model, name) if asked else ChatTemplate.of(model)
    found = None
    if tools is not None:
        from haversack.models._chat import checked_tools

        found = checked_tools(read_json(tools, "tools"))
        assert template is not None
        if not template.syntaxes:
            raise UserError(
                f"the chat template of {name} speaks of no tools; give another with --chat-template FILE.",
                field="tools",
                given=str(tools),
            )
    return Talk(template, system, found, None if schema is None else read_json(schema, "schema"))


def read_json(path: Path, field: str) -> Any:
    """What a JSON file holds. Raises UserError when it cannot be read or is no JSON."""
    import json

    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB.", field=field, given=str(path))
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field=field, given=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON.", field=field, given=str(path)) from error
