"""`haversack run PACK` on a terminal: a chat, or texts completed one after the other.

Ctrl-C stops an answer and not the program, Ctrl-D leaves. A line that ends with a backslash goes on, and
three quotation marks begin and end a message of several lines.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError, unknown_name
from haversack.core.memory import peak_mib
from haversack.run._conversation import Conversation
from haversack.run._generate import Generation, Limits, generate, prompt_tokens
from haversack.run._prefix import Prefix
from haversack.run._sampler import Sampler

if TYPE_CHECKING:
    from haversack.cli._talk import Talk
    from haversack.models._tokenizer import Tokenizer
    from haversack.run._engine import Engine

PROMPT, MORE = "> ", ". "
QUOTES = '"""'
COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation (the system message stays)",
    "/system TEXT": "set the system message; without TEXT: show it",
    "/tool TEXT": "answer a call of a tool",
    "/save FILE": "write the conversation as JSON",
    "/load FILE": "go on with a saved conversation",
    "/exit": "leave (Ctrl-D as well)",
}


def edit_lines() -> None:
    """Line editing and history in `input`, where Python has it."""
    with contextlib.suppress(ImportError):
        import readline

        readline.set_auto_history(True)


def read_message() -> str | None:
    """The next message, of one line or several; None at the end of the input (Ctrl-D)."""
    try:
        line = input(PROMPT)
        if line.strip().startswith(QUOTES):
            lines = [line.strip().removeprefix(QUOTES)]
            while not lines[-1].rstrip().endswith(QUOTES) or (len(lines) == 1 and not lines[0]):
                lines.append(input(MORE))
            lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
            return "\n".join(lines).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(MORE))
        return "\n".join(lines)
    except EOFError:
        print()
        return None


def converse(messages: Callable[[str], None]) -> None:
    """Read messages until the end; `messages` handles one. Mistakes are said, and the next message read."""
    edit_lines()
    while True:
        try:
            text = read_message()
        except KeyboardInterrupt:
            print()
            continue
        if text is None:
            return
        if not text.strip():
            continue
        try:
            messages(text)
        except EOFError:
            return
        except UserError as error:
            print(f"haversack: {error}")


def write(pieces: Iterator[str]) -> bool:
    """Write an answer as it comes; True when Ctrl-C stopped it."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return True
    return False


def rate_line(answer: Generation | None, reused: int, stopped: bool) -> str:
    """How an answer went, in one line."""
    if answer is None:
        return "[stopped]"
    how = (
        "stopped"
        if stopped
        else {"max-tokens": "cut at --max-tokens", "context": "the context is full"}.get(answer.stop, "")
    )
    parts = [f"{len(answer.tokens)} tokens", f"{answer.tokens_per_s:.1f} tokens/s"]
    parts.append(f"first after {answer.first_token_ms:.0f} ms")
    parts.append(f"{answer.prompt_tokens - reused} of {answer.prompt_tokens} tokens read")
    if answer.drafting is not None and answer.drafting.brief():
        parts.append(answer.drafting.brief())
    return f"[{', '.join([*parts, how] if how else parts)}]"


class Chat:
    """A chat on a terminal."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    def run(self, about: str) -> None:
        """Talk until the person leaves."""
        print(f"{about}; /help lists commands, Ctrl-D leaves.")
        converse(self.handle)

    def handle(self, text: str) -> None:
        """One message or command. Raises EOFError to leave, UserError for mistakes."""
        if text.startswith("/"):
            command, _, rest = text.partition(" ")
            names = {name.split()[0]: name for name in COMMANDS}
            if command not in names:
                raise unknown_name("command", command, names)
            getattr(self, f"_{command[1:]}")(rest.strip())
        else:
            self.answer(text)

    def answer(self, text: str, role: str = "user") -> None:
        """Print the answer to a message, and how it went."""
        talk = self.conversation
        stopped = write(talk.ask(text, role=role))
        if talk.last is not None and (talk.last.text or stopped):
            print()
        for call in talk.calls:
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            print(f"[call {call['name']}({arguments}); /tool answers it]")
        if talk.dropped:
            print(f"[the {talk.dropped} oldest turns were left out: the context is full]")
        print(rate_line(talk.last, talk.prefix.reused, stopped))

    def _help(self, rest: str) -> None:
        width = max(map(len, COMMANDS))
        for name, said in COMMANDS.items():
            print(f"  {name:<{width}}  {said}")
        print(f"  A line that ends with \\ goes on; {QUOTES} begins and ends a message of several lines.")

    def _reset(self, rest: str) -> None:
        self.conversation.reset()
        print("[forgotten]")

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = rest
        print(f"[system: {self.conversation.system or 'none'}]")

    def _tool(self, rest: str) -> None:
        if not rest:
            raise UserError("give what the tool answered: /tool TEXT.", field="command")
        self.answer(rest, role="tool")

    def _save(self, rest: str) -> None:
        saved = {"messages": self.conversation.saved()}
        path = _file(rest)
        try:
            path.write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.", field="file") from error
        print(f"[{len(saved['messages'])} messages written to {path}]")

    def _load(self, rest: str) -> None:
        from haversack.cli._talk import read_json

        found = read_json(_file(rest), "file")
        self.conversation.load(found.get("messages") if isinstance(found, dict) else found)
        print(f"[{len(self.conversation.saved())} messages]")

    def _exit(self, rest: str) -> None:
        raise EOFError


class Completion:
    """Texts completed one after the other, for a model that was not trained to chat."""

    def __init__(self, complete: Callable[[str], tuple[Generation, Any]]) -> None:
        self._complete = complete

    def run(self, about: str) -> None:
        """Complete until the person leaves."""
        print(f"{about}: it has no chat template, so it goes on with each text you give; Ctrl-D leaves.")
        converse(self.handle)

    def handle(self, text: str) -> None:
        """One text."""
        if text.strip() in ("/exit", "/help"):
            if text.strip() == "/exit":
                raise EOFError
            print("  Give a text and it goes on. /exit or Ctrl-D leaves, Ctrl-C stops an answer.")
            return
        answer, prefix = self._complete(text)
        stopped = write(token.text for token in answer)
        print()
        print(rate_line(answer, prefix.reused, stopped))


def talk_on_a_terminal(
    engine: Engine, talk: Talk, limits: Limits, sampler: Sampler, tokenizer: Tokenizer
) -> None:
    """Chat, or complete text after text where there is no template; at the end, what it took."""
    about = f"{engine.model.path.name}, context of {engine.context_length} tokens"
    if talk.template is not None:
        conversation = Conversation(
            engine,
            talk.template,
            tokenizer,
            system=talk.system,
            tools=talk.tools,
            sampler=sampler,
            limits=limits,
            constraint=partial(talk.constraint, tokenizer),
        )
        Chat(conversation).run(about)
    else:
        prefix = Prefix()

        def complete(text: str) -> tuple[Generation, Prefix]:
            tokens = prompt_tokens(engine, tokenizer, text)
            ends = engine.model.end_of_text if limits.end is None else limits.end
            constraint = talk.constraint(tokenizer, ends)
            return generate(engine, tokens, limits, sampler, tokenizer, constraint, prefix), prefix

        Completion(complete).run(about)
    planned = engine.memory_plan().total_mib
    measured = peak_mib(engine.model.source.files)
    print(f"memory: planned {planned:.1f} MiB, measured {measured:.1f} MiB", file=sys.stderr)


def _file(rest: str) -> Path:
    if not rest:
        raise UserError("give a file.", field="file")
    return Path(rest).expanduser()
