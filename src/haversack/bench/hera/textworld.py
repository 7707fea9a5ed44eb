"""TextWorld: cooking games with coin and treasure games among them, in its pure-Python state; kept in the
cache."""

from __future__ import annotations

import functools
from pathlib import Path

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Outcomes, Unavailable
from haversack.bench.hera._bench import FILES, SEEDS, Size, Tasks, bench, experiment
from haversack.bench.hera._rows import outcomes_of, rows_of
from haversack.core.errors import MissingExtraError
from haversack.share._hera_textworld import TextWorldGame, make_game, textworld

CHALLENGE = ("cooking", "cooking", "cooking", "coin", "treasure")
COUNTS = {"taught": 20, "train": 60, "dev": 12, "test": 30}
SIZE = Size()
GAME_FILES = ("share/_hera_textworld.py",)


def game(number: int) -> TextWorldGame:
    """Game `number` of this bench, made once."""
    challenge = CHALLENGE[number % len(CHALLENGE)]

    def make(goal: Path) -> None:
        make_game(number, challenge).save(str(goal / f"{challenge}-{number}.json"))

    folder = cached("hera-game", {"number": number, "challenge": challenge}, make)
    return TextWorldGame.load(folder / f"{challenge}-{number}.json")


@functools.cache
def tasks() -> Tasks:
    """The games by what they are for; the states of games grow as seeds play them."""
    begin = 0
    parts: dict[str, tuple[TextWorldGame, ...]] = {}
    for part, count in COUNTS.items():
        parts[part] = tuple(game(begin + at) for at in range(count))
        begin += count
    return Tasks(**parts)


@bench.measure(*rows_of("textworld", quick=False), seconds=1200, watches=(*FILES, *GAME_FILES))
def games(run: Run) -> Outcomes:
    try:
        textworld()
    except MissingExtraError as error:
        raise Unavailable(str(error)) from error
    found = [experiment("textworld", run.seed + at, SIZE, tasks, run.say) for at in range(SEEDS)]
    return outcomes_of("textworld", found, False)
