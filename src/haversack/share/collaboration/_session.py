"""One task on a network: every question is held against the budget before it is sent, and everything is
counted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from haversack.core.budget import Budget
from haversack.core.errors import UserError, not_allowed
from haversack.core.ledger import Ledger
from haversack.share.collaboration._network import (
    LABELS,
    Ask,
    Message,
    Network,
    NoAnswer,
    OverBudget,
    Said,
    Unreachable,
)
from haversack.share.collaboration.trust import screen

ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Task:
    """What is wanted. `context`: a long document that the home node holds; `modalities`: name -> data;
    `privacy`: local-only, redacted or any; `answer`: the right one, where it is known; `topic`: for experts;
    `most`: tokens of one answer."""

    prompt: str
    context: str = ""
    modalities: Mapping[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    privacy: str = "any"
    answer: str | None = None
    topic: str = ""
    history: tuple[tuple[str, str], ...] = ()
    most: int = ANSWER_TOKENS

    def __post_init__(self) -> None:
        if self.privacy not in LABELS:
            raise not_allowed("privacy", self.privacy, LABELS)
        if self.most < 1:
            raise UserError(
                f"most={self.most} leaves no room for an answer.", field="most", given=self.most, nearest=1
            )

    def question(self) -> str:
        """The prompt, with the context where there is one."""
        return f"{self.context}\n\n{self.prompt}" if self.context else self.prompt


@dataclass(frozen=True)
class Step:
    """One entry of a trace: a message and what came of it."""

    at: float
    sender: str
    to: str
    kind: str
    nbytes: int
    outcome: str
    text: str = ""


@dataclass
class Counts:
    """What a task took. `tokens`: (read, written) by node; `nbytes` by (sender, receiver)."""

    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)
    nbytes: dict[tuple[str, str], int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0
    left_bytes: int = 0
    energy_mj: float = 0.0


@dataclass(frozen=True)
class Result:
    """`answer`: the best there was; `degraded`: why it is not the algorithm's own, empty when it is;
    `seconds`: from task to answer, on the clock it ran on; `right`: whether it is the known answer."""

    answer: str
    counts: Counts
    trace: tuple[Step, ...]
    degraded: str
    seconds: float
    right: bool | None = None
    peak_mib: float = 0.0

    def calls_of(self, *nodes: str) -> int:
        """How often these nodes were asked."""
        return sum(self.counts.calls.get(node, 0) for node in nodes)

    @property
    def total_bytes(self) -> int:
        """Bytes over all links."""
        return sum(self.counts.nbytes.values())


def normal(text: str) -> str:
    """An answer as votes compare it."""
    return " ".join(text.strip().strip(".").casefold().split())


class Session:
    """A task on its way. `ask` is the only door to the network."""

    def __init__(self, task: Task, network: Network, ledger: Ledger | None = None) -> None:
        self.task, self.network, self.ledger = task, network, ledger
        self.budget = task.budget
        self.counts = Counts()
        self.trace: list[Step] = []
        self.began = network.now()
        self.best: tuple[float, str] | None = None
        self.degraded = ""
        self.recording: list[Message] = []
        self._numbers = itertools.count(1)
        self._reserved = [0.0, 0.0]  # USD and bytes of what is under way, also in sessions of parts

    @property
    def home(self) -> str:
        """Where the task is."""
        return self.network.home

    def elapsed(self) -> float:
        """Seconds since the task began."""
        return self.network.now() - self.began

    def left_s(self) -> float:
        """Seconds until the deadline; infinite without one."""
        limit = self.budget.latency_ms
        return float("inf") if limit is None else limit / 1e3 - self.elapsed()

    def keep(self, answer: str, score: float = 0.0) -> str:
        """Remember an answer as the best so far, unless a better one is."""
        if self.best is None or score >= self.best[0]:
            self.best = (score, answer)
        return answer

    async def ask(
        self,
        to: str,
        prompt: str,
        *,
        sender: str = "",
        kind: str = "query",
        modalities: Mapping[str, str] | None = None,
        seed: int = 0,
        most: int | None = None,
        within_s: float | None = None,
        label: str = "",
    ) -> Said:
        """Ask a node. Raises OverBudget before anything is sent that would not fit, Unreachable when no
        answer comes within `within_s` (the deadline), UserError for local-only text that would leave its
        domain."""
        node, sender = self.network.node(to), sender or self.home
        most = self.task.most if most is None else most
        message = Message(
            id=next(self._numbers),
            sender=sender,
            to=to,
            kind=kind,
            text=prompt,
            modalities=dict(modalities or {}),
            label=label or self.task.privacy,
        )
        leaves = self.network.leaves(sender, to)
        if leaves and message.label == "local-only":
            raise UserError(
                f"a local-only task may not leave {self.network.node(sender).where} for {to}; keep to nodes "
                "of its domain or give it another privacy.",
                field="privacy",
                given="local-only",
                nearest="redacted",
            )
        asked = Ask(prompt, message.modalities, seed, most)
        cost = node.price.cost(node.engine.ceiling(asked), most)
        crossing = message.nbytes if leaves else 0
        self._require(node.name, cost, crossing, within_s)
        self._reserved[0] += cost
        self._reserved[1] += crossing
        self.recording.append(message)
        try:
            limit = min(self.left_s(), within_s if within_s is not None else float("inf"))
            async with asyncio.timeout(None if limit == float("inf") else max(0.0, limit)):
                await self.network.carry(sender, to, message.nbytes)
                said = await self.network.compute(node, lambda: node.engine.say(asked), prompt)
                back = Message(id=next(self._numbers), sender=to, to=sender, role="assistant", text=said.text)
                await self.network.carry(to, sender, back.nbytes)
        except TimeoutError as error:
            self._note(message, "late", crossing)
            raise Unreachable(f"{to} did not answer in time") from error
        except (Unreachable, asyncio.CancelledError) as error:
            self._note(message, str(error) or "nobody waited for it", crossing)
            raise
        finally:
            self._reserved[0] -= cost
            self._reserved[1] -= crossing
        orders = screen(said.text) if self.network.screened and leaves else []
        self._note(message, "gave orders" if orders else "answered", crossing, said, back.nbytes)
        if orders:
            raise Unreachable(f"{to} tried to give orders ({orders[0][:60]!r})")
        return said

    def _require(self, to: str, cost: float, crossing: int, within_s: float | None) -> None:
        """Raises OverBudget."""
        budget, counts = self.budget, self.counts
        spent = counts.cost_usd + self._reserved[0] + cost
        if budget.cost_usd is not None and spent > budget.cost_usd:
            raise OverBudget(f"asking {to} would cost {spent:.6f} USD in all", "cost_usd")
        sent = counts.left_bytes + self._reserved[1] + crossing
        if budget.uplink_kib is not None and sent > budget.uplink_kib * 1024:
            raise OverBudget(f"asking {to} would send {sent:.0f} bytes in all", "uplink_kib")
        if budget.privacy == "device" and crossing:
            raise OverBudget(f"asking {to} would leave the device", "privacy")
        if self.left_s() <= 0 or (within_s is not None and within_s <= 0):
            raise OverBudget(f"there is no time left to ask {to}", "latency_ms")

    def _note(
        self, message: Message, outcome: str, crossing: int, said: Said | None = None, back: int = 0
    ) -> None:
        counts, pair = self.counts, (message.sender, message.to)
        counts.calls[message.to] = counts.calls.get(message.to, 0) + 1
        counts.left_bytes += crossing
        if message.sender != message.to:
            counts.nbytes[pair] = counts.nbytes.get(pair, 0) + message.nbytes
            counts.nbytes[pair[::-1]] = counts.nbytes.get(pair[::-1], 0) + back
        if said is not None:
            node = self.network.node(message.to)
            read, written = counts.tokens.get(node.name, (0, 0))
            counts.tokens[node.name] = (read + said.prompt_tokens, written + said.completion_tokens)
            cost = node.price.cost(said.prompt_tokens, said.completion_tokens)
            counts.cost_usd += cost
            counts.energy_mj += 1e3 * node.watts * node.seconds(said.prompt_tokens, said.completion_tokens)
            if self.ledger is not None:
                self.ledger.add("cost_usd", cost, f"{message.sender} to {message.to}: {message.kind}")
        if self.ledger is not None and crossing:
            self.ledger.add("uplink_bytes", crossing, f"{message.sender} to {message.to}: {message.kind}")
            self.ledger.add("downlink_bytes", back, f"{message.to} to {message.sender}")
        text = said.text if said is not None else ""
        self.trace.append(Step(self.elapsed(), *pair, message.kind, message.nbytes + back, outcome, text))
        if self.network.audit is not None:
            size = message.nbytes + back
            self.network.audit.add({"from": pair[0], "to": pair[1], "nbytes": size, "outcome": outcome})

    async def ask_all(
        self, asks: Sequence[Mapping[str, Any]], *, quorum: int | None = None, within_s: float | None = None
    ) -> list[Said | None]:
        """Ask several at once ({"to", "prompt", ...}); None for whoever gives no answer. With `quorum` the
        rest is not waited for once so many have answered."""
        tasks = [asyncio.ensure_future(self.ask(**{"within_s": within_s, **one})) for one in asks]
        pending, answered = set(tasks), 0
        try:
            while pending and (quorum is None or answered < quorum):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                answered += sum(one.exception() is None for one in done)
        finally:
            for task in tasks:
                if not task.done():
                    task.cancel()
            for task in tasks:
                with contextlib.suppress(BaseException):
                    await task
        return [self._outcome(task) for task in tasks]

    def _outcome(self, task: asyncio.Future[Said]) -> Said | None:
        if task.cancelled():
            return None
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, NoAnswer):
            self.degraded = self.degraded or str(error)
            return None
        raise error

    def child(self, prompt: str, **changes: Any) -> Session:
        """A session of a part of the task, inside this one's budget, whose counts are this one's."""
        made = Session(dataclasses.replace(self.task, prompt=prompt, **changes), self.network, self.ledger)
        made.counts, made.trace, made.began = self.counts, self.trace, self.began
        made.recording, made._numbers = self.recording, self._numbers
        made._reserved = self._reserved
        return made
