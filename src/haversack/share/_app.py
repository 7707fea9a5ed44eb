"""The application: who may ask what, and which endpoint answers."""

from __future__ import annotations

import asyncio
import base64
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request, Response

from haversack import __version__
from haversack.run._batch import Batch
from haversack.share._answers import Form
from haversack.share._asks import Asker, check_dimensions
from haversack.share._door import Door, Endpoint, guarded
from haversack.share._encoding import Encoding
from haversack.share._errors import ApiError, stopping
from haversack.share._http import Bodies
from haversack.share._protocol import FOREIGN
from haversack.share._protocol import PATH as VERIFY
from haversack.share._requests import (
    MOST_TEXTS,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    parse,
    several,
)
from haversack.share._telemetry import Telemetry, resident_bytes
from haversack.share._verifier import Verifier
from haversack.share._waiting import (
    Receive,
    Scope,
    Send,
    Waiting,
    Writing,
    send_json,
    send_stream,
)

if TYPE_CHECKING:
    from haversack.run._engine import Engine
    from haversack.run._jobs import Ask
    from haversack.share.serve import Server

F32 = npt.NDArray[np.float32]
PAGE = "/"
POLICY = (
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    b"connect-src 'self'; img-src data:; frame-ancestors 'none'"
)
"""The page loads nothing from anywhere."""
OPEN = ("/healthz", PAGE)
"""Paths that need no token."""
ASIDE_BYTES = 32 * 1024
"""Bodies longer than this are read into tokens beside the event loop."""


class App:
    """One model behind HTTP. Made on the event loop it runs on."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.writing: set[Writing] = set()
        self.started = time.time()
        self.telemetry = Telemetry()
        self.waiting = Waiting()
        self.bodies = Bodies(server.limits)
        self.batch: Batch | None = None
        self.asker: Asker | None = None
        self.verifier: Verifier | None = None
        self.encoding: Encoding | None = None
        if server.engine is not None:
            self._open_batch(server.engine)
        elif server.encoder is not None:
            self.encoding = Encoding(server.encoder, server.options.queue)
        self.door = Door(server.options.token, OPEN)
        self._direct: dict[tuple[str, str], Endpoint] = {}
        self._api = self._routes()

    def _open_batch(self, engine: Engine) -> None:
        server = self.server
        tokenizer = engine.model.tokenizer()
        self.batch = self.waiting.batch = self.telemetry.batch = Batch(
            engine,
            contexts=server.room.contexts,
            queue=server.options.queue,
            prefix_bytes=server.room.prefix_bytes,
            tokenizer=tokenizer,
            deliver=self.waiting.deliver,
            watch=self.telemetry,
            draft=server.draft,
        )
        self.asker = Asker(engine, tokenizer, server.template, server.name, server.options)
        options = server.options
        if options.verify:
            self.verifier = self.telemetry.verifier = Verifier(
                self.batch,
                server.name,
                options.token or "",
                most=max(1, server.room.contexts - 1),  # a slot is left for who asks otherwise
                idle_s=options.idle_s,
                deadline_s=options.deadline_s,
                write_s=options.write_s,
                telemetry=self.telemetry,
            )

    def _routes(self) -> FastAPI:
        api = FastAPI(title="Haversack", version=__version__, docs_url=None, redoc_url=None)
        routes: dict[str, tuple[str, Endpoint]] = {
            PAGE: ("GET", self._page),
            "/healthz": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/state": ("GET", self._state),
            "/v1/models": ("GET", self._models),
            "/v1/models/{name:path}": ("GET", self._model),
            "/v1/completions": ("POST", self._completions),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/embeddings": ("POST", self._embeddings),
        }
        for path, (method, run) in routes.items():
            if "{" not in path:  # what needs no matching is spared the framework's layers
                self._direct[method, path] = run
            api.add_api_route(
                path, _endpoint(run), methods=[method], include_in_schema=path.startswith("/v1")
            )
        for status in (404, 405):
            api.add_exception_handler(status, _no_route)
        return api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":
            await self._device(scope, receive, send)
        if scope["type"] != "http":
            return
        status = 0

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def admitted(scope: Scope, receive: Receive, send: Send) -> None:
            self._admit(scope)
            run = self._direct.get((scope["method"], scope["path"]))
            await (self._api if run is None else run)(scope, receive, send)

        try:
            await guarded(admitted, scope, receive, counted)
        finally:  # 499: the client left before it was answered
            self.telemetry.requests.labels(_route(scope), str(status or 499)).inc()

    async def _device(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A device's connection (share/_verifier.py); the token is proved on it, never sent."""
        status = 101
        try:
            if self.verifier is None or scope["path"] != VERIFY:
                raise ApiError(404, "there is no such path.", code="not_found")
            if not self.door.token:
                self.door.from_here(dict(scope["headers"]))
            await self.verifier(scope, receive, send)
        except ApiError as error:
            status = error.status
            await receive()
            await send({"type": "websocket.close", "code": FOREIGN})  # before it is accepted: HTTP 403
        finally:
            self.telemetry.requests.labels(_route(scope), str(status)).inc()

    def _admit(self, scope: Scope) -> None:
        """Raises ApiError for who may not ask, and while the server stops."""
        self.door.admit(scope)
        if self.waiting.stopping and scope["path"].startswith("/v1"):
            raise stopping()

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Take no more, wait for what runs (until `grace_s` or `hurry`), then end it."""
        self.waiting.stopping = True
        if self.verifier is not None:
            self.verifier.stop()
        idle, hurried = asyncio.create_task(self.waiting.idle()), asyncio.create_task(hurry.wait())
        await asyncio.wait({idle, hurried}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(self.close)
        await asyncio.wait({idle}, timeout=5.0)  # streams say so
        idle.cancel()
        hurried.cancel()

    def close(self) -> None:
        """End what runs."""
        for part in (self.batch, self.encoding):
            if part is not None:
                part.close()

    # ---- endpoints

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.bodies.read(scope, receive) as body:
            request = parse(body, CompletionRequest)
            self._check_model(request.model)
            asks, form, together = await _aside(len(body), self._asker().completion, request)
        await self._answer(asks, form, together, bool(request.stream), scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.bodies.read(scope, receive) as body:
            request = parse(body, ChatRequest)
            self._check_model(request.model)
            constrained = request.response_format is not None or request.tools is not None
            size = ASIDE_BYTES + 1 if constrained else len(body)  # a schema takes time to compile
            asks, form = await _aside(size, self._asker().chat, request)
        await self._answer(asks, form, True, bool(request.stream), scope, receive, send)

    async def _answer(
        self,
        asks: list[Ask],
        form: Form,
        together: bool,
        stream: bool,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        answer = self.waiting.ask(asks, together=together)
        if stream:
            await send_stream(answer, form, receive, send, Writing(scope, self.writing))
            return
        await answer.all(receive)
        with Writing(scope, self.writing):
            await send_json(send, form.whole(answer.jobs))

    async def _embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.bodies.read(scope, receive) as body:
            request = parse(body, EmbeddingRequest)
            self._check_model(request.model)
            if self.encoding is not None:
                vectors, tokens = await self._encode(self.encoding, request, len(body))
            else:
                vectors, tokens = await self._mean_states(request, len(body), receive)
        data = []
        for index, vector in enumerate(vectors):
            shown: Any = vector.tolist()
            if request.encoding_format == "base64":
                shown = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        record = {
            "object": "list",
            "data": data,
            "model": self.server.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        with Writing(scope, self.writing):
            await send_json(send, record)

    async def _mean_states(
        self, request: EmbeddingRequest, size: int, receive: Receive
    ) -> tuple[list[F32], int]:
        """Vectors of a decoder: the mean of its normalized hidden states, of length 1."""
        asks = await _aside(size, self._asker().embedding, request)
        answer = self.waiting.ask(asks)
        await answer.all(receive)
        vectors = []
        for job in answer.jobs:
            assert job.embedding is not None
            vectors.append(
                (job.embedding / max(float(np.linalg.norm(job.embedding)), 1e-30)).astype(np.float32)
            )
        return vectors, sum(len(job.ask.prompt) for job in answer.jobs)

    async def _encode(
        self, encoding: Encoding, request: EmbeddingRequest, size: int
    ) -> tuple[list[F32], int]:
        """Vectors of an encoder, pooled as its folder says."""
        inputs = several(request.input, "input", MOST_TEXTS)
        texts = await _aside(
            size, lambda: [encoding.tokens(text, index) for index, text in enumerate(inputs)]
        )
        if request.dimensions is not None:
            width = encoding.encoder.pooling.width(encoding.encoder.architecture.width)
            check_dimensions(request.dimensions, width)
        return list(await encoding.embed(texts)), sum(map(len, texts))

    def _asker(self) -> Asker:
        """Raises ApiError for an encoder, which writes nothing."""
        if self.asker is None:
            raise ApiError(
                400, f"{self.server.name} is an encoder; use /v1/embeddings.", param="model", code="no_text"
            )
        return self.asker

    def _check_model(self, name: str) -> None:
        """Raises ApiError (404) for the name of another model."""
        if name != self.server.name:
            raise ApiError(
                404,
                f"the model {name[:80]!r} does not exist; this server has {self.server.name}.",
                param="model",
                code="model_not_found",
            )

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"object": "list", "data": [self._model_record()]})

    async def _model(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_model(scope["path_params"]["name"])
        await send_json(send, self._model_record())

    def _model_record(self) -> dict[str, Any]:
        return {
            "id": self.server.name,
            "object": "model",
            "created": int(self.started),
            "owned_by": "haversack",
        }

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        stopping = self.waiting.stopping
        await send_json(send, {"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self.telemetry.text()
        headers = [
            (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _state(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the page shows."""
        room = self.server.room
        running, waiting, contexts = 0, 0, room.contexts
        share = None
        if self.batch is not None:
            state, store = self.batch.state(), self.batch.prefixes
            running, waiting, contexts = state.running, state.waiting, state.contexts
            share = round(store.used / store.blocks, 3) if store.blocks else None
        elif self.encoding is not None:
            running, waiting = self.encoding.running, self.encoding.waiting
        await send_json(
            send,
            {
                "model": self.server.name,
                "kind": "embeddings" if self.encoding is not None else "text",
                "chat": self.asker is not None and self.asker.template is not None,
                "context_length": room.context_length,
                "contexts": contexts,
                "running": running,
                "waiting": waiting,
                "queue": self.server.options.queue,
                "tokens_per_s": round(self.telemetry.rate(), 1),
                "tokens": self.telemetry.total,
                "memory_mib": round(resident_bytes() / 2**20, 1),
                "planned_mib": round(room.plan.total_mib, 1),
                "budget_mib": self.server.options.budget.ram_mib,
                "prefix_share": share,
                "devices": len(self.verifier.devices) if self.verifier is not None else None,
                "seconds": round(time.time() - self.started),
            },
        )

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = files("haversack.share").joinpath("page.html").read_bytes()
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"content-security-policy", POLICY),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-cache"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Raw(Response):
    """A response that an endpoint sends itself."""

    def __init__(self, run: Endpoint) -> None:
        self.run = run
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await guarded(self.run, scope, receive, send)


def _endpoint(run: Endpoint) -> Any:
    async def endpoint(request: Request) -> Response:
        return _Raw(run)

    endpoint.__name__ = getattr(run, "__name__", "endpoint").strip("_")
    return endpoint


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    refused = ApiError(status, f"there is no {request.method} {request.url.path[:200]}.", code="not_found")
    return Response(refused.body(), status, media_type="application/json")


def _route(scope: Scope) -> str:
    """The route for the metrics; unknown paths count together."""
    path = scope["path"]
    known = (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/models",
        "/metrics",
        "/state",
        VERIFY,
        *OPEN,
    )
    return path if path in known else "other"


async def _aside(size: int, function: Any, *arguments: Any) -> Any:
    """Call `function`, beside the event loop when the body was long."""
    if size <= ASIDE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)
