"""A conversation with a model: its messages, kept within the context, and answers that read only what is new.

talk = Conversation(engine, template) for piece in talk.ask("Hello"): print(piece, end="", flush=True)

When the messages and some room for an answer pass the context, the oldest turns are left out; `dropped` says
how many. The system message stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from haversack.core.errors import UserError
from haversack.models._chat import ChatTemplate, checked_messages, merged_ends
from haversack.models._tokenizer import Tokenizer
from haversack.models._tool_calls import ToolCallParser
from haversack.run._constraint import Constraint
from haversack.run._engine import Engine
from haversack.run._generate import I32, Generation, Limits, generate, prompt_tokens
from haversack.run._prefix import Prefix
from haversack.run._sampler import Sampler

ROOM = 4
"""A quarter of the context, at most, is kept free for an answer."""


class Conversation:
    """Messages so far, and how the next are answered.

    `tools`: descriptions of functions the model may call. `constraint` makes the constraint of one answer
    from the tokens that end it. `last`: the `Generation` of the last answer; `calls`: the tools it asked
    for.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        tokenizer: Tokenizer | None = None,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampler: Sampler | None = None,
        limits: Limits | None = None,
        constraint: Callable[[tuple[int, ...]], Constraint | None] | None = None,
    ) -> None:
        self.engine, self.template, self.tools = engine, template, tools
        self.tokenizer = tokenizer or engine.model.tokenizer()
        self.messages: list[dict[str, Any]] = []
        self.system = system
        self.dropped = 0
        self.last: Generation | None = None
        self.calls: list[dict[str, Any]] = []
        self.prefix = Prefix()
        self._sampler, self._constraint = sampler or Sampler(), constraint
        self._turn = 0
        self.limits = chat_limits(limits or Limits(), engine.model, template, self.tokenizer)

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self.messages = []

    def load(self, messages: Any) -> None:
        """Take up `messages`, a system message first or none. Raises UserError for what is none."""
        found = checked_messages(messages)
        if found[0]["role"] == "system":
            self.system = found.pop(0)["content"]
        self.messages = found

    def saved(self) -> list[dict[str, Any]]:
        """All messages, as `load` takes them."""
        return [*self._opening(), *self.messages]

    def ask(self, text: str, *, role: str = "user") -> Iterator[str]:
        """Add a message (`role` user, or tool for what a call gave) and answer it, piece by piece.

        An answer that is interrupted stays as far as it went; a message that could not be answered is taken
        back.
        Raises UserError when the message alone passes the context.
        """
        self.messages.append({"role": role, "content": text})
        self.last, self.calls, self.dropped = None, [], 0
        parser = ToolCallParser(self.template.syntaxes if self.tools else ())
        said = ""
        try:
            for piece in self._pieces(parser):
                said += piece
                yield piece
        finally:
            if said or parser.calls:
                self.messages.append(_answered(said, parser.calls))
                self.calls = parser.calls
                self._turn += 1
            else:
                self.messages.pop()

    def _pieces(self, parser: ToolCallParser) -> Iterator[str]:
        prompt = self._prompt()
        constraint = None
        if self._constraint is not None:
            assert self.limits.end is not None
            constraint = self._constraint(self.limits.end)
        sampler = replace(self._sampler, seed=self._sampler.seed + self._turn)
        self.last = answer = generate(
            self.engine, prompt, self.limits, sampler, self.tokenizer, constraint, self.prefix
        )
        for token in answer:
            piece = parser.add(token.text)
            if piece:
                yield piece
        rest = parser.finish()
        if rest:
            yield rest

    def _opening(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _prompt(self) -> I32:
        """The tokens of the conversation, without the oldest turns where they do not fit."""
        context = self.engine.context_length
        room = max(1, min(self.limits.max_tokens, context // ROOM))
        messages = self.messages
        while True:
            text = self.template.render([*self._opening(), *messages], tools=self.tools)
            tokens = prompt_tokens(self.engine, self.tokenizer, text, special=False)
            turns = [index for index, message in enumerate(messages) if message["role"] == "user"]
            if len(tokens) + room <= context or len(turns) < 2:
                break
            messages = messages[turns[1] :]
            self.dropped += 1
        if len(tokens) > context:
            raise UserError(
                f"the message takes {len(tokens)} tokens with what is around it, the context holds {context};"
                " shorten it or raise --context-length.",
                field="prompt",
                given=len(tokens),
                nearest=context,
            )
        self.messages = list(messages)
        return tokens


def chat_limits(limits: Limits, model: Any, template: ChatTemplate, tokenizer: Tokenizer) -> Limits:
    """`limits` that end at the end of a turn as well, and that show what calls of tools begin with."""
    if limits.end is not None:
        return replace(limits, shown=template.shown_tokens(tokenizer))
    ends = merged_ends(model.end_of_text, template.end_tokens(tokenizer))
    return replace(limits, end=ends, shown=template.shown_tokens(tokenizer))


def _answered(said: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.strip() if calls else said}
    if calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message
