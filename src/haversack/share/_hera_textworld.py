"""TextWorld games as an `Env`: made by seed with the library's own challenges, played in its pure-Python
state, or compiled by its game compiler.

Both show the same text, written here from the state's facts: the room, what stands in it, what is open,
exits, what is carried and in which condition. States seen before are not computed again: a game is a
graph of states that grows as it is played. Commands that only look are left out, since what can be seen
is always said.
"""

from __future__ import annotations

import contextlib
import logging
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from haversack.core.errors import MissingExtraError, UserError, not_allowed
from haversack.share._hera_states import Moved

CHALLENGES = ("cooking", "coin", "treasure")
LOOKING = ("examine ", "inventory", "look", "read ")
WAYS = {"north_of": "north", "south_of": "south", "east_of": "east", "west_of": "west"}
CONDITIONS = (
    "raw",
    "grilled",
    "roasted",
    "fried",
    "burned",
    "uncut",
    "sliced",
    "diced",
    "chopped",
    "needs_cooking",
)
SHUT = ("closed", "locked", "open")
KEPT = 40
"""States of a game whose library's own state, some hundred KiB, is kept; others are made again."""


def textworld() -> Any:
    """The library. Raises MissingExtraError without it."""
    try:
        import textworld as library
    except ImportError as error:
        raise MissingExtraError("TextWorld games", "textworld", "textworld") from error
    logging.getLogger("textworld").setLevel(logging.ERROR)
    return library


def make_game(number: int, challenge: str = "cooking") -> Any:
    """Game `number` of a challenge: six rooms and one or two ingredients, or a coin or treasure three to
    six rooms away. Takes seconds. Of the same number always the same game."""
    library = textworld()
    if challenge not in CHALLENGES:
        raise not_allowed("challenge", challenge, CHALLENGES)
    options = library.GameOptions()
    options.seeds = number
    draw = random.Random(f"{challenge} {number}")
    settings: dict[str, Any]
    if challenge == "cooking":
        from textworld.challenges.tw_cooking import cooking as maker

        recipe = draw.choice((1, 2))
        settings = {"recipe": recipe, "take": draw.randint(1, recipe), "go": 6, "open": True, "cook": True}
        settings |= {"cut": draw.random() < 0.7, "drop": False, "recipe_seed": number, "split": "train"}
    elif challenge == "coin":
        from textworld.challenges.tw_coin_collector import coin_collector as maker

        settings = {"level": 100 + draw.randint(4, 6)}
    else:
        from textworld.challenges.tw_treasure_hunter import treasure_hunter as maker

        settings = {"level": 10 + draw.randint(1, 4)}
    with contextlib.redirect_stdout(None):
        return maker.make(settings, options)


@dataclass(eq=False)
class Seen:
    """A state as it is shown: text, commands that do something, the next best of them, how it ended.
    `before`: the state and command that led here first; the library's own `progression` is kept for some."""

    text: str
    commands: tuple[str, ...]
    best: str | None
    won: bool
    lost: bool
    signature: str
    before: tuple[Seen, str] | None = None
    after: dict[str, Seen] = field(default_factory=dict)
    progression: Any = None


class TextWorldGame:
    """One game as an `Env`, in pure Python. `best` is the game's own winning policy."""

    def __init__(self, game: Any, task_id: str, most_steps: int = 40) -> None:
        textworld()
        from textworld.generator.game import GameProgression
        from textworld.generator.inform7 import Inform7Game

        self.game, self.task_id, self.most_steps = game, task_id, most_steps
        self.order_free: frozenset[str] = frozenset()
        self._words = Inform7Game(game)
        self.task = " ".join([" ".join(game.objective.split()), *recipe(game)])
        self._known: dict[str, Seen] = {}
        self._live: Any = None
        self._first = self._shown(GameProgression(game), None)
        self.reset()

    @classmethod
    def load(cls, path: Path, most_steps: int = 40) -> Self:
        """A game that was saved as JSON, or the JSON beside a compiled one."""
        library = textworld()
        try:
            game = library.Game.load(str(path))
        except Exception as error:
            raise UserError(f"{path} is no TextWorld game.", field="games", given=str(path)) from error
        return cls(game, path.stem, most_steps)

    def reset(self) -> str:
        """Begin again."""
        self._at, self.taken, self._live = self._first, 0, None
        return self._at.text

    @property
    def admissible(self) -> tuple[str, ...]:
        return self._at.commands

    @property
    def best(self) -> str | None:
        return self._at.best

    @property
    def success(self) -> bool:
        return self._at.won

    @property
    def state_key(self) -> str:
        return f"{self.task_id}|{self._at.signature}"

    def step(self, action: str) -> Moved:
        """Do an admissible command; another one costs a step and changes nothing."""
        if self._at.won or self._at.lost:
            raise UserError("the episode is over; reset it first.", field="action", given=action)
        self.taken += 1
        if action in self._at.after:
            self._at, self._live = self._at.after[action], None
        elif action in self._at.commands:
            if self._live is None:
                self._live = self._progression(self._at)
            self._live.update(self._named(self._live)[action])
            before = self._at
            self._at = before.after[action] = self._shown(self._live, (before, action))
        done = self._at.won or self._at.lost or self.taken >= self.most_steps
        return Moved(self._at.text, float(self._at.won), done)

    def _named(self, progression: Any) -> dict[str, Any]:
        """The library's actions by their commands, those that only look left out."""
        valid = progression.valid_actions
        said = zip(self._words.gen_commands_from_actions(valid), valid, strict=True)
        return {one: action for one, action in said if not one.startswith(LOOKING)}

    def _progression(self, seen: Seen) -> Any:
        """The library's own state, made again from the nearest that is kept."""
        if seen.progression is not None or seen.before is None:
            return seen.progression.copy()
        before, action = seen.before
        made = self._progression(before)
        made.update(self._named(made)[action])
        return made

    def _shown(self, progression: Any, before: tuple[Seen, str] | None) -> Seen:
        policy = progression.winning_policy
        facts = sorted(map(str, progression.state.facts))
        ended = f"{progression.completed} {progression.failed} {len(policy) if policy is not None else None}"
        signature = (
            f"{zlib.crc32(chr(10).join(facts).encode()):08x}{zlib.adler32(ended.encode()):08x}{len(facts):x}"
        )
        if signature in self._known:
            return self._known[signature]
        commands = tuple(sorted(self._named(progression)))
        best = self._words.gen_commands_from_actions(policy[:1])[0] if policy else None
        found = Seen(
            *(
                described(progression.state.facts, self.game.infos),
                commands,
                best if best in commands else None,
            ),
            won=progression.completed,
            lost=progression.failed,
            signature=signature,
            before=before,
        )
        if len(self._known) < KEPT:
            found.progression = progression.copy()
        self._known[signature] = found
        return found


class CompiledGame:
    """A compiled game (.z8, .ulx) as an `Env`, in the library's interpreter; shows what `TextWorldGame`
    shows."""

    def __init__(self, path: Path, most_steps: int = 40) -> None:
        library = textworld()
        infos = library.EnvInfos(
            facts=True, admissible_commands=True, policy_commands=True, won=True, lost=True, game=True
        )
        try:
            self._world = library.start(str(path), infos)
        except Exception as error:
            raise UserError(
                f"{path} is no compiled TextWorld game.", field="games", given=str(path)
            ) from error
        self.task_id, self.most_steps = path.stem, most_steps
        self.order_free: frozenset[str] = frozenset()
        self._state = self._world.reset()
        self.task = " ".join([" ".join(self._state.game.objective.split()), *recipe(self._state.game)])
        self.taken = 0

    def reset(self) -> str:
        """Begin again."""
        self._state, self.taken = self._world.reset(), 0
        return self._text()

    @property
    def admissible(self) -> tuple[str, ...]:
        return tuple(sorted(one for one in self._state.admissible_commands if not one.startswith(LOOKING)))

    @property
    def best(self) -> str | None:
        policy = self._state.policy_commands
        return policy[0] if policy else None

    @property
    def success(self) -> bool:
        return bool(self._state.won)

    @property
    def state_key(self) -> str:
        facts = "\n".join(sorted(map(str, self._state.facts)))
        return f"{self.task_id}|{zlib.crc32(facts.encode()):08x}{len(facts):x}"

    def step(self, action: str) -> Moved:
        """Say a command to the game."""
        self.taken += 1
        self._state, _, done = self._world.step(action)
        return Moved(self._text(), float(self.success), bool(done) or self.taken >= self.most_steps)

    def _text(self) -> str:
        return described(self._state.facts, self._state.game.infos)

    def close(self) -> None:
        """End its interpreter."""
        self._world.close()


def recipe(game: Any) -> Iterator[str]:
    """What a cooking game's cookbook asks for, a sentence an ingredient."""
    facts = list(game.world.facts)
    for fact in facts:
        if fact.name == "base" and len(fact.arguments) == 2:
            food, slot = fact.arguments
            wanted = [
                one.name
                for one in facts
                if one.name in CONDITIONS and [arg.name for arg in one.arguments] == [slot.name]
            ]
            asked_for = " and ".join(word for word in wanted if word not in ("raw", "uncut", "needs_cooking"))
            yield f"Take the {game.infos[food.name].name}" + (f", make it {asked_for}." if asked_for else ".")


def described(facts: Iterable[Any], infos: Any) -> str:
    """A state in words, from its facts; the same for the same facts."""
    listed = sorted(facts, key=str)
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for fact in listed:
        by_name.setdefault(fact.name, []).append(tuple(one.name for one in fact.arguments))
    room = next((args[1] for args in by_name.get("at", ()) if args[0] == "P"), "")
    conditions: dict[str, list[str]] = {}
    for name in (*CONDITIONS, *SHUT):
        for args in by_name.get(name, ()):
            if len(args) == 1:
                conditions.setdefault(args[0], []).append(name)

    def named(thing: str) -> str:
        info = infos.get(thing)
        plain = [
            one
            for one in conditions.get(thing, ())
            if one in CONDITIONS and one not in ("needs_cooking", "uncut")
        ]
        return " ".join([*plain, (info.name if info is not None and info.name else thing)])

    def inside(thing: str) -> list[str]:
        return sorted(
            named(a) for name in ("on", "in") for a, *rest in by_name.get(name, ()) if rest == [thing]
        )

    parts = [f"You are in the {named(room)}."]
    for thing, *rest in sorted(by_name.get("at", ()), key=lambda args: named(args[0])):
        if thing == "P" or rest != [room]:
            continue
        shut = next((one for one in SHUT if one in conditions.get(thing, ())), "")
        if shut in ("closed", "locked"):
            parts.append(f"The {named(thing)} is {shut}.")
        else:
            held = inside(thing)
            parts.append(
                f"On the {named(thing)}: {', '.join(held)}." if held else f"A {named(thing)} is here."
            )
    doors = {(a, c): b for a, b, c in (args for args in by_name.get("link", ()) if len(args) == 3)}
    for name, way in WAYS.items():
        for beside, here in by_name.get(name, ()):
            if here == room:
                door = doors.get((room, beside))
                shut = next((one for one in SHUT if one in conditions.get(door or "", ())), "")
                parts.append(f"Exit {way}" + (f", through a {named(door)}, {shut}." if door else "."))
    carried = sorted(named(a) for a, *rest in by_name.get("in", ()) if rest == ["I"])
    parts.append(f"You carry {', '.join(carried) if carried else 'nothing'}.")
    return " ".join(parts)
