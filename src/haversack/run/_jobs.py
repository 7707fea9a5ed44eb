"""One answer of a batch: what is asked, how far it is, and how its next token is drawn."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.run._generate import Limits, StopTexts
from haversack.run._sampler import Sampler, Session

if TYPE_CHECKING:
    from haversack.run._rounds import Rounds

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

COMPLETE = ("max-tokens", "end-of-text", "stop-text", "context", "read")
"""Why an answer ends by itself; `read` for one that wants no tokens. Others: cancelled, deadline, stopped,
failed."""


@dataclass(frozen=True)
class Adjustments:
    """Logits changed before a draw: minus `frequency` times the token's count in the answer, minus `presence`
    once it occurs there, plus `bias` of (token, amount)."""

    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def none(self) -> bool:
        """True when nothing changes."""
        return not (self.presence or self.frequency or self.bias)

    def apply(self, logits: F32, counts: dict[int, int]) -> F32:
        """Changed copy of logits f32 [vocabulary]; `counts`: of the answer's tokens so far."""
        changed = logits.copy()
        if counts and (self.presence or self.frequency):
            tokens = np.fromiter(counts, np.int64, len(counts))
            times = np.fromiter(counts.values(), np.float32, len(counts))
            changed[tokens] -= np.float32(self.frequency) * times + np.float32(self.presence)
        for token, amount in self.bias:
            changed[token] += np.float32(amount)
        return changed


@dataclass(frozen=True)
class Ask:
    """What a job wants. `top`: log-probabilities of so many likeliest tokens beside each token's own (None:
    none at all). `deadline`: of `time.monotonic`. `constraint` makes the constraint of one answer. `tell`:
    each token is delivered, not only the end. `embed`: no answer but the mean of the normalized hidden
    states. `rounds`: others write the answer, it is verified (see `_rounds`)."""

    prompt: I32
    limits: Limits = field(default_factory=Limits)
    sampler: Sampler = field(default_factory=Sampler)
    adjustments: Adjustments = field(default_factory=Adjustments)
    top: int | None = None
    deadline: float | None = None
    constraint: Callable[[], Any] | None = None
    tell: bool = False
    embed: bool = False
    rounds: Rounds | None = None


@dataclass(slots=True)
class Drawn:
    """A token of an answer: the text that has become certain with it, and with `logged` the log-probabilities
    that were asked for. `token` None: text that was held back."""

    token: int | None
    text: str
    log_probability: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    logged: bool = False


_numbers = itertools.count()


class Job:
    """An answer under way. `stop` says why it ended (None: it has not), `error` what broke it."""

    def __init__(self, ask: Ask, leader: Job | None = None) -> None:
        self.number = next(_numbers)
        self.ask = ask
        self.leader = leader
        self.slot: int | None = None
        self.read = 0
        self.cached = 0
        self.tokens: list[int] = []
        """The answer's tokens."""
        self.drawn: list[Drawn] = []
        """The same with their texts, for an ask that wants to hear of each or has stop texts."""
        self.stop: str | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.embedding: F32 | None = None
        self.came = time.monotonic()
        self.first_s: float | None = None
        self.last = self.came
        self.ended = threading.Event()
        self._session: Session | None = None
        self._counts: dict[int, int] = {}
        self._told = ask.tell or ask.top is not None or bool(ask.limits.stop)
        self._text: str | None = None

    @property
    def reading(self) -> bool:
        """True until the whole prompt has been read."""
        return self.read < len(self.ask.prompt)

    @property
    def text(self) -> str:
        """The answer's text, as far as it is certain."""
        if self._told or self._session is None:
            return "".join(drawn.text for drawn in self.drawn)
        if self._text is None or self.stop is None:  # nobody waits for its parts: it is made when asked for
            stream = self._tokenizer.stream(self.ask.limits.shown)
            pieces = [stream.add(token) for token in self.tokens]
            self._text = "".join([*pieces, stream.finish() if self.stop is not None else ""])
        return self._text

    @property
    def history(self) -> I32:
        """Prompt and answer so far, i32."""
        return self.ask.prompt if self._session is None else self._session.tokens

    def wait(self, seconds: float | None = None) -> Job:
        """Block until the answer has ended; raises what broke it."""
        if not self.ended.wait(seconds):
            raise UserError("the answer did not end in time.", field="deadline", given=seconds)
        if self.error is not None:
            raise self.error
        return self

    def begin(self, tokenizer: Any, context: int) -> None:
        """The prompt is about to be read: make what draws and what turns tokens to text."""
        if self.ask.embed:
            return
        ask = self.ask
        most = min(ask.limits.max_tokens, context + 1)
        constraint = None
        if ask.constraint is not None:  # it has to know how many tokens there really are
            constraint, most = ask.constraint(), min(most, context - len(ask.prompt) + 1)
        self._session = Session(ask.sampler, ask.prompt, most, constraint)
        self._tokenizer = tokenizer
        if self._told:
            self._stream, self._stops = tokenizer.stream(ask.limits.shown), StopTexts(ask.limits.stop)

    def draw(self, logits: F32, ends: Sequence[int], room: bool) -> bool:
        """Take the next token from logits f32 [vocabulary]; False when it is one of `ends`. Sets `stop` when
        the answer is over; `room`: the context holds another token."""
        session, ask = self._session, self.ask
        assert session is not None
        adjusted = logits if ask.adjustments.none else ask.adjustments.apply(logits, self._counts)
        token, log_probability = session.draw(adjusted)
        if token in ends:
            self.stop = "end-of-text"
            return False
        self.tokens.append(token)
        if not ask.adjustments.none:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._told:
            self._tell(token, logits, log_probability)
        if self.stop is None:
            if session.ended == session.drawn:
                self.stop = "end-of-text"
            elif session.drawn >= ask.limits.max_tokens:
                self.stop = "max-tokens"
            elif not room:
                self.stop = "context"
        return True

    def _tell(self, token: int, logits: F32, log_probability: float) -> None:
        """Add to `drawn` what can be told of a token."""
        top: tuple[tuple[int, float], ...] = ()
        if self.ask.top is not None:
            log_probability, top = _alternatives(logits, token, self.ask.top)
        text = self._stops.add(self._stream.add(token))
        self.drawn.append(Drawn(token, text, log_probability, top, self.ask.top is not None))
        if self._stops.met:
            self.stop = "stop-text"

    def rest(self) -> Drawn | None:
        """Text that was held back until the end."""
        if self._session is None or not self._told or self._stops.met:
            return None
        text = self._stops.add(self._stream.finish())
        text += "" if self._stops.met else self._stops.finish()
        if not text:
            return None
        drawn = Drawn(None, text)
        self.drawn.append(drawn)
        return drawn

    def add_hidden(self, hidden: F32) -> None:
        """Embedding: take in the normalized hidden states f32 [n, width] of the next tokens."""
        total = hidden.sum(axis=0, dtype=np.float64)
        self.embedding = total if self.embedding is None else self.embedding + total


def _alternatives(logits: F32, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The natural log-probability of `token` under logits f32 [vocabulary], and the `count` likeliest tokens
    with theirs, likeliest first."""
    shifted = logits.astype(np.float64) - float(logits.max())
    shifted -= np.log(np.exp(shifted).sum())
    count = min(count, len(shifted))
    if count == 0:
        return float(shifted[token]), ()
    chosen = np.argpartition(-shifted, count - 1)[:count]
    chosen = chosen[np.argsort(-shifted[chosen], kind="stable")]
    return float(shifted[token]), tuple((int(one), float(shifted[one])) for one in chosen)
