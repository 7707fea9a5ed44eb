"""V9 and V10: what of a conversation is sent, and what of a text may be.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; context over turns is one of its design
questions, the policies are [inferred]).
What is here: `context` (V9): for every turn, what history goes along: all of it, the last k turns, a rolling
summary, the turns that are most like the question, or only what is new since this endpoint was last asked.
`Views` keeps what each endpoint has seen, so that a change of endpoint tells its cost: the turns that it
lacks. `guard` (V10): any algorithm, on a text whose personal data are placeholders, restored in its answer
(share/redaction.py); `block` keeps such a task on the device instead.
Cost: a summary is one call more, made where `summariser` is. Repeated history is prefill that is paid again
each turn.
Limits: `delta` needs an endpoint that remembers the conversation; a server that forgets must be sent all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from haversack.core.errors import not_allowed
from haversack.share._query_features import terms_of
from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult, name_of
from haversack.share.collaboration._network import Network, tokens_of
from haversack.share.collaboration._session import Session
from haversack.share.redaction import Vault, redact

SYSTEM = 40

POLICIES = ("full", "last", "summary", "relevant", "delta")
ACTIONS = ("hide", "block", "allow")
SUMMARISE = "Summarise this conversation in three sentences, keeping names and numbers:\n\n{history}"
Turn = tuple[str, str]


def shown(turns: Sequence[Turn]) -> str:
    """Turns as a text."""
    return "\n".join(f"User: {asked}\nAssistant: {said}" for asked, said in turns)


def relevant(turns: Sequence[Turn], question: str, k: int) -> list[Turn]:
    """The k turns most like a question by the cosine of their words, in their order."""
    from haversack.share.collaboration.cascades import cosine

    terms = terms_of(question)
    likeness = [cosine(terms, terms_of(" ".join(turn))) for turn in turns]
    best = sorted(range(len(turns)), key=lambda at: (-likeness[at], -at))[:k]
    return [turns[at] for at in sorted(best)]


@dataclass
class Views:
    """How many turns of a conversation each endpoint has seen."""

    seen: dict[str, int] = field(default_factory=dict)

    def missing(self, endpoint: str, turns: Sequence[Turn]) -> list[Turn]:
        """The turns that it has not seen."""
        return list(turns[self.seen.get(endpoint, 0) :])

    def resync_tokens(self, endpoint: str, turns: Sequence[Turn]) -> int:
        """What asking it now costs in tokens beyond the question."""
        lacking = self.missing(endpoint, turns)
        return tokens_of(shown(lacking)) if lacking else 0

    def asked(self, endpoint: str, turns: Sequence[Turn]) -> None:
        """It has seen all of these, and answers the next."""
        self.seen[endpoint] = len(turns) + 1


@dataclass(frozen=True)
class Context(Algorithm):
    """V9. `k`: turns of last and relevant."""

    code = "V9"
    name = "context"
    summary = "Sends of a conversation what the policy says: all, the last, a summary, the relevant, the new."

    node: Agent = field(default="cloud", metadata=AGENT)
    summariser: Agent = field(default="device", metadata=AGENT)
    policy: str = "last"
    k: int = 3
    views: Views = field(default_factory=Views, compare=False)

    def check(self, network: Network) -> None:
        """Raises UserError for an unknown policy."""
        super().check(network)
        if self.policy not in POLICIES:
            raise not_allowed("policy", self.policy, POLICIES)
        bounded("k", self.k, 1, 1000)

    async def solve(self, session: Session) -> str:
        turns, question = session.task.history, session.task.question()
        sent = await self.sent(session)
        prompt = f"{sent}\n\n{question}" if sent else question
        said = await consult(session, self.node, prompt)
        self.views.asked(name_of(self.node), turns)
        return session.keep(said.text, 1.0)

    async def sent(self, session: Session) -> str:
        """The history that goes along."""
        turns = session.task.history
        if not turns:
            return ""
        if self.policy == "full":
            return shown(turns)
        if self.policy == "last":
            return shown(turns[-self.k :])
        if self.policy == "relevant":
            return shown(relevant(turns, session.task.prompt, self.k))
        if self.policy == "delta":
            return shown(self.views.missing(name_of(self.node), turns))
        older, recent = turns[:-1], turns[-1:]
        if not older:
            return shown(recent)
        summary = (
            await consult(session, self.summariser, SUMMARISE.format(history=shown(older)), most=128)
        ).text
        return f"Earlier: {summary}\n{shown(recent)}"


@dataclass(frozen=True)
class Guard(Algorithm):
    """V10. `action` on personal data: hide it, block (the device answers), allow."""

    code = "V10"
    name = "guard"
    summary = "Any algorithm on a text without its personal data, which come back in the answer."

    inner: Agent = field(default="cloud", metadata=AGENT)
    device: Agent = field(default="device", metadata=AGENT)
    action: str = "hide"
    private: tuple[str, ...] = ()

    def check(self, network: Network) -> None:
        """Raises UserError for an unknown action."""
        super().check(network)
        if self.action not in ACTIONS:
            raise not_allowed("action", self.action, ACTIONS)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        safe, vault = hide(question, self.private)
        if self.action == "allow" or not vault.values:
            return session.keep((await consult(session, self.inner, question)).text, 1.0)
        if self.action == "block":
            return session.keep((await consult(session, self.device, question)).text, 1.0)
        if isinstance(self.inner, Algorithm):
            child = session.child(safe, context="", privacy="redacted")
            text = await self.inner.solve(child)
            session.degraded = child.degraded
        else:
            text = (await session.ask(self.inner, safe, label="redacted")).text
        return session.keep(restore(vault, text), 1.0)


def hide(text: str, private: Sequence[str] = ()) -> tuple[str, Vault]:
    """(text with placeholders, the vault that restores it)."""
    made = redact({"messages": [{"role": "user", "content": text}]}, private)
    content: str = made.body["messages"][0]["content"]
    return content, made.vault


def restore(vault: Vault, text: str) -> str:
    """A text with its values back."""
    return vault.restore(text)
