"""V1, V2, V3 and V11: whom to ask, when to ask somebody stronger, and what to do when nobody is there.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; the article names them, details are
[inferred]); RouteLLM (Ong et al., 2024) for routing, FrugalGPT (Chen et al., 2023) and AutoMix (Madaan et
al., 2023) for cascades.
What is here: `routing` (V1): the cloud when a router's chance reaches its threshold; the router is one of
share/query_routers.py, or a model that is asked to rate the question from 1 to 5, whose invalid reply counts
as 5. `cascade` (V2): agents in order, each answer verified by its own probability, by the agreement of k
samples, by asking the model whether it holds, or by a scorer; below tau the next is asked. `step-routing`
(V3): the same choice for one step of an agent, by what it saw and did (system 39 trains such routers).
`offline` (V11): any algorithm, with time kept back for the device's own answer, a cache of equal questions,
and a queue of tasks that a better answer is still owed to.
Cost: of a cascade, cost_1 + escalations cost_2 and so on (`cascade_cost`); the samples of k=5 cost five
answers.
Limits: a cache by likeness only answers questions whose numbers are the same; meaning is more than words, so
it is off unless it is given.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from haversack.core.errors import UserError, not_allowed
from haversack.share._query_features import terms_of
from haversack.share._routing import Asked
from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer, Said
from haversack.share.collaboration._session import Result, Session, Task, normal

SYSTEM = 40

VERIFIERS = ("confidence", "consistency", "self", "scorer")
RATE = (
    "How likely is a small model to answer the following question wrongly? Reply with one whole "
    "number from 1 "
    "(surely right) to 5 (surely wrong) and nothing else.\n\n"
)
CHECK = (
    "Question:\n{question}\n\nProposed answer:\n{answer}\n\nIs the proposed answer right? Reply yes or no."
)


def cascade_cost(costs: Sequence[float], escalations: Sequence[float]) -> float:
    """The expected cost of a cascade: `costs` of its tiers, `escalations` the share that passes each but the
    last."""
    total, reached = 0.0, 1.0
    for cost, share in zip(costs, [*escalations, 0.0], strict=True):
        total += reached * cost
        reached *= share
    return total


def rated(reply: str) -> float:
    """The chance in a model's reply of 1 to 5: 0 to 1; 1 for an invalid one, which goes to the strong
    model."""
    found = re.fullmatch(r"\D{0,20}([1-5])\D{0,20}", reply.strip())
    return 1.0 if found is None else (int(found[1]) - 1) / 4


@dataclass(frozen=True)
class Routing(Algorithm):
    """V1."""

    code = "V1"
    name = "routing"
    summary = "One question, one model: the cloud when the chance that it is needed reaches a threshold."

    device: Agent = field(default="device", metadata=AGENT)
    cloud: Agent = field(default="cloud", metadata=AGENT)
    judge: Agent = field(default="", metadata=AGENT)
    threshold: float = 0.5
    router: Any = None

    def check(self, network: Network) -> None:
        """Raises UserError without a router and without a judge."""
        super().check(network)
        bounded("threshold", self.threshold, 0.0, 1.0)
        if self.router is None and not self.judge:
            raise UserError(f"{self.name} needs a router, or judge=NODE.", field="router")

    def asked(self, session: Session) -> Asked:
        """What the router looks at."""
        return Asked(session.task.prompt)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        if self.router is not None:
            p = float(self.router.p_cloud(self.asked(session)))
        else:
            p = rated((await consult(session, self.judge, RATE + question, most=8)).text)
        if p >= self.threshold:
            try:
                return session.keep((await consult(session, self.cloud, question)).text, 1.0)
            except NoAnswer as error:
                session.degraded = str(error)
        return session.keep((await consult(session, self.device, question)).text, 0.5)


@dataclass(frozen=True)
class StepRouting(Routing):
    """V3."""

    code = "V3"
    name = "step-routing"
    summary = "One step of an agent: the cloud when what was seen and done so far says that it is needed."

    def asked(self, session: Session) -> Asked:
        """The task with its history."""
        return Asked(session.task.prompt, session.task.history)


Scorer = Callable[[str, str], float]


@dataclass(frozen=True)
class Cascade(Algorithm):
    """V2. `tiers` in order, `tau` for each but the last; `scorer`: (question, answer) -> 0..1; `calibrated`
    maps a raw score to a chance; `meta` decides instead of tau where it is given."""

    code = "V2"
    name = "cascade"
    summary = "The weak model answers; where verification is not sure enough, the next stronger one does."

    tiers: tuple[Agent, ...] = field(default=("device", "cloud"), metadata=AGENT)
    tau: tuple[float, ...] = (0.6,)
    verifier: str = "confidence"
    k: int = 5
    scorer: Scorer | None = None
    calibrated: Callable[[float], float] | None = None
    meta: Any = None

    def check(self, network: Network) -> None:
        """Raises UserError for taus that do not fit the tiers, and a verifier that is none."""
        super().check(network)
        if self.verifier not in VERIFIERS:
            raise not_allowed("verifier", self.verifier, VERIFIERS)
        if self.verifier == "scorer" and self.scorer is None:
            raise UserError("verifier=scorer needs a scorer.", field="scorer")
        if len(self.tiers) < 2 or len(self.tau) not in (1, len(self.tiers) - 1):
            raise UserError("a cascade has two tiers or more and a tau for each but the last.", field="tau")
        for tau in self.tau:
            bounded("tau", tau, 0.0, 1.0)
        bounded("k", self.k, 2, 64)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        taus = self.tau * (len(self.tiers) - 1) if len(self.tau) == 1 else self.tau
        for place, agent in enumerate(self.tiers):
            last = place == len(self.tiers) - 1
            try:
                answer, score = await self.verified(session, agent, question, last)
            except NoAnswer as error:
                session.degraded = str(error)
                continue
            session.keep(answer, place + score)
            if last or self._enough(score, taus[place]):
                return answer
        if session.best is None:
            raise NoAnswer(session.degraded or "no tier answered")
        return session.best[1]

    def _enough(self, score: float, tau: float) -> bool:
        return not self.meta.escalate(score) if self.meta is not None else score >= tau

    async def verified(self, session: Session, agent: Agent, question: str, last: bool) -> tuple[str, float]:
        """(answer, score in 0..1) of one tier; the last is not verified."""
        if self.verifier == "consistency" and not last:
            answer, score = await self._consistent(session, agent, question)
        else:
            said = await consult(session, agent, question)
            answer, score = said.text, 1.0
            if last:
                return answer, score
            score = await self._score(session, agent, question, said)
        return answer, self.calibrated(score) if self.calibrated is not None else score

    async def _consistent(self, session: Session, agent: Agent, question: str) -> tuple[str, float]:
        """The most frequent of k samples and its share."""
        if isinstance(agent, Algorithm):
            said: list[Said | None] = [await consult(session, agent, question)]
        else:
            asks = [{"to": agent, "prompt": question, "seed": seed} for seed in range(1, self.k + 1)]
            said = await session.ask_all(asks)
        texts = [one.text for one in said if one is not None]
        if not texts:
            raise NoAnswer(session.degraded or "no sample came")
        most, count = Counter(map(normal, texts)).most_common(1)[0]
        return next(text for text in texts if normal(text) == most), count / len(texts)

    async def _score(self, session: Session, agent: Agent, question: str, said: Said) -> float:
        if self.verifier == "scorer" and self.scorer is not None:
            return self.scorer(question, said.text)
        if self.verifier == "confidence":
            return 0.0 if said.confidence is None else said.confidence
        prompt = CHECK.format(question=question, answer=said.text)
        checks = [{"to": agent, "prompt": prompt, "seed": seed, "most": 8} for seed in range(1, self.k + 1)]
        replies = [one.text.strip().lower() for one in await session.ask_all(checks) if one is not None]
        return sum(reply.startswith("yes") for reply in replies) / max(len(replies), 1)


class AnswerCache:
    """Answers to questions that were asked before. Two questions are the same when their words' vectors have
    a cosine of `least` or more and their numbers are the same in the same order; the oldest go first."""

    def __init__(self, size: int = 1000, least: float = 0.95) -> None:
        bounded("least", least, 0.5, 1.0)
        self.size, self.least = size, least
        self._kept: OrderedDict[str, tuple[Counter[int], tuple[str, ...], str]] = OrderedDict()

    def put(self, question: str, answer: str) -> None:
        """Remember an answer."""
        self._kept[question] = (terms_of(question), _numbers(question), answer)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)

    def get(self, question: str) -> str | None:
        """The answer to the most alike question, or None."""
        terms, numbers = terms_of(question), _numbers(question)
        best: tuple[float, str] | None = None
        for others, known, answer in self._kept.values():
            if known == numbers:
                likeness = cosine(terms, others)
                if likeness >= self.least and (best is None or likeness > best[0]):
                    best = (likeness, answer)
        return None if best is None else best[1]


def cosine(one: Counter[int], other: Counter[int]) -> float:
    """Of two counts."""
    shared = sum(count * other[term] for term, count in one.items() if term in other)
    lengths = sum(c * c for c in one.values()) * sum(c * c for c in other.values())
    return float(shared / lengths**0.5) if lengths else 0.0


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+(?:[.,]\d+)*", text))


@dataclass
class Queue:
    """Tasks whose answer was only the device's, because nobody better was reached."""

    tasks: list[Task] = field(default_factory=list)

    async def retry(self, algorithm: Algorithm, network: Network) -> list[tuple[Task, Result]]:
        """Ask again for each; those that are still degraded stay."""
        done = []
        for task in list(self.tasks):
            result = await algorithm.go(task, network)
            if not result.degraded:
                self.tasks.remove(task)
                done.append((task, result))
        return done


@dataclass(frozen=True)
class Offline(Algorithm):
    """V11. `reserve_s`: time kept back for the device's own answer."""

    code = "V11"
    name = "offline"
    summary = "Any algorithm, and the device's own answer when it ends without one; a cache, a queue."

    inner: Agent = field(default="cloud", metadata=AGENT)
    device: Agent = field(default="device", metadata=AGENT)
    reserve_s: float = 1.0
    cache: AnswerCache | None = None
    queue: Queue | None = None

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        known = self.cache.get(question) if self.cache is not None else None
        if known is not None:
            return known
        left = session.left_s()
        try:
            within = None if left == float("inf") else left - self.reserve_s
            said = await _within(consult(session, self.inner, question), within)
        except (NoAnswer, TimeoutError) as error:
            session.degraded = str(error) or "too late"
            if self.queue is not None:
                self.queue.tasks.append(session.task)
            return session.keep((await consult(session, self.device, question)).text)
        if self.cache is not None and not session.degraded:
            self.cache.put(question, said.text)
        return session.keep(said.text, 1.0)


async def _within(work: Any, seconds: float | None) -> Said:
    import asyncio

    async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
        said: Said = await work
        return said
