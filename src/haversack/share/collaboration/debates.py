"""H3 and H4: models that read one another, and who reads whom.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; named there, details [inferred]); debate
(Du et al., 2023), mixture of agents (Wang et al., 2024), sparse debate (Li et al., 2024), AgentPrune (Zhang
et al., 2024).
What is here: `debate` (H4): agents answer, read the answers of their neighbours and answer again, at most
`rounds` times, less when all agree; `mixture` (H3): layers of proposers, each reading the last layer, and an
aggregator. Topologies of a debate as lists of edges: star, chain, ring, tree, complete, random of a given
degree, and `pruned`: learned, the edges without which the consensus of recorded debates stays what it was. A
debate tells its bytes by edge, so that topologies can be held against one another.
Cost: a debate of n agents, degree d and r rounds sends n d r answers; the slowest agent of a round sets its
time, unless `quorum` or the deadline does.
Limits: a debate beats a vote only where messages carry what the reader does not know; agents that merely
repeat themselves make it a slow vote. Histories are not sent again: a prompt holds the question and the last
answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from haversack.core.errors import UserError, not_allowed
from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer
from haversack.share.collaboration._session import Session, normal
from haversack.share.collaboration.votes import tally

SYSTEM = 40

TOPOLOGIES = ("complete", "star", "chain", "ring", "tree", "random")
READ = "{question}\n\nOther agents answered:\n{answers}\n\nTake what helps, and answer the question again."
AGGREGATE = (
    "{question}\n\nSeveral models answered:\n{answers}\n\nSome may be wrong. Write the one best "
    "answer and nothing "
    "else."
)
Edges = frozenset[tuple[int, int]]


def edges_of(topology: str, n: int, degree: int = 2, seed: int = 0) -> Edges:
    """Who is read by whom: (from, to) pairs of n agents. star: the first with all others, both ways; chain:
    each reads the one before; ring: both neighbours; tree: a binary tree, both ways; random: each reads
    `degree` others. Raises UserError for an unknown one."""
    if topology == "complete":
        return frozenset((a, b) for a in range(n) for b in range(n) if a != b)
    if topology == "star":
        return frozenset(pair for other in range(1, n) for pair in ((0, other), (other, 0)))
    if topology == "chain":
        return frozenset((place, place + 1) for place in range(n - 1))
    if topology == "ring":
        pairs = {(place, (place + 1) % n) for place in range(n) if n > 1}
        return frozenset(pairs | {(b, a) for a, b in pairs})
    if topology == "tree":
        return frozenset(
            pair for one in range(1, n) for pair in (((one - 1) // 2, one), (one, (one - 1) // 2))
        )
    if topology == "random":
        rng = random.Random(seed)
        reads = {to: rng.sample([a for a in range(n) if a != to], min(degree, n - 1)) for to in range(n)}
        return frozenset((a, to) for to, others in reads.items() for a in others)
    raise not_allowed("topology", topology, TOPOLOGIES)


def pruned(edges: Edges, consensus: Callable[[Edges], Sequence[str]]) -> Edges:
    """The edges that matter: one after the other is left out, and stays out when `consensus` (of recorded
    debates, task by task) is the same without it."""
    kept, wanted = set(edges), list(consensus(edges))
    for edge in sorted(edges):
        tried = frozenset(kept - {edge})
        if list(consensus(tried)) == wanted:
            kept.discard(edge)
    return frozenset(kept)


@dataclass(frozen=True)
class Debate(Algorithm):
    """H4. `judge` decides where no consensus is reached, else the majority; answers that begin with `abstain`
    are read and do not vote; `edges` take the place of a topology."""

    code = "H4"
    name = "debate"
    summary = "Agents answer, read their neighbours' answers, and answer again until they agree."

    nodes: tuple[Agent, ...] = field(default=("device", "cloud"), metadata=AGENT)
    rounds: int = 2
    topology: str = "complete"
    degree: int = 2
    judge: Agent = field(default="", metadata=AGENT)
    quorum: int = 0
    seed: int = 0
    abstain: str = "unknown"
    edges: Any = None

    def check(self, network: Network) -> None:
        """Raises UserError without a limit of rounds, for one agent alone, for edges that lead nowhere."""
        super().check(network)
        bounded("rounds", self.rounds, 1, 16)
        bounded("nodes", len(self.nodes), 2, 64)
        bounded("degree", self.degree, 1, 63)
        count = len(self.nodes)
        if self.edges is not None and not all(
            0 <= a < count and 0 <= b < count and a != b for a, b in self.edges
        ):
            raise UserError("an edge leads to an agent that is not there.", field="edges")
        if self.edges is None:
            edges_of(self.topology, count, self.degree, self.seed)

    async def solve(self, session: Session) -> str:
        question, count = session.task.question(), len(self.nodes)
        edges = self.edges
        if edges is None:
            edges = edges_of(self.topology, count, self.degree, self.seed)
        answers: list[str | None] = await self._round(session, [question] * count)
        for _ in range(self.rounds):
            given = [answer for answer in answers if answer is not None]
            if not given:
                raise NoAnswer(session.degraded or "nobody answered")
            best, share = self._voted(given)
            session.keep(best, share)
            if share == 1.0 and len(given) == count:
                return best
            prompts = [self._prompt(question, answers, edges, to) for to in range(count)]
            fresh = await self._round(session, prompts, answers, edges)
            answers = [new if new is not None else old for new, old in zip(fresh, answers, strict=True)]
        given = [answer for answer in answers if answer is not None]
        best, share = self._voted(given)
        session.keep(best, share)
        if self.judge and share < 1.0:
            said = await consult(
                session, self.judge, AGGREGATE.format(question=question, answers=_listed(given))
            )
            return session.keep(said.text, 2.0)
        return best

    def _voted(self, given: Sequence[str]) -> tuple[str, float]:
        """(the majority's answer, its share) among those who do not abstain; nobody is sure where all do."""
        mark = normal(self.abstain)
        votes = [answer for answer in given if not (mark and normal(answer).startswith(mark))]
        if not votes:
            return given[0], 0.0
        return tally([self.answer_of(one) for one in votes], [1.0] * len(votes))

    @staticmethod
    def answer_of(said: str) -> str:
        """What of a contribution is its answer: its first line; what follows is for readers."""
        return said.strip().splitlines()[0] if said.strip() else ""

    def _prompt(self, question: str, answers: Sequence[str | None], edges: Edges, to: int) -> str:
        """What an agent reads; empty when it would read nothing new."""
        heard = [answers[a] for a, b in sorted(edges) if b == to and answers[a] is not None]
        if not heard:
            return ""
        return READ.format(question=question, answers=_listed([text for text in heard if text is not None]))

    async def _round(
        self,
        session: Session,
        prompts: Sequence[str],
        answers: Sequence[str | None] | None = None,
        edges: Edges = frozenset(),
    ) -> list[str | None]:
        """One answer an agent. Answers travel along edges: from agent to agent, not through home."""
        asks, places = [], []
        for to, (agent, prompt) in enumerate(zip(self.nodes, prompts, strict=True)):
            if prompt:
                sender = self._sender(session, edges, to, answers)
                asks.append(
                    {
                        "to": agent,
                        "prompt": prompt,
                        "sender": sender,
                        "kind": "critique" if answers else "query",
                    }
                )
                places.append(to)
        found = await session.ask_all(asks, quorum=min(self.quorum, len(asks)) or None)
        made: list[str | None] = [None] * len(self.nodes)
        for place, said in zip(places, found, strict=True):
            made[place] = None if said is None else said.text
        return made

    def _sender(self, session: Session, edges: Edges, to: int, answers: Sequence[str | None] | None) -> str:
        if answers is None:
            return session.home
        heard = [a for a, b in sorted(edges) if b == to and answers[a] is not None]
        return str(self.nodes[heard[0]]) if heard else session.home


@dataclass(frozen=True)
class Mixture(Algorithm):
    """H3."""

    code = "H3"
    name = "mixture"
    summary = "Layers of proposers, each reading the layer before, and an aggregator at the end."

    nodes: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    aggregator: Agent = field(default="cloud", metadata=AGENT)
    layers: int = 2
    proposers: int = 3

    def check(self, network: Network) -> None:
        """Raises UserError for layers or proposers without bounds."""
        super().check(network)
        bounded("layers", self.layers, 1, 8)
        bounded("proposers", self.proposers, 1, 64)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        prompt = question
        answers: list[str] = []
        for layer in range(self.layers):
            asks = [
                {
                    "to": self.nodes[at % len(self.nodes)],
                    "prompt": prompt,
                    "seed": 1 + at + layer * self.proposers,
                }
                for at in range(self.proposers)
            ]
            fresh = [said.text for said in await session.ask_all(asks) if said is not None]
            answers = fresh or answers
            if not answers:
                raise NoAnswer(session.degraded or "no proposal came")
            best, share = tally(answers, [1.0] * len(answers))
            session.keep(best, share / 2)
            prompt = AGGREGATE.format(question=question, answers=_listed(answers))
        try:
            return session.keep((await consult(session, self.aggregator, prompt)).text, 1.0)
        except NoAnswer as error:
            session.degraded = str(error)
            assert session.best is not None
            return session.best[1]


def _listed(answers: Sequence[str]) -> str:
    return "\n".join(f"- {answer}" for answer in answers)
