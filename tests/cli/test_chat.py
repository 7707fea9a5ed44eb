"""`haversack run` on a real pseudo-terminal, and its chat, tools and schema options."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haversack.cli import main

PROGRAM = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())", "run"]
SOURCE = (
    "{% if tools %}{# <tool_call> #}[{{ tools[0].function.name }}]{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
RATE = re.compile(rb"\[(\d+) tokens, [\d.]+ tokens/s, first after \d+ ms, (\d+) of (\d+) tokens read(.*?)\]")
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.run.conftest import CONFIG, write_folder

    folder = write_folder(
        tmp_path_factory.mktemp("chat") / "tiny", {**CONFIG, "max_position_embeddings": 4096}
    )
    (folder / "chat_template.jinja").write_text(SOURCE)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.run.conftest import CONFIG, write_folder

    return write_folder(tmp_path_factory.mktemp("chat") / "plain", CONFIG)


class Terminal:
    """`haversack run` on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        self.file = ours
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=self._own_terminal,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self.seen = b""

    @staticmethod
    def _own_terminal() -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def until(self, pattern: bytes | re.Pattern[bytes], seconds: float = 60) -> re.Match[bytes]:
        """Read until the pattern appears in what was not looked at yet."""
        wanted = pattern if isinstance(pattern, re.Pattern) else re.compile(re.escape(pattern))
        deadline = time.monotonic() + seconds
        while True:
            found = wanted.search(self.seen)
            if found:
                self.seen = self.seen[found.end() :]
                return found
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.file], [], [], left)[0]:
                try:
                    self.seen += os.read(self.file, 1 << 16)
                except OSError:
                    raise AssertionError(self.seen) from None

    def send(self, data: bytes) -> None:
        os.write(self.file, data)

    def interrupt(self) -> None:
        """Press Ctrl-C until a fresh prompt shows: the line editor loses one that comes before it waits."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.send(b"\x03")
            with contextlib.suppress(AssertionError):
                self.until(b"> ", seconds=2)
                return
        raise AssertionError(self.seen)

    def end(self) -> int:
        code = self.process.wait(timeout=30)
        os.close(self.file)
        return code


@pytest.fixture
def terminal() -> Iterator[Any]:
    opened: list[Terminal] = []

    def make(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield make
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_a_chat_on_a_terminal(model: Path, terminal: Any, tmp_path: Path) -> None:
    one = terminal(str(model), "--max-tokens", "8", "--ignore-end", "--system", "be brief")
    one.until(b"Ctrl-D leaves.")
    one.until(b"> ")
    one.send(b"the one\n")
    first = one.until(RATE)
    assert int(first[1]) == 8 and first[2] == first[3] and b"cut at --max-tokens" in first[4]
    one.send(b"and \\\n")
    one.until(b". ")
    one.send(b"the other\n")
    second = one.until(RATE)
    assert int(second[2]) < int(second[3]) and int(second[3]) > int(first[3])
    one.send(b'"""one\n')
    one.send(b'two"""\n')
    one.until(RATE)
    file = tmp_path / "talk.json"
    one.send(b"/save " + str(file).encode() + b"\n")
    one.until(b"7 messages written")
    saved = json.loads(file.read_text())["messages"]
    assert [m["content"] for m in saved if m["role"] == "user"] == ["the one", "and \nthe other", "one\ntwo"]
    assert saved[0] == {"role": "system", "content": "be brief"}
    for command, answer in (
        (b"/reset", b"[forgotten]"),
        (b"/load " + str(file).encode(), b"[7 messages]"),
        (b"/system be long", b"[system: be long]"),
        (b"/help", b"/exit"),
        (b"/nothing", b"is not known"),
        (b"/save", b"give a file"),
        (b"/load " + str(tmp_path / "absent").encode(), b"cannot be read"),
    ):
        one.send(command + b"\n")
        one.until(answer)
        one.until(b"> ")
    one.send(b"/exit\n")
    one.until(b"memory: planned")
    assert one.end() == 0


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(model: Path, terminal: Any) -> None:
    one = terminal(str(model), "--max-tokens", "3000", "--ignore-end")
    one.until(b"> ")
    one.send(b"half a line")
    one.until(b"half a line")  # the editor has the terminal
    one.interrupt()
    one.send(b"the one\n")
    one.until(b"\n")
    one.until(re.compile(rb"[^\r\n]"))  # it writes
    time.sleep(0.2)
    one.send(b"\x03")
    stopped = one.until(RATE)
    assert int(stopped[1]) < 3000 and b"stopped" in stopped[4]
    one.until(b"> ")
    one.send(b"the two\n")
    one.until(b"the two\r\n")  # the editor is done with the line
    one.until(re.compile(rb"[^\r\n]"))
    os.killpg(os.getpgid(one.process.pid), signal.SIGINT)
    one.until(re.compile(rb"stopped\]"))
    one.until(b"> ")
    one.send(b"\x04")
    one.until(b"memory: planned")
    assert one.end() == 0


def test_a_model_without_a_template_completes(plain: Path, terminal: Any) -> None:
    one = terminal(str(plain), "--max-tokens", "5", "--ignore-end", "--schema", "/dev/null")
    one.until(b"is no JSON")
    assert one.end() == 2
    one = terminal(str(plain), "--max-tokens", "5", "--ignore-end")
    one.until(b"no chat template")
    one.until(b"> ")
    one.send(b"the one\n")
    assert int(one.until(RATE)[1]) == 5
    one.send(b"/exit\n")
    assert one.end() == 0


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main(["run", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_one_message_by_option(model: Path, plain: Path, tmp_path: Path, capsys: Any) -> None:
    written = tmp_path / "template.jinja"
    written.write_text(SOURCE)
    options = ["--prompt", "the one", "--max-tokens", "6", "--ignore-end"]
    asked = said(capsys, str(model), *options, "--chat", "--system", "be brief")
    text = "[system]be brief<|end|>[user]the one<|end|>[assistant]"
    same = said(capsys, str(plain), "--prompt", text, "--max-tokens", "6", "--ignore-end")
    assert (asked["text"], asked["prompt_tokens"]) == (same["text"], same["prompt_tokens"])
    other = said(capsys, str(plain), *options, "--system", "be brief", "--chat-template", str(written))
    assert other["text"] == asked["text"]
    without = said(capsys, str(model), *options)
    assert without["prompt_tokens"] < asked["prompt_tokens"] and "tool_calls" not in without


def test_tools_and_schemas_by_option(model: Path, plain: Path, tmp_path: Path, capsys: Any) -> None:
    import msgspec

    from haversack.cli._records import RunOutput

    tools, schema = tmp_path / "tools.json", tmp_path / "schema.json"
    tools.write_text(json.dumps(TOOLS))
    schema.write_text(json.dumps(SCHEMA))
    options = ["--prompt", "the one", "--max-tokens", "30"]
    asked = said(capsys, str(model), *options, "--tools", str(tools))
    assert asked["tool_calls"] == []
    formed = said(capsys, str(plain), *options, "--schema", str(schema), "--temperature", "1")
    assert isinstance(json.loads(formed["text"])["a"], int) and formed["valid"] is True
    assert formed["stop"] == "end-of-text"
    for record in (asked, formed):
        msgspec.convert(record, RunOutput)
    drafted = said(capsys, str(plain), *options, "--schema", str(schema), "--draft", str(plain))
    assert json.loads(drafted["text"])["a"] is not None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--chat"], "chat_template"),
        (["--system", "x"], "chat_template"),
        (["--chat", "--chat-template", "absent"], "chat_template"),
        (["--schema", "absent"], "schema"),
        (["--schema", "{not json"], "schema"),
        (["--schema", '{"uniqueItems": true}'], "schema"),
        (["--schema", '{"type": "string", "minLength": 600}'], "max_tokens"),
        (["--schema", "{}", "--stop", "x"], "stop"),
        (["--tools", "[]"], "chat_template"),
        (["--tools", "[]", "--chat-template", "no tools here"], "tools"),
        (["--tools", '[{"name": "f"}]', "--chat-template", "<tool_call>"], "tools[0]"),
        (["--chat", "--chat-template", "{% for"], "chat_template"),
        (["--chat", "--chat-template", "{{ raise_exception('no') }}"], "messages"),
    ],
)
def test_mistakes_end_in_a_record(
    options: list[str], field: str, plain: Path, tmp_path: Path, capsys: Any
) -> None:
    given = []
    for index, option in enumerate(options):
        if not option.startswith("--") and option not in ("absent", "x"):
            file = tmp_path / f"file{index}"
            file.write_text(option)
            option = str(file)
        given.append(option)
    record = said(capsys, str(plain), "--prompt", "the one", *given, code=2)
    assert record["field"] == field and "\n" not in record["error"]
