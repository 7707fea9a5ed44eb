"""Any OpenAI-compatible server as an agent's language model: asked for one line, its cost and bytes
counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from haversack.core.errors import HaversackError
from haversack.share._hera_agents import Prompted, Unreachable

T = TypeVar("T")
ANSWER_TOKENS = 24
DEADLINE_S = 30.0


class Chat(Protocol):
    """What is needed of a client: `chat` gives an answer with `text` and a `meter` (sent_bytes,
    received_bytes, cost_usd); `ceiling` the most (USD, bytes up) that a request can take. `chat` raises a
    HaversackError when there is no answer."""

    def ceiling(self, body: dict[str, Any], most: int) -> tuple[float, int]: ...

    async def chat(self, body: dict[str, Any], *, deadline_s: float, most: int) -> Any: ...


class Asking:
    """A `Completer` over the client that `make` gives, which lives in one event loop of a thread of its
    own."""

    def __init__(self, make: Callable[[], Chat], deadline_s: float = DEADLINE_S) -> None:
        self.deadline_s = deadline_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="step cloud", daemon=True)
        self._thread.start()

        async def made() -> Chat:
            return make()

        self.client = self._wait(made())

    def __call__(self, prompt: str) -> tuple[str, Mapping[str, float]]:
        """Raises Unreachable for every way in which there is no answer."""
        try:
            reply = self._wait(
                self.client.chat(body_of(prompt), deadline_s=self.deadline_s, most=ANSWER_TOKENS)
            )
        except HaversackError as error:
            raise Unreachable(str(error)) from error
        meter = reply.meter
        spent = {
            "cost_usd": float(meter.cost_usd),
            "uplink_bytes": float(meter.sent_bytes),
            "downlink_bytes": float(meter.received_bytes),
        }
        return str(reply.text), spent

    def ceiling(self, prompt: str) -> Mapping[str, float]:
        """The most that asking this can take."""
        cost, up = self.client.ceiling(body_of(prompt), ANSWER_TOKENS)
        return {"cost_usd": cost, "uplink_bytes": float(up)}

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def body_of(prompt: str) -> dict[str, Any]:
    """The request: one user message, greedy, up to the end of a line."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stop": ["\n"],
    }


def endpoint_agent(url: str, *, model: str = "", key_env: str = "") -> Prompted:
    """The agent of a server's address. Raises UserError for an address that is none."""
    from haversack.share._endpoint import Address, Endpoint

    address = Address(url, model=model, key_env=key_env)
    asking = Asking(lambda: Endpoint(address))
    return Prompted(asking, asking.ceiling, hide=hidden)


def hidden(text: str) -> tuple[str, Callable[[str], str]]:
    """A text without personal data, and how an answer is read back: the privacy guard of queries."""
    from haversack.share.redaction import redact

    found = redact({"messages": [{"role": "user", "content": text}]})
    shown: str = found.body["messages"][0]["content"]
    return shown, found.vault.restore
