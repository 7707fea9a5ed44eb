"""A model of the user's own in a bench: `HAVERSACK_BENCH_MODEL` names a pack, a checkpoint folder, a GGUF
file or a bundled model, and questions are put to it in several ways of running, in turns.

One way is open at a time, so that memory holds the model once; every way answers the same questions, and what
the time does not allow is left out for all of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable

if TYPE_CHECKING:
    from haversack.models import Tokenizer
    from haversack.models._chat import ChatTemplate
    from haversack.run._engine import Engine
    from haversack.run._source import Model

VARIABLE = "HAVERSACK_BENCH_MODEL"
ABSENT = (
    f"no model is at hand: let {VARIABLE} name a pack, a checkpoint folder or a GGUF file of a model that "
    "reads long prompts"
)


@dataclass(frozen=True)
class Question:
    """A prompt's tokens, the tokens of a reply at most, what a reply scores (0 to 1), and the `group` whose
    mean it counts in."""

    tokens: Sequence[int]
    most: int
    score: Callable[[str], float]
    group: str = ""


@dataclass(frozen=True)
class Answered:
    """The scores of each way of running, by group: as many for every way."""

    scores: Mapping[str, Mapping[str, Sequence[float]]]

    @property
    def count(self) -> int:
        """Questions that every way answered."""
        return sum(len(each) for each in next(iter(self.scores.values())).values())

    def means(self, way: str) -> dict[str, float]:
        """The mean score of each group."""
        return {group: sum(each) / len(each) for group, each in self.scores[way].items()}

    def mean(self, way: str) -> float:
        """The mean of the groups' means."""
        means = self.means(way)
        return sum(means.values()) / len(means)


@dataclass(frozen=True, eq=False)
class OwnModel:
    """An opened model, its tokenizer and, for one that chats, its template."""

    model: Model
    tokenizer: Tokenizer
    template: ChatTemplate | None

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """Raises UserError for what is no language model or has no tokenizer."""
        from haversack.models._chat import ChatTemplate
        from haversack.run._source import open_model

        model = open_model(source)
        return cls(model, model.tokenizer(), ChatTemplate.of(model))

    @property
    def name(self) -> str:
        """What notes call it."""
        return self.model.path.name

    @property
    def context(self) -> int:
        """Tokens of prompt and reply together."""
        return self.model.architecture.context

    def tokens(self, prompt: str, chat: bool = True) -> list[int]:
        """The tokens of `prompt`, as what a user says to a model that chats unless `chat` is false."""
        if self.template is None or not chat:
            return self.tokenizer.encode(prompt)
        text = self.template.render([{"role": "user", "content": prompt}])
        return self.tokenizer.encode(text, special=False)

    def reply(self, engine: Engine, question: Question) -> str:
        """What the model goes on with, the likeliest token each time."""
        from haversack.run._generate import Limits, generate

        ends = tuple(self.model.end_of_text)
        if self.template is not None:
            ends = (*ends, *self.template.end_tokens(self.tokenizer))
        limits = Limits(question.most, end=ends)
        answer = generate(engine, list(question.tokens), limits, tokenizer=self.tokenizer)
        for _ in answer:
            pass
        return answer.text


def own_model() -> OwnModel:
    """The model that the environment names. Raises Unavailable when it names none, UserError when it cannot
    be opened."""
    named = os.environ.get(VARIABLE)
    if not named:
        raise Unavailable(ABSENT)
    return OwnModel.open(named)


def answered(
    own: OwnModel,
    ways: Mapping[str, str],
    rounds: Iterable[Sequence[Question]],
    run: Run,
    seconds: float | None = None,
) -> Answered:
    """Put every question of `rounds` to each of `ways` (name -> attention), round by round, until another
    round would take longer than is left of `seconds` (default: of the run).

    Raises Unavailable when not even the first question is there or in time.
    """
    from haversack.run._engine import Engine

    begun = time.monotonic()
    left = run.seconds_left if seconds is None else min(seconds, run.seconds_left)
    scores: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    longest = 0.0
    for number, questions in enumerate(rounds, 1):
        started = time.monotonic()
        if started - begun + longest > left or not questions:
            break
        length = min(max(len(one.tokens) + one.most for one in questions), own.context)
        for way, attention in ways.items():
            run.say(f"round {number}, {len(questions)} questions: {way}")
            options: dict[str, Any] = {"attention": attention, "context_length": length}
            with Engine.open(own.model, **options) as engine:
                for one in questions:
                    scores[way].setdefault(one.group, []).append(one.score(own.reply(engine, one)))
        longest = max(longest, time.monotonic() - started)
    if longest == 0:
        raise Unavailable(f"no question could be put to {own.name} in the {max(left, 0):.0f} s left")
    return Answered(scores)
