"""A state as a bag of hashed features: what task and state share, kinds of actions, counts in steps; of
commands and tasks also words and pairs of words. Nothing of a particular world is known here."""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import zlib
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.share._hera_states import PAIRS, past_and_seen
from haversack.share._routing import Asked

I32 = npt.NDArray[np.int32]
DIMENSIONS = 1 << 13
_WORDS = re.compile(r"[a-z0-9]+")


@functools.lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """Its words in lower case."""
    return tuple(_WORDS.findall(text.lower()))


@functools.lru_cache(maxsize=1 << 16)
def hashed(field: str, text: str, pairs: bool) -> tuple[int, ...]:
    """Numbers below DIMENSIONS of a text's words, and with `pairs` of neighbours."""
    said = words(text)
    tokens = [*said, *(f"{one}_{other}" for one, other in itertools.pairwise(said))] if pairs else said
    return tuple(zlib.crc32(f"{field}:{token}".encode()) % DIMENSIONS for token in tokens)


@functools.lru_cache(maxsize=1 << 16)
def one(name: str) -> int:
    """The number of a feature that has a name of its own."""
    return zlib.crc32(name.encode()) % DIMENSIONS


def count(number: float) -> int:
    """A count in coarse steps: 0, 1, 2, 3, 5, 8, 13, 21, 34 and more."""
    return bisect.bisect_right((1, 2, 3, 5, 8, 13, 21, 34), number)


def state_bag(asked: Asked, pairs: int = PAIRS) -> I32:
    """The router's view: sorted feature numbers, each once. Kinds of actions by how much of them the task
    names, what the task and what is seen share, and counts; no other words, since those of some tens of
    tasks would tell the tasks apart, not their states."""
    past, seen = past_and_seen(asked)
    found = {*_shared(asked.text, seen)}
    found.update(_kind("may", action, asked.text) for action in asked.admissible)
    found.update(_kind(f"did{age}", did, asked.text) for age, (_, did) in enumerate(reversed(past[-pairs:])))
    last = past[-1][1] if past else ""
    found.add(one(f"steps={count(len(past))}"))
    found.add(one(f"choices={count(len(asked.admissible))}"))
    found.add(one(f"again={count(sum(observation == seen for observation, _ in past))}"))
    found.add(one(f"repeats={count(sum(action == last for _, action in past))}"))
    return np.fromiter(sorted(found), np.int32, len(found))


@functools.lru_cache(maxsize=1 << 16)
def _shared(task: str, seen: str) -> tuple[int, ...]:
    """Words that stand in both."""
    return tuple(one(f"both={word}") for word in {*words(task)}.intersection(words(seen)))


@functools.lru_cache(maxsize=1 << 16)
def _kind(field: str, action: str, task: str) -> int:
    """An action's verb, whether the task names it, and how many of its other words (0, 1, 2 and more)."""
    verb, *others = words(action) or ("",)
    named = words(task)
    return one(f"{field} {verb} {verb in named} {min(sum(word in named for word in others), 2)}")


def task_bag(text: str, observation: str = "") -> I32:
    """A task's view before its first step: for routers that decide once a task."""
    found = {*hashed("task", text, True), *hashed("seen", observation, False)}
    found.add(one(f"length={count(len(words(text)) / 4)}"))
    return np.fromiter(sorted(found), np.int32, len(found))


class CommandView(NamedTuple):
    """All that an agent which scores commands looks at: `done` how often each was done, in coarse steps;
    `here` how often this was seen before, 3 at most."""

    task: str
    seen: str
    admissible: tuple[str, ...]
    last: str
    done: tuple[int, ...]
    here: int

    @classmethod
    def of(cls, asked: Asked) -> CommandView:
        past, seen = past_and_seen(asked)
        did = Counter(action for _, action in past)
        here = sum(observation == seen for observation, _ in past)
        done = tuple(count(did[action]) for action in asked.admissible)
        return cls(asked.text, seen, asked.admissible, past[-1][1] if past else "", done, min(here, 3))


def command_bags(view: CommandView) -> list[I32]:
    """Each admissible action beside the state: words without their order."""
    task, now, last = frozenset(words(view.task)), frozenset(words(view.seen)), view.last
    bags = []
    for action, done in zip(view.admissible, view.done, strict=True):
        said = words(action)
        verb, objects = (said[0] if said else ""), said[1:]
        fits = sum(word in task for word in objects)
        bag = {*hashed("do", action, True), one(f"verb={verb}"), one(f"in task={verb in task}")}
        bag.update(one(f"{verb}+{word}") for word in task)
        bag.update(one(f"{verb}~{word}") for word in now)
        bag.add(one(f"{verb} fits={min(fits, 2)} of {len(objects)}"))
        bag.update(one(f"{verb} fit={word in task}:{at}") for at, word in enumerate(objects))
        bag.add(one(f"{verb} did={done}"))
        bag.add(one(f"{verb} did={done > 0} here={view.here}"))
        bag.add(one(f"{last}>{action}"))
        bag.add(one(f"{last.split(' ')[0]}>{verb}"))
        bags.append(np.fromiter(sorted(bag), np.int32, len(bag)))
    return bags
