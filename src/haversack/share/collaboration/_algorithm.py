"""What an algorithm is, where the algorithms are found by name, and how they are composed.

An algorithm is a frozen dataclass with `solve(session)`. Whoever is asked in it is an agent: a node by name,
or another algorithm, which makes any algorithm a part of any other: `cascade(first=vote(n=5),then=cloud)`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from haversack.core.errors import UserError, unknown_name
from haversack.core.ledger import Ledger
from haversack.share.collaboration._clock import run_virtual
from haversack.share.collaboration._network import Network, NoAnswer, Said
from haversack.share.collaboration._session import Result, Session, Task, normal

Agent = Any
"""A node's name or an Algorithm."""
AGENT = {"agent": True}
"""The metadata of a field that names agents."""


@dataclass(frozen=True)
class Algorithm:
    """Base of all. `code` is its place in the taxonomy (V1, H4, ...), `name` what people type."""

    code: ClassVar[str] = ""
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    async def solve(self, session: Session) -> str:
        """The answer; NoAnswer may pass when there is none. Keeps its best so far with `session.keep`."""
        raise NotImplementedError

    def check(self, network: Network) -> None:
        """Raises UserError for what cannot run on this network: agents that are not there, rounds without a
        limit."""
        for agent in self.agents(network):
            if isinstance(agent, Algorithm):
                agent.check(network)
            else:
                network.node(agent)

    def agents(self, network: Network) -> list[Agent]:
        """Whoever it asks."""
        found: list[Agent] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata.get("agent"):
                found += [one for one in (value if isinstance(value, tuple) else (value,)) if one]
        return found

    def run(self, task: Task, network: Network, ledger: Ledger | None = None) -> Result:
        """Run in virtual time. Raises UserError for what cannot run."""
        self.check(network)
        return run_virtual(self.go(task, network, ledger))

    async def go(self, task: Task, network: Network, ledger: Ledger | None = None) -> Result:
        """Run on the running event loop: real time on an ordinary one. Ends by the deadline with the best
        answer so far; never raises NoAnswer."""
        session = Session(task, network, ledger)
        degraded = ""
        answer: str | None = None
        try:
            limit = session.left_s()
            async with asyncio.timeout(None if limit == float("inf") else limit):
                answer = await self.solve(session)
        except TimeoutError:
            degraded = "the deadline passed"
        except NoAnswer as error:
            degraded = str(error)
        if answer is None:
            answer = session.best[1] if session.best is not None else ""
        right = None if task.answer is None else normal(answer) == normal(task.answer)
        asked = [network.node(name) for name in session.counts.calls]
        peak = max((node.memory_mib for node in asked), default=0.0)
        return Result(
            *(answer, session.counts, tuple(session.trace), degraded or session.degraded),
            *(session.elapsed(), right, peak),
        )


async def consult(session: Session, agent: Agent, prompt: str, **given: Any) -> Said:
    """Ask an agent: a node, or an algorithm with `prompt` as its task. Raises NoAnswer."""
    if isinstance(agent, Algorithm):
        child = session.child(prompt)
        text = await agent.solve(child)
        session.degraded = session.degraded or child.degraded
        return Said(text, child.best[0] if child.best is not None else None, node=agent.name)
    return await session.ask(agent, prompt, **given)


def name_of(agent: Agent) -> str:
    """How an agent is called."""
    return agent.name if isinstance(agent, Algorithm) else str(agent)


def bounded(name: str, value: float, least: float, most: float) -> None:
    """Raises UserError for a parameter outside its bounds; whatever has no bound has no cost that is
    known."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        nearest = min(max(value, least), most) if isinstance(value, int | float) and value == value else least
        raise UserError(
            f"{name}={value} is not supported (allowed {least:g} to {most:g}); use {name}={nearest:g}.",
            field=name,
            given=value,
            nearest=nearest,
        )


def algorithms() -> dict[str, type[Algorithm]]:
    """Every algorithm by its name, in the order of the taxonomy."""
    found: dict[str, type[Algorithm]] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"haversack.share.collaboration.{path.stem}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Algorithm)
                and value.__module__ == module.__name__
            ):
                found[value.name] = value
    return dict(sorted(found.items(), key=lambda item: _place(item[1].code)))


def _place(code: str) -> tuple[int, int, str]:
    letters = re.sub(r"[^A-Z]", "", code)
    digits = re.sub(r"\D", "", code)
    return ("V", "H", "HY").index(letters), int(digits or 0), code


def create(text: str) -> Algorithm:
    """The algorithm that a text describes: `NAME` or `CODE`, or NAME(key=value,...), nested as wanted;
    several agents are parted by +.

    Raises UserError, naming the nearest, for a name, a parameter or a value that does not hold.

    >>> create("cascade(first=vote(nodes=a+b+c,n=3),then=cloud,tau=0.8)")
    """
    tokens = list(_tokens(text))
    made, at = _parse(tokens, 0, text)
    if at != len(tokens) or not isinstance(made, Algorithm):
        raise _malformed(text)
    return made


def _tokens(text: str) -> Iterator[str]:
    word = ""
    for letter in text:
        if letter in "(),=+":
            if word.strip():
                yield word.strip()
            yield letter
            word = ""
        else:
            word += letter
    if word.strip():
        yield word.strip()


def _malformed(text: str) -> UserError:
    said = f"{text[:200]!r} is no algorithm; write NAME or NAME(key=value,...)."
    return UserError(said, field="algorithm", given=text[:200])


def _parse(tokens: list[str], at: int, text: str) -> tuple[Any, int]:
    """(algorithm, or a word) at a place, and the place behind it."""
    if at >= len(tokens) or tokens[at] in "(),=+":
        raise _malformed(text)
    word = tokens[at]
    opened = at + 1 < len(tokens) and tokens[at + 1] == "("
    known = algorithms()
    by_code = {kind.code.lower(): kind for kind in reversed(known.values())}
    kind = known.get(word) or by_code.get(word.lower()) or by_code.get(f"{word.lower()}1")
    if kind is None:
        if opened:
            raise unknown_name("algorithm", word, known)
        if not at:
            raise unknown_name("algorithm", word, known)
        return word, at + 1
    if not opened:
        return (kind(), at + 1)
    given, at = {}, at + 2
    while at < len(tokens) and tokens[at] != ")":
        key = tokens[at]
        if at + 2 >= len(tokens) or tokens[at + 1] != "=":
            raise _malformed(text)
        values, at = [], at + 2
        while True:
            value, at = _parse(tokens, at, text)
            values.append(value)
            if at < len(tokens) and tokens[at] == "+":
                at += 1
                continue
            break
        given[key] = values
        if at < len(tokens) and tokens[at] == ",":
            at += 1
    if at >= len(tokens):
        raise _malformed(text)
    return _made(kind, given), at + 1


def _made(kind: type[Algorithm], given: dict[str, list[Any]]) -> Algorithm:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, found in given.items():
        if key not in fields:
            raise unknown_name(f"parameter of {kind.name}", key, fields, field=key)
        values[key] = _value(fields[key], found)
    return kind(**values)


def _value(field: Any, found: list[Any]) -> Any:
    if field.metadata.get("agent"):
        return tuple(found) if isinstance(field.default, tuple) else found[0]
    numbers = isinstance(field.default, tuple) and all(isinstance(one, float) for one in field.default)
    if isinstance(field.default, tuple) and not (numbers and field.default):
        return tuple(str(one) for one in found)
    text = found[0]
    if isinstance(text, Algorithm):
        raise UserError(f"{field.name} is no agent.", field=field.name, given=text.name)
    try:
        if isinstance(field.default, tuple):
            return tuple(float(one) for one in found)
        if isinstance(field.default, bool):
            return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
        return type(field.default)(text) if isinstance(field.default, int | float) else text
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{field.name}={text} is no {type(field.default).__name__}.",
            field=field.name,
            given=text,
            nearest=field.default,
        ) from error
