"""From a prompt to text: the one loop that every command and server uses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.models._tokenizer import Tokenizer
from haversack.run._engine import Engine
from haversack.run._sampler import Sampler, Session

if TYPE_CHECKING:
    from haversack.run._constraint import Constraint
    from haversack.run._drafting import Drafts
    from haversack.run._prefix import Prefix

I32 = npt.NDArray[np.int32]
MOST_STOPS = 64


@dataclass(frozen=True)
class Limits:
    """Where an answer ends: after `max_tokens`, before any of the texts `stop`, at a token of `end` (None:
    those of
    the model; empty: at none). `shown`: special tokens whose text is given out all the same."""

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    end: tuple[int, ...] | None = None
    shown: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(
                f"max_tokens={self.max_tokens} asks for nothing; give 1 or more.",
                field="max_tokens",
                given=self.max_tokens,
                nearest=1,
            )
        if any(not text for text in self.stop) or len(self.stop) > MOST_STOPS:
            raise UserError(
                f"stop takes 1 to {MOST_STOPS} texts, none of them empty.",
                field="stop",
                given=list(self.stop),
            )


@dataclass(frozen=True)
class Token:
    """A token of the answer and the text that has become certain with it; `id` None: text that was held
    back.
    """

    id: int | None
    text: str
    log_probability: float | None


class StopTexts:
    """Holds back what may be the beginning of a stop text, and ends before the first that is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def add(self, text: str) -> str:
        """The part of the text so far that is certain to stay."""
        if not self._stops:
            return text
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.met, self._held = True, ""
            return held[: min(found)]
        keep = max(
            (n for stop in self._stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back and is no stop text after all."""
        held, self._held = self._held, ""
        return held


class Generation:
    """An answer under way: iterate over its `Token`s; afterwards the fields say how it went.

    `stop`: why it ended, `max-tokens`, `end-of-text`, `stop-text` or `context`; a text that its constraint
    completes ends as `end-of-text`; `offline` where a server is needed that is not reached. Times are of this
    machine's clock, from the call of `generate`.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: I32,
        limits: Limits,
        sampler: Sampler,
        tokenizer: Tokenizer,
        constraint: Constraint | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        self.engine = engine
        self.prompt_tokens = len(prompt)
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []
        self.text = ""
        self.stop = ""
        self.first_token_ms = 0.0
        self.seconds = 0.0
        self._limits, self._tokenizer = limits, tokenizer
        self._started = time.perf_counter()
        self._prompt = prompt
        self._prefix = prefix
        most = min(limits.max_tokens, engine.context_length + 1)
        if constraint is not None:  # it has to know how many tokens there really are
            most = min(most, engine.context_length - engine.taken(len(prompt)) + 1)
        reader = engine.architecture.reader
        seen = prompt if reader is None else np.asarray([reader.start], np.int32)
        self._session = Session(sampler, seen, most, constraint)
        self._iterator = self._run()

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second after the first one (of one token only: that one's)."""
        decoding = self.seconds - self.first_token_ms / 1e3
        if len(self.tokens) > 1 and decoding > 0:
            return (len(self.tokens) - 1) / decoding
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0

    @property
    def drafting(self) -> Drafts | None:
        """What a decode method with a draft model did so far; None of other methods."""
        return self._session.drafting

    def __iter__(self) -> Iterator[Token]:
        return self._iterator

    def _run(self) -> Iterator[Token]:
        engine, limits = self.engine, self._limits
        ends = engine.model.end_of_text if limits.end is None else limits.end
        capacity = min(engine.context_length, engine.taken(self.prompt_tokens) + limits.max_tokens)
        if self._prefix is None:
            cache, unread = engine.cache(capacity), self._prompt
        else:
            cache, unread = self._prefix.begin(engine, self._prompt)
        admitted = engine.slots.context.admit([unread], cache)
        logits = engine.slots.prefill.prefill(engine, admitted, cache)
        shown = limits.shown
        if engine.architecture.reader is not None:  # which spans it fills, a model tells by them
            shown = (*shown, *self._tokenizer.sentinels())
        stream, stops = self._tokenizer.stream(shown), StopTexts(limits.stop)
        drawn = engine.slots.decode.tokens(engine, cache, logits, self._session)
        try:
            for token, log_probability in drawn:
                self.seconds = time.perf_counter() - self._started
                if not self.tokens:
                    self.first_token_ms = 1e3 * self.seconds
                if token in ends:
                    self.stop = "end-of-text"
                    break
                self.tokens.append(token)
                self.log_probabilities.append(log_probability)
                text = stops.add(stream.add(token))
                self.text += text
                yield Token(token, text, log_probability)
                if stops.met:
                    self.stop = "stop-text"
                    return
                if self._session.ended == len(self.tokens):
                    self.stop = "end-of-text"
                    break
                if len(self.tokens) >= limits.max_tokens:
                    self.stop = "max-tokens"
                    break
        finally:
            close = getattr(drawn, "close", None)
            if close is not None:
                close()
            if self._prefix is not None:
                self._prefix.keep(self._session.tokens)
            rest = getattr(engine.held, "rest", None)
            if rest is not None:
                rest()
        self.stop = self.stop or self._session.broken or "context"
        rest = stops.add(stream.finish())
        rest += "" if stops.met else stops.finish()
        if rest:
            self.text += rest
            yield Token(None, rest, None)


def prompt_tokens(engine: Any, tokenizer: Tokenizer, prompt: str, *, special: bool = True) -> I32:
    """The tokens of a prompt, i32 [n], n >= 1: an empty prompt is the token that begins a text.

    `engine` is anything with `architecture` and `model`. `special=False` for a text that a chat template
    made. Raises UserError, with both lengths, for a prompt that leaves no room in the context, and for an
    empty one where the model has no such token.
    """
    tokens = tokenizer.encode(prompt, special=special)
    if not tokens:
        begins = engine.architecture.start_of_text
        first = [begins] if begins is not None else list(engine.model.end_of_text[:1])
        if not first:
            raise UserError(
                "the prompt is empty and this model has no token that begins a text; give a prompt.",
                field="prompt",
                given="",
            )
        tokens = first
    highest = max(tokens)
    if highest >= engine.architecture.vocabulary:
        raise UserError(
            f"the tokenizer gives token {highest}, the model knows 0 to "
            f"{engine.architecture.vocabulary - 1}: they "
            "do not belong together.",
            field="tokenizer",
            given=highest,
        )
    return np.asarray(tokens, np.int32)


def check_length(prompt: int, context: int) -> None:
    """Raises UserError, with both lengths, when a prompt of `prompt` tokens leaves no room in `context`."""
    if prompt > context:
        raise UserError(
            f"the prompt has {prompt} tokens and the context holds {context}; shorten the prompt"
            " or use a model with a longer context.",
            field="prompt",
            given=prompt,
            nearest=context,
        )


def generate(
    engine: Engine,
    prompt: str | Sequence[int] | I32,
    limits: Limits | None = None,
    sampler: Sampler | None = None,
    tokenizer: Tokenizer | None = None,
    constraint: Constraint | None = None,
    prefix: Prefix | None = None,
) -> Generation:
    """Answer `prompt` (a text, or tokens); iterate over the result. `tokenizer` defaults to the model's own.

    `constraint` (run/_constraint.py) restricts the answer; it is used up. `prefix` keeps what was read for
    the next call.

    >>> answer = generate(engine, "def add(a, b):", Limits(max_tokens=16)) >>> for token in answer: ...
    print(token.text, end="", flush=True)"""
    tokenizer = tokenizer or engine.model.tokenizer()
    if isinstance(prompt, str):
        tokens = prompt_tokens(engine, tokenizer, prompt)
    else:
        tokens = np.asarray(prompt, np.int32)
    if len(tokens) == 0:
        raise UserError("a prompt of no tokens has no answer.", field="prompt")
    check_length(len(tokens), engine.context_length)
    limits = limits or Limits()
    if constraint is not None and limits.stop:
        raise UserError(
            "a stop text would cut a constrained answer short; give one or the other.", field="stop"
        )
    if constraint is not None:
        room = engine.context_length - engine.taken(len(tokens)) + 1
        constraint.require_room(min(limits.max_tokens, room))
    return Generation(engine, tokens, limits, sampler or Sampler(), tokenizer, constraint, prefix)
