"""Nodes that answer, links between them, and messages that are counted: what every algorithm runs on.

Only messages of a task cross a link, never tensors. A node answers in text, by an engine: a function in
virtual time (share/collaboration/_clock.py) or an OpenAI-compatible server over a real socket; the algorithms
do not know which. Links are those of core/link.py, one a direction; without one, messages take no time.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from haversack.core.errors import UserError, not_allowed, unknown_name
from haversack.core.link import Link
from haversack.share._prices import BYTES_A_TOKEN, MESSAGE_TOKENS, Price

TIERS = ("device", "edge", "cloud")
KINDS = ("query", "draft", "critique", "vote", "summary", "tool", "control")
LABELS = ("local-only", "redacted", "any")
"""What a message's privacy label allows: nothing of it leaves its domain, text without personal data, all."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What crosses a link. `sender` and `to` are nodes, `kind` one of KINDS, `parent` the message it
    answers."""

    id: int
    sender: str
    to: str
    role: str = "user"
    kind: str = "query"
    text: str = ""
    modalities: dict[str, str] = {}
    label: str = "any"
    parent: int = 0
    signature: str = ""

    @property
    def nbytes(self) -> int:
        """Its size on the wire."""
        return len(msgspec.json.encode(self))


@dataclass(frozen=True)
class Said:
    """An answer: its text, how sure the node is of it (None where it cannot say), tokens read and written."""

    text: str
    confidence: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    node: str = ""


@dataclass(frozen=True)
class Ask:
    """What an engine gets. `seed` tells samples of one prompt from one another; `most`: tokens to write."""

    prompt: str
    modalities: Mapping[str, str]
    seed: int
    most: int


class Engine(Protocol):
    """Answers; `real` tells that it takes real time, so that none is added."""

    @property
    def real(self) -> bool: ...

    def ceiling(self, ask: Ask) -> int:
        """Tokens that what is asked has at most."""
        ...

    async def say(self, ask: Ask) -> Said:
        """The answer. Raises Unreachable when there is none."""
        ...


class NoAnswer(Exception):  # noqa: N818 - a state of the network, not a fault
    """A node gave no answer; the text says why."""


class Unreachable(NoAnswer):
    """Its link or the node itself is down, or it was too late."""


class OverBudget(NoAnswer):
    """Asking it would pass a budget; `field` names which."""

    def __init__(self, said: str, field: str) -> None:
        super().__init__(said)
        self.field = field


@dataclass(frozen=True)
class FunctionEngine:
    """An engine that is a function of what is asked: (text, confidence or None)."""

    function: Callable[[Ask], tuple[str, float | None]]
    real: bool = False

    def ceiling(self, ask: Ask) -> int:
        """As the network counts tokens itself."""
        return tokens_of(ask.prompt)

    async def say(self, ask: Ask) -> Said:
        """Answer at once; the node adds the time it takes."""
        text, confidence = self.function(ask)
        return Said(cut(text, ask.most), confidence)


class EndpointEngine:
    """An engine behind an OpenAI-compatible server."""

    real = True

    def __init__(self, endpoint: Any, *, confidence: bool = False, deadline_s: float = 120.0) -> None:
        self.endpoint, self.confidence, self.deadline_s = endpoint, confidence, deadline_s

    def ceiling(self, ask: Ask) -> int:
        """One token a byte, and what a template adds."""
        shown = sum(len(data) for data in ask.modalities.values())
        return len(ask.prompt.encode("utf-8", "replace")) + shown + 2 * MESSAGE_TOKENS

    async def say(self, ask: Ask) -> Said:
        """Raises Unreachable for a server that is down, slow, busy or broken."""
        from haversack.share._endpoint import EndpointError

        content: Any = ask.prompt
        if ask.modalities:
            pictures = [{"type": "image_url", "image_url": {"url": url}} for url in ask.modalities.values()]
            content = [{"type": "text", "text": ask.prompt}, *pictures]
        body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": ask.most}
        if ask.seed:
            body |= {"seed": ask.seed, "temperature": 0.8}
        if self.confidence:
            body["logprobs"] = True
        try:
            reply = await self.endpoint.chat(body, deadline_s=self.deadline_s, most=ask.most)
        except EndpointError as error:
            raise Unreachable(f"{error.kind}: {error}") from error
        usage = reply.meter.usage
        return Said(reply.text.strip(), reply.confidence, usage.prompt, usage.completion)


def tokens_of(text: str) -> int:
    """Tokens of a text where no tokenizer says."""
    return max(1, math.ceil(len(text.encode()) / BYTES_A_TOKEN))


def cut(text: str, most: int) -> str:
    """At most `most` tokens of a text."""
    data = text.encode()[: int(most * BYTES_A_TOKEN)]
    return data.decode(errors="ignore")


@dataclass(frozen=True)
class Node:
    """A model somewhere. Rates are tokens a second (0: no time); `domain`: privacy domain, messages inside
    one do not count as leaving; `down`: (from, to) seconds when it does not answer; `accuracy`: what it is
    known to get right, for weighted votes; `schema`: the form of its answers (text, number, choice, json)."""

    name: str
    engine: Engine
    tier: str = "device"
    price: Price = field(default_factory=Price)
    prefill_tokens_s: float = 0.0
    decode_tokens_s: float = 0.0
    domain: str = ""
    down: tuple[tuple[float, float], ...] = ()
    accuracy: float | None = None
    memory_mib: float = 0.0
    watts: float = 0.0
    schema: str = "text"

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "_").isidentifier():
            raise UserError(f"{self.name!r} is no name of a node.", field="name", given=self.name)
        if self.tier not in TIERS:
            raise not_allowed("tier", self.tier, TIERS)
        for name in ("prefill_tokens_s", "decode_tokens_s", "memory_mib", "watts"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name}={value} is not possible.", field=name, given=value)

    @property
    def where(self) -> str:
        """Its privacy domain: its own name where none is given and it is no device."""
        return self.domain or ("device" if self.tier == "device" else self.name)

    def seconds(self, prompt_tokens: int, completion_tokens: int) -> float:
        """How long it computes."""
        read = prompt_tokens / self.prefill_tokens_s if self.prefill_tokens_s else 0.0
        return read + (completion_tokens / self.decode_tokens_s if self.decode_tokens_s else 0.0)


class Network:
    """Nodes by name and links by (sender, receiver). `home` is where tasks begin and answers are wanted.
    `screened`: answers from another domain that give orders to their reader count as none; `audit`: a log
    that gets every message's fate (share/collaboration/trust.py).

    Raises UserError for two nodes of one name and for links between nodes that are not there.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        links: Mapping[tuple[str, str], Link] | None = None,
        home: str = "",
        *,
        screened: bool = False,
        audit: Any = None,
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        if len(self.nodes) < len(nodes) or not nodes:
            raise UserError("a network has one node or more, each with its own name.", field="nodes")
        self.home = home or nodes[0].name
        self.screened, self.audit = screened, audit
        self.links = dict(links or {})
        for end in (self.home, *itertools.chain.from_iterable(self.links)):
            self.node(end)
        self._busy: dict[str, asyncio.Lock] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._offset = self._last = 0.0

    def node(self, name: str) -> Node:
        """Raises UserError, naming the nearest, when there is none."""
        if name not in self.nodes:
            raise unknown_name("node", name, self.nodes)
        return self.nodes[name]

    def of_tier(self, tier: str) -> list[str]:
        """The nodes of a tier, in their order."""
        return [node.name for node in self.nodes.values() if node.tier == tier]

    def now(self) -> float:
        """Seconds since the network was first used. On another event loop it goes on where it was."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._busy = loop, {}
            self._offset = self._last - loop.time()
        self._last = self._offset + loop.time()
        return self._last

    def leaves(self, sender: str, to: str) -> bool:
        """Whether a message between two nodes crosses a border of privacy domains."""
        return sender != to and self.node(sender).where != self.node(to).where

    async def carry(self, sender: str, to: str, nbytes: int) -> None:
        """Wait while a message crosses the link, if there is one."""
        link = self.links.get((sender, to))
        if link is not None and sender != to:
            now = self.now()
            delivery = link.transfer(nbytes, now)
            await asyncio.sleep(max(0.0, delivery.arrived_at - now))

    async def compute(self, node: Node, work: Callable[[], Awaitable[Said]], prompt: str) -> Said:
        """The node's answer, one at a time, with the time it takes. Raises Unreachable while it is down."""
        async with self._busy.setdefault(node.name, asyncio.Lock()):
            now = self.now()
            if any(begin <= now < end for begin, end in node.down):
                raise Unreachable(f"{node.name} is down")
            said = await work()
            read = said.prompt_tokens or tokens_of(prompt)
            written = said.completion_tokens or tokens_of(said.text)
            if not node.engine.real:
                await asyncio.sleep(node.seconds(read, written))
            return Said(said.text, said.confidence, read, written, node.name)
