"""Where a request goes and what it may take: everything that is decided before anything is sent."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from haversack.core.budget import PRIVACY, Budget
from haversack.core.ledger import Ledger
from haversack.share._prices import Price, prompt_ceiling
from haversack.share._routing import Asked, Router

if TYPE_CHECKING:
    from haversack.share._endpoint import Endpoint

LEAST_TOKENS = 16
"""A cloud that may write fewer is not worth asking."""
PROBES = 20
"""Every so many requests a cloud that was too slow is asked again, to see whether it still is."""


class Decision(NamedTuple):
    """`where`: device, cloud, or cascade (the device first, the cloud when it is unsure); `why` in a few
    words, for the ledger; `p`: the router's."""

    where: str
    why: str
    p: float | None = None


class Refusal(Exception):  # noqa: N818 - a verdict, not a fault
    """The cloud may not be asked; `field` is the budget's, empty where it was no budget."""

    def __init__(self, why: str, field: str = "") -> None:
        super().__init__(why)
        self.field = field


def asked_of(body: dict[str, Any]) -> Asked:
    """What a router looks at: for an agent's step the task, what was seen and done, and the tools; for a
    plain query its text and the turns before."""
    messages = [one for one in body.get("messages") or () if isinstance(one, dict)]
    users = [text_of(one) for one in messages if one.get("role") == "user"]
    tools = [tool.get("function") or {} for tool in body.get("tools") or () if isinstance(tool, dict)]
    names = [tool.get("name") for tool in tools if isinstance(tool, dict)]
    admissible = tuple(name for name in names if isinstance(name, str))
    if any(one.get("role") == "tool" for one in messages):
        return Asked(users[0] if users else "", tuple(_steps(messages)), admissible)
    turns, said = [], ""
    for one in messages[:-1]:
        if one.get("role") == "user":
            said = text_of(one)
        elif one.get("role") == "assistant":
            turns.append((said, text_of(one)))
            said = ""
    return Asked(users[-1] if users else "", tuple(turns), admissible)


def _steps(messages: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(what was seen, what was then done) of an agent's messages; last what is seen now."""
    seen = ""
    for one in messages:
        if one.get("role") == "assistant" and one.get("tool_calls"):
            calls = [call.get("function") or {} for call in one["tool_calls"] if isinstance(call, dict)]
            yield seen, "; ".join(f"{call.get('name')}({call.get('arguments')})" for call in calls)
        elif one.get("role") == "assistant":
            yield seen, text_of(one)
        elif one.get("role") in ("user", "tool"):
            seen = text_of(one)
    if messages[-1].get("role") != "assistant":
        yield seen, ""


def text_of(message: dict[str, Any]) -> str:
    """A message's text, parts joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def stricter(one: str, other: str) -> str:
    """The stricter of two privacy levels."""
    return PRIVACY[min(PRIVACY.index(one), PRIVACY.index(other))]


@dataclass
class Judge:
    """Decides by policy and budgets. `threshold`: of the router; `tau`: of a cascade's confidence."""

    policy: str
    budget: Budget
    ledger: Ledger
    router: Router | None = None
    threshold: float = 0.5
    cloud: Endpoint | None = None

    def __post_init__(self) -> None:
        self._reserved_usd = self._reserved_bytes = 0.0
        self._lock = threading.Lock()
        self._passed_over = 0

    def choose(
        self, body: dict[str, Any], wanted: str, privacy: str, attachments: tuple[str, ...]
    ) -> Decision:
        """Where a request goes by its own wish, by what may leave and by policy."""
        if wanted == "device":
            return Decision("device", "asked for")
        if self.cloud is None:
            return Decision("device", "there is no cloud")
        if privacy == "device":
            return Decision("device", "privacy: nothing may leave")
        if attachments and privacy != "any":
            return Decision("device", f"privacy: {', '.join(attachments)} may not leave")
        if (rest := self.cloud.resting()) > 0:
            return Decision("device", f"the cloud failed; it is left alone for {rest:.1f} s")
        if self._too_slow():
            return Decision("device", "the cloud is slower than the budget of time")
        if wanted == "cloud":
            return Decision("cloud", "asked for")
        if self.policy == "router" and self.router is not None:
            p = min(1.0, max(0.0, float(self.router.p_cloud(asked_of(body)))))
            where = "cloud" if p >= self.threshold else "device"
            return Decision(where, f"router p={p:.3f} threshold={self.threshold:.3f}", p)
        return Decision(self.policy, f"policy {self.policy}")

    def _too_slow(self) -> bool:
        limit = self.budget.latency_ms
        if limit is None or self.cloud is None or self.cloud.first_s * 1e3 <= limit:
            return False
        self._passed_over += 1
        return self._passed_over % PROBES != 0

    @contextlib.contextmanager
    def room(self, body: dict[str, Any], most: int) -> Iterator[int]:
        """Tokens that the cloud may write for `body`, at most `most`, held against the budgets of money and
        bytes together with what is under way. Raises Refusal, naming the budget, when nothing useful fits."""
        assert self.cloud is not None
        price = self.cloud.address.price
        choices = max(1, body.get("n") or 1)
        with self._lock:
            spent = self.ledger.demand()
            most = self._affordable(body, most, choices, price, spent["cost_usd"] + self._reserved_usd)
            cost, sends = self.cloud.ceiling(body, most)
            sends *= self.cloud.address.tries
            up = spent["uplink_kib"] + (self._reserved_bytes + sends) / 1024
            if self.budget.uplink_kib is not None and up > self.budget.uplink_kib:
                raise Refusal("the budget of bytes is used up", "uplink_kib")
            self._reserved_usd += cost
            self._reserved_bytes += sends
        try:
            yield most
        finally:
            with self._lock:
                self._reserved_usd -= cost
                self._reserved_bytes -= sends

    def _affordable(self, body: dict[str, Any], most: int, choices: int, price: Price, spent: float) -> int:
        if self.budget.cost_usd is None:
            return most
        left = self.budget.cost_usd - spent - price.cost(prompt_ceiling(body), 0)
        if price.output_usd > 0:
            most = min(most, int(left * 1e6 / price.output_usd / choices)) if left > 0 else 0
        if left < 0 or most < LEAST_TOKENS:
            raise Refusal("the budget of money is used up", "cost_usd")
        return most


def checked(data: bytes) -> dict[str, Any]:
    """A chat request as plain data. Raises ApiError (400) for what is none."""
    from haversack.share._errors import ApiError

    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not JSON.", code="invalid_json") from error
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or len(messages) > 4096:
        said = "messages is missing or no list of messages."
        raise ApiError(400, said, param="messages", code="invalid_type")
    if not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages):
        raise ApiError(400, "a message has no role.", param="messages", code="invalid_type")
    for name in ("n", "max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ApiError(400, f"{name} is no whole number of 1 or more.", param=name, code="invalid_type")
    for name, kind in (("stream", bool), ("stream_options", dict), ("tools", list), ("model", str)):
        value = body.get(name)
        if value is not None and not isinstance(value, kind):
            raise ApiError(400, f"{name} is not of its type.", param=name, code="invalid_type")
    return dict(body)
