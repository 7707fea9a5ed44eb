"""Any OpenAI-compatible server as an agent's language model: asked for one line, its cost and bytes
counted. A model without a chat template is asked for a plain completion."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from haversack.core.errors import HaversackError, UserError
from haversack.share._hera_agents import Prompted, Unreachable

T = TypeVar("T")
ANSWER_TOKENS = 24
DEADLINE_S = 30.0
MISTAKES = {401: "key", 403: "key", 404: "address or model"}
"""Refusals that no later request would mend, and what is wrong."""


class Chat(Protocol):
    """What is needed of a client: `chat`, of a body with messages or with a prompt, gives an answer with
    `text` and a `meter` (sent_bytes, received_bytes, cost_usd); `ceiling` the most (USD, bytes up) that a
    request can take. `chat` raises a HaversackError when there is no answer."""

    def ceiling(self, body: dict[str, Any], most: int) -> tuple[float, int]: ...

    async def chat(self, body: dict[str, Any], *, deadline_s: float, most: int) -> Any: ...


class Asking:
    """A `Completer` over the client that `make` gives, which lives in one event loop of a thread of its
    own."""

    def __init__(self, make: Callable[[], Chat], deadline_s: float = DEADLINE_S) -> None:
        self.deadline_s = deadline_s
        self.plain = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="step cloud", daemon=True)
        self._thread.start()

        async def made() -> Chat:
            return make()

        self.client = self._wait(made())

    def __call__(self, prompt: str) -> tuple[str, Mapping[str, float]]:
        """Raises UserError where the server refuses a key, an address or a model, Unreachable for every
        other way in which there is no answer."""
        try:
            reply = self._asked(prompt)
        except HaversackError as error:
            status = getattr(error, "status", 0)
            if status in MISTAKES:
                raise UserError(f"{error} Check its {MISTAKES[status]}.", field="url") from error
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
        cost, up = self.client.ceiling(body_of(prompt, self.plain), ANSWER_TOKENS)
        return {"cost_usd": cost, "uplink_bytes": float(up)}

    def _asked(self, prompt: str) -> Any:
        try:
            return self._once(prompt)
        except HaversackError as error:
            said = getattr(error, "body", b"").lower()
            if self.plain or getattr(error, "status", 0) != 400 or b"chat template" not in said:
                raise
            self.plain = True
            return self._once(prompt)

    def _once(self, prompt: str) -> Any:
        body = body_of(prompt, self.plain)
        return self._wait(self.client.chat(body, deadline_s=self.deadline_s, most=ANSWER_TOKENS))

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def body_of(prompt: str, plain: bool = False) -> dict[str, Any]:
    """The request: one user message, or `plain` a text to go on with; greedy, up to the end of a line."""
    asked = {"prompt": prompt} if plain else {"messages": [{"role": "user", "content": prompt}]}
    return {**asked, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stop": ["\n"]}


def endpoint_agent(url: str, *, model: str = "", key_env: str = "", local: bool = False) -> Prompted:
    """The agent of a server's address; `local`: the device's own, which is told everything and costs
    nothing. Raises UserError for an address that is none."""
    from haversack.share._endpoint import Address, Endpoint

    address = Address(url, model=model, key_env=key_env)
    asking = Asking(lambda: Endpoint(address))
    if local:
        return Prompted(lambda prompt: (asking(prompt)[0], {}))
    return Prompted(asking, asking.ceiling, hide=hidden)


def hidden(text: str) -> tuple[str, Callable[[str], str]]:
    """A text without personal data, and how an answer is read back: the privacy guard of queries."""
    from haversack.share.redaction import redact

    found = redact({"messages": [{"role": "user", "content": text}]})
    shown: str = found.body["messages"][0]["content"]
    return shown, found.vault.restore
