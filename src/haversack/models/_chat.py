"""Chat: messages to the text that a model was trained on, by the template that comes with the model.

    template = ChatTemplate.of("my.pack")
    text = template.render([{"role": "user", "content": "Hello"}])

Templates are Jinja programs written by strangers; _template_sandbox.py runs them with bounds. Messages have
the shape of OpenAI's: `role` and `content`, for tools `tool_calls` and `tool_call_id`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from haversack.core.errors import DamagedFileError, UserError, not_allowed
from haversack.models._tool_calls import MARKS, SYNTAXES, ToolCallParser, syntaxes_of

ROLES = ("system", "user", "assistant", "tool")
FIELDS = (
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning_content",
    "refusal",
    "annotations",
)
MOST_MESSAGES = 4096
LARGEST_CONTENT = 1 << 22
"""Characters of all messages together."""
LARGEST_FILE = 16 << 20
SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT, TOOL_USE = "default", "tool_use"

Message = Mapping[str, Any]


class ChatTemplate:
    """A model's template or templates, compiled when first used.

    `templates`: name -> source, `default` among them; `specials`: the texts of the special tokens that
    templates speak of (`bos_token`); `path`: what errors name."""

    def __init__(
        self, templates: Mapping[str, str], specials: Mapping[str, str], path: object = "chat template"
    ) -> None:
        self.templates = dict(templates)
        self.specials = dict(specials)
        self.path = path
        self._compiled: dict[str, Any] = {}
        self._sandbox: Any = None

    @classmethod
    def of(cls, source: Any) -> Self | None:
        """The template of a pack, a model, a checkpoint folder or its path; None when it has none.

        Looks at chat_template.jinja, then tokenizer_config.json (one template or a list of named ones), then
        chat_template.json; a source with the attribute `chat_template` (a GGUF file) brings its own. Raises
        DamagedFileError for files that are no JSON or hold something else.
        """
        source = getattr(source, "source", source)  # a run's Model holds its pack or folder
        own = getattr(source, "chat_template", None)
        if isinstance(own, str) and own:
            return cls({DEFAULT: own}, _own_specials(source), getattr(source, "path", "chat template"))
        files = _Files(source)
        config = files.json("tokenizer_config.json")
        specials = _specials(files.json("special_tokens_map.json")) | _specials(config)
        written = files.text("chat_template.jinja")
        if written is not None:
            return cls({DEFAULT: written}, specials, files.path("chat_template.jinja"))
        for name, found in (
            ("tokenizer_config.json", config),
            ("chat_template.json", files.json("chat_template.json")),
        ):
            if found.get("chat_template"):
                path = files.path(name)
                return cls(_templates(found["chat_template"], path), specials, path)
        return None

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], source: Any = None) -> Self:
        """The template in the file `path`, with the special tokens of the model `source`. Raises UserError
        when it cannot be read."""
        file = Path(path)
        try:
            if file.stat().st_size > LARGEST_FILE:
                raise DamagedFileError(file, "it is too large for a chat template", field="chat_template")
            text = file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(
                f"the chat template {file} cannot be read: {why}.", field="chat_template", given=str(file)
            ) from error
        inner = getattr(source, "source", source)
        specials = _own_specials(inner)
        if inner is not None and not specials:
            files = _Files(inner)
            specials = _specials(files.json("special_tokens_map.json"))
            specials |= _specials(files.json("tokenizer_config.json"))
        return cls({DEFAULT: text}, specials, file)

    def source(self, tools: bool = False) -> str:
        """The template's text; with `tools`, the one named `tool_use` where there is one."""
        return self.templates[self._name(tools)]

    @property
    def syntaxes(self) -> tuple[str, ...]:
        """The syntaxes in which the model writes calls of tools (_tool_calls.py)."""
        return syntaxes_of(self.source(tools=True))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The text of a conversation, which ends where the model's answer begins.

        `tools` are OpenAI's: {"type": "function", "function": {"name", "description", "parameters"}}. `extra`
        reaches the template by name (`enable_thinking=False`). Encode the text with `special=False`: the
        template has put the special tokens in already. Raises UserError for messages that are none, for a
        template that refuses them, cannot be read, or takes too much.
        """
        values = {
            **self.specials,
            "messages": checked_messages(messages),
            "tools": checked_tools(tools) or None,
            "documents": None,
            "add_generation_prompt": bool(add_generation_prompt),
            **extra,
        }
        return self._rendered(self._name(bool(tools)), values)

    def end_tokens(self, tokenizer: Any) -> tuple[int, ...]:
        """The special tokens with which the template ends what the assistant says, by number.

        Found by rendering a short conversation; empty when the template ends it by plain text.
        """
        said = "Here it is"
        ask = {"role": "user", "content": "Well"}
        try:
            text = self.render([ask, {"role": "assistant", "content": said}], add_generation_prompt=False)
        except UserError:
            return ()
        _, found, after = text.rpartition(said)
        if not found:
            return ()
        ends: list[int] = []
        for token in tokenizer.encode(after, special=False):
            if not tokenizer.is_special(token):
                if ends or tokenizer.decode([token]).strip():
                    break
                continue
            ends.append(token)
            break
        return tuple(ends)

    def shown_tokens(self, tokenizer: Any) -> tuple[int, ...]:
        """Special tokens that begin or end calls of tools, whose text a reader of calls needs to see."""
        found = (tokenizer.token(mark) for mark in MARKS)
        return tuple(token for token in found if token is not None and tokenizer.is_special(token))

    def _name(self, tools: bool) -> str:
        if tools and TOOL_USE in self.templates:
            return TOOL_USE
        if DEFAULT in self.templates:
            return DEFAULT
        return next(iter(self.templates))

    def _rendered(self, name: str, values: dict[str, Any]) -> str:
        from jinja2 import TemplateError

        from haversack.models._template_sandbox import RaisedError, TemplateLimitError

        try:
            template = self._template(name)
            made: str = self._sandbox.render(template, values)
            return made
        except RaisedError as error:
            raise UserError(
                f"the model's chat template refuses these messages: {_sentence(error)}.",
                field="messages",
                given=str(error),
            ) from error
        except TemplateLimitError as error:
            raise self._broken(f"{error}, which is not allowed") from error
        except RecursionError as error:
            raise self._broken("it nests too deeply") from error
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._broken(_sentence(error)) from error

    def _template(self, name: str) -> Any:
        from haversack.models._template_sandbox import LARGEST_TEMPLATE, Sandbox

        if self._sandbox is None:
            self._sandbox = Sandbox()
        if name not in self._compiled:
            text = self.templates[name]
            if len(text) > LARGEST_TEMPLATE:
                raise self._broken(f"it has {len(text)} characters (allowed {LARGEST_TEMPLATE})")
            self._compiled[name] = self._sandbox.from_string(text)
        return self._compiled[name]

    def _broken(self, why: str) -> UserError:
        return UserError(
            f"the chat template {self.path} cannot be used: {why}; give another with --chat-template FILE.",
            field="chat_template",
            given=str(self.path),
        )


def require_template(source: Any, name: object) -> ChatTemplate:
    """The template of `source`. Raises UserError, with what to do, when the model has none."""
    found = ChatTemplate.of(source)
    if found is None:
        raise UserError(
            f"{name} has no chat template, so it was not trained to chat; give one with --chat-template FILE,"
            " or complete a text with --prompt.",
            field="chat_template",
            given=str(name),
        )
    return found


def parse_tool_calls(text: str, template: ChatTemplate | None = None) -> tuple[str, list[dict[str, Any]]]:
    """(content, calls) of a whole answer: what it says beside calls of tools, and the calls, each {"name",
    "arguments"}. `template` says which syntaxes to look for (None: all)."""
    parser = ToolCallParser(template.syntaxes if template is not None else SYNTAXES)
    content = parser.add(text)
    content += parser.finish()
    return (content.strip() if parser.calls else content), parser.calls


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """`messages` as templates expect them: contents as one text, arguments of calls as objects, the role
    `developer` as `system`. Raises UserError that names the message and field that is wrong."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise UserError("messages must be a list of at least one message.", field="messages")
    if len(messages) > MOST_MESSAGES:
        raise UserError(
            f"there are {len(messages)} messages (allowed {MOST_MESSAGES}).",
            field="messages",
            given=len(messages),
            nearest=MOST_MESSAGES,
        )
    checked = [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]
    length = sum(len(message.get("content") or "") for message in checked)
    if length > LARGEST_CONTENT:
        raise UserError(
            f"the messages have {length} characters together (allowed {LARGEST_CONTENT}).",
            field="messages",
            given=length,
            nearest=LARGEST_CONTENT,
        )
    return checked


def checked_tools(tools: Any) -> list[dict[str, Any]]:
    """`tools` as a list of function descriptions. Raises UserError that names the one that is wrong."""
    if tools is None:
        return []
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes) or len(tools) > 1024:
        raise UserError("tools must be a list of at most 1024 tools.", field="tools")
    found = []
    for index, tool in enumerate(tools):
        inner = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise UserError(
                f'tools[{index}] is no {{"type": "function", "function": {{"name": ...}}}}.',
                field=f"tools[{index}]",
                given=repr(tool)[:80],
            )
        found.append(_plain(tool, f"tools[{index}]"))
    return found


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f"{where} is no object with role and content.", field=where, given=repr(message)[:80])
    role = message.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise not_allowed(f"{where}.role", role, ROLES)
    for name, value in message.items():
        if name not in FIELDS and value is not None:
            raise not_allowed(f"field of {where}", name, FIELDS)
    calls = _checked_calls(message.get("tool_calls"), f"{where}.tool_calls", role)
    content = _text(message.get("content"), f"{where}.content", empty=bool(calls))
    made = {"role": role, "content": content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.get(name) is not None:
            if not isinstance(message[name], str):
                raise UserError(f"{where}.{name} is no text.", field=f"{where}.{name}")
            made[name] = message[name]
    if calls:
        made["tool_calls"] = calls
    return made


def _text(content: Any, where: str, *, empty: bool) -> str:
    """One text of a content: a text, a list of text parts, or null beside calls of tools."""
    if isinstance(content, str):
        return content
    if content is None:
        if empty:
            return ""
        raise UserError(f"{where} is missing; give a text.", field=where)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise UserError(
            f"{where} is neither a text nor a list of parts.", field=where, given=repr(content)[:80]
        )
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise UserError(
                f"{where}[{index}] is of the type {str(kind)[:40]!r}; this model reads parts of the type "
                "'text'.",
                field=f"{where}[{index}]",
                given=str(kind)[:40],
                nearest="text",
            )
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where}[{index}].text is no text.", field=f"{where}[{index}].text")
        texts.append(part["text"])
    return "".join(texts)


def _checked_calls(calls: Any, where: str, role: str) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes) or role != "assistant":
        raise UserError(f"{where} must be a list, in a message of the assistant.", field=where)
    found = []
    for index, call in enumerate(calls):
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        arguments = inner.get("arguments", {}) if isinstance(inner, Mapping) else None
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise UserError(
                f'{where}[{index}] is no {{"function": {{"name": ..., "arguments": {{...}}}}}}.',
                field=f"{where}[{index}]",
                given=repr(call)[:80],
            )
        made: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if isinstance(call.get("id"), str):
            made["id"] = call["id"]
        found.append(made)
    return found


def _plain(value: Any, where: str) -> Any:
    """A copy of JSON data in plain lists and dicts, which is all that a template may see."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON.", field=where) from error


class _Files:
    """The small files beside a model's weights: of a pack (checked) or of a folder."""

    def __init__(self, source: Any) -> None:
        if isinstance(source, str | os.PathLike):
            from haversack.core.pack import Pack, is_pack

            source = Pack.open(source) if is_pack(Path(source)) else Path(source)
        self._pack = source if hasattr(source, "read_file") and hasattr(source, "record") else None
        self._folder = source if isinstance(source, Path) else Path(source.path)

    def path(self, name: str) -> Path:
        return self._folder / name

    def text(self, name: str) -> str | None:
        """The text of a file, None when there is none."""
        path = self.path(name)
        if self._pack is not None:
            if name not in self._pack.record.files:
                return None
            data = bytes(self._pack.read_file(name))
        elif path.is_file():
            if path.stat().st_size > LARGEST_FILE:
                raise DamagedFileError(path, f"it is larger than {LARGEST_FILE >> 20} MiB")
            data = path.read_bytes()
        else:
            return None
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedFileError(path, "it is not UTF-8 text") from error

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file, empty when there is none."""
        text = self.text(name)
        if text is None:
            return {}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(self.path(name), "it is not JSON") from error
        if not isinstance(found, dict):
            raise DamagedFileError(self.path(name), "it is no JSON object")
        return found


def _templates(found: Any, path: Path) -> dict[str, str]:
    """One template, or a list of {"name", "template"}."""
    if isinstance(found, str):
        return {DEFAULT: found}
    named: dict[str, str] = {}
    for entry in found if isinstance(found, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            named[str(entry.get("name"))] = entry["template"]
    if not named:
        raise DamagedFileError(path, "its chat_template is neither a text nor a list of named ones")
    return named


def _specials(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of special tokens; older files hold each as an object with `content`."""
    found = {}
    for name in SPECIALS:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _own_specials(source: Any) -> dict[str, str]:
    """Texts of the special tokens that a GGUF file's metadata names by number."""
    metadata = getattr(getattr(source, "file_format", None), "metadata", None) or {}
    tokens = metadata.get("tokenizer.ggml.tokens")
    found = {}
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in keys.items():
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and tokens is not None and 0 <= int(number) < len(tokens):
            found[name] = str(tokens[int(number)])
    return found


def _sentence(error: BaseException) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    return said[:200] or type(error).__name__


def merged_ends(*groups: Iterable[int]) -> tuple[int, ...]:
    """Several groups of end tokens as one, without repeats."""
    return tuple(dict.fromkeys(token for group in groups for token in group))
