"""H1, H2 and H11: many answers to one question, and which of them to take.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; named there, details [inferred]);
self-consistency (Wang et al., 2022); the weights are those of the optimal vote of independent voters (Nitzan
and Paroush, 1982); LLM-Blender (Jiang et al., 2023) for ranking by pairs and fusion.
What is here: `vote` (H1): n samples of one node or one of each of several, the majority, or with weights
log(p / (1 - p)) of what each is known to get right, p kept inside .01 to .99, or robust: the `faulty`
heaviest votes for an answer do not count, so that so many false nodes cannot decide alone. `best-of` (H2): n
samples and a scorer, or the node's own confidence. `blend` (H11): candidates compared by pairs, both ways
round, by a judge; the best few are fused. `error_correlation`: models of one family err together, which a
vote cannot mend; measure it.
Cost: n answers; blend asks the judge n (n - 1) times.
Limits: a vote needs answers of one form (a word, a number, a choice); nodes that declare different ones are
refused.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer, Said
from haversack.share.collaboration._session import Session, normal

SYSTEM = 40

WEIGHTS = ("equal", "accuracy", "confidence")
COMPARE = (
    "Question:\n{question}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\nWhich answer is better? Reply A or B and "
    "nothing else."
)
FUSE = "Question:\n{question}\n\nCandidate answers, best first:\n{answers}\n\nWrite the one best answer."


def majority_accuracy(p: float, n: int) -> float:
    """How often the majority of n independent voters is right, each with chance p (n odd)."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n // 2 + 1, n + 1))


def vote_weight(p: float) -> float:
    """log(p / (1 - p)), p kept inside .01 to .99."""
    kept = min(max(p, 0.01), 0.99)
    return math.log(kept / (1 - kept))


def tally(answers: Sequence[str], weights: Sequence[float], faulty: int = 0) -> tuple[str, float]:
    """(the answer with the heaviest votes, its share of all weight). With `faulty` = f, the f heaviest votes
    of every answer do not count: f nodes that lie cannot make an answer win that no honest node gives. Ties
    go to the answer that came first."""
    votes: dict[str, list[float]] = defaultdict(list)
    shown: dict[str, str] = {}
    for answer, weight in zip(answers, weights, strict=True):
        votes[normal(answer)].append(weight)
        shown.setdefault(normal(answer), answer)
    counted = {key: sum(sorted(found, reverse=True)[faulty:]) for key, found in votes.items()}
    if not any(value > 0 for value in counted.values()):
        counted = {key: sum(found) for key, found in votes.items()}
    best = max(counted, key=lambda key: (counted[key], -list(shown).index(key)))
    total = sum(max(weight, 0.0) for weight in weights)
    return shown[best], min(1.0, sum(votes[best]) / total) if total > 0 else 0.0


def vote_entropy(answers: Sequence[str]) -> float:
    """Bits of disagreement among answers; 0 when all are the same."""
    counts: dict[str, int] = defaultdict(int)
    for answer in answers:
        counts[normal(answer)] += 1
    shares = [count / len(answers) for count in counts.values()]
    return -sum(share * math.log2(share) for share in shares)


def error_correlation(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Correlations [models, models] of errors, `right` [models, tasks]; 0 with a model that never errs."""
    wrong = (~np.asarray(right, bool)).astype(np.float64)
    centred = wrong - wrong.mean(1, keepdims=True)
    spread = np.sqrt((centred**2).mean(1))
    spread[spread < 1e-12] = np.inf
    found: NDArray[np.float64] = centred @ centred.T / wrong.shape[1] / np.outer(spread, spread)
    np.fill_diagonal(found, 1.0)
    return found


@dataclass(frozen=True)
class Vote(Algorithm):
    """H1. One node: n samples. Several: each once. `quorum`: answers that are enough (0: all); answers that
    begin with `abstain` do not vote, unless nobody votes otherwise."""

    code = "H1"
    name = "vote"
    summary = (
        "Several answers, and the one most of them give; votes may weigh what each is known to get right."
    )

    nodes: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    n: int = 5
    weights: str = "equal"
    faulty: int = 0
    quorum: int = 0
    abstain: str = "unknown"

    def check(self, network: Network) -> None:
        """Raises UserError for nodes of different answers, for weights that are not known, for more faulty
        nodes than a vote survives."""
        super().check(network)
        bounded("n", self.n, 1, 1000)
        if self.weights not in WEIGHTS:
            raise not_allowed("weights", self.weights, WEIGHTS)
        nodes = [network.node(one) for one in self.nodes if isinstance(one, str)]
        schemas = {node.schema for node in nodes}
        if len(schemas) > 1:
            said = ", ".join(sorted(schemas))
            raise UserError(
                f"a vote needs answers of one form and these nodes give {said}.", field="nodes", given=said
            )
        if self.weights == "accuracy":
            unknown = [node.name for node in nodes if node.accuracy is None]
            if unknown:
                raise UserError(f"weights=accuracy needs the accuracy of {unknown[0]}.", field="accuracy")
        voters = self.n if len(self.nodes) == 1 else len(self.nodes)
        if self.faulty and 2 * self.faulty >= voters:
            raise UserError(
                f"{voters} voters cannot outvote {self.faulty} liars; have {2 * self.faulty + 1} or more.",
                field="faulty",
                given=self.faulty,
                nearest=(voters - 1) // 2,
            )

    async def solve(self, session: Session) -> str:
        answers = await self.answers(session)
        mark = normal(self.abstain)
        answers = [one for one in answers if not (mark and normal(one.text).startswith(mark))] or answers
        weights = [self._weight(session, said) for said in answers]
        answer, share = tally([said.text for said in answers], weights, self.faulty)
        return session.keep(answer, share)

    async def answers(self, session: Session) -> list[Said]:
        """Every answer that came. Raises NoAnswer when none did."""
        question = session.task.question()
        if len(self.nodes) == 1 and isinstance(self.nodes[0], str):
            asks = [{"to": self.nodes[0], "prompt": question, "seed": seed} for seed in range(1, self.n + 1)]
        else:
            asks = [{"to": one, "prompt": question} for one in self.nodes if isinstance(one, str)]
        found = await session.ask_all(asks, quorum=self.quorum or None)
        for inner in self.nodes:
            if isinstance(inner, Algorithm):
                try:
                    found.append(await consult(session, inner, question))
                except NoAnswer as error:
                    session.degraded = str(error)
        said = [one for one in found if one is not None]
        if not said:
            raise NoAnswer(session.degraded or "nobody voted")
        return said

    def _weight(self, session: Session, said: Said) -> float:
        if self.weights == "accuracy" and said.node in session.network.nodes:
            return vote_weight(session.network.node(said.node).accuracy or 0.5)
        if self.weights == "confidence" and said.confidence is not None:
            return max(said.confidence, 0.01)
        return 1.0


@dataclass(frozen=True)
class BestOf(Algorithm):
    """H2."""

    code = "H2"
    name = "best-of"
    summary = "Several answers of one model, and the one that a scorer likes best."

    node: Agent = field(default="device", metadata=AGENT)
    n: int = 5
    scorer: Callable[[str, str], float] | None = None

    def check(self, network: Network) -> None:
        """Raises UserError for n outside 1 to 1000."""
        super().check(network)
        bounded("n", self.n, 1, 1000)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        asks = [{"to": self.node, "prompt": question, "seed": seed} for seed in range(1, self.n + 1)]
        found = [said for said in await session.ask_all(asks) if said is not None]
        if not found:
            raise NoAnswer(session.degraded or "no sample came")
        for said in found:
            score = said.confidence or 0.0
            session.keep(said.text, self.scorer(question, said.text) if self.scorer is not None else score)
        assert session.best is not None
        return session.best[1]


@dataclass(frozen=True)
class Blend(Algorithm):
    """H11. `top`: how many candidates are fused; 1 takes the best as it is."""

    code = "H11"
    name = "blend"
    summary = "Candidates compared by pairs, both ways round; the best few are fused into one answer."

    nodes: tuple[Agent, ...] = field(default=("device",), metadata=AGENT)
    judge: Agent = field(default="cloud", metadata=AGENT)
    top: int = 1

    def check(self, network: Network) -> None:
        """Raises UserError for fewer than two candidates, or more than 16, whose pairs nobody waits for."""
        super().check(network)
        bounded("nodes", len(self.nodes), 2, 16)
        bounded("top", self.top, 1, len(self.nodes))

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        found = await session.ask_all([{"to": one, "prompt": question} for one in self.nodes])
        answers = [said.text for said in found if said is not None]
        if not answers:
            raise NoAnswer(session.degraded or "there is no candidate")
        session.keep(answers[0])
        ranked = await self._ranked(session, question, answers)
        session.keep(ranked[0], 0.5)
        if self.top == 1 or len(ranked) == 1:
            return ranked[0]
        listed = "\n".join(f"{place}. {answer}" for place, answer in enumerate(ranked[: self.top], start=1))
        said = await consult(session, self.judge, FUSE.format(question=question, answers=listed))
        return session.keep(said.text, 1.0)

    async def _ranked(self, session: Session, question: str, answers: list[str]) -> list[str]:
        """Best first, by comparisons won; what nobody compared stays in order."""
        distinct = list({normal(answer): answer for answer in answers}.values())
        pairs = list(itertools.permutations(range(len(distinct)), 2))
        asks = [
            {
                "to": self.judge,
                "prompt": COMPARE.format(question=question, a=distinct[one], b=distinct[other]),
                "kind": "critique",
                "most": 8,
            }
            for one, other in pairs
        ]
        wins = [0.0] * len(distinct)
        for (one, other), said in zip(pairs, await session.ask_all(asks), strict=True):
            if said is not None:
                wins[one if said.text.strip().upper().startswith("A") else other] += 1
        order = sorted(range(len(distinct)), key=lambda at: -wins[at])
        return [distinct[at] for at in order]
