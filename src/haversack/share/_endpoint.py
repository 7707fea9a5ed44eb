"""A client of any OpenAI-compatible server that nobody needs to trust: deadlines, retries, a count of bytes,
a check of what the server says it used, and rest for a server that fails.

Every failure is an `EndpointError` of one kind: `down` (no connection), `slow` (the deadline passed),
`limited` (429), `failed` (5xx), `refused` (other 4xx: asking again would not help), `broken` (what came is no
answer). After a few failures in a row a server rests, twice as long each time up to half a minute, and is
then tried with one request.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from haversack.core.errors import HaversackError, MissingExtraError, UserError
from haversack.share._prices import Price, Usage, judge_usage, prompt_ceiling

if TYPE_CHECKING:
    import httpx

MOST_ANSWER = 32 << 20
HEAD_BYTES = 400
"""Of a request or response on the wire beside its body, about."""
RESTS = 30.0
AGAIN = ("down", "limited", "failed", "broken")


class EndpointError(HaversackError):
    """A server that did not answer. `kind` as above; `status` and `body` of a refusal, as it came."""

    def __init__(
        self, kind: str, sentence: str, *, status: int = 0, body: bytes = b"", wait_s: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.kind, self.status, self.body, self.wait_s = kind, status, body, wait_s


@dataclass(frozen=True)
class Address:
    """Where a server is and how it is asked. `url`: its base, with or without /v1; `model`: empty takes the
    first that it names; `key`, or `key_env`: the environment variable that holds the key, which is never
    shown or stored."""

    url: str
    model: str = ""
    key_env: str = ""
    key: str = field(default="", repr=False)
    price: Price = field(default_factory=Price)
    tries: int = 3
    connect_s: float = 5.0
    stall_s: float = 30.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"{self.url!r} is no address of a server; write http://HOST:PORT or https://HOST.",
                field="url",
                given=self.url,
                nearest=f"http://{self.url}" if parts.scheme not in ("http", "https") and self.url else None,
            )
        if parts.username or parts.password:
            raise UserError("an address holds no password; name the key's variable.", field="url")
        if self.key_env and not os.environ.get(self.key_env):
            raise UserError(
                f"the environment variable {self.key_env} is not set; it should hold the server's key.",
                field="key_env",
                given=self.key_env,
            )

    @property
    def base(self) -> str:
        """The address up to and with /v1."""
        url = self.url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"


@dataclass
class Meter:
    """What one request moved and used so far; complete when its answer is."""

    sent_bytes: int = 0
    received_bytes: int = 0
    text_bytes: int = 0
    first_s: float | None = None
    seconds: float = 0.0
    tries: int = 0
    said: Any = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, "estimated"))
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Reply:
    """A whole answer: the server's `body`, and what it took."""

    body: dict[str, Any]
    meter: Meter

    @property
    def text(self) -> str:
        """The first choice's text."""
        choice = self.body["choices"][0]
        content = (choice.get("message") or {}).get("content", choice.get("text"))
        return content if isinstance(content, str) else ""

    @property
    def confidence(self) -> float | None:
        """The mean probability of the first choice's tokens, where the server told their logarithms."""
        logs = (self.body["choices"][0].get("logprobs") or {}).get("content") or ()
        found = [one.get("logprob") for one in logs if isinstance(one, dict)]
        values = [value for value in found if isinstance(value, float | int)]
        return math.exp(sum(values) / len(values)) if values else None


class Endpoint:
    """One server, asked from one event loop; `close` when done."""

    def __init__(self, address: Address, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("asking another server", "httpx", "share") from error
        self._httpx = httpx
        self.address = address
        self.model = address.model
        timeout = httpx.Timeout(address.stall_s, connect=address.connect_s)
        headers = {"user-agent": "haversack"}
        key = address.key or (os.environ[address.key_env] if address.key_env else "")
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(timeout=timeout, headers=headers, transport=transport)
        self._failures = 0
        self._rest_until = 0.0
        self.first_s = 0.0
        """Seconds to the first byte of an answer, smoothed; 0 before any."""

    async def close(self) -> None:
        """End its connections."""
        await self._client.aclose()

    def resting(self) -> float:
        """Seconds until it may be asked again; 0 when it may be now."""
        return max(0.0, self._rest_until - time.monotonic())

    async def models(self, deadline_s: float = 10.0) -> list[str]:
        """The names of its models. Raises EndpointError."""
        meter = Meter()
        async with self._opened("GET", "/models", None, meter, deadline_s) as response:
            record = _json(await self._read(response, meter))
        names = [one.get("id") for one in record.get("data") or () if isinstance(one, dict)]
        return [name for name in names if isinstance(name, str)]

    def ceiling(self, body: dict[str, Any], most: int) -> tuple[float, int]:
        """(USD, bytes up) that a request can take at most when it may write `most` tokens a choice."""
        choices = body.get("n") if isinstance(body.get("n"), int) else 1
        cost = self.address.price.cost(prompt_ceiling(body), most * max(1, choices or 1))
        return cost, len(_encoded(body)) + HEAD_BYTES + len(self.model)

    async def chat(
        self, body: dict[str, Any], *, deadline_s: float, most: int, meter: Meter | None = None
    ) -> Reply:
        """The whole answer to a chat, or with `prompt` in the place of messages to a plain completion; asked
        again after failures that pass, within `deadline_s`.

        What failed tries moved is in `meter` also when it raises EndpointError.
        """
        meter = meter if meter is not None else Meter()
        asked = await self._addressed({**body, "stream": False}, deadline_s)
        asked.pop("stream_options", None)
        try:
            async with asyncio.timeout(deadline_s):
                return await self._tried(asked, meter, most)
        except TimeoutError as error:
            self._failed()
            said = f"{self.address.url} did not answer within {deadline_s:g} s."
            raise EndpointError("slow", said) from error

    async def stream(
        self, body: dict[str, Any], *, first_s: float, deadline_s: float, most: int, meter: Meter
    ) -> AsyncIterator[dict[str, Any]]:
        """The chunks of an answer as they come; the first within `first_s`. Not asked again once begun.

        `meter` is complete when it ends. Raises EndpointError, also in the middle.
        """
        asked = await self._addressed({**body, "stream": True}, first_s)
        asked["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        began = time.monotonic()
        try:
            async with self._opened("POST", "/chat/completions", asked, meter, first_s) as response:
                lines = self._lines(response, meter).__aiter__()
                done = False
                while not done:
                    left = (first_s if meter.first_s is None else deadline_s) - (time.monotonic() - began)
                    try:
                        line = await asyncio.wait_for(lines.__anext__(), max(0.0, left))
                    except StopAsyncIteration:
                        break
                    except TimeoutError as error:
                        self._failed()
                        raise EndpointError("slow", f"{self.address.url} was too slow.") from error
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    done = data == "[DONE]"
                    if not done:
                        chunk = _chunk(data)
                        if meter.first_s is None and chunk.get("choices"):
                            meter.first_s = time.monotonic() - began
                        meter.said = chunk.get("usage") or meter.said
                        meter.text_bytes += _text_bytes(chunk, "delta")
                        yield chunk
                if not done and meter.first_s is None:
                    raise EndpointError("broken", f"{self.address.url} ended without an answer.")
                self._worked(meter.first_s or 0.0)
        except self._httpx.HTTPError as error:
            self._failed()
            said = f"{self.address.url} broke off ({type(error).__name__})."
            raise EndpointError("broken", said) from error
        finally:
            meter.seconds = time.monotonic() - began
            self._charge(meter, asked, most)

    async def _tried(self, asked: dict[str, Any], meter: Meter, most: int) -> Reply:
        began = time.monotonic()
        path = "/completions" if "prompt" in asked else "/chat/completions"
        wait = 0.25
        while True:
            try:
                async with self._opened("POST", path, asked, meter, None) as response:
                    record = _json(await self._read(response, meter))
                choices = record.get("choices")
                if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
                    raise EndpointError("broken", f"{self.address.url} sent no choices.")
                break
            except EndpointError as error:
                if error.kind not in AGAIN or meter.tries >= self.address.tries:
                    raise
                await asyncio.sleep(random.uniform(0, wait) if error.wait_s is None else error.wait_s)
                wait = min(wait * 2, 8.0)
        meter.seconds = meter.first_s = time.monotonic() - began
        meter.said = record.get("usage")
        meter.text_bytes = _text_bytes(record, "message")
        self._charge(meter, asked, most)
        self._worked(meter.seconds)
        return Reply(record, meter)

    def _charge(self, meter: Meter, asked: dict[str, Any], most: int) -> None:
        if meter.received_bytes == 0:
            return  # nothing came: nothing to pay
        sent = len(
            _encoded({name: asked.get(name) for name in ("messages", "prompt", "tools") if name in asked})
        )
        choices = max(1, asked.get("n") or 1)
        meter.usage = judge_usage(
            meter.said,
            sent=sent,
            ceiling=prompt_ceiling(asked),
            text_bytes=meter.text_bytes,
            most=most * choices,
        )
        meter.cost_usd = self.address.price.cost(meter.usage.prompt, meter.usage.completion)

    async def _addressed(self, body: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """The body with the server's model, asked for once where none was named."""
        if not self.model:
            names = await self.models(min(deadline_s, 10.0))
            if not names:
                raise EndpointError("broken", f"{self.address.url} names no model.")
            self.model = names[0]
        return {**body, "model": self.model}

    def _opened(self, method: str, path: str, body: Any, meter: Meter, deadline_s: float | None) -> _Opened:
        return _Opened(self, method, path, body, meter, deadline_s)

    async def _lines(self, response: Any, meter: Meter) -> AsyncIterator[str]:
        """The lines of a stream as they come, all of them together within the longest answer."""
        held = b""
        async for piece in response.aiter_bytes():
            meter.received_bytes += len(piece)
            if meter.received_bytes > MOST_ANSWER:
                raise EndpointError("broken", f"{self.address.url} does not stop writing.")
            *whole, held = (held + piece).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").rstrip("\r")
        yield held.decode("utf-8", "replace")

    async def _read(self, response: Any, meter: Meter) -> bytes:
        pieces, size = [], 0
        try:
            async for piece in response.aiter_bytes():
                pieces.append(piece)
                size += len(piece)
                meter.received_bytes += len(piece)
                if size > MOST_ANSWER:
                    raise EndpointError("broken", f"{self.address.url} does not stop writing.")
        except self._httpx.HTTPError as error:
            self._failed()
            said = f"{self.address.url} broke off ({type(error).__name__})."
            raise EndpointError("broken", said) from error
        return b"".join(pieces)

    def _worked(self, first_s: float) -> None:
        self._failures = 0
        self._rest_until = 0.0
        self.first_s = first_s if self.first_s == 0 else 0.7 * self.first_s + 0.3 * first_s

    def _failed(self, wait_s: float | None = None) -> None:
        self._failures += 1
        if wait_s is not None or self._failures >= self.address.tries:
            rest = min(RESTS, 2.0 ** (self._failures - self.address.tries))
            rest = rest if wait_s is None else min(wait_s, 300.0)
            self._rest_until = max(self._rest_until, time.monotonic() + rest)


class _Opened:
    """A request under way, as a context: its response, once the server said yes."""

    def __init__(
        self, end: Endpoint, method: str, path: str, body: Any, meter: Meter, deadline_s: float | None
    ) -> None:
        self._end, self._meter, self._deadline_s = end, meter, deadline_s
        content = None if body is None else _encoded(body)
        headers = {"content-type": "application/json"} if content is not None else {}
        url = end.address.base + path
        self._request = end._client.build_request(method, url, content=content, headers=headers)
        self._sends = len(content or b"") + HEAD_BYTES
        self._response: Any = None

    async def __aenter__(self) -> Any:
        end, meter = self._end, self._meter
        meter.tries += 1
        meter.sent_bytes += self._sends
        try:
            async with asyncio.timeout(self._deadline_s):
                self._response = await end._client.send(self._request, stream=True)
        except (end._httpx.ConnectError, end._httpx.ConnectTimeout) as error:
            meter.sent_bytes -= self._sends  # nothing left this machine
            end._failed()
            raise EndpointError("down", f"{end.address.url} cannot be reached.") from error
        except (TimeoutError, end._httpx.TimeoutException) as error:
            end._failed()
            raise EndpointError("slow", f"{end.address.url} did not begin to answer in time.") from error
        except end._httpx.HTTPError as error:
            end._failed()
            raise EndpointError("down", f"{end.address.url} broke off ({type(error).__name__}).") from error
        meter.received_bytes += HEAD_BYTES
        if self._response.status_code != 200:
            await self._refused()
        return self._response

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            await self._response.aclose()

    async def _refused(self) -> None:
        end, status = self._end, self._response.status_code
        wait_s = retry_after(self._response.headers)
        try:
            body = (await end._read(self._response, self._meter))[: 1 << 20]
        finally:
            await self._response.aclose()
        kind = "limited" if status == 429 else "failed" if status >= 500 else "refused"
        if kind != "refused":
            end._failed(wait_s)
        said = f"{end.address.url} answered with status {status}."
        raise EndpointError(kind, said, status=status, body=body, wait_s=wait_s)


def retry_after(headers: Any) -> float | None:
    """Seconds that a response asks to wait. A date is held against the server's own clock (its Date), never
    against ours."""
    said = headers.get("retry-after")
    if not said:
        return None
    if said.strip().isdigit():
        return float(min(int(said[:9]), 86400))
    try:
        until, now = parsedate_to_datetime(said), parsedate_to_datetime(headers["date"])
        return min(max(0.0, (until - now).total_seconds()), 86400.0)
    except (KeyError, TypeError, ValueError):
        return None


def _encoded(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _json(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EndpointError("broken", "the server's answer is not JSON.") from error
    if not isinstance(record, dict):
        raise EndpointError("broken", "the server's answer is no object.")
    return record


def _chunk(data: str) -> dict[str, Any]:
    record = _json(data.encode())
    if "error" in record:
        raise EndpointError("broken", "the server ended its stream with an error.")
    choices = record.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        raise EndpointError("broken", "a chunk of the server's stream has no choices.")
    return record


def _text_bytes(record: dict[str, Any], name: str) -> int:
    """Bytes of what an answer says: contents and calls, or a completion's text."""
    size = 0
    for choice in record.get("choices") or ():
        if not isinstance(choice, dict):
            continue
        said = choice.get(name)
        if said is None and isinstance(choice.get("text"), str):
            size += len(choice["text"].encode("utf-8", "replace"))
        if isinstance(said, dict):
            size += sum(len(str(value).encode()) for key, value in said.items() if key != "role" and value)
    return size
