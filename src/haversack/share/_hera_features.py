"""A state as a bag of hashed features: words and pairs of words by the field they stand in, what task and
state share, and counts in steps. Nothing of a particular world is known here."""

from __future__ import annotations

import functools
import itertools
import re
import zlib

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
    return int(np.searchsorted((1, 2, 3, 5, 8, 13, 21, 34), number, side="right"))


def state_bag(asked: Asked, pairs: int = PAIRS) -> I32:
    """The router's view: sorted feature numbers, each once."""
    past, seen = past_and_seen(asked)
    found = {*hashed("task", asked.text, True), *hashed("seen", seen, True)}
    for age, (observation, action) in enumerate(reversed(past[-pairs:])):
        found.update(hashed(f"did{age}", action, False))
        found.add(one(f"did{age}={action}"))
        if age == 0:
            found.update(hashed("before", observation, False))
    task = frozenset(words(asked.text))
    for action in asked.admissible:
        said = words(action)
        found.update(hashed("may", action, False))
        if said:
            fits = sum(word in task for word in said[1:])
            found.add(one(f"may {said[0]} {said[0] in task} {min(fits, 2)}"))
    found.update(one(f"both={word}") for word in task.intersection(words(seen)))
    last = past[-1][1] if past else ""
    found.add(one(f"steps={count(len(past))}"))
    found.add(one(f"choices={count(len(asked.admissible))}"))
    found.add(one(f"again={count(sum(observation == seen for observation, _ in past))}"))
    found.add(one(f"repeats={count(sum(action == last for _, action in past))}"))
    return np.fromiter(sorted(found), np.int32, len(found))


def task_bag(text: str, observation: str = "") -> I32:
    """A task's view before its first step: for routers that decide once a task."""
    found = {*hashed("task", text, True), *hashed("seen", observation, False)}
    found.add(one(f"length={count(len(words(text)) / 4)}"))
    return np.fromiter(sorted(found), np.int32, len(found))


def command_bags(asked: Asked) -> list[I32]:
    """Each admissible action beside the state, for an agent that scores them: words without their order."""
    past, seen = past_and_seen(asked)
    task, now = frozenset(words(asked.text)), frozenset(words(seen))
    last = past[-1][1] if past else ""
    rooms: dict[str, int] = {}
    for _, action in past:
        rooms[action] = rooms.get(action, 0) + 1
    here = sum(observation == seen for observation, _ in past)
    bags = []
    for action in asked.admissible:
        said = words(action)
        verb, objects = (said[0] if said else ""), said[1:]
        fits = sum(word in task for word in objects)
        bag = {*hashed("do", action, True), one(f"verb={verb}"), one(f"in task={verb in task}")}
        bag.update(one(f"{verb}+{word}") for word in task)
        bag.update(one(f"{verb}~{word}") for word in now)
        bag.add(one(f"{verb} fits={min(fits, 2)} of {len(objects)}"))
        bag.update(one(f"{verb} fit={word in task}:{at}") for at, word in enumerate(objects))
        bag.add(one(f"{verb} did={count(rooms.get(action, 0))}"))
        bag.add(one(f"{verb} did={rooms.get(action, 0) > 0} here={min(here, 3)}"))
        bag.add(one(f"{last}>{action}"))
        bag.add(one(f"{last.split(' ')[0]}>{verb}"))
        bags.append(np.fromiter(sorted(bag), np.int32, len(bag)))
    return bags
