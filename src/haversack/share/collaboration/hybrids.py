"""HY: device swarms with a cloud behind them.

Paper: Large Language Models over Networks (arXiv 2605.08626, 2026: that vertical and horizontal patterns
compose is its claim; the three patterns are [inferred]).
What is here: `swarm` : devices vote, and the cloud is asked where the votes' entropy is above `h` bits;
`cluster-debate`: devices debate, and a tie is the cloud's to break; `two-tier`: devices propose in layers,
and the cloud joins them only where that is within the budget, else the best vote stands.
Cost: of the swarm, n device answers and the share of tasks that the devices disagree on.
Limits: devices of one family agree on the same mistakes, and then nobody asks the cloud:
`votes.error_correlation` says how far they do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer
from haversack.share.collaboration._session import Session
from haversack.share.collaboration.debates import Debate, Mixture
from haversack.share.collaboration.votes import Vote, tally, vote_entropy

SYSTEM = 40


@dataclass(frozen=True)
class Swarm(Algorithm):
    """HY. `h`: bits of entropy above which the cloud is asked."""

    code = "HY1"
    name = "swarm"
    summary = "Devices vote; where they disagree, the cloud decides."

    nodes: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    cloud: Agent = field(default="cloud", metadata=AGENT)
    h: float = 0.5
    n: int = 5
    weights: str = "equal"

    def check(self, network: Network) -> None:
        """Raises UserError for what the vote refuses."""
        super().check(network)
        bounded("h", self.h, 0.0, 64.0)
        self._vote().check(network)

    def _vote(self) -> Vote:
        return Vote(self.nodes, self.n, self.weights)

    async def solve(self, session: Session) -> str:
        vote = self._vote()
        try:
            answers = await vote.answers(session)
        except NoAnswer:
            return session.keep((await consult(session, self.cloud, session.task.question())).text, 1.0)
        weights = [vote._weight(session, said) for said in answers]
        texts = [said.text for said in answers]
        best, share = tally(texts, weights)
        session.keep(best, share / 2)
        if vote_entropy(texts) <= self.h:
            return best
        try:
            return session.keep((await consult(session, self.cloud, session.task.question())).text, 1.0)
        except NoAnswer as error:
            session.degraded = str(error)
            return best


@dataclass(frozen=True)
class ClusterDebate(Algorithm):
    """HY."""

    code = "HY2"
    name = "cluster-debate"
    summary = "Devices debate near one another; what they cannot agree on, the cloud decides."

    nodes: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    cloud: Agent = field(default="cloud", metadata=AGENT)
    rounds: int = 2
    topology: str = "ring"

    def check(self, network: Network) -> None:
        """Raises UserError for what the debate refuses."""
        super().check(network)
        self._debate().check(network)

    def _debate(self) -> Debate:
        return Debate(self.nodes, self.rounds, self.topology, judge=self.cloud)

    async def solve(self, session: Session) -> str:
        try:
            return await self._debate().solve(session)
        except NoAnswer as error:
            session.degraded = str(error)
            if session.best is None:
                raise
            return session.best[1]


@dataclass(frozen=True)
class TwoTier(Algorithm):
    """HY. Money and bytes of the cloud's part are those of the task's budget."""

    code = "HY3"
    name = "two-tier"
    summary = "Devices propose in layers; the cloud joins them where the budget allows it."

    nodes: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    cloud: Agent = field(default="cloud", metadata=AGENT)
    layers: int = 1
    proposers: int = 3

    def check(self, network: Network) -> None:
        """Raises UserError for what the mixture refuses."""
        super().check(network)
        self._mixture().check(network)

    def _mixture(self) -> Mixture:
        return Mixture(self.nodes, self.cloud, self.layers, self.proposers)

    async def solve(self, session: Session) -> str:
        return await self._mixture().solve(session)
