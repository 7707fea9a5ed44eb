"""The application of `share route`: one OpenAI-compatible door to a device and a cloud."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from haversack.core._metrics import Metrics
from haversack.core.budget import PRIVACY
from haversack.share._answers import DONE, KEEP_ALIVE, event
from haversack.share._decide import Judge, Refusal, checked, stricter
from haversack.share._door import Door, guarded
from haversack.share._endpoint import Endpoint, EndpointError, Meter, Reply
from haversack.share._errors import ApiError, stopping
from haversack.share._http import Bodies
from haversack.share._waiting import KEEP_ALIVE_S, Gone, Receive, Scope, Send, Writing, send_json
from haversack.share.redaction import AnswerRestorer, Redacted, redact

if TYPE_CHECKING:
    from haversack.share.route import RouteServer

T = TypeVar("T")
OPEN = ("/healthz",)
NAMES = ("auto", "device", "cloud")
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Turn:
    """One request on its way: its body, what may leave of it, and the answer's headers."""

    def __init__(self, body: dict[str, Any], privacy: str, private: tuple[str, ...], most: int) -> None:
        self.id = f"r-{secrets.token_hex(6)}"
        self.body, self.privacy = body, privacy
        self.redacted: Redacted = redact(body, private)
        self.most = body.get("max_completion_tokens") or body.get("max_tokens") or most
        self.stream = bool(body.get("stream"))
        self.counts = bool((body.get("stream_options") or {}).get("include_usage"))
        self.began = time.monotonic()
        self.begun = self.booked = False

    def leaving(self, most: int) -> dict[str, Any]:
        """What the cloud is asked."""
        hidden = self.redacted.body if self.privacy == "derived" else self.body
        names = ("max_tokens", "max_completion_tokens")
        asked = {key: value for key, value in hidden.items() if key not in names}
        return {**asked, names["max_completion_tokens" in self.body]: most}


class RouteApp:
    """The application; made on the event loop it runs on."""

    def __init__(self, server: RouteServer, device: Endpoint, cloud: Endpoint | None) -> None:
        self.server, self.device, self.cloud = server, device, cloud
        options = server.options
        self.judge = Judge(
            *(options.policy, options.budget, server.ledger, server.router, server.threshold, cloud)
        )
        self.writing: set[Writing] = set()
        self.metrics = Metrics()
        self.bodies = Bodies(server.limits)
        self.stopping = False
        self._door = Door(options.token, OPEN)
        self._running: set[asyncio.Task[Any]] = set()
        self._started = time.time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            try:
                await guarded(self._route, scope, receive, send)
            finally:
                self._running.discard(task)

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Take no more and let running answers finish, until `grace_s` or `hurry`."""
        self.stopping = True
        if self._running:
            hurried = asyncio.create_task(hurry.wait())
            ending = asyncio.gather(*self._running, return_exceptions=True)
            both: set[asyncio.Future[Any]] = {ending, hurried}
            await asyncio.wait(both, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            ending.cancel()

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._door.admit(scope)
        asked = (scope["method"], scope["path"])
        if asked == ("POST", "/v1/chat/completions"):
            if self.stopping:
                raise stopping()
            await self._chat(scope, receive, send)
        elif asked == ("GET", "/v1/models"):
            models = [
                {"id": name, "object": "model", "created": int(self._started), "owned_by": "haversack"}
                for name in NAMES
                if name != "cloud" or self.cloud is not None
            ]
            await send_json(send, {"object": "list", "data": models})
        elif asked == ("GET", "/healthz"):
            said = "stopping" if self.stopping else "ok"
            await send_json(send, {"status": said}, 503 if self.stopping else 200)
        elif asked == ("GET", "/metrics"):
            body = self.metrics.text().encode()
            headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif asked == ("GET", "/state"):
            await send_json(send, await asyncio.to_thread(self.server.state))
        else:
            raise ApiError(404, f"there is no {scope['method']} {scope['path'][:200]}.", code="not_found")

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        options = self.server.options
        async with self.bodies.read(scope, receive) as data:
            body = checked(data)
            wanted = body.get("model") or "auto"
            if wanted not in NAMES or (wanted == "cloud" and self.cloud is None):
                raise ApiError(
                    404,
                    f"the model {wanted[:80]!r} does not exist; this server has {', '.join(NAMES)}.",
                    param="model",
                    code="model_not_found",
                )
            privacy = stricter(options.budget.privacy or "derived", _privacy(scope))
            turn = await asyncio.to_thread(Turn, body, privacy, options.private, options.max_tokens)
            decision = await asyncio.to_thread(
                self.judge.choose, body, wanted, privacy, turn.redacted.attachments
            )
        await watched(self._answer(turn, decision.where, decision.why, scope, send), receive)

    async def _answer(self, turn: Turn, where: str, why: str, scope: Scope, send: Send) -> None:
        reply = None
        if where == "cascade":
            reply = await self._tried(turn, send)
            sure = None if reply is None else reply.confidence
            if reply is not None and sure is not None and sure >= self.server.options.tau:
                await self._whole(turn, "device", f"confidence {sure:.3f}", reply.body, None, scope, send)
                return
            shown = "none" if sure is None else f"{sure:.3f}"
            where, why = "cloud", f"the device's confidence is {shown}, below {self.server.options.tau:g}"
        if where == "cloud":
            why = await self._from_cloud(turn, why, scope, send)
            if not why:
                return
        if reply is not None:  # the cascade's first answer is better than a second of the same device
            await self._whole(turn, "device", why, reply.body, None, scope, send)
            return
        await self._from_device(turn, why, scope, send)

    async def _from_cloud(self, turn: Turn, why: str, scope: Scope, send: Send) -> str:
        """Answer from the cloud; empty when done, else why it was not."""
        options = self.server.options
        meter = Meter()
        try:
            assert self.cloud is not None
            with contextlib.ExitStack() as room:
                held = self.judge.room(turn.leaving(turn.most), turn.most)
                most = await asyncio.to_thread(room.enter_context, held)
                asked = turn.leaving(most)
                if turn.stream:
                    times = {"first_s": options.first_s, "deadline_s": options.deadline_s}
                    chunks = self.cloud.stream(asked, **times, most=most, meter=meter)
                    await self._streamed(turn, "cloud", why, chunks, meter, scope, send)
                else:
                    reply = await self.cloud.chat(asked, deadline_s=options.first_s, most=most, meter=meter)
                    body = self._restored(turn, reply.body)
                    await self._whole(turn, "cloud", why, body, meter, scope, send)
            return ""
        except Refusal as refusal:
            if options.exhausted == "stop":
                await self._book(turn, "stopped", str(refusal), None)
                raise ApiError(402, f"{refusal}.", param=refusal.field, code="budget_exhausted") from refusal
            return str(refusal)
        except EndpointError as error:
            why = f"cloud {error.kind}; {why}"
            await self._book(turn, "cloud", why, meter)
            return why
        except BaseException:
            if not turn.booked:
                await self._book(turn, "cloud", f"left; {why}", meter)
            raise

    async def _from_device(self, turn: Turn, why: str, scope: Scope, send: Send) -> None:
        options = self.server.options
        meter = Meter()
        body = {key: value for key, value in turn.body.items() if key != "model"}
        try:
            if turn.stream:
                times = {"first_s": options.deadline_s, "deadline_s": options.deadline_s}
                chunks = self.device.stream(body, **times, most=turn.most, meter=meter)
                await self._streamed(turn, "device", why, chunks, None, scope, send)
            else:
                reply = await self.device.chat(
                    body, deadline_s=options.deadline_s, most=turn.most, meter=meter
                )
                await self._whole(turn, "device", why, reply.body, None, scope, send)
        except EndpointError as error:
            await self._book(turn, "failed", f"device {error.kind}; {why}", None)
            raise _passed_on(error, why) from error

    async def _tried(self, turn: Turn, send: Send) -> Reply | None:
        """The device's answer with its own confidence; None when it failed."""
        body = {key: value for key, value in turn.body.items() if key not in ("model", "stream")}
        body["logprobs"] = True
        try:
            return await self.device.chat(body, deadline_s=self.server.options.deadline_s, most=turn.most)
        except EndpointError:
            return None

    def _restored(self, turn: Turn, body: dict[str, Any]) -> dict[str, Any]:
        if turn.privacy != "derived":
            return body
        restored: dict[str, Any] = AnswerRestorer(turn.redacted.vault).whole(body)
        return restored

    async def _whole(
        self,
        turn: Turn,
        where: str,
        why: str,
        body: dict[str, Any],
        meter: Meter | None,
        scope: Scope,
        send: Send,
    ) -> None:
        """Send a whole answer, as a stream where one was asked for; it is in the ledger before."""
        if not turn.body.get("logprobs"):
            body = {**body, "choices": [{**one, "logprobs": None} for one in body["choices"]]}
        if turn.stream:
            await self._streamed(turn, where, why, _as_chunks(body, turn.counts), meter, scope, send)
            return
        await self._book(turn, where, why, meter)
        with Writing(scope, self.writing):
            turn.begun = True
            told = {name.decode(): value.decode() for name, value in _told(turn, where, why)}
            await send_json(send, body, headers=told)

    async def _streamed(
        self,
        turn: Turn,
        where: str,
        why: str,
        chunks: AsyncIterator[dict[str, Any]],
        meter: Meter | None,
        scope: Scope,
        send: Send,
    ) -> None:
        """Send chunks on as they come, restored where they come from the cloud; all is in the ledger before
        the end. Raises EndpointError before the first chunk; later it is told in the stream."""
        hidden = where == "cloud" and turn.privacy == "derived"
        restorer = AnswerRestorer(turn.redacted.vault) if hidden else None
        writing = Writing(scope, self.writing)

        async def put(payload: bytes) -> None:
            with writing:
                if not turn.begun:
                    turn.begun = True
                    headers = [*_STREAM, *_told(turn, where, why)]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": payload, "more_body": True})

        broken: EndpointError | None = None
        iterator = chunks.__aiter__()
        waiting: asyncio.Future[dict[str, Any] | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(_next(iterator))
                done, _ = await asyncio.wait({waiting}, timeout=KEEP_ALIVE_S if turn.begun else None)
                if not done:
                    await put(KEEP_ALIVE)
                    continue
                chunk = waiting.result()
                waiting = None
                if chunk is None:
                    break
                if not chunk.get("choices") and not turn.counts:
                    continue
                if not turn.counts:
                    chunk = {key: value for key, value in chunk.items() if key != "usage"}
                await put(event(restorer.chunk(chunk) if restorer is not None else chunk))
        except EndpointError as error:
            if not turn.begun:
                raise
            broken = error
        finally:
            if waiting is not None and not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError, EndpointError):
                    await waiting
            close = getattr(iterator, "aclose", None)
            if close is not None:
                with contextlib.suppress(RuntimeError):
                    await close()
        left = restorer.left() if restorer is not None else None
        tail = event(left) if left is not None else b""
        if broken is not None:
            tail += event(ApiError(502, f"the answer broke off: {broken}", code="broken_off").record())
        await self._book(turn, where, why if broken is None else f"{broken.kind}; {why}", meter)
        await put(tail + DONE)
        with writing:
            await send({"type": "http.response.body", "body": b""})

    async def _book(self, turn: Turn, where: str, why: str, meter: Meter | None) -> None:
        """Into the ledger: what it took, for whom, and why it went there; nothing of what was said."""
        seconds = time.monotonic() - turn.began
        self.metrics.count("routed_total", "Requests by where they were answered", where=where)
        self.metrics.time("routed_seconds", "Time until an answer is complete", seconds, where=where)
        turn.booked = True
        await asyncio.shield(asyncio.to_thread(self.server.book, turn.id, where, why, meter))


async def watched(work: Awaitable[T], receive: Receive) -> T:
    """`work`, cancelled when the client goes away. Raises Gone then."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            doing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await doing
            raise Gone
        return await doing
    finally:
        leaving.cancel()
        if not doing.done():
            doing.cancel()


async def _next(iterator: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    """The next chunk; None when they are over."""
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        return None


async def _as_chunks(body: dict[str, Any], counts: bool) -> AsyncIterator[dict[str, Any]]:
    """A whole answer as the chunks of a stream."""
    head = {name: body.get(name) for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for choice in body["choices"]:
        message = {name: value for name, value in (choice.get("message") or {}).items() if value is not None}
        calls = message.get("tool_calls")
        if calls:
            message["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        for delta, reason in ((message, None), ({}, choice.get("finish_reason") or "stop")):
            made = {"index": choice.get("index", 0), "delta": delta, "finish_reason": reason}
            yield {**head, "choices": [made]}
    if counts:
        yield {**head, "choices": [], "usage": body.get("usage")}


def _told(turn: Turn, where: str, why: str) -> list[tuple[bytes, bytes]]:
    """Headers that say where an answer is from."""
    found = ",".join(f"{kind}={count}" for kind, count in sorted(turn.redacted.found.items()))
    told = {
        "x-haversack-answered-by": where,
        "x-haversack-why": why,
        "x-haversack-request": turn.id,
        "x-haversack-hidden": found if where == "cloud" and turn.privacy == "derived" else "",
    }
    plain = {name: re.sub(r"[^ -~]", "?", value) for name, value in told.items() if value}
    return [(name.encode(), value.encode()) for name, value in plain.items()]


def _privacy(scope: Scope) -> str:
    """The level that a request asks for, the least strict where it asks for none."""
    said: str = dict(scope["headers"]).get(b"x-haversack-privacy", b"any").decode("latin-1").strip().lower()
    if said not in PRIVACY:
        raise ApiError(
            400,
            f"x-haversack-privacy={said[:40]} is not supported (allowed {', '.join(PRIVACY)}).",
            param="x-haversack-privacy",
            code="invalid_value",
        )
    return said


def _passed_on(error: EndpointError, why: str) -> ApiError:
    """A device's refusal in its own words, its failure in ours."""
    if error.kind == "refused" and error.body:
        with contextlib.suppress(ValueError, AttributeError):
            said = json.loads(error.body).get("error")
            text = said.get("message") if isinstance(said, dict) else said
            code = said.get("code") if isinstance(said, dict) else None
            sentence = f"the device: {str(text)[:500]} (on the device because: {why})"
            return ApiError(error.status, sentence, code=code)
    status = {"slow": 504, "limited": 429}.get(error.kind, 502)
    return ApiError(status, f"nobody could answer: {error} ({why})", code="no_answer")
