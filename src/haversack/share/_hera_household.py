"""A household in text: rooms on a grid, things in closed furniture, one thing to fetch, prepare and put
away.

A task names a thing and the order of its preparations ("first wash it, then slice it"). Looking in a
wrong place costs a step; a preparation out of order, or one that was not asked for, spoils the thing, and
no step mends that. So actions differ often where it does not matter, and rarely where it does. Every
house is drawn from its number alone.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from haversack.core.errors import UserError
from haversack.share._hera_states import Moved

ROOMS = ("kitchen", "pantry", "hall", "bathroom", "cellar", "study", "porch", "bedroom")
FURNITURE = {
    "kitchen": ("fridge", "cupboard", "counter"),
    "pantry": ("crate", "shelf", "bin"),
    "hall": ("wardrobe", "bench", "basket"),
    "bathroom": ("cabinet", "tub", "hamper"),
    "cellar": ("chest", "rack", "barrel"),
    "study": ("desk", "drawer", "bookcase"),
    "porch": ("box", "table", "locker"),
    "bedroom": ("dresser", "nightstand", "trunk"),
}
OPEN = frozenset({"counter", "shelf", "bench", "tub", "rack", "desk", "table", "nightstand", "bookcase"})
THINGS = (
    "apple",
    "carrot",
    "fish",
    "bread",
    "potato",
    "egg",
    "onion",
    "cheese",
    "pear",
    "ham",
    "melon",
    "leek",
)
PREPARATIONS = {
    "wash": "sink", "slice": "board", "heat": "stove", "chill": "icebox", "salt": "mill", "wrap": "foil"
}  # fmt: skip
DONE = {
    "wash": "washed", "slice": "sliced", "heat": "heated",
    "chill": "chilled", "salt": "salted", "wrap": "wrapped",
}  # fmt: skip
MOVES = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}
Place = tuple[int, int]


@dataclass(frozen=True)
class House:
    """What does not change: which room lies where, which thing is asked for, prepared how, put where."""

    rooms: dict[Place, str]
    thing: str
    recipe: tuple[str, ...]
    goal: str
    things: dict[str, str]
    start: Place

    @classmethod
    def drawn(cls, number: int, rooms: int, steps: tuple[int, int]) -> House:
        """House `number`: of `rooms` rooms and from `steps[0]` to `steps[1]` preparations."""
        draw = random.Random(f"household {number}")
        names = ["kitchen", *draw.sample(ROOMS[1:], rooms - 1)]
        laid: dict[Place, str] = {(0, 0): names[0]}
        while len(laid) < rooms:
            x, y = draw.choice(sorted(laid))
            dx, dy = draw.choice(sorted(MOVES.values()))
            laid.setdefault((x + dx, y + dy), names[len(laid)])
        places = [furniture for name in names for furniture in FURNITURE[name]]
        thing, *others = draw.sample(THINGS, min(len(THINGS), 2 * rooms))
        things = {other: draw.choice(places) for other in others}
        things[thing] = draw.choice(places)
        recipe = tuple(draw.sample(sorted(PREPARATIONS), draw.randint(*steps)))
        goal = draw.choice([place for place in places if place != things[thing]])
        return cls(laid, thing, recipe, goal, things, draw.choice(sorted(laid)))


@dataclass
class Household:
    """House `number` as an `Env`; of the same number always the same. `best` is the planner's next action."""

    number: int
    rooms: int = 4
    steps: tuple[int, int] = (1, 3)
    most_steps: int = 50
    order_free: frozenset[str] = frozenset()
    house: House = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.rooms <= len(ROOMS):
            raise UserError(
                f"rooms={self.rooms} is not supported (allowed 1 to {len(ROOMS)}); use rooms=4.",
                field="rooms",
                given=self.rooms,
                nearest=4,
            )
        self.house = House.drawn(self.number, self.rooms, self.steps)
        self.task_id = f"household-{self.rooms}-{self.steps[0]}-{self.steps[1]}-{self.number}"
        first, *rest = self.house.recipe
        order = "".join(f", then {one} it" for one in rest)
        self.task = (
            f"Find the {self.house.thing}. First {first} it{order}. "
            f"At last put it in the {self.house.goal}. Any other preparation spoils it."
        )
        self.reset()

    def reset(self) -> str:
        """Begin again."""
        self.at = self.house.start
        self.opened: set[str] = set()
        self.where = dict(self.house.things)
        self.prepared: list[str] = []
        self.visited = {self.at}
        self.taken = 0
        self.success = self.failed = False
        return self._seen("")

    @property
    def room(self) -> str:
        """Where one stands."""
        return self.house.rooms[self.at]

    @property
    def held(self) -> str | None:
        """The one thing that is carried."""
        return next((thing for thing, place in self.where.items() if place == "hands"), None)

    @property
    def state_key(self) -> str:
        """Task, place, what is open, where things are, what was done to the thing."""
        opened = ",".join(sorted(self.opened))
        moved = ",".join(
            f"{thing}@{place}"
            for thing, place in sorted(self.where.items())
            if place != self.house.things[thing]
        )
        return f"{self.task_id}|{self.room}|{opened}|{moved}|{','.join(self.prepared)}"

    @property
    def admissible(self) -> tuple[str, ...]:
        """Every action that does something here."""
        found = [f"go {way}" for way in MOVES if self._beside(way) is not None]
        held = self.held
        for furniture in FURNITURE[self.room]:
            if not self._is_open(furniture):
                found.append(f"open {furniture}")
                continue
            if held is None:
                found += [f"take {thing} from {furniture}" for thing in self._things_in(furniture)]
            else:
                found.append(f"put {held} in {furniture}")
        if held is not None and self.room == "kitchen":
            found += [f"{verb} {held} with {tool}" for verb, tool in PREPARATIONS.items()]
        return tuple(found)

    def step(self, action: str) -> Moved:
        """Do an admissible action; another one costs a step and changes nothing."""
        if self.success or self.failed:
            raise UserError("the episode is over; reset it first.", field="action", given=action)
        self.taken += 1
        said = self._do(action) if action in self.admissible else "Nothing happens."
        done = self.success or self.failed or self.taken >= self.most_steps
        return Moved(self._seen(said), float(self.success), done)

    @property
    def best(self) -> str | None:
        """The next action of someone who knows where everything is."""
        thing, held, house = self.house.thing, self.held, self.house
        if self.failed or self.success:
            return None
        if held is not None and held != thing:
            spot = next((one for one in FURNITURE[self.room] if self._is_open(one)), None)
            return f"put {held} in {spot}" if spot else f"open {FURNITURE[self.room][0]}"
        if held is None:
            place = self.where[thing]
            return self._towards(self._room_of(place), place) or f"take {thing} from {place}"
        if len(self.prepared) < len(house.recipe):
            verb = house.recipe[len(self.prepared)]
            return self._towards("kitchen", None) or f"{verb} {thing} with {PREPARATIONS[verb]}"
        return self._towards(self._room_of(house.goal), house.goal) or f"put {thing} in {house.goal}"

    @property
    def searching(self) -> str | None:
        """The next action of someone who does not know where the thing is, but how all else is done."""
        thing = self.house.thing
        if self.held == thing or self.failed or self.success or self.held is not None:
            return self.best
        here = next(
            (one for one in FURNITURE[self.room] if self.where[thing] == one and self._is_open(one)), None
        )
        if here is not None:
            return f"take {thing} from {here}"
        shut = next((one for one in FURNITURE[self.room] if not self._is_open(one)), None)
        if shut is not None:
            return f"open {shut}"
        new = [room for place, room in self.house.rooms.items() if place not in self.visited]
        ways = [(self._way(room), room) for room in new]
        return min(ways, key=lambda way: len(way[0]))[0][0] if ways else self.best

    def _do(self, action: str) -> str:
        verb, *rest = action.split()
        if verb == "go":
            dx, dy = MOVES[rest[0]]
            self.at = (self.at[0] + dx, self.at[1] + dy)
            self.visited.add(self.at)
            return f"You go {rest[0]}."
        if verb == "open":
            self.opened.add(rest[0])
            return f"You open the {rest[0]}."
        if verb == "take":
            self.where[rest[0]] = "hands"
            return f"You take the {rest[0]}."
        if verb == "put":
            self.where[rest[0]] = rest[2]
            if rest[0] == self.house.thing and rest[2] == self.house.goal:
                self.success = len(self.prepared) == len(self.house.recipe)
            return f"You put the {rest[0]} in the {rest[2]}."
        if rest[0] == self.house.thing:
            wanted = self.house.recipe[len(self.prepared) : len(self.prepared) + 1]
            self.prepared.append(verb)
            if wanted != (verb,):
                self.failed = True
                return f"The {rest[0]} is spoiled."
        return f"The {rest[0]} is now {DONE[verb]}."

    def _seen(self, said: str) -> str:
        parts = [said] if said else []
        parts.append(f"You are in the {self.room}.")
        for furniture in FURNITURE[self.room]:
            if not self._is_open(furniture):
                parts.append(f"The {furniture} is closed.")
            else:
                inside = self._things_in(furniture)
                parts.append(f"On the {furniture}: {', '.join(inside) if inside else 'nothing'}.")
        ways = [way for way in MOVES if self._beside(way) is not None]
        parts.append(f"Exits: {', '.join(ways)}.")
        held = self.held
        state = " ".join(DONE[one] for one in sorted(self.prepared)) if held == self.house.thing else ""
        parts.append(f"You carry {('the ' + state).strip() + ' ' + held if held else 'nothing'}.")
        return " ".join(parts)

    def _is_open(self, furniture: str) -> bool:
        return furniture in OPEN or furniture in self.opened

    def _things_in(self, furniture: str) -> list[str]:
        return sorted(thing for thing, place in self.where.items() if place == furniture)

    def _beside(self, way: str) -> Place | None:
        dx, dy = MOVES[way]
        place = (self.at[0] + dx, self.at[1] + dy)
        return place if place in self.house.rooms else None

    def _room_of(self, furniture: str) -> str:
        return next(name for name, all_of in FURNITURE.items() if furniture in all_of)

    def _towards(self, room: str, furniture: str | None) -> str | None:
        """The first step to an open piece of furniture in a room; None when there already."""
        if self.room == room:
            return f"open {furniture}" if furniture is not None and not self._is_open(furniture) else None
        return self._way(room)[0]

    def _way(self, room: str) -> list[str]:
        """The shortest way to a room."""
        before: dict[Place, tuple[Place, str]] = {}
        queue = deque([self.at])
        while queue:
            place = queue.popleft()
            if self.house.rooms[place] == room:
                break
            for way, (dx, dy) in MOVES.items():
                beside = (place[0] + dx, place[1] + dy)
                if beside in self.house.rooms and beside != self.at and beside not in before:
                    before[beside] = (place, way)
                    queue.append(beside)
        ways = []
        while place != self.at:
            place, way = before[place]
            ways.append(f"go {way}")
        return ways[::-1]
