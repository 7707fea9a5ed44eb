"""Chat templates render as transformers renders them; messages and calls of tools are read strictly."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import PackWriter
from haversack.models._bundled import model_folder
from haversack.models._chat import ChatTemplate, parse_tool_calls, require_template
from haversack.models._tokenizer import Tokenizer
from haversack.models._tool_calls import SYNTAXES, ToolCallParser


def _load() -> ModuleType:
    path = Path(__file__).with_name("_chat_templates.py")
    spec = importlib.util.spec_from_file_location("chat_templates", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEMPLATES = _load()
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' own rendering of a template."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(model_folder("code") / "tokenizer.json"), **SPECIALS
    )

    def render(source: Any, messages: Any, **options: Any) -> str | None:
        tokenizer.chat_template = source
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:  # a template's own refusal
            assert "Template" in type(error).__name__ or "Undefined" in type(error).__name__, error
            return None

    return render


@pytest.mark.parametrize("conversation", TEMPLATES.CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES.ALL)
def test_it_renders_as_transformers_does(name: str, conversation: str, reference: Any) -> None:
    source, messages = TEMPLATES.ALL[name], TEMPLATES.CONVERSATIONS[conversation]
    template = ChatTemplate({"default": source}, SPECIALS)
    same = 0
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "tools": TEMPLATES.TOOLS},
        {"add_generation_prompt": True, "enable_thinking": False, "author": "A & B", "date_string": "1999"},
    ):
        wanted = reference(source, messages, **options)
        if wanted is None:
            with pytest.raises(UserError):
                template.render(messages, **options)
            continue
        assert template.render(messages, **options) == wanted
        same += 1
    assert same or (name, conversation) in {
        ("gemma", "system"),
        ("gemma", "calls"),
        ("gemma", "skips"),
        ("mistral", "system"),
    }


def test_arguments_as_text_and_contents_in_parts() -> None:
    template = ChatTemplate({"default": TEMPLATES.QWEN}, SPECIALS)
    plain = template.render(TEMPLATES.CONVERSATIONS["calls"])
    call = {"function": {"name": "weather", "arguments": json.dumps(TEMPLATES.CALL["function"]["arguments"])}}
    messages = [dict(message) for message in TEMPLATES.CONVERSATIONS["calls"]]
    messages[1] = {"role": "assistant", "content": None, "tool_calls": [call]}
    messages[4]["content"] = [{"type": "text", "text": "Tha"}, {"type": "text", "text": "nks"}]
    assert template.render(messages) == plain


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        file = folder / name.replace("__", ".")
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert ChatTemplate.of(write(tmp_path, config__json={})) is None
    named = [
        {"name": "default", "template": "plain {{ eos_token }}"},
        {"name": "tool_use", "template": "tools"},
    ]
    config = {"chat_template": named, "eos_token": {"content": "<e>", "special": True}}
    write(tmp_path, chat_template__json={"chat_template": "third"})
    found = ChatTemplate.of(tmp_path)
    assert found is not None and found.render(TEMPLATES.ONE) == "third"
    write(tmp_path, tokenizer_config__json=config)
    found = ChatTemplate.of(tmp_path)
    assert found is not None and found.render(TEMPLATES.ONE) == "plain <e>"
    assert found.render(TEMPLATES.ONE, tools=TEMPLATES.TOOLS) == "tools"
    write(tmp_path, chat_template__jinja="{{ eos_token }} first")
    found = ChatTemplate.of(str(tmp_path))
    assert found is not None and found.render(TEMPLATES.ONE) == "<e> first"
    with PackWriter(tmp_path / "a.pack") as writer:
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            writer.add_file(name, tmp_path / name)
        writer.finish({})
    packed = ChatTemplate.of(tmp_path / "a.pack")
    assert packed is not None and packed.render(TEMPLATES.ONE) == "<e> first"
    write(tmp_path, own__jinja="own {{ eos_token }}")
    assert ChatTemplate.of_file(tmp_path / "own.jinja", tmp_path).render(TEMPLATES.ONE) == "own <e>"


def test_a_model_without_a_template_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="--chat-template FILE"):
        require_template(model_folder("code"), "code")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": "{"},
        {"tokenizer_config__json": "[]"},
        {"tokenizer_config__json": {"chat_template": 3}},
        {"tokenizer_config__json": {"chat_template": [{"name": "default"}]}},
        {"chat_template__json": '"text"'},
    ],
)
def test_damaged_files_are_named(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="json is damaged"):
        ChatTemplate.of(write(tmp_path, **files))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedFileError):
        ChatTemplate.of(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        ChatTemplate.of_file(tmp_path / "absent")


WRONG: list[tuple[Any, str]] = [
    ([], "messages"),
    ("Hello", "messages"),
    ([{"role": "user", "content": "a"}] * 5000, "messages"),
    ([3], "messages[0]"),
    ([{"content": "a"}], "messages[0].role"),
    ([{"role": "usr", "content": "a"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": 3}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": "a", "colour": "red"}], "field of messages[0]"),
    ([{"role": "user", "content": "a", "name": 3}], "messages[0].name"),
    ([{"role": "user", "content": "a", "tool_calls": []}], "messages[0].tool_calls"),
    ([{"role": "assistant", "content": "a", "tool_calls": [3]}], "messages[0].tool_calls[0]"),
    (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        "messages[0].tool_calls[0]",
    ),
    ([{"role": "user", "content": "a" * (1 << 21)}] * 3, "messages"),
]


@pytest.mark.parametrize(("messages", "field"), WRONG, ids=[field for _, field in WRONG])
def test_messages_that_are_none(messages: Any, field: str) -> None:
    with pytest.raises(UserError) as refused:
        ChatTemplate({"default": "x"}, {}).render(messages)
    assert refused.value.field == field and "\n" not in str(refused.value)


@pytest.mark.parametrize("tools", ["f", [3], [{"type": "function"}], [{"function": {"name": ""}}]])
def test_tools_that_are_none(tools: Any) -> None:
    with pytest.raises(UserError) as refused:
        ChatTemplate({"default": "x"}, {}).render(TEMPLATES.ONE, tools=tools)
    assert str(refused.value.field).startswith("tools")


CALLED = {"name": "f", "arguments": {"a": [1, "}"]}}
ANSWERS: list[tuple[str, str, int]] = [
    ("Plain text, with <tool and [TOOL and { in it.", "Plain text, with <tool and [TOOL and { in it.", 0),
    ('Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": [1, "}"]}}\n</tool_call>', "Let me see.", 1),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": [1, \\"}\\"]}"}</tool_call>\n' * 2, "", 2),
    ('<tool_call>{"name": "f", "arguments": {"a": [1, "}"]}}', "", 1),
    ("<tool_call>not JSON</tool_call> after", "<tool_call>not JSON</tool_call> after", 0),
    ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "}"]}}]', "", 1),
    ('[TOOL_CALLS]f{"a": [1, "}"]}[TOOL_CALLS]f[ARGS]{"a": [1, "}"]}', "", 2),
    ("[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing", 0),
    ('\n{"name": "f", "parameters": {"a": [1, "}"]}}', "", 1),
    (
        '<|python_tag|>{"name": "f", "parameters": {"a": [1, "}"]}}; '
        '{"name": "f", "parameters": {"a": [1, "}"]}}',
        "",
        2,
    ),
    ('{"name": "an answer in JSON"}', '{"name": "an answer in JSON"}', 0),
    ('{"name": ', '{"name": ', 0),
]


@pytest.mark.parametrize(("text", "content", "count"), ANSWERS, ids=range(len(ANSWERS)))
def test_calls_of_tools_in_any_pieces(text: str, content: str, count: int) -> None:
    said, calls = parse_tool_calls(text)
    assert said == content and calls == [CALLED] * count
    for size in (1, 3, 7):
        parser = ToolCallParser(SYNTAXES)
        pieces = [parser.add(text[at : at + size]) for at in range(0, len(text), size)]
        pieces.append(parser.finish())
        assert parser.calls == calls
        assert "".join(pieces) == content if not count else "".join(pieces).strip() == content


def test_text_streams_while_it_cannot_be_a_call() -> None:
    parser = ToolCallParser(("tagged",))
    assert parser.add("It is 3 < 4, ") == "It is 3 < 4, "
    assert parser.add("<tool") == "" and parser.add("box> yes") == "<toolbox> yes"
    assert ToolCallParser(()).add("<tool_call>") == "<tool_call>"


def test_a_template_says_which_calls_to_look_for() -> None:
    kinds = {name: ChatTemplate({"default": source}, {}).syntaxes for name, source in TEMPLATES.ALL.items()}
    assert kinds["qwen"] == ("tagged",) and kinds["mistral"] == ("list",) and kinds["llama3"] == ("object",)
    assert kinds["gemma"] == kinds["phi3"] == ()


def test_the_tokens_that_end_a_turn() -> None:
    """Found from the template itself."""
    data = json.loads((model_folder("code") / "tokenizer.json").read_text())
    names = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>"]
    for index, name in enumerate(names):
        data["added_tokens"].append({**data["added_tokens"][0], "id": 5120 + index, "content": name})
    tokenizer = Tokenizer.of_bytes(json.dumps(data).encode())
    plain = tokenizer.stream()
    assert "".join(map(plain.add, [5121, *tokenizer.encode("on"), 5122])) == "on"
    shown = tokenizer.stream((5121,))
    assert "".join(map(shown.add, [5121, *tokenizer.encode("on"), 5122])) == "<|eot_id|>on"
    wanted = {"qwen": 0, "smollm": 0, "llama3": 1, "gemma": 2, "phi3": 3, "mistral": 4}
    for family, index in wanted.items():
        template = ChatTemplate({"default": TEMPLATES.ALL[family]}, SPECIALS)
        assert template.end_tokens(tokenizer) == (5120 + index,), family
    assert ChatTemplate({"default": "{{ messages[0].content }}"}, {}).end_tokens(tokenizer) == ()
