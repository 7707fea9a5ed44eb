"""H5 to H9: work divided by roles: pipelines, reflection, map and reduce, hierarchy, blackboard.

Paper: Large Language Models over Networks (arXiv 2605.08626, 2026; named there; every detail is [inferred]
from the works it builds on: role pipelines as in MetaGPT and ChatDev, Reflexion, map-reduce prompting,
blackboards).
What is here: `pipeline` (H5): planner, worker, critic, each reading what the one before wrote. `reflection`
(H6): a worker and a critic, until the critic says OK or `most` rounds are over. `map-reduce` (H7): pieces of
a long context to workers, their findings to one reducer. `hierarchy` (H8): a manager writes sub-tasks,
workers do them, the manager joins; workers may themselves be hierarchies, as deep as they are nested.
`blackboard` (H9): agents post to a board that all read, until one posts a final answer or a round brings
nothing new.
Cost: the number of calls is bounded by each algorithm's own limits, and by the budget before every call.
Limits: agents must keep to the form that the prompts ask for; a reply without it is taken as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer
from haversack.share.collaboration._session import Session, normal

SYSTEM = 40

PLAN = "{question}\n\nWrite a short plan for answering this, one step a line. Do not answer it."
WORK = "{question}\n\nPlan:\n{plan}\n\nFollow the plan and write the answer and nothing else."
CRITICISE = (
    "Question:\n{question}\n\nAnswer:\n{answer}\n\nIf the answer is right, reply OK. If not, say in "
    "one line what is "
    "wrong."
)
REVISE = (
    "{question}\n\nYour earlier answer:\n{answer}\n\nA critic says:\n{critique}\n\nWrite a better answer."
)
MAP = (
    "{question}\n\nHere is a part of the text:\n{part}\n\nWhat in it helps to answer? If nothing "
    "does, reply NONE."
)
REDUCE = "{question}\n\nFindings from parts of the text:\n{findings}\n\nWrite the answer and nothing else."
SPLIT = (
    "{question}\n\nSplit this into at most {most} sub-tasks that can be done apart, one a line, each"
    " beginning with '- '."
)
JOIN = "{question}\n\nResults of sub-tasks:\n{results}\n\nWrite the answer and nothing else."
POST = (
    "{question}\n\nBoard:\n{board}\n\nAdd one line that helps, or reply PASS. If the board answers "
    "the question, reply "
    "FINAL: and the answer."
)


def lines_of(text: str, most: int) -> list[str]:
    """The items of a list that a model wrote: lines that begin with a dash, a star or a number, else all
    lines."""
    found = re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+(.+)$", text, re.MULTILINE)
    found = found or [line for line in text.splitlines() if line.strip()]
    return [item.strip() for item in found[:most]]


def pieces_of(text: str, size: int, overlap: int = 0) -> list[str]:
    """A text in pieces of about `size` characters, cut at line ends, else at blanks, with `overlap`
    repeated."""
    pieces, at = [], 0
    while at < len(text):
        end = min(len(text), at + size)
        if end < len(text):
            cut = max(text.rfind("\n", at + size // 2, end), text.rfind(" ", at + size // 2, end))
            end = cut + 1 if cut > at else end
        pieces.append(text[at:end])
        at = end if end >= len(text) else max(end - overlap, at + 1)
    return pieces


@dataclass(frozen=True)
class Pipeline(Algorithm):
    """H5."""

    code = "H5"
    name = "pipeline"
    summary = "Planner, worker, critic, in this order; the worker revises once where the critic objects."

    planner: Agent = field(default="cloud", metadata=AGENT)
    worker: Agent = field(default="device", metadata=AGENT)
    critic: Agent = field(default="cloud", metadata=AGENT)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        plan = (await consult(session, self.planner, PLAN.format(question=question))).text
        answer = session.keep(
            (await consult(session, self.worker, WORK.format(question=question, plan=plan))).text
        )
        asked = CRITICISE.format(question=question, answer=answer)
        critique = (await consult(session, self.critic, asked)).text
        if is_ok(critique):
            return answer
        asked = REVISE.format(question=question, answer=answer, critique=critique)
        return session.keep((await consult(session, self.worker, asked)).text, 1.0)


def is_ok(critique: str) -> bool:
    """Whether a critic has nothing to say."""
    return bool(re.match(r"\W*ok(?:ay)?\b", critique.strip(), re.IGNORECASE))


@dataclass(frozen=True)
class Reflection(Algorithm):
    """H6."""

    code = "H6"
    name = "reflection"
    summary = "A worker revises its answer as a critic says, at most three times."

    worker: Agent = field(default="device", metadata=AGENT)
    critic: Agent = field(default="cloud", metadata=AGENT)
    most: int = 3

    def check(self, network: Network) -> None:
        """Raises UserError without a limit of rounds."""
        super().check(network)
        bounded("most", self.most, 1, 16)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        answer = session.keep((await consult(session, self.worker, question)).text)
        for place in range(1, self.most + 1):
            asked = CRITICISE.format(question=question, answer=answer)
            critique = (await consult(session, self.critic, asked)).text
            if is_ok(critique):
                return session.keep(answer, 10.0)
            asked = REVISE.format(question=question, answer=answer, critique=critique)
            answer = session.keep((await consult(session, self.worker, asked)).text, float(place))
        return answer


@dataclass(frozen=True)
class MapReduce(Algorithm):
    """H7. `size`: characters of a piece."""

    code = "H7"
    name = "map-reduce"
    summary = "Pieces of a long context go to workers in turn; one reducer reads their findings."

    workers: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    reducer: Agent = field(default="cloud", metadata=AGENT)
    size: int = 2000
    overlap: int = 100

    def check(self, network: Network) -> None:
        """Raises UserError for pieces without a size."""
        super().check(network)
        bounded("size", self.size, 16, 1 << 20)
        bounded("overlap", self.overlap, 0, self.size // 2)

    async def solve(self, session: Session) -> str:
        question = session.task.prompt
        pieces = pieces_of(session.task.context or question, self.size, self.overlap)
        asks = [
            {"to": self.workers[at % len(self.workers)], "prompt": MAP.format(question=question, part=part)}
            for at, part in enumerate(pieces)
        ]
        found = [said.text.strip() for said in await session.ask_all(asks) if said is not None]
        useful = [text for text in dict.fromkeys(found) if not re.match(r"\W*none\b", text, re.IGNORECASE)]
        if useful:
            session.keep(useful[0])
        asked = REDUCE.format(
            question=question, findings="\n".join(f"- {text}" for text in useful) or "- none"
        )
        return session.keep((await consult(session, self.reducer, asked)).text, 1.0)


@dataclass(frozen=True)
class Hierarchy(Algorithm):
    """H8. `most`: sub-tasks."""

    code = "H8"
    name = "hierarchy"
    summary = "A manager writes sub-tasks, workers do them at the same time, the manager joins their results."

    manager: Agent = field(default="cloud", metadata=AGENT)
    workers: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    most: int = 4

    def check(self, network: Network) -> None:
        """Raises UserError without a limit of sub-tasks."""
        super().check(network)
        bounded("most", self.most, 1, 64)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        plan = await consult(session, self.manager, SPLIT.format(question=question, most=self.most))
        parts = lines_of(plan.text, self.most)
        if not parts:
            raise NoAnswer("the manager wrote no sub-task")
        results = await _each(session, self.workers, parts)
        done = [f"- {part}: {text}" for part, text in zip(parts, results, strict=True) if text]
        asked = JOIN.format(question=question, results="\n".join(done))
        return session.keep((await consult(session, self.manager, asked)).text, 1.0)


async def _each(session: Session, workers: tuple[Agent, ...], parts: list[str]) -> list[str]:
    """Each part's result from the workers in turn; empty where none came."""
    import asyncio

    async def one(at: int, part: str) -> str:
        try:
            return (await consult(session, workers[at % len(workers)], part)).text
        except NoAnswer as error:
            session.degraded = session.degraded or str(error)
            return ""

    return list(await asyncio.gather(*(one(at, part) for at, part in enumerate(parts))))


@dataclass(frozen=True)
class Blackboard(Algorithm):
    """H9."""

    code = "H9"
    name = "blackboard"
    summary = "Agents post to a board that all read, until one has the answer or nothing new comes."

    nodes: tuple[Agent, ...] = field(default=("device", "cloud"), metadata=AGENT)
    rounds: int = 3

    def check(self, network: Network) -> None:
        """Raises UserError without a limit of rounds."""
        super().check(network)
        bounded("rounds", self.rounds, 1, 16)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        board: list[str] = []
        for _ in range(self.rounds):
            asked = POST.format(question=question, board="\n".join(board) or "(empty)")
            found = await session.ask_all(
                [{"to": one, "prompt": asked, "kind": "tool"} for one in self.nodes]
            )
            fresh = []
            for said in found:
                if said is None or re.match(r"\W*pass\b", said.text, re.IGNORECASE):
                    continue
                final = re.match(r"\W*final\W+(.*)", said.text.strip(), re.IGNORECASE | re.DOTALL)
                if final is not None:
                    return session.keep(final[1].strip(), 1.0)
                fresh.append(said.text.strip().splitlines()[0][:500] if said.text.strip() else "")
            known = {normal(line) for line in board}
            new = [line for line in dict.fromkeys(fresh) if line and normal(line) not in known]
            if not new:
                break
            board += new
            session.keep(board[-1])
        if not board:
            raise NoAnswer(session.degraded or "the board stayed empty")
        return board[-1]
