"""What a step of an agent sees, and the worlds it acts in: the `Env` protocol, the text of a state, when two
actions are the same."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from haversack.share._routing import Asked

if TYPE_CHECKING:
    from haversack.models._tokenizer import Tokenizer

PAIRS = 4
"""(observation, action) pairs of the past that agents and router read."""

_JOINS = re.compile(r"\b(?:with|and|in|on|from|to|into|onto|using|at)\b|,")
_ARTICLES = re.compile(r"\b(?:the|a|an)\b")


class Moved(NamedTuple):
    """What a step brought: `observation`, and the episode's `reward` (0 or 1) once it is `done`."""

    observation: str
    reward: float
    done: bool


class Env(Protocol):
    """A world with text on both sides: household, TextWorld, ALFWorld and the like.

    `order_free`: verbs whose objects may stand in any order. `state_key` names the state without its history:
    two states of one task with the same key have the same future. `reset` begins the same episode again.
    """

    task_id: str
    task: str
    order_free: frozenset[str]
    most_steps: int

    @property
    def admissible(self) -> tuple[str, ...]: ...

    @property
    def state_key(self) -> str: ...

    @property
    def success(self) -> bool: ...

    def reset(self) -> str: ...

    def step(self, action: str) -> Moved: ...


def asked(task: str, past: Iterable[tuple[str, str]], observation: str, admissible: tuple[str, ...]) -> Asked:
    """The state x_t of the paper. The last pair of `history` is what is seen now, without an action."""
    return Asked(task, (*past, (observation, "")), admissible)


def past_and_seen(asked: Asked) -> tuple[tuple[tuple[str, str], ...], str]:
    """What was seen and done before, and what is seen now ("" where the last pair has its action already)."""
    if asked.history and not asked.history[-1][1]:
        return asked.history[:-1], asked.history[-1][0]
    return asked.history, ""


def normalised(action: str, order_free: frozenset[str] = frozenset()) -> str:
    """An action as it is compared: lower case, single spaces, no articles; the objects of `order_free`
    verbs sorted.

    >>> normalised(" Mix the Milk  with eggs", frozenset({"mix"}))
    'mix eggs & milk'
    """
    words = " ".join(_ARTICLES.sub(" ", action.lower()).split()).strip(" .!")
    verb, _, rest = words.partition(" ")
    if verb not in order_free:
        return words
    return f"{verb} " + " & ".join(sorted(part.strip() for part in _JOINS.split(rest) if part.strip()))


def nearest_admissible(said: str, admissible: tuple[str, ...]) -> str | None:
    """The admissible action that a model's reply names: the same, else the longest one that it contains, else
    the one that shares most of its words; None where none shares any."""
    text = normalised(said.strip().splitlines()[0] if said.strip() else "")
    plain = {normalised(one): one for one in admissible}
    if text in plain:
        return plain[text]
    whole = normalised(said)
    held = [one for one in plain if re.search(rf"\b{re.escape(one)}\b", whole)]
    if held:
        return plain[max(held, key=len)]
    words = set(text.split())

    def shared(one: str) -> float:
        own = set(one.split())
        return len(words & own) / len(words | own) if own else 0.0

    best = max(plain, key=shared, default=None)
    return plain[best] if best is not None and shared(best) > 0 else None


def last_tokens(text: str, most: int, tokenizer: Tokenizer) -> str:
    """A text's end, of at most `most` tokens."""
    while len(tokens := tokenizer.encode(text)) > most and len(text) > 1:
        text = text[max(1, int(len(text) * (1 - most / len(tokens)))) :]
    return text


def state_text(asked: Asked, pairs: int = PAIRS) -> str:
    """A state in words, as a prompt of an agent and as what a language-model router reads."""
    lines = [f"Task: {asked.text}"]
    for observation, action in asked.history[-pairs - 1 :]:
        lines.append(f"Observation: {observation}")
        if action:
            lines.append(f"Action: {action}")
    if asked.admissible:
        lines.append("Allowed actions: " + "; ".join(asked.admissible))
    return "\n".join(lines)
