"""H10 and H12: whoever does it best for the money: auctions of sub-tasks, and experts found by trying.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; named there, details [inferred]); the
contract net (Smith, 1980); Thompson sampling (Thompson, 1933).
What is here: `contract-net` (H10): workers bid an expected quality and a cost for every sub-task, the manager
awards them so that quality is largest within what may be spent: a knapsack with one choice a sub-task, solved
exactly. `experts` (H12): for every topic a Beta belief in each node; a draw from each decides who is asked,
and what came of it is learned.
Cost: the knapsack keeps only bids that no cheaper one beats; its table is as long as there are such sums.
Limits: bids are what nodes say of themselves, or what is known of them: nobody checks them but results.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from haversack.core.errors import UserError
from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer
from haversack.share.collaboration._session import Session
from haversack.share.collaboration.roles import JOIN, SPLIT, lines_of

SYSTEM = 40

BID = (
    "Task:\n{task}\n\nHow likely are you to do it right, and at what cost? Reply with JSON and nothing else: "
    '{{"quality": 0..1, "cost": USD}}'
)


@dataclass(frozen=True)
class Bid:
    """What a worker offers for a sub-task."""

    worker: str
    quality: float
    cost: float


def read_bid(worker: str, reply: str) -> Bid | None:
    """The bid in a reply; None when there is none in it."""
    found = re.search(r"\{[^{}]*\}", reply)
    try:
        said = json.loads(found[0]) if found else {}
        quality, cost = float(said["quality"]), float(said["cost"])
    except (ValueError, KeyError, TypeError):
        return None
    if not (0 <= quality <= 1 and cost >= 0 and math.isfinite(cost)):
        return None
    return Bid(worker, quality, cost)


def award(bids: Sequence[Sequence[Bid]], money: float) -> list[Bid | None]:
    """The awards, one a sub-task, None where none is affordable: largest sum of quality within `money`, the
    cheaper of equals. Exact."""
    fronts: list[tuple[float, float, tuple[Bid | None, ...]]] = [(0.0, 0.0, ())]
    for offered in bids:
        grown = []
        for quality, cost, chosen in fronts:
            for bid in (None, *offered):
                more, price = (0.0, 0.0) if bid is None else (bid.quality, bid.cost)
                if cost + price <= money + 1e-12:
                    grown.append((quality + more, cost + price, (*chosen, bid)))
        grown.sort(key=lambda one: (one[1], -one[0]))
        fronts, best = [], -1.0
        for one in grown:
            if one[0] > best + 1e-12:
                fronts.append(one)
                best = one[0]
    return list(max(fronts, key=lambda one: (one[0], -one[1]))[2])


@dataclass(frozen=True)
class ContractNet(Algorithm):
    """H10. `bidder`: (worker, sub-task) -> Bid, where workers are not asked themselves; `money`: USD for the
    work."""

    code = "H10"
    name = "contract-net"
    summary = (
        "Workers bid quality and cost for sub-tasks; the manager awards the best set that is affordable."
    )

    manager: Agent = field(default="cloud", metadata=AGENT)
    workers: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    most: int = 4
    money: float = 0.01
    bidder: Callable[[str, str], Bid] | None = None

    def check(self, network: Network) -> None:
        """Raises UserError for money below 0, or sub-tasks without a limit."""
        super().check(network)
        bounded("most", self.most, 1, 32)
        bounded("money", self.money, 0.0, 1e6)
        if not all(isinstance(worker, str) for worker in self.workers):
            raise UserError("workers that bid are nodes.", field="workers")

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        parts = await self._parts(session, question)
        bids = [await self._bids(session, part) for part in parts]
        left = self.money
        if session.budget.cost_usd is not None:
            left = min(left, session.budget.cost_usd - session.counts.cost_usd)
        chosen = award(bids, left)
        asks = [
            {"to": bid.worker, "prompt": part}
            for bid, part in zip(chosen, parts, strict=True)
            if bid is not None
        ]
        results = [said.text for said in await session.ask_all(asks) if said is not None]
        if not results:
            raise NoAnswer(session.degraded or "no bid was affordable")
        if len(parts) == 1:
            return session.keep(results[0], 1.0)
        session.keep(results[-1])
        joined = JOIN.format(question=question, results="\n".join(f"- {text}" for text in results))
        return session.keep((await consult(session, self.manager, joined)).text, 1.0)

    async def _parts(self, session: Session, question: str) -> list[str]:
        if self.most == 1:
            return [question]
        said = await consult(session, self.manager, SPLIT.format(question=question, most=self.most))
        return lines_of(said.text, self.most) or [question]

    async def _bids(self, session: Session, part: str) -> list[Bid]:
        if self.bidder is not None:
            return [self.bidder(worker, part) for worker in self.workers]
        asks = [
            {"to": one, "prompt": BID.format(task=part), "kind": "control", "most": 32}
            for one in self.workers
        ]
        found = await session.ask_all(asks)
        bids = [
            read_bid(str(worker), said.text)
            for worker, said in zip(self.workers, found, strict=True)
            if said is not None
        ]
        return [bid for bid in bids if bid is not None]


@dataclass
class Beliefs:
    """Beta beliefs (right + 1, wrong + 1) by topic and node, of Thompson sampling."""

    seed: int = 0
    counts: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def choose(self, topic: str, nodes: Sequence[str]) -> str:
        """The node whose draw is highest."""
        draws = {
            node: self._random.betavariate(*self.counts.get((topic, node), (1.0, 1.0))) for node in nodes
        }
        return max(draws, key=lambda node: draws[node])

    def learn(self, topic: str, node: str, right: float) -> None:
        """What came of it, 0 to 1. Raises UserError for anything else."""
        bounded("right", right, 0.0, 1.0)
        a, b = self.counts.get((topic, node), (1.0, 1.0))
        self.counts[topic, node] = (a + right, b + 1 - right)


@dataclass(frozen=True)
class Experts(Algorithm):
    """H12. `judge` (0..1 for question and answer) teaches the beliefs; without one, the task's known answer
    does."""

    code = "H12"
    name = "experts"
    summary = (
        "For every topic the node that a draw from what is believed of each favours; results are learned."
    )

    nodes: tuple[Agent, ...] = field(default=("device", "cloud"), metadata=AGENT)
    beliefs: Beliefs = field(default_factory=Beliefs, compare=False)
    judge: Callable[[str, str], float] | None = None

    async def solve(self, session: Session) -> str:
        from haversack.share.collaboration._session import normal

        task = session.task
        names = [str(one) for one in self.nodes]
        while names:
            chosen = self.beliefs.choose(task.topic, names)
            try:
                said = await session.ask(chosen, task.question())
            except NoAnswer as error:
                session.degraded = str(error)
                names.remove(chosen)
                continue
            if self.judge is not None:
                self.beliefs.learn(task.topic, chosen, self.judge(task.prompt, said.text))
            elif task.answer is not None:
                self.beliefs.learn(task.topic, chosen, float(normal(said.text) == normal(task.answer)))
            return session.keep(said.text, 1.0)
        raise NoAnswer(session.degraded or "no expert answered")
